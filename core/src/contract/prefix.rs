//! The prefix of every key: which running version of which deployment an entry belongs to.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use super::{Error, ErrorKind, Pool, Result};

/// The longest prefix in bytes: 20 that are configured, a dot, and 11 of the pool's hash.
pub const MAX_PREFIX: usize = 32;

/// The longest configured part.
const MAX_CONFIGURED: usize = 20;

/// The prefix of every key of one generation.
///
/// ```
/// use larder_core::{Pool, Prefix, Reach};
///
/// let here = Prefix::new("git-3f2a91c")?.for_pool(&Pool::new("memcached://10.0.0.5:11211", Reach::Network));
/// let there = Prefix::new("git-3f2a91c")?.for_pool(&Pool::new("memcached://10.0.0.6:11211", Reach::Network));
/// assert_ne!(here, there); // two configurations never share an entry
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    bytes: [u8; MAX_PREFIX],
    length: u8,
    /// How much of it was configured; the pool's hash may follow.
    configured: u8,
}

impl Prefix {
    /// A configured prefix: 1 to 20 characters of `[A-Za-z0-9._-]`.
    pub fn new(text: &str) -> Result<Self> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > MAX_CONFIGURED || !text.bytes().all(legal) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "`{}` can't be a prefix; it takes 1 to {MAX_CONFIGURED} characters of A-Z a-z 0-9 . _ -",
                    text.escape_debug()
                ),
            ));
        }
        Ok(Self::from_legal(text.as_bytes()))
    }

    /// A prefix that nobody has had before: 20 characters, 120 bits of the system's randomness.
    ///
    /// # Panics
    ///
    /// If the system has no source of randomness.
    pub fn random() -> Self {
        let mut bits = [0; 15];
        getrandom::fill(&mut bits).expect("the system is a source of randomness");
        Self::from_legal(URL_SAFE_NO_PAD.encode(bits).as_bytes())
    }

    /// A prefix that follows from these texts alone: 20 characters, 120 bits of their hash.
    pub(crate) fn derived(texts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("larder prefix 1");
        for text in texts {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self::from_legal(
            URL_SAFE_NO_PAD
                .encode(&hasher.finalize().as_bytes()[..15])
                .as_bytes(),
        )
    }

    /// This prefix with a dot and 11 characters of the hash of the pool's description; asked again, for another pool,
    /// it takes the place of the first.
    #[must_use]
    pub fn for_pool(self, pool: &Pool) -> Self {
        let hash = blake3::hash(pool.description.as_bytes());
        let configured = &self.as_str()[..usize::from(self.configured)];
        let text = format!(
            "{configured}.{}",
            URL_SAFE_NO_PAD.encode(&hash.as_bytes()[..8])
        );
        Self {
            configured: self.configured,
            ..Self::from_legal(text.as_bytes())
        }
    }

    fn from_legal(text: &[u8]) -> Self {
        let mut bytes = [0; MAX_PREFIX];
        bytes[..text.len()].copy_from_slice(text);
        let length = u8::try_from(text.len()).expect("a prefix has at most 32 bytes");
        Self {
            bytes,
            length,
            configured: length,
        }
    }

    /// Appends it to a key.
    ///
    /// All of its bytes first, and then without those beyond its length: a copy of a length that isn't known would have
    /// to wait for the bytes to be where they were written just now.
    pub(super) fn write<const N: usize>(&self, text: &mut SmallVec<[u8; N]>) {
        let length = text.len() + usize::from(self.length);
        text.extend_from_slice(&self.bytes);
        text.truncate(length);
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("prefixes are ASCII")
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
