//! The program itself, told to stop by a signal, as whoever runs it does: what is under way is finished, or somebody else
//! finishes it.

use std::process::Stdio;
use std::time::Duration;

use larder::Transactional as _;
use larder_chat::db::{Db, Sql};
use larder_harness::server::{Listen, MemcachedServer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

use crate::support::Place;

const SMALL: [&str; 6] = ["--messages", "300", "--users", "40", "--streams", "4"];

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The chat as a process.
struct Program {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Program {
    fn start(place: &Place, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder-chat"));
        command.args(["--db", place.db(), "--listen", "127.0.0.1:0"]);
        command.args(args).env("RUST_LOG", "info");
        command.env_remove("LARDER_URL").stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("a process");
        let log = child.stderr.take().expect("its log is piped");
        let log = BufReader::new(log).lines();
        Self { child, log }
    }

    /// Where it listens, once it does.
    async fn listens(&mut self) -> String {
        let rest = self.says("listening on http://").await;
        rest.split(' ').next().unwrap_or_default().to_owned()
    }

    /// What its log says behind these words, once it says them.
    async fn says(&mut self, words: &str) -> String {
        let said = async {
            loop {
                let line = self.log.next_line().await.expect("a log of plain text");
                let line = line.unwrap_or_else(|| panic!("it ended without `{words}`"));
                if let Some((_, rest)) = line.split_once(words) {
                    return rest.to_owned();
                }
            }
        };
        let said = tokio::time::timeout(PATIENCE, said).await;
        said.unwrap_or_else(|_| panic!("it never says `{words}`"))
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let mut kill = std::process::Command::new("kill");
        let sent = kill.args([signal, &pid]).status();
        assert!(sent.expect("`kill` can be run").success());
    }

    /// Waits until it has ended by itself, and well.
    async fn ends(mut self) {
        let log = async { while let Ok(Some(_)) = self.log.next_line().await {} };
        let (_, ended) = tokio::join!(log, tokio::time::timeout(PATIENCE, self.child.wait()));
        let status = ended.expect("it ends in time").expect("its status");
        assert!(status.success(), "{status}");
    }
}

/// Sends a request and answers the connection, on which the answer comes.
async fn send(address: &str, method: &str, path: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: chat\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// Waits until the database answers so.
async fn until(db: &Db, sql: Sql, expected: i64) {
    let is_so = async {
        loop {
            let mut db = db.read().await.unwrap();
            let answer: Option<i64> = db.query(sql).value().await.unwrap();
            if answer == Some(expected) {
                return;
            }
            drop(db);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let is_so = tokio::time::timeout(PATIENCE, is_so).await;
    assert!(is_so.is_ok(), "{sql:?} never answers {expected}");
}

const OUTBOX: Sql = Sql::same("SELECT count(*) FROM larder_outbox");

/// The database takes its time for the commit; meanwhile the program is told to stop, and the client hangs up.
#[tokio::test]
async fn a_commit_under_way_is_finished_and_flushed() {
    let (place, server) = (
        Place::on_postgres(),
        MemcachedServer::start(Listen::Tcp, &[]),
    );
    let url = format!(
        "memcached://{}?timeout=10s&connect_timeout=10s&stall=10s&flush_timeout=10s",
        server.address()
    );
    let args: Vec<&str> = SMALL.into_iter().chain(["--cache", &url]).collect();
    let mut program = Program::start(&place, &args);
    let address = program.listens().await;

    let other = place.start(&args).await.expect("another chat");
    let db = other.app.db();
    let mut tx = db.begin().await.unwrap();
    for statement in [
        "CREATE FUNCTION hold() RETURNS trigger AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END' \
         LANGUAGE plpgsql",
        "CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON users DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION hold()",
    ] {
        tx.query(Sql::same(statement)).execute().await.unwrap();
    }
    Db::commit(tx).await.unwrap();
    let mut held = db.begin().await.unwrap();
    let hold = Sql::same("SELECT pg_advisory_xact_lock(7)");
    held.query(hold).execute().await.unwrap();

    let page = "/api/users/7";
    other.stored(page).await;
    let change = json!({ "full_name": "Grace" });
    let client = send(&address, "PATCH", page, &change).await;
    // One lock isn't granted: that of the commit.
    let waiting = Sql::same(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    );
    until(db, waiting, 1).await;
    program.signal("-TERM");
    program.says("stopping").await;
    drop(client);
    Db::rollback(held).await.unwrap();
    program.ends().await;

    let read = other.get(page).await;
    assert_eq!(read.loads(), 1, "its entry was flushed before the end");
    assert_eq!(read.expect(200)["full_name"], "Grace");
    other.stop().await;
}

/// The store hangs when the program is told to stop: the flush is left in the outbox, for whoever runs next.
#[tokio::test]
async fn what_the_store_cannot_confirm_before_the_end_is_in_the_outbox() {
    let (place, server) = (Place::new(), MemcachedServer::start(Listen::Tcp, &[]));
    let url = format!("memcached://{}", server.address());
    let args: Vec<&str> = SMALL.into_iter().chain(["--cache", &url]).collect();
    let mut program = Program::start(&place, &args);
    let address = program.listens().await;
    let page = "/api/users/7";
    for _ in 0..2 {
        let mut stored = send(&address, "GET", page, &Value::Null).await;
        stored.read_to_string(&mut String::new()).await.unwrap();
    }
    let db = Db::open(&place.options(&[]).db).await.unwrap();

    server.stop();
    let change = json!({ "full_name": "Grace" });
    let mut client = send(&address, "PATCH", page, &change).await;
    until(&db, Sql::same("SELECT version FROM users WHERE id = 7"), 2).await;
    program.signal("-TERM");
    // Who asked is answered even so.
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(r#""flush":"pending""#), "{answer}");
    program.ends().await;
    until(&db, OUTBOX, 1).await;
    db.close().await;

    server.resume();
    let next = place.start(&args).await.expect("the next chat");
    next.settled(|stats| stats["outbox"]["rows"] == 0).await;
    assert_eq!(next.get(page).await.expect(200)["full_name"], "Grace");
    next.stop().await;
}

/// Filling takes as long as it takes, and somebody may not want to wait: nothing of it is kept.
#[tokio::test]
async fn a_filling_is_interrupted_and_leaves_nothing() {
    for signal in ["-INT", "-TERM"] {
        let place = Place::new();
        let program = Program::start(&place, &["--messages", "50000000"]);
        let log = place.path().join("chat.db-wal");
        let begun = async {
            while std::fs::metadata(&log).map_or(0, |log| log.len()) < 4 << 20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let begun = tokio::time::timeout(PATIENCE, begun).await;
        assert!(begun.is_ok(), "nothing is filled in");
        program.signal(signal);
        program.ends().await;

        let chat = place.start(&SMALL).await.expect("a chat");
        assert_eq!(chat.get("/api/messages?before=1000").await.ids().len(), 300);
        chat.stop().await;
    }
}
