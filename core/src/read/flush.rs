//! Flushing: deleting the entries of keys whose data changed.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::accessor::Accessor;
use super::{Cache, Changing, Dataset, FlushError, Form, Scope, Source, Tier as _, TierKind};
use crate::contract::{Error, ErrorKind, Keys, Prefix, Target, Trips, WriteOptions};

/// Keys deleted in one exchange per server.
const CHUNK: usize = 10_000;

impl<S: Source> Cache<S> {
    /// Deletes the entries of these keys, and voids their leases: call it after the write was committed.
    ///
    /// Once it has answered `Ok`, every read that begins later sees the write, in every process that has the same prefix
    /// and servers. The deletes run in a task of their own, which goes on if the caller is dropped; a caller that may be dropped between commit and
    /// flush, as a request handler may, runs both in one spawned task. One exchange per server and 10,000 keys.
    ///
    /// Through the handle of a request it also drops what the request keeps of these keys; and where a delete isn't
    /// confirmed, the rest of the request reads that key from the source.
    ///
    /// # Errors
    ///
    /// Lists the keys whose servers didn't confirm. Their entries may be served until their TTL, since nothing is
    /// retried.
    pub async fn flush<D: Dataset<Source = S, Tier: Changing>>(
        &self,
        keys: impl IntoIterator<Item = impl Borrow<D::Key>> + Send,
    ) -> Result<(), FlushError> {
        let keys: Vec<D::Key> = keys.into_iter().map(|key| key.borrow().clone()).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let accessor = self.accessor::<D>();
        accessor.flights.detach(&keys);
        let own = Own::drop_from::<D>(self, &keys);
        if !D::Form::STORED {
            if let Some(own) = own {
                own.drop_again(None);
            }
            return Ok(());
        }
        let unsettled = self.tally.as_ref().map(|tally| tally.unsettled());
        let trips = accessor.counters.trips(self.tally.as_deref());
        let targets = self.shared.generations.targets();
        let keys: Arc<[D::Key]> = keys.into();
        let task = self.shared.tasks.track_future({
            let keys = Arc::clone(&keys);
            async move {
                let _unsettled = unsettled;
                let flushed = delete(&accessor, &keys, &targets, trips).await;
                if let Some(own) = own {
                    own.drop_again(flushed.as_ref().err());
                }
                flushed
            }
        });
        self.shared.rt.spawn(task).await.unwrap_or_else(|end| {
            let what = match end.is_panic() {
                true => "panicked",
                false => "was cut off by the end of the runtime",
            };
            let wire = wire_keys::<D>(self.prefix(), &keys);
            let readable = wire.iter().map(|key| key.without_prefix().to_owned());
            Err(FlushError {
                accessor: D::NAME,
                keys: readable.collect(),
                cause: Error::new(
                    ErrorKind::Unavailable,
                    format!("the flush of `{}` {what}", D::NAME),
                ),
            })
        })
    }
}

/// What the request that flushes keeps of the flushed keys.
///
/// It is dropped before the deletes, since the request has written, and again after them: in between, the request may
/// have read and kept what the store still had. A flush that outlives its request doesn't keep it; one that is cut off
/// has confirmed nothing.
struct Own {
    scope: Weak<dyn Scope>,
    wire: Keys,
}

impl Own {
    fn drop_from<D: Dataset>(cache: &Cache<D::Source>, keys: &[D::Key]) -> Option<Self> {
        let scope = cache.scope.as_ref()?;
        if D::Tier::KIND != TierKind::Request {
            return None;
        }
        let wire = wire_keys::<D>(cache.prefix(), keys);
        scope.forget(&wire);
        Some(Self {
            scope: Arc::downgrade(scope),
            wire,
        })
    }

    /// What wasn't confirmed may be old in the store, so that the request reads it from the source from now on.
    fn drop_again(mut self, unconfirmed: Option<&FlushError>) {
        let wire = std::mem::take(&mut self.wire);
        let Some(scope) = self.scope.upgrade() else {
            return;
        };
        let Some(error) = unconfirmed else {
            return scope.forget(&wire);
        };
        let unconfirmed: HashSet<&str> = error.keys.iter().map(String::as_str).collect();
        let (old, dropped): (Vec<usize>, Vec<usize>) = (0..wire.len())
            .partition(|&index| unconfirmed.contains(wire.get(index).without_prefix()));
        scope.forget(&wire.select(dropped));
        scope.distrust(&wire.select(old));
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(scope) = self.scope.upgrade()
            && !self.wire.is_empty()
        {
            scope.distrust(&self.wire);
        }
    }
}

/// The wire keys of these keys; what can't be a key was never stored.
fn wire_keys<D: Dataset>(prefix: Prefix, keys: &[D::Key]) -> Keys {
    let mut wire = Keys::with_capacity(keys.len());
    for key in keys {
        let _ = wire.push(prefix, D::NAME, key);
    }
    wire
}

async fn delete<D: Dataset>(
    accessor: &Arc<Accessor<D>>,
    keys: &[D::Key],
    targets: &[Target],
    trips: Trips,
) -> Result<(), FlushError> {
    let options = WriteOptions::trips(trips);
    let mut failed = Vec::new();
    let mut cause = None;
    for target in targets {
        for chunk in keys.chunks(CHUNK) {
            let wire = wire_keys::<D>(target.prefix, chunk);
            let answers = target.backend.delete_many(&wire, &options).await;
            for (key, answer) in wire.iter().zip(answers) {
                if let Err(error) = answer {
                    failed.push(key.without_prefix().to_owned());
                    cause.get_or_insert(error);
                }
            }
        }
    }
    let confirmed = (keys.len() * targets.len()).saturating_sub(failed.len());
    accessor.counters.flushed.add(confirmed as u64);
    accessor.counters.flush_failures.add(failed.len() as u64);
    match cause {
        None => Ok(()),
        Some(cause) => Err(FlushError {
            accessor: D::NAME,
            keys: failed,
            cause,
        }),
    }
}
