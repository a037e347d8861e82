//! Which node of a cluster has a key: the key's slot, and the map from slots to nodes.

use std::fmt;
use std::sync::Arc;

use redis::Value;

use super::node::Node;
use super::reply;
use crate::transport::Address;

/// How many slots there are.
const SLOTS: u16 = 16_384;

/// No node, as far as is known.
const NOBODY: u16 = u16::MAX;

/// The slot of a key: its CRC16, or that of what stands between its first `{` and the next `}`, unless that is nothing.
///
/// What a data set's key function makes has no braces, since texts are escaped; raw keys may.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        let length = memchr::memchr(b'}', rest)?;
        (length > 0).then_some(&rest[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, eight bytes at a time: byte by byte it would take longer than everything else that is done with a key. The
/// crate's own comes with its cluster client and a random number generator.
fn crc16(bytes: &[u8]) -> u16 {
    let (eights, rest) = bytes.as_chunks::<8>();
    let crc = eights.iter().fold(0_u16, |crc, eight| {
        let [high, low] = crc.to_be_bytes();
        TABLES[7][usize::from(eight[0] ^ high)]
            ^ TABLES[6][usize::from(eight[1] ^ low)]
            ^ TABLES[5][usize::from(eight[2])]
            ^ TABLES[4][usize::from(eight[3])]
            ^ TABLES[3][usize::from(eight[4])]
            ^ TABLES[2][usize::from(eight[5])]
            ^ TABLES[1][usize::from(eight[6])]
            ^ TABLES[0][usize::from(eight[7])]
    });
    rest.iter().fold(crc, |crc, &byte| {
        (crc << 8) ^ TABLES[0][usize::from((crc >> 8) as u8 ^ byte)]
    })
}

/// By how many bytes follow, the CRC of each byte.
static TABLES: [[u16; 256]; 8] = tables();

const fn tables() -> [[u16; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u16) << 8;
        let mut bits = 0;
        while bits < 64 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bits += 1;
            if bits % 8 == 0 {
                tables[bits / 8 - 1][index] = crc;
            }
        }
        index += 1;
    }
    tables
}

/// Which node has which slot, as somebody said a while ago.
#[derive(Clone)]
pub(super) struct SlotMap {
    /// By slot: the node's place below, or `NOBODY`.
    owners: Box<[u16]>,
    nodes: Vec<Arc<Node>>,
}

impl SlotMap {
    pub(super) fn new() -> Self {
        Self {
            owners: vec![NOBODY; usize::from(SLOTS)].into(),
            nodes: Vec::new(),
        }
    }

    /// Gives these slots to this node.
    pub(super) fn give(&mut self, range: Range, node: &Arc<Node>) {
        let place = match self.nodes.iter().position(|known| Arc::ptr_eq(known, node)) {
            Some(place) => place,
            None => {
                self.nodes.push(Arc::clone(node));
                self.nodes.len() - 1
            }
        };
        // A cluster has at most 16,384 masters, one for each slot.
        let place = u16::try_from(place).unwrap_or(NOBODY);
        self.owners[usize::from(range.first)..=usize::from(range.last)].fill(place);
    }

    /// The place among the nodes of the one that has this slot.
    pub(super) fn owner(&self, slot: u16) -> Option<usize> {
        let place = usize::from(self.owners[usize::from(slot)]);
        (place < self.nodes.len()).then_some(place)
    }

    /// The nodes that have slots, or had some before others were given them.
    pub(super) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// A slot that no node has.
    pub(super) fn gap(&self) -> Option<u16> {
        (0..SLOTS).find(|&slot| self.owner(slot).is_none())
    }
}

impl fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SlotMap").field(&self.nodes).finish()
    }
}

/// Slots in a row, the last included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    first: u16,
    last: u16,
}

impl Range {
    pub(super) fn one(slot: u16) -> Self {
        Self {
            first: slot,
            last: slot,
        }
    }
}

/// Who has which slots, as the node at `asked` answers to `CLUSTER SLOTS`; `None` if it can't be understood.
///
/// Each entry is the first slot, the last, the primary, and replicas, which are nothing to us. A node begins with host and
/// port.
pub(super) fn ranges(answer: &Value, asked: &Address) -> Option<Vec<(Range, Address)>> {
    let Value::Array(entries) = answer else {
        return None;
    };
    let entries = entries.iter().map(|entry| {
        let Value::Array(entry) = entry else {
            return None;
        };
        let [
            Value::Int(first),
            Value::Int(last),
            Value::Array(primary),
            ..,
        ] = &entry[..]
        else {
            return None;
        };
        let [host, Value::Int(port), ..] = &primary[..] else {
            return None;
        };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            Value::SimpleString(host) => host,
            Value::Nil => "",
            _ => return None,
        };
        let range = Range {
            first: u16::try_from(*first).ok()?,
            last: u16::try_from(*last).ok()?,
        };
        if range.first > range.last || range.last >= SLOTS {
            return None;
        }
        let address = reply::announced(host, u16::try_from(*port).ok()?, asked)?;
        Some((range, address))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(key: &str, expected: u16) {
        assert_eq!(slot(key.as_bytes()), expected, "{key}");
    }

    /// The first is the specification's, the others are what a server says to `CLUSTER KEYSLOT`.
    #[test]
    fn slots_are_the_cluster_s() {
        check("123456789", 0x31c3);
        check("", 0);
        check("foo", 12_182);
        check("v1/user:7", 7_839);
        check("{foo}bar", 12_182);
        check("a{foo}{bar}", 12_182);
    }

    #[test]
    fn braces_that_hold_nothing_are_a_part_of_the_key() {
        for key in ["{}foo", "{foo", "foo}", "foo{}{bar}"] {
            assert_eq!(slot(key.as_bytes()), crc16(key.as_bytes()) % SLOTS, "{key}");
        }
        assert_eq!(slot(b"foo{{bar}}"), slot(b"{bar"));
    }

    fn asked() -> Address {
        Address::parse_of("redis", 6379, "cache-1").unwrap()
    }

    fn entry(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = vec![host, Value::Int(port), Value::BulkString(b"name".to_vec())];
        Value::Array(vec![
            Value::Int(first),
            Value::Int(last),
            Value::Array(node),
        ])
    }

    #[test]
    fn slots_have_the_nodes_that_are_announced() {
        let answer = Value::Array(vec![
            entry(0, 99, Value::BulkString(b"10.0.0.6".to_vec()), 7000),
            entry(100, 16_383, Value::Nil, 7001),
        ]);
        let found = ranges(&answer, &asked()).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(range, node)| (range.first, range.last, node.to_string()))
            .collect();
        let expected = [
            (0, 99, "10.0.0.6:7000".to_owned()),
            (100, 16_383, "cache-1:7001".to_owned()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_map_is_none() {
        let host = || Value::BulkString(b"h".to_vec());
        for entry in [
            Value::Nil,
            entry(5, 4, host(), 1),
            entry(0, 16_384, host(), 1),
            entry(-1, 4, host(), 1),
            entry(0, 4, host(), 70_000),
            entry(0, 4, Value::Int(3), 1),
        ] {
            assert_eq!(
                ranges(&Value::Array(vec![entry.clone()]), &asked()),
                None,
                "{entry:?}"
            );
        }
        assert_eq!(ranges(&Value::Nil, &asked()), None);
    }
}
