//! larder's memcached and Redis clients beside the socket's limit and other clients, measured in one run.
//!
//! `cargo run --release` in this folder starts its own servers on loopback, checks once that every subject pairs every
//! key with its value, measures all of them in turn, and prints tables with ratios: the ratios of one run are the
//! result, since absolute figures move with the machine. `docs/performance.md` says how to read them.

mod cases;
mod chart;
mod measure;
mod options;
mod outcome;
mod recorder;
mod report;
mod stopped;
mod subjects;
mod targets;
mod wire;
mod work;

use std::time::Instant;

use anyhow::{Context as _, Result};

use self::options::Options;
use self::outcome::Outcome;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let Some(options) = Options::from_args()? else {
        return Ok(());
    };
    // As many workers as on the machine that the targets were set on.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    // As a task, since the thread that blocks on a runtime isn't one of its workers.
    runtime.block_on(async { tokio::spawn(run(options)).await })?
}

async fn run(options: Options) -> Result<()> {
    let Options {
        cases,
        value,
        pace,
        json,
        svg,
    } = options;
    if let Some(folder) = &svg {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("creating {}", folder.display()))?;
    }
    let subjects = subjects::all();
    let mut outcomes = Vec::new();
    for case in cases {
        let start = Instant::now();
        let rows = case
            .run(&subjects, value, pace)
            .await
            .with_context(|| case.name())?;
        let outcome = Outcome { case, value, rows };
        if json {
            print!("{}", report::json(&outcome));
            eprintln!(
                "{} took {:.1} s",
                case.name(),
                start.elapsed().as_secs_f64()
            );
        } else {
            println!("{}", report::text(&outcome));
        }
        if let Some(folder) = &svg {
            chart::draw(&outcome, pace.rounds, folder)?;
        }
        outcomes.push(outcome);
    }
    if !json {
        println!("Targets: ratios of larder to what stands behind the stroke\n");
        println!("{}", targets::table(&targets::all(&outcomes)));
    }
    Ok(())
}
