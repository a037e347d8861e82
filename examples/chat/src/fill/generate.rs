//! Messages out of nothing: equal plans give equal histories.
//!
//! They are meant to compress and to page like real ones: words follow Zipf's law, a few people write most of it, a
//! dozen conversations are under way at any time, some messages have code, mentions, reactions and edits, and lengths
//! are spread as in a real archive (half of them below 100 characters, one in a hundred above 1,500).

use fastrand::Rng;

use super::words::{self, Vocabulary, Zipf};
use crate::data::{Edit, Email, Message, MessageId, Reaction, Stream, StreamId, User, UserId};
use crate::options::Generated;
use crate::render::render;

/// When the first message was sent: generated histories don't depend on today's date.
const BEGINNING: i64 = 1_735_689_600;

/// Conversations under way at any time.
const CONVERSATIONS: usize = 12;

/// Out of a hundred messages, how many were edited, have reactions, mention somebody, hold code.
const EDITED: u32 = 8;
const REACTED: u32 = 17;
const MENTIONING: u32 = 9;
const WITH_CODE: u32 = 4;

/// The messages of a plan, oldest first.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    vocabulary: Vocabulary,
    /// Who writes, by how much.
    authors: Zipf,
    /// Where it is written, by how much.
    places: Zipf,
    users: Vec<User>,
    streams: Vec<Stream>,
    conversations: Vec<Conversation>,
    /// The conversation of the last message.
    speaking: usize,
    clock: i64,
    next_id: i64,
    left: u32,
}

/// A few people and a topic.
#[derive(Debug)]
struct Conversation {
    stream: StreamId,
    subject: String,
    people: Vec<usize>,
    left: u32,
}

impl Generator {
    /// A generator of this plan.
    pub fn new(plan: &Generated) -> Self {
        let mut rng = Rng::with_seed(plan.seed);
        let vocabulary = Vocabulary::new();
        let users = (1..=plan.users)
            .map(|number| user(&mut rng, number))
            .collect();
        let streams = (1..=plan.streams)
            .map(|number| stream(&mut rng, &vocabulary, number))
            .collect();
        let mut generator = Self {
            rng,
            vocabulary,
            authors: Zipf::new(plan.users as usize, 10.0),
            places: Zipf::new(plan.streams as usize, 2.0),
            users,
            streams,
            conversations: Vec::with_capacity(CONVERSATIONS),
            speaking: 0,
            clock: BEGINNING,
            next_id: 1,
            left: plan.messages,
        };
        for _ in 0..CONVERSATIONS {
            let conversation = generator.conversation();
            generator.conversations.push(conversation);
        }
        generator
    }

    /// The people, by id from 1.
    pub fn users(&self) -> Vec<User> {
        self.users.clone()
    }

    /// The streams, by id from 1.
    pub fn streams(&self) -> Vec<Stream> {
        self.streams.clone()
    }

    /// Who reads what: popular streams have many readers.
    pub fn subscriptions(&mut self) -> Vec<(StreamId, UserId)> {
        let mut subscriptions = Vec::new();
        for (rank, stream) in self.streams.iter().enumerate() {
            let share = 0.04 + 0.9 / (1.0 + rank as f64 / 4.0);
            for user in &self.users {
                if self.rng.f64() < share {
                    subscriptions.push((stream.id, user.id));
                }
            }
        }
        subscriptions
    }

