//! What entries cost beside what they are made of, as ratios of one run.
//!
//! The two subjects of a line take turns, a thousand messages each.
//!
//! `cargo bench --bench ratios_entries`

mod corpus;
mod race;

use std::fmt;
use std::hint::black_box;
use std::io;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use flate2::{Compress, Compression as Level, Decompress, FlushCompress, FlushDecompress};
use larder_core::Keys;
use larder_core::entry::{Codec, Compression, Dictionary, Marshaller, fingerprint};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};

use corpus::Message;
use race::Table;

/// Messages a round.
const BATCH: usize = 1_000;

const TABLE: Table = Table::new(BATCH);

/// Messages a dictionary is trained on; none of them is measured.
const TRAINING: usize = 8_000;

fn main() {
    let corpus = corpus::load(TRAINING + BATCH);
    let (training, messages) = corpus.messages.split_at(TRAINING);
    let plain = Marshaller::new(
        Codec::Postcard,
        fingerprint::<Message>().expect("a derived type has a shape"),
    )
    .expect("postcard is compiled in");
    let samples = training
        .iter()
        .map(|message| plain.encode(message).expect("messages can be written"))
        .collect::<Vec<_>>();
    let dictionary = Dictionary::train(&samples, 32 * 1024).expect("thousands of samples");
    let compressing = plain
        .clone()
        .compression(Compression::Zstd)
        .expect("zstd is compiled in");
    let with_dictionary = compressing
        .clone()
        .dictionaries(Some(dictionary.clone()), []);

    let batch = Batch::new(messages, &plain);
    let bytes = |sizes: &[Vec<u8>]| sizes.iter().map(Vec::len).sum::<usize>() / sizes.len();
    println!(
        "{} messages of {}, {} B each as postcard, {} B compressed with a dictionary of 32 KiB\n",
        messages.len(),
        corpus.origin,
        bytes(&batch.payloads),
        bytes(&batch.seal(&with_dictionary, messages)) - 18,
    );
    TABLE.head();
    batch.envelope(&with_dictionary, messages);
    let writer = EncoderDictionary::copy(dictionary.bytes(), 1);
    let mut bare = Compressor::with_prepared_dictionary(&writer).expect("a prepared dictionary");
    batch.compress(
        "compress with dictionary / bare zstd",
        &with_dictionary,
        &mut |payload, packed| bare.compress_to_buffer(payload, packed),
    );
    let mut short = Compressor::new(-1).expect("a level");
    let mut long = Compressor::new(1).expect("a level");
    batch.compress(
        "compress without dictionary / bare zstd",
        &compressing,
        &mut |payload, packed| match payload.len() {
            ..4096 => short.compress_to_buffer(payload, packed),
            _ => long.compress_to_buffer(payload, packed),
        },
    );
    let reader = DecoderDictionary::copy(dictionary.bytes());
    let mut bare = Decompressor::with_prepared_dictionary(&reader).expect("a prepared dictionary");
    batch.decompress(
        "decompress with dictionary / bare zstd",
        &with_dictionary,
        &mut bare,
    );
    let mut bare = Decompressor::new().expect("a context");
    batch.decompress(
        "decompress without dictionary / bare zstd",
        &compressing,
        &mut bare,
    );
    batch.decode(&plain, messages);
    batch.page(&with_dictionary, messages);
}

/// Compresses a payload with nothing around.
type Bare<'a> = dyn FnMut(&[u8], &mut Vec<u8>) -> io::Result<usize> + 'a;

/// A thousand messages in the forms that the subjects start from.
struct Batch {
    keys: Keys,
    /// Each as postcard writes it.
    payloads: Vec<Vec<u8>>,
}

impl Batch {
    fn new(messages: &[Message], marshaller: &Marshaller) -> Self {
        let mut keys = Keys::new();
        for message in messages {
            keys.push_raw(&format!("git-3f2a91c.x8Kd02Lm3Qa/message:{}", message.id))
                .expect("a legal key");
        }
        let payloads = messages
            .iter()
            .map(|message| marshaller.encode(message).expect("messages can be written"))
            .collect();
        Self { keys, payloads }
    }

    fn seal<T: Serialize>(&self, marshaller: &Marshaller, values: &[T]) -> Vec<Vec<u8>> {
        self.keys
            .iter()
            .zip(values)
            .map(|(key, value)| {
                let mut entry = BytesMut::new();
                seal(marshaller, key, value, &mut entry);
                entry.to_vec()
            })
            .collect()
    }

    /// The envelope of a compressed message, written and checked.
    fn envelope(&self, marshaller: &Marshaller, messages: &[Message]) {
        let entries = self.seal(marshaller, messages);
        let uncompressed = Marshaller::new(Codec::Postcard, 1).expect("postcard is compiled in");
        let frames = entries
            .iter()
            .map(|entry| Raw(&entry[18..]))
            .collect::<Vec<_>>();
        let mut out = BytesMut::with_capacity(1 << 21);
        TABLE.alone("envelope of a compressed message, checked", "80 ns", || {
            for (key, entry) in self.keys.iter().zip(&entries) {
                black_box(marshaller.check(key, black_box(entry))).expect("what was sealed");
            }
        });
        TABLE.alone(
            "envelope of a compressed message, written with it",
            "80 ns",
            || {
                out.clear();
                for (key, frame) in self.keys.iter().zip(&frames) {
                    seal(&uncompressed, key, frame, &mut out);
                }
            },
        );
    }

