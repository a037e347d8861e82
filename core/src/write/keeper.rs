//! The tasks that keep promises: one renews the registration, one relays the outbox, one counts it, one settles what was
//! delivered; without a database, one retries flushes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::deliver::deliver;
use super::stale::Stale;
use super::store::answered;
use super::undelivered::Hold;
use super::writes::{Waiting, pause};
use super::{Outbox, PutOff, Row, RowId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::contract::{Error, ErrorKind, Result};
use crate::read::{Shared, Source};
use crate::rt::unwinding;
use crate::{Instant, Mechanism, Rt};

/// How often retries are looked at where nothing else remembers them.
const TICK: Duration = Duration::from_millis(100);

/// How often delivered rows are deleted.
const DELETE: Duration = Duration::from_millis(300);

/// How often the register is read: the copy stays younger than [`FRESH`](crate::generation::FRESH).
const READ: Duration = Duration::from_millis(1_200);

/// How often a registration is renewed.
const RENEW: Duration = Duration::from_secs(10);

/// How often the rows of the outbox are counted.
const COUNT: Duration = Duration::from_secs(10);

/// How often the outbox is looked at, by any process.
const POLL: Duration = Duration::from_secs(1);

/// How long a claimed row is left to whoever claimed it.
const HOLD: Duration = Duration::from_secs(5);

/// Rows that are relayed together.
const ROWS: usize = 500;

/// Rows that are looked at, or asked for, at once.
const MANY_ROWS: usize = 4 * ROWS;

/// How often rows that nobody needs any more are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// Starts what keeps the promises of this cache, once the outbox was looked at: what others have left there, a former
/// run of this process among them, isn't read until somebody has delivered it.
pub(crate) async fn start<S: Source>(shared: &Arc<Shared<S>>) -> Result<()> {
    let mut foreign = Foreign::new();
    if let Some(outbox) = &shared.writes.outbox {
        relay(shared, &**outbox).await?;
        let knows_all = hold_rows(shared, &**outbox, &mut foreign).await?;
        if !knows_all {
            let servers = shared.backend.stats().servers.len();
            (0..servers).for_each(|server| {
                shared.writes.undelivered.hold_server(server);
            });
        }
    }
    // Tracked, so that closing waits for the turn that is under way: what it tries again isn't lost.
    let keep = |task: Boxed| drop(shared.rt.spawn_apart(shared.tasks.track_future(task)));
    let (weak, pause) = (Arc::downgrade(shared), Pause::of(shared));
    match shared.writes.outbox {
        // Each in a task of its own: a delivery may take long, and a registration must be renewed meanwhile.
        Some(_) => {
            keep(Box::pin(keep_registered(Weak::clone(&weak), pause.clone())));
            keep(Box::pin(keep_relaying(Weak::clone(&weak), pause.clone())));
            keep(Box::pin(keep_counting(Weak::clone(&weak), pause.clone())));
            keep(Box::pin(keep_settling(weak, foreign, pause)));
        }
        None => {
            let added = Arc::clone(&shared.writes.added);
            keep(Box::pin(keep_retrying(weak, added, pause)));
        }
    }
    Ok(())
}

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits between turns, and ends when the cache is closing.
#[derive(Clone)]
struct Pause {
    rt: Rt,
    closing: CancellationToken,
}

impl Pause {
    fn of<S: Source>(shared: &Shared<S>) -> Self {
        Self {
            rt: shared.rt,
            closing: shared.closing.clone(),
        }
    }

    /// `None` if there is no next turn.
    async fn until<F: Future<Output = ()>>(&self, next: F) -> Option<()> {
        self.closing.run_until_cancelled(next).await
    }
}

/// Retries flushes whenever some wait, until the cache is gone.
async fn keep_retrying<S: Source>(shared: Weak<Shared<S>>, added: Arc<Notify>, pause: Pause) {
    while let Some(()) = pause.until(added.notified()).await {
        loop {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let now = pause.rt.now();
            retry(&shared, |waiting| waiting.next <= now).await;
            let next = match (shared.writes.waiting(), shared.writes.remembers_all(now)) {
                (0, true) => break,
                (0, false) => SWEEP,
                _ => TICK,
            };
            drop(shared);
            let woken = async {
                tokio::select! {
                    () = pause.rt.sleep(next) => {}
                    () = added.notified(), if next > TICK => {}
                }
            };
            if pause.until(woken).await.is_none() {
                return;
            }
        }
    }
}

/// Delivers what can be, deletes what was, and ends the registration: what is done last, when a cache is closed.
pub(crate) async fn finish<S: Source>(shared: &Arc<Shared<S>>) {
    // Those with rows in the outbox are left to whoever lives on.
    retry(shared, |waiting| waiting.rows.is_empty()).await;
    if let Some(outbox) = &shared.writes.outbox {
        let _ = answered(shared.rt, outbox.done(&shared.writes.take_done())).await;
    }
    shared.writes.give_up();
    shared.generations.leave().await;
}

/// Keys that others have to flush, by the row of the outbox that says so.
type Foreign = HashMap<RowId, Hold>;

/// Holds what waits in the outbox; `false` if there is more than is looked at.
async fn hold_rows<S: Source>(
    shared: &Arc<Shared<S>>,
    outbox: &dyn Outbox<S::Conn>,
    foreign: &mut Foreign,
) -> Result<bool> {
    if shared.without(Mechanism::AskAfterOutage) {
        return Ok(true);
    }
    let rows = answered(shared.rt, outbox.rows(MANY_ROWS)).await?;
    let knows_all = rows.len() < MANY_ROWS;
    for row in rows {
        if let Ok(stale) = Stale::of_row(&row.text) {
            let hold = || shared.writes.undelivered.hold(&stale);
            foreign.entry(row.id).or_insert_with(hold);
        }
    }
    Ok(knows_all)
}

/// Renews the registration and reads the register, until the cache is gone.
async fn keep_registered<S: Source>(shared: Weak<Shared<S>>, pause: Pause) {
    let mut renewing = Timer::new(pause.rt, RENEW);
    while let Some(()) = pause.until(pause.rt.sleep(jittered(READ))).await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let renew = renewing.is_due(pause.rt);
        let kept = watched(shared.generations.keep(renew)).await;
        report(&shared, "the register of generations", kept);
    }
}

