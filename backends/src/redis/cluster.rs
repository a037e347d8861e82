//! Redis Cluster: a call is cut by the nodes that have its keys, and follows those that are being moved.
//!
//! A batch is grouped by the map from slots to nodes (`topology`), each node's part is asked over that node's own connections
//! (`node`, `batch`), all at the same time, and what a node doesn't have is asked again where it says.
//!
//! # What holds while slots move
//!
//! A slot moves from its source to its target key by key. The source has it until the end: it answers for keys that are still
//! there, and for each other key with `ASK` target, whatever the command. The target answers such questions after `ASKING`
//! alone, and everybody else with `MOVED` source. At the end both, and in time all, name the target. From this follows:
//!
//! - **Deletes** go to the source. If the key is there it is deleted there, and it is nowhere else: `MIGRATE` takes it away from
//!   the source as it gives it to the target, during which the source answers nobody. If it isn't there the answer is `ASK`,
//!   and the delete follows, after `ASKING`. With an old map the answer is `MOVED`, and it follows too. So what an acknowledged
//!   delete has removed was the one copy that a later reader could have found, and with it the lease, which is a value under the
//!   same key.
//! - **What was moved** is of the incarnation of its source, and the target is another one: for readers it is absent, and
//!   the next of them replaces it. A slot that moves costs a load for each of its keys, once.
//! - **Leases** are of the node that issued them. A fill whose key has left that node is lost ([`Lost::ConnectionGone`]), and
//!   never follows. A release need not.
//! - **Nothing is leased after `ASK`**, so nothing mutable is stored on a target before the slot is its own. A migration may end
//!   without the target ever becoming the owner: it is called off, or the source fails over to a replica, which knows nothing
//!   of it. Deletes then go to the owner and not to the target, and what the target had stored would be read again, as its very
//!   own, when the slot is moved there for the second time. The price is that absent keys of a slot are loaded without being
//!   stored, for as long as it is on its way. Values of immutable data sets do follow: they can't be stale.
//!
//! [`Lost::ConnectionGone`]: larder_core::Lost::ConnectionGone
//!
//! # Why not the crate's cluster client
//!
//! It reconnects to a node without a word, follows redirects by itself, and gives answers without saying who gave them, so that
//! nobody can tell a node from the one that was there before it. Everything here rests on that.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backend, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Key, Keys,
    Lease, Lookup, Pool, Reach, Result, Rt, ServerCheck, ServerStats, Set, Trips, WriteOptions,
};

use super::batch::{self, Job, Outcome, Part, Route};
use super::config::{RedisConfig, refused};
use super::frame::{Nonces, Taken};
use super::identity::Access;
use super::node::Node;
use super::reply::Redirect;
use super::slots::{self, SlotMap};
use super::topology::Topology;
use crate::join::join_all;
use crate::transport::{Address, Sockets, Transport};

/// So many times a key is asked for where the last node said it is.
const REDIRECTS: u32 = 6;

/// From the second redirect on there is a pause before the next question: nodes that contradict each other agree in a moment.
const PAUSE: Duration = Duration::from_millis(2);

/// A Redis or Valkey Cluster: several primaries, each with its share of the keys.
///
/// Only primaries are asked, and entries and leases are bound to the incarnation of the very node that issued them: what a node
/// brings back from a snapshot, what a replica has when it becomes the primary, and what comes along with a slot from another
/// node is never read. `docs/redis-cluster.md` says what a cluster can serve while it is cut in two, and for how long.
///
/// ```no_run
/// # async fn run() -> larder_core::Result<()> {
/// use larder_backends::redis::{RedisCluster, RedisConfig};
/// use larder_core::{BackendExt, GetOptions, Keys, Rt};
///
/// // Any of its nodes; they name the others.
/// let cluster = RedisCluster::new(RedisConfig::new("redis.example.com"), Rt::new())?;
/// let mut keys = Keys::new();
/// for user in 0..1_000 {
///     keys.push_raw(&format!("v1/user:{user}"))?;
/// }
/// // A pipeline to each node, all at the same time.
/// let users = cluster.get_many(&keys, &GetOptions::look()).await;
/// assert_eq!(users.len(), 1_000);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RedisCluster {
    topology: Arc<Topology>,
    config: Arc<RedisConfig>,
    nonces: Nonces,
    pool: Pool,
    rt: Rt,
}

