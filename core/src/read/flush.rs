//! Flushing: deleting the entries of keys whose data changed.

use std::borrow::Borrow;
use std::sync::Arc;

use super::accessor::Accessor;
use super::{Cache, Dataset, FlushError, Source};
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
    /// # Errors
    ///
    /// Lists the keys whose servers didn't confirm. Their entries may be served until their TTL, since nothing is
    /// retried.
    pub async fn flush<D: Dataset<Source = S>>(
        &self,
        keys: impl IntoIterator<Item = impl Borrow<D::Key>> + Send,
    ) -> Result<(), FlushError> {
        let keys: Vec<D::Key> = keys.into_iter().map(|key| key.borrow().clone()).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let accessor = self.accessor::<D>();
        accessor.flights.detach(&keys);
        let unsettled = self.tally.as_ref().map(|tally| tally.unsettled());
        let trips = accessor.counters.trips(self.tally.as_deref());
        let targets = self.shared.generations.targets();
        let keys: Arc<[D::Key]> = keys.into();
        let task = self.shared.tasks.track_future({
            let keys = Arc::clone(&keys);
            async move {
                let _unsettled = unsettled;
                delete(&accessor, &keys, &targets, trips).await
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
