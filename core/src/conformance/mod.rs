//! The suite that every backend passes: what each sentence of the [`Backend`] contract means in practice, as a test.
//!
//! It opens no socket and starts no server. It is given a [`Subject`]: a backend, and what can be done to the store
//! under it (asking it directly, killing it, stopping it). What a subject can't do is said by name, never skipped in
//! silence: the tests that don't apply are listed where the backend joins, and the list is itself a test.
//!
//! ```
//! # mod joined {
//! use larder_core::conformance::{Abilities, Subject};
//! # use std::{sync::Arc, time::Duration};
//! # use larder_core::Backend;
//! # struct MySubject;
//! # impl MySubject { async fn start() -> Self { Self } }
//! # #[async_trait::async_trait]
//! # impl Subject for MySubject {
//! #     fn can(&self) -> Abilities { Abilities::one_server() }
//! #     async fn backend(&self) -> Arc<dyn Backend> { unimplemented!() }
//! #     async fn advance(&self, _: Duration) {}
//! # }
//!
//! larder_core::conformance! {
//!     #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
//!     mine => MySubject::start().await, except [
//!         fill_queued_before_the_reconnect_is_lost,
//!         hung_server_costs_a_call_its_deadline,
//!         // ...
//!     ];
//! }
//! # }
//! ```
//!
//! makes a module `mine` with one `#[tokio::test]` per case. `docs/backend-guide.md` walks through it.
//!
//! Databases have a suite of their own: [`Database`], joined by
//! [`database_conformance!`](crate::database_conformance!).
//!
//! A case that draws random numbers prints its seed when it fails; `LARDER_TEST_SEED` in the environment repeats it.

mod answers;
mod database;
mod faults;
mod leases;
mod scene;
mod script;
mod time;
mod values;

use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use database::{Database, run_on_database};

use crate::{Backend, Rt};
use scene::Scene;

/// What the suite is run on: a backend, and the store under it.
///
/// Every case starts one of its own, so it may kill and stop servers as it likes; dropping it should end them.
/// The cases call what [`Subject::can`] promises and nothing else, so the rest may be left out.
#[async_trait]
pub trait Subject: Send + Sync + 'static {
    /// What this subject is able to do.
    fn can(&self) -> Abilities;

    /// A new handle onto the same store, as another process would have it.
    ///
    /// Its deadlines should be generous, a second or more: the machine is busy with other tests.
    async fn backend(&self) -> Arc<dyn Backend>;

    /// Lets this much time pass for the store and its handles: by moving a paused clock, or by waiting.
    async fn advance(&self, duration: Duration);

    /// The store's own word on a raw key, on another way than through a backend; `None` if it isn't there.
    async fn peek(&self, key: &str) -> Option<Peeked> {
        unreachable!("peek({key}): the subject says it can't")
    }

    /// Kills a server as `kill -9` does. When this returns, the server is gone.
    async fn kill(&self, server: usize) {
        unreachable!("kill({server}): the subject says it can't")
    }

    /// Starts a killed server again, empty and at the same address. When this returns, it answers.
    async fn restart(&self, server: usize) {
        unreachable!("restart({server}): the subject says it can't")
    }

    /// Stops a server as SIGSTOP does: it keeps its connections and answers nothing.
    async fn stop(&self, server: usize) {
        unreachable!("stop({server}): the subject says it can't")
    }

    /// Lets a stopped server go on.
    async fn resume(&self, server: usize) {
        unreachable!("resume({server}): the subject says it can't")
    }

    /// Texts that must never be shown: the passwords the backend was configured with.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What the store itself says about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peeked {
    /// The stored bytes; empty for the placeholder of a lease.
    pub value: Bytes,
    /// How long the store will keep it; `None` for as long as it can.
    pub ttl: Option<Duration>,
}

impl Peeked {
    /// These bytes, kept this long.
    pub fn new(value: impl Into<Bytes>, ttl: impl Into<Option<Duration>>) -> Self {
        Self {
            value: value.into(),
            ttl: ttl.into(),
        }
    }
}

