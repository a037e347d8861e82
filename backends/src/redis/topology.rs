//! What is known of a cluster: its primaries, and which of them has which slot.
//!
//! The map is what somebody said a while ago, and it may be wrong at any time: whoever is asked for a key that it doesn't
//! have says so (`MOVED`), and the map is put right slot by slot. All of it is asked for anew, by a task of its own, when a
//! slot turned out to have moved, when a node can't be reached, when the cluster says that it is down, and about once a
//! minute while it is used. It is asked of a node that is connected, or else of all that are configured at once, replicas
//! among them: the first answer counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use larder_core::{Error, ErrorKind, Instant, Result, Rt};
use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::config::RedisConfig;
use super::identity::{Access, Mode};
use super::node::Node;
use super::slots::{self, Range, SlotMap};
use crate::join::first_of;
use crate::transport::{Address, Transport};

/// How often the map is asked for if nothing says that it is wrong.
const PERIOD: Duration = Duration::from_secs(60);

/// The least time from one answer to the next question.
const PAUSE: Duration = Duration::from_millis(250);

/// What is known of a cluster.
pub(super) struct Topology {
    me: Weak<Self>,
    config: Arc<RedisConfig>,
    /// The nodes that the configuration names.
    seeds: Vec<Address>,
    rt: Rt,
    transport: Arc<dyn Transport>,
    access: Arc<Access>,
    /// The primaries by their address, as the cluster announces it.
    nodes: Mutex<BTreeMap<Address, Arc<Node>>>,
    known: watch::Sender<Known>,
    refresh: Mutex<Refresh>,
    closed: AtomicBool,
}

/// What the last question led to.
#[derive(Debug, Default)]
struct Known {
    map: Option<Arc<SlotMap>>,
    /// How often it was asked.
    asked: u64,
    /// Why there was no answer.
    error: Option<Error>,
}

#[derive(Debug)]
struct Refresh {
    task: Option<AbortHandle>,
    /// Not before.
    earliest: Instant,
    /// No later, if anybody wants anything of the cluster by then.
    due: Instant,
}

