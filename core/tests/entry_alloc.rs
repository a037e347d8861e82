//! What entries allocate: nothing to be checked, nothing to be sealed into a buffer with room, and whatever an entry
//! claims, no more than a multiple of `max_value` plus a constant to be opened.
#![cfg(all(
    feature = "postcard",
    feature = "rmp",
    feature = "bincode",
    feature = "json",
    feature = "zstd"
))]

#[path = "entry/support.rs"]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use bytes::BytesMut;
use indexmap::IndexMap;
use larder_core::entry::{Codec, Compression, MAX_VALUE, Marshaller, Rejection, owned_bytes};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use support::*;

/// What claims alone may allocate: some thousand elements of each list that is open.
const CLAIMED: u64 = 1 << 20;

/// What elements that are there may allocate: 16 MiB and 32 times `max_value`, three times while a list that doubles is
/// moved.
const ELEMENTS: u64 = 3 * ((16 << 20) + 32 * MAX_VALUE as u64);

fn measured<R>(run: impl FnOnce() -> R) -> (AllocationInfo, R) {
    let mut result = None;
    let info = measure(|| result = Some(run()));
    (info, result.expect("it ran"))
}

fn open<T: DeserializeOwned>(
    marshaller: &Marshaller,
    entry: &[u8],
) -> Result<Option<T>, Rejection> {
    let keys = keys();
    let checked = marshaller.check(keys.get(0), entry)?;
    marshaller.open(checked)
}

#[test]
fn checking_allocates_nothing() {
    let keys = keys();
    for marshaller in marshallers() {
        let entry = seal(&marshaller, &sample());
        let (info, ()) = measured(|| {
            for bit in 0..entry.len() {
                assert!(marshaller.check(keys.get(0), &entry).is_ok());
                assert!(marshaller.check(keys.get(0), &entry[..bit]).is_err());
            }
        });
        assert_eq!(info.count_total, 0);
    }
}

#[test]
fn sealing_into_a_buffer_with_room_allocates_nothing() {
    let keys = keys();
    let message = sample();
    for marshaller in marshallers() {
        let mut out = BytesMut::with_capacity(64 * 1024);
        let mut seal = || {
            marshaller
                .seal(
                    keys.get(0),
                    Some(&message),
                    moment(),
                    Duration::ZERO,
                    &mut out,
                )
                .unwrap();
        };
        seal();
        let (info, ()) = measured(|| (0..50).for_each(|_| seal()));
        assert_eq!(info.count_total, 0, "{marshaller:?}");
    }
}

#[test]
fn opening_allocates_the_value_alone() {
    let message = sample();
    let value = measured(|| std::hint::black_box(message.clone()))
        .0
        .count_total;
    for marshaller in marshallers()
        .iter()
        .filter(|m| !format!("{m:?}").contains("Json"))
    {
        let entry = seal(marshaller, &message);
        open::<Message>(marshaller, &entry).unwrap();
        let (info, opened) = measured(|| open::<Message>(marshaller, &entry));
        assert_eq!(opened, Ok(Some(message.clone())));
        assert!(
            info.count_total <= value,
            "{} for {value}: {marshaller:?}",
            info.count_total
        );
    }
}

/// Opens this payload in each way it may lie; it must not be a value.
#[track_caller]
fn check<T: DeserializeOwned>(codec: Codec, payload: &[u8], most: u64) {
    let marshaller = marshaller(codec);
    let keys = keys();
    let entry = forge(keys.get(0), content(codec), payload, None);
    let (info, opened) = measured(|| open::<T>(&marshaller, &entry).map(|_| ()));
    assert_eq!(opened, Err(Rejection::Undecodable), "{codec}");
    assert!(info.bytes_max <= most, "{codec}: {} bytes", info.bytes_max);
}

