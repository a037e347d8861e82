//! Dictionaries: training, refusing what is none, and rolling one out.

use larder_core::ErrorKind;
use larder_core::entry::{Codec, Compression, Dictionary, Marshaller, Rejection};

use crate::support::*;

const CODEC: Codec = Codec::Postcard;

fn writer(dictionary: &Dictionary) -> Marshaller {
    marshaller(CODEC)
        .compression(Compression::Zstd)
        .unwrap()
        .dictionaries(Some(dictionary.clone()), [])
}

#[track_caller]
fn check_reads(reader: &Marshaller, entry: &[u8], expected: Result<(), Rejection>) {
    let keys = keys();
    let opened = reader
        .check(keys.get(0), entry)
        .and_then(|checked| reader.open::<Message>(checked));
    assert_eq!(opened, expected.map(|()| Some(sample())));
}

#[test]
fn entries_name_their_dictionary_and_are_smaller_for_it() {
    let dictionary = dictionary(CODEC);
    let with = seal(&writer(&dictionary), &sample());
    let without = seal(
        &marshaller(CODEC).compression(Compression::Zstd).unwrap(),
        &sample(),
    );
    assert!(
        with.len() * 3 < without.len() * 2,
        "{} of {}",
        with.len(),
        without.len()
    );
    let id = zstd::zstd_safe::get_dict_id_from_frame(&with[18..]).unwrap();
    assert_eq!(id.get(), dictionary.id());
}

#[test]
fn short_payloads_are_compressed_with_a_dictionary() {
    let dictionary = dictionary(CODEC);
    let message = Message {
        content: "We don't have an equivalent".into(),
        ..sample()
    };
    assert!(marshaller(CODEC).encode(&message).unwrap().len() < 128);
    assert_eq!(seal(&writer(&dictionary), &message)[1], compressed(CODEC));
}

#[test]
fn readers_get_a_dictionary_first() {
    let (old, new) = (dictionary(CODEC), dictionary(Codec::Bincode));
    assert_ne!(old.id(), new.id());
    let before = writer(&old);
    let step_one = before
        .clone()
        .dictionaries(Some(old.clone()), [new.clone()]);
    let step_two = before
        .clone()
        .dictionaries(Some(new.clone()), [old.clone()]);

    let (by_old, by_new) = (seal(&step_one, &sample()), seal(&step_two, &sample()));
    check_reads(&before, &by_old, Ok(()));
    for reader in [&step_one, &step_two] {
        check_reads(reader, &by_old, Ok(()));
        check_reads(reader, &by_new, Ok(()));
    }
    check_reads(&before, &by_new, Err(Rejection::Dictionary));
    check_reads(&marshaller(CODEC), &by_old, Err(Rejection::Dictionary));
}

#[test]
fn a_dictionary_only_read_with_is_not_written_with() {
    let dictionary = dictionary(CODEC);
    let reader = marshaller(CODEC)
        .compression(Compression::Zstd)
        .unwrap()
        .dictionaries(None, [dictionary.clone()]);
    let entry = seal(&reader, &sample());
    check_reads(&marshaller(CODEC), &entry, Ok(()));
    check_reads(&reader, &seal(&writer(&dictionary), &sample()), Ok(()));
}

#[track_caller]
fn check_refused(bytes: &[u8], reason: &str) {
    let error = Dictionary::new(bytes).expect_err(reason);
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains(reason), "{error}");
}

#[test]
fn what_is_no_dictionary_is_refused_with_a_reason() {
    let good = dictionary(CODEC);
    let good = good.bytes();
    check_refused(b"", "magic number");
    check_refused(b"\x7fELF and so on", "magic number");
    check_refused(&[&good[..4], &[0; 4], &good[8..]].concat(), "its id is 0");
    check_refused(&good[..60], "damaged or cut off");
    check_refused(
        &[&good[..8], &[0xff; 100], &good[108..]].concat(),
        "damaged or cut off",
    );
}

#[test]
fn too_few_samples_are_refused() {
    for samples in [&[][..], &["a", "b"], &["the same", "the same", "the same"]] {
        let error = Dictionary::train(samples, 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("give more samples"), "{error}");
    }
}

#[test]
fn what_is_printed_shows_no_content() {
    let dictionary = dictionary(CODEC);
    let shown = format!("{dictionary:?} {:?}", writer(&dictionary));
    assert!(shown.contains(&dictionary.id().to_string()));
    assert!(shown.len() < 400, "{shown}");
}
