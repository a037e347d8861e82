//! memcached's old binary protocol as functions over bytes, beside `protocol`: for servers that run with SASL (`-S`),
//! which speak no other.
//!
//! It has no leases of its own. A placeholder is an empty value as everywhere in this client, put there by `add`, which one
//! of all that ask for it wins; its CAS number is the token, and its flags say when it was put there, since this protocol
//! tells nobody how long an entry has left. Requests carry their place in the batch as their opaque; the quiet ones are
//! answered only if there is something to say, and a `noop` closes the batch.

use bytes::{Buf as _, Bytes, BytesMut};

use super::protocol::{Flags, Quiet, Reply, Store, Violation};

const HEADER: usize = 24;
const REQUEST: u8 = 0x80;
const RESPONSE: u8 = 0x81;

/// The longest body beside a value: its extras and key, or a line of statistics.
const MAX_BODY: usize = 2048;

mod opcode {
    pub(super) const GET: u8 = 0x00;
    pub(super) const SET: u8 = 0x01;
    pub(super) const ADD: u8 = 0x02;
    pub(super) const DELETE: u8 = 0x04;
    pub(super) const GET_QUIETLY: u8 = 0x09;
    pub(super) const NOOP: u8 = 0x0a;
    pub(super) const VERSION: u8 = 0x0b;
    pub(super) const STAT: u8 = 0x10;
    pub(super) const SET_QUIETLY: u8 = 0x11;
    pub(super) const DELETE_QUIETLY: u8 = 0x14;
    pub(super) const LOGIN: u8 = 0x21;
}

mod status {
    pub(super) const OK: u16 = 0;
    pub(super) const NOT_FOUND: u16 = 1;
    pub(super) const EXISTS: u16 = 2;
    pub(super) const TOO_LARGE: u16 = 3;
    pub(super) const NOT_STORED: u16 = 5;
    pub(super) const DENIED: u16 = 0x20;
    pub(super) const UNKNOWN: u16 = 0x81;
    pub(super) const OUT_OF_MEMORY: u16 = 0x82;
}

/// What ends a batch.
pub(super) const NOOP: &[u8] = &bare(opcode::NOOP);

/// What is asked of a new connection, once it is let in.
pub(super) fn hello(out: &mut Vec<u8>) {
    Request::new(opcode::VERSION).write(out, b"", &[], &[]);
    Request::new(opcode::STAT).write(out, b"settings", &[], &[]);
}

