//! What a request that is under way expects, and the answer it grows from the server's replies.
//!
//! Replies carry no address: the first unanswered exchange of a connection takes the next one. An exchange accepts only
//! what it can place. A batch is answered as a whole once its closing `MN` (or `END`) came exactly where it belongs, and
//! a small one by its opaque, so an answer is never handed to the wrong key; the entry's tag would catch it again.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use larder_core::{Error, ErrorKind, Instant, Lease, Lookup, Result, Token};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::protocol::{Flags, Reply, Violation};

/// Where an exchange's answer goes; the receiver may be gone.
pub(super) type Answer<T> = oneshot::Sender<Result<Vec<T>, Failure>>;

/// Why an exchange as a whole has no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The connection ended first.
    Gone(Error),
    /// The deadline came first. The request may still be executed.
    TimedOut,
}

/// One request, or batch of requests, that is under way.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) expects: Expects,
    /// When its caller stops waiting.
    pub(super) deadline: Instant,
    /// How long that was when it began.
    pub(super) patience: Duration,
    /// The room it takes in the connection's window, given back when it is dropped.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

/// What kind of replies are expected.
#[derive(Debug)]
pub(super) enum Expects {
    Looks(Looks),
    Classic(Box<Classic>),
    Sparse(Box<Sparse>),
    Writes(Writes),
    Noop(Option<Answer<()>>),
}

/// Whether an exchange has all its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

/// What accepting a reply needs to know, and counts.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// Who answers, for messages.
    pub(super) server: &'a str,
    /// The connection's number, the origin of every token.
    pub(super) generation: u64,
    /// Stores the server had no room for.
    pub(super) out_of_memory: &'a mut u64,
    /// Leases that were won for callers who have left.
    pub(super) orphans: &'a mut Vec<Orphan>,
}

/// A lease that nobody will fill or release: its placeholder would keep everybody waiting.
#[derive(Debug)]
pub(super) struct Orphan {
    pub(super) key: Vec<u8>,
    pub(super) cas: u64,
}

impl Exchange {
    /// Whether somebody still expects the answer, as far as the deadline tells.
    pub(super) fn is_waiting(&self) -> bool {
        match &self.expects {
            Expects::Looks(looks) => looks.answer.is_some(),
            Expects::Classic(classic) => classic.answer.is_some(),
            Expects::Sparse(sparse) => sparse.answer.is_some(),
            Expects::Writes(writes) => writes.answer.is_some(),
            Expects::Noop(answer) => answer.is_some(),
        }
    }

    /// Answers the caller with a failure. The exchange still takes its replies.
    pub(super) fn fail(&mut self, failure: Failure) {
        fn send<T>(answer: &mut Option<Answer<T>>, failure: Failure) {
            if let Some(answer) = answer.take() {
                // A caller who has left is not an error.
                let _ = answer.send(Err(failure));
            }
        }
        match &mut self.expects {
            Expects::Looks(looks) => send(&mut looks.answer, failure),
            Expects::Classic(classic) => send(&mut classic.answer, failure),
            Expects::Sparse(sparse) => send(&mut sparse.answer, failure),
            Expects::Writes(writes) => send(&mut writes.answer, failure),
            Expects::Noop(answer) => send(answer, failure),
        }
    }

    /// Takes the next reply; `key` is that of a classic value.
    #[inline]
    pub(super) fn accept(
        &mut self,
        reply: Reply,
        key: &[u8],
        context: &mut Context<'_>,
    ) -> Result<Progress, Violation> {
        match &mut self.expects {
            Expects::Looks(looks) => looks.accept(reply, context),
            Expects::Classic(classic) => classic.accept(reply, key, context),
            Expects::Sparse(sparse) => sparse.accept(reply, context),
            Expects::Writes(writes) => writes.accept(reply, context),
            Expects::Noop(answer) => match reply {
                Reply::Noop => {
                    if let Some(answer) = answer.take() {
                        let _ = answer.send(Ok(Vec::new()));
                    }
                    Ok(Progress::Done)
                }
                _ => Err(MISPLACED),
            },
        }
    }
}

const MISPLACED: Violation = Violation("a reply that belongs to another request");

