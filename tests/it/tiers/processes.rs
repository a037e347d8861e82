//! Two processes with one memcached and one source: a permission that is revoked in one of them is gone for the next
//! request in the other, while a request that has read it goes on as it began.
//!
//! The processes are this test binary, started again as [`a_process_of_the_service`], and are told what to do line by
//! line. Each has readers of its own all the while, so that look-ups, loads and fills are under way whenever something is
//! written.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{
    Cache, Dataset, FlushOn, Lifetime, Plain, Prefix, RequestTier, Rows, Rt, Source, get, get_many,
};
use larder_harness::server::{Listen, MemcachedServer};
use larder_tiers::{Request, Tiers};
use serde::{Deserialize, Serialize};

use crate::read::shelf::HOUR;

/// Set for a process of the service: the server's address, the directory of the source, and how requests live there.
const SERVER: &str = "LARDER_TEST_SERVER";
const SOURCE: &str = "LARDER_TEST_SOURCE";
const LIVES: &str = "LARDER_TEST_REQUESTS_LIVE";

const USERS: u64 = 3;

/// How long a process keeps what its requests read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lives {
    /// As long as the request: as it should be.
    AsRequests,
    /// One request for all that come: what a cache in the process would do.
    ForEver,
    /// A request for each read: what would do without the tier.
    ForOneRead,
}

/// One file per user.
#[derive(Clone)]
struct Files(PathBuf);

impl Source for Files {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

impl Files {
    /// Replaces the file, so that nobody reads half of it.
    fn write(&self, user: u64, permitted: bool) {
        let fresh = self.0.join(format!("{user}.new"));
        std::fs::write(&fresh, permitted.to_string()).unwrap();
        std::fs::rename(fresh, self.path(user)).unwrap();
    }

    fn path(&self, user: u64) -> PathBuf {
        self.0.join(user.to_string())
    }
}

#[derive(Serialize, Deserialize)]
struct Permission {
    granted: bool,
}

/// Whether a user may see the books.
enum MaySeeBooks {}

impl Dataset for MaySeeBooks {
    const NAME: &'static str = "may_see_books";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    type Source = Files;
    type Key = u64;
    type Value = Permission;
    type Form = Plain;
    type Tier = RequestTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(files: &mut Files, users: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        let permission = |user: u64| {
            let text = std::fs::read_to_string(files.path(user)).ok()?;
            let granted = text.parse().ok()?;
            Some((user, Permission { granted }))
        };
        Ok(users.into_iter().filter_map(permission).collect())
    }
}

/// A process, as the test sees it.
struct Process {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start(server: &MemcachedServer, source: &Path, lives: Lives) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tiers::processes::a_process_of_the_service"])
            .args(["--ignored", "--nocapture"])
            .env(SERVER, server.address())
            .env(SOURCE, source)
            .env(LIVES, format!("{lives:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            orders,
            answers,
        }
    }

    /// Gives an order and waits for the answer, among the lines of the test harness.
    #[track_caller]
    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("the process is there");
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).unwrap();
            assert!(read > 0, "the process ended at `{order}`");
            if let Some((_, answer)) = line.split_once("answer: ") {
                return answer.trim_end().to_owned();
            }
        }
    }

    #[track_caller]
    fn order(&mut self, order: &str) {
        assert_eq!(self.ask(order), "done");
    }

    #[track_caller]
    fn is_permitted(&mut self, request: &str, user: u64) -> bool {
        self.ask(&format!("read {request} {user}")).parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What shouldn't happen, and how often it did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrongs {
    /// The next request read what was revoked, or granted, before it began.
    old: u32,
    /// A request's second answer wasn't its first.
    moved: u32,
    /// The process that wrote didn't see it.
    unseen: u32,
}

/// Revokes and grants, now in one process and now in the other.
fn play(lives: Lives, rounds: u64) -> Wrongs {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let source = tempfile::tempdir().unwrap();
    let files = Files(source.path().to_owned());
    let mut permitted = [true; USERS as usize];
    (0..USERS).for_each(|user| files.write(user, true));
    let mut processes = [(); 2].map(|()| Process::start(&server, source.path(), lives));
    let mut wrongs = Wrongs::default();
    for round in 0..rounds {
        let user = round % USERS;
        let before = permitted[user as usize];
        let after = !before;
        let [first, second] = &mut processes;
        let (writer, reader) = match (round / USERS) % 2 {
            0 => (first, second),
            _ => (second, first),
        };
        reader.order("begin early");
        wrongs.old += u32::from(reader.is_permitted("early", user) != before);
        writer.order("begin writing");
        writer.is_permitted("writing", user);
        writer.order(&format!("write writing {user} {after}"));
        permitted[user as usize] = after;

        reader.order("begin next");
        wrongs.old += u32::from(reader.is_permitted("next", user) != after);
        wrongs.moved += u32::from(reader.is_permitted("early", user) != before);
        wrongs.moved += u32::from(reader.is_permitted("next", user) != after);
        wrongs.unseen += u32::from(writer.is_permitted("writing", user) != after);
    }
    for process in &mut processes {
        let loads: u64 = process.ask("loads").parse().unwrap();
        assert!(
            loads > rounds / 4,
            "{loads} loads: somebody else did the work"
        );
    }
    wrongs
}

