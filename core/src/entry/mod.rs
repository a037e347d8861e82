//! Entries: what is stored under a key, and how values become entries and back.
//!
//! An entry is an envelope and a payload. [`Marshaller::seal`] makes one; [`Marshaller::check`] compares
//! its tag before anything is decompressed or decoded; [`Marshaller::open`] makes the value again. Whatever bytes a
//! store hands out, the answer is the value that was sealed under this key for this type, or a [`Rejection`]: a miss
//! that is counted and overwritten, never an error to the caller and never another value.
//!
//! `docs/formats.md` says which codec suits which type, what happens when a type changes, and what compression is for.

#[cfg_attr(
    not(any(
        feature = "postcard",
        feature = "rmp",
        feature = "bincode",
        feature = "json"
    )),
    expect(dead_code, reason = "without a codec nothing is encoded or decoded")
)]
mod bounded;
#[cfg_attr(
    not(any(
        feature = "postcard",
        feature = "rmp",
        feature = "bincode",
        feature = "json"
    )),
    expect(dead_code, reason = "without a codec nothing is encoded or decoded")
)]
mod codec;
mod compress;
mod dictionary;
mod envelope;
mod fingerprint;
mod scratch;
mod weigh;

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use codec::Codec;
pub use compress::Compression;
pub use dictionary::Dictionary;
pub use fingerprint::fingerprint;
pub use weigh::owned_bytes;

use crate::{Key, Result};
use dictionary::Dictionaries;
use envelope::{Content, HEADER, Header, Seed};

/// The default of [`Marshaller::max_value`].
pub const MAX_VALUE: usize = 512 * 1024;

/// How one data set's values become entries and back.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use larder_core::entry::{Codec, Marshaller, Rejection, fingerprint};
/// use larder_core::Keys;
///
/// let shape = fingerprint::<(u64, String)>().unwrap();
/// let marshaller = Marshaller::new(Codec::Postcard, shape)?;
/// let (bob, ann) = (Keys::one("v12/user:7")?, Keys::one("v12/user:8")?);
///
/// let mut entry = bytes::BytesMut::new();
/// let value = (7, "Bob".to_owned());
/// marshaller.seal(bob.get(0), Some(&value), SystemTime::now(), Duration::from_millis(3), &mut entry)?;
///
/// let checked = marshaller.check(bob.get(0), &entry).unwrap();
/// assert_eq!(checked.cost(), Duration::from_millis(3));
/// assert_eq!(marshaller.open::<(u64, String)>(checked), Ok(Some(value)));
///
/// // The same bytes under another key are no entry of that key.
/// assert_eq!(marshaller.check(ann.get(0), &entry).unwrap_err(), Rejection::Damaged);
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Marshaller {
    codec: Codec,
    fingerprint: u64,
    compression: Compression,
    dictionaries: Dictionaries,
    max_value: usize,
}

impl Marshaller {
    /// A marshaller that writes with this codec, uncompressed, for types of this fingerprint.
    ///
    /// Into the fingerprint belongs whatever else must be equal for an entry to be read: the accessor's schema and
    /// revision. Entries of the other codecs that are compiled in are read too, so that a codec can be changed while
    /// old entries live.
    ///
    /// Fails if the codec isn't compiled in.
    pub fn new(codec: Codec, fingerprint: u64) -> Result<Self> {
        if !codec.is_compiled_in() {
            return Err(codec.not_compiled_in());
        }
        Ok(Self {
            codec,
            fingerprint,
            compression: Compression::None,
            dictionaries: Dictionaries::default(),
            max_value: MAX_VALUE,
        })
    }

    /// How payloads are compressed from now on; compressed entries are read whatever is said here.
    ///
    /// Fails if zstd isn't compiled in.
    pub fn compression(self, compression: Compression) -> Result<Self> {
        compression.check_compiled_in()?;
        Ok(Self {
            compression,
            ..self
        })
    }

    /// The dictionary to write with, and others to read with.
    ///
    /// Entries of a dictionary that isn't here are a miss, so give a new one to every reader first (as an older one), and
    /// to writers in a second step; keep it for the longest TTL after its last writer stopped.
    #[must_use]
    pub fn dictionaries(
        self,
        current: Option<Dictionary>,
        older: impl IntoIterator<Item = Dictionary>,
    ) -> Self {
        Self {
            dictionaries: Dictionaries::new(current, older),
            ..self
        }
    }

    /// The most bytes that a value may take as its codec writes it, before compression; 512 KiB by default.
    ///
    /// It bounds what reading an entry may allocate, too, whatever the entry claims: the elements of its lists and maps
    /// take at most 16 MiB and 32 times this in memory. A value whose elements take more was written in vain, since it
    /// can't be opened: the elements would have to be larger than 32 bytes in memory for each byte they take as written,
    /// as in a long list of `None` of a type that is large. Box what is large and usually absent.
    #[must_use]
    pub fn max_value(self, bytes: usize) -> Self {
        Self {
            max_value: bytes,
            ..self
        }
    }

