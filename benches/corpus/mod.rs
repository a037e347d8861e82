//! Chat messages to measure with: real ones where there are some, generated ones otherwise.
//!
//! The real ones are JSON lines, plain or as `.zst`: the file that `LARDER_CORPUS` names, or `messages.jsonl.zst` in a
//! folder `shared/data` beside the repository; an empty `LARDER_CORPUS` stands for none. The generated ones have the same shape and about the same sizes, and words
//! as frequent as natural ones, so that they compress alike; figures differ all the same, and say which they are of.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each bench uses a part of it"
)]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A message as Zulip hands it to its clients, with the fields of sender and stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) id: u64,
    pub(crate) sender_id: u32,
    pub(crate) content: String,
    pub(crate) recipient_type_id: u32,
    pub(crate) recipient_type: u8,
    pub(crate) recipient_id: u32,
    pub(crate) timestamp: u64,
    pub(crate) client: String,
    pub(crate) subject: String,
    pub(crate) topic_links: Vec<TopicLink>,
    pub(crate) sender_realm_id: u32,
    pub(crate) last_edit_timestamp: Option<u64>,
    pub(crate) edit_history: Option<Vec<Edit>>,
    pub(crate) rendered_content: String,
    pub(crate) rendered_content_version: u8,
    pub(crate) is_me_message: bool,
    pub(crate) reactions: Vec<Reaction>,
    pub(crate) submessages: Vec<Submessage>,
    pub(crate) sender_full_name: String,
    pub(crate) sender_email: String,
    pub(crate) sender_realm_str: String,
    pub(crate) sender_is_mirror_dummy: bool,
    pub(crate) sender_avatar_source: Option<String>,
    pub(crate) sender_avatar_version: Option<u32>,
    pub(crate) avatar_url: Option<String>,
    pub(crate) display_recipient: String,
    pub(crate) r#type: String,
    pub(crate) stream_id: Option<u32>,
    pub(crate) flags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopicLink {
    pub(crate) text: String,
    pub(crate) url: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Edit {
    pub(crate) user_id: u32,
    pub(crate) timestamp: u64,
    pub(crate) prev_content: String,
    pub(crate) prev_rendered_content: String,
    pub(crate) prev_rendered_content_version: u8,
    pub(crate) prev_topic: Option<String>,
    pub(crate) topic: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reaction {
    pub(crate) emoji_name: String,
    pub(crate) emoji_code: String,
    pub(crate) reaction_type: String,
    pub(crate) user_id: u32,
    pub(crate) user: ReactionUser,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReactionUser {
    pub(crate) email: String,
    pub(crate) id: u32,
    pub(crate) full_name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Submessage {
    pub(crate) id: u64,
    pub(crate) message_id: u64,
    pub(crate) sender_id: u32,
    pub(crate) msg_type: String,
    pub(crate) content: String,
}

/// Messages, and where they are from.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) messages: Vec<Message>,
    /// In a word or two, to stand beside the figures.
    pub(crate) origin: String,
}

/// The first `count` messages there are.
///
/// # Panics
///
/// If a corpus is there and can't be read: figures of other messages would be taken for its own.
pub(crate) fn load(count: usize) -> Corpus {
    let Some(path) = find() else {
        return Corpus {
            messages: generate(count),
            origin: "generated messages".into(),
        };
    };
    let complain = |error: &dyn std::fmt::Display| -> ! {
        panic!("the corpus {} can't be read: {error}", path.display())
    };
    let file = File::open(&path).unwrap_or_else(|error| complain(&error));
    let lines: Box<dyn Read> = if path.extension().is_some_and(|extension| extension == "zst") {
        Box::new(zstd::Decoder::new(file).unwrap_or_else(|error| complain(&error)))
    } else {
        Box::new(file)
    };
    let messages = BufReader::new(lines)
        .lines()
        .take(count)
        .map(|line| {
            let line = line.unwrap_or_else(|error| complain(&error));
            serde_json::from_str(&line).unwrap_or_else(|error| complain(&error))
        })
        .collect();
    Corpus {
        messages,
        origin: path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
    }
}

fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LARDER_CORPUS") {
        return (!path.is_empty()).then(|| path.into());
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["..", "../.."]
        .map(|up| repository.join(up).join("shared/data/messages.jsonl.zst"))
        .into_iter()
        .find(|path| path.exists())
}

/// So many messages, always the same ones.
pub(crate) fn generate(count: usize) -> Vec<Message> {
    let mut random = fastrand::Rng::with_seed(20_250_101);
    let vocabulary = vocabulary(&mut random);
    (0..count as u64)
        .map(|number| message(number, &vocabulary, &mut random))
        .collect()
}

/// Made-up words of natural lengths, the frequent ones short.
fn vocabulary(random: &mut fastrand::Rng) -> Vec<String> {
    const SYLLABLES: [&str; 24] = [
        "a", "be", "con", "de", "e", "for", "ge", "in", "ka", "li", "mo", "ne", "o", "per", "ra",
        "se", "sta", "ta", "ter", "the", "u", "ver", "wi", "yo",
    ];
    (1..=6_000_u32)
        .map(|rank| {
            let syllables = 1 + rank.ilog2().saturating_sub(1) as usize / 4 + random.usize(0..2);
            (0..syllables)
                .map(|_| SYLLABLES[random.usize(0..24)])
                .collect()
        })
        .collect()
}

/// A text of about this many bytes, whose words are as frequent as their rank says (Zipf).
fn text(length: usize, vocabulary: &[String], random: &mut fastrand::Rng) -> String {
    let mut text = String::new();
    while text.len() < length {
        let rank = (vocabulary.len() as f64).powf(random.f64()) as usize - 1;
        text.push_str(&vocabulary[rank.min(vocabulary.len() - 1)]);
        text.push_str(if random.u8(0..9) == 0 { ", " } else { " " });
    }
    text.truncate(text.trim_end_matches([' ', ',']).len());
    text
}

fn message(number: u64, vocabulary: &[String], random: &mut fastrand::Rng) -> Message {
    let sender = random.u32(0..40) * random.u32(0..35);
    let stream = random.u32(0..7);
    let realm = "lark";
    // Half of the texts are below 90 bytes, a tenth above 400, a hundredth above 1,500: log-normal, like natural ones.
    let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
    let length = (93.0 * (1.19 * normal).exp()).min(6_500.0) as usize;
    let content = text(length, vocabulary, random);
    let person = |id: u32| {
        let mut words = fastrand::Rng::with_seed(u64::from(id));
        let (first, last) = (words.usize(90..900), words.usize(900..6_000));
        format!("{} {}", vocabulary[first], vocabulary[last])
    };
    let mut hash = String::new();
    for _ in 0..5 {
        let _ = write!(
            hash,
            "{:08x}",
            fastrand::Rng::with_seed(u64::from(sender)).u32(..)
        );
    }
    let timestamp = 1_690_000_000 + number * 60 + random.u64(0..60);
    let edited = random.u8(0..100) < 8;
    let reactions = match random.u8(0..6) {
        0 => (0..random.u32(1..4))
            .map(|_| {
                let user = random.u32(0..1_400);
                Reaction {
                    emoji_name: "plus".into(),
                    emoji_code: "2795".into(),
                    reaction_type: "unicode_emoji".into(),
                    user_id: user,
                    user: ReactionUser {
                        email: format!("user{user}@{realm}.example.com"),
                        id: user,
                        full_name: person(user),
                    },
                }
            })
            .collect(),
        _ => Vec::new(),
    };
    Message {
        id: 180_000_000 + number * 9,
        sender_id: sender,
        recipient_type_id: 128 + stream,
        recipient_type: 2,
        recipient_id: 390 + stream,
        timestamp,
        client: "website".into(),
        subject: text(18, vocabulary, &mut fastrand::Rng::with_seed(number / 30)),
        topic_links: Vec::new(),
        sender_realm_id: 2,
        last_edit_timestamp: edited.then_some(timestamp + 90),
        edit_history: edited.then(|| {
            vec![Edit {
                user_id: sender,
                timestamp: timestamp + 90,
                prev_content: content.clone(),
                prev_rendered_content: format!("<p>{content}</p>"),
                prev_rendered_content_version: 1,
                prev_topic: None,
                topic: None,
            }]
        }),
        rendered_content: format!("<p>{content}</p>"),
        content,
        rendered_content_version: 1,
        is_me_message: false,
        reactions,
        submessages: Vec::new(),
        sender_full_name: person(sender),
        sender_email: format!("user{sender}@{realm}.example.com"),
        sender_realm_str: realm.into(),
        sender_is_mirror_dummy: false,
        sender_avatar_source: Some("U".into()),
        sender_avatar_version: Some(3),
        avatar_url: Some(format!("/user_avatars/2/{hash}.png?version=3")),
        display_recipient: format!("stream-{stream}"),
        r#type: "stream".into(),
        stream_id: Some(128 + stream),
        flags: vec!["read".into()],
    }
}
