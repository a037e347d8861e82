//! A chat to ask.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use clap::Parser as _;
use larder::testing::{Recorded as _, TestCache};
use larder::{BuilderExt as _, Cache, Config};
use larder_chat::db::Db;
use larder_chat::fill::filled;
use larder_chat::{App, Options, StartError, StartResult, http};
use larder_harness::postgres::PostgresServer;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt as _;

/// The PostgreSQL of these tests: it starts with the first that wants it, and ends with their process.
static POSTGRES: LazyLock<PostgresServer> =
    LazyLock::new(|| PostgresServer::start(&["-c", "fsync=off", "-c", "max_connections=400"]));

/// A test on each database: an `async fn` of this name that takes a new [`Place`].
macro_rules! on_each_database {
    ($($name:ident;)+) => {$(
        mod $name {
            #[tokio::test]
            async fn on_sqlite() {
                super::$name($crate::support::Place::new()).await;
            }

            #[tokio::test]
            async fn on_postgres() {
                super::$name($crate::support::Place::on_postgres()).await;
            }
        }
    )+};
}
pub(crate) use on_each_database;

/// A place for a database, which goes with the test.
pub(crate) struct Place {
    directory: TempDir,
    /// What `--db` is here.
    db: String,
}

impl Place {
    /// One for a file of SQLite's.
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().expect("a directory for a database");
        let db = directory.path().join("chat.db");
        let db = db.to_str().expect("a path of plain characters").to_owned();
        Self { directory, db }
    }

    /// One in a PostgreSQL server.
    pub(crate) fn on_postgres() -> Self {
        Self {
            directory: TempDir::new().expect("a directory for files"),
            db: POSTGRES.database(),
        }
    }

    /// What `--db` is here.
    pub(crate) fn db(&self) -> &str {
        &self.db
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file of this name and content.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).expect("a file beside the database");
        path
    }

    /// The command line of a chat here.
    pub(crate) fn options(&self, args: &[&str]) -> Options {
        let db = ["larder-chat", "--db", &self.db];
        Options::parse_from(db.iter().chain(args))
    }

    /// Starts a chat here, whatever the environment says.
    pub(crate) async fn start(&self, args: &[&str]) -> StartResult<Chat> {
        self.start_in(&[], args).await
    }

    /// Starts a chat here, in this environment.
    pub(crate) async fn start_in(&self, vars: &[(&str, &str)], args: &[&str]) -> StartResult<Chat> {
        let options = self.options(args);
        let config = options
            .config()
            .and_then(|config| config.vars(vars.iter().copied()));
        let config: Config = config.expect("a good configuration");
        let db = filled(&options).await?;
        let configure = App::configure(&db, &options, &config).await?;
        let builder = configure(Cache::builder(db.clone()).config(config)).recorded();
        let cache = builder.build().await;
        let cache = cache.map_err(|error| StartError::new(error.to_string()))?;
        Ok(Chat::of(App::of(db, cache)))
    }

    /// A chat here on a cache of the test's own, in the store that `LARDER_TEST_CACHE` names; every hit is checked.
    pub(crate) async fn chat(&self, args: &[&str]) -> TestChat {
        let options = self.options(args);
        let config = options.config().expect("a good configuration");
        let db = filled(&options).await.expect("a database");
        let configure = App::configure(&db, &options, &config).await;
        let cache = TestCache::builder(db.clone())
            .with(configure.expect("a good configuration"))
            .build()
            .await;
        let chat = Chat::of(App::of(db, cache.handle()));
        TestChat { chat, cache }
    }
}

/// A chat, and its cache, which counts, has faults and can be moved in time.
pub(crate) struct TestChat {
    chat: Chat,
    pub(crate) cache: TestCache<Db>,
}

impl TestChat {
    /// Moves the cache's clocks. The registration in the database, whose time isn't moved, is over then, and the store is
    /// read again once it is renewed.
    pub(crate) async fn leap(&self, by: Duration) {
        self.cache.clock().advance(by);
        self.stored("/api/streams/1").await;
    }
}

impl Deref for TestChat {
    type Target = Chat;

    fn deref(&self) -> &Chat {
        &self.chat
    }
}

/// A running chat.
#[derive(Clone)]
pub(crate) struct Chat {
    pub(crate) app: App,
    pub(crate) router: Router,
}