/// The terms of the leases a call asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// What is sent, in seconds.
    pub(super) seconds: u32,
    /// The length that was asked for, in milliseconds: the second half of a lease's token, which tells a lease that ran
    /// out from one that was voided. Every reader of a data set asks for the same, so tokens stay comparable.
    pub(super) length: u64,
    /// Before the request was sent, and so before the source is asked.
    pub(super) won_at: SystemTime,
}

impl Terms {
    /// Leases of this length, won from now on.
    pub(super) fn new(length: Duration, now: SystemTime) -> Self {
        Self {
            seconds: u32::try_from(whole_seconds(length))
                .map_or(LONGEST_LEASE, |seconds| seconds.min(LONGEST_LEASE)),
            length: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            won_at: now,
        }
    }

    /// What marks a placeholder as put there now, for those who can't ask how long it has left: milliseconds of the wall
    /// clock, of which 32 bits tell apart what is within seven weeks. 0 is what others leave there.
    pub(super) fn mark(&self) -> u32 {
        let now = self.won_at.duration_since(SystemTime::UNIX_EPOCH);
        (now.map_or(0, |now| now.as_millis()) as u32).max(1)
    }

    /// How old a placeholder with this mark is; as old as any lease can be if nobody marked it.
    fn age(&self, mark: u32) -> Duration {
        match (mark, self.mark().wrapping_sub(mark)) {
            (0, _) => Duration::from_secs(u64::from(self.seconds)),
            // By a clock that is ahead of ours.
            (_, future) if future > u32::MAX / 2 => Duration::ZERO,
            (_, age) => Duration::from_millis(u64::from(age)),
        }
    }

    /// Whether a lease with this token, won then, has run out.
    pub(super) fn has_expired(lease: &Lease, now: SystemTime) -> bool {
        let length = Duration::from_millis(lease.token.token[1]);
        !length.is_zero()
            && now
                .duration_since(lease.won_at)
                .is_ok_and(|age| age >= length)
    }
}

/// Above 30 days the server reads seconds as a date.
const LONGEST_LEASE: u32 = 30 * 24 * 60 * 60;

/// Rounded up, plus one: the server drops part of the first second, and 0 would mean for ever.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_add(u64::from(duration.subsec_nanos() > 0))
        .saturating_add(1)
}

/// A pipeline of `mg`.
#[derive(Debug)]
pub(super) struct Looks {
    pub(super) count: usize,
    pub(super) answers: Vec<Result<Lookup>>,
    pub(super) terms: Option<Terms>,
    /// So many of the first keys asked for a lease, and are kept to give it back if the caller has left.
    pub(super) leased: Texts,
    /// What marks every request of it; without, a closing `mn` was sent.
    pub(super) opaque: Option<u32>,
    pub(super) answer: Option<Answer<Result<Lookup>>>,
}

impl Looks {
    #[inline]
    fn accept(&mut self, reply: Reply, context: &mut Context<'_>) -> Result<Progress, Violation> {
        let position = self.answers.len();
        if position == self.count {
            return match reply {
                Reply::Noop => Ok(self.finish(context)),
                _ => Err(MISPLACED),
            };
        }
        let answer = match reply {
            Reply::Value(flags, data) => {
                self.check(&flags)?;
                Ok(self.found(position, flags, data, context.generation))
            }
            Reply::Missing(flags) => {
                self.check(&flags)?;
                Ok(Lookup::Miss { lease: None })
            }
            Reply::ServerError(text) => Err(refusal(&text, context)?),
            _ => return Err(MISPLACED),
        };
        self.answers.push(answer);
        if self.answers.len() == self.count && self.opaque.is_some() {
            return Ok(self.finish(context));
        }
        Ok(Progress::More)
    }

    #[inline]
    fn check(&self, flags: &Flags) -> Result<(), Violation> {
        match flags.opaque == self.opaque {
            true => Ok(()),
            false => Err(MISPLACED),
        }
    }