#[test]
fn a_permission_revoked_in_one_process_is_gone_for_the_next_request_in_the_other() {
    assert_eq!(play(Lives::AsRequests, 600), Wrongs::default());
}

/// The test above can fail: what is kept beyond a request is old for the next one.
#[test]
fn what_a_process_kept_beyond_a_request_would_be_noticed() {
    let wrongs = play(Lives::ForEver, 60);
    assert!(wrongs.old > 10, "{wrongs:?}");
    assert_eq!(wrongs.unseen, 0, "a request drops what it writes itself");
}

/// And what isn't kept for its request is another answer within it.
#[test]
fn what_a_request_did_not_keep_would_be_noticed() {
    let wrongs = play(Lives::ForOneRead, 60);
    assert_eq!((wrongs.old, wrongs.unseen), (0, 0));
    assert_eq!(wrongs.moved, 60);
}

#[test]
#[ignore = "a process of the tests above, which start it"]
fn a_process_of_the_service() {
    let (Ok(server), Ok(source)) = (std::env::var(SERVER), std::env::var(SOURCE)) else {
        return;
    };
    let lives = match std::env::var(LIVES).as_deref() {
        Ok("AsRequests") => Lives::AsRequests,
        Ok("ForEver") => Lives::ForEver,
        Ok("ForOneRead") => Lives::ForOneRead,
        other => panic!("requests live {other:?}"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut service = runtime.block_on(Service::start(server, source, lives));
    for order in io::stdin().lines() {
        let answer = runtime.block_on(service.obey(&order.unwrap()));
        println!("answer: {answer}");
    }
}

/// What a process of the service has.
struct Service {
    cache: Cache<Files>,
    files: Files,
    lives: Lives,
    requests: HashMap<String, Request<Files>>,
    for_ever: Request<Files>,
}

impl Service {
    async fn start(server: String, source: String, lives: Lives) -> Self {
        let mut config = MemcachedConfig::new([server]);
        // Patient: the machine may be busy with other tests.
        for limit in [
            &mut config.connect_timeout,
            &mut config.timeout,
            &mut config.flush_timeout,
            &mut config.stall,
        ] {
            *limit = Duration::from_secs(10);
        }
        let files = Files(source.into());
        let cache = Cache::builder(files.clone())
            .backend(Arc::new(Memcached::new(config, Rt::new()).unwrap()))
            .prefix(Prefix::new("test").unwrap())
            .tiers(Tiers::default())
            .register::<MaySeeBooks>()
            .build()
            .await
            .unwrap();
        for _ in 0..3 {
            drop(tokio::spawn(visit(cache.clone())));
        }
        Self {
            for_ever: Request::begin(&cache),
            cache,
            files,
            lives,
            requests: HashMap::new(),
        }
    }

    /// Does what a line says.
    async fn obey(&mut self, order: &str) -> String {
        let words: Vec<&str> = order.split(' ').collect();
        match *words {
            ["begin", request] => self.begin(request),
            ["read", request, user] => self.read(request, user.parse().unwrap()).await,
            ["write", request, user, granted] => {
                let (user, granted) = (user.parse().unwrap(), granted.parse().unwrap());
                self.write(request, user, granted).await
            }
            ["loads"] => self.loads(),
            _ => panic!("what is `{order}`?"),
        }
    }

    fn begin(&mut self, request: &str) -> String {
        let begun = match self.lives {
            Lives::ForEver => self.for_ever.clone(),
            Lives::AsRequests | Lives::ForOneRead => Request::begin(&self.cache),
        };
        self.requests.insert(request.to_owned(), begun);
        "done".to_owned()
    }

    async fn read(&self, request: &str, user: u64) -> String {
        let request = match self.lives {
            Lives::ForOneRead => Request::begin(&self.cache),
            Lives::AsRequests | Lives::ForEver => self.requests[request].clone(),
        };
        let permission = get::<MaySeeBooks>(&request, &user).await.unwrap();
        permission
            .expect("every user has a file")
            .granted
            .to_string()
    }

    async fn write(&self, request: &str, user: u64, granted: bool) -> String {
        self.files.write(user, granted);
        let cache = self.requests[request].cache();
        cache.flush::<MaySeeBooks>([user]).await.unwrap();
        "done".to_owned()
    }

    fn loads(&self) -> String {
        self.cache.stats().accessors[0].loads.to_string()
    }
}

/// Requests that come and go, whatever else happens.
async fn visit(cache: Cache<Files>) {
    loop {
        let request = Request::begin(&cache);
        for _ in 0..2 {
            let users = [0, 1, 2].map(|user| (user + fastrand::u64(0..2)) % USERS);
            let permissions = get_many::<MaySeeBooks>(&request, users).await.unwrap();
            assert_eq!(permissions.missing().count(), 0);
        }
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..1_000))).await;
    }
}
