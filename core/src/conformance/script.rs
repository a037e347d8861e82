//! Random commands, each answered as a model of the contract answers it.
//!
//! The model is a table of key states, each with a number that is never used again: a token is right if it stands for
//! the number it was seen with, and for no other.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::scene::{LONG, Scene, keys_of, lease_from};
use crate::{
    Backend, BackendExt as _, ErrorKind, Fill, FillOutcome, GetOptions, Keys, Lookup, Lost, Result,
    Set, Token, WriteOptions,
};

/// Few keys, so that commands meet.
const KEYS: usize = 6;

const STEPS: usize = 3_000;

/// How many tokens a reader remembers, most of them long void.
const HELD: usize = 40;

/// What the contract says is there.
#[derive(Clone, Debug)]
enum State {
    Absent,
    /// A lease stands.
    Leased(u64),
    Value(u64, Bytes),
}

impl State {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Leased(number) | Self::Value(number, _) => Some(*number),
        }
    }
}

/// A token that somebody was given, and the state it stood for.
#[derive(Clone, Copy, Debug)]
struct Held {
    key: usize,
    number: u64,
    token: Token,
    /// Which handle saw it: a token belongs to the connection it came by.
    handle: usize,
}

struct Script<'a> {
    scene: &'a Scene,
    handles: Vec<Arc<dyn Backend>>,
    random: fastrand::Rng,
    keys: Vec<String>,
    states: Vec<State>,
    last_number: u64,
    held: Vec<Held>,
    /// Tokens by what they stood for, as seen through one origin by those who asked for leases or didn't.
    tokens: HashMap<(u64, u64, bool), Token>,
    /// The reverse.
    numbers: HashMap<Token, u64>,
    /// The last commands and answers, to be shown with a failure.
    history: VecDeque<String>,
}

/// Whatever commands come in whatever order, the answers and the store are as the contract says.
pub(super) async fn random_commands_agree_with_the_model(scene: &Scene) {
    let mut script = Script {
        scene,
        handles: vec![scene.backend().await, scene.backend().await],
        random: scene.random(),
        keys: (0..KEYS).map(|number| scene.key(number)).collect(),
        states: vec![State::Absent; KEYS],
        last_number: 0,
        held: Vec::new(),
        tokens: HashMap::new(),
        numbers: HashMap::new(),
        history: VecDeque::new(),
    };
    for step in 0..STEPS {
        if let Err(wrong) = script.step().await {
            panic!(
                "at step {step}: {wrong}\nthe model's keys: {:?}\nthe last commands:\n  {}",
                script.states,
                Vec::from(script.history).join("\n  ")
            );
        }
    }
}

/// What an answer should have been, and was.
type Check = std::result::Result<(), String>;

