//! How it is measured: round by round, all subjects in turn, medians.
//!
//! A machine is never quiet for long, and slow moments must not fall on one subject: in each round every subject has
//! its slice of time, the order turns by one from round to round, and a figure is the median of its rounds. Client CPU
//! is what getrusage says of this process; the servers are processes of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::runtime::Handle;
use tokio::task::{JoinSet, spawn_blocking};

use crate::subjects::{Callers, Calls, Form, Job, Neighbours, Side, Stage, Subject};
use crate::wire::Wire;
use crate::work::Work;

/// How often, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds to take the median of; one more comes before them and isn't counted.
    pub rounds: usize,
    /// How long each subject works in a round.
    pub slice: Duration,
}

/// What a subject achieved in a case.
#[derive(Clone, Debug)]
pub struct Row {
    /// The subject's name.
    pub subject: &'static str,
    /// Whose it is.
    pub side: Side,
    /// With which form.
    pub form: Form,
    /// The figures, or why there are none.
    pub figures: Result<Figures, String>,
    /// How many calls failed in a case that goes on after failures, and what the first said.
    pub failed: Option<(u64, String)>,
}

/// Medians over rounds; times in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// How long half of the calls took at most.
    pub p50: f64,
    /// How long all but one in a hundred took at most.
    pub p99: f64,
    /// How long the longest took.
    pub max: f64,
    /// How many calls there were, and how many of them waited for a deadline.
    pub calls: usize,
    pub late: usize,
    /// Calls answered in a second: of the bulk, where there are neighbours.
    pub per_second: f64,
    /// What a call cost the client: a bulk call with the single gets beside it, where there are neighbours.
    pub cpu: f64,
}

/// What must be so before each call of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing: calls leave things as they were.
    Nothing,
    /// The batch's keys are absent.
    Absent,
    /// The batch's keys are present.
    Present,
}

/// A subject's part in a case: its work, and what was measured so far.
pub struct Entrant<W> {
    row: Row,
    /// `None` puts it out of the race; the row says why.
    work: Option<W>,
    /// How many calls it made, so that each takes the next batch.
    turn: usize,
    rounds: Vec<Figures>,
}

impl<W> Entrant<W> {
    /// The subject, with the work it made or why it couldn't.
    pub fn new(subject: &dyn Subject, work: Result<W>) -> Self {
        let (work, figures) = match work {
            Ok(work) => (Some(work), Ok(Figures::default())),
            Err(error) => (None, Err(format!("{error:#}"))),
        };
        let row = Row {
            subject: subject.name(),
            side: subject.side(),
            form: subject.form(),
            figures,
            failed: None,
        };
        Self {
            row,
            work,
            turn: 0,
            rounds: Vec::new(),
        }
    }

    /// Notes what came of a round; the first only warms up. An error puts the subject out of the race.
    fn note(&mut self, round: usize, outcome: Result<Figures>) {
        match outcome {
            Ok(figures) if round > 0 => self.rounds.push(figures),
            Ok(_) => {}
            Err(error) => {
                self.work = None;
                self.row.figures = Err(format!("{error:#}"));
            }
        }
    }

    fn into_row(mut self) -> Row {
        if self.row.figures.is_ok() {
            let median = |pick: fn(&Figures) -> f64| median(self.rounds.iter().map(pick).collect());
            self.row.figures = Ok(Figures {
                p50: median(|figures| figures.p50),
                p99: median(|figures| figures.p99),
                max: median(|figures| figures.max),
                per_second: median(|figures| figures.per_second),
                cpu: median(|figures| figures.cpu),
                ..Figures::default()
            });
        }
        self.row
    }
}

/// Times calls, one after the other.
pub async fn jobs(
    mut entrants: Vec<Entrant<Box<dyn Job>>>,
    stage: &Stage,
    before: Before,
    pace: Pace,
) -> Result<Vec<Row>> {
    let mut wire = Wire::connect(&stage.server).await?;
    for (round, number) in schedule(entrants.len(), pace.rounds) {
        let entrant = &mut entrants[number];
        if let Some(job) = &mut entrant.work {
            let turn = &mut entrant.turn;
            let outcome = job_round(&mut **job, &mut wire, &stage.work, before, pace.slice, turn);
            let outcome = patiently(outcome).await;
            entrant.note(round, outcome);
        }
    }
    Ok(entrants.into_iter().map(Entrant::into_row).collect())
}

async fn job_round(
    job: &mut dyn Job,
    wire: &mut Wire,
    work: &Work,
    before: Before,
    slice: Duration,
    turn: &mut usize,
) -> Result<Figures> {
    /// A median of fewer calls says little.
    const ENOUGH: usize = 3;
    let mut latencies = Vec::new();
    let mut cpu = Duration::ZERO;
    let end = Instant::now() + slice;
    while latencies.len() < ENOUGH || Instant::now() < end {
        let batch = work.batch(*turn);
        *turn += 1;
        match before {
            Before::Nothing => {}
            Before::Absent => wire.delete(batch).await?,
            Before::Present => wire.store(batch).await?,
        }
        job.prepare(batch).await?;
        let used = cpu_time()?;
        let start = Instant::now();
        job.run(batch).await?;
        latencies.push(nanoseconds(start.elapsed()));
        cpu += cpu_time()? - used;
    }
    Ok(figures(latencies, cpu, None))
}

/// Times callers that work all at once.
pub async fn callers(mut entrants: Vec<Entrant<Callers>>, pace: Pace) -> Vec<Row> {
    for (round, number) in schedule(entrants.len(), pace.rounds) {
        let entrant = &mut entrants[number];
        if let Some(callers) = &mut entrant.work {
            let outcome = patiently(caller_round(callers, pace.slice)).await;
            let outcome = outcome.map(|(figures, failed)| {
                if let Some((error, count)) = failed {
                    let first = || (0, format!("{error:#}"));
                    entrant.row.failed.get_or_insert_with(first).0 += count;
                }
                figures
            });
            entrant.note(round, outcome);
        }
    }
    entrants.into_iter().map(Entrant::into_row).collect()
}