/// Delivers what waits in the outbox for anybody, until the cache is gone.
async fn keep_relaying<S: Source>(shared: Weak<Shared<S>>, pause: Pause) {
    let mut sweeping = Timer::new(pause.rt, SWEEP);
    let mut polls = 1;
    while let Some(()) = pause.until(pause.rt.sleep(jittered(POLL * polls))).await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let Some(outbox) = &shared.writes.outbox else {
            return;
        };
        let relayed = watched(relay(&shared, &**outbox)).await;
        let swept = match sweeping.is_due(pause.rt) {
            true => watched(sweep(&shared, &**outbox)).await,
            false => Ok(()),
        };
        // What couldn't be delivered from here is left to others, who come later than whoever has just looked.
        polls = match relayed {
            Ok(false) => 3,
            _ => 1,
        };
        report(&shared, "rows that are due", relayed.and(swept));
    }
}

/// Counts what waits in the outbox, until the cache is gone: a table that has grown takes long, and nothing else waits.
async fn keep_counting<S: Source>(shared: Weak<Shared<S>>, pause: Pause) {
    let mut wait = COUNT.mul_f64(fastrand::f64());
    while let Some(()) = pause.until(pause.rt.sleep(wait)).await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        wait = jittered(COUNT);
        if let Some(outbox) = &shared.writes.outbox {
            let backlog = answered(shared.rt, outbox.backlog()).await;
            let backlog = report(&shared, "the number of rows that wait", backlog);
            backlog.inspect(|backlog| shared.writes.counters.set_backlog(*backlog));
        }
    }
}

