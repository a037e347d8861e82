//! The same three features with larder, `cached` and hitbox: how many lines a user writes, what they cost, and what goes
//! wrong. It starts the servers itself; docs/comparison.md has what it prints.

mod cases;
mod gate;
mod statements;
mod with_cached;
mod with_hitbox;
mod with_larder;

use std::time::Duration;

use larder::BoxError;
use larder_harness::proxy::Proxy;
use larder_harness::redis::RedisServer;
use larder_harness::server::{Listen, MemcachedServer};
use larder_sqlx::Sqlite;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use tokio::time::sleep;

/// How long each reply takes: what is asked for meanwhile belongs to the same trip.
const DELAY: Duration = Duration::from_millis(100);

/// The realm that users are asked for in.
const REALM: i64 = 1;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    statements::watch();
    lines();
    costs().await?;
    cases::run().await
}

/// A file with six realms of 100 users, and 6,000 messages.
async fn database() -> Result<(tempfile::TempDir, SqlitePool), BoxError> {
    let directory = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("comparison.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let db = SqlitePool::connect_with(options).await?;
    let tables = "
        CREATE TABLE users (id INTEGER PRIMARY KEY, realm_id INTEGER NOT NULL, email TEXT NOT NULL, name TEXT NOT NULL,
            is_active BOOLEAN NOT NULL);
        CREATE TABLE messages (id INTEGER PRIMARY KEY, sender_id INTEGER NOT NULL, content TEXT NOT NULL);
        WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 600)
            INSERT INTO users SELECT id, (id + 99) / 100, 'user' || id || '@example.com', 'User ' || id, TRUE FROM n;
        WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 6000)
            INSERT INTO messages SELECT id, id % 100 + 1, 'This is message ' || id || ' of a long talk.' FROM n;";
    sqlx::raw_sql(tables).execute(&db).await?;
    Ok((directory, db))
}

/// Prints how many lines each feature has: those that aren't blank or a comment, as rustfmt (or black) leaves them.
fn lines() {
    let features = [
        "set up",
        "user by e-mail",
        "a new e-mail",
        "message page",
        "active users",
        "a deactivation",
    ];
    let files = [
        ("larder", include_str!("with_larder.rs")),
        ("cached", include_str!("with_cached.rs")),
        ("hitbox", include_str!("with_hitbox.rs")),
        ("Zulip", include_str!("with_zulip.py")),
    ];
    println!("| lines | {} |", files.map(|(name, _)| name).join(" | "));
    println!("| --- |{}", " ---: |".repeat(files.len()));
    let mut sums = [0; 4];
    for feature in features {
        let counts = files.map(|(_, file)| count(file, feature));
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
        println!(
            "| {feature} | {} |",
            counts.map(|count| count.to_string()).join(" | ")
        );
    }
    println!(
        "| together | {} |\n",
        sums.map(|sum| sum.to_string()).join(" | ")
    );
}

fn count(file: &str, feature: &str) -> usize {
    let begin = format!("begin: {feature}");
    let lines = file.lines().map(str::trim);
    let lines = lines.skip_while(|line| !line.ends_with(&begin)).skip(1);
    let lines = lines.take_while(|line| !["// end", "# end"].contains(line));
    let is_code =
        |line: &&str| !line.is_empty() && !line.starts_with("//") && !line.starts_with('#');
    let is_code = |line: &&str| is_code(line) || line.starts_with("#[");
    lines.filter(is_code).count()
}

enum Way {
    Larder(larder::Cache<Sqlite>),
    Cached(SqlitePool),
    Hitbox(with_hitbox::App),
}

