//! What is sealed is opened: each codec, compressed and not.

use std::time::{Duration, UNIX_EPOCH};

use bytes::BytesMut;
use larder_core::entry::{Codec, Compression, Marshaller, Rejection};
use larder_core::{ErrorKind, Keys};
use proptest::prelude::*;
use serde::{Deserialize, Serialize, Serializer};

use crate::support::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_value_comes_back(message in messages(), millis in 0_u64..1 << 40, cost in 0_u64..1 << 24) {
        static MARSHALLERS: std::sync::LazyLock<Vec<Marshaller>> = std::sync::LazyLock::new(marshallers);

        let keys = keys();
        let filled_at = UNIX_EPOCH + Duration::from_secs(1_735_689_600) + Duration::from_millis(millis);
        let cost = Duration::from_millis(cost);
        for marshaller in MARSHALLERS.iter() {
            let mut entry = BytesMut::new();
            marshaller.seal(keys.get(0), Some(&message), filled_at, cost, &mut entry).unwrap();
            let checked = marshaller.check(keys.get(0), &entry).unwrap();
            prop_assert_eq!(checked.filled_at(), filled_at);
            prop_assert_eq!(checked.cost(), cost);
            prop_assert!(!checked.is_absent());
            let opened = marshaller.open::<Message>(checked).unwrap().unwrap();
            prop_assert_eq!(&opened, &message);
        }
    }
}

#[test]
fn the_stored_bytes_are_the_documented_ones() {
    let keys = keys();
    let entry = seal(&marshaller(Codec::Postcard), "Bob");
    let filled_at = 1_790_000_000_123_u64 - 1_735_689_600_000;
    let mut expected = vec![1, 1];
    expected.extend(&filled_at.to_le_bytes()[..5]);
    expected.extend([3, 0, 0]);
    let mut seed = expected.clone();
    seed.extend(FINGERPRINT.to_le_bytes());
    seed.extend([0; 16]);
    seed.extend(keys.get(0).as_bytes());
    let seed = xxhash_rust::xxh3::xxh3_64(&seed);
    expected.extend(xxhash_rust::xxh3::xxh3_64_with_seed(b"\x03Bob", seed).to_le_bytes());
    expected.extend(b"\x03Bob");
    assert_eq!(entry, expected);
}

#[test]
fn absence_is_an_entry_without_payload() {
    for marshaller in marshallers() {
        let mut entry = BytesMut::new();
        marshaller
            .seal(
                keys().get(0),
                None::<&Message>,
                moment(),
                Duration::ZERO,
                &mut entry,
            )
            .unwrap();
        assert_eq!(entry.len(), 18);
        let keys = keys();
        let checked = marshaller.check(keys.get(0), &entry).unwrap();
        assert!(checked.is_absent());
        assert_eq!(marshaller.open::<Message>(checked), Ok(None));
    }
}

#[test]
fn an_absent_option_is_a_value() {
    let marshaller = marshaller(Codec::Postcard);
    let entry = seal(&marshaller, &None::<u32>);
    let keys = keys();
    let checked = marshaller.check(keys.get(0), &entry).unwrap();
    assert!(!checked.is_absent());
    assert_eq!(marshaller.open::<Option<u32>>(checked), Ok(Some(None)));
}

#[test]
fn a_value_without_bytes_is_a_value() {
    let marshaller = marshaller(Codec::Postcard);
    let entry = seal(&marshaller, &());
    let keys = keys();
    let checked = marshaller.check(keys.get(0), &entry).unwrap();
    assert!(!checked.is_absent());
    assert_eq!(marshaller.open::<()>(checked), Ok(Some(())));
}

#[test]
fn a_batch_shares_one_buffer() {
    let marshaller = marshaller(Codec::Postcard);
    let mut keys = Keys::new();
    let mut out = BytesMut::new();
    let mut ends = vec![0];
    for number in 0..100_u32 {
        keys.push_raw(&format!("v/n:{number}")).unwrap();
        let key = keys.get(number as usize);
        marshaller
            .seal(key, Some(&number), moment(), Duration::ZERO, &mut out)
            .unwrap();
        ends.push(out.len());
    }
    for (number, range) in ends.windows(2).enumerate() {
        let checked = marshaller
            .check(keys.get(number), &out[range[0]..range[1]])
            .unwrap();
        assert_eq!(marshaller.open(checked), Ok(Some(number as u32)));
    }
}