impl Script<'_> {
    async fn step(&mut self) -> Check {
        let handle = self.random.usize(..self.handles.len());
        match self.random.u8(..20) {
            0..=7 => self.look_up(handle).await,
            8..=13 => self.fill(handle).await,
            14..=15 => self.release(handle).await,
            16..=17 => self.delete(handle).await,
            18 => self.set(handle).await,
            _ => self.peek().await,
        }
    }

    /// Some keys, which may repeat.
    fn picks(&mut self) -> (Vec<usize>, Keys) {
        let count = self.random.usize(1..8);
        let picks: Vec<_> = (0..count).map(|_| self.random.usize(..KEYS)).collect();
        let keys = keys_of(picks.iter().map(|&pick| &self.keys[pick]));
        (picks, keys)
    }

    /// Some remembered tokens of different keys; most are forgotten by it.
    fn held_of(&mut self, handle: usize) -> (Vec<Held>, Keys) {
        let mut seen = HashSet::new();
        let mut picked = Vec::new();
        self.random.shuffle(&mut self.held);
        let (count, forget) = (self.random.usize(1..5), self.random.u8(..3) > 0);
        self.held.retain(|held| {
            let usable = held.handle == handle && picked.len() < count && seen.insert(held.key);
            if usable {
                picked.push(*held);
            }
            !(usable && forget)
        });
        let keys = keys_of(picked.iter().map(|held| &self.keys[held.key]));
        (picked, keys)
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn next_value(&mut self, key: usize) -> Bytes {
        let text = format!("{}#{}", self.keys[key], self.last_number + 1);
        Bytes::from(text.repeat(self.random.usize(1..4)))
    }

    fn log(&mut self, command: String) {
        if self.history.len() == 24 {
            self.history.pop_front();
        }
        self.history.push_back(command);
    }

    /// Checks that a token stands for this state and no other, and remembers it.
    fn saw(&mut self, handle: usize, key: usize, number: u64, token: Token, asked: bool) -> Check {
        let known = *self.numbers.entry(token).or_insert(number);
        if known != number {
            return Err(format!(
                "{token:?} stands for state {number}, and for {known} before"
            ));
        }
        let known = *self
            .tokens
            .entry((token.origin, number, asked))
            .or_insert(token);
        if known != token {
            return Err(format!(
                "state {number} has token {token:?}, and {known:?} before"
            ));
        }
        if self.held.len() == HELD {
            self.held.swap_remove(self.random.usize(..HELD));
        }
        self.held.push(Held {
            key,
            number,
            token,
            handle,
        });
        Ok(())
    }

    async fn look_up(&mut self, handle: usize) -> Check {
        let (picks, keys) = self.picks();
        let options = match self.random.u8(..4) {
            0 => GetOptions::look(),
            1 => GetOptions::lease(LONG).lease_at_most(self.random.usize(..4)),
            _ => GetOptions::lease(LONG),
        };
        let answers = self.handles[handle].get_many(&keys, &options).await;
        self.log(format!(
            "get by {handle} of {picks:?} with leases for {}: {answers:?}",
            if options.lease.is_some() {
                options.lease_at_most
            } else {
                0
            }
        ));
        expect_count(&answers, picks.len())?;
        let asked = options.lease.is_some();
        for (position, (key, answer)) in picks.into_iter().zip(answers).enumerate() {
            let answer = answer.map_err(|error| format!("{error:?}"))?;
            let wants_lease = options.lease_of(position).is_some();
            match (&self.states[key], answer) {
                (
                    State::Value(number, value),
                    Lookup::Hit {
                        value: found,
                        token,
                    },
                ) if *value == found => {
                    let number = *number;
                    self.saw(handle, key, number, token, asked)?;
                }
                (State::Leased(number), Lookup::Busy { token, .. }) => {
                    let number = *number;
                    self.saw(handle, key, number, token, asked)?;
                }
                (State::Absent, Lookup::Miss { lease: None }) if !wants_lease => {}
                (State::Absent, Lookup::Miss { lease: Some(lease) }) if wants_lease => {
                    let number = self.next_number();
                    self.states[key] = State::Leased(number);
                    self.saw(handle, key, number, lease.token, asked)?;
                }
                (state, answer) => {
                    return Err(format!("key {key} is {state:?}, and the answer {answer:?}"));
                }
            }
        }
        Ok(())
    }

    async fn fill(&mut self, handle: usize) -> Check {
        let (held, keys) = self.held_of(handle);
        let values: Vec<_> = held
            .iter()
            .map(|held| match self.random.u8(..30) {
                0 => Bytes::new(),
                _ => self.next_value(held.key),
            })
            .collect();
        let fills = held
            .iter()
            .zip(&values)
            .map(|(held, value)| Fill::new(lease_from(self.scene, held.token), value.clone()))
            .collect();
        let answers = self.handles[handle]
            .fill_many(&keys, fills, &WriteOptions::default())
            .await;
        self.log(format!("fill by {handle} of {held:?}: {answers:?}"));
        expect_count(&answers, held.len())?;
        for ((held, value), answer) in held.iter().zip(values).zip(answers) {
            let stands = self.states[held.key].number() == Some(held.number);
            match answer {
                Err(error) if value.is_empty() && error.kind() == ErrorKind::Config => {
                    if stands {
                        self.states[held.key] = State::Absent;
                    }
                }
                Ok(FillOutcome::Stored) if stands && !value.is_empty() => {
                    let number = self.next_number();
                    self.states[held.key] = State::Value(number, value);
                }
                Ok(FillOutcome::Lost(Lost::Voided)) if !stands && !value.is_empty() => {}
                answer => {
                    return Err(format!(
                        "the lease {held:?} of {} bytes stands: {stands}, and the fill is {answer:?}",
                        value.len()
                    ));
                }
            }
        }
        Ok(())
    }

    async fn release(&mut self, handle: usize) -> Check {
        let (held, keys) = self.held_of(handle);
        let leases = held
            .iter()
            .map(|held| lease_from(self.scene, held.token))
            .collect();
        let answers = self.handles[handle]
            .release_many(&keys, leases, &WriteOptions::default())
            .await;
        self.log(format!("release by {handle} of {held:?}: {answers:?}"));
        expect_success(&answers, held.len())?;
        for held in held {
            if self.states[held.key].number() == Some(held.number) {
                self.states[held.key] = State::Absent;
            }
        }
        Ok(())
    }

    async fn delete(&mut self, handle: usize) -> Check {
        let (picks, keys) = self.picks();
        let answers = self.handles[handle]
            .delete_many(&keys, &WriteOptions::default())
            .await;
        self.log(format!("delete by {handle} of {picks:?}: {answers:?}"));
        expect_success(&answers, picks.len())?;
        for key in picks {
            self.states[key] = State::Absent;
        }
        Ok(())
    }

    async fn set(&mut self, handle: usize) -> Check {
        let (mut picks, _) = self.picks();
        picks.sort_unstable();
        picks.dedup();
        let keys = keys_of(picks.iter().map(|&pick| &self.keys[pick]));
        let values: Vec<_> = picks.iter().map(|&key| self.next_value(key)).collect();
        let sets = values.iter().cloned().map(Set::new).collect();
        let answers = self.handles[handle]
            .set_immutable_many(&keys, sets, &WriteOptions::default())
            .await;
        self.log(format!("set by {handle} of {picks:?}: {answers:?}"));
        expect_success(&answers, picks.len())?;
        for (key, value) in picks.into_iter().zip(values) {
            let number = self.next_number();
            self.states[key] = State::Value(number, value);
        }
        Ok(())
    }

    /// Asks the store itself, if that can be done.
    async fn peek(&mut self) -> Check {
        if !self.scene.can().peeks {
            return Ok(());
        }
        let key = self.random.usize(..KEYS);
        let peeked = self.scene.peek(&self.keys[key]).await;
        self.log(format!("peek at {key}: {peeked:?}"));
        let expected = match &self.states[key] {
            State::Absent => None,
            State::Leased(_) => Some(Bytes::new()),
            State::Value(_, value) => Some(value.clone()),
        };
        let found = peeked.map(|peeked| peeked.value);
        if found == expected {
            Ok(())
        } else {
            Err(format!(
                "the store has {found:?} for key {key}, and should have {expected:?}"
            ))
        }
    }
}

fn expect_count<T>(answers: &[Result<T>], expected: usize) -> Check {
    if answers.len() == expected {
        Ok(())
    } else {
        Err(format!("{} answers to {expected} inputs", answers.len()))
    }
}

fn expect_success(answers: &[Result<()>], expected: usize) -> Check {
    expect_count(answers, expected)?;
    match answers.iter().find_map(|answer| answer.as_ref().err()) {
        Some(error) => Err(format!("{error:?}")),
        None => Ok(()),
    }
}