    fn compress(&self, what: &str, marshaller: &Marshaller, bare: &mut Bare<'_>) {
        let payloads = self.payloads.iter().map(|p| Raw(p)).collect::<Vec<_>>();
        let mut packed = Vec::with_capacity(1 << 20);
        let mut out = BytesMut::with_capacity(1 << 21);
        TABLE.race(
            what,
            "1.15",
            || {
                out.clear();
                for (key, payload) in self.keys.iter().zip(&payloads) {
                    seal(marshaller, key, payload, &mut out);
                }
            },
            || {
                for payload in &payloads {
                    packed.clear();
                    bare(payload.0, &mut packed).expect("it has room");
                    black_box(&packed);
                }
            },
        );
    }

    fn decompress(&self, what: &str, marshaller: &Marshaller, bare: &mut Decompressor<'_>) {
        let payloads = self.payloads.iter().map(|p| Raw(p)).collect::<Vec<_>>();
        let mut entries = self.seal(marshaller, &payloads);
        let mut keys = self.keys.clone();
        // A few don't shrink enough to be kept as frames; both leave them out.
        let kept = (0..entries.len())
            .filter(|&n| entries[n][1] & 0x10 != 0)
            .collect::<Vec<_>>();
        keys = keys.select(kept.iter().copied());
        entries = kept
            .iter()
            .map(|&n| std::mem::take(&mut entries[n]))
            .collect();
        let mut payload = Vec::with_capacity(1 << 20);
        // The envelope has its own line.
        let checked = keys
            .iter()
            .zip(&entries)
            .map(|(key, entry)| marshaller.check(key, entry).expect("sealed"))
            .collect::<Vec<_>>();
        TABLE.race(
            what,
            "1.15",
            || {
                for &checked in &checked {
                    black_box(marshaller.open::<Length>(black_box(checked))).expect("sealed");
                }
            },
            || {
                for entry in &entries {
                    payload.clear();
                    bare.decompress_to_buffer(black_box(&entry[18..]), &mut payload)
                        .expect("it has room");
                    black_box(&payload);
                }
            },
        );
    }

    /// Decoding alone, uncompressed, with envelope and bounds.
    fn decode(&self, marshaller: &Marshaller, messages: &[Message]) {
        let entries = self.seal(marshaller, messages);
        TABLE.race(
            "open uncompressed / bare postcard",
            "",
            || {
                let page = self
                    .keys
                    .iter()
                    .zip(&entries)
                    .map(|(key, entry)| {
                        let checked = marshaller.check(key, entry).expect("sealed");
                        marshaller
                            .open(checked)
                            .expect("sealed")
                            .expect("a message")
                    })
                    .collect::<Vec<Message>>();
                black_box(page);
            },
            || {
                let page = entries
                    .iter()
                    .map(|entry| postcard::from_bytes(&entry[18..]).expect("a message"))
                    .collect::<Vec<Message>>();
                black_box(page);
            },
        );
    }

    /// A page of messages from what the store holds, against the shape that Zulip has: zlib 6 around JSON.
    fn page(&self, marshaller: &Marshaller, messages: &[Message]) {
        let entries = self.seal(marshaller, messages);
        let mut zlib = Compress::new(Level::new(6), true);
        let theirs = messages
            .iter()
            .map(|message| {
                let json = serde_json::to_vec(message).expect("messages can be written");
                let mut packed = Vec::with_capacity(json.len() + 64);
                zlib.reset();
                zlib.compress_vec(&json, &mut packed, FlushCompress::Finish)
                    .expect("it has room");
                packed
            })
            .collect::<Vec<_>>();
        let mut zlib = Decompress::new(true);
        let mut json = Vec::with_capacity(1 << 20);
        TABLE.race(
            "decompress + decode with dictionary / zlib 6 + JSON",
            "0.35",
            || {
                let page = self
                    .keys
                    .iter()
                    .zip(&entries)
                    .map(|(key, entry)| {
                        let checked = marshaller.check(key, entry).expect("sealed");
                        marshaller
                            .open(checked)
                            .expect("sealed")
                            .expect("a message")
                    })
                    .collect::<Vec<Message>>();
                black_box(page);
            },
            || {
                let page = theirs
                    .iter()
                    .map(|packed| {
                        json.clear();
                        zlib.reset(true);
                        zlib.decompress_vec(packed, &mut json, FlushDecompress::Finish)
                            .expect("it has room");
                        serde_json::from_slice(&json).expect("a message")
                    })
                    .collect::<Vec<Message>>();
                black_box(page);
            },
        );
    }
}

fn seal<T: Serialize>(
    marshaller: &Marshaller,
    key: larder_core::Key<'_>,
    value: &T,
    out: &mut BytesMut,
) {
    marshaller
        .seal(
            key,
            Some(value),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000),
            Duration::from_millis(3),
            out,
        )
        .expect("messages can be written");
}

/// Bytes as they are, so that sealing compresses and nothing else.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// How many bytes there are, so that opening decompresses and nothing else.
struct Length(#[expect(dead_code, reason = "made so that something is")] usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Length;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Length, E> {
                Ok(Length(bytes.len()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
