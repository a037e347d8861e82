//! A Redis Cluster of three: larder's client, the `redis` crate's, and bare sockets, on the very same entries.
//!
//! Each sends a pipeline of `GET`s to each node, all at the same time. The crate's client doesn't cut a pipeline by nodes, so it is
//! told which keys to ask which node for. The sockets read answers of known length, and parse nothing.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use larder_backends::redis::RedisCluster;
use larder_core::{BackendExt as _, GetOptions, Keys, Lookup, Rt};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::SingleNodeRoutingInfo;
use redis::{Pipeline, Value};

use super::larder::{LEASE, hit, keys_of};
use super::redis::{Socket, config, store, take_value, value, value_length, without_head};
use super::{Fetch, Form, Job, Side, Stage, Subject, expect_all, names};
use crate::work::Batch;

/// How many nodes the cluster has.
pub const NODES: usize = 3;

const SLOTS: usize = 16_384;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![Box::new(Raw), Box::new(Ours), Box::new(Crate)]
}

/// Stores all of the work's items.
pub async fn furnish(stage: &Stage) -> Result<()> {
    store(&*Ours::connect(stage)?.0, stage).await
}

/// Which node has this key, in a cluster whose nodes have equal shares.
fn node_of(key: &str) -> usize {
    let crc = key.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| match crc >> 15 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    });
    let slot = usize::from(crc) % SLOTS;
    let first = |node: usize| SLOTS * node / NODES;
    (0..NODES)
        .rfind(|&node| first(node) <= slot)
        .expect("the first node begins with 0")
}

/// The positions in a batch of each node's keys.
fn shares(batch: &Batch) -> [Vec<usize>; NODES] {
    let mut shares = <[Vec<usize>; NODES]>::default();
    for (position, key) in batch.keys.iter().enumerate() {
        shares[node_of(key)].push(position);
    }
    shares
}

struct Raw;

#[async_trait]
impl Subject for Raw {
    fn name(&self) -> &'static str {
        names::RAW_GETS
    }

    fn side(&self) -> Side {
        Side::Raw
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn redis_cluster_fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        let mut sockets = Vec::new();
        let shares: Vec<_> = stage.work.batches.iter().map(shares).collect();
        for (node, server) in stage.servers.iter().enumerate() {
            let batches = || stage.work.batches.iter().zip(&shares);
            let request = |(batch, shares): (&Batch, &[Vec<usize>; NODES])| {
                let keys = shares[node].iter().map(|&position| &batch.keys[position]);
                let commands =
                    keys.map(|key| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()));
                commands.collect::<String>().into_bytes()
            };
            let length = |(batch, shares): (&Batch, &[Vec<usize>; NODES])| {
                let values = shares[node].iter().map(|&position| &batch.values[position]);
                values.map(value_length).sum()
            };
            let (requests, lengths) = (
                batches().map(request).collect(),
                batches().map(length).collect(),
            );
            sockets.push(Socket::connect(server, requests, lengths).await?);
        }
        let sockets = sockets.try_into().ok().context("another number of nodes")?;
        Ok(Some(Box::new(Sockets { sockets, shares })))
    }
}

struct Sockets {
    sockets: [Socket; NODES],
    /// By the number of the batch.
    shares: Vec<[Vec<usize>; NODES]>,
}

#[async_trait]
impl Job for Sockets {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let [one, two, three] = &mut self.sockets;
        tokio::try_join!(
            one.exchange(batch, |_| {}),
            two.exchange(batch, |_| {}),
            three.exchange(batch, |_| {}),
        )?;
        Ok(())
    }
}

#[async_trait]
impl Fetch for Sockets {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let mut answers = vec![Bytes::new(); batch.len()];
        for (socket, positions) in self.sockets.iter_mut().zip(&self.shares[batch.number]) {
            let mut reply = Vec::new();
            socket
                .exchange(batch, |piece| reply.extend_from_slice(piece))
                .await?;
            let mut rest = &reply[..];
            for &position in positions {
                answers[position] = take_value(&mut rest, &batch.values[position])?;
            }
        }
        Ok(answers)
    }
}

struct Ours;

impl Ours {
    fn connect(stage: &Stage) -> Result<Client> {
        Ok(Client(Arc::new(RedisCluster::new(
            config(stage),
            Rt::new(),
        )?)))
    }
}

#[async_trait]
impl Subject for Ours {
    fn name(&self) -> &'static str {
        names::LARDER_CLUSTER
    }

    fn side(&self) -> Side {
        Side::Larder
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn redis_cluster_fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(Some(Box::new(Self::connect(stage)?)))
    }
}

struct Client(Arc<RedisCluster>);

impl Client {
    async fn look_up(&self, keys: &Keys) -> Vec<larder_core::Result<Lookup>> {
        self.0.get_many(keys, &GetOptions::lease(LEASE)).await
    }
}

#[async_trait]
impl Job for Client {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let mut found = 0;
        for answer in self.look_up(&keys_of(batch)?).await {
            found += usize::from(matches!(answer?, Lookup::Hit { .. }));
        }
        expect_all(found, batch)
    }
}

#[async_trait]
impl Fetch for Client {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let answers = self.look_up(&keys_of(batch)?).await;
        answers.into_iter().map(|answer| hit(answer?)).collect()
    }
}

/// The crate's own cluster client.
struct Crate;

#[async_trait]
impl Subject for Crate {
    fn name(&self) -> &'static str {
        names::CLUSTER_CRATE
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn redis_cluster_fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        let urls = stage
            .servers
            .iter()
            .map(|server| format!("redis://{server}/"));
        let client = ClusterClient::new(urls)?;
        let routes = stage.servers.iter().map(|server| {
            let (host, port) = server.rsplit_once(':').context("a node has a port")?;
            Ok(SingleNodeRoutingInfo::ByAddress {
                host: host.to_owned(),
                port: port.parse()?,
            })
        });
        Ok(Some(Box::new(Pipelines {
            connection: client.get_async_connection().await?,
            routes: routes.collect::<Result<Vec<_>>>()?,
        })))
    }
}

struct Pipelines {
    connection: ClusterConnection,
    /// To each node.
    routes: Vec<SingleNodeRoutingInfo>,
}

impl Pipelines {
    async fn get(&mut self, batch: &Batch) -> Result<Vec<Vec<u8>>> {
        let shares = shares(batch);
        let ask = |node: usize| {
            let (mut connection, route) = (self.connection.clone(), self.routes[node].clone());
            let mut pipeline = Pipeline::with_capacity(shares[node].len());
            for &position in &shares[node] {
                pipeline.cmd("GET").arg(&batch.keys[position]);
            }
            async move {
                let count = pipeline.len();
                connection.route_pipeline(pipeline, 0, count, route).await
            }
        };
        let (one, two, three) = tokio::try_join!(ask(0), ask(1), ask(2))?;
        let mut values = vec![Vec::new(); batch.len()];
        for (positions, answers) in shares.iter().zip([one, two, three]) {
            for (&position, answer) in positions.iter().zip::<Vec<Value>>(answers) {
                values[position] = value(answer)?;
            }
        }
        Ok(values)
    }
}

#[async_trait]
impl Job for Pipelines {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let found = self.get(batch).await?;
        expect_all(found.len(), batch)
    }
}

#[async_trait]
impl Fetch for Pipelines {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let values = self.get(batch).await?.into_iter();
        Ok(values.map(without_head).collect())
    }
}
