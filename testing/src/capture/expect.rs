//! Demanding how often something is asked.

use std::fmt;

use super::Captured;
use super::table::{self, Counted};

impl Captured {
    /// # Panics
    ///
    /// Unless there were so many exchanges with stores; it shows what was asked, and loops that could be one bulk read.
    #[track_caller]
    pub fn assert_trips(&self, expected: u64) {
        self.expect(Counted::Trips, expected, self.trips());
    }

    /// # Panics
    ///
    /// Unless there were so many calls of loaders: see [`Captured::assert_trips`].
    #[track_caller]
    pub fn assert_loads(&self, expected: u64) {
        self.expect(Counted::Loads, expected, self.loads());
    }

    /// # Panics
    ///
    /// Unless there were so many statements of the database: see [`Captured::assert_trips`]; or if they aren't heard.
    #[track_caller]
    pub fn assert_queries(&self, expected: u64) {
        assert!(
            self.hears_statements,
            "statements can't be counted: a filter of the program's `tracing` subscriber keeps them from the layer of \
             larder's test kit; let `sqlx::query=debug` pass"
        );
        self.expect(Counted::Queries, expected, self.queries());
    }

    #[track_caller]
    fn expect(&self, counted: Counted, expected: u64, found: u64) {
        if expected != found {
            let message = Unexpected {
                captured: self,
                counted,
                expected,
                found,
            };
            panic!("{message}");
        }
    }
}

/// Why a demand failed.
struct Unexpected<'c> {
    captured: &'c Captured,
    counted: Counted,
    expected: u64,
    found: u64,
}

impl fmt::Display for Unexpected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expected, counted) = (self.expected, self.counted);
        let plural = if expected == 1 { "" } else { "s" };
        let noun = counted.noun(plural);
        write!(
            f,
            "expected {expected} {noun}, and there were {}",
            self.found
        )?;
        if self.captured.asked().is_empty() {
            return f.write_str(
                ", nor was anything else asked: is the cache a TestCache, or built with `recorded`, and is the work done \
                 in this task?",
            );
        }
        f.write_str("\n\n")?;
        table::write(f, self.captured.asked(), counted)?;
        let loops = self.captured.loops();
        if !loops.is_empty() {
            writeln!(f)?;
        }
        loops.iter().try_for_each(|found| writeln!(f, "{found}"))
    }
}

/// Runs a future, or a block that awaits, and answers what it answers; it panics unless there were so many trips to
/// stores.
///
/// ```
/// # use larder_testing::doc::{Db, UserById};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_testing::{TestCache, assert_trips};
///
/// let cache = TestCache::new(Db::of(["Ada", "Grace"])).await;
/// larder_core::warm::<UserById>(&cache, [0, 1]).await.unwrap();
///
/// let users = assert_trips!(1, larder_core::get_many::<UserById>(&cache, [0, 1])).unwrap();
/// assert_eq!(users.iter().count(), 2);
///
/// assert_trips!(2, {
///     larder_core::get::<UserById>(&cache, &0).await.unwrap();
///     larder_core::get::<UserById>(&cache, &1).await.unwrap();
/// });
/// # }
/// ```
///
/// What is counted is told by [`captured`](crate::captured). A failure shows what was asked, in order, and names the loop:
///
/// ```text
/// expected 1 trip, and there were 2
///
///   #  asked          of                                  keys  answer
///   1  trip: get      user_by_id                             1  1 found
///      get            user_by_id                             1  1 hit
///   2  trip: get      user_by_id                             1  1 found
///      get            user_by_id                             1  1 hit
///
/// 2 single gets of `user_by_id`: use `larder::get_many`
/// ```
#[macro_export]
macro_rules! assert_trips {
    ($expected:expr, $work:block $(,)?) => {
        $crate::assert_trips!($expected, async { $work })
    };
    ($expected:expr, $work:expr $(,)?) => {{
        let (answer, captured) = $crate::captured($work).await;
        captured.assert_trips($expected);
        answer
    }};
}

/// The same for calls of loaders: see [`assert_trips!`](crate::assert_trips).
///
/// ```
/// # use larder_testing::doc::{Db, UserById};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # use larder_testing::{TestCache, assert_loads};
/// let cache = TestCache::new(Db::of(["Ada", "Grace"])).await;
/// assert_loads!(1, larder_core::get_many::<UserById>(&cache, [0, 1])).unwrap();
/// assert_loads!(0, larder_core::get::<UserById>(&cache, &1)).unwrap();
/// # }
/// ```
#[macro_export]
macro_rules! assert_loads {
    ($expected:expr, $work:block $(,)?) => {
        $crate::assert_loads!($expected, async { $work })
    };
    ($expected:expr, $work:expr $(,)?) => {{
        let (answer, captured) = $crate::captured($work).await;
        captured.assert_loads($expected);
        answer
    }};
}

/// The same for statements of the database that sqlx executes: see [`assert_trips!`](crate::assert_trips).
///
/// ```no_run
/// # use larder_testing::assert_queries;
/// # async fn test(pool: sqlx::SqlitePool) -> Result<(), sqlx::Error> {
/// let count = sqlx::query_scalar("SELECT count(*) FROM users");
/// let count: i64 = assert_queries!(1, count.fetch_one(&pool))?;
/// # Ok(()) }
/// ```
#[macro_export]
macro_rules! assert_queries {
    ($expected:expr, $work:block $(,)?) => {
        $crate::assert_queries!($expected, async { $work })
    };
    ($expected:expr, $work:expr $(,)?) => {{
        let (answer, captured) = $crate::captured($work).await;
        captured.assert_queries($expected);
        answer
    }};
}
