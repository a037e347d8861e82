//! Compression: zstd, through contexts that are used again and dictionaries that are prepared once.
//!
//! Frames are standard ones: they hold their content's size, which bounds what reading them allocates, and the id of
//! their dictionary; `zstd -d` reads them. Their own checksum is off, since the envelope's tag comes earlier and covers
//! more.

#[cfg(feature = "zstd")]
use zstd::zstd_safe::{CCtx, DCtx, compress_bound, get_frame_content_size};

use super::{Dictionary, Rejection};
use crate::{Error, ErrorKind, Result};

/// Whether payloads are compressed.
///
/// It buys memory (about 2.5 times as many messages in a memcached, with a dictionary) and time on links below 3 to 5
/// Gb/s. On loopback it never makes a fetch faster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Payloads are stored as the codec writes them.
    #[default]
    None,
    /// zstd: level 1 with a dictionary; without one level -1 below 4 KiB, and 1 from there.
    ///
    /// Payloads below 256 bytes (64 with a dictionary) stay as they are, and so do those that wouldn't shrink by an
    /// eighth.
    Zstd,
}

impl Compression {
    pub(super) fn check_compiled_in(self) -> Result<()> {
        if self == Self::Zstd && !cfg!(feature = "zstd") {
            return Err(not_compiled_in("compression with zstd"));
        }
        Ok(())
    }
}

pub(super) fn not_compiled_in(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{what} isn't compiled in; turn on the feature `zstd` of larder-core"),
    )
}

/// The level that dictionaries are prepared for.
#[cfg(feature = "zstd")]
pub(super) const LEVEL: i32 = 1;

/// Payloads smaller than this don't shrink enough.
#[cfg(feature = "zstd")]
const LEAST: usize = 256;

/// The same with a dictionary.
#[cfg(feature = "zstd")]
const LEAST_WITH_DICTIONARY: usize = 64;

/// Below this, and without a dictionary, building Huffman tables costs more than they save.
#[cfg(feature = "zstd")]
const LARGE: usize = 4096;

/// One thread's contexts; each is made when first used.
#[derive(Default)]
pub(super) struct Contexts {
    #[cfg(feature = "zstd")]
    compression: Option<CCtx<'static>>,
    #[cfg(feature = "zstd")]
    decompression: Option<DCtx<'static>>,
}

#[cfg(feature = "zstd")]
impl Contexts {
    /// Writes the payload into `packed` as one frame, and says whether that is worth it.
    pub(super) fn compress(
        &mut self,
        payload: &[u8],
        dictionary: Option<&Dictionary>,
        packed: &mut Vec<u8>,
    ) -> bool {
        let least = match dictionary {
            Some(_) => LEAST_WITH_DICTIONARY,
            None => LEAST,
        };
        if payload.len() < least {
            return false;
        }
        if self.compression.is_none() {
            self.compression = CCtx::try_create();
        }
        // Without memory for a context, the payload stays as it is.
        let Some(context) = &mut self.compression else {
            return false;
        };
        packed.clear();
        packed.reserve(compress_bound(payload.len()));
        let compressed = match dictionary {
            Some(dictionary) => context.compress_using_cdict(packed, payload, dictionary.writer()),
            None if payload.len() < LARGE => context.compress(packed, payload, -1),
            None => context.compress(packed, payload, LEVEL),
        };
        compressed.is_ok_and(|length| length <= payload.len() - payload.len() / 8)
    }

    /// Writes the frame's content into `payload`.
    ///
    /// The frame's content size is checked before memory is set aside for it, and is all that is set aside: a frame is
    /// decompressed in one step, so that the window it asks for is the output itself.
    pub(super) fn decompress(
        &mut self,
        frame: &[u8],
        dictionary: Option<&Dictionary>,
        max_value: usize,
        payload: &mut Vec<u8>,
    ) -> Result<(), Rejection> {
        let size = match get_frame_content_size(frame) {
            Ok(Some(size)) => usize::try_from(size).map_err(|_| Rejection::TooLarge)?,
            Ok(None) | Err(_) => return Err(Rejection::Undecodable),
        };
        if size > max_value {
            return Err(Rejection::TooLarge);
        }
        let context = self.decompression.get_or_insert_with(DCtx::create);
        payload.clear();
        payload.reserve(size);
        let decompressed = match dictionary {
            Some(dictionary) => context.decompress_using_ddict(payload, frame, dictionary.reader()),
            None => context.decompress(payload, frame),
        };
        match decompressed {
            Ok(length) if length == size => Ok(()),
            _ => Err(Rejection::Undecodable),
        }
    }
}

#[cfg(not(feature = "zstd"))]
impl Contexts {
    #[expect(clippy::unused_self, reason = "the twin with zstd needs it")]
    pub(super) fn compress(
        &mut self,
        _payload: &[u8],
        _dictionary: Option<&Dictionary>,
        _packed: &mut Vec<u8>,
    ) -> bool {
        false
    }

    #[expect(clippy::unused_self, reason = "the twin with zstd needs it")]
    pub(super) fn decompress(
        &mut self,
        _frame: &[u8],
        _dictionary: Option<&Dictionary>,
        _max_value: usize,
        _payload: &mut Vec<u8>,
    ) -> Result<(), Rejection> {
        Err(Rejection::Foreign)
    }
}

/// The id of the dictionary that a frame was compressed with, 0 without one; `None` if it is no frame.
///
/// It is read from the frame's header alone: four bytes of magic, a descriptor, perhaps a byte for the window, the id.
pub(super) fn dictionary_id(frame: &[u8]) -> Option<u32> {
    let rest = frame.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (&descriptor, rest) = rest.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    let rest = rest.get(usize::from(!single_segment)..)?;
    let length = match descriptor & 3 {
        0 => return Some(0),
        1 => 1,
        2 => 2,
        _ => 4,
    };
    let mut id = [0; 4];
    id[..length].copy_from_slice(rest.get(..length)?);
    Some(u32::from_le_bytes(id))
}
