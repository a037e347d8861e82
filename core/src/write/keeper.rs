//! The task that keeps promises: renews the registration, retries flushes, relays the outbox.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::deliver::deliver;
use super::stale::Stale;
use super::undelivered::Hold;
use super::writes::{Waiting, pause};
use super::{Outbox, Row, RowId};
use futures_util::future::Either;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::contract::Result;
use crate::read::{Shared, Source};
use crate::{Instant, Rt};

/// How often retries are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How often delivered rows are deleted.
const DELETE: Duration = Duration::from_millis(300);

/// How often the register is read: the copy stays younger than [`FRESH`](crate::generation::FRESH).
const READ: Duration = Duration::from_millis(1_200);

/// How often a registration is renewed.
const RENEW: Duration = Duration::from_secs(10);

/// How often the outbox is looked at, by any process.
const POLL: Duration = Duration::from_secs(1);

/// How long a claimed row is left to whoever claimed it.
const HOLD: Duration = Duration::from_secs(5);

/// Rows that are relayed together.
const ROWS: usize = 500;

/// How often rows that nobody needs any more are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// Keeps what needs the database, until the cache is gone.
async fn keep<S: Source>(shared: Weak<Shared<S>>, pause: Pause) {
    let rt = pause.rt;
    let mut keeper = Keeper {
        rt,
        foreign: HashMap::new(),
        deleting: Timer::new(rt, DELETE),
        reading: Timer::new(rt, READ),
        renewing: Timer::new(rt, RENEW),
        polling: Timer::new(rt, POLL),
        sweeping: Timer::new(rt, SWEEP),
    };
    while let Some(()) = pause.tick().await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Some(outbox) = &shared.writes.outbox {
            keeper.turn(&shared, &**outbox).await;
        }
    }
}

/// Starts what keeps the promises of this cache, once what others have left in the outbox was looked at: what this
/// process can't deliver, it doesn't read.
pub(crate) async fn start<S: Source>(shared: &Arc<Shared<S>>) -> Result<()> {
    if let Some(outbox) = &shared.writes.outbox {
        relay(shared, &**outbox).await?;
    }
    let pause = Pause {
        rt: shared.rt,
        closing: shared.closing.clone(),
    };
    let weak = Arc::downgrade(shared);
    // Tracked, so that closing waits for the turn that is under way: what it tries again isn't lost.
    let task = match shared.writes.outbox {
        Some(_) => Either::Left(keep(weak, pause)),
        None => Either::Right(keep_retrying(weak, Arc::clone(&shared.writes.added), pause)),
    };
    drop(shared.rt.spawn_apart(shared.tasks.track_future(task)));
    Ok(())
}

/// Waits between turns, and ends when the cache is closing.
struct Pause {
    rt: Rt,
    closing: CancellationToken,
}

impl Pause {
    /// `None` if there is no next turn.
    async fn until<F: Future<Output = ()>>(&self, next: F) -> Option<()> {
        self.closing.run_until_cancelled(next).await
    }

    async fn tick(&self) -> Option<()> {
        self.until(self.rt.sleep(TICK)).await
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
            if shared.writes.waiting() == 0 {
                break;
            }
            drop(shared);
            if pause.tick().await.is_none() {
                return;
            }
        }
    }
}

/// Delivers what can be, deletes what was, and ends the registration: what is done last, when a cache is closed.
pub(crate) async fn finish<S: Source>(shared: &Arc<Shared<S>>) {
    if shared.writes.outbox.is_none() {
        retry(shared, |_| true).await;
    }
    if let Some(outbox) = &shared.writes.outbox {
        let _ = outbox.done(&shared.writes.take_done()).await;
    }
    for waiting in shared.writes.take_waiting(|_| true) {
        waiting.deliver.give_up();
    }
    shared.generations.leave().await;
}

struct Keeper {
    rt: Rt,
    /// Keys that others have to flush, by the row of the outbox that says so.
    foreign: HashMap<RowId, Hold>,
    deleting: Timer,
    reading: Timer,
    renewing: Timer,
    polling: Timer,
    sweeping: Timer,
}

impl Keeper {
    async fn turn<S: Source>(&mut self, shared: &Arc<Shared<S>>, outbox: &dyn Outbox<S::Conn>) {
        let renew = self.renewing.is_due(self.rt);
        if self.reading.is_due(self.rt) || renew {
            report(
                "the register of generations",
                shared.generations.keep(renew).await,
            );
        }
        if renew {
            let backlog = report("the outbox", outbox.backlog().await);
            backlog.map(|backlog| shared.writes.counters.set_backlog(backlog));
        }
        if self.deleting.is_due(self.rt) {
            let done = shared.writes.take_done();
            if !done.is_empty() && report("the outbox", outbox.done(&done).await).is_none() {
                shared.writes.not_done(done);
            }
            report("the outbox", self.look_for_delivered(shared, outbox).await);
            report("the outbox", self.look_at_servers(shared, outbox).await);
        }
        if self.polling.is_due(self.rt) {
            report("the outbox", relay(shared, outbox).await);
        }
        if self.sweeping.is_due(self.rt) {
            report("the outbox", sweep(shared, outbox).await);
        }
    }