/// Says who we are, by SASL's plainest mechanism.
///
/// A server that knows text alone would wait for the end of the line; it finds one in the opaque, and says so at once.
pub(super) fn login(out: &mut Vec<u8>, user: &str, password: &str) {
    let secret = [b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat();
    let request = Request::new(opcode::LOGIN).opaque(u32::from_be_bytes(*b"\r\n\r\n"));
    request.write(out, b"PLAIN", &[], &secret);
}

/// Looks one key up; what isn't there isn't answered.
pub(super) fn look(out: &mut Vec<u8>, key: &[u8], opaque: u32) {
    let request = Request::new(opcode::GET_QUIETLY);
    request.opaque(opaque).write(out, key, &[], &[]);
}

/// Puts a placeholder where nothing is, for so many seconds, with the time that [`Flags::mark`] will then say.
pub(super) fn claim(out: &mut Vec<u8>, key: &[u8], mark: u32, seconds: u32, opaque: u32) {
    let request = Request::new(opcode::ADD);
    request
        .opaque(opaque)
        .write(out, key, &extras(mark, seconds), &[]);
}

/// Stores a value.
pub(super) fn store(out: &mut Vec<u8>, store: Store<'_>, opaque: u32, quiet: Quiet) {
    let request = Request::new(match quiet {
        Quiet::Yes => opcode::SET_QUIETLY,
        Quiet::No => opcode::SET,
    });
    // The server reads them into 32 bits with a sign; longer ones were cut before.
    let seconds = u32::try_from(store.ttl).unwrap_or(0);
    request
        .opaque(opaque)
        .cas(store.cas)
        .write(out, store.key, &extras(0, seconds), store.value);
}

/// Deletes an entry; under a `cas`, only the state it names.
pub(super) fn delete(out: &mut Vec<u8>, key: &[u8], cas: Option<u64>, opaque: u32, quiet: Quiet) {
    let request = Request::new(match quiet {
        Quiet::Yes => opcode::DELETE_QUIETLY,
        Quiet::No => opcode::DELETE,
    });
    request.opaque(opaque).cas(cas).write(out, key, &[], &[]);
}

/// How long a look-up, or a claim with it, of a key of this length is.
pub(super) fn look_len(key: usize, claims: bool) -> usize {
    match claims {
        true => 2 * (HEADER + key) + 8,
        false => HEADER + key,
    }
}

/// The flags and the seconds to live of a store.
fn extras(mark: u32, seconds: u32) -> [u8; 8] {
    (u64::from(mark) << 32 | u64::from(seconds)).to_be_bytes()
}

const fn bare(opcode: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = REQUEST;
    header[1] = opcode;
    header
}

/// A request's header.
struct Request {
    opcode: u8,
    opaque: u32,
    cas: u64,
}

impl Request {
    fn new(opcode: u8) -> Self {
        Self {
            opcode,
            opaque: 0,
            cas: 0,
        }
    }

    fn opaque(mut self, opaque: u32) -> Self {
        self.opaque = opaque;
        self
    }

    /// To this protocol 0 means any state, which is never what a CAS of ours means: another number that no entry has
    /// stands for it.
    fn cas(mut self, cas: Option<u64>) -> Self {
        self.cas = match cas {
            None => 0,
            Some(0) => u64::MAX,
            Some(cas) => cas,
        };
        self
    }

    fn write(self, out: &mut Vec<u8>, key: &[u8], extras: &[u8], value: &[u8]) {
        let body = extras.len() + key.len() + value.len();
        let body = u32::try_from(body).expect("an item is far smaller than 4 GiB");
        let key_length = u16::try_from(key.len()).expect("a key has at most 250 bytes");
        let extras_length = u8::try_from(extras.len()).expect("extras are 0 or 8 bytes");
        let mut header = bare(self.opcode);
        header[2..4].copy_from_slice(&key_length.to_be_bytes());
        header[4] = extras_length;
        header[8..12].copy_from_slice(&body.to_be_bytes());
        header[12..16].copy_from_slice(&self.opaque.to_be_bytes());
        header[16..].copy_from_slice(&self.cas.to_be_bytes());
        for part in [&header[..], extras, key, value] {
            out.extend_from_slice(part);
        }
    }
}

/// Cuts replies out of a buffer that grows at its end.
#[derive(Debug)]
pub(super) struct Parser {
    max_value: usize,
    /// How long the reply is that hasn't arrived as a whole, once that is known.
    length: Option<usize>,
}

impl Parser {
    /// A parser that refuses values longer than this.
    pub(super) fn new(max_value: usize) -> Self {
        Self {
            max_value,
            length: None,
        }
    }

    /// Changes the longest value.
    pub(super) fn set_max_value(&mut self, max_value: usize) {
        self.max_value = max_value;
    }

    /// How many bytes the buffer must have before the next reply can be whole, as far as that is known.
    pub(super) fn wants(&self) -> usize {
        self.length.unwrap_or(0)
    }

    /// The next reply, or `None` until more bytes have arrived. After a violation the buffer makes no sense any more.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>, Violation> {
        match buffer.first() {
            None => return Ok(None),
            Some(&RESPONSE) => {}
            // What a server says, in any case as text, that has no connection to spare.
            Some(b'E') => return text_error(buffer),
            Some(_) => return Err(Violation("bytes that aren't of the binary protocol")),
        }
        let Some(header) = buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let header = Header::read(header);
        if header.body > self.max_value.saturating_add(MAX_BODY) {
            return Err(Violation("a value longer than the server's own limit"));
        }
        if header.extras + header.key > header.body {
            return Err(Violation("a reply whose parts are longer than itself"));
        }
        let length = HEADER + header.body;
        if buffer.len() < length {
            self.length = Some(length);
            return Ok(None);
        }
        self.length = None;
        buffer.advance(HEADER);
        header.reply(buffer).map(Some)
    }
}

/// A reply's header.
struct Header {
    opcode: u8,
    status: u16,
    extras: usize,
    key: usize,
    body: usize,
    opaque: u32,
    cas: u64,
}

impl Header {
    fn read(header: &[u8; HEADER]) -> Self {
        let short = |at| u16::from_be_bytes([header[at], header[at + 1]]);
        let long = |at| u32::from_be_bytes(std::array::from_fn(|byte| header[at + byte]));
        Self {
            opcode: header[1],
            key: usize::from(short(2)),
            extras: usize::from(header[4]),
            status: short(6),
            body: long(8) as usize,
            opaque: long(12),
            cas: u64::from_be_bytes(std::array::from_fn(|byte| header[16 + byte])),
        }
    }

