//! memcached's text protocol as functions over bytes; no socket, no time, no state but a cursor.
//!
//! Requests are appended to a buffer without allocating. Replies are cut out of a growing buffer by a [`Parser`] that
//! looks at every byte once, however the bytes arrive, and hands values out as slices of that buffer.
//!
//! What is never sent, because it is absent from the servers we support, or harmful there: `ms … I`, the flags `E` and
//! `x`, `mg C`, `b` together with `k`, and any store of mutable data without `C`.

use bytes::{Buf as _, Bytes, BytesMut};
use smallvec::SmallVec;

/// The longest reply line, which is far above what any command we send is answered with.
const MAX_LINE: usize = 2048;

/// What ends a batch: the server answers it after everything that came before.
pub(super) const NOOP: &[u8] = b"mn\r\n";

/// What is asked of a new connection.
pub(super) const HELLO: &[u8] = b"version\r\nstats settings\r\n";

/// Says who we are to a server that demands a password: it takes a store, of whatever key, for that.
///
/// To be sent to no other server, which would keep it as an entry that anybody can read.
pub(super) fn login(out: &mut Vec<u8>, user: &str, password: &str) {
    number(out, b"set auth 0 0 ", user.len() + 1 + password.len());
    for part in ["\r\n", user, " ", password, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The flags of a look-up, written once for all keys of a batch.
#[derive(Clone, Debug)]
pub(super) struct LookFlags(SmallVec<[u8; 40]>);

impl LookFlags {
    /// Asks for the value and its CAS, for a lease of this many seconds, and for the time left.
    ///
    /// Flags are answered in the order they are sent, and the time left is known only after `N`.
    pub(super) fn new(lease: Option<u32>, time_left: bool, opaque: Option<u32>) -> Self {
        let mut text = SmallVec::new();
        if let Some(seconds) = lease {
            text.extend_from_slice(b" N");
            text.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
        }
        text.extend_from_slice(if time_left { &b" v c t"[..] } else { b" v c" });
        if let Some(opaque) = opaque {
            text.extend_from_slice(b" O");
            text.extend_from_slice(itoa::Buffer::new().format(opaque).as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        Self(text)
    }

    /// How long a look-up of a key of this length is.
    pub(super) fn command_len(&self, key: usize) -> usize {
        b"mg ".len() + key + self.0.len()
    }
}

/// Looks one key up.
pub(super) fn look(out: &mut Vec<u8>, key: &[u8], flags: &LookFlags) {
    out.extend_from_slice(b"mg ");
    out.extend_from_slice(key);
    out.extend_from_slice(&flags.0);
}

/// Whether an answer is wanted if all went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    /// Only what went wrong is answered.
    Yes,
    /// Everything is answered.
    No,
}

/// A value to store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    /// Only over the state with this number.
    pub(super) cas: Option<u64>,
    /// As the server reads it; 0 is for ever.
    pub(super) ttl: u64,
}

/// Stores a value.
pub(super) fn store(out: &mut Vec<u8>, store: Store<'_>, opaque: u32, quiet: Quiet) {
    let Store {
        key,
        value,
        cas,
        ttl,
    } = store;
    out.extend_from_slice(b"ms ");
    out.extend_from_slice(key);
    number(out, b" ", value.len());
    if let Some(cas) = cas {
        number(out, b" C", cas);
    }
    if ttl != 0 {
        number(out, b" T", ttl);
    }
    number(out, b" O", opaque);
    end(out, quiet);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Deletes an entry; under a `cas`, only the state it names.
pub(super) fn delete(out: &mut Vec<u8>, key: &[u8], cas: Option<u64>, opaque: u32, quiet: Quiet) {
    out.extend_from_slice(b"md ");
    out.extend_from_slice(key);
    if let Some(cas) = cas {
        number(out, b" C", cas);
    }
    number(out, b" O", opaque);
    end(out, quiet);
}

/// The start of a classic `gets` line.
pub(super) const CLASSIC: &[u8] = b"gets";

/// Adds a key to a classic `gets` line, which ends with `\r\n`.
pub(super) fn classic_key(out: &mut Vec<u8>, key: &[u8]) {
    out.push(b' ');
    out.extend_from_slice(key);
}

fn number(out: &mut Vec<u8>, before: &[u8], number: impl itoa::Integer) {
    out.extend_from_slice(before);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn end(out: &mut Vec<u8>, quiet: Quiet) {
    out.extend_from_slice(match quiet {
        Quiet::Yes => b" q\r\n",
        Quiet::No => b"\r\n",
    });
}

/// One reply of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// `VA`: a value; empty for a placeholder.
    Value(Flags, Bytes),
    /// `VALUE`: a value of a classic `gets`, with its CAS; its key is [`Parser::key`].
    Classic(u64, Bytes),
    /// `END`: of a classic `gets`, or of statistics.
    End,
    /// `EN`: nothing there.
    Missing(Flags),
    /// `HD`: done.
    Done(Flags),
    /// `EX`: another state than the CAS names.
    Exists(Flags),
    /// `NF`: nothing there to change.
    NotFound(Flags),
    /// `NS`: not stored.
    NotStored(Flags),
    /// `MN`.
    Noop,
    /// `STORED`: of a login.
    Stored,
    /// `VERSION` and the number.
    Version(Bytes),
    /// `STAT`: a name, a blank, and a value.
    Stat(Bytes),
    /// `SERVER_ERROR` and a text.
    ServerError(Bytes),
    /// `CLIENT_ERROR` and a text.
    ClientError(Bytes),
    /// `ERROR`, and a text for a connection too many.
    Error(Bytes),
    /// An error about the request with this opaque; only the binary protocol says which.
    Refused(u32, &'static str),
}

/// The flags of a meta reply, a set in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    /// `c`: the CAS number.
    pub(super) cas: u64,
    /// `t`: seconds left; -1 for an entry that stays.
    pub(super) ttl: Option<i64>,
    /// `O`: what the request was marked with.
    pub(super) opaque: Option<u32>,
    /// `W`: the right to fill was won.
    pub(super) won: bool,
    /// `Z`: somebody else has won it.
    pub(super) lost: bool,
    /// `X`: marked stale. We never mark entries, so somebody else did.
    pub(super) stale: bool,
    /// What the binary protocol keeps beside a placeholder, since it has none of these.
    pub(super) mark: u32,
}

/// Bytes that are no reply. The text never shows them: out of step, they may be somebody's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(super) &'static str);

/// Cuts replies out of a buffer that grows at its end.
#[derive(Debug)]
pub(super) struct Parser {
    /// How far the buffer was searched for a line's end.
    searched: usize,
    /// The header of a value whose bytes haven't all arrived.
    header: Option<Header>,
    /// The key of the classic value that was read last, or is being read.
    key: Vec<u8>,
    max_value: usize,
}

#[derive(Debug)]
struct Header {
    length: usize,
    kind: ValueKind,
}

#[derive(Debug)]
enum ValueKind {
    Meta(Flags),
    Classic(u64),
}

impl Parser {
    /// A parser that refuses values longer than this.
    pub(super) fn new(max_value: usize) -> Self {
        Self {
            searched: 0,
            header: None,
            key: Vec::new(),
            max_value,
        }
    }

    /// The key of the classic value that was answered last.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Changes the longest value.
    pub(super) fn set_max_value(&mut self, max_value: usize) {
        self.max_value = max_value;
    }

    /// How many bytes the buffer must have before the next reply can be whole, as far as that is known.
    pub(super) fn wants(&self) -> usize {
        self.header
            .as_ref()
            .map_or(0, |header| header.length.saturating_add(b"\r\n".len()))
    }

    /// The next reply, or `None` until more bytes have arrived. After a violation the buffer makes no sense any more.
    ///
    /// Takes O(1) per byte in all, whatever the pieces they come in.
    #[inline]
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>, Violation> {
        if let Some(header) = self.header.take() {
            return self.value(header, buffer);
        }
        let Some(found) = memchr::memchr(b'\n', &buffer[self.searched..]) else {
            self.searched = buffer.len();
            return match self.searched > MAX_LINE {
                true => Err(Violation("a line that doesn't end")),
                false => Ok(None),
            };
        };
        let end = self.searched + found;
        self.searched = 0;
        if end > MAX_LINE {
            return Err(Violation("a line that is too long"));
        }
        let Some(line) = buffer[..end].strip_suffix(b"\r") else {
            return Err(Violation("a line that ends without a carriage return"));
        };
        if let Some(rest) = line.strip_prefix(b"VA ") {
            let (length, rest) = self.length(rest)?;
            let kind = ValueKind::Meta(flags(rest)?);
            buffer.advance(end + 1);
            return self.value(Header { length, kind }, buffer);
        }
        if line.starts_with(b"VALUE ") {
            return self.classic(end, buffer);
        }
        let reply = reply(line)?;
        let reply = match reply {
            Line::Reply(reply) => {
                buffer.advance(end + 1);
                return Ok(Some(reply));
            }
            Line::Text { make, skip } => {
                let mut text = buffer.split_to(end + 1).freeze();
                text.truncate(end - 1);
                text.advance(skip);
                make(text)
            }
        };
        Ok(Some(reply))
    }

    fn length<'a>(&self, text: &'a [u8]) -> Result<(usize, &'a [u8]), Violation> {
        let (length, rest) = unsigned(text).ok_or(Violation("a value without a length"))?;
        match usize::try_from(length) {
            Ok(length) if length <= self.max_value => Ok((length, rest)),
            _ => Err(Violation("a value longer than the server's own limit")),
        }
    }

    #[inline]
    fn value(&mut self, header: Header, buffer: &mut BytesMut) -> Result<Option<Reply>, Violation> {
        let length = header.length;
        if buffer.len() < length.saturating_add(b"\r\n".len()) {
            self.header = Some(header);
            return Ok(None);
        }
        if &buffer[length..length + 2] != b"\r\n" {
            return Err(Violation("a value that doesn't end where its length says"));
        }
        let data = match length {
            0 => Bytes::new(),
            _ => buffer.split_to(length).freeze(),
        };
        buffer.advance(2);
        Ok(Some(match header.kind {
            ValueKind::Meta(flags) => Reply::Value(flags, data),
            ValueKind::Classic(cas) => Reply::Classic(cas, data),
        }))
    }

    /// `VALUE <key> <flags> <length> <cas>`.
    fn classic(&mut self, end: usize, buffer: &mut BytesMut) -> Result<Option<Reply>, Violation> {
        const MALFORMED: Violation = Violation("a malformed VALUE line");
        let line = &buffer[b"VALUE ".len()..end - 1];
        let key_end = memchr::memchr(b' ', line).ok_or(MALFORMED)?;
        let (key, rest) = line.split_at(key_end);
        // Copied, since a slice of the buffer costs more than the few bytes of a key.
        self.key.clear();
        self.key.extend_from_slice(key);
        let (_, rest) = unsigned(&rest[1..]).ok_or(MALFORMED)?;
        let rest = rest.strip_prefix(b" ").ok_or(MALFORMED)?;
        let (length, rest) = self.length(rest)?;
        let rest = rest.strip_prefix(b" ").ok_or(MALFORMED)?;
        let (cas, rest) = unsigned(rest).ok_or(MALFORMED)?;
        if !rest.is_empty() {
            return Err(MALFORMED);
        }
        let kind = ValueKind::Classic(cas);
        buffer.advance(end + 1);
        self.value(Header { length, kind }, buffer)
    }
}

enum Line {
    Reply(Reply),
    /// A reply that keeps the line, without its first `skip` bytes.
    Text {
        make: fn(Bytes) -> Reply,
        skip: usize,
    },
}

/// A line that isn't the header of a value.
fn reply(line: &[u8]) -> Result<Line, Violation> {
    let (word, rest) = match memchr::memchr(b' ', line) {
        Some(blank) => line.split_at(blank),
        None => (line, &[][..]),
    };
    let text = |make| Line::Text {
        make,
        skip: line.len().min(word.len() + 1),
    };
    Ok(match word {
        b"HD" => Line::Reply(Reply::Done(flags(rest)?)),
        b"EN" => Line::Reply(Reply::Missing(flags(rest)?)),
        b"MN" => Line::Reply(Reply::Noop),
        b"NF" => Line::Reply(Reply::NotFound(flags(rest)?)),
        b"EX" => Line::Reply(Reply::Exists(flags(rest)?)),
        b"NS" => Line::Reply(Reply::NotStored(flags(rest)?)),
        b"END" => Line::Reply(Reply::End),
        b"STORED" => Line::Reply(Reply::Stored),
        b"STAT" => text(Reply::Stat),
        b"VERSION" => text(Reply::Version),
        b"SERVER_ERROR" => text(Reply::ServerError),
        b"CLIENT_ERROR" => text(Reply::ClientError),
        b"ERROR" => text(Reply::Error),
        _ => return Err(Violation("a line that is no reply")),
    })
}

/// Reads ` c12 t-1 W …`; flags we don't know are left alone.
fn flags(mut rest: &[u8]) -> Result<Flags, Violation> {
    const MALFORMED: Violation = Violation("a malformed flag");
    let mut flags = Flags::default();
    while let Some(token) = rest.strip_prefix(b" ") {
        let Some(&first) = token.first() else {
            break; // older servers end some lines with a blank
        };
        let argument = &token[1..];
        rest = match first {
            b'c' => {
                let (cas, rest) = unsigned(argument).ok_or(MALFORMED)?;
                flags.cas = cas;
                rest
            }
            b't' => {
                let (negative, digits) = match argument.strip_prefix(b"-") {
                    Some(digits) => (true, digits),
                    None => (false, argument),
                };
                let (seconds, rest) = unsigned(digits).ok_or(MALFORMED)?;
                let seconds = i64::try_from(seconds).map_err(|_| MALFORMED)?;
                flags.ttl = Some(if negative { -seconds } else { seconds });
                rest
            }
            b'O' => {
                let (opaque, rest) = unsigned(argument).ok_or(MALFORMED)?;
                flags.opaque = Some(u32::try_from(opaque).map_err(|_| MALFORMED)?);
                rest
            }
            b'W' | b'X' | b'Z' => {
                match first {
                    b'W' => flags.won = true,
                    b'X' => flags.stale = true,
                    _ => flags.lost = true,
                }
                argument
            }
            _ => &argument[memchr::memchr(b' ', argument).unwrap_or(argument.len())..],
        };
    }
    match rest.is_empty() || rest == b" " {
        true => Ok(flags),
        false => Err(MALFORMED),
    }
}

/// A decimal number at the start, and what follows it.
#[inline]
fn unsigned(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut number: u64 = 0;
    let mut digits = 0;
    while let Some(digit) = text.get(digits).map(|byte| byte.wrapping_sub(b'0'))
        && digit < 10
    {
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
        digits += 1;
    }
    (digits > 0).then(|| (number, &text[digits..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parses everything, the bytes arriving in these pieces.
    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Reply>, Violation> {
        let mut parser = Parser::new(1 << 20);
        let mut buffer = BytesMut::new();
        let mut replies = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(reply) = parser.next(&mut buffer)? {
                replies.push(reply);
            }
        }
        assert!(
            buffer.is_empty() && parser.wants() == 0,
            "left over: {buffer:?}"
        );
        Ok(replies)
    }

    #[track_caller]
    fn check(text: &str, expected: Reply) {
        assert_eq!(parse([text.as_bytes()]), Ok(vec![expected]), "{text:?}");
    }

    fn with_cas(cas: u64) -> Flags {
        Flags {
            cas,
            ..Flags::default()
        }
    }

    #[test]
    fn replies_are_read_as_the_server_writes_them() {
        let placeholder = |won, lost, ttl| {
            let flags = Flags {
                ttl: Some(ttl),
                won,
                lost,
                ..with_cas(3)
            };
            Reply::Value(flags, Bytes::new())
        };
        check("EN\r\n", Reply::Missing(Flags::default()));
        check("HD c17 kk9\r\n", Reply::Done(with_cas(17)));
        check("VA 5 c12 t3570\r\nhello\r\n", {
            let flags = Flags {
                ttl: Some(3570),
                ..with_cas(12)
            };
            Reply::Value(flags, Bytes::from_static(b"hello"))
        });
        check("VA 0 c3 t-1 W\r\n\r\n", placeholder(true, false, -1));
        check("VA 0 c3 t30 Z\r\n\r\n", placeholder(false, true, 30));
        let stale = Flags {
            cas: 9,
            ttl: Some(30),
            stale: true,
            lost: true,
            opaque: Some(7),
            won: false,
            mark: 0,
        };
        for order in ["c9 t30 X Z O7", "Z c9 X O7 t30", "O7 t30 c9 Z X"] {
            check(
                &format!("VA 3 {order}\r\nabc\r\n"),
                Reply::Value(stale, Bytes::from_static(b"abc")),
            );
        }
        check(
            "NF O3\r\n",
            Reply::NotFound(Flags {
                opaque: Some(3),
                ..Flags::default()
            }),
        );
        check("EX \r\n", Reply::Exists(Flags::default()));
        check("NS\r\n", Reply::NotStored(Flags::default()));
        check("MN\r\n", Reply::Noop);
        check("END\r\n", Reply::End);
        check(
            "VALUE key 0 3 12\r\na\r\n\r\n",
            Reply::Classic(12, Bytes::from_static(b"a\r\n")),
        );
        check(
            "VERSION 1.6.18\r\n",
            Reply::Version(Bytes::from_static(b"1.6.18")),
        );
        check(
            "STAT cas_enabled yes\r\n",
            Reply::Stat(Bytes::from_static(b"cas_enabled yes")),
        );
        check(
            "SERVER_ERROR out of memory storing object\r\n",
            Reply::ServerError(Bytes::from_static(b"out of memory storing object")),
        );
        check("ERROR\r\n", Reply::Error(Bytes::new()));
        check(
            "ERROR Too many open connections\r\n",
            Reply::Error(Bytes::from_static(b"Too many open connections")),
        );
    }

    #[test]
    fn what_is_no_reply_is_a_violation() {
        let endless = "x".repeat(MAX_LINE + 1);
        for text in [
            "hello\r\n",
            "HD\n",
            "\r\n",
            "\n",
            "VA\r\n",
            "VA x\r\n",
            "VA 1048577\r\n",
            "VA 99999999999999999999999\r\n",
            "VA 1 c1\r\nabc\r\n",
            "VA 1 cx\r\na\r\n",
            "VA 1 c1x\r\na\r\n",
            "HD O99999999999\r\n",
            "HD t--1\r\n",
            "VALUE k\r\n",
            "VALUE k 0 1\r\na\r\n",
            "VALUE k 0 1 2 3\r\na\r\n",
            endless.as_str(),
            &format!("STAT {endless}\r\n"),
        ] {
            assert!(parse([text.as_bytes()]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_split_reads_the_same() {
        let text = b"VA 5 c12 t9 W\r\nh\r\nlo\r\nEN\r\nVA 0 c1 t2 Z\r\n\r\nHD O5\r\nVALUE k 0 2 9\r\n\r\n\r\nEND\r\nSERVER_ERROR out of memory\r\nMN\r\n";
        let whole = parse([&text[..]]).unwrap();
        assert_eq!(whole.len(), 8);
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(parse(pieces).as_ref(), Ok(&whole), "{first} {second}");
            }
        }
        assert_eq!(parse(text.chunks(1)), Ok(whole));
    }

    #[test]
    fn requests_are_what_the_server_expects() {
        let key = &b"v1/user:7"[..];
        let mut out = Vec::new();
        look(&mut out, key, &LookFlags::new(None, false, None));
        look(&mut out, key, &LookFlags::new(Some(11), true, Some(42)));
        let filling = Store {
            key,
            value: b"abc",
            cas: Some(9),
            ttl: 61,
        };
        let setting = Store {
            key,
            value: b"",
            cas: None,
            ttl: 0,
        };
        store(&mut out, filling, 1, Quiet::Yes);
        store(&mut out, setting, 2, Quiet::No);
        delete(&mut out, key, None, 3, Quiet::Yes);
        delete(&mut out, key, Some(9), 4, Quiet::No);
        out.extend_from_slice(NOOP);
        let expected = "mg v1/user:7 v c\r\nmg v1/user:7 N11 v c t O42\r\nms v1/user:7 3 C9 T61 O1 q\r\nabc\r\n\
                        ms v1/user:7 0 O2\r\n\r\nmd v1/user:7 O3 q\r\nmd v1/user:7 C9 O4\r\nmn\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        let flags = LookFlags::new(Some(11), true, Some(42));
        look(&mut out, key, &flags);
        assert_eq!(out.len(), flags.command_len(key.len()));
    }

    /// A reply, and how the server writes it.
    fn any_reply() -> impl Strategy<Value = (Reply, Vec<u8>)> {
        let flags = (
            any::<u64>(),
            any::<bool>(),
            any::<bool>(),
            -1_i64..1 << 40,
            any::<Option<u32>>(),
        );
        let value = proptest::collection::vec(any::<u8>(), 0..200);
        (0..5_u8, flags, value).prop_map(|(kind, (cas, won, stale, ttl, opaque), value)| {
            let flags = Flags {
                cas,
                ttl: Some(ttl),
                opaque,
                won,
                lost: !won,
                stale,
                mark: 0,
            };
            let mut tail = format!(" c{cas} t{ttl}");
            if let Some(opaque) = opaque {
                tail += &format!(" O{opaque}");
            }
            tail += if won { " W" } else { " Z" };
            tail += if stale { " X" } else { "" };
            let data = Bytes::from(value.clone());
            let lines = |head: String| [head.as_bytes(), b"\r\n", &value[..], b"\r\n"].concat();
            match kind {
                0 => (
                    Reply::Value(flags, data),
                    lines(format!("VA {}{tail}", value.len())),
                ),
                1 => (
                    Reply::Classic(cas, data),
                    lines(format!("VALUE k:1 0 {} {cas}", value.len())),
                ),
                2 => (Reply::Missing(flags), format!("EN{tail}\r\n").into_bytes()),
                3 => (Reply::NotFound(flags), format!("NF{tail}\r\n").into_bytes()),
                _ => (Reply::Noop, b"MN\r\n".to_vec()),
            }
        })
    }

    proptest! {
        #[test]
        fn replies_survive_any_cutting(
            replies in proptest::collection::vec(any_reply(), 1..12),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let text: Vec<u8> = replies.iter().flat_map(|(_, text)| text.clone()).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]);
            let expected: Vec<Reply> = replies.iter().map(|(reply, _)| reply.clone()).collect();
            prop_assert_eq!(parse(pieces), Ok(expected));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            start in proptest::sample::select(vec!["", "VA ", "VA 3 ", "VALUE ", "VALUE k 0 ", "HD ", "EN c", "STAT"]),
        ) {
            let mut parser = Parser::new(64);
            let mut buffer = BytesMut::from(start);
            buffer.extend_from_slice(&bytes);
            while let Ok(Some(_)) = parser.next(&mut buffer) {}
            prop_assert!(parser.wants() <= 66);
        }
    }
}