impl Way {
    async fn user(&self, email: &str) -> bool {
        match self {
            Self::Larder(cache) => {
                let user = with_larder::user_by_email(cache, REALM, email).await;
                user.expect("it is loaded").is_some()
            }
            Self::Cached(db) => {
                let user = with_cached::user_by_email(db, REALM, email).await;
                user.expect("it is loaded").is_some()
            }
            Self::Hitbox(app) => {
                let user = with_hitbox::user_by_email(app.db.clone(), REALM, email.to_owned());
                let found = user.cache(&app.cache).await;
                found.expect("it is loaded").user.is_some()
            }
        }
    }

    async fn change_email(&self, id: i64, email: &str) {
        match self {
            Self::Larder(cache) => with_larder::change_email(cache, id, email)
                .await
                .expect("ok"),
            Self::Cached(db) => with_cached::change_email(db, id, email).await.expect("ok"),
            Self::Hitbox(app) => with_hitbox::change_email(app, id, email).await.expect("ok"),
        }
    }

    /// A thousand messages.
    async fn page(&self, page: i64) -> usize {
        let ids: Vec<i64> = (page * 1000..(page + 1) * 1000).collect();
        match self {
            Self::Larder(cache) => {
                let page = with_larder::messages(cache, &ids)
                    .await
                    .expect("it is loaded");
                page.into_found().len()
            }
            Self::Cached(db) => {
                let page = with_cached::messages(db, &ids).await.expect("it is loaded");
                page.into_iter().filter_map(|(_, message)| message).count()
            }
            Self::Hitbox(app) => {
                let page = with_hitbox::messages(app, &ids)
                    .await
                    .expect("it is loaded");
                page.into_iter().filter_map(|(_, message)| message).count()
            }
        }
    }

    async fn active(&self, realm: i64) -> usize {
        match self {
            Self::Larder(cache) => {
                let ids = with_larder::active_user_ids(cache, realm).await;
                ids.expect("it is loaded").len()
            }
            Self::Cached(db) => {
                let ids = with_cached::active_user_ids(db, realm).await;
                ids.expect("it is loaded").len()
            }
            Self::Hitbox(app) => {
                let ids = with_hitbox::active_user_ids(app.db.clone(), realm).cache(&app.cache);
                ids.await.expect("it is loaded").len()
            }
        }
    }

    async fn deactivate(&self, id: i64) {
        match self {
            Self::Larder(cache) => with_larder::deactivate(cache, id).await.expect("ok"),
            Self::Cached(db) => with_cached::deactivate(db, id).await.expect("ok"),
            Self::Hitbox(app) => with_hitbox::deactivate(app, id).await.expect("ok"),
        }
    }
}

/// A store behind a proxy that counts.
struct Store {
    redis: Option<RedisServer>,
    _memcached: Option<MemcachedServer>,
    proxy: Proxy,
    url: String,
}

impl Store {
    async fn redis() -> Result<Self, BoxError> {
        let server = RedisServer::start(Listen::Tcp, &[]);
        let proxy = Proxy::start(&server.address()).await?;
        proxy.delay_replies(DELAY);
        Ok(Self {
            url: format!("redis://{}", proxy.address()),
            redis: Some(server),
            _memcached: None,
            proxy,
        })
    }

    async fn memcached() -> Result<Self, BoxError> {
        let server = MemcachedServer::start(Listen::Tcp, &[]);
        let proxy = Proxy::start(&server.address()).await?;
        proxy.delay_replies(DELAY);
        Ok(Self {
            url: format!("memcached://{}", proxy.address()),
            redis: None,
            _memcached: Some(server),
            proxy,
        })
    }

    /// How many commands the server has had.
    async fn commands(&self) -> u64 {
        let Some(server) = &self.redis else {
            return self.proxy.counts().commands.values().sum();
        };
        let stats = server.raw().await.call(&["INFO", "commandstats"]).await;
        let stats = format!("{stats:?}").replace("\\r\\n", "\n");
        let calls = stats.lines().filter(|line| !line.contains("cmdstat_info"));
        let calls = calls.filter_map(|line| line.split_once("calls=")?.1.split(',').next());
        calls.filter_map(|calls| calls.parse::<u64>().ok()).sum()
    }