    fn conversation(&mut self) -> Conversation {
        let stream = self.streams[self.places.pick(&mut self.rng)].id;
        let words = self.rng.usize(2..=5);
        let subject = self.vocabulary.phrase(words, &mut self.rng);
        let people = (0..self.rng.usize(2..=6))
            .map(|_| self.authors.pick(&mut self.rng))
            .collect();
        Conversation {
            stream,
            subject,
            people,
            left: self.rng.u32(3..=60),
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    /// What somebody writes to these people.
    fn text(&mut self, to: &[usize]) -> String {
        let mut text = String::new();
        if self.chance(MENTIONING) {
            let name = &self.users[to[self.rng.usize(..to.len())]].full_name;
            text = format!("@**{name}** ");
        }
        // The logarithm of lengths is about normal: the sum of a few uniform numbers is close enough.
        let normal = (0..6).map(|_| self.rng.f64()).sum::<f64>() - 3.0;
        let words = (15.0 * (1.45 * normal).exp()).clamp(1.0, 900.0) as usize;
        self.vocabulary.prose(words, &mut self.rng, &mut text);
        if self.chance(WITH_CODE) {
            text.push_str("\n```rust\n");
            for _ in 0..self.rng.usize(2..=12) {
                self.vocabulary.code_line(&mut self.rng, &mut text);
            }
            text.push_str("```");
        }
        text
    }

    fn reactions(&mut self, message_id: MessageId) -> Vec<Reaction> {
        if !self.chance(REACTED) {
            return Vec::new();
        }
        (0..self.rng.usize(1..=4))
            .map(|_| {
                let (name, code) = words::EMOJI[self.rng.usize(..words::EMOJI.len())];
                Reaction {
                    message_id,
                    emoji_name: name.to_owned(),
                    emoji_code: code.to_owned(),
                    reaction_type: "unicode_emoji".to_owned(),
                    user_id: self.users[self.authors.pick(&mut self.rng)].id,
                    version: 1,
                }
            })
            .collect()
    }
}

impl Iterator for Generator {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        self.left = self.left.checked_sub(1)?;
        // Who is answered answers, so that a conversation goes on for a few messages before another takes over.
        if self.chance(30) {
            self.speaking = self.rng.usize(..CONVERSATIONS);
        }
        let slot = self.speaking;
        let people = self.conversations[slot].people.clone();
        let sender = self.users[people[self.rng.usize(..people.len())]].id;
        let content = self.text(&people);
        // On average a message a minute, rarely in equal steps.
        self.clock += (-60.0 * (1.0 - self.rng.f64()).ln()) as i64;
        let edit = self.chance(EDITED).then(|| {
            let before = self.text(&people);
            Edit {
                timestamp: self.clock + self.rng.i64(5..600),
                user_id: Some(sender),
                prev_rendered_content: Some(render(&before)),
                prev_content: Some(before),
                prev_topic: None,
            }
        });
        let id = MessageId(self.next_id);
        let reactions = self.reactions(id);
        let client = words::CLIENTS[self.rng.usize(..words::CLIENTS.len())];
        let conversation = &mut self.conversations[slot];
        let message = Message {
            id,
            stream_id: conversation.stream,
            sender_id: sender,
            subject: conversation.subject.clone(),
            rendered_content: render(&content),
            content,
            client: client.to_owned(),
            timestamp: self.clock,
            last_edit_timestamp: edit.as_ref().map(|edit| edit.timestamp),
            edit_history: edit.into_iter().collect(),
            reactions,
            version: 1,
        };
        self.next_id += 1;
        conversation.left -= 1;
        if conversation.left == 0 {
            self.conversations[slot] = self.conversation();
        }
        Some(message)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Generator {}

fn user(rng: &mut Rng, number: u32) -> User {
    let first = words::FIRST_NAMES[rng.usize(..words::FIRST_NAMES.len())];
    let last = words::LAST_NAMES[rng.usize(..words::LAST_NAMES.len())];
    let email = format!("{first}.{last}.{number}@example.com");
    User {
        id: UserId(i64::from(number)),
        full_name: format!("{first} {last}"),
        email: Email::new(&email).expect("names are plain letters"),
        is_active: rng.u32(0..50) > 0,
        version: 1,
    }
}

fn stream(rng: &mut Rng, vocabulary: &Vocabulary, number: u32) -> Stream {
    let names = words::STREAMS;
    let index = number as usize - 1;
    let name = match names.get(index) {
        Some(name) => (*name).to_owned(),
        None => format!("{}-{}", names[index % names.len()], index / names.len() + 1),
    };
    let words = rng.usize(3..=8);
    Stream {
        id: StreamId(i64::from(number)),
        name,
        description: vocabulary.phrase(words, rng),
        version: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::Generator;
    use crate::data::Message;
    use crate::options::Generated;

    fn messages(messages: u32, seed: u64) -> Vec<Message> {
        let plan = Generated {
            messages,
            seed,
            ..Generated::default()
        };
        Generator::new(&plan).collect()
    }

    #[test]
    fn equal_seeds_give_equal_histories() {
        assert_eq!(messages(300, 7), messages(300, 7));
        assert_ne!(messages(300, 7), messages(300, 8));
    }

    #[test]
    fn longer_plans_begin_alike() {
        assert_eq!(messages(300, 7)[..], messages(400, 7)[..300]);
    }

    #[test]
    fn words_follow_zipf() {
        let mut counts = std::collections::HashMap::<String, u32>::new();
        for message in messages(3_000, 1) {
            for word in message.content.split(|c: char| !c.is_alphanumeric()) {
                *counts.entry(word.to_lowercase()).or_default() += 1;
            }
        }
        counts.remove("");
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        assert!(counts.len() > 3_000, "{} different words", counts.len());
        // The 10th most frequent word of English prose is 5 to 15 times as frequent as the 100th.
        let ratio = f64::from(counts[9]) / f64::from(counts[99]);
        assert!((4.0..20.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn lengths_are_spread_as_in_an_archive() {
        let mut lengths: Vec<usize> = messages(5_000, 1).iter().map(|m| m.content.len()).collect();
        lengths.sort_unstable();
        let percentile = |percent: usize| lengths[lengths.len() * percent / 100];
        assert!((60..140).contains(&percentile(50)), "{}", percentile(50));
        assert!((250..900).contains(&percentile(90)), "{}", percentile(90));
        assert!((800..3_000).contains(&percentile(99)), "{}", percentile(99));
    }
}
