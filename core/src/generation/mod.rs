//! Generations: which running versions of the code there are, and so under which prefixes entries are read, filled and
//! flushed.
//!
//! Without a database there is one, whose prefix is configured. With one, a generation is a row of its register: a random
//! id, the version of the code, the pool of servers, and a manifest of what is cached. What holds:
//!
//! - A data set is read and filled only while every live generation lists it under the same rule: so every writer knows
//!   every key that anybody reads.
//! - A writer asks which generations are live after its commit, or has asked less than [`FRESH`] before; a generation
//!   that isn't the first waits longer than that before its first fill, and before its first commit. The same holds for
//!   an accessor whose prefix was changed by a purge.
//! - A process uses its generation only within its registration, and what it knows of the register for [`TRUSTED`] at
//!   most, by a clock that counts suspension. A generation that can't flush all that others cache waits longer than that
//!   before its first commit, so that they have stopped reading it.
//! - A generation is dead once its row is deleted. A writer's outbox row refers to it, so a writer who slept through the
//!   deletion can't commit.

mod enter;
mod manifest;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;

use enter::is_private;
pub(crate) use enter::{Entrant, holder, registered_pool};
pub(crate) use manifest::{Listed, Manifest};

use crate::contract::{Backend, Error, ErrorKind, Pool, Prefix, Result};
use crate::switches::Switches;
use crate::write::{Edit, Generation, Purge, Register, Registered, answered};
use crate::{Mechanism, Rt};

/// A copy of the register is used for a flush if it isn't older.
pub(crate) const FRESH: Duration = Duration::from_secs(2);

/// So long a generation that isn't the first waits, from its registration to its first fill and its first commit.
const ACTIVATION: Duration = Duration::from_millis(2_200);

/// What is known of the register is used for reading no longer. It is read every second or so; a database that is away
/// for less than this costs no hits.
const TRUSTED: Duration = Duration::from_secs(10);

/// So long a generation that isn't the first waits, from its registration to its first commit, where others cache what it
/// can't flush: until they know of it, or read no more.
const DISAGREEING: Duration = Duration::from_secs(11);

/// A generation this old that is live was there before for as long as any wait, however long its commit took: its
/// registration was renewed since, and one that is over when it is committed is renewed by nobody.
const SETTLED: Duration = REGISTRATION.saturating_add(DISAGREEING);

/// How long a registration lasts unless it is renewed.
pub(crate) const REGISTRATION: Duration = Duration::from_secs(60);

/// A registration isn't used for reading any more this long before its end.
const MARGIN: Duration = Duration::from_secs(10);

/// A generation that was renewed by one process isn't renewed by another one so soon.
const RENEWED: Duration = Duration::from_secs(5);

/// So many generations at once are a deploy; more are a mistake somewhere, and each costs every write an exchange.
const MANY: usize = 3;

/// Keys under an epoch that was purged are flushed as well, until nobody can read them any more.
const PURGED: Duration = REGISTRATION;

/// Stands for all data sets in the list of what was purged: that is what a rotation leaves.
const EVERYTHING: &str = "*";

/// What there is of accessors, by their names: every read may look there.
type ByAccessor<V> = HashMap<String, V, foldhash::fast::RandomState>;

/// Opens the pool of another generation by its description.
pub(crate) type OpenPool = Box<dyn Fn(&str, Rt) -> Result<Arc<dyn Backend>> + Send + Sync>;

/// Under which prefixes this process reads, fills and flushes.
pub(crate) struct Generations {
    standing: ArcSwap<Standing>,
    targets: ArcSwap<Targets>,
    member: ArcSwap<Member>,
    registration: Option<Registration>,
    switches: Switches,
    rt: Rt,
}

/// What a process knows of its own generation. Times are by the clock that counts suspension.
#[derive(Clone)]
struct Standing {
    prefix: Prefix,
    /// Accessors whose keys begin otherwise.
    own_prefixes: ByAccessor<Prefix>,
    /// Accessors that are read past the store, and why.
    uncached: ByAccessor<Uncached>,
    /// Accessors that were purged a moment ago, so that not every writer knows their prefix yet, and from when on all do.
    purged: ByAccessor<Duration>,
    /// Until when it is used for reading.
    until: Option<Duration>,
    /// From when on it is used for reading and filling.
    active_from: Option<Duration>,
}

