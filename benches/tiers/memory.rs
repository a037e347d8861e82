//! Ten thousand requests in flight, which together would keep sixteen times what the tiers may.

use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

use larder_core::{Cache, TiersStats};
use larder_tiers::{Request, Tiers};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::data::{self, Made, Page};

/// Requests in flight when each line is printed.
const STEPS: [usize; 5] = [100, 500, 1_000, 5_000, 10_000];

/// Values that each request reads.
const PAGES: u64 = 100;

/// How many of them read at the same time; the steps are multiples.
const AT_ONCE: usize = 50;

/// How long the entries of requests that have ended may take to be gone.
const SOON: Duration = Duration::from_secs(10);

/// Prints what the tiers count and what the process takes, while more and more requests are in flight.
pub(crate) fn run(runtime: &Runtime) {
    runtime.block_on(async {
        let tiers = Tiers::default();
        let cache = data::cache(tiers.clone()).await;
        println!(
            "requests that read {PAGES} values of 1 KiB each; the tiers have {} MiB\n",
            mebibytes(tiers.stats().budget)
        );
        println!(
            "{:>10} {:>9} {:>12} {:>12} {:>9} {:>9} {:>9}",
            "in flight", "entries", "counted MiB", "peak MiB", "evicted", "refused", "RSS MiB"
        );
        let mut peak = 0;
        line("none", tiers.stats(), &mut peak);
        let mut requests = VecDeque::new();
        for step in STEPS {
            while requests.len() < step {
                requests.extend(begin_some(&cache).await);
                peak = peak.max(tiers.stats().request.bytes);
            }
            line(&step.to_string(), tiers.stats(), &mut peak);
        }
        // Each of them gives way to another one.
        for _ in 0..requests.len() / AT_ONCE {
            requests.drain(..AT_ONCE);
            requests.extend(begin_some(&cache).await);
            peak = peak.max(tiers.stats().request.bytes);
        }
        line("replaced", tiers.stats(), &mut peak);
        drop(requests);
        line("ended", tiers.stats(), &mut peak);
        let ended = Instant::now();
        while tiers.stats().request.entries > 0 && ended.elapsed() < SOON {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        line("soon after", tiers.stats(), &mut peak);
    });
}

/// Requests that have read their values, all at the same time, and go on.
async fn begin_some(cache: &Cache<Made>) -> Vec<Request<Made>> {
    let mut beginning = JoinSet::new();
    for _ in 0..AT_ONCE {
        let request = Request::begin(cache);
        beginning.spawn(async move {
            let pages = larder_core::get_many::<Page>(&request, 0..PAGES).await;
            assert_eq!(pages.expect("no load fails").missing().count(), 0);
            request
        });
    }
    beginning.join_all().await
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
