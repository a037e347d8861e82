//! The flush audit: whether every write flushes all that shows what it wrote.
//!
//! For each field, and for creation and deletion: read as the service reads, so that the cache is warm; write as the service
//! writes; then compare what is cached under every key that was read with what the source has. While the write's own deletes
//! go out, somebody reads each deleted key at once, as another request would at the worst moment: a flush that comes before
//! its commit lets that reader put the old value back.

mod book;
mod finding;

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use larder_core::{Cache, Dataset, Entity, FieldBits, FieldSet, Plan, Source};
use tracing::Instrument as _;

pub use finding::{Finding, Problem};

pub(crate) use book::{Book, Deleted, texts};

use crate::capture::scope;
use crate::{Asked, captured};
use book::{Pages, Shared, Trouble, What};

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Audits the flush plan of an entity, through the service's own reads and writes.
///
/// It is told how the service reads what shows the entity, and how it writes each field; [`run`](FlushAudit::run) then
/// panics unless every write flushed all that shows it.
///
/// ```no_run
/// # use larder_core::{Cache, Entity, FieldBits, FieldSet, Source};
/// # #[derive(Clone, Copy, Debug, PartialEq, Eq)] enum UserField { Email, Name }
/// # impl FieldSet for UserField { const ALL: &'static [Self] = &[Self::Email, Self::Name]; fn name(self) -> &'static str { "…" } }
/// # struct User; impl Entity for User { const NAME: &'static str = "user"; type Id = u64; type Field = UserField;
/// #   fn id(&self) -> u64 { 7 } fn diff(&self, _: &Self) -> FieldBits { FieldBits::ALL } }
/// # struct App<S: Source> { cache: Cache<S> }
/// # impl<S: Source> App<S> {
/// #     async fn user(&self, _: u64) {} async fn user_by_email(&self, _: &str) {}
/// #     async fn rename(&self, _: u64, _: &str) -> Result<(), std::io::Error> { Ok(()) }
/// #     async fn move_to(&self, _: u64, _: &str) -> Result<(), std::io::Error> { Ok(()) }
/// #     async fn create(&self, _: u64, _: &str) -> Result<(), std::io::Error> { Ok(()) }
/// #     async fn delete(&self, _: u64) -> Result<(), std::io::Error> { Ok(()) }
/// # }
/// # async fn test<S: Source>(app: App<S>) {
/// use larder_testing::assert_flushes_complete;
///
/// assert_flushes_complete::<User>(&app.cache)
///     .reads(async || {
///         app.user(7).await;
///         app.user(8).await; // who isn't there until a step creates them
///         for email in ["ada@example.com", "countess@example.com", "grace@example.com"] {
///             app.user_by_email(email).await; // before and after: what a write makes appear was absent, and cached so
///         }
///     })
///     .field(UserField::Name, async || app.rename(7, "Augusta").await.unwrap())
///     .field(UserField::Email, async || app.move_to(7, "countess@example.com").await.unwrap())
///     .create(async || app.create(8, "grace@example.com").await.unwrap())
///     .delete(async || app.delete(7).await.unwrap())
///     .run()
///     .await;
/// # }
/// ```
///
/// Steps run in the order in which they are given, each after the reads. All keys that they read are compared after every
/// write, whether or not their data set declares anything about the entity; those of data that never changes aren't. A
/// failure says what was written, which key is stale, what differs there, and what the plan has.
///
/// The cache has to tell the kit what it does, as a [`TestCache`](crate::TestCache) does: see
/// [`Recorded`](crate::Recorded).
pub fn assert_flushes_complete<'a, T: Entity>(cache: &Cache<impl Source>) -> FlushAudit<'a, T> {
    let plan = cache.plan::<T>();
    FlushAudit {
        plan,
        pages: Box::new(Shared(Book::new(cache))),
        reads: Vec::new(),
        steps: Vec::new(),
        tolerated: BTreeSet::new(),
        excused: BTreeSet::new(),
        entity: PhantomData,
    }
}