/// As what this process may commit: all of it is of one look at the register.
#[derive(Default)]
pub(crate) struct Member {
    /// The generation under which outbox rows are put; none while this process isn't registered.
    pub(crate) id: Option<String>,
    /// From when on it may commit, by the clock that counts suspension.
    commits_from: Option<Duration>,
    /// Accessors that the generation's manifest has and this program hasn't, by the entity they watch.
    lacking: HashMap<String, Vec<String>>,
}

impl Member {
    /// Why changes of these entities can't be committed now.
    pub(crate) fn objection<'e>(
        &self,
        entities: impl Iterator<Item = &'e str>,
        rt: Rt,
    ) -> Option<Error> {
        let anew = || {
            Error::new(
                ErrorKind::Unavailable,
                "this process is registering anew, and can't commit changes yet; roll back and try again",
            )
        };
        if self.id.is_none() || self.commits_from.is_some_and(|from| rt.awake() < from) {
            return Some(anew());
        }
        let mut lacking = entities.filter_map(|entity| Some((entity, self.lacking.get(entity)?)));
        let (entity, lacking) = lacking.next()?;
        Some(Error::new(
            ErrorKind::Config,
            format!(
                "this program can't commit changes of `{entity}`: it isn't linked with {}, which another process of its \
                 version caches; name the crate that has them: `larder::link!(that_crate);`",
                list(lacking)
            ),
        ))
    }
}

/// Why an accessor is read past the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Uncached {
    /// A live generation doesn't have it, so its writers wouldn't flush it.
    Missing {
        /// That generation's version.
        version: String,
    },
    /// A live generation finds its keys otherwise, or watches other fields.
    Differs {
        /// That generation's version.
        version: String,
    },
}

/// Where a flush goes, as known at some time.
struct Targets {
    at: Duration,
    all: Arc<[Target]>,
    /// The longest time for which anything that any of them caches may be served, and what is built from that.
    longest_ttl: Option<Duration>,
    live: Vec<LiveGeneration>,
}

/// One generation to flush.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) backend: Result<Arc<dyn Backend>>,
    prefix: Prefix,
    /// Under which an accessor's keys are, where it isn't the generation's.
    own_prefixes: ByAccessor<Vec<Prefix>>,
}

/// A generation that is live, as statistics show it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LiveGeneration {
    /// Its id, with which its keys begin.
    pub id: String,
    /// Which code it is.
    pub version: String,
    /// Where its entries live.
    pub pool: String,
    /// The process that registered it.
    pub holder: String,
    /// For how many seconds it was registered when this was read.
    pub left_s: u64,
    /// Whether it is that of this process.
    pub is_own: bool,
}

/// How one read goes.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) prefix: Prefix,
    /// Whether the store may be asked.
    pub(crate) through: bool,
    until: Option<Duration>,
}

impl Reading {
    /// Whether what was answered by now may be used.
    pub(crate) fn stands(&self, rt: &Rt) -> bool {
        self.until.is_none_or(|until| rt.awake() < until)
    }
}

impl Target {
    /// The prefixes under which this accessor's keys are there.
    pub(crate) fn prefixes(&self, accessor: &str) -> &[Prefix] {
        match self.own_prefixes.get(accessor) {
            Some(prefixes) => prefixes,
            None => std::slice::from_ref(&self.prefix),
        }
    }
}

/// The part of [`Generations`] that needs a database.
struct Registration {
    register: Arc<dyn Register>,
    entrant: Entrant,
    id: ArcSwap<String>,
    entered: Mutex<Entered>,
    /// When each purge was known, by its epoch.
    seen: Mutex<HashMap<String, Duration>>,
    pools: Mutex<HashMap<String, Arc<dyn Backend>>>,
    open: OpenPool,
    /// Held by whoever asks the register; how it failed last.
    asking: tokio::sync::Mutex<Option<Failure>>,
    warned_of_many: Mutex<Option<usize>>,
}

