//! The envelope: eighteen bytes before each payload.
//!
//! ```text
//! version:1 | codec + compression:1 | filled_at:5 | cost:3 | tag:8 | payload
//! ```
//!
//! Integers are little-endian. `filled_at` is in milliseconds since 2025-01-01T00:00Z, `cost` in milliseconds; both
//! saturate. The tag is a hash of the payload, seeded with a hash of everything else that must be right: the key, what
//! the key's digests hide, the type's fingerprint, the header's other bytes, the dictionary's content. So one
//! comparison, made before anything is decompressed or decoded, rejects a damaged entry, another key's and another
//! type's alike. No flag says whether there is a tag: there always is one.
//!
//! The tag detects accidents. It is no protection against those who can write to the store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Codec, Rejection};
use crate::{Key, MAX_KEY};

/// Bytes before the payload.
pub(super) const HEADER: usize = 18;

/// Bytes of the header before the tag.
const FIELDS: usize = 10;

const VERSION: u8 = 1;

/// 2025-01-01T00:00Z.
const EPOCH: Duration = Duration::from_secs(1_735_689_600);

/// The latest time that five bytes of milliseconds can say: in November 2059.
const LAST: u64 = (1 << 40) - 1;

/// The largest cost that three bytes of milliseconds can say: 4.6 hours.
const DEAREST: u64 = (1 << 24) - 1;

/// What the second byte says about the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The source has no such row; the payload is empty.
    Absent,
    /// A value as this codec wrote it, perhaps as a zstd frame.
    Value { codec: Codec, compressed: bool },
}

/// The header but for the tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header([u8; FIELDS]);

/// What the tag depends on beside the header and the payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed<'a> {
    pub(super) key: Key<'a>,
    pub(super) fingerprint: u64,
    /// A hash of the dictionary's content; 0 without one.
    pub(super) dictionary: u64,
}

impl Header {
    pub(super) fn new(content: Content, filled_at: SystemTime, cost: Duration) -> Self {
        let since = filled_at
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(EPOCH);
        let [f0, f1, f2, f3, f4, ..] = millis(since, LAST).to_le_bytes();
        let [c0, c1, c2, ..] = millis(cost, DEAREST).to_le_bytes();
        Self([VERSION, content.to_byte(), f0, f1, f2, f3, f4, c0, c1, c2])
    }

    /// The header, the tag as it is written, and the payload.
    pub(super) fn split(entry: &[u8]) -> Result<(Self, u64, &[u8]), Rejection> {
        let (fields, rest) = entry
            .split_first_chunk::<FIELDS>()
            .ok_or(Rejection::Damaged)?;
        let (tag, payload) = rest.split_first_chunk().ok_or(Rejection::Damaged)?;
        Ok((Self(*fields), u64::from_le_bytes(*tag), payload))
    }

    /// What the payload is; `Foreign` when this version of larder doesn't know it.
    pub(super) fn content(&self) -> Result<Content, Rejection> {
        let [version, content, ..] = self.0;
        if version != VERSION {
            return Err(Rejection::Foreign);
        }
        Content::from_byte(content).ok_or(Rejection::Foreign)
    }

    pub(super) fn filled_at(&self) -> SystemTime {
        let [_, _, f0, f1, f2, f3, f4, ..] = self.0;
        let millis = u64::from_le_bytes([f0, f1, f2, f3, f4, 0, 0, 0]);
        UNIX_EPOCH + EPOCH + Duration::from_millis(millis)
    }

    pub(super) fn cost(&self) -> Duration {
        let [.., c0, c1, c2] = self.0;
        Duration::from_millis(u64::from(u32::from_le_bytes([c0, c1, c2, 0])))
    }

    /// The tag of this header before this payload.
    pub(super) fn tag(&self, seed: Seed<'_>, payload: &[u8]) -> u64 {
        const FIXED: usize = FIELDS + 3 * size_of::<u64>();

        // The key comes last, so that its length is told by the whole's and no two seeds read the same.
        let mut text = [0; FIXED + MAX_KEY];
        text[..FIELDS].copy_from_slice(&self.0);
        for (slot, word) in text[FIELDS..FIXED].chunks_exact_mut(8).zip([
            seed.fingerprint,
            seed.key.hidden(),
            seed.dictionary,
        ]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let key = seed.key.as_bytes();
        let end = FIXED + key.len();
        text[FIXED..end].copy_from_slice(key);
        xxh3_64_with_seed(payload, xxh3_64(&text[..end]))
    }

    /// The header with its tag, as it is stored.
    pub(super) fn to_bytes(self, tag: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..FIELDS].copy_from_slice(&self.0);
        bytes[FIELDS..].copy_from_slice(&tag.to_le_bytes());
        bytes
    }
}

fn millis(duration: Duration, most: u64) -> u64 {
    u64::try_from(duration.as_millis()).map_or(most, |millis| millis.min(most))
}

impl Content {
    /// The codec in the low half, the compression in the high half.
    fn to_byte(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::Value { codec, compressed } => {
                let codec = match codec {
                    Codec::Postcard => 1,
                    Codec::Rmp => 2,
                    Codec::Bincode => 3,
                    Codec::Json => 4,
                };
                codec | u8::from(compressed) << 4
            }
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let codec = match byte & 0x0f {
            0 if byte == 0 => return Some(Self::Absent),
            1 => Codec::Postcard,
            2 => Codec::Rmp,
            3 => Codec::Bincode,
            4 => Codec::Json,
            _ => return None,
        };
        let compressed = match byte >> 4 {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self::Value { codec, compressed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_content_survives_its_byte_and_no_other_byte_is_content() {
        let known = (0..=255)
            .filter_map(|byte| Some((byte, Content::from_byte(byte)?)))
            .collect::<Vec<_>>();
        assert_eq!(known.len(), 9);
        for (byte, content) in known {
            assert_eq!(content.to_byte(), byte);
        }
    }

    #[track_caller]
    fn check_times(filled_at: SystemTime, cost: Duration, expected: (SystemTime, Duration)) {
        let header = Header::new(Content::Absent, filled_at, cost);
        assert_eq!((header.filled_at(), header.cost()), expected);
    }

    #[test]
    fn times_are_kept_to_the_millisecond_and_saturate() {
        let epoch = UNIX_EPOCH + EPOCH;
        let moment = Duration::from_millis(58_000_123_456);
        check_times(
            epoch + moment + Duration::from_micros(700),
            Duration::from_micros(1_999),
            (epoch + moment, Duration::from_millis(1)),
        );
        check_times(
            UNIX_EPOCH - Duration::from_secs(1),
            Duration::ZERO,
            (epoch, Duration::ZERO),
        );
        check_times(
            epoch + Duration::from_secs(100 * 365 * 86_400),
            Duration::MAX,
            (
                epoch + Duration::from_millis(LAST),
                Duration::from_millis(DEAREST),
            ),
        );
    }
}