/// Deletes rows that were delivered, and ends the waiting for those that others have delivered, until the cache is gone.
async fn keep_settling<S: Source>(shared: Weak<Shared<S>>, foreign: Foreign, pause: Pause) {
    let mut settling = Settling {
        foreign,
        asked: 0,
        looks: 0,
        next_look: pause.rt.now(),
    };
    while let Some(()) = pause.until(pause.rt.sleep(jittered(DELETE))).await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Some(outbox) = &shared.writes.outbox {
            let settled = watched(settling.turn(&shared, &**outbox)).await;
            report(&shared, "rows that were delivered", settled);
        }
    }
}

struct Settling {
    foreign: Foreign,
    /// How many rows that are waited for were asked for, over and over.
    asked: usize,
    /// How often servers that are away were looked at, and when they are again.
    looks: u32,
    next_look: Instant,
}

impl Settling {
    async fn turn<S: Source>(
        &mut self,
        shared: &Arc<Shared<S>>,
        outbox: &dyn Outbox<S::Conn>,
    ) -> Result<()> {
        let done = shared.writes.take_done();
        let deleted = match done.is_empty() {
            true => Ok(()),
            false => answered(shared.rt, outbox.done(&done)).await,
        };
        if deleted.is_err() {
            shared.writes.not_done(done);
        }
        let looked = self.look_for_delivered(shared, outbox).await;
        deleted
            .and(looked)
            .and(self.look_at_servers(shared, outbox).await)
    }

    /// Ends the waiting for rows that somebody has delivered.
    async fn look_for_delivered<S: Source>(
        &mut self,
        shared: &Arc<Shared<S>>,
        outbox: &dyn Outbox<S::Conn>,
    ) -> Result<()> {
        let mut awaited = shared.writes.awaited_rows();
        awaited.extend(self.foreign.keys());
        if !awaited.is_empty() {
            awaited.sort_unstable();
            awaited.dedup();
            // Of very many a part each time, in turn.
            let start = match self.asked {
                asked if asked < awaited.len() => asked,
                _ => 0,
            };
            let end = awaited.len().min(start + MANY_ROWS);
            let asked = &awaited[start..end];
            let left: HashSet<RowId> = answered(shared.rt, outbox.left(asked))
                .await?
                .into_iter()
                .collect();
            self.asked = end;
            let mut gone: HashSet<RowId> = asked.iter().copied().collect();
            gone.retain(|id| !left.contains(id));
            self.foreign.retain(|id, _| !gone.contains(id));
            for waiting in shared.writes.take_delivered(&gone) {
                waiting.deliver.delivered();
            }
        }
        shared.writes.remembers_all(shared.rt.now());
        // An unknown commit has no rows to wait for: what it flushed is retried from memory.
        let now = shared.rt.now();
        retry(shared, |waiting| {
            waiting.rows.is_empty() && waiting.next <= now
        })
        .await;
        Ok(())
    }

    /// Reads again from servers that were away, once they answer and it is known what was to be flushed there.
    async fn look_at_servers<S: Source>(
        &mut self,
        shared: &Arc<Shared<S>>,
        outbox: &dyn Outbox<S::Conn>,
    ) -> Result<()> {
        let undelivered = &shared.writes.undelivered;
        let away = undelivered.servers();
        if away.is_empty() {
            self.looks = 0;
            return Ok(());
        }
        // A look is at all servers, and one that is away takes its time to say so.
        let now = shared.rt.now();
        if self.looks > 0 && now < self.next_look {
            return Ok(());
        }
        self.next_look = now + pause(self.looks);
        self.looks += 1;
        let answers = shared.backend.check().await;
        let is_back = |server: &usize| {
            answers
                .get(*server)
                .is_none_or(|check| check.answer.is_ok())
        };
        let back: Vec<usize> = away.into_iter().filter(is_back).collect();
        if back.is_empty() {
            return Ok(());
        }
        if hold_rows(shared, outbox, &mut self.foreign).await? {
            for server in back {
                undelivered.release_server(server);
            }
        }
        Ok(())
    }
}

