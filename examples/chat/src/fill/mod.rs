//! What a new database is filled with: generated messages, or those of a file.
//!
//! It happens once, in one transaction: after a crash in the middle the database is as empty as before, and of two chats
//! that start at the same time one fills and the other waits.

mod generate;
mod import;
mod words;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use larder::Transactional as _;
use tracing::info;

use crate::data::{Message, Stream, StreamId, User, UserId, insert_all};
use crate::db::{Conn, Db, Sql, commit, one_at_a_time};
use crate::dictionary;
use crate::options::{Generated, Options};
use crate::{During as _, StartError, StartResult};

pub use generate::Generator;

/// Messages stored by one statement.
const BATCH: usize = 500;

/// Opens the database, and fills it if nothing ever has. Who stops waiting leaves it as it was.
///
/// # Errors
///
/// If it can't be opened, the file to import can't be read, a line of it is bad, or the database was filled with something
/// else before.
pub async fn filled(options: &Options) -> StartResult<Db> {
    let db = Db::open(&options.db).await?;
    fill_once(&db, options).await?;
    Ok(db)
}

/// Fills the database if nothing ever has, and trains the dictionary of what it was filled with.
async fn fill_once(db: &Db, options: &Options) -> StartResult<()> {
    let what = format!("{}: can't fill the database", options.db);
    let mut tx = db.begin().await.during(&what)?;
    one_at_a_time(&mut tx).await.during(&what)?;
    let filled = tx.query(Sql::same("SELECT origin FROM filling"));
    let filled: Option<(String,)> = filled.optional().await.during(&what)?;
    if let Some((origin,)) = filled {
        return already_filled(&origin, options);
    }
    // People and streams are known only after the last line of an import, so references are checked at the end.
    let defer = Sql::of(
        "PRAGMA defer_foreign_keys = ON",
        "SET CONSTRAINTS ALL DEFERRED",
    );
    tx.query(defer).execute().await.during(&what)?;
    let mut filling = Filling {
        db: &mut tx,
        pending: Vec::with_capacity(BATCH),
        messages: 0,
    };
    match &options.import {
        Some(file) => import::import(&mut filling, file).await?,
        None => generate(&mut filling, &options.generated)
            .await
            .during(&what)?,
    }
    let messages = filling.messages;
    let filled = Sql::same("INSERT INTO filling (origin, at) VALUES ($1, $2)");
    let filled = tx.query(filled).bind(origin(options)).bind(unix_time());
    filled.execute().await.during(&what)?;
    // SQLite's next id is one more than the last; PostgreSQL counts by itself.
    let count_on = Sql::of(
        "SELECT 1",
        "SELECT setval(pg_get_serial_sequence('messages', 'id'), max(id)) FROM messages",
    );
    tx.query(count_on).execute().await.during(&what)?;
    dictionary::train(&mut tx).await?;
    commit(tx).await.during(&what)?;
    info!(
        messages,
        origin = origin(options),
        "filled the new database"
    );
    Ok(())
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What the database is filled with, in words that a later start compares.
fn origin(options: &Options) -> String {
    match &options.import {
        Some(file) => {
            let name = file.file_name().unwrap_or(file.as_os_str());
            format!("imported from {}", Path::new(name).display())
        }
        None => {
            let Generated {
                messages,
                users,
                streams,
                seed,
            } = options.generated;
            format!("generated, {messages} messages, {users} users, {streams} streams, seed {seed}")
        }
    }
}

fn already_filled(before: &str, options: &Options) -> StartResult<()> {
    let wanted = origin(options);
    // Who says nothing about messages takes what is there; so does the same command line again.
    if wanted == before || (options.import.is_none() && options.generated == Generated::default()) {
        return Ok(());
    }
    Err(StartError::new(format!(
        "{}: already filled ({before}), so it can't be filled again ({wanted}); choose another --db, or leave out what \
         it is to be filled with",
        options.db
    )))
}

async fn generate(filling: &mut Filling<'_>, plan: &Generated) -> sqlx::Result<()> {
    let mut generator = Generator::new(plan);
    filling.people(generator.users()).await?;
    filling.streams(generator.streams()).await?;
    for (stream, user) in generator.subscriptions() {
        filling.subscription(stream, user).await?;
    }
    let bar = progress_bar(
        u64::from(plan.messages),
        "generating {wide_bar} {human_pos} of {human_len} messages ({eta})",
    );
    for message in bar.wrap_iter(generator) {
        filling.message(message).await?;
    }
    filling.flush().await
}

/// The rows of a database that is being filled.
struct Filling<'a> {
    db: &'a mut Conn,
    /// Messages of the next statement.
    pending: Vec<Message>,
    messages: u64,
}

impl Filling<'_> {
    async fn message(&mut self, message: Message) -> sqlx::Result<()> {
        self.pending.push(message);
        self.messages += 1;
        if self.pending.len() == BATCH {
            self.flush().await?;
        }
        Ok(())
    }

    /// Stores the messages of the last, incomplete batch.
    async fn flush(&mut self) -> sqlx::Result<()> {
        insert_all(self.db, &self.pending).await?;
        self.pending.clear();
        Ok(())
    }

    async fn people(&mut self, users: impl IntoIterator<Item = User> + Send) -> sqlx::Result<()> {
        let users: Vec<User> = users.into_iter().collect();
        let insert = Sql::same(
            "INSERT INTO users (id, full_name, email, is_active) VALUES ($1, $2, $3, $4)",
        );
        for user in &users {
            let query = self.db.query(insert).bind(user.id.0).bind(&user.full_name);
            let query = query.bind(user.email.as_str()).bind(user.is_active);
            query.execute().await?;
        }
        Ok(())
    }

    async fn streams(
        &mut self,
        streams: impl IntoIterator<Item = Stream> + Send,
    ) -> sqlx::Result<()> {
        let streams: Vec<Stream> = streams.into_iter().collect();
        let insert = Sql::same("INSERT INTO streams (id, name, description) VALUES ($1, $2, $3)");
        for stream in &streams {
            let query = self.db.query(insert).bind(stream.id.0).bind(&stream.name);
            query.bind(&stream.description).execute().await?;
        }
        Ok(())
    }

    async fn subscription(&mut self, stream: StreamId, user: UserId) -> sqlx::Result<()> {
        let insert = Sql::same("INSERT INTO subscriptions (stream_id, user_id) VALUES ($1, $2)");
        let query = self.db.query(insert).bind(stream.0).bind(user.0);
        query.execute().await?;
        Ok(())
    }
}

/// A bar on the terminal; where there is none, nothing is drawn.
fn progress_bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(15));
    bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
