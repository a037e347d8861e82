//! Delivering: deleting what is stale in every generation that is live, base before derived.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::plan::Cursor;
use super::stale::{Deferred, Level, Stale};
use crate::contract::{Error, ErrorKind, Keys, Result, Trips, WriteOptions};
use crate::generation::Target;
use crate::read::{Event, Shared};
use crate::rt::unwinding;
use crate::{Mechanism, Source};

/// How long a query for keys may take, for each page of them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keys deleted in one exchange per server.
const CHUNK: usize = 10_000;

/// What became of a delivery.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    /// What wasn't confirmed.
    pub(crate) rest: Stale,
    /// Why the first of it wasn't.
    pub(crate) cause: Option<Error>,
}

/// Deletes all of it, and says what wasn't confirmed.
///
/// What is derived from something is deleted once that is confirmed: deleted before, it could be built from it again.
pub(crate) async fn deliver<S: Source>(
    shared: &Arc<Shared<S>>,
    stale: Stale,
    trips: &Trips,
) -> Delivered {
    let targets = match shared.generations.targets().await {
        Ok(targets) => targets,
        Err(error) => {
            return Delivered {
                rest: stale,
                cause: Some(error),
            };
        }
    };
    let delivery = Delivery {
        shared,
        targets: &targets,
        options: WriteOptions::trips(trips.clone()),
    };
    let mut delivered = Delivered::default();
    let bases_first = !shared.without(Mechanism::BaseFirst);
    let mut levels: Vec<(usize, Level)> = stale.into_levels().into_iter().enumerate().collect();
    if !bases_first {
        levels.reverse();
    }
    for (index, level) in levels {
        match delivered.cause.as_ref().filter(|_| bases_first) {
            None => delivery.level(index, level, &mut delivered).await,
            Some(_) => delivered.rest.level(index).extend(level),
        }
    }
    delivered
}

/// Some keys that a query finds, and where the next ones begin. The query is the user's code: one that hangs or panics
/// delays its own flush, and nobody else's.
async fn page<S: Source>(
    shared: &Shared<S>,
    deferred: &Deferred,
    after: Cursor,
) -> Result<(Keys, Cursor)> {
    let Some(query) = shared.writes.plans.query(deferred) else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "this program doesn't have the query `{}` of `{}`; another version of it delivers what waits for it",
                deferred.query, deferred.accessor
            ),
        ));
    };
    let page = async {
        // A connection per page: none is kept while servers are waited for.
        let mut conn = shared.source.acquire().await.map_err(|error| {
            let message = format!(
                "no connection to ask for the keys of `{}` that are stale",
                deferred.accessor
            );
            Error::with_source(ErrorKind::Unavailable, message, error)
        })?;
        query.page(&mut conn, &deferred.arguments, after).await
    };
    let failed = |kind, how: &str| {
        let Deferred {
            accessor, query, ..
        } = deferred;
        Err(Error::new(
            kind,
            format!("the query `{query}` for keys of `{accessor}` {how}"),
        ))
    };
    match shared.rt.timeout(PATIENCE, unwinding(page)).await {
        Some(Some(page)) => page,
        Some(None) => failed(ErrorKind::Codec, "panicked"),
        None => failed(
            ErrorKind::Timeout,
            &format!("took longer than {PATIENCE:?}"),
        ),
    }
}

/// Asks the queries at once, and takes what they find for all that is stale: as only a test does, before the commit.
pub(crate) async fn ask_queries<S: Source>(shared: &Shared<S>, stale: &mut Stale) {
    for level in stale.levels_mut() {
        for deferred in std::mem::take(&mut level.queries) {
            let mut after = None;
            while let Ok((keys, next)) = page(shared, &deferred, after).await {
                level.add(&keys);
                if next.is_none() {
                    break;
                }
                after = next;
            }
        }
    }
}

struct Delivery<'d, S: Source> {
    shared: &'d Arc<Shared<S>>,
    targets: &'d [Target],
    options: WriteOptions,
}

