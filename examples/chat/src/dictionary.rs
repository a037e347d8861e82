//! The dictionaries that compress messages.
//!
//! Messages are short and alike, so a dictionary of what they have in common makes their entries three times smaller
//! than they are. It is trained once, from what the database was filled with, and kept in the database: an entry is
//! unreadable without the dictionary it was made with, so none may be lost or kept in the cache alone. It is user data
//! like the messages it was made of.

use std::time::Instant;

use larder::Dictionary;
use tracing::info;

use crate::data::sample;
use crate::db::{Conn, Db, Sql};
use crate::fill::unix_time;
use crate::{During as _, StartResult};

/// The size at which more bytes stop paying: 112 KiB save another 8 %, and cost four times the memory.
const SIZE: usize = 32 << 10;

/// Messages to train from: about a hundred times the dictionary's size.
const SAMPLES: i64 = 5_000;

/// Fewer than this say too little about later messages.
const FEWEST: usize = 200;

/// Trains a dictionary from messages of this database and makes it the current one.
///
/// A database with a handful of messages gets none: they are then compressed without.
pub async fn train(db: &mut Conn) -> StartResult<()> {
    let what = "can't train the messages' dictionary";
    let messages = sample(db, SAMPLES).await.during(what)?;
    if messages.len() < FEWEST {
        info!(
            messages = messages.len(),
            "too few messages to train a dictionary"
        );
        return Ok(());
    }
    let begin = Instant::now();
    let samples = messages
        .iter()
        .map(postcard::to_stdvec)
        .collect::<Result<Vec<_>, _>>()
        .during(what)?;
    let dictionary = Dictionary::train(&samples, SIZE).during(what)?;
    let retire = Sql::same("UPDATE dictionaries SET is_current = false");
    db.query(retire).execute().await.during(what)?;
    // The same messages give the same dictionary.
    let insert = Sql::same(
        "INSERT INTO dictionaries (id, bytes, created_at, is_current) VALUES ($1, $2, $3, true) \
         ON CONFLICT (id) DO UPDATE SET is_current = true",
    );
    db.query(insert)
        .bind(i64::from(dictionary.id()))
        .bind(dictionary.bytes())
        .bind(unix_time())
        .execute()
        .await
        .during(what)?;
    info!(
        id = dictionary.id(),
        bytes = dictionary.bytes().len(),
        samples = samples.len(),
        took = ?begin.elapsed(),
        "trained the messages' dictionary"
    );
    Ok(())
}

/// The dictionaries of a database.
#[derive(Clone, Debug, Default)]
pub struct Dictionaries {
    /// What new entries are compressed with.
    pub current: Option<Dictionary>,
    /// What older entries may have been compressed with.
    pub older: Vec<Dictionary>,
}

impl Dictionaries {
    /// All dictionaries that were ever trained for this database.
    pub async fn read(db: &Db) -> StartResult<Self> {
        let what = "can't read the messages' dictionaries";
        let mut connection = db.read().await.during(what)?;
        let all = Sql::same("SELECT bytes, is_current FROM dictionaries ORDER BY created_at");
        let rows: Vec<(Vec<u8>, bool)> = connection.query(all).all().await.during(what)?;
        let mut dictionaries = Self::default();
        for (bytes, is_current) in rows {
            let dictionary = Dictionary::new(bytes).during(what)?;
            if is_current {
                dictionaries.current = Some(dictionary);
            } else {
                dictionaries.older.push(dictionary);
            }
        }
        Ok(dictionaries)
    }
}
