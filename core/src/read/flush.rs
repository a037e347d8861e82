//! Flushing by hand: deleting the entries of keys whose data changed, where no transaction says so.

use std::borrow::Borrow;
use std::sync::Arc;

use super::{Cache, Changing, Dataset, FlushError, Form, KeyOf, Source, Tier as _, TierKind};
use crate::contract::{Error, ErrorKind, Keys};
use crate::write::{Flush, Own, Stale, Writes};

impl<S: Source> Cache<S> {
    /// Deletes the entries of these keys, and voids their leases: call it after the write was committed.
    ///
    /// For sources without transactions; with them, [`Tx`](crate::Tx) flushes what was changed by itself.
    ///
    /// Once it has answered `Ok`, every read that begins later sees the write, in every process that has the same prefix
    /// and servers. The deletes run in a task of their own, which goes on if the caller is dropped; a caller that may be
    /// dropped between commit and flush, as a request handler may, runs both in one spawned task. One exchange per server
    /// and 10,000 keys.
    ///
    /// Through the handle of a request it also drops what the request keeps of these keys.
    ///
    /// # Errors
    ///
    /// Lists the keys whose servers didn't confirm. Others may be served their entries until their TTL; this process reads
    /// them from the source, and goes on trying.
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
        let mut logical = Keys::with_capacity(keys.len());
        for key in &keys {
            // What can't be a key was never stored.
            let _ = logical.push_logical(D::NAME, &KeyOf::<D>(key));
        }
        let own = self.own::<D>(&logical);
        if !D::Form::STORED {
            Own::settle(own.into_iter().collect(), &self.shared);
            return Ok(());
        }
        let mut stale = Stale::default();
        let level = self.shared.writes.plans.level(D::NAME);
        stale.level(level).add(&logical);
        let unsettled = self.tally.as_ref().map(|tally| tally.unsettled());
        let (shared, tally) = (Arc::clone(&self.shared), self.tally.clone());
        let task = self.shared.tasks.track_future(async move {
            let _unsettled = unsettled;
            let (flush, rest) = Writes::flush_and_tell(&shared, stale, tally.as_ref()).await;
            Own::settle(own.into_iter().collect(), &shared);
            match flush {
                Flush::Fresh => Ok(()),
                Flush::Pending(pending) => Err(FlushError {
                    accessor: D::NAME,
                    keys: rest,
                    cause: pending.cause().clone(),
                }),
            }
        });
        self.shared.rt.spawn(task).await.unwrap_or_else(|end| {
            let what = match end.is_panic() {
                true => "panicked",
                false => "was cut off by the end of the runtime",
            };
            Err(FlushError {
                accessor: D::NAME,
                keys: logical.iter().map(|key| key.as_str().to_owned()).collect(),
                cause: Error::new(
                    ErrorKind::Unavailable,
                    format!("the flush of `{}` {what}", D::NAME),
                ),
            })
        })
    }

    /// What the request of this handle keeps of these keys, which are dropped from it.
    fn own<D: Dataset<Source = S>>(&self, logical: &Keys) -> Option<Own> {
        let scope = self.scope.as_ref()?;
        if D::Tier::KIND != TierKind::Request {
            return None;
        }
        let generations = &self.shared.generations;
        let own = Own::drop_from(scope, generations, D::NAME, logical.clone());
        Some(own)
    }
}
