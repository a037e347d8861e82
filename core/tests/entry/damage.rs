//! Whatever happens to an entry's bytes, or wherever they turn up: a rejection, never another value.

use std::sync::LazyLock;

use larder_core::entry::{Codec, Compression, Dictionary, Marshaller, Rejection};
use larder_core::{KeyPart, KeyWriter, Keys, Prefix};
use proptest::prelude::*;

use crate::support::*;

static SEALED: LazyLock<Vec<(Marshaller, Vec<u8>)>> = LazyLock::new(|| {
    marshallers()
        .into_iter()
        .map(|marshaller| {
            let entry = seal(&marshaller, &sample());
            (marshaller, entry)
        })
        .collect()
});

#[track_caller]
fn reject(marshaller: &Marshaller, entry: &[u8]) -> Rejection {
    marshaller
        .check(keys().get(0), entry)
        .expect_err("the bytes are not what was sealed")
}

#[test]
fn each_single_bit_counts() {
    for (marshaller, entry) in SEALED.iter() {
        for bit in 0..entry.len() * 8 {
            let mut damaged = entry.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            reject(marshaller, &damaged);
        }
    }
}

#[test]
fn each_truncation_and_extension_counts() {
    for (marshaller, entry) in SEALED.iter() {
        for length in 0..entry.len() {
            reject(marshaller, &entry[..length]);
        }
        for byte in 0..=255 {
            let longer = [&entry[..], &[byte]].concat();
            assert_eq!(reject(marshaller, &longer), Rejection::Damaged);
        }
    }
}

proptest! {
    #[test]
    fn spliced_entries_are_rejected(
        which in any::<prop::sample::Index>(),
        start in any::<prop::sample::Index>(),
        length in 0_usize..64,
        by in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (marshaller, entry) = which.get(&SEALED);
        let start = start.index(entry.len());
        let end = (start + length).min(entry.len());
        let spliced = [&entry[..start], &by, &entry[end..]].concat();
        prop_assume!(&spliced != entry);
        prop_assert!(marshaller.check(keys().get(0), &spliced).is_err());
    }

    #[test]
    fn random_bytes_are_rejected(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (marshaller, _) in SEALED.iter() {
            prop_assert!(marshaller.check(keys().get(0), &bytes).is_err());
        }
    }
}

#[test]
fn an_entry_is_of_its_key_alone() {
    let other = Keys::one("v12.hash/message:180000008").unwrap();
    let prefix = Keys::one("v13.hash/message:180000007").unwrap();
    for (marshaller, entry) in SEALED.iter() {
        for key in [other.get(0), prefix.get(0)] {
            assert_eq!(
                marshaller.check(key, entry).unwrap_err(),
                Rejection::Damaged
            );
        }
    }
}

#[test]
fn keys_that_differ_only_in_what_a_digest_hides_are_two_keys() {
    struct Email(&'static str);
    impl KeyPart for Email {
        fn write(&self, key: &mut KeyWriter<'_>) {
            key.digest(self.0.as_bytes());
        }
    }

    let mut keys = Keys::new();
    keys.push(Prefix::new("v").unwrap(), "user", &Email("bob@example.com"))
        .unwrap();
    // The same characters, as if another text had the same digest.
    let twin = Keys::one(keys.get(0).as_str()).unwrap();
    let marshaller = marshaller(Codec::Postcard);
    let mut entry = bytes::BytesMut::new();
    marshaller
        .seal(
            keys.get(0),
            Some("Bob"),
            moment(),
            Default::default(),
            &mut entry,
        )
        .unwrap();
    assert!(marshaller.check(keys.get(0), &entry).is_ok());
    assert_eq!(
        marshaller.check(twin.get(0), &entry).unwrap_err(),
        Rejection::Damaged
    );
}

#[test]
fn an_entry_is_of_its_fingerprint_alone() {
    for codec in CODECS {
        let entry = seal(&marshaller(codec), &sample());
        let later = Marshaller::new(codec, FINGERPRINT + 1).unwrap();
        assert_eq!(reject(&later, &entry), Rejection::Damaged);
    }
}

#[test]
fn other_versions_codecs_and_compressions_are_foreign() {
    let marshaller = marshaller(Codec::Postcard);
    let entry = seal(&marshaller, &sample());
    for (position, known) in [(0, 1..2), (1, 1..5)] {
        for byte in 0..=255_u8 {
            // 0 is absence, and the high half of the second byte may say zstd.
            if known.contains(&byte) || position == 1 && (byte == 0 || (0x11..0x15).contains(&byte))
            {
                continue;
            }
            let mut foreign = entry.clone();
            foreign[position] = byte;
            assert_eq!(reject(&marshaller, &foreign), Rejection::Foreign);
        }
    }
}

#[test]
fn an_oversized_entry_is_rejected_unread() {
    let text = "x".repeat(1000);
    let size = marshaller(Codec::Postcard).encode(&text).unwrap().len();
    let entry = seal(&marshaller(Codec::Postcard), &text);
    let small = marshaller(Codec::Postcard).max_value(size - 1);
    assert_eq!(reject(&small, &entry), Rejection::TooLarge);

    // Compressed it is far below the limit, and says how large it will be.
    let compressing = marshaller(Codec::Postcard)
        .compression(Compression::Zstd)
        .unwrap();
    let entry = seal(&compressing, &text);
    let keys = keys();
    let checked = small.check(keys.get(0), &entry).unwrap();
    assert_eq!(small.open::<String>(checked), Err(Rejection::TooLarge));
}

#[test]
fn absence_with_a_payload_is_damaged() {
    let (marshaller, keys) = (marshaller(Codec::Postcard), keys());
    let entry = forge(keys.get(0), 0, b"payload", None);
    let checked = marshaller.check(keys.get(0), &entry).unwrap();
    assert_eq!(marshaller.open::<String>(checked), Err(Rejection::Damaged));
}

#[test]
fn another_dictionary_of_the_same_id_makes_no_other_value() {
    let codec = Codec::Postcard;
    let right = dictionary(codec);
    // The end of a dictionary is plain content: other content is a valid dictionary as well.
    let mut bytes = right.bytes().to_vec();
    for byte in bytes.iter_mut().rev().take(4000) {
        byte.make_ascii_uppercase();
    }
    let wrong = Dictionary::new(bytes).unwrap();
    assert_eq!(wrong.id(), right.id());

    let compressing = marshaller(codec).compression(Compression::Zstd).unwrap();
    let entry = seal(&compressing.dictionaries(Some(right), []), &sample());
    let reader = marshaller(codec).dictionaries(None, [wrong]);
    assert_eq!(reject(&reader, &entry), Rejection::Damaged);
}
