//! From a line to what it asks for: tokens and flags, with memcached's own order of checks.
//!
//! Nothing here looks at an item.

use bytes::Bytes;

use super::store::Mode;
use super::text::{decode_base64, signed, unsigned, unsigned_32};

pub(super) const KEY_MAX: usize = 250;

/// The longest opaque; its `O` counts.
pub(super) const OPAQUE_MAX: usize = 32;

/// Most tokens of a meta command; its name counts, and one for the end.
const META_TOKENS_MAX: usize = 20;

/// Tokens of a line that is no classic `get`; what comes after stays one.
const TOKENS_MAX: usize = 23;

pub(super) const BAD_LINE: &str = "CLIENT_ERROR bad command line format";
const BAD_TOKEN: &str = "CLIENT_ERROR bad token in command line format";

/// What a line asks for.
#[derive(Clone, Debug)]
pub(super) enum Command {
    MetaGet {
        key: Bytes,
        flags: Flags,
    },
    MetaSet(MetaSet),
    MetaDelete {
        key: Bytes,
        flags: Flags,
    },
    MetaNoop,
    Get {
        keys: Vec<Bytes>,
        with_cas: bool,
        touch: Option<i32>,
    },
    Set(Update),
    Delete {
        key: Bytes,
        quiet: bool,
    },
    Touch {
        key: Bytes,
        ttl: i32,
        quiet: bool,
    },
    FlushAll {
        ttl: i32,
        quiet: bool,
    },
    Version,
    Stats(Option<Bytes>),
    /// Answered without a look at any item; the line may have announced a data block that is read and thrown away.
    Refused {
        reply: Option<&'static str>,
        swallow: usize,
    },
    /// Closes the connection.
    Hangup,
    /// memcached has it, this doesn't.
    Unmodelled,
}

impl Command {
    /// What one line asks for. A zero byte ends it, for the server's strings are C's.
    pub(super) fn parse(line: &[u8]) -> Self {
        let line = line.split(|&byte| byte == 0).next().unwrap_or_default();
        let tokens = tokenize(line);
        let Some((&name, arguments)) = tokens.split_first().filter(|(name, _)| name.len() > 1)
        else {
            return Self::refused("ERROR");
        };
        match name {
            b"mg" => meta_get(arguments),
            b"ms" => meta_set(arguments),
            b"md" => meta_delete(arguments),
            b"mn" => Self::MetaNoop,
            b"get" | b"gets" | b"bget" => classic_get(name, line, None),
            b"gat" | b"gats" => get_and_touch(name, line, arguments),
            b"set" => classic_set(arguments, Mode::Set),
            b"add" => classic_set(arguments, Mode::Add),
            b"replace" => classic_set(arguments, Mode::Replace),
            b"append" => classic_set(arguments, Mode::Append),
            b"prepend" => classic_set(arguments, Mode::Prepend),
            b"cas" => classic_set(arguments, Mode::Cas),
            b"delete" => classic_delete(arguments),
            b"touch" => classic_touch(arguments),
            b"flush_all" => flush_all(arguments),
            b"version" => Self::Version,
            b"stats" => stats(arguments),
            b"quit" => Self::Hangup,
            b"ma" | b"me" | b"incr" | b"decr" | b"shutdown" | b"slabs" | b"cache_memlimit"
            | b"lru_crawler" | b"watch" | b"verbosity" | b"lru" | b"extstore"
            | b"refresh_certs" => Self::Unmodelled,
            _ if tokens.last().is_some_and(|last| last.starts_with(b"HTTP/"))
                && !name_is_looked_up(name) =>
            {
                Self::Hangup
            }
            _ => Self::refused("ERROR"),
        }
    }

    /// Bytes of the data block that follows the line, its line end included.
    pub(super) fn data_len(&self) -> Option<usize> {
        match self {
            Self::MetaSet(MetaSet { len, .. }) | Self::Set(Update { len, .. }) => Some(len + 2),
            Self::Refused { swallow, .. } if *swallow > 0 => Some(*swallow),
            _ => None,
        }
    }

    fn refused(reply: &'static str) -> Self {
        Self::Refused {
            reply: Some(reply),
            swallow: 0,
        }
    }

