//! The lock beside the database, against two chats that would serve each other's past.
//!
//! A store inside the process sees only the flushes of its own process. So a chat with such a store needs its database
//! for itself, while any number of chats may share a database and a store between them. The lock says which it is: it
//! is the operating system's, so that a killed chat leaves nothing behind.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use larder::Reach;

use crate::{During as _, StartError, StartResult};

/// Held for as long as the chat runs.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the database at this path: for itself if the store is its own, together with others if not.
    pub(crate) fn take(database: &Path, reach: Reach) -> StartResult<Self> {
        let path = beside(database, "lock");
        let what = format!("{}: can't lock", path.display());
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .during(&what)?;
        let taken = match reach {
            Reach::Process => file.try_lock(),
            Reach::Host | Reach::Network => file.try_lock_shared(),
        };
        match taken {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::Error(error)) => Err(error).during(&what),
            Err(TryLockError::WouldBlock) => Err(StartError::new(match reach {
                Reach::Process => format!(
                    "{}: another chat uses this database; the memory store is private to its process and would miss the \
                     other's writes, so stop the other chat, choose another --db, or give both the same --cache memcached://…",
                    database.display()
                ),
                Reach::Host | Reach::Network => format!(
                    "{}: a chat with the memory store uses this database and would miss this one's writes; stop it, \
                     choose another --db, or start both with the same --cache memcached://…",
                    database.display()
                ),
            })),
        }
    }
}

/// The path of a file that belongs to this database: its whole name with one more extension.
pub(crate) fn beside(database: &Path, extension: &str) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(".");
    path.push(extension);
    path.into()
}