    /// Appends one whole entry: the value's, or for `None` the one that says the source has no such row.
    ///
    /// `filled_at` is the moment the lease was won, and `cost` the time the load took. Nothing is allocated but what
    /// `out` needs to grow, so hand in one buffer for a whole batch.
    ///
    /// On an error nothing is appended. It is `TooLarge` for a value above [`max_value`](Self::max_value), and `Codec`
    /// for one that the codec can't write.
    pub fn seal<T: Serialize + ?Sized>(
        &self,
        key: Key<'_>,
        value: Option<&T>,
        filled_at: SystemTime,
        cost: Duration,
        out: &mut BytesMut,
    ) -> Result<()> {
        let mut append = |content, dictionary: Option<&Dictionary>, payload: &[u8]| {
            let header = Header::new(content, filled_at, cost);
            let tag = header.tag(self.seed(key, dictionary), payload);
            out.reserve(HEADER + payload.len());
            out.extend_from_slice(&header.to_bytes(tag));
            out.extend_from_slice(payload);
        };
        let Some(value) = value else {
            append(Content::Absent, None, &[]);
            return Ok(());
        };
        let codec = self.codec;
        scratch::with(|scratch| {
            codec.encode(value, self.max_value, &mut scratch.plain)?;
            let dictionary = self.dictionaries.current();
            let compressed = self.compression == Compression::Zstd
                && scratch
                    .zstd
                    .compress(&scratch.plain, dictionary, &mut scratch.packed);
            let content = Content::Value { codec, compressed };
            if compressed {
                append(content, dictionary, &scratch.packed);
            } else {
                append(content, None, &scratch.plain);
            }
            Ok(())
        })
    }

    /// Checks an entry's header and tag; nothing is decompressed, decoded or allocated.
    pub fn check<'e>(&self, key: Key<'_>, entry: &'e [u8]) -> Result<Checked<'e>, Rejection> {
        let (header, tag, payload) = Header::split(entry)?;
        let content = header.content()?;
        if payload.len() > self.max_value {
            return Err(Rejection::TooLarge);
        }
        let dictionary = match content {
            Content::Value {
                compressed: true, ..
            } => self.dictionaries.of_frame(payload)?,
            _ => None,
        };
        if header.tag(self.seed(key, dictionary), payload) != tag {
            return Err(Rejection::Damaged);
        }
        Ok(Checked {
            header,
            content,
            payload,
        })
    }

    /// The value of an entry that was checked; `None` if the entry says that there is none.
    pub fn open<T: DeserializeOwned>(&self, checked: Checked<'_>) -> Result<Option<T>, Rejection> {
        let Content::Value { codec, compressed } = checked.content else {
            return if checked.payload.is_empty() {
                Ok(None)
            } else {
                Err(Rejection::Damaged)
            };
        };
        if !compressed {
            return codec.decode(checked.payload, self.max_value);
        }
        let dictionary = self.dictionaries.of_frame(checked.payload)?;
        scratch::with(|scratch| {
            let plain = &mut scratch.plain;
            scratch
                .zstd
                .decompress(checked.payload, dictionary, self.max_value, plain)?;
            codec.decode(plain, self.max_value)
        })
    }

    /// The value as this codec writes it, without envelope and uncompressed: what [`Dictionary::train`] takes.
    pub fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>> {
        scratch::with(|scratch| {
            self.codec
                .encode(value, self.max_value, &mut scratch.plain)?;
            Ok(scratch.plain.clone())
        })
    }

    fn seed<'k>(&self, key: Key<'k>, dictionary: Option<&Dictionary>) -> Seed<'k> {
        Seed {
            key,
            fingerprint: self.fingerprint,
            dictionary: dictionary.map_or(0, Dictionary::content_hash),
        }
    }
}

/// An entry whose header and tag are right, by [`Marshaller::check`].
#[derive(Clone, Copy)]
pub struct Checked<'e> {
    header: Header,
    content: Content,
    payload: &'e [u8],
}

impl Checked<'_> {
    /// When the lease was won that this entry was filled under, to the millisecond.
    pub fn filled_at(&self) -> SystemTime {
        self.header.filled_at()
    }

    /// How long the load took, to the millisecond.
    pub fn cost(&self) -> Duration {
        self.header.cost()
    }

    /// Whether the entry says that the source has no such row.
    pub fn is_absent(&self) -> bool {
        self.content == Content::Absent
    }
}

impl fmt::Debug for Checked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the payload: it is the application's data.
        f.debug_struct("Checked")
            .field("content", &self.content)
            .field("filled_at", &self.filled_at())
            .field("cost", &self.cost())
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// Why stored bytes are not an entry of this key and type: each is a miss that is counted and overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// The tag is wrong: the bytes were damaged, or they are the entry of another key or of another layout of the type.
    Damaged,
    /// The envelope is of another version of larder, or of a codec or compression that isn't compiled in.
    Foreign,
    /// It was compressed with a dictionary that this process wasn't given: usually a writer that is ahead of its readers.
    Dictionary,
    /// It is, or claims to be, above `max_value`.
    TooLarge,
    /// The tag is right, but the payload is no value of this type: the codec can't read back what it wrote.
    Undecodable,
}

impl Rejection {
    /// The reason in one lower-case word, as it appears in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
            Self::Dictionary => "dictionary",
            Self::TooLarge => "too_large",
            Self::Undecodable => "undecodable",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damaged => {
                "the entry is damaged, or of another key or another layout of the type"
            }
            Self::Foreign => "the entry's format isn't known to this build",
            Self::Dictionary => {
                "the entry needs a dictionary that this process doesn't have; give new dictionaries to readers first"
            }
            Self::TooLarge => "the entry is above the accessor's max_value",
            Self::Undecodable => "the entry's payload is no value of the type",
        })
    }
}

impl StdError for Rejection {}