impl RedisCluster {
    /// The store on this cluster, over sockets. Nothing is dialled yet.
    ///
    /// Fails if the configuration can't work.
    pub fn new(config: RedisConfig, rt: Rt) -> Result<Self> {
        let sockets = Sockets::new(rt, config.connect_timeout);
        Self::over(config, rt, Arc::new(sockets))
    }

    fn over(config: RedisConfig, rt: Rt, transport: Arc<dyn Transport>) -> Result<Self> {
        let mut seeds = config.addresses()?;
        if config.database != 0 {
            return Err(refused("a cluster has one database; leave `database` out"));
        }
        if let Some(socket) = seeds.iter().find(|seed| matches!(seed, Address::Unix(_))) {
            return Err(refused(format!(
                "`{socket}` can't be a node of a cluster, which has a host and a port"
            )));
        }
        seeds.sort();
        seeds.dedup();
        let reach = match seeds.iter().all(Address::is_local) {
            true => Reach::Host,
            false => Reach::Network,
        };
        let names: Vec<_> = seeds.iter().map(ToString::to_string).collect();
        let description = format!("redis+cluster://{}", names.join(","));
        let access = Arc::new(Access::new(&config, &seeds)?);
        let config = Arc::new(config);
        Ok(Self {
            topology: Topology::new(Arc::clone(&config), seeds, rt, transport, access),
            config,
            nonces: Nonces::new(),
            pool: Pool::new(description, reach),
            rt,
        })
    }

    /// Connects to every primary; fails if one doesn't answer or isn't fit, or if there is a slot that no node has.
    pub async fn ready(&self) -> Result<()> {
        let map = self.topology.map().await?;
        if let Some(slot) = map.gap() {
            return Err(self.nobody_has(slot));
        }
        join_all(map.nodes().iter().map(|node| node.ping()))
            .await
            .into_iter()
            .try_for_each(|answer| answer.map(|_| ()))
    }

    fn nobody_has(&self, slot: u16) -> Error {
        self.topology.error(&format!("no node has slot {slot}"))
    }

    /// Writes everything, and gives what became of it in the order of the keys.
    async fn write(&self, keys: &Keys, job: Job<'_>, trips: &Trips) -> Vec<Outcome> {
        if keys.is_empty() {
            return Vec::new();
        }
        let map = match self.topology.map().await {
            Ok(map) => map,
            Err(error) => return vec![Outcome::Failed(error); keys.len()],
        };
        let outcomes = Mutex::new(vec![None; keys.len()]);
        let writing = Writing {
            keys,
            job,
            nonces: self.nonces.take(keys.len()),
            trips,
            outcomes: &outcomes,
        };
        self.pursue_all(&writing, self.split(&writing, &map), 0)
            .await;
        let outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        outcomes
            .into_iter()
            .map(|outcome: Option<Outcome>| outcome.expect("every key is of some group"))
            .collect()
    }
}

/// Some keys of a batch, and the node that is asked for them.
struct Group {
    node: Arc<Node>,
    route: Route,
    positions: Vec<u32>,
}

/// A call, as far as it is the same for look-ups and writes.
trait Call: Sync {
    fn keys(&self) -> &Keys;

    /// Asks a node for its part; gives the positions of the keys that it sends elsewhere, and whether it seems to be in trouble.
    fn ask(
        &self,
        node: &Node,
        part: Part<'_>,
    ) -> impl Future<Output = (Vec<(usize, Redirect)>, bool)> + Send;

    /// Says that nothing can be done for this key.
    fn fail(&self, position: usize, error: Error);
}

struct Looking<'a> {
    keys: &'a Keys,
    options: &'a GetOptions,
    nonces: Taken,
    /// Nodes take turns in handing over, between awaits, so that none ever waits for the lock.
    found: Mutex<Found<'a>>,
}

struct Writing<'a> {
    keys: &'a Keys,
    job: Job<'a>,
    nonces: Taken,
    trips: &'a Trips,
    outcomes: &'a Mutex<Vec<Option<Outcome>>>,
}

impl Call for Looking<'_> {
    fn keys(&self) -> &Keys {
        self.keys
    }

    async fn ask(&self, node: &Node, part: Part<'_>) -> (Vec<(usize, Redirect)>, bool) {
        let mut troubled = false;
        let found = &mut |position, answer: Result<Lookup>| {
            troubled |= answer.as_ref().is_err_and(tells_of_the_cluster);
            lock(&self.found)(position, answer);
        };
        let elsewhere = node.look(part, self.nonces, self.options, found).await;
        (elsewhere, troubled)
    }

    fn fail(&self, position: usize, error: Error) {
        lock(&self.found)(position, Err(error));
    }
}