/// What a subject can do, and the limits of its store.
///
/// ```
/// use larder_core::conformance::Abilities;
///
/// let memcached = Abilities::one_server().servers(3).peeks().kills().stops();
/// let in_process = Abilities::one_server().skips_time().exact_time();
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Abilities {
    /// How many servers its keys are spread over.
    pub servers: usize,
    /// [`Subject::peek`].
    pub peeks: bool,
    /// [`Subject::kill`] and [`Subject::restart`].
    pub kills: bool,
    /// [`Subject::stop`] and [`Subject::resume`].
    pub stops: bool,
    /// [`Subject::advance`] takes no time, so that a year can pass.
    pub skips_time: bool,
    /// TTLs and leases end to the moment; otherwise up to 3 s late.
    pub exact_time: bool,
    /// A value of this many bytes must be stored.
    pub largest_value: usize,
    /// A value of this many bytes must be refused.
    pub too_large_value: usize,
    /// The longest a call may take while its server is stopped.
    pub patience: Duration,
}

impl Abilities {
    /// One server of memcached's limits, and nothing that can be done to it.
    pub fn one_server() -> Self {
        Self {
            servers: 1,
            peeks: false,
            kills: false,
            stops: false,
            skips_time: false,
            exact_time: false,
            largest_value: 1_000_000,
            too_large_value: (1 << 20) + 1,
            patience: Duration::from_secs(10),
        }
    }

    /// Spreads its keys over this many servers.
    #[must_use]
    pub fn servers(mut self, count: usize) -> Self {
        self.servers = count;
        self
    }

    /// Can ask the store itself.
    #[must_use]
    pub fn peeks(mut self) -> Self {
        self.peeks = true;
        self
    }

    /// Can kill and restart its servers.
    #[must_use]
    pub fn kills(mut self) -> Self {
        self.kills = true;
        self
    }

    /// Can stop and resume its servers.
    #[must_use]
    pub fn stops(mut self) -> Self {
        self.stops = true;
        self
    }

    /// Has a clock that can be moved.
    #[must_use]
    pub fn skips_time(mut self) -> Self {
        self.skips_time = true;
        self
    }

    /// Ends TTLs and leases to the moment.
    #[must_use]
    pub fn exact_time(mut self) -> Self {
        self.exact_time = true;
        self
    }

    /// Stores values up to the first length, and refuses them from the second on.
    #[must_use]
    pub fn value_limits(mut self, largest: usize, too_large: usize) -> Self {
        self.largest_value = largest;
        self.too_large_value = too_large;
        self
    }

    /// Ends calls to a stopped server within this.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What a case asks of its subject beyond a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Peek,
    Kill,
    Stop,
    /// More than one server, of which one can be killed.
    KillOneOfSeveral,
    /// To live through a year, or to ask the store how long it means to keep an entry.
    LongTime,
}

impl Need {
    /// What is missing, if anything is.
    fn missing(self, can: &Abilities) -> Option<&'static str> {
        let (met, missing) = match self {
            Self::Nothing => (true, ""),
            Self::Peek => (can.peeks, "ask its store directly"),
            Self::Kill => (can.kills, "kill and restart its servers"),
            Self::Stop => (can.stops, "stop and resume its servers"),
            Self::KillOneOfSeveral => (can.kills && can.servers > 1, "kill one of several servers"),
            Self::LongTime => (
                can.peeks || can.skips_time,
                "ask its store how long it keeps an entry, nor move its clock",
            ),
        };
        (!met).then_some(missing)
    }
}

/// One sentence of the contract, as a test.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    need: Need,
    run: for<'a> fn(&'a Scene) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

/// Every case of the suite.
pub const CASES: &[Case] = crate::__conformance_cases! { __conformance_table {} };

/// How a case ended, if it didn't panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The backend keeps this sentence.
    Passed,
    /// The subject can't do this, which the case needs.
    NotApplicable(&'static str),
}

/// A case that takes longer has met a call that never ends.
const LIMIT: Duration = Duration::from_secs(120);