impl Chat {
    fn of(app: App) -> Self {
        let router = http::router(app.clone());
        Self { app, router }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, Body::empty()).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: impl ToString) -> Answer {
        self.ask(method, path, body.to_string().into()).await
    }

    /// Writes; everybody sees it then.
    pub(crate) async fn write(&self, method: &str, path: &str, body: impl ToString) -> Value {
        self.send(method, path, body).await.fresh()
    }

    /// The same, for an audit to do when it wants.
    pub(crate) fn writing<'a>(
        &'a self,
        method: &'a str,
        path: &'a str,
        body: Value,
    ) -> impl AsyncFnOnce() + 'a {
        async move || drop(self.write(method, path, body).await)
    }

    /// Asks for these pages, one after the other.
    pub(crate) async fn read(&self, pages: impl IntoIterator<Item = &str>) {
        for page in pages {
            self.get(page).await;
        }
    }

    /// The page that looks for this user by the address the user has now.
    pub(crate) async fn by_email(&self, user: i64) -> String {
        let user = self.get(&format!("/api/users/{user}")).await.expect(200);
        format!("/api/users?email={}", user["email"].as_str().unwrap())
    }

    /// Somebody who may write.
    pub(crate) async fn active(&self) -> i64 {
        for id in 1.. {
            if self.get(&format!("/api/users/{id}")).await.expect(200)["is_active"] == true {
                return id;
            }
        }
        unreachable!("somebody is active");
    }

    async fn ask(&self, method: &str, path: &str, body: Body) -> Answer {
        let request = request(method, path, body);
        let response = self.router.clone().oneshot(request).await;
        let (parts, body) = response.expect("a router always answers").into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a whole body");
        let is_json = parts
            .headers
            .get("content-type")
            .is_some_and(|kind| kind == "application/json");
        let json =
            is_json.then(|| serde_json::from_slice(&body).expect("what says it is JSON is JSON"));
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).expect("text"),
            json: json.unwrap_or(Value::Null),
        }
    }

    /// Waits until `/stats` says this, which happens in the background.
    pub(crate) async fn settled(&self, is_so: impl Fn(&Value) -> bool + Sync) {
        let settled = async {
            while !is_so(&self.get("/stats").await.expect(200)) {
                tokio::task::yield_now().await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(20), settled).await;
        assert!(settled.is_ok(), "the statistics never say so");
    }

    /// Waits until this page is served from the store alone: a new generation doesn't fill at once, and a server that
    /// was away isn't read at once.
    pub(crate) async fn stored(&self, page: &str) {
        let stored = async {
            while self.get(page).await.loads() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let stored = tokio::time::timeout(Duration::from_secs(20), stored).await;
        assert!(stored.is_ok(), "{page} never comes from the store");
    }

    /// Stops it, so that another can start at its place.
    pub(crate) async fn stop(self) {
        self.app.close(Duration::from_secs(5)).await;
    }
}

pub(crate) fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)
        .expect("a good request")
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// `Null` for what isn't JSON.
    pub(crate) json: Value,
}

impl Answer {
    /// The answer's JSON, which has this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.json
    }

    /// The JSON of a write that everybody sees.
    #[track_caller]
    pub(crate) fn fresh(self) -> Value {
        assert!(self.status.is_success(), "{}", self.text);
        assert_eq!(self.flush(), "fresh", "{}", self.text);
        self.json
    }

    /// Refused with this status, for a reason in JSON that contains these words.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, words: &str) {
        let json = self.expect(status);
        let reason = json["error"].as_str().expect("a reason");
        assert!(reason.contains(words), "`{reason}` doesn't say `{words}`");
    }

    #[track_caller]
    fn number(&self, header: &str) -> u64 {
        let value = self
            .headers
            .get(header)
            .unwrap_or_else(|| panic!("no {header} in {:?}", self.headers));
        value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .expect("a number")
    }

    /// Exchanges with the store made for it.
    #[track_caller]
    pub(crate) fn trips(&self) -> u64 {
        self.number("x-larder-trips")
    }

    /// Objects loaded from the database for it.
    #[track_caller]
    pub(crate) fn loads(&self) -> u64 {
        self.number("x-larder-loads")
    }

    /// Keys that the request had already.
    #[track_caller]
    pub(crate) fn tier_hits(&self) -> u64 {
        self.number("x-larder-tier-hits")
    }

    /// What `/stats` counts for this data set.
    #[track_caller]
    pub(crate) fn accessor(&self, name: &str) -> Value {
        let accessors = self.json["accessors"].as_array().expect("statistics");
        let found = accessors.iter().find(|accessor| accessor["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {}", self.text))
            .clone()
    }

    /// What a write says of its flush.
    pub(crate) fn flush(&self) -> &str {
        self.json["flush"].as_str().unwrap_or_default()
    }

    /// The messages of a page.
    #[track_caller]
    pub(crate) fn messages(&self) -> &[Value] {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json["messages"]
            .as_array()
            .expect("a page of messages")
    }

    /// Their ids.
    #[track_caller]
    pub(crate) fn ids(&self) -> Vec<i64> {
        self.messages()
            .iter()
            .map(|message| message["id"].as_i64().expect("an id"))
            .collect()
    }
}