impl Generations {
    /// The one generation of a configured prefix.
    pub(crate) fn single(
        prefix: Prefix,
        backend: Arc<dyn Backend>,
        rt: Rt,
        switches: Switches,
    ) -> Self {
        let prefix = prefix.for_pool(&backend.pool());
        let target = Target {
            backend: Ok(backend),
            prefix,
            own_prefixes: ByAccessor::default(),
        };
        Self {
            standing: ArcSwap::from_pointee(Standing::of(prefix)),
            targets: ArcSwap::from_pointee(Targets {
                all: Arc::new([target]),
                ..Targets::none()
            }),
            member: ArcSwap::default(),
            registration: None,
            switches,
            rt,
        }
    }

    /// Registers this process, or joins the generation of its code and pool.
    pub(crate) async fn enter(
        register: Arc<dyn Register>,
        entrant: Entrant,
        backend: Arc<dyn Backend>,
        open: OpenPool,
        rt: Rt,
    ) -> Result<Self> {
        let switches = entrant.switches;
        let pools = HashMap::from([(entrant.pool.description.clone(), backend)]);
        let generations = Self {
            standing: ArcSwap::from_pointee(Standing::of(Prefix::random())),
            targets: ArcSwap::from_pointee(Targets::none()),
            member: ArcSwap::default(),
            registration: Some(Registration {
                register,
                entrant,
                id: ArcSwap::from_pointee(String::new()),
                entered: Mutex::default(),
                seen: Mutex::default(),
                pools: Mutex::new(pools),
                open,
                asking: tokio::sync::Mutex::default(),
                warned_of_many: Mutex::default(),
            }),
            switches,
            rt,
        };
        generations.enter_anew().await?;
        Ok(generations)
    }

    /// How reads of this accessor go now.
    pub(crate) fn reading(&self, accessor: &str) -> Reading {
        let standing = self.standing.load();
        let stands = match (standing.until, standing.active_from) {
            (None, None) => true,
            (until, from) => {
                let now = self.rt.awake();
                until.is_none_or(|until| now < until) && from.is_none_or(|from| now >= from)
            }
        };
        let purged = || {
            let from = standing.purged.get(accessor);
            from.is_some_and(|from| self.rt.awake() < *from)
        };
        Reading {
            prefix: standing.prefix_of(accessor),
            through: stands && !standing.uncached.contains_key(accessor) && !purged(),
            until: standing.until,
        }
    }

    /// The prefix of this accessor's keys now.
    pub(crate) fn prefix_of(&self, accessor: &str) -> Prefix {
        self.standing.load().prefix_of(accessor)
    }

    /// The prefix of most accessors' keys now.
    pub(crate) fn prefix(&self) -> Prefix {
        self.standing.load().prefix
    }

    /// Where to flush what is committed by now: asks the register if what is known is older than [`FRESH`].
    pub(crate) async fn targets(&self) -> Result<Arc<[Target]>> {
        let Some(registration) = &self.registration else {
            return Ok(Arc::clone(&self.targets.load().all));
        };
        if !self.knows(FRESH) && !self.switches.is_off(Mechanism::RegisterAfterCommit) {
            let came = self.rt.awake();
            let mut failed = registration.asking.lock().await;
            if !self.knows(FRESH) {
                // Whoever waited while the database didn't answer doesn't wait for it once more, one after the other.
                if let Some(Failure { error, .. }) = failed.as_ref().filter(|last| last.at > came) {
                    return Err(error.clone());
                }
                self.ask_now(registration, &mut failed).await?;
            }
        }
        Ok(Arc::clone(&self.targets.load().all))
    }

    fn knows(&self, age: Duration) -> bool {
        self.rt.awake().saturating_sub(self.targets.load().at) < age
    }