impl Case {
    /// The case of this name.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn named(name: &str) -> Self {
        let case = CASES.iter().find(|case| case.name == name);
        *case.unwrap_or_else(|| panic!("the conformance suite has no case `{name}`"))
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it, or says what the subject is missing.
    ///
    /// # Panics
    ///
    /// If the backend breaks its contract.
    pub async fn run(&self, subject: impl Subject) -> Verdict {
        let can = subject.can();
        if let Some(missing) = self.need.missing(&can) {
            return Verdict::NotApplicable(missing);
        }
        let scene = Scene::new(self.name, Arc::new(subject));
        // A clock that a test moves says nothing about how long the case really takes.
        if can.skips_time {
            (self.run)(&scene).await;
        } else {
            let ended = Rt::new().timeout(LIMIT, (self.run)(&scene)).await;
            assert!(ended.is_some(), "no end within {LIMIT:?}: a call hangs");
        }
        Verdict::Passed
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("need", &self.need)
            .finish_non_exhaustive()
    }
}

/// The names of the cases that don't apply to a subject, in the suite's order.
pub fn not_applicable(can: &Abilities) -> Vec<&'static str> {
    CASES
        .iter()
        .filter(|case| case.need.missing(can).is_some())
        .map(Case::name)
        .collect()
}

/// Runs the case of this name for [`conformance!`](crate::conformance!), and says so if it doesn't apply.
///
/// # Panics
///
/// If there is no such case, or the backend breaks its contract.
pub async fn run(module: &str, name: &str, subject: impl Subject) {
    if let Verdict::NotApplicable(missing) = Case::named(name).run(subject).await {
        // Written past the capture of the test harness, which hides what a passing test prints. That it can't be
        // written is no reason to fail.
        let _ = writeln!(
            std::io::stderr(),
            "not applicable: {module}::{name}: the subject can't {missing}"
        );
    }
}

/// Checks that exactly these cases don't apply.
///
/// # Panics
///
/// If they aren't those.
pub fn check_exceptions(subject: &impl Subject, listed: &[&str]) {
    let mut listed = listed.to_vec();
    listed.sort_unstable();
    let mut actual = not_applicable(&subject.can());
    actual.sort_unstable();
    assert_eq!(
        listed, actual,
        "the cases after `except` (left) should be those that the subject can't do (right)"
    );
}

