//! Accessors on real memcached: what reads cost on the wire, and what trouble with the server costs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::{
    BuilderExt as _, Cache, Compression, Config, Dataset, FlushOn, Lifetime, NoTier, Plain, Rows,
    Source, get, get_many,
};
use larder_harness::proxy::Proxy;
use larder_harness::server::{Listen, MemcachedServer};

/// A table of texts.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<BTreeMap<u64, String>>>);

impl Table {
    fn of(count: u64) -> Self {
        let rows = (0..count).map(|id| (id, format!("message {id} ").repeat(20)));
        Self(Arc::new(Mutex::new(rows.collect())))
    }
}

impl Source for Table {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

enum Messages {}

impl Dataset for Messages {
    const NAME: &'static str = "message";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    const COMPRESSION: Compression = Compression::Zstd;
    type Source = Table;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(table: &mut Table, ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        let rows = table.0.lock().unwrap();
        let row = |id| Some((id, rows.get(&id)?.clone()));
        Ok(ids.into_iter().filter_map(row).collect())
    }
}

/// A cache as a program makes it: by URL. The deadlines are patient where a busy machine must not decide a test.
async fn cache(table: &Table, address: &str, patient: bool) -> larder::Result<Cache<Table>> {
    let patience = match patient {
        true => "&timeout=10s&connect_timeout=10s&stall=10s&flush_timeout=10s",
        false => "",
    };
    let prefix = larder::Prefix::random();
    let url = format!("memcached://{address}?prefix={prefix}{patience}");
    Cache::builder(table.clone())
        .config(Config::new(&url)?)
        .register::<Messages>()
        .build()
        .await
}

#[tokio::test]
async fn a_page_of_1000_is_one_exchange_warm_and_a_read_and_a_fill_cold() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let proxy = Proxy::start(&server.address()).await.unwrap();
    let table = Table::of(1_000);
    let cache = cache(&table, &proxy.address(), true).await.unwrap();
    let (cache, tally) = cache.tallied();
    get_many::<Messages>(&cache, 5_000..5_100).await.unwrap(); // connects
    tally.settled().await;
    let trips = tally.trips();

    // Whoever waits for an answer before it goes on is seen to take another turn.
    proxy.delay_replies(Duration::from_millis(50));
    proxy.reset_counts();
    let cold = get_many::<Messages>(&cache, 0..1_000).await.unwrap();
    assert_eq!(cold.into_found().len(), 1_000);
    tally.settled().await;
    let counts = proxy.counts();
    assert_eq!(
        (counts.of("mg"), counts.of("ms")),
        (1_000, 1_000),
        "{counts:?}"
    );
    assert_eq!(counts.turns, 2, "a read and a fill: {counts:?}");
    assert_eq!((tally.trips() - trips, tally.loads()), (2, 2));

    proxy.reset_counts();
    let warm = get_many::<Messages>(&cache, 0..1_000).await.unwrap();
    assert_eq!(warm.into_found().len(), 1_000);
    let counts = proxy.counts();
    assert_eq!(
        (counts.of("mg"), counts.of("ms"), counts.of("md")),
        (1_000, 0, 0),
        "{counts:?}"
    );
    assert_eq!(counts.turns, 1, "one read: {counts:?}");
    assert_eq!((tally.trips() - trips, tally.loads()), (3, 2));
}

#[tokio::test]
async fn a_write_is_seen_by_the_next_read_of_another_process() {
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let table = Table::of(10);
    let url = format!(
        "memcached://{}?prefix=shared&timeout=10s&connect_timeout=10s",
        server.address()
    );
    let build = async || {
        let config = Config::new(&url).unwrap();
        Cache::builder(table.clone())
            .config(config)
            .build()
            .await
            .unwrap()
    };
    let (here, there) = (build().await, build().await);
    for write in 0..100 {
        let text = format!("text {write}");
        table.0.lock().unwrap().insert(7, text.clone());
        here.flush::<Messages>([7]).await.unwrap();
        assert_eq!(
            get::<Messages>(&there, &7).await.unwrap().as_ref(),
            Some(&text)
        );
        assert_eq!(
            get::<Messages>(&here, &7).await.unwrap().as_ref(),
            Some(&text)
        );
    }
}

