//! Entries whose tag is right and whose payload lies: what a codec or zstd would believe.
//!
//! How much memory they make larder ask for is measured in `entry_alloc.rs`, which uses the same cases.

use std::collections::{BTreeMap, HashMap};

use larder_core::entry::{Codec, Marshaller, Rejection};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zstd::zstd_safe::{CCtx, CParameter};

use crate::support::*;

fn open<T: DeserializeOwned>(
    marshaller: &Marshaller,
    content: u8,
    payload: &[u8],
) -> Result<Option<T>, Rejection> {
    let keys = keys();
    let entry = forge(keys.get(0), content, payload, None);
    let checked = marshaller
        .check(keys.get(0), &entry)
        .expect("the tag is right");
    marshaller.open(checked)
}

#[track_caller]
fn check<T: DeserializeOwned + PartialEq + std::fmt::Debug>(codec: Codec, payload: &[u8]) {
    let opened = open::<T>(&marshaller(codec), content(codec), payload);
    assert_eq!(opened, Err(Rejection::Undecodable), "{codec}");
}

const POSTCARD_MOST: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
const BINCODE_MOST: [u8; 9] = [253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// A length of 2 GiB, 2^64 - 1, and 16 million.
const CLAIMS: [(Codec, &[u8]); 8] = [
    (Codec::Postcard, &[0xff, 0xff, 0xff, 0xff, 0x07]),
    (Codec::Postcard, &POSTCARD_MOST),
    (Codec::Postcard, &[0x80, 0x80, 0x80, 0x08]),
    (Codec::Bincode, &[252, 0xff, 0xff, 0xff, 0x7f]),
    (Codec::Bincode, &BINCODE_MOST),
    (Codec::Bincode, &[252, 0, 0, 0, 1]),
    (Codec::Rmp, &[0xdb, 0x7f, 0xff, 0xff, 0xff]), // a text
    (Codec::Rmp, &[0xdd, 0xff, 0xff, 0xff, 0xff]), // a list
];

#[test]
fn claimed_lengths_are_not_believed() {
    for (codec, claim) in CLAIMS {
        check::<String>(codec, claim);
        check::<Vec<u8>>(codec, claim);
        check::<Vec<Message>>(codec, claim);
        check::<HashMap<u64, Message>>(codec, claim);
        check::<(u8, String)>(codec, &[&[7], claim].concat());
        check::<Vec<Vec<Vec<Vec<Vec<Vec<u64>>>>>>>(codec, &claim.repeat(6));
    }
    check::<BTreeMap<String, u8>>(Codec::Rmp, &[0xdf, 0xff, 0xff, 0xff, 0xff]);
    check::<Vec<u8>>(Codec::Rmp, &[0xc6, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn lists_of_elements_without_size_end() {
    check::<Vec<()>>(Codec::Postcard, &POSTCARD_MOST);
    check::<Vec<()>>(Codec::Bincode, &BINCODE_MOST);
    check::<Vec<[u64; 0]>>(Codec::Postcard, &POSTCARD_MOST);
    check::<HashMap<(), ()>>(Codec::Postcard, &POSTCARD_MOST);
    // A million are within bounds.
    let opened = open::<Vec<()>>(&marshaller(Codec::Postcard), 1, &[0x80, 0x80, 0x40]);
    assert_eq!(opened, Ok(Some(vec![(); 1 << 20])));
}

/// A level costs one byte (or two) in every codec.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Chain {
    next: Option<Box<Self>>,
}

/// The same as a list of lists.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Nest(Vec<Self>);

/// The same as an enum.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Not {
    Not(Box<Self>),
    Yes,
}

#[test]
fn a_million_levels_do_not_overflow_the_stack() {
    const LEVELS: usize = 200_000;
    let wide = |codec| marshaller(codec).max_value(1 << 24);
    #[track_caller]
    fn check<T: DeserializeOwned + std::fmt::Debug>(
        marshaller: &Marshaller,
        codec: Codec,
        payload: &[u8],
    ) {
        let opened = open::<T>(marshaller, content(codec), payload);
        assert_eq!(opened.unwrap_err(), Rejection::Undecodable, "{codec}");
    }
    for codec in [Codec::Postcard, Codec::Bincode] {
        check::<Chain>(&wide(codec), codec, &[1].repeat(LEVELS));
        check::<Nest>(&wide(codec), codec, &[1].repeat(LEVELS));
        check::<Not>(&wide(codec), codec, &[0].repeat(LEVELS));
    }
    let codec = Codec::Rmp;
    check::<Chain>(&wide(codec), codec, &b"\x81\xa4next".repeat(LEVELS));
    check::<Chain>(&wide(codec), codec, &[0x91].repeat(LEVELS));
    check::<Nest>(&wide(codec), codec, &[0x91].repeat(LEVELS));
    check::<Not>(&wide(codec), codec, &b"\x81\xa3Not".repeat(LEVELS));
    check::<serde_json::Value>(&wide(codec), codec, &[0x91].repeat(LEVELS));
    let codec = Codec::Json;
    check::<Chain>(&wide(codec), codec, &b"{\"next\":".repeat(LEVELS));
    check::<Nest>(&wide(codec), codec, &b"[".repeat(LEVELS));
    check::<Not>(&wide(codec), codec, &b"{\"Not\":".repeat(LEVELS));
    check::<serde_json::Value>(&wide(codec), codec, &b"[".repeat(LEVELS));
}

#[test]
fn values_of_sixty_levels_are_within_bounds() {
    fn chain(levels: usize) -> Chain {
        let next = (levels > 0).then(|| Box::new(chain(levels - 1)));
        Chain { next }
    }
    for codec in CODECS {
        let entry = seal(&marshaller(codec), &chain(60));
        let keys = keys();
        let marshaller = marshaller(codec);
        let checked = marshaller.check(keys.get(0), &entry).unwrap();
        assert_eq!(marshaller.open(checked), Ok(Some(chain(60))), "{codec}");
    }
}

#[test]
fn bytes_left_over_are_refused() {
    for codec in CODECS {
        for extra in [
            &b"\0"[..],
            b"\x01",
            b"7",
            b"\xc0",
            b"\xff",
            b"\x91\x91",
            b"{",
        ] {
            let payload = marshaller(codec).encode(&sample()).unwrap();
            check::<Message>(codec, &[&payload, extra].concat());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_payload_is_a_value_or_undecodable(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        for codec in CODECS {
            let marshaller = marshaller(codec);
            let _ = open::<Message>(&marshaller, content(codec), &payload);
            let _ = open::<Vec<(String, Place)>>(&marshaller, content(codec), &payload);
            let _ = open::<Not>(&marshaller, content(codec), &payload);
            let opened = open::<String>(&marshaller, compressed(codec), &framed(&payload));
            prop_assert!(opened != Err(Rejection::Damaged));
        }
    }

    #[test]
    fn any_damage_below_the_tag_is_a_value_or_undecodable(
        message in messages(),
        position in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        for codec in CODECS {
            let marshaller = marshaller(codec);
            let mut payload = marshaller.encode(&message).unwrap();
            let mut frame = framed(&payload);
            let end = payload.len();
            payload[position.index(end)] = byte;
            let opened = open::<Message>(&marshaller, content(codec), &payload);
            prop_assert!(matches!(opened, Ok(Some(_)) | Err(Rejection::Undecodable)));
            // Behind the magic number and the descriptor.
            let at = 5 + position.index(frame.len() - 5);
            frame[at] = byte;
            let _ = open::<Message>(&marshaller, compressed(codec), &frame);
        }
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(payload, 1).unwrap()
}

#[track_caller]
fn check_frame(frame: &[u8], expected: Rejection) {
    let codec = Codec::Postcard;
    let opened = open::<String>(&marshaller(codec), compressed(codec), frame);
    assert_eq!(opened, Err(expected));
}

/// The header of a frame with a window of 2^`window` KiB and this content size, and one empty block.
fn frame(window: u8, size: u64) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xc0, window << 3];
    frame.extend(size.to_le_bytes());
    frame.extend([1, 0, 0]);
    frame
}

#[test]
fn frames_that_lie_about_their_size_are_refused() {
    check_frame(&frame(0, 1 << 30), Rejection::TooLarge);
    check_frame(&frame(0, u64::MAX - 2), Rejection::TooLarge);
    check_frame(&frame(0, 1000), Rejection::Undecodable);

    let mut shorter = framed("x".repeat(200).as_bytes());
    assert_eq!(shorter[5], 200, "the content size is one byte");
    shorter[5] = 100;
    check_frame(&shorter, Rejection::Undecodable);
    shorter[5] = 255;
    check_frame(&shorter, Rejection::Undecodable);
}

#[test]
fn bombs_are_refused() {
    check_frame(&framed(&vec![0; 1 << 28]), Rejection::TooLarge);
    // Many frames, of which the first is small.
    let small = framed(b"\x03Bob");
    check_frame(&small.repeat(1000), Rejection::Undecodable);
}

#[test]
fn a_frame_that_asks_for_a_huge_window_gets_none() {
    // The largest window there is: 2^41 bytes. It is empty, as it says, and no text.
    check_frame(&frame(31, 0), Rejection::Undecodable);
}

#[test]
fn a_frame_without_content_size_is_refused() {
    let mut context = CCtx::create();
    context
        .set_parameter(CParameter::ContentSizeFlag(false))
        .unwrap();
    let mut frame = Vec::with_capacity(1000);
    context.compress2(&mut frame, b"\x03Bob").unwrap();
    check_frame(&frame, Rejection::Undecodable);
}

#[test]
fn what_is_no_frame_is_damaged_and_what_needs_a_dictionary_names_it() {
    let keys = keys();
    let codec = Codec::Postcard;
    let check = |payload: &[u8]| {
        let entry = forge(keys.get(0), compressed(codec), payload, None);
        marshaller(codec).check(keys.get(0), &entry).unwrap_err()
    };
    assert_eq!(check(b""), Rejection::Damaged);
    assert_eq!(check(b"\x28\xb5\x2f\xfd"), Rejection::Damaged);
    assert_eq!(check(b"no frame at all"), Rejection::Damaged);
    // A skippable frame.
    assert_eq!(check(b"\x50\x2a\x4d\x18\x01\0\0\0x"), Rejection::Damaged);
    for descriptor in [0x01, 0x02, 0x03, 0x21, 0x22, 0x23_u8] {
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd, descriptor][..], &[7; 12]].concat();
        assert_eq!(check(&frame), Rejection::Dictionary);
        let shown = zstd::zstd_safe::get_dict_id_from_frame(&frame);
        assert!(shown.is_some(), "zstd reads an id there as well");
        assert_eq!(check(&frame[..5]), Rejection::Damaged);
    }
}