    /// What a call costs: trips, commands, and statements on users or messages.
    async fn cost(&self, call: impl Future<Output = ()>) -> [u64; 3] {
        let (turns, commands) = (self.proxy.counts().turns, self.commands().await);
        let queries = statements::count();
        call.await;
        sleep(2 * DELAY).await;
        let (turns, queries) = (
            self.proxy.counts().turns - turns,
            statements::count() - queries,
        );
        [turns, self.commands().await - commands, queries]
    }
}

/// Of five calls those with the fewest commands, and of these the most trips: while it is used, larder asks Redis about
/// itself once a second, within some call or between two.
async fn typical<F: Future<Output = ()>>(store: &Store, call: impl Fn(i64) -> F) -> String {
    let mut costs = Vec::new();
    for time in 1..=5 {
        costs.push(store.cost(call(time)).await);
    }
    let fewest = costs.iter().map(|cost| cost[1]).min();
    let plain = costs.iter().filter(|cost| Some(cost[1]) == fewest);
    let [trips, commands, statements] = plain.max().expect("there are five");
    format!("{trips} / {commands} / {statements}")
}

/// Each feature, cold and warm, and each write; and that readers see the writes.
async fn measure(way: &Way, store: &Store) -> Vec<(&'static str, String)> {
    let email = |id: i64| format!("user{id}@example.com");
    let new = |id: i64| format!("new{id}@example.com");
    let user = async |id: i64| assert!(way.user(&email(id)).await);
    let page = async |page: i64| assert_eq!(way.page(page).await, 1000);
    let active = async |realm: i64| assert_eq!(way.active(realm).await, 100);
    let change = async |id: i64| way.change_email(id, &new(id)).await;
    let cells = vec![
        ("user by e-mail, cold", typical(store, &user).await),
        ("warm", typical(store, &user).await),
        ("message page of 1,000, cold", typical(store, &page).await),
        ("warm", typical(store, &page).await),
        ("active users, cold", typical(store, &active).await),
        ("warm", typical(store, &active).await),
        ("a new e-mail", typical(store, &change).await),
        (
            "a deactivation",
            typical(store, async |id| way.deactivate(id).await).await,
        ),
    ];
    assert!(!way.user(&email(1)).await);
    assert!(way.user(&new(1)).await);
    assert_eq!(way.active(1).await, 95);
    cells
}

async fn costs() -> Result<(), BoxError> {
    let mut columns = Vec::new();
    for name in [
        "larder, memcached",
        "larder, Redis",
        "cached, Redis",
        "hitbox, Redis",
    ] {
        let store = match name {
            "larder, memcached" => Store::memcached().await?,
            _ => Store::redis().await?,
        };
        let (_directory, db) = database().await?;
        let way = match name {
            "cached, Redis" => {
                with_cached::REDIS.get_or_init(|| store.url.clone());
                Way::Cached(db)
            }
            "hitbox, Redis" => Way::Hitbox(with_hitbox::start(db, &store.url)?),
            _ => {
                let url = format!("{}?timeout=10s", store.url);
                Way::Larder(with_larder::start(&db, &url).await?)
            }
        };
        // Connections are made, and scripts loaded.
        assert!(way.user("user9@example.com").await);
        assert_eq!(way.page(0).await, 999);
        assert_eq!(way.active(6).await, 100);
        sleep(Duration::from_millis(500)).await;
        columns.push((name, measure(&way, &store).await));
    }
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    println!("| trips / commands / statements | {} |", names.join(" | "));
    println!("| --- |{}", " ---: |".repeat(columns.len()));
    let rows = columns[0].1.iter().map(|(row, _)| *row);
    for (index, row) in rows.enumerate() {
        let cells: Vec<&str> = columns.iter().map(|(_, cells)| &*cells[index].1).collect();
        println!("| {row} | {} |", cells.join(" | "));
    }
    println!();
    Ok(())
}
