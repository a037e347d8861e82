//! Entries, piece by piece: envelope, codecs, compression, a page of messages.
//!
//! `cargo bench --bench entries`; for figures that can be compared, see `ratios_entries`.

mod corpus;

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use larder_core::Keys;
use larder_core::entry::{Codec, Compression, Dictionary, Marshaller, fingerprint};

use corpus::Message;

const CODECS: [Codec; 4] = [Codec::Postcard, Codec::Rmp, Codec::Bincode, Codec::Json];

/// Messages a page.
const PAGE: usize = 1_000;

fn marshaller(codec: Codec) -> Marshaller {
    let shape = fingerprint::<Message>().expect("a derived type has a shape");
    Marshaller::new(codec, shape).expect("every codec is compiled in")
}

fn seal(
    marshaller: &Marshaller,
    keys: &Keys,
    messages: &[Message],
    out: &mut BytesMut,
) -> Vec<usize> {
    let filled_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    keys.iter()
        .zip(messages)
        .map(|(key, message)| {
            marshaller
                .seal(key, Some(message), filled_at, Duration::from_millis(3), out)
                .expect("messages can be written");
            out.len()
        })
        .collect()
}

fn entries(criterion: &mut Criterion) {
    let corpus = corpus::load(8 * PAGE);
    let (messages, training) = corpus.messages.split_at(PAGE);
    println!("messages: {}", corpus.origin);
    let mut keys = Keys::new();
    for message in messages {
        keys.push_raw(&format!("git-3f2a91c.x8Kd02Lm3Qa/message:{}", message.id))
            .expect("a legal key");
    }

    let mut subjects = Vec::new();
    for codec in CODECS {
        let plain = marshaller(codec);
        let samples = training
            .iter()
            .map(|message| plain.encode(message).expect("messages can be written"))
            .collect::<Vec<_>>();
        let dictionary = Dictionary::train(&samples, 32 * 1024).expect("thousands of samples");
        let zstd = plain
            .clone()
            .compression(Compression::Zstd)
            .expect("zstd is compiled in");
        subjects.push((format!("{codec}"), plain));
        subjects.push((format!("{codec}, zstd"), zstd.clone()));
        subjects.push((
            format!("{codec}, zstd with dictionary"),
            zstd.dictionaries(Some(dictionary), []),
        ));
    }

    let mut group = criterion.benchmark_group("page of 1,000 messages");
    group.throughput(Throughput::Elements(PAGE as u64));
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(800));
    for (name, marshaller) in &subjects {
        let mut out = BytesMut::new();
        let ends = seal(marshaller, &keys, messages, &mut out);
        let page = out.clone().freeze();
        let entry = |number: usize| {
            let start = number.checked_sub(1).map_or(0, |before| ends[before]);
            page.slice(start..ends[number])
        };
        let entries = (0..PAGE).map(entry).collect::<Vec<_>>();
        group.bench_function(format!("seal, {name}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(seal(marshaller, &keys, messages, &mut out));
            });
        });
        group.bench_function(format!("check, {name}"), |bencher| {
            bencher.iter(|| {
                for (key, entry) in keys.iter().zip(&entries) {
                    black_box(marshaller.check(key, black_box(entry))).expect("sealed");
                }
            });
        });
        group.bench_function(format!("open, {name}"), |bencher| {
            // What is opened is dropped outside of the measured time.
            bencher.iter_batched(
                || Vec::with_capacity(PAGE),
                |mut page: Vec<Message>| {
                    for (key, entry) in keys.iter().zip(&entries) {
                        let checked = marshaller.check(key, entry).expect("sealed");
                        page.extend(marshaller.open::<Message>(checked).expect("sealed"));
                    }
                    page
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();

    criterion.bench_function("fingerprint of a message", |bencher| {
        bencher.iter(|| black_box(fingerprint::<Message>()));
    });
}

criterion_group!(benches, entries);
criterion_main!(benches);