    /// Waits until this generation may commit: longer than others may use a copy of the register without it.
    pub(crate) async fn may_commit(&self) {
        loop {
            let from = self.member.load().commits_from;
            let wait = from.map(|from| from.saturating_sub(self.rt.awake()));
            match wait.filter(|wait| !wait.is_zero()) {
                Some(wait) => self.rt.sleep(wait).await,
                None => return,
            }
        }
    }

    /// As what a transaction commits that is checked now; `None` without a database.
    pub(crate) fn member(&self) -> Option<Arc<Member>> {
        self.registration.as_ref().map(|_| self.member.load_full())
    }

    /// Renews the registration, and reads the register: to be called more often than every [`FRESH`].
    ///
    /// Where the registration has ended, this process registers anew.
    pub(crate) async fn keep(&self, renew: bool) -> Result<()> {
        let Some(registration) = &self.registration else {
            return Ok(());
        };
        let register = &registration.register;
        if renew {
            let id = registration.id.load_full();
            let renewed = register.renew(&id, REGISTRATION, RENEWED);
            if !answered(self.rt, renewed).await? {
                return self.enter_anew().await;
            }
        }
        match self.ask(registration).await? {
            Found::Over => self.enter_anew().await,
            // Nobody reads them any more; while they are there, every write flushes them, and what they can't flush isn't
            // cached.
            Found::OthersOver if renew => {
                let mut decide = |registered: &Registered| {
                    Ok(enter::end(
                        registered,
                        |known| known.left.is_zero(),
                        self.switches,
                    ))
                };
                answered(self.rt, register.edit(&mut decide)).await?;
                self.ask(registration).await.map(drop)
            }
            Found::OthersOver | Found::Live => Ok(()),
        }
    }

    /// After this long, nothing that was cached before is served by anybody.
    pub(crate) fn longest_ttl(&self) -> Option<Duration> {
        self.targets.load().longest_ttl
    }

    /// Which generations are live, as known by now.
    pub(crate) fn live(&self) -> Vec<LiveGeneration> {
        self.targets.load().live.clone()
    }

    /// The accessors that are read past the store, and why.
    pub(crate) fn uncached(&self) -> HashMap<String, Uncached> {
        let standing = self.standing.load();
        let uncached = standing.uncached.iter();
        uncached
            .map(|(accessor, why)| (accessor.clone(), why.clone()))
            .collect()
    }

