//! Real Redis Clusters for tests and benchmarks: several servers that know each other.
//!
//! Each primary has an equal share of the slots, in the order of the nodes; replicas come after the primaries. A cluster takes
//! two seconds to start, since a node refuses to serve any sooner. That a node is gone isn't noticed by the others for half a
//! minute, unless the arguments say so (`--cluster-node-timeout`), and a slot without a node takes no other slot along
//! (`--cluster-require-full-coverage no`).

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::redis::{RawRedis, RedisServer, Reply};
use crate::server::Listen;
use crate::tls::{Authority, Identity};

/// How long the nodes may take to agree before the test gives up on them.
const PATIENCE: Duration = Duration::from_secs(30);

const SLOTS: usize = 16_384;

/// The port with TLS is so much higher than the one without.
const TLS_PORT: u16 = 5_000;

/// And the one where nodes talk to each other so much.
const BUS_PORT: u16 = 10_000;

/// What every node is started with.
const BASICS: [&str; 6] = [
    "--cluster-enabled",
    "yes",
    "--cluster-node-timeout",
    "30000",
    "--cluster-require-full-coverage",
    "no",
];

/// A running cluster.
///
/// ```no_run
/// # async fn example() {
/// use larder_harness::redis_cluster::RedisCluster;
///
/// let mut cluster = RedisCluster::start(3, &[]).await;
/// let slot = cluster.slot("user:7").await;
/// let owner = cluster.owner(slot).await;
/// cluster.move_slot(slot, (owner + 1) % 3).await;
/// cluster.node(0).stop(); // each node is a server
/// # }
/// ```
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    password: Option<String>,
    /// They speak TLS with each other, and so know each other by their ports with TLS.
    is_tls: bool,
}

impl RedisCluster {
    /// Starts so many primaries with these further arguments, and waits until they serve.
    ///
    /// # Panics
    ///
    /// If Redis isn't installed, or the nodes don't agree.
    pub async fn start(primaries: usize, arguments: &[&str]) -> Self {
        Self::start_with(primaries, 0, None, arguments).await
    }

    /// The same where the default user has this password.
    ///
    /// # Panics
    ///
    /// If Redis isn't installed, or the nodes don't agree.
    pub async fn start_locked(primaries: usize, password: &str, arguments: &[&str]) -> Self {
        Self::start_with(primaries, 0, Some(password), arguments).await
    }

    /// The same where each primary has a replica: node `primaries + n` is that of node `n`.
    ///
    /// # Panics
    ///
    /// If Redis isn't installed, or the nodes don't agree.
    pub async fn start_with_replicas(primaries: usize, arguments: &[&str]) -> Self {
        Self::start_with(primaries, primaries, None, arguments).await
    }

    /// The same where every node shows this certificate, to clients and to the others, and announces a port with TLS. It answers
    /// without TLS as well, on the port that [`addresses`](Self::addresses) names.
    ///
    /// # Panics
    ///
    /// If Redis isn't installed or can't do TLS, or the nodes don't agree.
    pub async fn start_tls(primaries: usize, authority: &Authority, identity: &Identity) -> Self {
        let [ca, certificate, key] = [&authority.file(), &identity.certificate, &identity.key]
            .map(|path| path.display().to_string());
        let arguments = |port: u16| {
            let tls_port = (port + TLS_PORT).to_string();
            // Not one that the kernel may have given to somebody.
            let bus_port = (port + BUS_PORT).to_string();
            let tls = [
                ["--tls-port", &tls_port],
                ["--cluster-port", &bus_port],
                ["--tls-cluster", "yes"],
                ["--tls-auth-clients", "no"],
                ["--tls-cert-file", &certificate],
                ["--tls-key-file", &key],
                ["--tls-ca-cert-file", &ca],
            ];
            let tls = tls.concat().into_iter().map(str::to_owned);
            BASICS.into_iter().map(str::to_owned).chain(tls).collect()
        };
        let start = |_| RedisServer::start_at(Listen::Tcp, arguments);
        let cluster = Self {
            nodes: (0..primaries).map(start).collect(),
            password: None,
            is_tls: true,
        };
        cluster.form(primaries).await;
        cluster
    }

    /// Where the nodes of such a cluster listen with TLS.
    pub fn tls_addresses(&self) -> Vec<String> {
        let ports = self.nodes.iter().map(|node| node.port() + TLS_PORT);
        ports.map(|port| format!("127.0.0.1:{port}")).collect()
    }

    async fn start_with(
        primaries: usize,
        replicas: usize,
        password: Option<&str>,
        arguments: &[&str],
    ) -> Self {
        let mut all = BASICS.to_vec();
        if let Some(password) = password {
            all.extend(["--requirepass", password, "--masterauth", password]);
        }
        all.extend(arguments);
        let start = |_| RedisServer::start(Listen::Tcp, &all);
        let cluster = Self {
            nodes: (0..primaries + replicas).map(start).collect(),
            password: password.map(str::to_owned),
            is_tls: false,
        };
        cluster.form(primaries).await;
        cluster
    }