    /// Ends the waiting for rows that somebody has delivered.
    async fn look_for_delivered<S: Source>(
        &mut self,
        shared: &Arc<Shared<S>>,
        outbox: &dyn Outbox<S::Conn>,
    ) -> Result<()> {
        let mut asked = shared.writes.awaited_rows();
        asked.extend(self.foreign.keys());
        if asked.is_empty() {
            return Ok(());
        }
        let left = outbox.left(&asked).await?;
        self.foreign.retain(|id, _| left.contains(id));
        let is_delivered = |waiting: &Waiting| {
            !waiting.rows.is_empty()
                && waiting
                    .rows
                    .iter()
                    .all(|id| !left.contains(id) && asked.contains(id))
        };
        for waiting in shared.writes.take_waiting(is_delivered) {
            waiting.deliver.delivered();
        }
        // An unknown commit has no rows to wait for: what it flushed is retried from memory.
        let now = self.rt.now();
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
            return Ok(());
        }
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
        let rows = outbox.rows(10 * ROWS).await?;
        for row in rows {
            if let Ok(stale) = Stale::of_row(&row.text) {
                self.foreign
                    .entry(row.id)
                    .or_insert_with(|| undelivered.hold(&stale));
            }
        }
        for server in back {
            undelivered.release_server(server);
        }
        Ok(())
    }
}

/// Tries flushes again that only this process remembers.
async fn retry<S: Source>(shared: &Arc<Shared<S>>, which: impl Fn(&Waiting) -> bool) {
    for mut waiting in shared.writes.take_waiting(which) {
        let stale = std::mem::take(&mut waiting.stale);
        let trips = shared.writes.counters.trips(None);
        let delivered = deliver(shared, stale, &trips).await;
        let now = shared.rt.now();
        waiting.next = match (delivered.cause, waiting.held_until) {
            (Some(_), _) => {
                waiting.attempts += 1;
                now + pause(waiting.attempts)
            }
            (None, None) => {
                waiting.deliver.delivered();
                continue;
            }
            // What was forgotten has expired by then.
            (None, Some(until)) if until <= now => {
                waiting.deliver.give_up();
                continue;
            }
            (None, Some(until)) => until,
        };
        waiting.stale = delivered.rest;
        shared.writes.wait_again(waiting);
    }
}

/// Delivers rows of the outbox that are due, whoever wrote them.
async fn relay<S: Source>(shared: &Arc<Shared<S>>, outbox: &dyn Outbox<S::Conn>) -> Result<()> {
    let rows = outbox.claim(ROWS, HOLD, POLL.mul_f64(0.9)).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let mut readable = Vec::new();
    let mut all = Stale::default();
    for row in rows {
        match Stale::of_row(&row.text) {
            Ok(stale) => {
                all.merge(stale.copy());
                readable.push((row, stale));
            }
            Err(error) => {
                tracing::error!(row = row.id, %error, "a row of the outbox can't be delivered here");
                outbox.put_off(row.id, &row.text, later(&row)).await?;
            }
        }
    }
    all.deduplicate();
    let trips = shared.writes.counters.trips(None);
    let delivered = deliver(shared, all, &trips).await;
    let mut done = Vec::new();
    for (row, stale) in readable {
        let rest = stale.within(&delivered.rest);
        if rest.is_empty() {
            done.push(row.id);
        } else {
            let text = rest.rows().concat();
            outbox.put_off(row.id, &text, later(&row)).await?;
        }
    }
    shared.writes.counters.relayed.add(done.len() as u64);
    if let Some(cause) = delivered.cause {
        tracing::warn!(%cause, "rows of the outbox couldn't be delivered; they are tried again");
    }
    outbox.done(&done).await
}

/// When a row is tried again that was claimed so often: after 1 s, doubling up to 5 s, so that those of other servers get
/// their turn, and a server that is back hasn't long to wait.
fn later(row: &Row) -> Duration {
    Duration::from_secs(1) * 2_u32.pow(row.attempts.min(3)).min(5)
}

/// Deletes rows that are older than anything that was filled before them.
async fn sweep<S: Source>(shared: &Arc<Shared<S>>, outbox: &dyn Outbox<S::Conn>) -> Result<()> {
    if let Some(ttl) = shared.generations.longest_ttl() {
        let dropped = outbox.drop_older(ttl + Duration::from_secs(60)).await?;
        if dropped > 0 {
            tracing::warn!(
                rows = dropped,
                "rows of the outbox were dropped undelivered; what they would have flushed has expired by now"
            );
        }
    }
    Ok(())
}

fn report<T>(what: &'static str, outcome: Result<T>) -> Option<T> {
    outcome
        .inspect_err(|error| tracing::debug!(%error, "{what} couldn't be asked; it is tried again"))
        .ok()
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
            self.next = now + self.every.mul_f64(0.9 + fastrand::f64() / 5.0);
        }
        is_due
    }
}