    /// What it says, whose body the buffer begins with.
    fn reply(self, buffer: &mut BytesMut) -> Result<Reply, Violation> {
        let flags = Flags {
            cas: self.cas,
            opaque: Some(self.opaque),
            ..Flags::default()
        };
        let reply = match (self.opcode, self.status) {
            (opcode::GET | opcode::GET_QUIETLY, status::OK) => return self.value(flags, buffer),
            (opcode::STAT, status::OK) if self.key == 0 => Reply::End,
            (opcode::STAT, status::OK) => return Ok(self.stat(buffer)),
            (opcode::VERSION, status::OK) => {
                return Ok(Reply::Version(buffer.split_to(self.body).freeze()));
            }
            (opcode::NOOP, status::OK) => Reply::Noop,
            (opcode::LOGIN, status::OK) => Reply::Stored,
            (opcode::LOGIN, status::DENIED) => {
                Reply::ClientError(Bytes::from_static(b"authentication failure"))
            }
            (opcode::LOGIN, status::UNKNOWN) => {
                Reply::Error(Bytes::from_static(b"unknown command"))
            }
            (_, status::DENIED) => Reply::ClientError(Bytes::from_static(b"unauthenticated")),
            (
                opcode::SET
                | opcode::SET_QUIETLY
                | opcode::ADD
                | opcode::DELETE
                | opcode::DELETE_QUIETLY,
                status::OK,
            ) => Reply::Done(flags),
            (_, status::NOT_FOUND) => Reply::NotFound(flags),
            (_, status::EXISTS) => Reply::Exists(flags),
            (_, status::NOT_STORED) => Reply::NotStored(flags),
            (_, status::TOO_LARGE) => Reply::Refused(self.opaque, "object too large for cache"),
            (_, status::OUT_OF_MEMORY) => Reply::Refused(self.opaque, "out of memory"),
            _ => return Err(Violation("a reply that can't be placed")),
        };
        buffer.advance(self.body);
        Ok(reply)
    }

    fn value(self, mut flags: Flags, buffer: &mut BytesMut) -> Result<Reply, Violation> {
        if self.extras != 4 {
            return Err(Violation("a value without flags"));
        }
        flags.mark = buffer.get_u32();
        buffer.advance(self.key);
        let data = match self.body - self.extras - self.key {
            0 => Bytes::new(),
            length => buffer.split_to(length).freeze(),
        };
        Ok(Reply::Value(flags, data))
    }

    /// A name and a value, as the text protocol has them.
    fn stat(self, buffer: &mut BytesMut) -> Reply {
        let body = buffer.split_to(self.body);
        let (name, value) = body[self.extras..].split_at(self.key);
        Reply::Stat([name, b" ", value].concat().into())
    }
}

