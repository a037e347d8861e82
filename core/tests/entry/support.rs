//! A value with a bit of everything, marshallers of every kind, and a forger.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use larder_core::entry::{Codec, Compression, Dictionary, Marshaller};
use larder_core::{Key, Keys};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) id: u64,
    pub(crate) sender: i32,
    pub(crate) content: String,
    pub(crate) edited: Option<u64>,
    pub(crate) place: Place,
    pub(crate) reactions: Vec<Reaction>,
    pub(crate) flags: BTreeMap<String, bool>,
    pub(crate) score: f64,
    pub(crate) initial: char,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Place {
    Stream(u32),
    Private { to: Vec<u32> },
    Between(u32, u32),
    Nowhere,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reaction {
    pub(crate) emoji: String,
    pub(crate) user: (u32, Option<Box<str>>),
}

pub(crate) fn messages() -> impl Strategy<Value = Message> {
    let place = prop_oneof![
        any::<u32>().prop_map(Place::Stream),
        prop::collection::vec(any::<u32>(), 0..4).prop_map(|to| Place::Private { to }),
        any::<(u32, u32)>().prop_map(|(from, to)| Place::Between(from, to)),
        Just(Place::Nowhere),
    ];
    let reaction =
        (".{0,12}", any::<u32>(), prop::option::of(".{0,12}")).prop_map(|(emoji, user, name)| {
            Reaction {
                emoji,
                user: (user, name.map(Into::into)),
            }
        });
    let head = (
        any::<u64>(),
        any::<i32>(),
        ".{0,600}",
        any::<Option<u64>>(),
        place,
    );
    let tail = (
        prop::collection::vec(reaction, 0..5),
        prop::collection::btree_map("[a-z]{1,8}", any::<bool>(), 0..4),
        -1e9..1e9,
        any::<char>(),
    );
    (head, tail).prop_map(
        |((id, sender, content, edited, place), (reactions, flags, score, initial))| Message {
            id,
            sender,
            content,
            edited,
            place,
            reactions,
            flags,
            score,
            initial,
        },
    )
}

/// One message that is long enough to be compressed.
pub(crate) fn sample() -> Message {
    Message {
        id: 180_000_007,
        sender: -2065,
        content: "We don't have an equivalent to `yum list installed`, do we? ".repeat(6),
        edited: Some(1_690_000_041),
        place: Place::Private { to: vec![142, 437] },
        reactions: vec![Reaction {
            emoji: "plus".into(),
            user: (3587, Some("Ruth Mbeki".into())),
        }],
        flags: BTreeMap::from([("read".into(), true)]),
        score: 0.25,
        initial: 'ü',
    }
}

pub(crate) const CODECS: [Codec; 4] = [Codec::Postcard, Codec::Rmp, Codec::Bincode, Codec::Json];

pub(crate) const FINGERPRINT: u64 = 0x1a2d_e200;

pub(crate) fn marshaller(codec: Codec) -> Marshaller {
    Marshaller::new(codec, FINGERPRINT).unwrap()
}

/// A dictionary trained on messages as this codec writes them.
pub(crate) fn dictionary(codec: Codec) -> Dictionary {
    let marshaller = marshaller(codec);
    let samples = (0..400)
        .map(|id| {
            let mut message = sample();
            message.id += id;
            message.content = format!("{id}: {}, said user {}", message.content, id * 7919 % 997);
            marshaller.encode(&message).unwrap()
        })
        .collect::<Vec<_>>();
    Dictionary::train(&samples, 8 * 1024).unwrap()
}

/// Every codec with every kind of compression.
pub(crate) fn marshallers() -> Vec<Marshaller> {
    let mut all = Vec::new();
    for codec in CODECS {
        let compressing = marshaller(codec).compression(Compression::Zstd).unwrap();
        all.push(marshaller(codec));
        all.push(compressing.clone());
        all.push(compressing.dictionaries(Some(dictionary(codec)), []));
    }
    all
}

pub(crate) fn keys() -> Keys {
    Keys::one("v12.hash/message:180000007").unwrap()
}

pub(crate) fn moment() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_790_000_000_123)
}

pub(crate) fn seal<T: Serialize + ?Sized>(marshaller: &Marshaller, value: &T) -> Vec<u8> {
    let mut entry = BytesMut::new();
    marshaller
        .seal(
            keys().get(0),
            Some(value),
            moment(),
            Duration::from_millis(3),
            &mut entry,
        )
        .unwrap();
    entry.to_vec()
}

/// An entry with a right tag and any payload, made by the description in `docs/formats.md` alone.
pub(crate) fn forge(
    key: Key<'_>,
    content: u8,
    payload: &[u8],
    dictionary: Option<&Dictionary>,
) -> Vec<u8> {
    let fields = [1, content, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut seed = fields.to_vec();
    seed.extend(FINGERPRINT.to_le_bytes());
    seed.extend(key.hidden().to_le_bytes());
    seed.extend(dictionary.map_or(0, |d| xxh3_64(d.bytes())).to_le_bytes());
    seed.extend(key.as_bytes());
    let tag = xxh3_64_with_seed(payload, xxh3_64(&seed));
    [&fields[..], &tag.to_le_bytes(), payload].concat()
}

/// What the second byte says for an uncompressed value of this codec.
pub(crate) fn content(codec: Codec) -> u8 {
    match codec {
        Codec::Postcard => 1,
        Codec::Rmp => 2,
        Codec::Bincode => 3,
        Codec::Json => 4,
    }
}

/// The same with a zstd frame.
pub(crate) fn compressed(codec: Codec) -> u8 {
    content(codec) | 0x10
}