#[test]
fn claims_allocate_next_to_nothing() {
    const CLAIMS: [(Codec, &[u8]); 7] = [
        (Codec::Postcard, &[0xff, 0xff, 0xff, 0xff, 0x07]),
        (
            Codec::Postcard,
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        ),
        (Codec::Postcard, &[0x80, 0x80, 0x80, 0x08]),
        (Codec::Bincode, &[252, 0xff, 0xff, 0xff, 0x7f]),
        (
            Codec::Bincode,
            &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        (Codec::Bincode, &[252, 0, 0, 0, 1]),
        (Codec::Rmp, &[0xdd, 0xff, 0xff, 0xff, 0xff]),
    ];
    for (codec, claim) in CLAIMS {
        check::<String>(codec, claim, CLAIMED);
        check::<Box<[u8]>>(codec, claim, CLAIMED);
        check::<Vec<Message>>(codec, claim, CLAIMED);
        check::<BTreeMap<u64, Message>>(codec, claim, CLAIMED);
        check::<HashMap<u64, Message>>(codec, claim, CLAIMED);
        check::<Vec<Vec<Vec<Vec<Vec<Vec<u64>>>>>>>(codec, &claim.repeat(6), CLAIMED);
        // It reserves what it is told.
        check::<IndexMapLike>(codec, claim, CLAIMED);
    }
    check::<String>(Codec::Rmp, &[0xdb, 0xff, 0xff, 0xff, 0xff], CLAIMED);
    check::<HashMap<String, u8>>(Codec::Rmp, &[0xdf, 0xff, 0xff, 0xff, 0xff], CLAIMED);
}

/// A map that believes the size hint, as some in the wild do.
struct IndexMapLike;

impl<'de> serde::Deserialize<'de> for IndexMapLike {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Believer;
        impl<'de> serde::de::Visitor<'de> for Believer {
            type Value = IndexMapLike;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<IndexMapLike, A::Error> {
                let mut entries = IndexMap::with_capacity(map.size_hint().unwrap_or(0));
                while let Some((key, value)) = map.next_entry::<u64, u64>()? {
                    entries.insert(key, value);
                }
                Ok(IndexMapLike)
            }
        }
        deserializer.deserialize_map(Believer)
    }
}

#[test]
fn small_bytes_that_are_large_elements_are_bounded() {
    type Large = Vec<Option<[u64; 32]>>;
    // 512 KiB of elements that are one byte each, and 264 in memory: 138 MB.
    let length = MAX_VALUE - 3;
    let varint = [
        0x80 | (length & 0x7f) as u8,
        0x80 | (length >> 7 & 0x7f) as u8,
        (length >> 14) as u8,
    ];
    check::<Large>(
        Codec::Postcard,
        &[&varint[..], &vec![0; length]].concat(),
        ELEMENTS,
    );
    let claim = [&[252][..], &(length as u32).to_le_bytes()].concat();
    check::<Large>(
        Codec::Bincode,
        &[&claim[..], &vec![0; length - 2]].concat(),
        ELEMENTS,
    );
    let claim = [&[0xdd][..], &(length as u32).to_be_bytes()].concat();
    check::<Large>(
        Codec::Rmp,
        &[&claim[..], &vec![0xc0; length - 2]].concat(),
        ELEMENTS,
    );
    let json = format!("[{}null]", "null,".repeat(MAX_VALUE / 5 - 1));
    check::<Vec<Option<[[u64; 32]; 32]>>>(Codec::Json, json.as_bytes(), ELEMENTS);
}

#[test]
fn frames_allocate_what_they_hold_and_at_most_max_value() {
    let codec = Codec::Postcard;
    let keys = keys();
    let marshaller = marshaller(codec);
    let largest = vec![0_u8; MAX_VALUE];
    let mut lying = zstd::bulk::compress(&largest[..300], 1).unwrap();
    assert_eq!(lying[4] & 0xc0, 0x40, "the content size takes two bytes");
    lying[5..7].copy_from_slice(&[0xff, 0xff]);
    for (frame, most) in [
        (zstd::bulk::compress(&vec![0; MAX_VALUE + 1], 1).unwrap(), 0),
        (zstd::bulk::compress(&largest, 1).unwrap(), MAX_VALUE as u64),
        (lying, 0xffff + 256),
    ] {
        let entry = forge(keys.get(0), compressed(codec), &frame, None);
        // In a thread of its own, which has no buffers yet.
        let (info, _) = std::thread::scope(|scope| {
            let run = || measured(|| open::<(u64, bool)>(&marshaller, &entry).map(|_| ()));
            scope.spawn(run).join().unwrap()
        });
        assert!(info.bytes_max <= most + 1024, "{} bytes", info.bytes_max);
    }
}