#[test]
fn entries_of_the_other_codecs_and_of_either_compression_are_read() {
    let keys = keys();
    for writer in marshallers().chunks_exact(3).flat_map(|m| &m[..2]) {
        for reader in marshallers() {
            let entry = seal(writer, &sample());
            let checked = reader.check(keys.get(0), &entry).unwrap();
            assert_eq!(reader.open(checked), Ok(Some(sample())));
        }
    }
}

/// Whether an entry holds a zstd frame.
#[track_caller]
fn check_compressed(marshaller: &Marshaller, value: &str, expected: bool) {
    let entry = seal(marshaller, value);
    assert_eq!(entry[1] & 0xf0 != 0, expected, "{} bytes", value.len());
    let keys = keys();
    let checked = marshaller.check(keys.get(0), &entry).unwrap();
    assert_eq!(marshaller.open(checked), Ok(Some(value.to_owned())));
}

#[test]
fn only_what_shrinks_is_compressed() {
    let plain = marshaller(Codec::Postcard);
    let compressing = plain.clone().compression(Compression::Zstd).unwrap();
    let sentence = "all work and no play ";
    // Each character once in no order: nothing repeats, and literals don't shrink.
    let noise = (0..300_u32)
        .map(|n| char::from_u32(0x4e00 + n * n * 7919 % 20_000).unwrap())
        .collect::<String>();

    check_compressed(&plain, &sentence.repeat(100), false);
    check_compressed(&compressing, &sentence.repeat(100), true);
    check_compressed(&compressing, &sentence.repeat(1000), true);
    check_compressed(&compressing, &sentence.repeat(11), false); // too short
    check_compressed(&compressing, &noise, false);
}

#[test]
fn payloads_are_frames_that_any_zstd_reads() {
    let compressing = marshaller(Codec::Json)
        .compression(Compression::Zstd)
        .unwrap();
    let text = "all work and no play ".repeat(40);
    let entry = seal(&compressing, &text);
    let frame = &entry[18..];
    let size = zstd::zstd_safe::get_frame_content_size(frame).unwrap();
    assert_eq!(size, Some(text.len() as u64 + 2));
    assert_eq!(frame[4] & 4, 0, "the frame's own checksum is off");
    let json = zstd::bulk::decompress(frame, 4096).unwrap();
    assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
}

#[test]
fn the_largest_value_is_kept_and_one_byte_more_is_refused() {
    for codec in CODECS {
        let text = "x".repeat(5000);
        let size = marshaller(codec).encode(&text).unwrap().len();
        let fits = marshaller(codec).max_value(size);
        let keys = keys();
        let entry = seal(&fits, &text);
        let checked = fits.check(keys.get(0), &entry).unwrap();
        assert_eq!(fits.open(checked), Ok(Some(text.clone())));

        let small = fits.max_value(size - 1);
        let mut out = BytesMut::from("before");
        let error = small
            .seal(keys.get(0), Some(&text), moment(), Duration::ZERO, &mut out)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(
            error
                .to_string()
                .contains(&format!("more than {} bytes", size - 1)),
            "{error}"
        );
        assert_eq!(out, "before");
        // It would shrink to a few bytes, but is measured before.
        let compressing = small.compression(Compression::Zstd).unwrap();
        let error = compressing
            .seal(keys.get(0), Some(&text), moment(), Duration::ZERO, &mut out)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(out, "before");
    }
}

#[test]
fn a_value_that_cannot_be_written_appends_nothing() {
    struct Unwritable;
    impl Serialize for Unwritable {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }

    for codec in CODECS {
        let mut out = BytesMut::from("before");
        let value = ("something first", Unwritable);
        let error = marshaller(codec)
            .seal(
                keys().get(0),
                Some(&value),
                moment(),
                Duration::ZERO,
                &mut out,
            )
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert!(error.to_string().contains(codec.as_str()), "{error}");
        assert_eq!(out, "before");
    }
}