/// Tries flushes again that only this process remembers.
async fn retry<S: Source>(shared: &Arc<Shared<S>>, which: impl Fn(&Waiting) -> bool) {
    for mut waiting in shared.writes.take_waiting(which) {
        let stale = waiting.stale.copy();
        let trips = shared.writes.counters.trips(None);
        // A panic, as of a listener, mustn't let go of what wasn't deleted.
        let Some(delivered) = unwinding(deliver(shared, stale, &trips)).await else {
            tracing::error!("a flush panicked, and is tried again");
            waiting.attempts += 1;
            waiting.next = shared.rt.now() + pause(waiting.attempts);
            shared.writes.wait(waiting);
            continue;
        };
        let now = shared.rt.now();
        if delivered.cause.is_none() {
            waiting.deliver.delivered();
            continue;
        }
        waiting.attempts += 1;
        waiting.next = now + pause(waiting.attempts);
        waiting.stale = delivered.rest;
        shared.writes.wait(waiting);
    }
}

/// Delivers rows of the outbox that are due, whoever wrote them; `false` if some couldn't be delivered.
async fn relay<S: Source>(shared: &Arc<Shared<S>>, outbox: &dyn Outbox<S::Conn>) -> Result<bool> {
    let rows = answered(shared.rt, outbox.claim(ROWS, HOLD, POLL.mul_f64(0.9))).await?;
    if rows.is_empty() {
        return Ok(true);
    }
    let mut readable = Vec::new();
    let mut put_off = Vec::new();
    for row in rows {
        match Stale::of_row(&row.text) {
            Ok(stale) => readable.push((row, stale)),
            Err(error) => {
                tracing::error!(row = row.id, %error, "a row of the outbox can't be delivered here");
                put_off.push(PutOff {
                    id: row.id,
                    pause: later(shared, &row),
                    text: row.text,
                });
            }
        }
    }
    let (mut open, mut rest) = behind_their_bases(shared, outbox, readable).await?;
    let trips = shared.writes.counters.trips(None);
    let mut done = Vec::new();
    let mut why = None;
    while !open.is_empty() {
        let mut all = Stale::default();
        for (_, stale) in &open {
            all.merge(stale.copy());
        }
        all.deduplicate();
        let delivered = deliver(shared, all, &trips).await;
        let undone = delivered.rest.index();
        let stopped_at = delivered.rest.lowest();
        for (row, stale) in std::mem::take(&mut open) {
            let left = stale.within(&undone);
            match left.lowest() {
                None => done.push(row.id),
                // What it is derived from is gone; other rows' bases kept it waiting, and shall not.
                lowest if lowest > stopped_at && left.part().is_none() => open.push((row, left)),
                Some(_) => rest.push((row, left)),
            }
        }
        why = why.or(delivered.cause);
    }
    shared.writes.counters.relayed.add(done.len() as u64);
    if let Some(cause) = why {
        tracing::warn!(%cause, "rows of the outbox couldn't be delivered; they are tried again");
    }
    answered(shared.rt, outbox.done(&done)).await?;
    let is_all = rest.is_empty();
    put_off.extend(rest.into_iter().map(|(row, left)| PutOff {
        id: row.id,
        pause: later(shared, &row),
        text: left.text(),
    }));
    if !put_off.is_empty() {
        answered(shared.rt, outbox.put_off(&put_off)).await?;
    }
    Ok(is_all)
}

/// Rows and what they say.
type Readable = Vec<(Row, Stale)>;

