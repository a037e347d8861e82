//! Any bytes as an entry: as they are, and below a right tag, so that the codecs and zstd are reached.
//!
//! Nothing may panic, hang, overflow the stack or fill the memory (`-rss_limit_mb`), and a value that comes out can be
//! sealed and opened again. The first byte chooses codec and compression; the rest is the payload.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use larder_core::Keys;
use larder_core::entry::{Codec, Compression, Dictionary, Marshaller};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const FINGERPRINT: u64 = 7;

const CODECS: [Codec; 4] = [Codec::Postcard, Codec::Rmp, Codec::Bincode, Codec::Json];

/// A bit of everything.
#[derive(Serialize, Deserialize)]
struct Value {
    number: u64,
    text: String,
    maybe: Option<Box<Value>>,
    many: Vec<(i32, Place)>,
    map: BTreeMap<String, Vec<u8>>,
    nothing: Vec<()>,
    large: Vec<Option<[u64; 16]>>,
}

#[derive(Serialize, Deserialize)]
enum Place {
    Stream(u32),
    Private { to: Vec<Place> },
    Nowhere,
}

struct Fixture {
    keys: Keys,
    dictionary: Dictionary,
    /// One for each codec; each reads all codecs.
    marshallers: [Marshaller; 4],
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let samples = (0..500)
        .map(|n| {
            format!(
                "{n}: the quick brown fox {} jumps over the lazy dog",
                n * 7919
            )
        })
        .collect::<Vec<_>>();
    let dictionary = Dictionary::train(&samples, 2048).expect("enough samples");
    Fixture {
        keys: Keys::one("v12.hash/message:180000007").expect("a legal key"),
        marshallers: CODECS.map(|codec| {
            Marshaller::new(codec, FINGERPRINT)
                .and_then(|marshaller| marshaller.compression(Compression::Zstd))
                .expect("everything is compiled in")
                .dictionaries(None, [dictionary.clone()])
                .max_value(64 * 1024)
        }),
        dictionary,
    }
});

fn open<T: Serialize + DeserializeOwned>(marshaller: &Marshaller, entry: &[u8]) {
    let key = FIXTURE.keys.get(0);
    let Ok(checked) = marshaller.check(key, entry) else {
        return;
    };
    let Ok(Some(value)) = marshaller.open::<T>(checked) else {
        return;
    };
    // Decoded texts may be longer in another codec, so a value may be too large now; then nothing is appended.
    let mut again = BytesMut::new();
    let sealed = marshaller.seal(
        key,
        Some(&value),
        SystemTime::now(),
        Duration::ZERO,
        &mut again,
    );
    match sealed {
        Ok(()) => {
            let checked = marshaller.check(key, &again).expect("what was just sealed");
            let opened = marshaller.open::<T>(checked);
            assert!(matches!(opened, Ok(Some(_))), "what was just sealed");
        }
        Err(_) => assert!(again.is_empty()),
    }
}

fn open_each(marshaller: &Marshaller, entry: &[u8]) {
    open::<Value>(marshaller, entry);
    open::<Vec<Place>>(marshaller, entry);
    open::<Option<String>>(marshaller, entry);
    open::<serde_json::Value>(marshaller, entry);
}

/// The payload below a right tag, as docs/formats.md says.
fn forge(content: u8, payload: &[u8], dictionary: Option<&Dictionary>) -> Vec<u8> {
    let fields = [1, content, 1, 2, 3, 4, 5, 6, 7, 8];
    let mut seed = fields.to_vec();
    seed.extend(FINGERPRINT.to_le_bytes());
    seed.extend(0_u64.to_le_bytes());
    seed.extend(
        dictionary
            .map_or(0, |dictionary| xxh3_64(dictionary.bytes()))
            .to_le_bytes(),
    );
    seed.extend(FIXTURE.keys.get(0).as_bytes());
    let tag = xxh3_64_with_seed(payload, xxh3_64(&seed));
    [&fields[..], &tag.to_le_bytes(), payload].concat()
}

fuzz_target!(|bytes: &[u8]| {
    let marshallers = &FIXTURE.marshallers;
    for marshaller in marshallers {
        assert!(
            marshaller.check(FIXTURE.keys.get(0), bytes).is_err(),
            "a tag by chance"
        );
    }
    let Some((&choice, payload)) = bytes.split_first() else {
        return;
    };
    let codec = choice & 3;
    let marshaller = &marshallers[usize::from(codec)];
    open_each(marshaller, &forge(codec + 1, payload, None));
    if choice & 4 != 0 {
        open_each(marshaller, &forge(codec + 0x11, payload, None));
        open_each(
            marshaller,
            &forge(codec + 0x11, payload, Some(&FIXTURE.dictionary)),
        );
    }
});
