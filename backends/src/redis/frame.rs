//! What larder's entries look like in Redis, from the bytes up.
//!
//! Every value begins with the same 17 bytes: what it is, the incarnation of the server it was stored in, and a random
//! number of its own. Core knows nothing of them.
//!
//! - **The incarnation** makes what a server brings back from a snapshot, or from another server it was a replica of, as
//!   good as absent: an entry of another incarnation than the connection's is a miss.
//! - **The nonce** names one state of the key, so that a fill replaces exactly what its lease was won on. It is compared
//!   by a script, together with the rest: 17 bytes, however long the value is.
//!
//! A placeholder goes on with the server's time at which it was placed, and the length of its lease, so that whoever finds
//! it knows how old it is without asking again.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What every value begins with.
pub(super) const HEAD: usize = 17;

/// A placeholder's whole length.
pub(super) const PLACEHOLDER: usize = HEAD + 16;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Entry,
    Placeholder,
}

/// The first bytes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) incarnation: u64,
    pub(super) nonce: u64,
}

impl Head {
    /// The head of this value, if it is one of ours.
    pub(super) fn of(value: &[u8]) -> Option<Self> {
        let head = value.first_chunk::<HEAD>()?;
        let kind = match (head[0], value.len()) {
            (b'E', _) => Kind::Entry,
            (b'L', PLACEHOLDER) => Kind::Placeholder,
            _ => return None,
        };
        Some(Self {
            kind,
            incarnation: number(&head[1..9]),
            nonce: number(&head[9..]),
        })
    }

    pub(super) fn bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0] = match self.kind {
            Kind::Entry => b'E',
            Kind::Placeholder => b'L',
        };
        bytes[1..9].copy_from_slice(&self.incarnation.to_be_bytes());
        bytes[9..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }
}

/// A lease as it stands in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placeholder {
    pub(super) incarnation: u64,
    pub(super) nonce: u64,
    /// The server's time, in milliseconds.
    pub(super) placed: u64,
    pub(super) length: Duration,
}

impl Placeholder {
    /// The rest of a value whose head says that it is a placeholder.
    pub(super) fn of(head: Head, value: &[u8]) -> Self {
        Self {
            incarnation: head.incarnation,
            nonce: head.nonce,
            placed: number(&value[HEAD..HEAD + 8]),
            length: Duration::from_millis(number(&value[HEAD + 8..PLACEHOLDER])),
        }
    }

    pub(super) fn bytes(&self) -> [u8; PLACEHOLDER] {
        let head = Head {
            kind: Kind::Placeholder,
            incarnation: self.incarnation,
            nonce: self.nonce,
        };
        let mut bytes = [0; PLACEHOLDER];
        bytes[..HEAD].copy_from_slice(&head.bytes());
        bytes[HEAD..HEAD + 8].copy_from_slice(&self.placed.to_be_bytes());
        bytes[HEAD + 8..].copy_from_slice(&milliseconds(self.length).to_be_bytes());
        bytes
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes were sliced"))
}

/// Longer than this nothing is kept by a server that counts milliseconds from 1970 in 63 bits, with room to spare.
const LONGEST: u64 = 1 << 53;

/// Whole milliseconds, rounded up, at least one, and at most as many as a server takes.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    let rounded = duration.as_nanos().div_ceil(1_000_000);
    u64::try_from(rounded).unwrap_or(LONGEST).clamp(1, LONGEST)
}

/// What the server is told of a TTL; `None` if it is longer than it can say.
pub(super) fn ttl(ttl: Option<Duration>) -> Option<u64> {
    ttl.map(milliseconds).filter(|&ttl| ttl < LONGEST)
}

/// Random numbers of which no two are equal.
#[derive(Debug)]
pub(super) struct Nonces {
    seed: u64,
    count: AtomicU64,
}

impl Nonces {
    pub(super) fn new() -> Self {
        Self {
            // The one way to the system's random numbers without another dependency. Two handles, of whatever processes,
            // meet with a chance of their fills against 2^64, and harm only if it is on one key.
            seed: RandomState::new().hash_one(0),
            count: AtomicU64::new(0),
        }
    }

    /// The first of so many in a row.
    pub(super) fn take(&self, count: usize) -> Taken {
        let next = self.count.fetch_add(count as u64, Ordering::Relaxed);
        Taken {
            seed: self.seed,
            next,
        }
    }
}

/// Some numbers, for one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    seed: u64,
    next: u64,
}

impl Taken {
    /// The number at this position.
    pub(super) fn at(self, position: usize) -> u64 {
        // SplitMix64: a bijection of the sum, so no number comes twice.
        let mut mixed = (self.next.wrapping_add(position as u64))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(self.seed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let head = Head {
            kind: Kind::Entry,
            incarnation: 7,
            nonce: u64::MAX,
        };
        assert_eq!(Head::of(&head.bytes()), Some(head));
        let placeholder = Placeholder {
            incarnation: 1 << 63,
            nonce: 5,
            placed: 1_790_000_000_123,
            length: Duration::from_millis(10_500),
        };
        let bytes = placeholder.bytes();
        let head = Head::of(&bytes).unwrap();
        assert_eq!(head.kind, Kind::Placeholder);
        assert_eq!(Placeholder::of(head, &bytes), placeholder);
    }

    #[test]
    fn what_others_stored_has_no_head() {
        for value in [
            &b""[..],
            b"E",
            b"1234567890123456",
            b"12345678901234567",
            b"L23456789012345678",
        ] {
            assert_eq!(Head::of(value), None, "{value:?}");
        }
    }

    #[track_caller]
    fn check_ttl(asked: Duration, expected: impl Into<Option<u64>>) {
        assert_eq!(ttl(Some(asked)), expected.into());
    }

    #[test]
    fn ttls_are_whole_milliseconds_and_never_none_by_accident() {
        check_ttl(Duration::ZERO, 1);
        check_ttl(Duration::from_nanos(1), 1);
        check_ttl(Duration::from_micros(1_001), 2);
        check_ttl(Duration::from_secs(60), 60_000);
        check_ttl(Duration::from_secs(1 << 40), 1_000 << 40);
        check_ttl(Duration::MAX, None);
        assert_eq!(ttl(None), None);
    }

    #[test]
    fn no_number_comes_twice() {
        let nonces = Nonces::new();
        let (first, second) = (nonces.take(500), nonces.take(500));
        let numbers: HashSet<_> = (0..500)
            .flat_map(|position| [first.at(position), second.at(position)])
            .collect();
        assert_eq!(numbers.len(), 1_000);
        assert_ne!(Nonces::new().take(1).at(0), Nonces::new().take(1).at(0));
    }
}