    /// Gives up all entries of an accessor, in every generation.
    pub(crate) async fn purge(&self, accessor: &str) -> Result<()> {
        let Some(registration) = &self.registration else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "`{accessor}` can't be purged: nothing tells other processes, since the source has no outbox; \
                     configure another prefix"
                ),
            ));
        };
        if registration.entrant.manifest.get(accessor).is_none() {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "`{accessor}` can't be purged: it wasn't registered when the cache was built, so that no manifest lists \
                     it; name it in `larder::dataset!`"
                ),
            ));
        }
        let mut decide = |registered: &Registered| {
            let recent = |purge: &&Purge| purge.accessor == accessor && purge.age < PURGED;
            if let Some(purge) = registered.purges.iter().find(recent) {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "`{accessor}` was purged {} s ago, and can be again after {} s",
                        purge.age.as_secs(),
                        PURGED.as_secs()
                    ),
                ));
            }
            Ok(vec![enter::purge(accessor)])
        };
        answered(self.rt, registration.register.edit(&mut decide)).await?;
        self.ask(registration).await.map(drop)
    }

    /// Ends every registration, so that each process registers anew and finds an empty cache: after a restore of the
    /// database, whose rows are older than what is cached.
    pub(crate) async fn rotate(&self) -> Result<()> {
        let Some(registration) = &self.registration else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "there are no generations to rotate, since the source has no outbox; configure another prefix",
            ));
        };
        let mut decide = |registered: &Registered| {
            let ids = registered.generations.iter().map(|live| live.id.clone());
            // Until nobody can read what they have left, nobody commits, and what was committed before is flushed there.
            let edits = ids.map(|id| match self.switches.is_off(Mechanism::Activation) {
                true => Edit::Delete { id },
                false => Edit::End { id },
            });
            Ok(edits.chain([enter::purge(EVERYTHING)]).collect())
        };
        answered(self.rt, registration.register.edit(&mut decide)).await?;
        self.enter_anew().await
    }

    /// Ends the registration, if it is that of this process alone.
    pub(crate) async fn leave(&self) {
        let Some(registration) = &self.registration else {
            return;
        };
        if registration.entrant.is_private() {
            // Whoever waits for its end may write at once, and flushes nothing here. Nobody understands meanwhile what was
            // read of the register before.
            let _asking = registration.asking.lock().await;
            self.stop_reading();
            let id = registration.id.load_full();
            let mut decide = |registered: &Registered| {
                Ok(enter::end(
                    registered,
                    |known| known.id == *id,
                    self.switches,
                ))
            };
            let edit = registration.register.edit(&mut decide);
            if let Err(error) = answered(self.rt, edit).await {
                tracing::debug!(%error, "the registration wasn't ended; it ends by itself");
            }
        }
    }

    /// Closes the pools of other generations.
    pub(crate) async fn close(&self, own: &Arc<dyn Backend>, deadline: Duration) {
        let Some(registration) = &self.registration else {
            return;
        };
        let pools: Vec<Arc<dyn Backend>> = registration
            .lock_pools()
            .drain()
            .map(|(_, pool)| pool)
            .collect();
        for pool in pools.into_iter().filter(|pool| !Arc::ptr_eq(pool, own)) {
            pool.close(deadline).await;
        }
    }

    async fn enter_anew(&self) -> Result<()> {
        let Some(registration) = &self.registration else {
            return Ok(());
        };
        let entered = registration.entrant.enter(&*registration.register);
        let (id, is_minted) = answered(self.rt, entered).await?;
        {
            let mut failed = registration.asking.lock().await;
            *registration.lock_entered() = Entered {
                at: self.rt.awake(),
                is_minted,
            };
            registration.id.store(Arc::new(id));
            self.ask_now(registration, &mut failed).await?;
        }
        Ok(())
    }

    /// Has reads go past the store from now on.
    fn stop_reading(&self) {
        self.standing.rcu(|known| Standing {
            until: Some(Duration::ZERO),
            ..Standing::clone(known)
        });
    }

    async fn ask(&self, registration: &Registration) -> Result<Found> {
        let mut failed = registration.asking.lock().await;
        self.ask_now(registration, &mut failed).await
    }

    /// Reads the register, and understands it. One at a time: what was read first mustn't be understood last.
    async fn ask_now(
        &self,
        registration: &Registration,
        failed: &mut Option<Failure>,
    ) -> Result<Found> {
        let sent = self.rt.awake();
        let read = answered(self.rt, registration.register.read()).await;
        let registered = read.inspect_err(|error| {
            *failed = Some(Failure {
                at: self.rt.awake(),
                error: error.clone(),
            });
        })?;
        let asked = Asked {
            sent,
            answered: self.rt.awake(),
        };
        let id = registration.id.load_full();
        let own = registered.generations.iter().find(|known| known.id == *id);
        let is_over = own.is_none_or(|own| {
            own.left.is_zero() || registration.entrant.should_move(own, &registered)
        });
        let others_over = (registered.generations.iter()).any(|known| known.left.is_zero());
        let understood = registration.understand(asked, &registered, own, self.rt);
        let Understood {
            standing,
            targets,
            member,
        } = understood;
        self.targets.store(Arc::new(targets));
        self.member.store(Arc::new(match is_over {
            true => Member::default(),
            false => member,
        }));
        registration.close_pools_but(&registered, self.rt);
        let reads_on = self.switches.is_off(Mechanism::Registration);
        match is_over {
            true if reads_on => {}
            // It isn't used for reading any more; this process registers anew.
            true => self.stop_reading(),
            false => self.standing.store(Arc::new(standing)),
        }
        Ok(match (is_over, others_over) {
            (true, _) => Found::Over,
            (false, true) => Found::OthersOver,
            (false, false) => Found::Live,
        })
    }
}