/// A killed server, a hung one and a restarted one: no read fails, only what is under way is delayed, and the cache
/// works again by itself.
#[tokio::test]
async fn a_server_in_trouble_costs_loads_and_delays_only_what_is_under_way() {
    let mut server = MemcachedServer::start(Listen::Tcp, &[]);
    let table = Table::of(100);
    let (cache, tally) = cache(&table, &server.address(), false)
        .await
        .unwrap()
        .tallied();
    let read_all = async || {
        let batch = get_many::<Messages>(&cache, 0..100).await.unwrap();
        assert_eq!(batch.into_found().len(), 100);
        tally.settled().await;
    };
    read_all().await;

    server.stop();
    read_all().await; // waits for its deadline, and opens the breaker
    let started = Instant::now();
    for _ in 0..50 {
        read_all().await;
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "50 reads would wait 5 s without a breaker"
    );
    assert!(
        cache.flush::<Messages>([7]).await.is_err(),
        "nobody confirmed it"
    );
    server.resume();
    works_again(&cache, &tally).await;

    server.kill();
    read_all().await;
    server.restart();
    works_again(&cache, &tally).await;
}

/// Reads until one is a hit: the breaker's probe comes every second.
async fn works_again(cache: &Cache<Table>, tally: &larder::Tally) {
    let hits = tally.hits();
    let until_hit = async {
        while tally.hits() == hits {
            get::<Messages>(cache, &7).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), until_hit).await;
    assert!(in_time.is_ok(), "no hit again: {:?}", cache.stats());
}

#[tokio::test]
async fn a_server_that_is_required_at_start_and_missing_fails_the_build() {
    let mut server = MemcachedServer::start(Listen::Tcp, &[]);
    let address = format!("{}?require_at_start=true&prefix=v1", server.address());
    let build = async || {
        let config = Config::new(&format!("memcached://{address}")).unwrap();
        Cache::builder(Table::default())
            .config(config)
            .build()
            .await
    };
    assert!(build().await.is_ok());
    server.kill();
    let error = build().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(
        error
            .to_string()
            .starts_with(&format!("memcached {}", server.address())),
        "{error}"
    );
}

enum Facts {}

impl Dataset for Facts {
    const NAME: &'static str = "fact";
    const LIFETIME: Lifetime = Lifetime::Immutable;
    type Source = Table;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    async fn load(table: &mut Table, ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Messages::load(table, ids).await
    }
}

/// Behind a proxy that redials for us no lease can be trusted.
#[tokio::test]
async fn behind_a_redialling_proxy_only_immutable_data_is_cached() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let url = format!(
        "memcached://{}?via_proxy=true&prefix=v1&timeout=10s&connect_timeout=10s",
        server.address()
    );
    let builder = || {
        let config = Config::new(&url).unwrap();
        Cache::builder(Table::of(10)).config(config)
    };
    let error = builder().register::<Messages>().build().await.unwrap_err();
    assert!(error.to_string().contains("via_proxy"), "{error}");

    let cache = builder().register::<Facts>().build().await.unwrap();
    let (cache, tally) = cache.tallied();
    for loads in [1, 1] {
        let facts = get_many::<Facts>(&cache, 0..10).await.unwrap();
        assert_eq!(facts.into_found().len(), 10);
        tally.settled().await;
        assert_eq!(tally.loads(), loads);
    }
    // Unregistered, what may change is read past the cache.
    for _ in 0..2 {
        assert!(get::<Messages>(&cache, &7).await.unwrap().is_some());
    }
    assert_eq!(tally.loads(), 3);
}
