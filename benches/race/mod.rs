//! Subjects that take turns, and a table of what they took: medians of times, and medians of the rounds' ratios.
//!
//! On a shared machine times move by half from run to run, and these ratios by a few hundredths.

use std::time::Instant;

const ROUNDS: usize = 101;

/// Rounds before these.
const WARMING: usize = 3;

/// How often each subject of a line runs.
pub(crate) const RUNS: usize = ROUNDS + WARMING;

/// A table whose subjects do a thing so many times a round.
pub(crate) struct Table {
    times: usize,
}

impl Table {
    pub(crate) const fn new(times: usize) -> Self {
        Self { times }
    }

    pub(crate) fn head(&self) {
        println!(
            "{:58} {:>10} {:>10} {:>7}  target",
            "", "larder", "beside", "ratio"
        );
    }

    /// Runs the two in turn, and prints the median times of a thing and the median of the rounds' ratios.
    ///
    /// What they answer is dropped when the time has been taken.
    pub(crate) fn race<A, B>(
        &self,
        what: &str,
        target: &str,
        mut ours: impl FnMut() -> A,
        mut beside: impl FnMut() -> B,
    ) {
        let (mut our_times, mut their_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..RUNS {
            // Who begins changes.
            let (ours, beside) = if round % 2 == 0 {
                let ours = self.timed(&mut ours);
                (ours, self.timed(&mut beside))
            } else {
                let beside = self.timed(&mut beside);
                (self.timed(&mut ours), beside)
            };
            if round >= WARMING {
                our_times.push(ours);
                their_times.push(beside);
                ratios.push(ours / beside);
            }
        }
        println!(
            "{what:58} {:>7.0} ns {:>7.0} ns {:>7.2}  {target}",
            median(our_times),
            median(their_times),
            median(ratios)
        );
    }

    /// Runs this alone, and prints the median time of a thing.
    pub(crate) fn alone<A>(&self, what: &str, target: &str, mut run: impl FnMut() -> A) {
        let times = (0..RUNS).map(|_| self.timed(&mut run));
        let time = median(times.skip(WARMING).collect());
        println!("{what:58} {time:>7.0} ns {:>18}  {target}", "");
    }

    /// Nanoseconds a thing.
    fn timed<A>(&self, run: &mut impl FnMut() -> A) -> f64 {
        let start = Instant::now();
        let answer = run();
        let took = start.elapsed();
        drop(answer);
        took.as_secs_f64() * 1e9 / self.times as f64
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