fn text_error(buffer: &mut BytesMut) -> Result<Option<Reply>, Violation> {
    let Some(end) = memchr::memchr(b'\n', &buffer[..buffer.len().min(MAX_BODY)]) else {
        return match buffer.len() >= MAX_BODY {
            true => Err(Violation("a line that doesn't end")),
            false => Ok(None),
        };
    };
    let line = buffer.split_to(end + 1).freeze();
    let text = line
        .strip_prefix(b"ERROR")
        .and_then(|text| text.strip_suffix(b"\r\n"))
        .ok_or(Violation("bytes that aren't of the binary protocol"))?;
    Ok(Some(Reply::Error(line.slice_ref(text.trim_ascii_start()))))
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

    /// A reply as a server writes it.
    fn reply(
        opcode: u8,
        status: u16,
        opaque: u32,
        cas: u64,
        [extras, key, value]: [&[u8]; 3],
    ) -> Vec<u8> {
        let body = u32::try_from(extras.len() + key.len() + value.len()).unwrap();
        [
            &[RESPONSE, opcode][..],
            &u16::try_from(key.len()).unwrap().to_be_bytes(),
            &[u8::try_from(extras.len()).unwrap(), 0],
            &status.to_be_bytes(),
            &body.to_be_bytes(),
            &opaque.to_be_bytes(),
            &cas.to_be_bytes(),
            extras,
            key,
            value,
        ]
        .concat()
    }

    fn marked(opaque: u32, cas: u64, mark: u32) -> Flags {
        Flags {
            cas,
            opaque: Some(opaque),
            mark,
            ..Flags::default()
        }
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Reply) {
        assert_eq!(parse([bytes]), Ok(vec![expected]), "{bytes:?}");
    }

    #[test]
    fn replies_are_read_as_the_server_writes_them() {
        let none: [&[u8]; 3] = [b"", b"", b""];
        let said = |text: &'static str| [&b""[..], b"", text.as_bytes()];
        check(
            &reply(opcode::GET_QUIETLY, 0, 7, 9, [&[0, 0, 1, 2], b"", b"hello"]),
            Reply::Value(marked(7, 9, 258), Bytes::from_static(b"hello")),
        );
        check(
            &reply(opcode::GET, 0, 7, 9, [&[0; 4], b"key", b""]),
            Reply::Value(marked(7, 9, 0), Bytes::new()),
        );
        check(
            &reply(opcode::ADD, 0, 1, 5, none),
            Reply::Done(marked(1, 5, 0)),
        );
        check(
            &reply(
                opcode::ADD,
                status::EXISTS,
                1,
                0,
                said("Data exists for key."),
            ),
            Reply::Exists(marked(1, 0, 0)),
        );
        check(
            &reply(
                opcode::DELETE_QUIETLY,
                status::NOT_FOUND,
                2,
                0,
                said("Not found"),
            ),
            Reply::NotFound(marked(2, 0, 0)),
        );
        check(
            &reply(
                opcode::SET_QUIETLY,
                status::TOO_LARGE,
                3,
                0,
                said("Too large."),
            ),
            Reply::Refused(3, "object too large for cache"),
        );
        check(
            &reply(
                opcode::SET,
                status::OUT_OF_MEMORY,
                3,
                0,
                said("Out of memory"),
            ),
            Reply::Refused(3, "out of memory"),
        );
        check(&reply(opcode::NOOP, 0, 0, 0, none), Reply::Noop);
        check(
            &reply(opcode::VERSION, 0, 0, 0, said("1.6.18")),
            Reply::Version(Bytes::from_static(b"1.6.18")),
        );
        check(
            &reply(opcode::STAT, 0, 0, 0, [b"", b"maxconns", b"1024"]),
            Reply::Stat(Bytes::from_static(b"maxconns 1024")),
        );
        check(&reply(opcode::STAT, 0, 0, 0, none), Reply::End);
        check(
            &reply(opcode::LOGIN, 0, 0, 0, said("Authenticated")),
            Reply::Stored,
        );
        check(
            b"ERROR Too many open connections\r\n",
            Reply::Error(Bytes::from_static(b"Too many open connections")),
        );
        check(b"ERROR\r\n", Reply::Error(Bytes::new()));
    }

    #[test]
    fn what_is_no_reply_is_a_violation() {
        let none: [&[u8]; 3] = [b"", b"", b""];
        let mut longer_key = reply(opcode::GET, 0, 0, 0, [&[0; 4], b"", b"x"]);
        longer_key[3] = 2;
        let mut too_long = reply(opcode::GET, 0, 0, 0, [&[0; 4], b"", b"x"]);
        too_long[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        for bytes in [
            b"VA 1 c1\r\na\r\n".to_vec(),
            b"EN\r\n".to_vec(),
            [b"E", &[b'x'; MAX_BODY + 1][..]].concat(),
            vec![REQUEST; HEADER],
            reply(opcode::GET, 0, 0, 0, none),
            reply(opcode::SET, 0x85, 0, 0, none),
            reply(0x77, 0, 0, 0, none),
            longer_key,
            too_long,
        ] {
            assert!(parse([&bytes[..]]).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn requests_are_what_the_server_expects() {
        let mut out = Vec::new();
        claim(&mut out, b"k", 258, 11, 7);
        let expected = [
            &[
                REQUEST,
                opcode::ADD,
                0,
                1,
                8,
                0,
                0,
                0,
                0,
                0,
                0,
                9,
                0,
                0,
                0,
                7,
            ][..],
            &[0; 8],
            &[0, 0, 1, 2, 0, 0, 0, 11],
            b"k",
        ];
        assert_eq!(out, expected.concat());
        look(&mut out, b"k", 7);
        assert_eq!(out.len(), look_len(1, true));
        out.clear();
        look(&mut out, b"k", 7);
        assert_eq!(out.len(), look_len(1, false));
    }

    /// To the server it means any state.
    #[test]
    fn a_cas_of_nothing_is_never_sent_as_zero() {
        let cas = |cas| {
            let mut out = Vec::new();
            delete(&mut out, b"k", cas, 0, Quiet::Yes);
            u64::from_be_bytes(out[16..24].try_into().unwrap())
        };
        assert_eq!((cas(None), cas(Some(9))), (0, 9));
        assert_ne!(cas(Some(0)), 0);
    }

    proptest! {
        #[test]
        fn replies_survive_any_cutting(
            values in proptest::collection::vec(
                (any::<u32>(), any::<u64>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..200)),
                1..12,
            ),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|(opaque, cas, mark, value)| {
                    let body = [&mark.to_be_bytes()[..], b"", value];
                    reply(opcode::GET_QUIETLY, 0, *opaque, *cas, body)
                })
                .collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            let expected: Vec<Reply> = values
                .iter()
                .map(|(opaque, cas, mark, value)| {
                    Reply::Value(marked(*opaque, *cas, *mark), Bytes::from(value.clone()))
                })
                .collect();
            prop_assert_eq!(parse(pieces), Ok(expected));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut parser = Parser::new(1 << 10);
            let mut buffer = BytesMut::from(&[&[RESPONSE], &bytes[..]].concat()[..]);
            while let Ok(Some(_)) = parser.next(&mut buffer) {}
        }
    }
}
