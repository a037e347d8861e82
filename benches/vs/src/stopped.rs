//! A server of a pool is stopped while calls run: what that costs them.
//!
//! Stopped by SIGSTOP, a server looks well to the kernel: dials succeed, requests are taken, and nothing is ever answered.
//! A call that waited for its deadline because of it has paid one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use larder_harness::server::MemcachedServer;
use tokio::task::{JoinSet, block_in_place};

use crate::measure::{Figures, Pace, Row, figures, nanoseconds};
use crate::subjects::larder::Client;
use crate::subjects::{Form, Side, Stage};

/// How many of a round's slices the calls run before the server is stopped, and how many more after it: with the usual
/// pace 2 s and 8 s, in which a server that is down is asked about seven times.
const BEFORE: u32 = 25;
const AFTER: u32 = 100;

/// Who calls, and what its rows are called.
const CALLERS: [(usize, &str, &str); 2] = [
    (1, "in a row, all well", "in a row, from the stop on"),
    (8, "8 callers, all well", "8 callers, from the stop on"),
];

/// Calls one after the other, and then 8 at once; a server is stopped during each.
pub async fn run(servers: &[MemcachedServer], stage: &Stage, pace: Pace) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for ((callers, well, stopped), server) in CALLERS.into_iter().zip(servers) {
        let client = Client::connect(&stage.servers, Form::Meta, 1)?;
        for batch in &stage.work.batches {
            // Dials.
            client.fetch_what_is_there(batch).await?;
        }
        let end = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let calls = calls(client.clone(), stage.clone(), caller, Arc::clone(&end));
            tasks.spawn(calls);
        }
        tokio::time::sleep(pace.slice * BEFORE).await;
        let stop = Instant::now();
        block_in_place(|| server.stop());
        tokio::time::sleep(pace.slice * AFTER).await;
        end.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(calls) = tasks.join_next().await {
            all.extend(calls??);
        }
        block_in_place(|| server.resume());
        let (before, after): (Vec<_>, Vec<_>) = all.into_iter().partition(|call| call.end < stop);
        rows.push(row(well, &before)?);
        rows.push(row(stopped, &after)?);
    }
    Ok(rows)
}

/// One call.
struct Call {
    end: Instant,
    took: Duration,
    is_late: bool,
}

async fn calls(
    client: Client,
    stage: Stage,
    caller: usize,
    end: Arc<AtomicBool>,
) -> Result<Vec<Call>> {
    let mut calls = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let batch = stage.work.batch(caller + calls.len());
        let start = Instant::now();
        let (late, _) = client.fetch_what_is_there(batch).await?;
        let end = Instant::now();
        calls.push(Call {
            end,
            took: end - start,
            is_late: late > 0,
        });
    }
    Ok(calls)
}

fn row(subject: &'static str, calls: &[Call]) -> Result<Row> {
    ensure!(!calls.is_empty(), "there were no calls: {subject}");
    let latencies = calls.iter().map(|call| nanoseconds(call.took)).collect();
    Ok(Row {
        subject,
        side: Side::Larder,
        form: Form::Meta,
        figures: Ok(Figures {
            late: calls.iter().filter(|call| call.is_late).count(),
            ..figures(latencies, Duration::ZERO, None)
        }),
        failed: None,
    })
}
