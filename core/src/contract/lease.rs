//! The right to fill one key.

use std::time::SystemTime;

/// What a backend needs to recognise one state of one key: a placeholder, or a stored value.
///
/// Two tokens are equal only if they name the same state as seen through the same origin; and look-ups that ask for
/// leases of one length are given equal tokens for one state, so that a busy key's token can be recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The backend's own: memcached's CAS number, Redis's nonce.
    pub token: [u64; 2],
    /// The backend's own: the connection, or the incarnation of the server, that issued it.
    ///
    /// A fill whose origin is gone is lost, since a restarted server counts its tokens from the start again.
    pub origin: u64,
}

/// The right to fill one key, won on a miss, or to replace exactly the value that was read.
///
/// It is voided by any delete of the key, and consumed by the fill or release that uses it. It holds no resources: a
/// lease that is dropped is a placeholder that stands until its time ends, so release what isn't filled.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which placeholder, or value, may be replaced.
    pub token: Token,
    /// When it was won, by the wall clock: before the source was asked.
    pub won_at: SystemTime,
}

impl Lease {
    /// A lease on the state that `token` names, won at this moment.
    ///
    /// Backends call it for what a miss won. From a hit's token it is the right to replace exactly that value (a
    /// take-over, a refresh), from the token of a busy key the right to replace a lease that grew old.
    pub fn new(token: Token, won_at: SystemTime) -> Self {
        Self { token, won_at }
    }
}
