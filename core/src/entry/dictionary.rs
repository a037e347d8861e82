//! Dictionaries: what the values of one type have in common, known to readers and writers beforehand.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "zstd")]
use xxhash_rust::xxh3::xxh3_64;
#[cfg(feature = "zstd")]
use zstd::zstd_safe::{CDict, DDict, get_dict_id_from_dict};

use super::Rejection;
use super::compress::{self, FrameHeader};
use crate::Result;
#[cfg(feature = "zstd")]
use crate::{Error, ErrorKind};

/// A zstd dictionary, prepared for both directions; cheap to clone.
///
/// Train one for each type of value, on the bytes its codec writes; 32 KiB from a few thousand values make a compressed
/// chat message about half as large as zstd alone does, for two to three times the time to decompress it.
///
/// **A dictionary is user data.** It holds pieces of the values it was trained on, word for word: deletion requests and
/// the separation of tenants reach it, and it belongs in no repository and no log. Keep it where it outlives the cache,
/// and bring it to every reader before the first writer uses it (`docs/formats.md`).
///
/// ```
/// use larder_core::entry::{Codec, Dictionary, Marshaller};
///
/// let marshaller = Marshaller::new(Codec::Postcard, 1)?;
/// let samples = (0..500)
///     .map(|id| marshaller.encode(&(id, format!("user{id}@example.com"), "joined the stream")))
///     .collect::<Result<Vec<_>, _>>()?;
/// let dictionary = Dictionary::train(&samples, 4096)?;
///
/// // What a deployment keeps is the bytes; the id is in them.
/// let loaded = Dictionary::new(dictionary.bytes())?;
/// assert_eq!(loaded.id(), dictionary.id());
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Dictionary(Arc<Prepared>);

struct Prepared {
    bytes: Vec<u8>,
    id: u32,
    content_hash: u64,
    #[cfg(feature = "zstd")]
    writer: CDict<'static>,
    #[cfg(feature = "zstd")]
    reader: DDict<'static>,
}

impl Dictionary {
    /// The dictionary of these bytes, as [`train`](Self::train) or `zstd --train` makes them.
    ///
    /// Fails if they are no zstd dictionary, or one without an id.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::prepare(bytes.into())
    }

    /// A dictionary of at most `size` bytes from samples of what it will compress, as
    /// [`Marshaller::encode`](super::Marshaller::encode) writes them.
    ///
    /// 32 KiB is a good size, and some thousand samples of at least a hundred times that. It takes about a second for
    /// 6 MB, so don't call it where others wait. The samples must be of one tenant, if tenants are kept apart.
    ///
    /// Fails if the samples are too few, too short or too much alike.
    pub fn train(samples: &[impl AsRef<[u8]>], size: usize) -> Result<Self> {
        Self::train_prepared(samples, size)
    }

    /// The id, by which a frame names its dictionary; never 0.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// The dictionary itself, to be kept and brought to other processes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// A hash of the bytes: it seeds the tag, so that another dictionary of the same id can't make another value.
    pub(super) fn content_hash(&self) -> u64 {
        self.0.content_hash
    }
}

#[cfg(feature = "zstd")]
impl Dictionary {
    fn prepare(bytes: Vec<u8>) -> Result<Self> {
        const MAGIC: &[u8] = &[0x37, 0xa4, 0x30, 0xec];

        let refuse = |reason: &str| {
            Error::new(
                ErrorKind::Config,
                format!(
                    "these {} bytes are no dictionary: {reason}; make one with Dictionary::train or `zstd --train`",
                    bytes.len()
                ),
            )
        };
        if !bytes.starts_with(MAGIC) {
            return Err(refuse(
                "they don't begin with zstd's magic number 37 a4 30 ec",
            ));
        }
        let id = get_dict_id_from_dict(&bytes)
            .ok_or_else(|| refuse("its id is 0, so that no frame could name it"))?
            .get();
        let (Some(writer), Some(reader)) = (
            CDict::try_create(&bytes, compress::LEVEL),
            DDict::try_create(&bytes),
        ) else {
            return Err(refuse("its tables are damaged or cut off"));
        };
        Ok(Self(Arc::new(Prepared {
            id,
            content_hash: xxh3_64(&bytes),
            writer,
            reader,
            bytes,
        })))
    }

    fn train_prepared(samples: &[impl AsRef<[u8]>], size: usize) -> Result<Self> {
        let bytes = zstd::dict::from_samples(samples, size).map_err(|source| {
            let total = samples.iter().map(|s| s.as_ref().len()).sum::<usize>();
            Error::with_source(
                ErrorKind::Config,
                format!(
                    "no dictionary of {size} bytes comes of {} samples with {total} bytes; give more samples \
                     (some hundred at least, and a hundred times the dictionary's size), or ask for a smaller one",
                    samples.len()
                ),
                source,
            )
        })?;
        Self::prepare(bytes)
    }

    pub(super) fn writer(&self) -> &CDict<'static> {
        &self.0.writer
    }

    pub(super) fn reader(&self) -> &DDict<'static> {
        &self.0.reader
    }
}

#[cfg(not(feature = "zstd"))]
impl Dictionary {
    fn prepare(_bytes: Vec<u8>) -> Result<Self> {
        Err(compress::not_compiled_in("a dictionary for zstd"))
    }

    fn train_prepared(_samples: &[impl AsRef<[u8]>], _size: usize) -> Result<Self> {
        Err(compress::not_compiled_in("a dictionary for zstd"))
    }
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the bytes: they are the application's data.
        f.debug_struct("Dictionary")
            .field("id", &self.id())
            .field("bytes", &self.bytes().len())
            .finish()
    }
}

/// The dictionaries of one data set.
#[derive(Clone, Debug, Default)]
pub(super) struct Dictionaries {
    /// What is read with; the current one first, if there is one.
    all: Vec<Dictionary>,
    has_current: bool,
}

impl Dictionaries {
    pub(super) fn new(
        current: Option<Dictionary>,
        older: impl IntoIterator<Item = Dictionary>,
    ) -> Self {
        Self {
            has_current: current.is_some(),
            all: current.into_iter().chain(older).collect(),
        }
    }

    /// What is written with.
    pub(super) fn current(&self) -> Option<&Dictionary> {
        self.all.first().filter(|_| self.has_current)
    }

    /// The dictionary that this frame names; `None` if it names none, `Err` if it isn't here.
    #[inline]
    pub(super) fn of_frame(&self, frame: &[u8]) -> Result<Option<&Dictionary>, Rejection> {
        let id = FrameHeader::read(frame)
            .ok_or(Rejection::Damaged)?
            .dictionary;
        if id == 0 {
            return Ok(None);
        }
        let known = self.all.iter().find(|dictionary| dictionary.id() == id);
        known.map(Some).ok_or(Rejection::Dictionary)
    }
}
