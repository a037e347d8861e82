//! A pool of two servers, each behind a gate: the second has the data sets that the test says, the first all others. It
//! isn't closed with any of the processes that share it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backend, BackendExt as _, BackendStats, Fill, FillOutcome, Found, GetOptions, Key, Keys, Lease,
    Pool, Reach, Result, ServerCheck, ServerStats, Set, WriteOptions,
};

use crate::read::gate::Gate;
use crate::read::shelf::memory;

/// Two servers, as one pool that all processes share.
pub(super) struct Servers {
    description: &'static str,
    second_has: &'static [&'static str],
    servers: [Arc<Gate>; 2],
}

impl Servers {
    /// Empty ones, of which the second has these data sets.
    pub(super) fn new(description: &'static str, second_has: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self {
            description,
            second_has,
            servers: [Gate::new(memory()), Gate::new(memory())],
        })
    }

    pub(super) fn first(&self) -> &Gate {
        &self.servers[0]
    }

    /// The positions of the keys that each server has.
    fn split(&self, keys: &Keys) -> [Vec<usize>; 2] {
        let mut positions = [Vec::new(), Vec::new()];
        for (position, key) in keys.iter().enumerate() {
            positions[self.server_of(key)].push(position);
        }
        positions
    }

    /// Each server's part of a batch.
    fn parts<I>(&self, keys: &Keys, inputs: Vec<I>) -> Vec<Part<'_, I>> {
        let mut inputs: Vec<Option<I>> = inputs.into_iter().map(Some).collect();
        let servers = self.servers.iter().zip(self.split(keys));
        let parts = servers.map(|(server, positions)| Part {
            server,
            keys: keys.select(positions.iter().copied()),
            inputs: (positions.iter())
                .filter_map(|&position| inputs.get_mut(position)?.take())
                .collect(),
            positions,
        });
        parts.filter(|part| !part.positions.is_empty()).collect()
    }
}

/// What of a batch one server has to do.
struct Part<'s, I> {
    server: &'s Gate,
    keys: Keys,
    inputs: Vec<I>,
    positions: Vec<usize>,
}

/// Puts the answers of all parts into the order of the batch.
fn in_order<T>(answers: Vec<(Vec<usize>, Vec<T>)>) -> Vec<T> {
    let parts = answers.into_iter();
    let mut answers: Vec<(usize, T)> = parts
        .flat_map(|(positions, answers)| positions.into_iter().zip(answers))
        .collect();
    answers.sort_by_key(|(position, _)| *position);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Servers({})", self.description)
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Servers {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        for part in self.parts(keys, Vec::<()>::new()) {
            let answers = part.server.get_many(&part.keys, options).await;
            for (position, answer) in part.positions.into_iter().zip(answers) {
                found(position, answer);
            }
        }
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        let mut answers = Vec::new();
        for part in self.parts(keys, fills) {
            let answer = part
                .server
                .fill_many(&part.keys, part.inputs, options)
                .await;
            answers.push((part.positions, answer));
        }
        in_order(answers)
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for part in self.parts(keys, leases) {
            let answer = part
                .server
                .release_many(&part.keys, part.inputs, options)
                .await;
            answers.push((part.positions, answer));
        }
        in_order(answers)
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for part in self.parts(keys, Vec::<()>::new()) {
            let answer = part.server.delete_many(&part.keys, options).await;
            answers.push((part.positions, answer));
        }
        in_order(answers)
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for part in self.parts(keys, sets) {
            let answer = part
                .server
                .set_immutable_many(&part.keys, part.inputs, options)
                .await;
            answers.push((part.positions, answer));
        }
        in_order(answers)
    }

    async fn start(&self) -> Result<()> {
        Ok(())
    }

    async fn check(&self) -> Vec<ServerCheck> {
        let mut answers = self.servers[0].check().await;
        answers.extend(self.servers[1].check().await);
        answers
    }

    async fn close(&self, _: Duration) {}

    fn server_of(&self, key: Key<'_>) -> usize {
        let accessor = key.without_prefix().split(':').next().unwrap_or_default();
        usize::from(self.second_has.contains(&accessor))
    }

    fn pool(&self) -> Pool {
        Pool::new(self.description, Reach::Network)
    }

    fn stats(&self) -> BackendStats {
        let mut stats = BackendStats::default();
        stats.servers = vec![ServerStats::default(), ServerStats::default()];
        stats
    }
}