/// Tells apart what can be delivered now, and rows of large commits whose earlier rows, which have what they are derived
/// from, aren't delivered and aren't among these.
async fn behind_their_bases<S: Source>(
    shared: &Shared<S>,
    outbox: &dyn Outbox<S::Conn>,
    rows: Readable,
) -> Result<(Readable, Readable)> {
    if !rows.iter().any(|(_, stale)| stale.follows()) {
        return Ok((rows, Vec::new()));
    }
    let all = answered(shared.rt, outbox.rows(MANY_ROWS)).await?;
    let knows_all = all.len() < MANY_ROWS;
    let here: HashSet<RowId> = rows.iter().map(|(row, _)| row.id).collect();
    let elsewhere = all.iter().filter(|row| !here.contains(&row.id));
    let elsewhere: Vec<Stale> = elsewhere
        .filter_map(|row| Stale::of_row(&row.text).ok())
        .collect();
    let waits = |stale: &Stale| {
        let Some(part) = stale.part().filter(|_| stale.follows()) else {
            return false;
        };
        let mut others = elsewhere.iter().filter_map(Stale::part);
        !knows_all || others.any(|other| other.of == part.of && other.nth < part.nth)
    };
    Ok(rows.into_iter().partition(|(_, stale)| !waits(stale)))
}

/// When a row is tried again that was claimed so often: after 1 s, 2 s, 3 s from then on, so that those of other servers
/// get their turn, and a server that is back hasn't long to wait.
fn later<S: Source>(shared: &Shared<S>, row: &Row) -> Duration {
    match shared.without(Mechanism::RowBackoff) {
        true => Duration::ZERO,
        false => Duration::from_secs(1) * row.attempts.saturating_add(1).min(3),
    }
}

/// Deletes rows that are older than anything that was filled before them.
async fn sweep<S: Source>(shared: &Arc<Shared<S>>, outbox: &dyn Outbox<S::Conn>) -> Result<()> {
    if let Some(ttl) = shared.generations.longest_ttl() {
        let age = ttl.saturating_add(Duration::from_secs(60));
        let dropped = answered(shared.rt, outbox.drop_older(age)).await?;
        if dropped > 0 {
            tracing::warn!(
                rows = dropped,
                "rows of the outbox were dropped undelivered; what they would have flushed has expired by now"
            );
        }
    }
    Ok(())
}

/// The outcome of a turn, whose panic mustn't end the task: nobody would do what it does.
async fn watched<T>(turn: impl Future<Output = Result<T>>) -> Result<T> {
    let outcome = unwinding(turn).await;
    outcome.unwrap_or_else(|| {
        let error = Error::new(
            ErrorKind::Protocol,
            "a task of larder's own panicked, and goes on",
        );
        tracing::error!(%error);
        Err(error)
    })
}

/// What the database couldn't be asked for when it last was; each is one task's.
#[derive(Default)]
pub(super) struct Outage(Mutex<BTreeSet<&'static str>>);

impl Outage {
    /// Whether it has just begun, or is just over.
    fn turns(&self, what: &'static str, fails: bool) -> bool {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was_none = failing.is_empty();
        match fails {
            true => failing.insert(what),
            false => failing.remove(what),
        };
        was_none != failing.is_empty()
    }
}

/// The answer, if it came. That there is none any more is said once, and once that there is one again: without the register
/// all reads go past the store.
fn report<S: Source, T>(shared: &Shared<S>, what: &'static str, answer: Result<T>) -> Option<T> {
    let turns = shared.writes.outage.turns(what, answer.is_err());
    match &answer {
        Ok(_) if turns => tracing::info!("the database can be asked again"),
        Ok(_) => {}
        Err(error) if turns => tracing::warn!(
            %error,
            "the database can't be asked for {what}; it is tried again, and after some seconds without the register of \
             generations all reads go past the store"
        ),
        Err(error) => tracing::debug!(%error, "the database can't be asked for {what}"),
    }
    answer.ok()
}

/// About this long, so that processes don't come together.
fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.9 + fastrand::f64() / 5.0)
}

/// Tells when something is due that is done from time to time.
struct Timer {
    every: Duration,
    next: Instant,
}

impl Timer {
    /// Due for the first time within the period, so that processes don't come together.
    fn new(rt: Rt, every: Duration) -> Self {
        Self {
            every,
            next: rt.now() + every.mul_f64(fastrand::f64()),
        }
    }

    fn is_due(&mut self, rt: Rt) -> bool {
        let now = rt.now();
        let is_due = now >= self.next;
        if is_due {
            self.next = now + jittered(self.every);
        }
        is_due
    }
}
