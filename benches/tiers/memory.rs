//! Ten thousand requests in flight, each of which keeps more than its part of the budget.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::TiersStats;
use larder_tiers::{Request, Tiers};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::data::{self, Page};

/// Requests in flight when each line is printed.
const STEPS: [usize; 6] = [1, 100, 500, 1_000, 5_000, 10_000];

/// Values that each request reads.
const PAGES: u64 = 100;

/// Looks at the bytes again after so many requests.
const LOOK: usize = 50;

/// How long the entries of requests that have ended may take to be gone.
const SOON: Duration = Duration::from_secs(10);

/// Prints what the tiers count and what the process takes, while more and more requests are in flight.
pub(crate) fn run(runtime: &Runtime) {
    runtime.block_on(async {
        let tiers = Tiers::default();
        let cache = data::cache(tiers.clone()).await;
        println!(
            "requests that read {PAGES} values of 1 KiB each; {} MiB are the budget of their tier\n",
            mebibytes(tiers.stats().budget)
        );
        println!(
            "{:>10} {:>9} {:>12} {:>12} {:>9} {:>9} {:>9}",
            "in flight", "entries", "counted MiB", "peak MiB", "evicted", "refused", "RSS MiB"
        );
        let mut peak = 0;
        line("none", tiers.stats(), &mut peak);
        let (began, mut beginning) = mpsc::unbounded_channel();
        let end = Arc::new(Semaphore::new(0));
        let mut requests = JoinSet::new();
        for step in STEPS {
            let more = step - requests.len();
            for _ in 0..more {
                let (cache, began, end) = (cache.clone(), began.clone(), Arc::clone(&end));
                requests.spawn(async move {
                    let request = Request::begin(&cache);
                    let pages = larder_core::get_many::<Page>(&request, 0..PAGES).await;
                    assert_eq!(pages.expect("no load fails").missing().count(), 0);
                    began.send(()).expect("somebody listens");
                    end.acquire().await.expect("it is never closed").forget();
                });
            }
            for begun in 0..more {
                beginning.recv().await.expect("every request begins");
                if begun % LOOK == 0 {
                    peak = peak.max(tiers.stats().request.bytes);
                }
            }
            line(&step.to_string(), tiers.stats(), &mut peak);
        }
        end.add_permits(requests.len());
        requests.join_all().await;
        line("ended", tiers.stats(), &mut peak);
        let ended = Instant::now();
        while tiers.stats().request.entries > 0 && ended.elapsed() < SOON {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        line("soon after", tiers.stats(), &mut peak);
    });
}

fn line(in_flight: &str, stats: TiersStats, peak: &mut u64) {
    let request = stats.request;
    *peak = request.bytes.max(*peak);
    println!(
        "{in_flight:>10} {:>9} {:>12.1} {:>12.1} {:>9} {:>9} {:>9.1}",
        request.entries,
        mebibytes(request.bytes),
        mebibytes(*peak),
        request.evicted,
        request.refused,
        mebibytes(resident())
    );
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// The bytes of memory that the process has, as Linux counts them; 0 elsewhere.
fn resident() -> u64 {
    const PAGE: u64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE
}