impl Call for Writing<'_> {
    fn keys(&self) -> &Keys {
        self.keys
    }

    async fn ask(&self, node: &Node, part: Part<'_>) -> (Vec<(usize, Redirect)>, bool) {
        let (mut elsewhere, mut troubled) = (Vec::new(), false);
        let written = node.write(part, self.job, self.nonces, self.trips).await;
        let mut outcomes = lock(self.outcomes);
        for (index, outcome) in written.into_iter().enumerate() {
            let position = part.position(index);
            match outcome {
                Outcome::Elsewhere(redirect) => {
                    elsewhere.push((position, redirect));
                    continue;
                }
                Outcome::Gone(ref error) | Outcome::Failed(ref error) => {
                    troubled |= tells_of_the_cluster(error);
                }
                Outcome::Done | Outcome::Void => {}
            }
            outcomes[position] = Some(outcome);
        }
        (elsewhere, troubled)
    }

    fn fail(&self, position: usize, error: Error) {
        lock(self.outcomes)[position] = Some(Outcome::Failed(error));
    }
}

/// Whether somebody else may have the keys by now.
fn tells_of_the_cluster(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

type Pursuit<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl RedisCluster {
    /// The nodes that have the keys of this call, as far as is known; a key that none has fails.
    fn split(&self, call: &impl Call, map: &SlotMap) -> Vec<Group> {
        let keys = call.keys();
        let share = keys.len() / map.nodes().len().max(1);
        let group = |node: &Arc<Node>| Group {
            node: Arc::clone(node),
            route: Route::Owner,
            positions: match share {
                0 => Vec::new(),
                _ => Vec::with_capacity(share + share / 4 + 4),
            },
        };
        let mut groups: Vec<_> = map.nodes().iter().map(group).collect();
        let mut has_gap = false;
        for (position, key) in keys.iter().enumerate() {
            let slot = slots::slot(key.as_bytes());
            match map.owner(slot) {
                Some(place) => groups[place].positions.push(narrow(position)),
                None => {
                    has_gap = true;
                    call.fail(position, self.nobody_has(slot));
                }
            }
        }
        if has_gap {
            self.topology.refresh();
        }
        groups.retain(|group| !group.positions.is_empty());
        groups
    }

    /// The nodes that these keys were said to be on.
    fn regroup(&self, keys: &Keys, elsewhere: Vec<(usize, Redirect)>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (position, redirect) in elsewhere {
            let (node, route) = match redirect.asking {
                true => (self.topology.node(&redirect.to), Route::Asking),
                false => {
                    let slot = slots::slot(keys.get(position).as_bytes());
                    (self.topology.moved(slot, &redirect.to), Route::Owner)
                }
            };
            let known = groups
                .iter_mut()
                .find(|group| group.route == route && Arc::ptr_eq(&group.node, &node));
            match known {
                Some(group) => group.positions.push(narrow(position)),
                None => groups.push(Group {
                    node,
                    route,
                    positions: vec![narrow(position)],
                }),
            }
        }
        groups
    }

    /// Asks a node for its keys, and follows those that it sends elsewhere; one that hangs delays no others.
    fn pursue<'a, C: Call>(&'a self, call: &'a C, group: Group, redirects: u32) -> Pursuit<'a> {
        Box::pin(async move {
            let part = Part::routed(call.keys(), &group.positions, group.route);
            let (elsewhere, troubled) = call.ask(&group.node, part).await;
            if troubled {
                self.topology.refresh();
            }
            if elsewhere.is_empty() {
                return;
            }
            if redirects == REDIRECTS {
                for (position, redirect) in elsewhere {
                    call.fail(position, redirect.error());
                }
                return;
            }
            if redirects > 0 {
                self.rt.sleep(PAUSE * redirects).await;
            }
            let groups = self.regroup(call.keys(), elsewhere);
            self.pursue_all(call, groups, redirects + 1).await;
        })
    }

    async fn pursue_all<C: Call>(&self, call: &C, mut groups: Vec<Group>, redirects: u32) {
        match groups.len() {
            0 => {}
            1 => {
                let group = groups.remove(0);
                self.pursue(call, group, redirects).await;
            }
            _ => {
                let groups = groups.into_iter();
                join_all(groups.map(|group| self.pursue(call, group, redirects))).await;
            }
        }
    }
}

fn narrow(position: usize) -> u32 {
    u32::try_from(position).expect("keys fit into 4 GiB")
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Display for RedisCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redis cluster (")?;
        for (position, seed) in self.topology.seeds().iter().enumerate() {
            f.write_str(if position == 0 { "" } else { ", " })?;
            write!(f, "{seed}")?;
        }
        f.write_str(")")
    }
}

#[async_trait]
impl Backend for RedisCluster {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        if keys.is_empty() {
            return;
        }
        let map = match self.topology.map().await {
            Ok(map) => map,
            Err(error) => {
                for position in 0..keys.len() {
                    found(position, Err(error.clone()));
                }
                return;
            }
        };
        let looking = Looking {
            keys,
            options,
            nonces: self.nonces.take(keys.len()),
            found: Mutex::new(found),
        };
        self.pursue_all(&looking, self.split(&looking, &map), 0)
            .await;
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        let outcomes = self.write(keys, Job::Fill(&fills), &options.trips).await;
        let now = self.rt.wall();
        outcomes
            .into_iter()
            .zip(&fills)
            .map(|(outcome, fill)| batch::fill_outcome(outcome, &fill.lease, now))
            .collect()
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Release(&leases), &options.trips);
        outcomes.await.into_iter().map(batch::done).collect()
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Delete, &options.trips);
        outcomes.await.into_iter().map(batch::done).collect()
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Set(&sets), &options.trips);
        outcomes.await.into_iter().map(batch::done).collect()
    }

    async fn start(&self) -> Result<()> {
        match self.config.require_at_start {
            true => self.ready().await,
            false => Ok(()),
        }
    }

    /// The primaries that are known; without any, the nodes of the configuration, each with why none is.
    async fn check(&self) -> Vec<ServerCheck> {
        match self.topology.map().await {
            Ok(_) => {
                let nodes = self.topology.nodes();
                join_all(nodes.iter().map(|node| node.check())).await
            }
            Err(error) => {
                let seeds = self.topology.seeds().iter();
                seeds
                    .map(|seed| ServerCheck::new(seed.to_string(), Err(error.clone())))
                    .collect()
            }
        }
    }

    async fn close(&self, deadline: Duration) {
        self.topology.close();
        let deadline = super::later(self.rt.now(), deadline);
        let nodes = self.topology.nodes();
        join_all(nodes.iter().map(|node| node.close(deadline))).await;
    }

    fn server_of(&self, _: Key<'_>) -> usize {
        0
    }

    fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// The primaries that are known; before the first use, the nodes of the configuration.
    fn stats(&self) -> BackendStats {
        let mut stats = BackendStats::default();
        let nodes = self.topology.nodes();
        stats.servers = nodes.iter().map(|node| node.stats()).collect();
        if stats.servers.is_empty() {
            stats
                .servers
                .extend(self.topology.seeds().iter().map(|seed| {
                    let mut idle = ServerStats::default();
                    idle.server = seed.to_string();
                    idle.state = "idle";
                    idle
                }));
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(servers: &[&str]) -> RedisConfig {
        RedisConfig {
            servers: servers.iter().map(|&server| server.to_owned()).collect(),
            ..RedisConfig::default()
        }
    }

    #[track_caller]
    fn check_refused(config: RedisConfig, reason: &str) {
        let error = RedisCluster::new(config, Rt::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn what_cannot_be_a_cluster_is_refused() {
        check_refused(config(&[]), "`servers` is empty");
        check_refused(config(&["h1", "/run/redis.sock"]), "`/run/redis.sock`");
        let mut second = config(&["h1"]);
        second.database = 1;
        check_refused(second, "leave `database` out");
    }

    #[test]
    fn the_order_of_its_nodes_makes_no_other_pool() {
        let pool = |servers| {
            RedisCluster::new(config(servers), Rt::new())
                .unwrap()
                .pool()
        };
        let one = pool(&["H2:6379", "h1"]);
        assert_eq!(one, pool(&["h1", "h2", "h1:6379"]));
        assert_eq!(one.description, "redis+cluster://h1:6379,h2:6379");
        assert_eq!(one.reach, Reach::Network);
        assert_eq!(pool(&["127.0.0.1", "[::1]:7000"]).reach, Reach::Host);
    }
}