    /// Introduces the nodes to each other, and gives out slots and replicas.
    async fn form(&self, primaries: usize) {
        for number in 0..self.nodes.len() {
            let mut raw = self.raw(number).await;
            let epoch = (number + 1).to_string();
            expect_ok(raw.call(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await);
            if number < primaries {
                let first = (SLOTS * number / primaries).to_string();
                let last = (SLOTS * (number + 1) / primaries - 1).to_string();
                expect_ok(raw.call(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await);
            }
            for other in &self.nodes[..number] {
                let bus_port = (other.port() + BUS_PORT).to_string();
                let port = match self.is_tls {
                    true => other.port() + TLS_PORT,
                    false => other.port(),
                };
                let port = port.to_string();
                let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus_port];
                expect_ok(raw.call(&meet).await);
            }
        }
        self.wait_until_ok().await;
        for number in primaries..self.nodes.len() {
            let id = self.id(number - primaries).await;
            let mut raw = self.raw(number).await;
            expect_ok(raw.call(&["CLUSTER", "REPLICATE", &id]).await);
        }
        for number in primaries..self.nodes.len() {
            let mut raw = self.raw(number).await;
            let asking = Asking::until("the replica is connected");
            while raw.info("role").await != "slave" || raw.info("master_link_status").await != "up"
            {
                asking.again().await;
            }
        }
        self.wait_until_ok().await;
    }

    /// Waits until every node that runs serves, and knows all others and who has which slot.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn wait_until_ok(&self) {
        let count = self.nodes.len().to_string();
        for number in 0..self.nodes.len() {
            if !self.nodes[number].is_running() {
                continue;
            }
            let mut raw = self.raw(number).await;
            let asking = Asking::until("a node serves");
            loop {
                let info = text(raw.call(&["CLUSTER", "INFO"]).await);
                let says = |field: &str, value: &str| {
                    let said = info.lines().find_map(|line| line.strip_prefix(field));
                    said == Some(value)
                };
                if says("cluster_state:", "ok")
                    && says("cluster_slots_assigned:", "16384")
                    && says("cluster_known_nodes:", &count)
                {
                    break;
                }
                asking.again().await;
            }
        }
    }