    fn refused_unless(quiet: bool, reply: &'static str) -> Self {
        Self::Refused {
            reply: (!quiet).then_some(reply),
            swallow: 0,
        }
    }
}

/// A meta store.
#[derive(Clone, Debug)]
pub(super) struct MetaSet {
    pub(super) key: Bytes,
    pub(super) len: usize,
    pub(super) flags: Flags,
    pub(super) mode: Mode,
}

/// A classic store.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) key: Bytes,
    pub(super) client_flags: u32,
    pub(super) ttl: i32,
    pub(super) len: usize,
    pub(super) mode: Mode,
    pub(super) cas: u64,
    pub(super) quiet: bool,
}

/// A meta command's flags: understood once, and as they came, since they are answered in that order.
#[derive(Clone, Debug, Default)]
pub(super) struct Flags {
    pub(super) tokens: Vec<Bytes>,
    pub(super) value: bool,
    pub(super) quiet: bool,
    pub(super) no_update: bool,
    pub(super) stale: bool,
    pub(super) binary_key: bool,
    pub(super) vivify: Option<i32>,
    pub(super) ttl: Option<i32>,
    pub(super) recache: Option<i32>,
    pub(super) cas: Option<u64>,
    pub(super) client_flags: u32,
    mode: Option<u8>,
}

/// Whether a name of this first letter is looked for among few and answered `ERROR` at once.
fn name_is_looked_up(name: &[u8]) -> bool {
    matches!(name, [b'm', _]) || b"gsacidt".contains(&name[0])
}

fn tokenize(line: &[u8]) -> Vec<&[u8]> {
    line.split(|&byte| byte == b' ')
        .filter(|token| !token.is_empty())
        .take(TOKENS_MAX)
        .collect()
}

fn meta_get(arguments: &[&[u8]]) -> Command {
    let Some((&key, tokens)) = arguments.split_first() else {
        return Command::refused("ERROR");
    };
    if key.len() > KEY_MAX {
        return Command::refused(BAD_LINE);
    }
    if arguments.len() + 2 > META_TOKENS_MAX {
        return Command::refused("CLIENT_ERROR options flags are too long");
    }
    match Flags::parse(key, tokens) {
        Ok((key, flags)) => Command::MetaGet { key, flags },
        Err(reply) => Command::refused(reply),
    }
}

fn meta_set(arguments: &[&[u8]]) -> Command {
    let Some((&key, rest)) = arguments.split_first() else {
        return Command::refused("ERROR");
    };
    let Some((&len, tokens)) = rest.split_first().filter(|_| key.len() <= KEY_MAX) else {
        return Command::refused(BAD_LINE);
    };
    if arguments.len() + 2 > META_TOKENS_MAX {
        return Command::refused("CLIENT_ERROR options flags too long");
    }
    let Some(len) = value_len(len) else {
        return Command::refused(BAD_LINE);
    };
    // From here on the length is known, and what is refused takes its data block with it.
    let parsed = Flags::parse(key, tokens).and_then(|(key, flags)| {
        let (mode, fault) = flags.store_mode();
        match fault {
            Some(reply) => Err(reply),
            None => Ok((key, flags, mode)),
        }
    });
    match parsed {
        Ok((key, flags, mode)) => Command::MetaSet(MetaSet {
            key,
            len,
            flags,
            mode,
        }),
        Err(reply) => Command::Refused {
            reply: Some(reply),
            swallow: len + 2,
        },
    }
}

fn meta_delete(arguments: &[&[u8]]) -> Command {
    let Some((&key, tokens)) = arguments.split_first() else {
        return Command::refused("ERROR");
    };
    if key.len() > KEY_MAX {
        return Command::refused(BAD_LINE);
    }
    if arguments.len() + 2 > META_TOKENS_MAX {
        return Command::refused("CLIENT_ERROR options flags too long");
    }
    match Flags::parse(key, tokens) {
        Ok((_, flags)) if flags.opaque_too_long() => {
            Command::refused("CLIENT_ERROR opaque token too long")
        }
        Ok((key, flags)) => Command::MetaDelete { key, flags },
        Err(_) => Command::refused("CLIENT_ERROR invalid or duplicate flag"),
    }
}