    #[inline]
    fn found(&self, position: usize, flags: Flags, data: Bytes, generation: u64) -> Lookup {
        let token = |length| Token {
            token: [flags.cas, length],
            origin: generation,
        };
        // What somebody marked as stale isn't served: it is as good as deleted.
        if !data.is_empty() && !flags.stale {
            return Lookup::Hit {
                value: data,
                token: token(0),
            };
        }
        let length = self.terms.map_or(0, |terms| terms.length);
        if flags.won {
            let lease = self
                .terms
                .filter(|_| position < self.leased.len())
                .map(|terms| Lease::new(token(length), terms.won_at));
            return Lookup::Miss { lease };
        }
        // An empty value that never expires is no lease of ours; it is as old as any lease can be.
        let age = self.terms.map_or(0, |terms| {
            let total = i64::from(terms.seconds);
            match flags.ttl {
                Some(left) if left >= 0 => (total - left).max(0),
                _ => total,
            }
        });
        Lookup::Busy {
            age: Duration::from_secs(age.unsigned_abs()),
            token: token(length),
        }
    }

    fn finish(&mut self, context: &mut Context<'_>) -> Progress {
        let answers = std::mem::take(&mut self.answers);
        deliver(&mut self.answer, answers, &self.leased, context)
    }
}

/// Answers the caller, or notes the leases that were won for one who has left; the first of the keys are `leased`.
fn deliver(
    answer: &mut Option<Answer<Result<Lookup>>>,
    answers: Vec<Result<Lookup>>,
    leased: &Texts,
    context: &mut Context<'_>,
) -> Progress {
    let left = match answer.take() {
        Some(answer) => answer.send(Ok(answers)).err(),
        None => Some(Ok(answers)),
    };
    if let Some(Ok(answers)) = left {
        let leases = answers.iter().zip(leased.iter());
        context
            .orphans
            .extend(leases.filter_map(|(answer, key)| match answer {
                Ok(Lookup::Miss { lease: Some(lease) }) => Some(Orphan {
                    key: key.to_owned(),
                    cas: lease.token.token[0],
                }),
                _ => None,
            }));
    }
    Progress::Done
}

/// Keys in one piece of memory; one key of usual length takes none.
#[derive(Debug, Default)]
pub(super) struct Texts {
    text: SmallVec<[u8; 48]>,
    ends: SmallVec<[u32; 2]>,
}

impl Texts {
    /// Room for this many keys, none of which is larger than this.
    pub(super) fn with_capacity(count: usize, length: usize) -> Self {
        Self {
            text: SmallVec::with_capacity(count * length),
            ends: SmallVec::with_capacity(count),
        }
    }

    pub(super) fn push(&mut self, key: &[u8]) {
        self.text.extend_from_slice(key);
        // Batches are cut long before 4 GiB; a key that couldn't be found again is one that isn't given back.
        self.ends
            .push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, position: usize) -> Option<&[u8]> {
        let start = match position {
            0 => 0,
            _ => *self.ends.get(position - 1)? as usize,
        };
        self.text.get(start..*self.ends.get(position)? as usize)
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|position| self.get(position))
    }
}

/// Lines of classic `gets`, which answer only what is there, in order and by name.
#[derive(Debug)]
pub(super) struct Classic {
    pub(super) keys: Texts,
    /// How many keys each line that isn't answered yet has, the next one last.
    pub(super) lines: Vec<usize>,
    /// How many keys the lines up to the current one have.
    pub(super) line_end: usize,
    pub(super) answers: Vec<Result<Lookup>>,
    pub(super) length: u64,
    pub(super) answer: Option<Answer<Result<Lookup>>>,
}

impl Classic {
    /// Expects the answers to lines of these lengths.
    pub(super) fn new(
        keys: Texts,
        mut lines: Vec<usize>,
        length: u64,
        answer: Answer<Result<Lookup>>,
    ) -> Self {
        lines.reverse();
        let line_end = lines.pop().unwrap_or(0);
        Self {
            answers: Vec::with_capacity(keys.len()),
            keys,
            lines,
            line_end,
            length,
            answer: Some(answer),
        }
    }