/// An audit to be told how the service reads and writes: see [`assert_flushes_complete`].
#[must_use = "nothing is audited until it is run"]
pub struct FlushAudit<'a, T: Entity> {
    plan: Plan,
    pages: Box<dyn Pages>,
    reads: Vec<Box<dyn Fn() -> Work<'a> + 'a>>,
    steps: Vec<Step<'a>>,
    /// Data sets that may be stale.
    tolerated: BTreeSet<&'static str>,
    /// What nobody writes.
    excused: BTreeSet<String>,
    entity: PhantomData<fn() -> T>,
}

/// A write of one field, or of a whole row.
struct Step<'a> {
    name: String,
    fields: FieldBits,
    write: Box<dyn FnOnce() -> Work<'a> + 'a>,
}

/// What a row's coming and going are called among the fields.
const CREATION: &str = "creation";
const DELETION: &str = "deletion";

impl<'a, T: Entity> FlushAudit<'a, T> {
    /// Reads everything that shows the entity, as the service does; it is called before each write. Several are called one
    /// after the other.
    ///
    /// Of what a write moves it reads where it was and where it will be: a new address as well, whose absence is cached.
    pub fn reads(mut self, reads: impl AsyncFn() + 'a) -> Self {
        let reads = Arc::new(reads);
        self.reads.push(Box::new(move || {
            let reads = Arc::clone(&reads);
            Box::pin(async move { reads().await })
        }));
        self
    }

    /// Changes this field, as the service does.
    pub fn field(self, field: T::Field, write: impl AsyncFnOnce() + 'a) -> Self {
        self.step(
            field.name().to_owned(),
            [field].into_iter().collect(),
            write,
        )
    }

    /// Creates a row, as the service does.
    pub fn create(self, write: impl AsyncFnOnce() + 'a) -> Self {
        self.step(CREATION.to_owned(), FieldBits::ALL, write)
    }

    /// Deletes a row, as the service does.
    pub fn delete(self, write: impl AsyncFnOnce() + 'a) -> Self {
        self.step(DELETION.to_owned(), FieldBits::ALL, write)
    }

    /// Says that no code changes this field once the row is there.
    pub fn never_changes(mut self, field: T::Field) -> Self {
        self.excused.insert(field.name().to_owned());
        self
    }

    /// Says that no code creates rows.
    pub fn never_created(mut self) -> Self {
        self.excused.insert(CREATION.to_owned());
        self
    }

    /// Says that no code deletes rows.
    pub fn never_deleted(mut self) -> Self {
        self.excused.insert(DELETION.to_owned());
        self
    }

    /// Says that values of `D` may be old up to their TTL: a data set with
    /// [`Lifetime::TtlOnly`](larder_core::Lifetime::TtlOnly) for which that is right.
    pub fn may_be_stale<D: Dataset>(mut self) -> Self {
        self.tolerated.insert(D::NAME);
        self
    }