/// When this process was known to be registered.
#[derive(Clone, Copy, Default)]
struct Entered {
    at: Duration,
    /// Whether it registered the generation itself.
    is_minted: bool,
}

/// That the register couldn't be asked.
struct Failure {
    at: Duration,
    error: Error,
}

/// What follows from one look at the register.
struct Understood {
    standing: Standing,
    targets: Targets,
    member: Member,
}

/// What became of registrations.
enum Found {
    /// The own one is over.
    Over,
    /// One of another generation is, which still has its row.
    OthersOver,
    /// None is.
    Live,
}

/// When the register was asked: what it said was so at some time between these.
#[derive(Clone, Copy)]
struct Asked {
    sent: Duration,
    answered: Duration,
}

impl Registration {
    /// What follows from what is registered.
    fn understand(
        &self,
        asked: Asked,
        registered: &Registered,
        own: Option<&Generation>,
        rt: Rt,
    ) -> Understood {
        let entrant = &self.entrant;
        let is_on = |mechanism| !entrant.switches.is_off(mechanism);
        let mut standing = Standing::of(Prefix::random());
        let mut targets = Targets {
            at: asked.sent,
            ..Targets::none()
        };
        let mut member = Member::default();
        let mut all = Vec::new();
        let mut agrees = true;
        for generation in &registered.generations {
            let is_own = own.is_some_and(|own| own.id == generation.id);
            let pool = Pool::new(&*generation.pool, entrant.reach());
            let Ok(prefix) = Prefix::new(&generation.id).map(|prefix| prefix.for_pool(&pool))
            else {
                continue;
            };
            let manifest = Manifest::of_text(&generation.manifest);
            let own_prefixes = manifest.prefixes(&generation.id, &pool, &registered.purges);
            if is_own {
                standing.prefix = prefix;
                standing.own_prefixes = own_prefixes
                    .iter()
                    .map(|(accessor, prefixes)| (accessor.clone(), prefixes[0]))
                    .collect();
                let left = generation.left.saturating_sub(MARGIN);
                // A moment that may have come is taken for one that has.
                standing.until =
                    is_on(Mechanism::Registration).then(|| asked.sent + left.min(TRUSTED));
                member.id = Some(generation.id.clone());
                member.lacking = manifest.lacking(&entrant.manifest);
            }
            targets.longest_ttl = targets.longest_ttl.max(manifest.longest_ttl());
            agrees &= is_own || entrant.manifest.cant_flush(&manifest).next().is_none();
            for (name, listed) in entrant.manifest.accessors() {
                if is_on(Mechanism::ManifestRule)
                    && let Some(uncached) = manifest.objection(name, listed, &generation.version)
                {
                    standing.uncached.entry(name.clone()).or_insert(uncached);
                }
            }
            targets.live.push(LiveGeneration {
                id: generation.id.clone(),
                version: generation.version.clone(),
                pool: generation.pool.clone(),
                holder: generation.holder.clone(),
                left_s: generation.left.as_secs(),
                is_own,
            });
            // A store in another process that is allowed to be there sees writes after the TTL.
            if is_private(&generation.pool) && generation.pool != entrant.pool.description {
                continue;
            }
            if is_own || is_on(Mechanism::EveryGeneration) {
                all.push(Target {
                    backend: self.pool(&generation.pool, rt),
                    prefix,
                    own_prefixes,
                });
            }
        }
        // A moment that may not have come yet is taken for one that hasn't.
        let after = |wait: Duration, since: Duration| {
            let wait = wait.saturating_sub(since);
            let waits = !wait.is_zero() && is_on(Mechanism::Activation);
            waits.then(|| asked.answered + wait)
        };
        if let Some(own) = own.filter(|_| registered.generations.len() > 1) {
            let age = self.age(own, asked);
            standing.active_from = after(ACTIVATION, age);
            let waits = match agrees {
                true => ACTIVATION,
                false => DISAGREEING,
            };
            member.commits_from = after(waits, age);
        }
        let mut seen = self.lock_seen();
        seen.retain(|epoch, _| registered.purges.iter().any(|purge| purge.epoch == *epoch));
        for purge in &registered.purges {
            let first = seen.entry(purge.epoch.clone()).or_insert(asked.answered);
            let age = match purge.age < SETTLED {
                true => purge.age.min(asked.answered.saturating_sub(*first)),
                false => purge.age,
            };
            if purge.accessor == EVERYTHING {
                // Somebody may still read what a rotation has ended.
                member.commits_from = member.commits_from.max(after(DISAGREEING, age));
            } else if let Some(from) = after(ACTIVATION, age) {
                standing.purged.insert(purge.accessor.clone(), from);
            }
        }
        targets.all = all.into();
        self.warn_of_many(&targets.live);
        Understood {
            standing,
            targets,
            member,
        }
    }