    fn accept(
        &mut self,
        reply: Reply,
        key: &[u8],
        context: &mut Context<'_>,
    ) -> Result<Progress, Violation> {
        match reply {
            Reply::Classic(cas, data) => {
                while self.answers.len() < self.line_end
                    && self.keys.get(self.answers.len()) != Some(key)
                {
                    self.answers.push(Ok(Lookup::Miss { lease: None }));
                }
                if self.answers.len() == self.line_end {
                    return Err(MISPLACED);
                }
                let token = |length| Token {
                    token: [cas, length],
                    origin: context.generation,
                };
                self.answers.push(Ok(match data.is_empty() {
                    true => Lookup::Busy {
                        age: Duration::ZERO,
                        token: token(self.length),
                    },
                    false => Lookup::Hit {
                        value: data,
                        token: token(0),
                    },
                }));
                Ok(Progress::More)
            }
            Reply::End => {
                while self.answers.len() < self.line_end {
                    self.answers.push(Ok(Lookup::Miss { lease: None }));
                }
                if let Some(next) = self.lines.pop() {
                    self.line_end += next;
                    return Ok(Progress::More);
                }
                if let Some(answer) = self.answer.take() {
                    let _ = answer.send(Ok(std::mem::take(&mut self.answers)));
                }
                Ok(Progress::Done)
            }
            // An error ends the line in place of its `END`, and of what was left of it.
            Reply::ServerError(text) => {
                let error = refusal(&text, context)?;
                while self.answers.len() < self.line_end {
                    self.answers.push(Err(error.clone()));
                }
                self.accept(Reply::End, key, context)
            }
            _ => Err(MISPLACED),
        }
    }
}

/// Look-ups by the binary protocol, which answers only what is there. Where leases are asked for, each comes behind the
/// attempt to put a placeholder there, which is always answered.
#[derive(Debug)]
pub(super) struct Sparse {
    /// What silence means, until a reply says otherwise.
    answers: Vec<Result<Lookup>>,
    terms: Option<Terms>,
    /// The keys, if leases were asked for.
    leased: Texts,
    /// Tells this exchange from those before and after it.
    number: u32,
    answer: Option<Answer<Result<Lookup>>>,
}

impl Sparse {
    /// Expects answers for so many keys.
    pub(super) fn new(
        count: usize,
        terms: Option<Terms>,
        leased: Texts,
        number: u32,
        answer: Answer<Result<Lookup>>,
    ) -> Self {
        let mut answers = Vec::new();
        answers.resize_with(count, || Ok(Lookup::Miss { lease: None }));
        Self {
            answers,
            terms,
            leased,
            number,
            answer: Some(answer),
        }
    }

    /// The opaque of what is asked about the key at this place.
    pub(super) fn opaque(number: u32, place: usize) -> u32 {
        let place = u16::try_from(place).expect("an exchange has a few hundred keys");
        number << 16 | u32::from(place)
    }

    fn accept(&mut self, reply: Reply, context: &mut Context<'_>) -> Result<Progress, Violation> {
        let opaque = match &reply {
            Reply::Noop => {
                let answers = std::mem::take(&mut self.answers);
                return Ok(deliver(&mut self.answer, answers, &self.leased, context));
            }
            Reply::Value(flags, _) | Reply::Done(flags) | Reply::Exists(flags) => flags.opaque,
            Reply::Refused(opaque, _) => Some(*opaque),
            _ => None,
        };
        let opaque = opaque.ok_or(MISPLACED)?;
        let place = opaque & 0xffff;
        let answer = match self.answers.get_mut(place as usize) {
            Some(answer) if opaque >> 16 == self.number => answer,
            _ => return Err(MISPLACED),
        };
        let token = |cas, length| Token {
            token: [cas, length],
            origin: context.generation,
        };
        let length = self.terms.map_or(0, |terms| terms.length);
        match reply {
            // Our own placeholder, just put there, or what came in its place: the lease decides.
            Reply::Value(..) if matches!(answer, Ok(Lookup::Miss { lease: Some(_) })) => {}
            Reply::Value(flags, data) if data.is_empty() => {
                *answer = Ok(Lookup::Busy {
                    age: self
                        .terms
                        .map_or(Duration::ZERO, |terms| terms.age(flags.mark)),
                    token: token(flags.cas, length),
                });
            }
            Reply::Value(flags, data) => {
                *answer = Ok(Lookup::Hit {
                    value: data,
                    token: token(flags.cas, 0),
                });
            }
            Reply::Done(flags) => {
                let terms = self.terms.ok_or(MISPLACED)?;
                let lease = Lease::new(token(flags.cas, length), terms.won_at);
                *answer = Ok(Lookup::Miss { lease: Some(lease) });
            }
            Reply::Refused(_, text) => *answer = Err(refusal(text.as_bytes(), context)?),
            // Something is there by now; what, the look-up behind says.
            _ => {}
        }
        Ok(Progress::More)
    }
}

