//! The protocol of a connection: the text protocol with its meta commands, or the old binary one where SASL leaves no
//! choice. Decided once for a pool; what differs beyond the bytes is how keys are looked up, in `batch`.

use bytes::BytesMut;

use super::binary;
use super::config::MemcachedConfig;
use super::protocol::{self, Quiet, Reply, Store, Violation};

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Text,
    Binary,
}

impl Wire {
    pub(super) fn of(config: &MemcachedConfig) -> Self {
        match config.sasl {
            true => Self::Binary,
            false => Self::Text,
        }
    }

    /// What ends a batch: the server answers it after everything that came before.
    #[inline]
    pub(super) fn noop(self) -> &'static [u8] {
        match self {
            Self::Text => protocol::NOOP,
            Self::Binary => binary::NOOP,
        }
    }

    /// Stores a value.
    #[inline]
    pub(super) fn store(self, out: &mut Vec<u8>, store: Store<'_>, opaque: u32, quiet: Quiet) {
        match self {
            Self::Text => protocol::store(out, store, opaque, quiet),
            Self::Binary => binary::store(out, store, opaque, quiet),
        }
    }

    /// Deletes an entry; under a `cas`, only the state it names.
    #[inline]
    pub(super) fn delete(
        self,
        out: &mut Vec<u8>,
        key: &[u8],
        cas: Option<u64>,
        opaque: u32,
        quiet: Quiet,
    ) {
        match self {
            Self::Text => protocol::delete(out, key, cas, opaque, quiet),
            Self::Binary => binary::delete(out, key, cas, opaque, quiet),
        }
    }

    /// What is asked of a new connection, once it is let in.
    pub(super) fn hello(self, out: &mut Vec<u8>) {
        match self {
            Self::Text => out.extend_from_slice(protocol::HELLO),
            Self::Binary => binary::hello(out),
        }
    }

    /// Says who we are.
    pub(super) fn login(self, out: &mut Vec<u8>, user: &str, password: &str) {
        match self {
            Self::Text => protocol::login(out, user, password),
            Self::Binary => binary::login(out, user, password),
        }
    }
}

/// Cuts replies out of a buffer that grows at its end.
#[derive(Debug)]
pub(super) enum Parser {
    Text(protocol::Parser),
    Binary(binary::Parser),
}

impl Parser {
    /// A parser that refuses values longer than this.
    pub(super) fn new(wire: Wire, max_value: usize) -> Self {
        match wire {
            Wire::Text => Self::Text(protocol::Parser::new(max_value)),
            Wire::Binary => Self::Binary(binary::Parser::new(max_value)),
        }
    }

    pub(super) fn wire(&self) -> Wire {
        match self {
            Self::Text(_) => Wire::Text,
            Self::Binary(_) => Wire::Binary,
        }
    }

    /// The key of the classic value that was answered last.
    #[inline]
    pub(super) fn key(&self) -> &[u8] {
        match self {
            Self::Text(parser) => parser.key(),
            Self::Binary(_) => &[],
        }
    }

    /// Changes the longest value.
    pub(super) fn set_max_value(&mut self, max_value: usize) {
        match self {
            Self::Text(parser) => parser.set_max_value(max_value),
            Self::Binary(parser) => parser.set_max_value(max_value),
        }
    }

    /// How many bytes the buffer must have before the next reply can be whole, as far as that is known.
    pub(super) fn wants(&self) -> usize {
        match self {
            Self::Text(parser) => parser.wants(),
            Self::Binary(parser) => parser.wants(),
        }
    }

    /// The next reply, or `None` until more bytes have arrived. After a violation the buffer makes no sense any more.
    #[inline]
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>, Violation> {
        match self {
            Self::Text(parser) => parser.next(buffer),
            Self::Binary(parser) => parser.next(buffer),
        }
    }
}