    /// How long every reader of the register has found this generation there. A row is as old as its insertion, and nobody
    /// sees it before that is committed, which may be some seconds later.
    fn age(&self, own: &Generation, asked: Asked) -> Duration {
        let entered = *self.lock_entered();
        match entered.is_minted || own.age < SETTLED {
            true => own.age.min(asked.answered.saturating_sub(entered.at)),
            false => own.age,
        }
    }

    fn lock_entered(&self) -> std::sync::MutexGuard<'_, Entered> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_seen(&self) -> std::sync::MutexGuard<'_, HashMap<String, Duration>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn_of_many(&self, live: &[LiveGeneration]) {
        let mut warned = self
            .warned_of_many
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if live.len() > MANY && *warned != Some(live.len()) {
            *warned = Some(live.len());
            let holders: HashSet<String> = live
                .iter()
                .map(|live| format!("{} by {}", live.version, live.holder))
                .collect();
            tracing::warn!(
                live = live.len(),
                holders = %list(&holders.into_iter().collect::<Vec<_>>()),
                "many generations are live: every write flushes each of them"
            );
        }
    }

    /// Closes the pools of generations that are gone.
    fn close_pools_but(&self, registered: &Registered, rt: Rt) {
        let is_live = |pool: &String| {
            let mut live = registered.generations.iter();
            *pool == self.entrant.pool.description || live.any(|known| known.pool == *pool)
        };
        let gone: Vec<_> = self
            .lock_pools()
            .extract_if(|pool, _| !is_live(pool))
            .collect();
        for (_, pool) in gone {
            rt.spawn_if_running(async move { pool.close(REGISTRATION).await });
        }
    }

    fn pool(&self, description: &str, rt: Rt) -> Result<Arc<dyn Backend>> {
        let mut pools = self.lock_pools();
        if let Some(pool) = pools.get(description) {
            return Ok(Arc::clone(pool));
        }
        let pool = (self.open)(description, rt)?;
        pools.insert(description.to_owned(), Arc::clone(&pool));
        Ok(pool)
    }

    fn lock_pools(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<dyn Backend>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Targets {
    fn none() -> Self {
        Self {
            at: Duration::ZERO,
            all: Arc::new([]),
            longest_ttl: None,
            live: Vec::new(),
        }
    }
}

impl Standing {
    fn of(prefix: Prefix) -> Self {
        Self {
            prefix,
            own_prefixes: ByAccessor::default(),
            uncached: ByAccessor::default(),
            purged: ByAccessor::default(),
            until: None,
            active_from: None,
        }
    }

    fn prefix_of(&self, accessor: &str) -> Prefix {
        match self.own_prefixes.is_empty() {
            true => self.prefix,
            false => *self.own_prefixes.get(accessor).unwrap_or(&self.prefix),
        }
    }
}

impl fmt::Debug for Generations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generations")
            .field("prefix", &self.prefix())
            .field(
                "register",
                &self.registration.as_ref().map(|known| &known.register),
            )
            .finish_non_exhaustive()
    }
}

/// Names in backticks, in order.
fn list(names: &[String]) -> String {
    let mut names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.sort();
    names.dedup();
    names.join(", ")
}
