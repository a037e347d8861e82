//! What is emitted through the `metrics` facade: the rows of docs/metrics.md, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_core::{
    BackendExt as _, Cache, Dataset, FlushOn, GetOptions, HitCheck, Lifetime, Observed, Plain,
    RequestTier, Set, get, get_many,
};
use larder_tiers::{Request, Tiers, TiersConfig};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

use super::gate::Gate;
use super::shelf::{Broken, Conn, Row, Shelf, clock, memory};

/// Keeps what was emitted: every handle that was used, by name and labels.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<Key, Emitted>>);

struct Emitted {
    kind: &'static str,
    /// What was counted, or the bits of what was set.
    number: Arc<AtomicU64>,
}

/// Counts what is recorded.
struct Count(Arc<AtomicU64>);

impl HistogramFn for Count {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Kept {
    fn number(&self, key: &Key, kind: &'static str) -> Arc<AtomicU64> {
        let mut kept = self.0.lock().unwrap();
        let emitted = kept.entry(key.clone()).or_insert_with(|| Emitted {
            kind,
            number: Arc::default(),
        });
        assert_eq!(emitted.kind, kind, "{key} is two kinds of thing");
        Arc::clone(&emitted.number)
    }

    /// The names that count something by now, of those with this label.
    fn counting(&self, label: &str) -> BTreeSet<String> {
        let kept = self.0.lock().unwrap();
        kept.iter()
            .filter(|(key, emitted)| {
                let number = emitted.number.load(std::sync::atomic::Ordering::Relaxed);
                number > 0 && key.labels().any(|is| is.key() == label)
            })
            .map(|(key, _)| key.name().to_owned())
            .collect()
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.number(key, "counter"))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.number(key, "gauge"))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Count(self.number(key, "histogram"))))
    }
}

/// A name's row in docs/metrics.md.
#[derive(Debug)]
struct Documented {
    kind: String,
    labels: BTreeSet<String>,
    meaning: String,
}

fn documented() -> BTreeMap<String, Documented> {
    let page = include_str!("../../../docs/metrics.md");
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `larder_")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [names, kind, labels, meaning] = cells[..] else {
            panic!("a row of four cells: {line}");
        };
        for name in quoted(names) {
            let row = Documented {
                kind: kind.to_owned(),
                labels: quoted(labels).collect(),
                meaning: meaning.to_owned(),
            };
            assert!(rows.insert(name, row).is_none(), "documented twice: {line}");
        }
    }
    rows
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// Shelved under an even number, a name is longer than a request may keep.
enum Name {}

impl Dataset for Name {
    const NAME: &'static str = "name";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(60));
    type Source = Shelf;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = RequestTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(_: &mut Conn, ids: Vec<u64>) -> Result<Vec<(u64, String)>, Broken> {
        let name = |id| "n".repeat(if id % 2 == 0 { 8_000 } else { 8 });
        Ok(ids.into_iter().map(|id| (id, name(id))).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn the_names_and_labels_are_the_documented_ones() {
    let kept = Kept::default();
    let _here = metrics::set_default_local_recorder(&kept);
    let shelf = Shelf::of([1, 2]);
    let gate = Gate::new(memory());
    let small = TiersConfig {
        per_request: 4_000,
        ..TiersConfig::default()
    };
    let cache = Cache::builder(shelf.clone())
        .backend(Arc::clone(&gate) as _)
        .rt(clock())
        .wrap(Observed::new)
        .tiers(Tiers::new(small).unwrap())
        .check_hits(HitCheck::one_in(1))
        .build()
        .await
        .unwrap();
    let (cache, tally) = cache.tallied();

    // A miss and an absence, the same again as hits, and a load that two share.
    for _ in 0..2 {
        get_many::<Row>(&cache, [1, 404]).await.unwrap();
        tally.settled().await;
    }
    cache.hits_checked().await;
    shelf.hold();
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { get::<Row>(&cache, &2).await }
    });
    shelf.held().await;
    let second = tokio::spawn({
        let cache = cache.clone();
        async move { get::<Row>(&cache, &2).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    shelf.let_go();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    tally.settled().await;

    // A damaged entry, a flush, a loader that fails, a store that does.
    let wire = format!("{}/row:1", cache.prefix());
    let damaged = Set::new(&b"anything but an entry, and long enough to be one"[..]);
    cache.backend().set_immutable(&wire, damaged).await.unwrap();
    get::<Row>(&cache, &1).await.unwrap();
    cache.flush::<Row>([1, 2]).await.unwrap();
    shelf.fail();
    get::<Row>(&cache, &1).await.unwrap_err();
    shelf.recover();
    gate.set_down(true);
    get::<Row>(&cache, &1).await.unwrap();
    cache.flush::<Row>([1]).await.unwrap_err();
    // Its flush waits.
    get::<Row>(&cache, &1).await.unwrap();
    tally.settled().await;
    // What a request keeps, what it has no room for, what comes too late, and what it distrusts.
    let in_flight = Request::begin(&cache);
    get::<Name>(&in_flight, &1).await.unwrap();
    let request = Request::begin(&cache);
    for _ in 0..2 {
        get_many::<Name>(&request, [1, 2]).await.unwrap();
    }
    request.cache().flush::<Name>([1]).await.unwrap_err();
    get::<Name>(&request, &1).await.unwrap();
    gate.set_down(false);
    request.end();
    get::<Name>(&request, &1).await.unwrap();
    tally.settled().await;
    // A caller that leaves.
    gate.answered_gets().close();
    let options = GetOptions::look();
    let left = cache.backend().get("k", &options);
    let left = tokio::time::timeout(Duration::from_millis(1), left).await;
    left.unwrap_err();
    // Numbers of servers are copied every five seconds.
    tokio::time::sleep(Duration::from_secs(6)).await;

    let documented = documented();
    for (key, emitted) in kept.0.lock().unwrap().iter() {
        let row = documented
            .get(key.name())
            .unwrap_or_else(|| panic!("{key} isn't documented"));
        assert_eq!(row.kind, emitted.kind, "{key}");
        for label in key.labels() {
            assert!(row.labels.contains(label.key()), "{key}: {row:?}");
            if ["outcome", "reason", "direction", "tier"].contains(&label.key()) {
                let value = format!("`{}`", label.value());
                assert!(row.meaning.contains(&value), "{key}: {row:?}");
            }
        }
    }
    let of = |label: &str| -> BTreeSet<String> {
        let rows = documented.iter();
        rows.filter(|(_, row)| row.labels.contains(label))
            .map(|(name, _)| name.clone())
            .collect()
    };
    let mut expected = of("accessor");
    // These take clocks that are wrong, and processes that hang.
    expected.remove("larder_entries_from_future_total");
    expected.remove("larder_taken_over_total");
    assert_eq!(kept.counting("accessor"), expected);
    assert_eq!(kept.counting("command"), of("command"));
    let servers = kept.counting("server");
    for name in ["larder_trips_total", "larder_stored_entries"] {
        assert!(servers.contains(name), "{servers:?}");
    }
    let tiers = kept.counting("tier");
    for name in ["larder_tier_entries", "larder_tier_bytes"] {
        assert!(tiers.contains(name), "{tiers:?}");
    }
    drop(in_flight);
}