async fn caller_round(
    callers: &mut Callers,
    slice: Duration,
) -> Result<(Figures, Option<(anyhow::Error, u64)>)> {
    let used = cpu_time()?;
    let start = Instant::now();
    let end = start + slice;
    let mut tasks = JoinSet::new();
    for mut caller in callers.drain(..) {
        tasks.spawn(async move {
            let calls = caller.call_until(end).await;
            (caller, calls)
        });
    }
    let mut all = Calls::default();
    while let Some(done) = tasks.join_next().await {
        let (caller, calls) = done?;
        callers.push(caller);
        all.add(calls);
    }
    let elapsed = start.elapsed();
    let cpu = cpu_time()? - used;
    ensure!(!all.latencies.is_empty(), "no call was answered");
    Ok((figures(all.latencies, cpu, Some(elapsed)), all.failed))
}

/// Times single gets while bulk calls run without pause.
pub async fn neighbours(
    mut entrants: Vec<Entrant<Neighbours>>,
    stage: &Stage,
    pace: Pace,
) -> Vec<Row> {
    for (round, number) in schedule(entrants.len(), pace.rounds) {
        let entrant = &mut entrants[number];
        if let Some(neighbours) = entrant.work.take() {
            let outcome = neighbour_round(neighbours, &stage.work, pace.slice);
            let outcome = patiently(outcome).await.map(|(neighbours, figures)| {
                entrant.work = Some(neighbours);
                figures
            });
            entrant.note(round, outcome);
        }
    }
    entrants.into_iter().map(Entrant::into_row).collect()
}

async fn neighbour_round(
    neighbours: Neighbours,
    work: &Arc<Work>,
    slice: Duration,
) -> Result<(Neighbours, Figures)> {
    /// From an answer to the next single get.
    const PAUSE: Duration = Duration::from_micros(200);
    let Neighbours { bulk, mut caller } = neighbours;
    let used = cpu_time()?;
    let start = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let bulk = tokio::spawn(without_pause(bulk, Arc::clone(work), Arc::clone(&stop)));
    // tokio's timer counts milliseconds: pauses this short need a thread.
    let handle = Handle::current();
    let single = spawn_blocking(move || {
        let mut latencies = Vec::new();
        while start.elapsed() < slice {
            std::thread::sleep(PAUSE);
            latencies.push(nanoseconds(handle.block_on(caller.call())?));
        }
        anyhow::Ok((caller, latencies))
    });
    let single = single.await?;
    stop.store(true, Ordering::Relaxed);
    let elapsed = start.elapsed();
    let (bulk, calls) = bulk.await??;
    let (caller, latencies) = single?;
    ensure!(!latencies.is_empty(), "no call was answered");
    let cpu = cpu_time()? - used;
    let figures = figures(latencies, cpu, None);
    let figures = match calls {
        0 => Figures {
            per_second: 0.0,
            ..figures
        },
        _ => Figures {
            per_second: f64::from(calls) / elapsed.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / f64::from(calls),
            ..figures
        },
    };
    Ok((Neighbours { bulk, caller }, figures))
}

async fn without_pause(
    job: Option<Box<dyn Job>>,
    work: Arc<Work>,
    stop: Arc<AtomicBool>,
) -> Result<(Option<Box<dyn Job>>, u32)> {
    let Some(mut job) = job else {
        return Ok((None, 0));
    };
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        job.run(work.batch(calls as usize)).await?;
        calls += 1;
    }
    Ok((Some(job), calls))
}

/// Which round and entrant comes next: one round to warm up, then as many as are counted.
fn schedule(entrants: usize, rounds: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..=rounds)
        .flat_map(move |round| (0..entrants).map(move |place| (round, (place + round) % entrants)))
}

/// No subject may stop the run by hanging.
async fn patiently<T>(round: impl Future<Output = Result<T>> + Send) -> Result<T> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let outcome = tokio::time::timeout(PATIENCE, round).await;
    outcome.context("it hangs")?
}

/// The figures of these calls, which overlapped if the time they took in all is given.
pub fn figures(mut latencies: Vec<u64>, cpu: Duration, elapsed: Option<Duration>) -> Figures {
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share).round() as usize];
    let count = latencies.len() as f64;
    let busy = latencies.iter().sum();
    let elapsed = elapsed.unwrap_or(Duration::from_nanos(busy));
    Figures {
        p50: at(0.5) as f64 / 1e3,
        p99: at(0.99) as f64 / 1e3,
        max: at(1.0) as f64 / 1e3,
        calls: latencies.len(),
        late: 0,
        per_second: count / elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / count,
    }
}

/// What this process has used of all processors, in user and system mode.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(microseconds.try_into()?))
}

pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn every_entrant_has_a_turn_in_each_round_and_the_first_changes() {
        let order: Vec<_> = schedule(3, 1).collect();
        assert_eq!(order, [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 0)]);
        assert_eq!(schedule(0, 5).count(), 0);
    }

    #[test]
    fn overlapping_calls_share_the_time() {
        let latencies = (1..=100).map(|call| call * 1_000).collect();
        let cpu = Duration::from_micros(200);
        let figures = figures(latencies, cpu, Some(Duration::from_millis(1)));
        assert_eq!((figures.p50, figures.p99), (51.0, 99.0));
        assert_eq!((figures.per_second, figures.cpu), (100_000.0, 2.0));
    }
}