impl Flags {
    /// Reads the flags, and decodes the key if one of them says so. The first unknown or repeated one ends it; of those
    /// with a bad argument the last has its say.
    fn parse(key: &[u8], tokens: &[&[u8]]) -> Result<(Bytes, Self), &'static str> {
        let mut key = Bytes::copy_from_slice(key);
        let mut flags = Self::default();
        let mut fault = None;
        let mut seen = [false; 127];
        for token in tokens {
            let (&letter, argument) = token.split_first().unwrap_or((&0, &[]));
            match seen.get_mut(usize::from(letter)) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err("CLIENT_ERROR duplicate flag"),
            }
            match letter {
                b'b' => {
                    flags.binary_key = true;
                    match decode_base64(&key) {
                        Some(decoded) => key = decoded.into(),
                        None => fault = Some("CLIENT_ERROR error decoding key"),
                    }
                }
                b'N' => set(&mut flags.vivify, signed(argument), &mut fault, BAD_TOKEN),
                b'T' => set(&mut flags.ttl, signed(argument), &mut fault, BAD_TOKEN),
                b'R' => set(&mut flags.recache, signed(argument), &mut fault, BAD_TOKEN),
                b'C' => set(&mut flags.cas, unsigned(argument), &mut fault, BAD_TOKEN),
                // The one without words of its own: it keeps those of an earlier fault.
                b'F' => match unsigned_32(argument) {
                    Some(client_flags) => flags.client_flags = client_flags,
                    None => fault = fault.or(Some(BAD_LINE)),
                },
                b'M' => match argument {
                    &[mode] => flags.mode = Some(mode),
                    _ => fault = Some("CLIENT_ERROR incorrect length for M token"),
                },
                b'J' => {
                    let initial = "CLIENT_ERROR invalid numeric initial value";
                    set(&mut None, unsigned(argument), &mut fault, initial);
                }
                b'D' => {
                    let delta = "CLIENT_ERROR invalid numeric delta value";
                    set(&mut None, unsigned(argument), &mut fault, delta);
                }
                b'v' => flags.value = true,
                b'q' => flags.quiet = true,
                b'u' => flags.no_update = true,
                b'I' => flags.stale = true,
                b'O' | b'P' | b'L' | b'k' | b's' | b't' | b'c' | b'f' | b'l' | b'h' => {}
                _ => return Err("CLIENT_ERROR invalid flag"),
            }
            flags.tokens.push(Bytes::copy_from_slice(token));
        }
        match fault {
            Some(reply) => Err(reply),
            None => Ok((key, flags)),
        }
    }

    /// The flag's letter, and the whole token, in the order they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.tokens.iter().map(|token| (token[0], &token[..]))
    }

    /// Whether `mg` holds the item's lock from look-up to reply, because it may change the item or tells of its past.
    pub(super) fn locks(&self) -> bool {
        self.iter().any(|(letter, _)| b"NTRlh".contains(&letter))
    }

    fn opaque_too_long(&self) -> bool {
        self.iter()
            .any(|(letter, token)| letter == b'O' && token.len() > OPAQUE_MAX)
    }

    /// How `ms` stores, and what is wrong with that. A CAS number makes a set or replace conditional.
    fn store_mode(&self) -> (Mode, Option<&'static str>) {
        let mode = match self.mode {
            None | Some(b'S' | b'R') if self.cas.is_some() => Mode::Cas,
            None | Some(b'S') => Mode::Set,
            Some(b'R') => Mode::Replace,
            Some(b'E') => Mode::Add,
            Some(b'A') => Mode::Append,
            Some(b'P') => Mode::Prepend,
            Some(_) => return (Mode::Set, Some("CLIENT_ERROR invalid mode for ms M token")),
        };
        let fault = self
            .opaque_too_long()
            .then_some("CLIENT_ERROR opaque token too long");
        (mode, fault)
    }
}

fn set<T>(
    slot: &mut Option<T>,
    value: Option<T>,
    fault: &mut Option<&'static str>,
    words: &'static str,
) {
    match value {
        Some(_) => *slot = value,
        None => *fault = Some(words),
    }
}

