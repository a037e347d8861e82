//! Automatic batching: single reads through one handle that are made at the same time become one bulk read.
//!
//! A call adds its key to the open batch of its data set and gives everything that can run a turn, so that its siblings
//! add theirs. Whoever has had its turn then sends the batch, unless another one has. A batch is closed when it is sent,
//! and a call that begins later is in the next one: the look-up of this one may have been answered before the later call
//! began, and before a write was acknowledged that it must see.
//!
//! Nobody waits for a future of somebody else's, which may be dropped, or kept and never polled again (as a stream does
//! with its futures while its consumer is busy): each member would send the batch itself, and what is sent is read by a
//! task of its own. Who finds itself alone reads in place, as if there were no batches.
//!
//! The open batches belong to a handle, so that all members have one scope and one tally. A read by a loader isn't
//! batched: a task that reads for others isn't inside that loader, and would wait for it unnoticed.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indexmap::IndexMap;
use tokio::sync::SetOnce;

use super::accessors::TypeIdHasher;
use super::fetch::{Asked, read_many};
use super::{Answer, Cache, Dataset, LoadError};
use crate::stats::Unsettled;

/// The open batches of a handle and its clones: by data set its [`Slot`].
#[derive(Default)]
pub(super) struct Gathering {
    slots: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>, BuildHasherDefault<TypeIdHasher>>>,
}

/// The batch of one data set that takes keys now.
type Slot<D> = Mutex<Option<Open<D>>>;

struct Open<D: Dataset> {
    members: Members<D>,
    outcome: Arc<SetOnce<Outcome<D>>>,
}

/// What became of a batch.
struct Outcome<D: Dataset> {
    members: Members<D>,
    end: Result<(), LoadError<D::Error>>,
}

/// The distinct keys of a batch, each with its answer once it has one.
struct Members<D: Dataset>(
    IndexMap<D::Key, Option<Option<Answer<D>>>, foldhash::fast::RandomState>,
);

/// The value of this key, read together with those that others ask for meanwhile; `None` if it is to be read alone.
pub(super) async fn get<D: Dataset>(
    cache: &Cache<D::Source>,
    gathering: &Gathering,
    key: &D::Key,
) -> Option<Result<Option<Answer<D>>, LoadError<D::Error>>> {
    let slot = gathering.slot::<D>();
    let (index, outcome) = join::<D>(&slot, key);
    cache.shared.rt.yield_now().await;
    if let Some(open) = close::<D>(&slot, &outcome) {
        // Ours, and that of the batch.
        if Arc::strong_count(&outcome) == 2 {
            return None;
        }
        send(cache, open);
    }
    let Outcome { members, end } = outcome.wait().await;
    let answer = &members.0[index];
    match end {
        Ok(()) => answer.clone().map(Ok),
        Err(error) if answer.is_none() => Some(Err(error.clone())),
        // It was answered without the load that failed, and so would be again. It isn't taken from here, since a read
        // that failed has kept nothing for the request.
        Err(_) => None,
    }
}

impl Gathering {
    fn slot<D: Dataset>(&self) -> Arc<Slot<D>> {
        let mut slots = lock(&self.slots);
        let slot = slots
            .entry(TypeId::of::<D>())
            .or_insert_with(|| Arc::<Slot<D>>::default());
        let slot = Arc::clone(slot);
        drop(slots);
        slot.downcast().expect("slots are kept by their type")
    }
}

/// Adds a key to the open batch, or opens one; answers where the key is in it, and where the batch is answered.
fn join<D: Dataset>(slot: &Slot<D>, key: &D::Key) -> (usize, Arc<SetOnce<Outcome<D>>>) {
    let key = key.clone();
    let mut slot = lock(slot);
    // One that all its members have left is nobody's.
    slot.take_if(|open| Arc::strong_count(&open.outcome) == 1);
    let open = slot.get_or_insert_default();
    let member = open.members.0.entry(key);
    let index = member.index();
    member.or_insert(None);
    (index, Arc::clone(&open.outcome))
}

/// Takes the batch that is answered here, if it is still open.
fn close<D: Dataset>(slot: &Slot<D>, outcome: &Arc<SetOnce<Outcome<D>>>) -> Option<Open<D>> {
    lock(slot).take_if(|open| Arc::ptr_eq(&open.outcome, outcome))
}

/// Has the batch read by a task of its own.
fn send<D: Dataset>(cache: &Cache<D::Source>, open: Open<D>) {
    let sent = Sent {
        open,
        end: Err(LoadError::Panicked { accessor: D::NAME }),
        _unsettled: cache.tally.as_ref().map(|tally| tally.unsettled()),
    };
    let reading = cache.shared.tasks.track_future(sent.read(cache.clone()));
    drop(cache.shared.rt.spawn(reading));
}

/// A batch under way. When it is dropped its members are told how it ended: read, or else by a panic or with the runtime.
struct Sent<D: Dataset> {
    open: Open<D>,
    end: Result<(), LoadError<D::Error>>,
    _unsettled: Option<Unsettled>,
}

impl<D: Dataset> Sent<D> {
    /// The handle is dropped before the members are told, since it may be the last of their request but for their own.
    async fn read(mut self, cache: Cache<D::Source>) {
        let end = read_many::<D>(&cache, &mut self.open.members).await;
        self.end = end;
    }
}

impl<D: Dataset> Drop for Sent<D> {
    fn drop(&mut self) {
        let told = self.open.outcome.set(Outcome {
            members: mem::take(&mut self.open.members),
            end: mem::replace(&mut self.end, Ok(())),
        });
        debug_assert!(told.is_ok(), "a batch is sent once");
    }
}

impl<D: Dataset> Asked<D> for Members<D> {
    fn is_single(&self) -> bool {
        false
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn key(&self, index: usize) -> &D::Key {
        let (key, _) = self.0.get_index(index).expect("the index is below len");
        key
    }

    fn index(&self, key: &D::Key) -> Option<usize> {
        self.0.get_index_of(key)
    }

    fn value(&self, index: usize) -> Option<&Answer<D>> {
        self.0[index].as_ref()?.as_ref()
    }

    fn set(&mut self, index: usize, value: Option<Answer<D>>) {
        self.0[index] = Some(value);
    }
}

// Not derived, which would ask it of the data set.
impl<D: Dataset> Default for Members<D> {
    fn default() -> Self {
        Self(IndexMap::default())
    }
}

impl<D: Dataset> Default for Open<D> {
    fn default() -> Self {
        Self {
            members: Members::default(),
            outcome: Arc::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Hashing and comparing keys is the user's code.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