#[test]
fn a_huge_value_leaves_no_huge_buffer_behind() {
    let marshaller = marshaller(Codec::Postcard)
        .compression(Compression::Zstd)
        .unwrap()
        .max_value(1 << 26);
    let huge = "x".repeat(1 << 25);
    let (info, entry) = measured(|| seal(&marshaller, &huge));
    assert!(info.bytes_current < 1 << 20, "{} bytes", info.bytes_current);
    let (info, opened) = measured(|| open::<String>(&marshaller, &entry).map(|_| ()));
    assert_eq!(opened, Ok(()));
    assert!(info.bytes_current < 1 << 20, "{} bytes", info.bytes_current);
}

/// What the user of a service may look like.
#[derive(Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
    email: String,
    avatar: Option<String>,
    roles: Vec<Role>,
    settings: BTreeMap<String, bool>,
}

#[derive(Serialize, Deserialize)]
enum Role {
    Member,
    Moderator { streams: Vec<u32> },
}

impl User {
    fn of(id: u64) -> Self {
        let moderator = Role::Moderator {
            streams: vec![1, 2, 3],
        };
        Self {
            id,
            name: format!("User {id}"),
            email: format!("user.{id}@example.com"),
            avatar: id
                .is_multiple_of(2)
                .then(|| format!("https://example.com/avatars/{id}.png")),
            roles: vec![Role::Member, moderator],
            settings: (0..12).map(|n| (format!("setting_{n}"), true)).collect(),
        }
    }
}

/// What an allocator takes for itself isn't in what it is asked for, so that small pieces weigh more than that.
#[test]
fn what_values_weigh_is_near_what_opening_them_allocates() {
    #[track_caller]
    fn check<T: Serialize + DeserializeOwned>(value: &T) {
        let marshaller = marshaller(Codec::Postcard);
        let entry = seal(&marshaller, value);
        let (info, opened) = measured(|| open::<T>(&marshaller, &entry));
        let opened = opened.unwrap().unwrap();
        let weighed = owned_bytes(&opened, size_of_val(&opened));
        let allocated = info.bytes_current;
        let bounds = allocated as f64 * 0.75..=allocated as f64 * 1.7 + 64.0;
        assert!(
            bounds.contains(&(weighed as f64)),
            "{weighed} bytes are estimated and {allocated} were allocated"
        );
    }

    let ids = 0..1_000_u64;
    check(&7_u64);
    check(&"Ada Lovelace".to_owned());
    check(&"x".repeat(1024));
    check(&User::of(7));
    check(&(0..200).map(User::of).collect::<Vec<_>>());
    check(&ids.clone().collect::<Vec<_>>());
    check(&vec![7_u8; 100_000]);
    check(&vec![(1_u32, 2_u32, Some(3_u16)); 10_000]);
    check(&vec![vec![vec![1_u8; 3]; 10]; 100]);
    check(&ids.clone().map(|id| (id, id)).collect::<BTreeMap<_, _>>());
    check(&ids.clone().map(|id| (id, id)).collect::<HashMap<_, _>>());
    check(
        &ids.map(|id| (id, format!("value {id}")))
            .collect::<HashMap<_, _>>(),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_damage_makes_larder_allocate(
        message in messages(),
        position in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..12),
    ) {
        for codec in CODECS {
            let marshaller = marshaller(codec);
            let mut payload = marshaller.encode(&message).unwrap();
            let start = position.index(payload.len());
            let end = (start + bytes.len()).min(payload.len());
            payload.splice(start..end, bytes.iter().copied());
            let frame = zstd::bulk::compress(&payload, 1).unwrap();
            let keys = keys();
            for (content, payload) in [(content(codec), &payload), (compressed(codec), &frame)] {
                let mut entry = forge(keys.get(0), content, payload, None);
                let (info, _) = measured(|| open::<Message>(&marshaller, &entry).map(|_| ()));
                prop_assert!(info.bytes_max <= MAX_VALUE as u64 + CLAIMED);
                // Below the tag nothing is believed at all.
                let end = entry.len() - 1;
                entry[end] ^= 1;
                let (info, opened) = measured(|| open::<Message>(&marshaller, &entry).map(|_| ()));
                prop_assert_eq!(opened, Err(Rejection::Damaged));
                prop_assert_eq!(info.count_total, 0);
            }
        }
    }
}
