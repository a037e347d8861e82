//! Compression: zstd, through contexts that are used again and dictionaries that are prepared once.
//!
//! Frames are standard ones: they hold their content's size, which bounds what reading them allocates, and the id of
//! their dictionary; `zstd -d` reads them. Their own checksum is off, since the envelope's tag comes earlier and covers
//! more.

#[cfg(feature = "zstd")]
use zstd::zstd_safe::{CCtx, DCtx, compress_bound};

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
        let size = FrameHeader::read(frame)
            .and_then(|header| header.content_size)
            .ok_or(Rejection::Undecodable)?;
        let size = usize::try_from(size)
            .ok()
            .filter(|&size| size <= max_value)
            .ok_or(Rejection::TooLarge)?;
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

/// What a frame says before its content; read here, since it decides what zstd is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// 0 without a dictionary.
    pub(super) dictionary: u32,
    content_size: Option<u64>,
}

impl FrameHeader {
    /// The header of these bytes; `None` if they don't begin with a whole one.
    #[inline]
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        // Magic number, descriptor, perhaps a byte for the window, the dictionary's id, the content's size (RFC 8878).
        let rest = frame.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
        let (&descriptor, rest) = rest.split_first()?;
        let single_segment = descriptor & 0x20 != 0;
        let rest = rest.get(usize::from(!single_segment)..)?;
        let (dictionary, rest) = match descriptor & 3 {
            0 => (0, rest),
            1 => (u32::from(*rest.first()?), &rest[1..]),
            2 => (
                u32::from(u16::from_le_bytes(*rest.first_chunk()?)),
                &rest[2..],
            ),
            _ => (u32::from_le_bytes(*rest.first_chunk()?), &rest[4..]),
        };
        let content_size = match descriptor >> 6 {
            0 if !single_segment => None,
            0 => Some(u64::from(*rest.first()?)),
            // Sizes below 256 need no two bytes, so two begin to count there.
            1 => Some(u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256),
            2 => Some(u64::from(u32::from_le_bytes(*rest.first_chunk()?))),
            _ => Some(u64::from_le_bytes(*rest.first_chunk()?)),
        };
        Some(Self {
            dictionary,
            content_size,
        })
    }
}

#[cfg(all(test, feature = "zstd"))]
mod tests {
    use proptest::prelude::*;
    use zstd::zstd_safe::{get_dict_id_from_frame, get_frame_content_size};

    use super::*;

    proptest! {
        #[test]
        fn headers_are_read_as_zstd_reads_them(
            descriptor in any::<u8>(),
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            // zstd refuses the reserved bit; here that is left to it.
            let descriptor = descriptor & !0x08;
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, descriptor];
            frame.extend(rest);
            // The largest windows are refused by zstd, and the highest content sizes are its error codes.
            if let Ok(content_size) = get_frame_content_size(&frame) {
                let header = FrameHeader::read(&frame).unwrap();
                prop_assert_eq!(header.content_size, content_size);
                let dictionary = get_dict_id_from_frame(&frame).map_or(0, |id| id.get());
                prop_assert_eq!(header.dictionary, dictionary);
            }
        }
    }
}