    /// Where all nodes listen, as a client's configuration has it.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::address).collect()
    }

    /// The node of this number.
    pub fn node(&self, number: usize) -> &RedisServer {
        &self.nodes[number]
    }

    /// Kills a node (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self, number: usize) {
        self.nodes[number].kill();
    }

    /// Starts a node again that was killed, with what it had saved, and waits until all serve.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn restart(&mut self, number: usize) {
        self.nodes[number].restart();
        self.wait_until_ok().await;
    }

    /// A raw connection to a node, logged in.
    ///
    /// # Panics
    ///
    /// If it doesn't listen.
    pub async fn raw(&self, number: usize) -> RawRedis {
        let mut raw = self.nodes[number].raw().await;
        if let Some(password) = &self.password {
            raw.login(password).await;
        }
        raw
    }

    /// What the nodes call a node.
    pub async fn id(&self, number: usize) -> String {
        text(self.raw(number).await.call(&["CLUSTER", "MYID"]).await)
    }

    /// The slot of a key, in the word of a node.
    ///
    /// # Panics
    ///
    /// If no node runs.
    pub async fn slot(&self, key: &str) -> u16 {
        let mut raw = self.raw(self.any()).await;
        match raw.call(&["CLUSTER", "KEYSLOT", key]).await {
            Reply::Number(slot) => slot.try_into().expect("a slot"),
            other => panic!("the slot of {key}: {other:?}"),
        }
    }

    /// The number of the node that says it has this slot.
    ///
    /// # Panics
    ///
    /// If none that runs does.
    pub async fn owner(&self, slot: u16) -> usize {
        for number in 0..self.nodes.len() {
            if self.nodes[number].is_running() && self.has(number, slot).await {
                return number;
            }
        }
        panic!("no node has slot {slot}");
    }

    /// Whether a node says that a slot is its own.
    async fn has(&self, number: usize, slot: u16) -> bool {
        let Reply::List(ranges) = self.raw(number).await.call(&["CLUSTER", "SLOTS"]).await else {
            panic!("CLUSTER SLOTS gives a list");
        };
        let port = i64::from(self.nodes[number].port());
        ranges.iter().any(|range| {
            let Reply::List(range) = range else {
                return false;
            };
            let [
                Reply::Number(first),
                Reply::Number(last),
                Reply::List(primary),
                ..,
            ] = &range[..]
            else {
                return false;
            };
            (*first..=*last).contains(&i64::from(slot)) && primary[1] == Reply::Number(port)
        })
    }

    /// What the cluster has under a key, and how long it keeps it, in the word of the node that has it.
    ///
    /// # Panics
    ///
    /// If that node doesn't run.
    pub async fn get(&self, key: &str) -> Option<(Bytes, Option<Duration>)> {
        let slot = self.slot(key).await;
        let mut raw = self.raw(self.owner(slot).await).await;
        let value = raw.get(key).await?;
        Some((value, raw.ttl(key).await))
    }

    // --- moving slots

    /// Moves a slot to another node, with its keys.
    ///
    /// # Panics
    ///
    /// If a node refuses.
    pub async fn move_slot(&self, slot: u16, to: usize) {
        self.begin_move(slot, to).await;
        while self.move_keys(slot, to, 10).await > 0 {}
        self.end_move(slot, to).await;
    }

    /// Tells both nodes that a slot is on its way.
    ///
    /// # Panics
    ///
    /// If a node refuses.
    pub async fn begin_move(&self, slot: u16, to: usize) {
        let from = self.owner(slot).await;
        let (source, target) = (self.id(from).await, self.id(to).await);
        self.set_slot(to, slot, &["IMPORTING", &source]).await;
        self.set_slot(from, slot, &["MIGRATING", &target]).await;
    }

    /// Moves at most so many keys of a slot that is on its way; gives how many these were.
    ///
    /// # Panics
    ///
    /// If a node refuses.
    pub async fn move_keys(&self, slot: u16, to: usize, count: usize) -> usize {
        let mut raw = self.raw(self.owner(slot).await).await;
        let (slot, count) = (slot.to_string(), count.to_string());
        let reply = raw.call(&["CLUSTER", "GETKEYSINSLOT", &slot, &count]).await;
        let Reply::List(keys) = reply else {
            panic!("the keys of slot {slot}: {reply:?}");
        };
        let keys: Vec<_> = keys.into_iter().map(text).collect();
        if keys.is_empty() {
            return 0;
        }
        let port = self.nodes[to].port().to_string();
        let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
        if let Some(password) = &self.password {
            migrate.extend(["AUTH", password]);
        }
        migrate.push("KEYS");
        migrate.extend(keys.iter().map(String::as_str));
        match raw.call(&migrate).await {
            // Deleted or expired since they were listed.
            Reply::Text(said) if said == "OK" || said == "NOKEY" => keys.len(),
            other => panic!("moving keys of slot {slot}: {other:?}"),
        }
    }

    /// Tells all that a slot has arrived: the target first, so that no node sends anybody to one that doesn't know it yet.
    ///
    /// # Panics
    ///
    /// If a node refuses.
    pub async fn end_move(&self, slot: u16, to: usize) {
        let target = self.id(to).await;
        let from = self.owner(slot).await;
        for number in [to, from] {
            self.set_slot(number, slot, &["NODE", &target]).await;
        }
        for number in 0..self.nodes.len() {
            if number != to && number != from && self.nodes[number].is_running() {
                // A replica is told by its primary.
                let mut raw = self.raw(number).await;
                let slot = slot.to_string();
                raw.call(&["CLUSTER", "SETSLOT", &slot, "NODE", &target])
                    .await;
            }
        }
    }

    /// Calls off what was begun: the keys that have left stay where they are, and nobody finds them there.
    ///
    /// # Panics
    ///
    /// If a node refuses.
    pub async fn call_off_move(&self, slot: u16, to: usize) {
        let from = self.owner(slot).await;
        self.set_slot(from, slot, &["STABLE"]).await;
        self.set_slot(to, slot, &["STABLE"]).await;
    }

    async fn set_slot(&self, number: usize, slot: u16, words: &[&str]) {
        let slot = slot.to_string();
        let mut command = vec!["CLUSTER", "SETSLOT", &slot];
        command.extend(words);
        expect_ok(self.raw(number).await.call(&command).await);
    }

    fn any(&self) -> usize {
        let running = self.nodes.iter().position(RedisServer::is_running);
        running.expect("a node runs")
    }
}

/// Waits between two questions: the nodes tell nobody when they agree.
struct Asking {
    what: &'static str,
    since: Instant,
}

impl Asking {
    fn until(what: &'static str) -> Self {
        Self {
            what,
            since: Instant::now(),
        }
    }

    async fn again(&self) {
        assert!(
            self.since.elapsed() < PATIENCE,
            "waited in vain until {}",
            self.what
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn text(reply: Reply) -> String {
    match reply {
        Reply::Text(text) => text,
        Reply::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => panic!("a text, and not {other:?}"),
    }
}

#[track_caller]
fn expect_ok(reply: Reply) {
    assert_eq!(reply, Reply::Text("OK".into()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slot_moves_with_its_keys() {
        let cluster = RedisCluster::start(3, &[]).await;
        let slot = cluster.slot("user:7").await;
        let from = cluster.owner(slot).await;
        let to = (from + 1) % 3;
        cluster.raw(from).await.set("user:7", b"hi").await;
        cluster.move_slot(slot, to).await;
        assert_eq!(cluster.owner(slot).await, to);
        let (value, _) = cluster.get("user:7").await.expect("it came along");
        assert_eq!(&value[..], b"hi");
    }
}