/// Joins backends to the suite: for each line a module of that name with one test per case.
///
/// The attributes make each case a test, and so choose the runtime; the expression makes its subject and may await;
/// after `except` stand the cases that don't apply. See [`conformance`](mod@crate::conformance).
#[macro_export]
macro_rules! conformance {
    ($(
        $(#[$attribute:meta])+
        $name:ident => $subject:expr $(, except [$($exception:ident),* $(,)?])?;
    )+) => {$(
        mod $name {
            use super::*;

            $crate::__conformance_cases! { __conformance_tests { [$(#[$attribute])+] [$subject] } }

            $(#[$attribute])+
            async fn cases_that_do_not_apply_are_listed() {
                $crate::conformance::check_exceptions(&$subject, &[$($(stringify!($exception)),*)?]);
            }
        }
    )+};
}

/// The list of cases, once, for whatever is made of it: the table and the tests.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ($then:ident $context:tt) => {
        $crate::$then! {
            $context
            answers::look_ups_answer_in_order_with_duplicates: Nothing,
            answers::leases_and_fills_answer_in_order_with_duplicates: Nothing,
            answers::deletes_answer_in_order_with_duplicates: Nothing,
            answers::releases_answer_in_order_with_duplicates: Nothing,
            answers::stores_answer_in_order_with_duplicates: Nothing,
            answers::empty_batch_does_no_io: Nothing,
            answers::trips_are_one_per_server_and_batch: Nothing,
            answers::statistics_count_trips_and_keys: Nothing,
            answers::first_poll_hands_the_fills_over: Nothing,
            answers::closed_handle_refuses_calls: Nothing,
            answers::close_waits_for_what_is_under_way: Nothing,
            answers::check_answers_for_every_server: Nothing,
            answers::display_shows_the_store_without_credentials: Nothing,
            answers::handles_of_one_store_describe_one_pool: Nothing,
            values::any_bytes_are_a_value: Nothing,
            values::large_value_is_kept_whole: Nothing,
            values::empty_value_is_refused: Nothing,
            values::oversized_value_fails_alone: Nothing,
            values::longest_key_is_a_key: Nothing,
            values::similar_keys_are_different: Nothing,
            values::deleting_what_is_absent_succeeds: Nothing,
            values::repeated_delete_only_removes: Nothing,
            values::set_immutable_overwrites: Nothing,
            values::handles_see_each_others_entries: Nothing,
            values::store_holds_exactly_what_was_stored: Peek,
            leases::plain_look_wins_nothing: Nothing,
            leases::one_of_many_contenders_wins: Nothing,
            leases::loser_learns_the_lease_and_its_age: Nothing,
            leases::lease_at_most_covers_the_first_keys_only: Nothing,
            leases::lease_fills_once: Nothing,
            leases::lease_fills_only_its_own_key: Nothing,
            leases::delete_voids_lease: Nothing,
            leases::second_lease_beats_the_first_filler: Nothing,
            leases::set_immutable_voids_lease: Nothing,
            leases::release_frees_at_once: Nothing,
            leases::released_lease_cannot_fill: Nothing,
            leases::release_of_a_lost_lease_harms_nobody: Nothing,
            leases::take_over_replaces_exactly_what_was_read: Nothing,
            leases::take_over_is_voided_by_a_delete: Nothing,
            leases::take_over_is_won_by_one: Nothing,
            leases::take_over_of_a_busy_lease_beats_its_holder: Nothing,
            leases::release_of_a_take_over_frees_the_key: Nothing,
            leases::lost_fill_leaves_nothing_in_the_store: Peek,
            time::short_ttl_is_kept_and_ends: Nothing,
            time::ttl_of_a_fill_is_its_own: Nothing,
            time::long_ttl_is_kept: LongTime,
            time::lease_stands_for_its_time: Nothing,
            time::expired_lease_is_free_and_cannot_fill: Nothing,
            time::entry_without_ttl_stays: LongTime,
            faults::dropped_calls_cross_no_replies: Nothing,
            faults::dropped_batches_leave_the_handle_usable: Nothing,
            faults::lease_from_before_a_kill_is_lost: Kill,
            faults::fill_queued_before_the_reconnect_is_lost: Kill,
            faults::killed_server_is_reported_and_used_again: Kill,
            faults::dead_server_fails_only_its_keys: KillOneOfSeveral,
            faults::hung_server_costs_a_call_its_deadline: Stop,
            script::random_commands_agree_with_the_model: Nothing,
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_table {
    ({} $($module:ident::$case:ident: $need:ident,)+) => {
        &[$(Case {
            name: stringify!($case),
            need: Need::$need,
            run: |scene| Box::pin($module::$case(scene)),
        }),+]
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ({ $attributes:tt $subject:tt } $($module:ident::$case:ident: $need:ident,)+) => {
        $($crate::__conformance_test! { $attributes $subject $case })+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_test {
    ([$($attribute:tt)+] [$subject:expr] $case:ident) => {
        $($attribute)+
        async fn $case() {
            $crate::conformance::run(module_path!(), stringify!($case), $subject).await;
        }
    };
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_of_cases_are_unique() {
        let names: HashSet<_> = CASES.iter().map(Case::name).collect();
        assert_eq!(names.len(), CASES.len());
    }

    #[test]
    fn bare_subject_is_told_what_does_not_apply() {
        let names = not_applicable(&Abilities::one_server());
        assert!(names.contains(&"long_ttl_is_kept"), "{names:?}");
        assert!(
            names.contains(&"dead_server_fails_only_its_keys"),
            "{names:?}"
        );
        assert!(!names.contains(&"delete_voids_lease"), "{names:?}");
    }

    #[test]
    fn subject_that_can_do_everything_is_spared_nothing() {
        let able = Abilities::one_server().servers(2).peeks().kills().stops();
        assert_eq!(not_applicable(&able), Vec::<&str>::new());
    }
}