/// What became of one write.
#[derive(Clone, Debug)]
pub(super) enum Written {
    /// It was done.
    Done,
    /// The key is in another state than the CAS names.
    Exists,
    /// There was nothing to change.
    NotFound,
    /// The server didn't store it.
    NotStored,
    /// It failed.
    Failed(Error),
}

/// A batch of `ms` or `md`: one that is answered, or several quiet ones and a closing `mn`.
#[derive(Debug)]
pub(super) struct Writes {
    /// What silence means, until a reply says otherwise.
    outcomes: Vec<Written>,
    /// What marks the one that is answered; quiet ones are marked with their position.
    single: Option<u32>,
    /// The last error that came without an opaque.
    refusal: Option<Error>,
    answer: Option<Answer<Written>>,
}

impl Writes {
    /// One write that is answered under this opaque.
    pub(super) fn single(opaque: u32, answer: Option<Answer<Written>>) -> Self {
        Self {
            single: Some(opaque),
            ..Self::quiet(1, answer)
        }
    }

    /// So many quiet writes and a closing `mn`.
    pub(super) fn quiet(count: usize, answer: Option<Answer<Written>>) -> Self {
        Self {
            outcomes: vec![Written::Done; count],
            single: None,
            refusal: None,
            answer,
        }
    }

    fn accept(&mut self, reply: Reply, context: &mut Context<'_>) -> Result<Progress, Violation> {
        let (flags, outcome) = match reply {
            Reply::Done(flags) => (flags, Written::Done),
            Reply::Exists(flags) => (flags, Written::Exists),
            Reply::NotFound(flags) => (flags, Written::NotFound),
            Reply::NotStored(flags) => (flags, Written::NotStored),
            // The server has swallowed the value and goes on behind it.
            Reply::ServerError(text) => {
                let error = refusal(&text, context)?;
                if self.single.is_some() {
                    self.outcomes[0] = Written::Failed(error);
                    return Ok(self.finish());
                }
                self.refusal = Some(error);
                return Ok(Progress::More);
            }
            Reply::Refused(opaque, text) => {
                let error = refusal(text.as_bytes(), context)?;
                let flags = Flags {
                    opaque: Some(opaque),
                    ..Flags::default()
                };
                (flags, Written::Failed(error))
            }
            Reply::Noop if self.single.is_none() => {
                self.place_refusals();
                return Ok(self.finish());
            }
            _ => return Err(MISPLACED),
        };
        let opaque = flags.opaque.ok_or(MISPLACED)?;
        if let Some(single) = self.single {
            if opaque != single {
                return Err(MISPLACED);
            }
            self.outcomes[0] = outcome;
            return Ok(self.finish());
        }
        *self.outcomes.get_mut(opaque as usize).ok_or(MISPLACED)? = outcome;
        Ok(Progress::More)
    }

    /// Refusals name no key. Where only some of the silent writes were refused, none of them may pass as stored.
    fn place_refusals(&mut self) {
        let Some(error) = self.refusal.take() else {
            return;
        };
        for outcome in &mut self.outcomes {
            if matches!(outcome, Written::Done) {
                *outcome = Written::Failed(error.clone());
            }
        }
    }

    fn finish(&mut self) -> Progress {
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(Ok(std::mem::take(&mut self.outcomes)));
        }
        Progress::Done
    }
}

/// The error behind a `SERVER_ERROR` that keeps its place; any other may have left bytes behind that are no reply.
fn refusal(text: &[u8], context: &mut Context<'_>) -> Result<Error, Violation> {
    let server = context.server;
    if text.starts_with(b"out of memory") {
        *context.out_of_memory += 1;
        return Ok(Error::new(
            ErrorKind::Unavailable,
            format!(
                "memcached {server}: out of memory for this value; the server is too small (-m), or one of its size \
                 classes is starved (-o slab_reassign,slab_automove)"
            ),
        ));
    }
    if text.starts_with(b"object too large for cache") {
        return Ok(Error::new(
            ErrorKind::TooLarge,
            format!(
                "memcached {server}: the value is larger than the server takes; raise its limit with -I"
            ),
        ));
    }
    Err(Violation("an error of the server that can't be placed"))
}