fn classic_get(name: &[u8], line: &[u8], touch: Option<i32>) -> Command {
    // Unlike all others it takes any number of tokens.
    let mut keys = line
        .split(|&byte| byte == b' ')
        .filter(|key| !key.is_empty());
    let skipped = if touch.is_some() { 2 } else { 1 };
    let keys: Vec<_> = keys
        .by_ref()
        .skip(skipped)
        .map(Bytes::copy_from_slice)
        .collect();
    if keys.is_empty() && touch.is_none() {
        return Command::refused("ERROR");
    }
    Command::Get {
        keys,
        with_cas: name.ends_with(b"s"),
        touch,
    }
}

fn get_and_touch(name: &[u8], line: &[u8], arguments: &[&[u8]]) -> Command {
    match arguments.first().map(|ttl| signed(ttl)) {
        None => Command::refused("ERROR"),
        Some(None) => Command::refused("CLIENT_ERROR invalid exptime argument"),
        Some(ttl) => classic_get(name, line, ttl),
    }
}

fn classic_set(arguments: &[&[u8]], mode: Mode) -> Command {
    let wanted = if mode == Mode::Cas { 5 } else { 4 };
    if arguments.len() != wanted && arguments.len() != wanted + 1 {
        return Command::refused("ERROR");
    }
    let quiet = ends_quietly(arguments);
    let key = arguments[0];
    let numbers = (
        unsigned_32(arguments[1]),
        signed(arguments[2]),
        value_len(arguments[3]),
        if mode == Mode::Cas {
            unsigned(arguments[4])
        } else {
            Some(0)
        },
    );
    match numbers {
        (Some(client_flags), Some(ttl), Some(len), Some(cas)) if key.len() <= KEY_MAX => {
            Command::Set(Update {
                key: Bytes::copy_from_slice(key),
                client_flags,
                ttl,
                len,
                mode,
                cas,
                quiet,
            })
        }
        _ => Command::refused_unless(quiet, BAD_LINE),
    }
}

fn classic_delete(arguments: &[&[u8]]) -> Command {
    if !(1..=3).contains(&arguments.len()) {
        return Command::refused("ERROR");
    }
    let quiet = arguments.len() > 1 && ends_quietly(arguments);
    let zero = arguments.get(1) == Some(&&b"0"[..]);
    let valid = match arguments.len() {
        1 => true,
        2 => zero || quiet,
        _ => zero && quiet,
    };
    if !valid {
        let usage = "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]";
        return Command::refused_unless(quiet, usage);
    }
    if arguments[0].len() > KEY_MAX {
        return Command::refused_unless(quiet, BAD_LINE);
    }
    Command::Delete {
        key: Bytes::copy_from_slice(arguments[0]),
        quiet,
    }
}

fn classic_touch(arguments: &[&[u8]]) -> Command {
    if !(2..=3).contains(&arguments.len()) {
        return Command::refused("ERROR");
    }
    let quiet = ends_quietly(arguments);
    if arguments[0].len() > KEY_MAX {
        return Command::refused_unless(quiet, BAD_LINE);
    }
    match signed(arguments[1]) {
        Some(ttl) => Command::Touch {
            key: Bytes::copy_from_slice(arguments[0]),
            ttl,
            quiet,
        },
        None => Command::refused_unless(quiet, "CLIENT_ERROR invalid exptime argument"),
    }
}

fn flush_all(arguments: &[&[u8]]) -> Command {
    if arguments.len() > 2 {
        return Command::refused("ERROR");
    }
    let quiet = ends_quietly(arguments);
    if arguments.len() == usize::from(quiet) {
        return Command::FlushAll { ttl: 0, quiet };
    }
    match signed(arguments[0]) {
        Some(ttl) => Command::FlushAll { ttl, quiet },
        None => Command::refused_unless(quiet, "CLIENT_ERROR invalid exptime argument"),
    }
}

fn stats(arguments: &[&[u8]]) -> Command {
    match arguments.first() {
        None => Command::Stats(None),
        Some(&(b"settings" | b"reset")) => {
            Command::Stats(Some(Bytes::copy_from_slice(arguments[0])))
        }
        Some(_) => Command::Unmodelled,
    }
}

fn ends_quietly(arguments: &[&[u8]]) -> bool {
    arguments.last() == Some(&&b"noreply"[..])
}

/// The length of a value, without its line end.
fn value_len(token: &[u8]) -> Option<usize> {
    let len = signed(token)?;
    usize::try_from(len).ok().filter(|_| len <= i32::MAX - 2)
}