#[test]
fn positional_codecs_do_not_read_all_that_they_write() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u32),
        Text(String),
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Skipping {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        name: Option<String>,
        id: u32,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat {
        id: u32,
        #[serde(flatten)]
        rest: std::collections::BTreeMap<String, u32>,
    }

    #[track_caller]
    fn check<T>(codec: Codec, value: &T, expected: bool)
    where
        T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let (marshaller, keys) = (marshaller(codec), keys());
        let entry = seal(&marshaller, value);
        let checked = marshaller.check(keys.get(0), &entry).unwrap();
        match marshaller.open::<T>(checked) {
            Ok(opened) => assert!(expected && opened.as_ref() == Some(value), "{opened:?}"),
            Err(rejection) => assert!(!expected && rejection == Rejection::Undecodable),
        }
    }

    let flat = Flat {
        id: 7,
        rest: [("a".into(), 1)].into(),
    };
    let skipping = Skipping { name: None, id: 7 };
    for codec in [Codec::Postcard, Codec::Bincode] {
        check(codec, &Untagged::Number(7), false);
        check(codec, &skipping, false);
        let error = marshaller(codec).encode(&flat).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec);
    }
    for codec in [Codec::Rmp, Codec::Json] {
        check(codec, &Untagged::Text("x".into()), true);
        check(codec, &skipping, true);
        check(codec, &flat, true);
    }
}

#[test]
fn a_value_may_open_another_while_it_is_opened_and_sealed() {
    /// Its serde code uses a marshaller itself.
    #[derive(Debug, PartialEq)]
    struct Nested(String);
    impl Serialize for Nested {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let inner = marshaller(Codec::Json)
                .compression(Compression::Zstd)
                .unwrap();
            serializer.serialize_bytes(&seal(&inner, &self.0))
        }
    }
    impl<'de> serde::Deserialize<'de> for Nested {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let bytes = <&[u8]>::deserialize(deserializer)?;
            let (inner, keys) = (marshaller(Codec::Json), keys());
            let checked = inner.check(keys.get(0), bytes).unwrap();
            Ok(Self(inner.open(checked).unwrap().unwrap()))
        }
    }

    let outer = marshaller(Codec::Postcard)
        .compression(Compression::Zstd)
        .unwrap();
    let value = ("x".repeat(500), Nested("y".repeat(500)), "z".repeat(500));
    let entry = seal(&outer, &value);
    let keys = keys();
    let checked = outer.check(keys.get(0), &entry).unwrap();
    assert_eq!(outer.open(checked), Ok(Some(value)));
}

#[track_caller]
fn check_opens<T>(marshaller: &Marshaller, value: &T)
where
    T: Serialize + serde::de::DeserializeOwned + PartialEq,
{
    let entry = seal(marshaller, value);
    let keys = keys();
    let checked = marshaller.check(keys.get(0), &entry).unwrap();
    match marshaller.open::<T>(checked) {
        Ok(opened) => assert!(opened.as_ref() == Some(value), "{marshaller:?}"),
        Err(rejection) => panic!("{} bytes are {rejection:?}: {marshaller:?}", entry.len()),
    }
}

#[test]
fn lists_of_small_elements_open_up_to_max_value() {
    const LARGEST: usize = 4 << 20;
    for codec in CODECS {
        let marshaller = marshaller(codec).max_value(LARGEST);
        // What takes the fewest bytes as written, next to what it counts in memory.
        let numbers = match codec {
            Codec::Json => LARGEST / 2 - 1,
            _ => LARGEST - 8,
        };
        check_opens(&marshaller, &vec![7_u8; numbers]);
        check_opens(&marshaller, &vec![String::new(); LARGEST / 3 - 1]);
        check_opens(&marshaller, &vec![Vec::<u8>::new(); LARGEST / 3 - 1]);
        check_opens(&marshaller, &vec![None::<String>; LARGEST / 5 - 1]);
        check_opens(&marshaller, &vec![(1_u8, 2_u8); LARGEST / 6 - 1]);
    }
}

#[test]
fn lists_of_absent_large_elements_open() {
    type Large = Vec<Option<[u64; 16]>>;
    for codec in CODECS {
        let marshaller = marshaller(codec).max_value(1 << 20);
        check_opens::<Large>(&marshaller, &vec![None; 200_000]);
    }
    let default = marshaller(Codec::Postcard);
    check_opens::<Large>(&default, &vec![None; 200_000]);
}
