//! A pool of which one server is in trouble: what that costs, and what brings it back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{
    Backend as _, BackendExt as _, ErrorKind, GetOptions, Keys, Result, ServerStats, WriteOptions,
};
use larder_harness::fake::{Fake, Network, Step};
use tokio::time::{Instant, sleep, timeout};

const MS: Duration = Duration::from_millis(1);

/// A pool of fakes, of which the first is the one that gets into trouble.
struct Scene {
    fakes: Vec<Fake>,
    client: Arc<Memcached>,
    keys: Keys,
}

impl Scene {
    /// Of so many servers, all of which have been asked before.
    async fn start(servers: usize, change: impl FnOnce(&mut MemcachedConfig)) -> Self {
        let fakes: Vec<_> = (0..servers).map(|_| Fake::new()).collect();
        let network = Network::new();
        let names: Vec<_> = (0..servers)
            .map(|number| format!("cache-{number}"))
            .collect();
        for (name, fake) in names.iter().zip(&fakes) {
            network.set(name, Some(fake));
        }
        let mut config = MemcachedConfig::new(names);
        change(&mut config);
        let client = Memcached::with_transport(config, fakes[0].rt(), network.transport());
        let mut keys = Keys::new();
        for number in 0..100 * servers {
            keys.push_raw(&format!("key:{number}")).unwrap();
        }
        let scene = Self {
            fakes,
            client: Arc::new(client.unwrap()),
            keys,
        };
        scene.client.ready().await.unwrap();
        assert_eq!(scene.fetch().await, Fetched::default());
        scene
    }

    /// Looks all keys up once.
    async fn fetch(&self) -> Fetched {
        let before = Instant::now();
        let mut fetched = Fetched::default();
        for answer in self.client.get_many(&self.keys, &GetOptions::look()).await {
            match answer.map_err(|error| error.kind()) {
                Ok(_) => {}
                Err(ErrorKind::Timeout) => fetched.late += 1,
                Err(ErrorKind::Unavailable) => fetched.refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        fetched.took = before.elapsed();
        fetched
    }

    fn troubled(&self) -> &Fake {
        &self.fakes[0]
    }

    fn stats(&self) -> ServerStats {
        self.client.stats().servers.swap_remove(0)
    }
}

/// What became of a fetch: keys that failed, and how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fetched {
    late: usize,
    refused: usize,
    took: Duration,
}

#[tokio::test(start_paused = true)]
async fn a_stopped_server_costs_its_keys_and_one_deadline_in_all() {
    let scene = Scene::start(3, |_| {}).await;
    scene.troubled().stop();
    let first = scene.fetch().await;
    assert!(
        (60..140).contains(&first.late) && first.refused == 0,
        "{first:?}"
    );
    assert!((100 * MS..110 * MS).contains(&first.took), "{first:?}");
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        let expected = Fetched {
            late: 0,
            refused: first.late,
            took: Duration::ZERO,
        };
        assert_eq!(scene.fetch().await, expected);
        sleep(17 * MS).await;
    }
    let stats = scene.stats();
    assert_eq!((stats.state, stats.times_down), ("down", 1));
    scene.troubled().resume();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.fetch().await, Fetched::default());
}

#[tokio::test(start_paused = true)]
async fn of_callers_at_once_each_pays_one_deadline_at_most() {
    let scene = Arc::new(Scene::start(3, |_| {}).await);
    scene.troubled().stop();
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let scene = Arc::clone(&scene);
            tokio::spawn(async move {
                // Some ask while the others wait already.
                sleep(15 * MS * number).await;
                let mut late = 0;
                for _ in 0..100 {
                    late += usize::from(scene.fetch().await.late > 0);
                    sleep(7 * MS).await;
                }
                late
            })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap() <= 1);
    }
}