impl<S: Source> Delivery<'_, S> {
    async fn level(&self, index: usize, level: Level, delivered: &mut Delivered) {
        let Level { keys, queries } = level;
        let mut rest = Level::default();
        for start in (0..keys.len()).step_by(CHUNK) {
            let end = keys.len().min(start + CHUNK);
            let chunk = match (start, end == keys.len()) {
                (0, true) => None,
                _ => Some(keys.select(start..end)),
            };
            let chunk = chunk.as_ref().unwrap_or(&keys);
            let (failed, cause) = self.delete(chunk).await;
            rest.add(&chunk.select(failed));
            delivered.cause = delivered.cause.take().or(cause);
        }
        for deferred in queries {
            if let Err(error) = self.query(&deferred).await {
                delivered.cause.get_or_insert(error);
                rest.defer(deferred);
            }
        }
        if !rest.is_empty() {
            delivered.rest.level(index).extend(rest);
        }
    }

    /// Asks for keys, page by page, and deletes them.
    async fn query(&self, deferred: &Deferred) -> Result<()> {
        let mut after = None;
        loop {
            let (keys, next) = page(self.shared, deferred, after).await?;
            let (_, cause) = self.delete(&keys).await;
            match (cause, next) {
                (Some(cause), _) => return Err(cause),
                (None, None) => return Ok(()),
                (None, next) => after = next,
            }
        }
    }

    /// Deletes these keys in every generation: one exchange per server. Answers the positions of those that weren't
    /// confirmed everywhere, in order, and why the first wasn't.
    async fn delete(&self, keys: &Keys) -> (Vec<usize>, Option<Error>) {
        if keys.is_empty() {
            return (Vec::new(), None);
        }
        let deletes = self
            .targets
            .iter()
            .map(|target| self.delete_in(target, keys));
        if self.shared.is_heard() {
            self.shared.tell(&Event::Flush { keys });
        }
        let mut failed = Vec::new();
        let mut cause = None;
        for (its_failed, its_cause) in join_all(deletes).await {
            failed.extend(its_failed);
            cause = cause.or(its_cause);
        }
        failed.sort_unstable();
        failed.dedup();
        self.count(keys, &failed);
        if self.shared.is_heard() {
            let failed = cause.as_ref().map(Error::kind);
            self.shared.tell(&Event::Flushed { keys, failed });
        }
        (failed, cause)
    }

    async fn delete_in(&self, target: &Target, keys: &Keys) -> (Vec<usize>, Option<Error>) {
        let backend = match &target.backend {
            Ok(backend) => backend,
            Err(error) => return ((0..keys.len()).collect(), Some(error.clone())),
        };
        let mut wire = Keys::with_capacity(keys.len());
        let mut positions = Vec::with_capacity(keys.len());
        for (position, key) in keys.iter().enumerate() {
            for &prefix in target.prefixes(key.accessor()) {
                // What is too long was never stored.
                if wire.push_under(prefix, key).is_ok() {
                    positions.push(position);
                }
            }
        }
        let mut failed = Vec::new();
        let mut cause = None;
        // A store may be the user's own: one that panics has confirmed nothing, and is asked again.
        let answers = unwinding(backend.delete_many(&wire, &self.options)).await;
        let answers = answers.unwrap_or_else(|| {
            let error = Error::new(ErrorKind::Protocol, "the store panicked at a delete");
            wire.iter().map(|_| Err(error.clone())).collect()
        });
        for ((position, key), answer) in positions.into_iter().zip(wire.iter()).zip(answers) {
            if let Err(error) = answer {
                if Arc::ptr_eq(backend, &self.shared.backend) {
                    self.shared.was_away(&error, key);
                }
                failed.push(position);
                cause.get_or_insert(error);
            }
        }
        (failed, cause)
    }

    fn count(&self, keys: &Keys, failed: &[usize]) {
        let mut counts: HashMap<&str, [u64; 2], foldhash::fast::RandomState> = HashMap::default();
        let mut failed = failed.iter().peekable();
        for (position, key) in keys.iter().enumerate() {
            let has_failed = failed.next_if(|failed| **failed == position).is_some();
            counts.entry(key.accessor()).or_default()[usize::from(has_failed)] += 1;
        }
        for (accessor, [confirmed, unconfirmed]) in counts {
            self.shared.count_flushed(accessor, confirmed, unconfirmed);
        }
    }
}
