//! Readers and writers of a few rows, who check each other while a test does something to the servers.
//!
//! A row is a number that only grows. A reader takes what the store has, or wins the lease and fills what the row is then; a
//! writer changes the row, deletes the entry until that is acknowledged, and says so. No read that begins after that may be of
//! an older number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder_core::{Backend, BackendExt as _, Fill, GetOptions, Keys, Lookup, WriteOptions};
use tokio::task::JoinSet;

/// Traffic that goes on until it is ended.
pub(super) struct Traffic {
    rows: Arc<Rows>,
    tasks: JoinSet<()>,
}

struct Rows {
    keys: Vec<String>,
    current: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
    is_over: AtomicBool,
    counts: [AtomicU64; 5],
}

/// What has happened so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) hits: u64,
    pub(super) deletes: u64,
    /// Reads, fills and deletes that failed.
    pub(super) errors: u64,
    /// Misses without a lease.
    pub(super) unstored: u64,
}

impl Traffic {
    /// Two readers, each of a handle, and two writers, each of half of the rows.
    pub(super) fn start(readers: [Arc<dyn Backend>; 2], keys: Vec<String>) -> Self {
        let zeros = || keys.iter().map(|_| AtomicU64::new(0)).collect();
        let rows = Arc::new(Rows {
            current: zeros(),
            acknowledged: zeros(),
            keys: keys.clone(),
            is_over: AtomicBool::new(false),
            counts: Default::default(),
        });
        let mut tasks = JoinSet::new();
        for (number, backend) in readers.into_iter().enumerate() {
            tasks.spawn(Arc::clone(&rows).read(Arc::clone(&backend)));
            tasks.spawn(Arc::clone(&rows).write(backend, number));
        }
        Self { rows, tasks }
    }

    pub(super) fn counts(&self) -> Counts {
        let [hits, _, deletes, errors, unstored] =
            std::array::from_fn(|index| self.rows.counts[index].load(Ordering::Relaxed));
        Counts {
            hits,
            deletes,
            errors,
            unstored,
        }
    }

    /// Waits until there were so many more hits and acknowledged deletes.
    pub(super) async fn goes_on(&self, more: u64) {
        let before = self.counts();
        let wait = async {
            loop {
                let now = self.counts();
                if now.hits >= before.hits + more && now.deletes >= before.deletes + more {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
        waited.unwrap_or_else(|_| panic!("the traffic stands still: {:?}", self.counts()));
    }

    /// Ends it; panics if anybody read what was deleted.
    pub(super) async fn end(mut self) -> Counts {
        self.rows.is_over.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        self.counts()
    }
}

impl Rows {
    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    async fn read(self: Arc<Self>, backend: Arc<dyn Backend>) {
        let lease = GetOptions::lease(Duration::from_secs(10));
        while !self.is_over() {
            let rows: Vec<usize> = (0..fastrand::usize(1..40))
                .map(|_| fastrand::usize(..self.keys.len()))
                .collect();
            let mut keys = Keys::new();
            for &row in &rows {
                keys.push_raw(&self.keys[row]).unwrap();
            }
            let before: Vec<u64> = rows
                .iter()
                .map(|&row| self.acknowledged[row].load(Ordering::SeqCst))
                .collect();
            let found = backend.get_many(&keys, &lease).await;
            for ((&row, before), found) in rows.iter().zip(before).zip(found) {
                match found {
                    Ok(Lookup::Hit { value, .. }) => {
                        let read: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
                        let key = &self.keys[row];
                        assert!(
                            read >= before,
                            "{key} was read as {read} after {before} was acknowledged"
                        );
                        self.count(0);
                    }
                    Ok(Lookup::Miss { lease: Some(lease) }) => {
                        let current = self.current[row].load(Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        let fill = Fill::new(lease, current.to_string());
                        match backend.fill(&self.keys[row], fill).await {
                            Ok(_) => self.count(1),
                            Err(_) => self.count(3),
                        }
                    }
                    Ok(Lookup::Miss { lease: None }) => self.count(4),
                    Ok(_) => {}
                    Err(_) => self.count(3),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn write(self: Arc<Self>, backend: Arc<dyn Backend>, number: usize) {
        while !self.is_over() {
            let row = 2 * fastrand::usize(..self.keys.len() / 2) + number;
            let current = self.current[row].fetch_add(1, Ordering::SeqCst) + 1;
            let mut keys = Keys::new();
            keys.push_raw(&self.keys[row]).unwrap();
            loop {
                let deleted = backend.delete_many(&keys, &WriteOptions::default()).await;
                if deleted[0].is_ok() {
                    break;
                }
                self.count(3);
                if self.is_over() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.acknowledged[row].store(current, Ordering::SeqCst);
            self.count(2);
            // Readers are to hit more often than not.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