#[tokio::test(start_paused = true)]
async fn only_probes_ask_a_server_that_is_down() {
    let scene = Scene::start(1, |_| {}).await;
    scene.troubled().stop();
    assert!(scene.fetch().await.late > 0);
    let asked = |fake: &Fake| {
        let requests = fake.requests();
        requests
            .iter()
            .filter(|request| request.command() == "mg")
            .count()
    };
    let before = asked(scene.troubled());
    for _ in 0..500 {
        assert!(scene.fetch().await.refused > 0);
        let deleted = scene.client.delete("key:1").await;
        assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(asked(scene.troubled()), before);
        sleep(9 * MS).await;
    }
    // A dial with its greeting at most each second, and not one for each call.
    assert!(
        scene.troubled().dialled() < 20,
        "{}",
        scene.troubled().dialled()
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_held_up_for_a_moment_is_used_as_soon_as_it_answers() {
    let scene = Scene::start(3, |_| {}).await;
    scene.troubled().stop();
    assert!(scene.fetch().await.late > 0);
    assert_eq!(scene.stats().state, "down");
    sleep(30 * MS).await;
    assert!(scene.fetch().await.refused > 0);
    scene.troubled().resume();
    sleep(MS).await;
    assert_eq!(scene.fetch().await, Fetched::default());
    let stats = scene.stats();
    assert_eq!(
        (stats.state, stats.times_down, stats.reconnects),
        ("up", 1, 0)
    );
}

/// Gives replies so long after their requests.
async fn reply_late(fake: Fake, delay: Duration) {
    let mut since = HashMap::new();
    fake.hold(Step::Reply);
    loop {
        let now = Instant::now();
        for request in fake.requests() {
            let sent = *since.entry(request.id).or_insert(now);
            if now.duration_since(sent) >= delay
                && fake.requests().iter().any(|r| r.id == request.id)
            {
                fake.reply(request.id);
            }
        }
        sleep(5 * MS).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_late_each_time_costs_a_deadline_a_second() {
    let scene = Scene::start(1, |_| {}).await;
    let replying = tokio::spawn(reply_late(scene.troubled().clone(), 150 * MS));
    let mut paid = 0;
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        paid += usize::from(scene.fetch().await.late > 0);
        sleep(MS).await;
    }
    assert!((10..=25).contains(&paid), "{paid}");
    replying.abort();
}

#[tokio::test(start_paused = true)]
async fn a_delete_waits_through_a_silence_as_long_as_it_may() {
    let patient = |config: &mut MemcachedConfig| config.flush_timeout = Duration::from_secs(4);
    let scene = Scene::start(1, patient).await;
    for keys in [&scene.keys, &Keys::one("key:1").unwrap()] {
        scene.troubled().stop();
        let resume = async {
            sleep(Duration::from_secs(3)).await;
            scene.troubled().resume();
        };
        let options = WriteOptions::default();
        let (deleted, ()) = tokio::join!(scene.client.delete_many(keys, &options), resume);
        deleted.into_iter().collect::<Result<Vec<()>>>().unwrap();
    }
    // Longer than that nothing waits for a silent server, however much was asked of it.
    let mut keys = Keys::new();
    for number in 0..100_000 {
        keys.push_raw(&format!("key:{number}")).unwrap();
    }
    scene.troubled().stop();
    let before = Instant::now();
    let deleted = scene
        .client
        .delete_many(&keys, &WriteOptions::default())
        .await;
    assert!(deleted.iter().all(Result::is_err));
    let took = before.elapsed();
    assert!((3_900 * MS..4_200 * MS).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn trouble_and_recovery_are_counted() {
    let scene = Scene::start(3, |_| {}).await;
    let stats = scene.stats();
    assert_eq!((stats.last_error, stats.last_error_age_s), (None, None));
    scene.troubled().restart();
    assert!(scene.fetch().await.refused > 0);
    let recovered = timeout(Duration::from_secs(5), async {
        while scene.fetch().await != Fetched::default() {
            sleep(10 * MS).await;
        }
    });
    recovered.await.unwrap();
    let stats = scene.stats();
    // The connection for single keys comes back when somebody needs it.
    assert_eq!((stats.connects, stats.reconnects), (3, 1));
    assert_eq!(
        (stats.timeouts, stats.times_down, stats.in_flight),
        (0, 0, 0)
    );
    assert!(stats.last_error.unwrap().contains("cache-0:11211"));
    assert_eq!(stats.last_error_age_s, Some(0));
    assert!(stats.bytes_in > 0 && stats.bytes_out > 0);

    scene.troubled().stop();
    scene.fetch().await;
    let stats = scene.stats();
    assert_eq!((stats.timeouts, stats.times_down), (1, 1));
    assert!(stats.in_flight > 0);
}