impl Topology {
    pub(super) fn new(
        config: Arc<RedisConfig>,
        seeds: Vec<Address>,
        rt: Rt,
        transport: Arc<dyn Transport>,
        access: Arc<Access>,
    ) -> Arc<Self> {
        let now = rt.now();
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            config,
            seeds,
            rt,
            transport,
            access,
            nodes: Mutex::default(),
            known: watch::Sender::default(),
            refresh: Mutex::new(Refresh {
                task: None,
                earliest: now,
                due: now + PERIOD,
            }),
            closed: AtomicBool::new(false),
        })
    }

    /// The map as it is known; asked for if it isn't known at all.
    pub(super) async fn map(&self) -> Result<Arc<SlotMap>> {
        let map = self.known.borrow().map.clone();
        match map {
            Some(map) => {
                if self.rt.now() >= lock(&self.refresh).due {
                    self.refresh();
                }
                Ok(map)
            }
            None => Box::pin(self.first_map()).await,
        }
    }

    async fn first_map(&self) -> Result<Arc<SlotMap>> {
        let mut known = self.known.subscribe();
        let before = known.borrow().asked;
        if !self.refresh() {
            return Err(self.last_error());
        }
        // A dial and a question.
        let patience = 2 * self.config.connect_timeout + Duration::from_millis(50);
        let answered = known.wait_for(|known| known.map.is_some() || known.asked != before);
        let map = match self.rt.timeout(patience, answered).await {
            Some(Ok(known)) => known.map.clone(),
            // The sender is borrowed from `self`, so it is there; and nobody answered in time.
            Some(Err(_)) | None => None,
        };
        map.ok_or_else(|| self.last_error())
    }

    fn last_error(&self) -> Error {
        if self.is_closed() {
            return self.error("this handle was closed");
        }
        let last = self.known.borrow().error.clone();
        last.unwrap_or_else(|| self.error("no node has said yet which has which keys"))
    }

    /// An error of the cluster as a whole.
    pub(super) fn error(&self, what: &str) -> Error {
        let seeds: Vec<_> = self.seeds.iter().map(ToString::to_string).collect();
        let seeds = seeds.join(", ");
        Error::new(
            ErrorKind::Unavailable,
            format!("redis cluster ({seeds}): {what}"),
        )
    }

    /// Notes that this slot is said to have moved, and gives the node to ask instead.
    pub(super) fn moved(&self, slot: u16, to: &Address) -> Arc<Node> {
        let node = self.node(to);
        self.known.send_if_modified(|known| {
            if let Some(map) = &mut known.map {
                let owner = map.owner(slot).map(|place| &map.nodes()[place]);
                if owner.is_none_or(|owner| !Arc::ptr_eq(owner, &node)) {
                    Arc::make_mut(map).give(Range::one(slot), &node);
                }
            }
            // Nobody waits for one slot.
            false
        });
        // Where one has moved, others have.
        self.refresh();
        node
    }

    /// The node at this address.
    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        let node = nodes
            .entry(address.clone())
            .or_insert_with(|| self.new_node(address, Mode::Cluster));
        Arc::clone(node)
    }

    fn new_node(&self, address: &Address, mode: Mode) -> Arc<Node> {
        let config = Arc::clone(&self.config);
        let (transport, access) = (Arc::clone(&self.transport), Arc::clone(&self.access));
        Node::new(address.clone(), config, mode, self.rt, transport, access)
    }

    /// All primaries that are known.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        lock(&self.nodes).values().map(Arc::clone).collect()
    }

    /// The nodes that the configuration names.
    pub(super) fn seeds(&self) -> &[Address] {
        &self.seeds
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Asks nothing any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(task) = lock(&self.refresh).task.take() {
            task.abort();
        }
    }

    // --- asking

    /// Asks for the map anew, in a task of its own, unless it was asked for a moment ago. Says whether it is being asked for.
    pub(super) fn refresh(&self) -> bool {
        if self.is_closed() {
            return false;
        }
        let mut refresh = lock(&self.refresh);
        // A task ends with the runtime that it was started on.
        if (refresh.task.as_ref()).is_some_and(|task| !task.is_finished()) {
            return true;
        }
        if self.rt.now() < refresh.earliest {
            return false;
        }
        let me = Weak::clone(&self.me);
        let task = self.rt.spawn_apart(async move {
            if let Some(topology) = me.upgrade() {
                topology.ask().await;
            }
        });
        refresh.task = Some(task.abort_handle());
        true
    }

    async fn ask(&self) {
        let answer = self.ask_somebody().await;
        {
            // Jitter keeps the processes of a fleet from asking in step.
            let now = self.rt.now();
            let mut refresh = lock(&self.refresh);
            refresh.earliest = now + PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0);
            refresh.due = now + PERIOD.mul_f64(0.75 + fastrand::f64() / 2.0);
            // Whoever comes now, with news, need not wait for the task's last steps.
            refresh.task = None;
        }
        let (map, error) = match answer {
            Ok(ranges) => (Some(self.drawn(&ranges)), None),
            Err(error) => {
                tracing::debug!(%error, "no node says which has which slots");
                (None, Some(error))
            }
        };
        self.known.send_modify(|known| {
            known.asked += 1;
            known.error = error;
            if let Some(map) = map {
                known.map = Some(Arc::new(map));
            }
        });
    }

    async fn ask_somebody(&self) -> Result<Vec<(Range, Address)>> {
        // Another each time, lest a node that is cut off from the rest is the one that is believed.
        let mut up = self.nodes();
        up.retain(|node| node.is_up());
        if !up.is_empty() {
            let node = &up[fastrand::usize(..up.len())];
            if let Ok(ranges) = self.said_by(node).await {
                return Ok(ranges);
            }
        }
        let seeds = self.seeds.iter().map(|seed| {
            let node = self.new_node(seed, Mode::Seed);
            async move { self.said_by(&node).await }
        });
        let answer = first_of(seeds).await;
        answer.unwrap_or_else(|| Err(self.error("no node is configured")))
    }

    async fn said_by(&self, node: &Node) -> Result<Vec<(Range, Address)>> {
        let mut question = Cmd::new();
        question.arg("CLUSTER").arg("SLOTS");
        let answer: Value = node.ask(question, "question for its slots").await?;
        let name = &node.name;
        let ranges = slots::ranges(&answer, &node.address).filter(|ranges| !ranges.is_empty());
        ranges.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!(
                    "redis {name}: knows of no node that has any slot; is it in a cluster yet?"
                ),
            )
        })
    }

    /// The map that this says, over the nodes that are known, and no others any more.
    fn drawn(&self, ranges: &[(Range, Address)]) -> SlotMap {
        let mut map = SlotMap::new();
        for (range, address) in ranges {
            map.give(*range, &self.node(address));
        }
        // What the others are being asked is answered: they end when nobody holds them.
        let mut nodes = lock(&self.nodes);
        nodes.retain(|_, node| map.nodes().iter().any(|owner| Arc::ptr_eq(owner, node)));
        map
    }
}

impl std::fmt::Debug for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topology")
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