    fn step(mut self, name: String, fields: FieldBits, write: impl AsyncFnOnce() + 'a) -> Self {
        let write = Box::new(move || Box::pin(async move { write().await }) as Work<'a>);
        self.steps.push(Step {
            name,
            fields,
            write,
        });
        self
    }

    /// Runs the audit.
    ///
    /// # Panics
    ///
    /// If anything is wrong; it says all of it.
    #[expect(
        clippy::future_not_send,
        reason = "what it is told to run may not be, and a test awaits it in its own task"
    )]
    pub async fn run(self) {
        let findings = self.findings().await;
        if !findings.is_empty() {
            let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
            panic!(
                "the flushes of `{}` aren't complete:\n\n{}",
                T::NAME,
                told.join("\n")
            );
        }
    }

    /// Runs the audit, and answers all that is wrong.
    #[expect(
        clippy::future_not_send,
        reason = "what it is told to run may not be, and a test awaits it in its own task"
    )]
    pub async fn findings(mut self) -> Vec<Finding> {
        let mut findings = self.without_writer();
        for Step {
            name: step,
            fields,
            write,
        } in std::mem::take(&mut self.steps)
        {
            self.warm().await;
            let before = self.pages.look().await;
            findings.extend(self.tell(&step, before, true));

            let (written, captured) = captured(self.listened(write())).await;
            let (after, has_changed) = self.pages.compare().await;
            let mut problem = |problem| findings.push(Finding::of(T::NAME, &step, problem));
            if let Err(said) = written {
                problem(Problem::WriterFailed { said });
            } else if !has_changed && self.plan.watching(fields).next().is_some() {
                let has_flushed =
                    (captured.asked().iter()).any(|asked| matches!(asked, Asked::Flushed { .. }));
                problem(Problem::NothingChanged { has_flushed });
            }
            let unconfirmed = captured.asked().iter().find_map(|asked| match asked {
                Asked::Flushed {
                    keys,
                    is_confirmed: false,
                } => Some(keys.clone()),
                _ => None,
            });
            if let Some(keys) = unconfirmed {
                problem(Problem::Unconfirmed { keys });
            }
            findings.extend(self.tell(&step, after, false));
        }
        let read = self.pages.accessors();
        if read.is_empty() {
            findings.push(Finding::of(T::NAME, "", Problem::NothingRead));
        }
        let planned: BTreeSet<&'static str> = self.plan.accessors().collect();
        for accessor in planned
            .into_iter()
            .filter(|planned| !read.contains(planned))
        {
            let problem = Problem::NeverRead {
                accessor,
                plan: self.lines_of(accessor),
            };
            findings.push(Finding::of(T::NAME, "", problem));
        }
        findings
    }

    fn without_writer(&self) -> Vec<Finding> {
        let fields = T::Field::ALL.iter().map(|field| field.name());
        let expected = fields.chain([CREATION, DELETION]);
        let missing = expected.filter(|expected| {
            !self.excused.contains(*expected)
                && !self.steps.iter().any(|step| step.name == *expected)
        });
        missing
            .map(|step| Finding::of(T::NAME, step, Problem::NoWriter))
            .collect()
    }

    /// Reads all there is to read.
    #[expect(clippy::future_not_send, reason = "what it runs may not be")]
    async fn warm(&self) {
        for reads in &self.reads {
            let (read, _) = captured(self.listened(reads())).await;
            if let Err(said) = read {
                panic!("the reads of the audit failed: {said}");
            }
        }
    }

    /// Listens to this; answers what it said when it panicked.
    #[expect(clippy::future_not_send, reason = "what it runs may not be")]
    async fn listened(&self, work: Work<'_>) -> Result<(), String> {
        let mut work = pin!(work.instrument(scope::open(self.pages.mark())));
        std::future::poll_fn(|context| {
            match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
                Ok(poll) => poll.map(Ok),
                Err(panic) => Poll::Ready(Err(said(&*panic))),
            }
        })
        .await
    }

    /// What is wrong with keys, as findings; before a write only what it doesn't say itself again.
    fn tell(&self, step: &str, troubles: Vec<Trouble>, before: bool) -> Vec<Finding> {
        let told = troubles.into_iter().filter_map(|trouble| {
            let Trouble {
                accessor,
                key,
                what,
            } = trouble;
            if self.tolerated.contains(accessor) {
                return None;
            }
            let plan = self.lines_of(accessor);
            let problem = match what {
                // It was told after the write that made it so.
                What::Stale(_) | What::FlushedEarly(_) if before => return None,
                What::Stale(differences) => Problem::Stale {
                    accessor,
                    key,
                    differences,
                    plan,
                },
                What::FlushedEarly(differences) => Problem::FlushedBeforeCommit {
                    accessor,
                    key,
                    differences,
                },
                What::Uncached => Problem::NotCached { accessor, key },
                What::Unreadable(said) => Problem::Unreadable {
                    accessor,
                    key,
                    said,
                },
            };
            Some(Finding::of(T::NAME, step, problem))
        });
        told.collect()
    }

    /// The lines of the plan about a data set.
    fn lines_of(&self, accessor: &str) -> Vec<String> {
        let plan = self.plan.to_string();
        let of = format!("{accessor} on ");
        let lines = plan.lines().filter(|line| line.starts_with(&of));
        lines.map(str::to_owned).collect()
    }
}

impl<T: Entity> fmt::Debug for FlushAudit<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<&str> = self.steps.iter().map(|step| &*step.name).collect();
        f.debug_struct("FlushAudit")
            .field("entity", &T::NAME)
            .field("steps", &steps)
            .finish_non_exhaustive()
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked".to_owned())
}
