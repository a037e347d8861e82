//! The memcached client where the network and the server do what they like, step by step.
//!
//! What it does on a server that behaves is the conformance suite's business, and the protocol's unit tests'.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{
    Backend as _, BackendExt as _, ErrorKind, Fill, FillOutcome, GetOptions, Keys, Lease, Lookup,
    Lost, Result, Rt, Set, WriteOptions,
};
use larder_harness::fake::{Dials, Fake, Request, Settings, Step};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const STORED: FillOutcome = FillOutcome::Stored;
const GONE: FillOutcome = FillOutcome::Lost(Lost::ConnectionGone);
const VOIDED: FillOutcome = FillOutcome::Lost(Lost::Voided);

fn client(fake: &Fake) -> Arc<Memcached> {
    let config = MemcachedConfig::new(["cache"]);
    let client = Memcached::with_transport(config, fake.rt(), fake.transport());
    Arc::new(client.unwrap())
}

fn asking() -> GetOptions {
    GetOptions::lease(Duration::from_secs(10))
}

async fn win(client: &Memcached, key: &str) -> Lease {
    match client.get(key, &asking()).await {
        Ok(Lookup::Miss { lease: Some(lease) }) => lease,
        other => panic!("{key} should be won, and is {other:?}"),
    }
}

async fn fill(client: &Memcached, key: &str, lease: Lease, value: &str) -> Result<FillOutcome> {
    client.fill(key, Fill::new(lease, value.to_owned())).await
}

async fn read(client: &Memcached, key: &str) -> Option<String> {
    match client.get(key, &GetOptions::look()).await {
        Ok(Lookup::Hit { value, .. }) => Some(String::from_utf8(value.to_vec()).unwrap()),
        Ok(Lookup::Miss { .. }) => None,
        other => panic!("{key} should be there or not, and is {other:?}"),
    }
}

/// Asks until the client has a connection again: it pauses between dials.
async fn until_up(client: &Memcached) {
    while client.get("any", &GetOptions::look()).await.is_err() {
        sleep(Duration::from_millis(100)).await;
    }
}

/// Everything one needs works, on a key of its own.
async fn check_usable(client: &Memcached, key: &str) {
    until_up(client).await;
    let lease = win(client, key).await;
    assert_eq!(fill(client, key, lease, "new").await.unwrap(), STORED);
    assert_eq!(read(client, key).await.as_deref(), Some("new"));
    client.delete(key).await.unwrap();
    assert_eq!(read(client, key).await, None);
    assert_eq!(client.stats().servers[0].protocol_violations, 0);
}

/// Runs a call of this client beside the test.
fn spawn<T, F>(client: &Arc<Memcached>, call: impl FnOnce(Arc<Memcached>) -> F) -> JoinHandle<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    tokio::spawn(call(Arc::clone(client)))
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Where a request and its connection part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    BeforeArrival,
    BeforeExecution,
    BeforeReply,
    InTheReply,
}

impl Loss {
    const ALL: [Self; 4] = [
        Self::BeforeArrival,
        Self::BeforeExecution,
        Self::BeforeReply,
        Self::InTheReply,
    ];

    fn is_executed(self) -> bool {
        matches!(self, Self::BeforeReply | Self::InTheReply)
    }

    /// Waits for the request, loses it there, and lets everything else pass.
    async fn strike(self, fake: &Fake, command: &str, key: &str) {
        let Request { id, connection, .. } =
            fake.wait_for(|request| request.is(command, key)).await;
        match self {
            Self::BeforeArrival => {}
            Self::BeforeExecution => fake.arrive(id),
            Self::BeforeReply => fake.execute(id),
            Self::InTheReply => fake.reply_torn(id, 3),
        }
        fake.cut(connection);
        fake.discard(connection);
        fake.open_all();
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_is_lost_on_its_way_fails_and_may_be_repeated() {
    for loss in Loss::ALL {
        let fake = Fake::new();
        let client = client(&fake);
        until_up(&client).await;
        fake.hold_all();
        let call = spawn(&client, |client| async move {
            client.get("key", &asking()).await
        });
        loss.strike(&fake, "mg", "key").await;
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{loss:?}");
        assert!(error.is_retryable(), "{loss:?}");

        check_usable(&client, "other").await;
        // Executed, it won a lease that nobody has.
        let found = client.get("key", &asking()).await.unwrap();
        assert_eq!(matches!(found, Lookup::Busy { .. }), loss.is_executed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_whose_connection_is_lost_is_lost_stored_or_not() {
    for loss in Loss::ALL {
        let fake = Fake::new();
        let client = client(&fake);
        let lease = win(&client, "key").await;
        fake.hold_all();
        let call = spawn(&client, |client| async move {
            fill(&client, "key", lease, "value").await
        });
        loss.strike(&fake, "ms", "key").await;
        assert_eq!(call.await.unwrap().unwrap(), GONE, "{loss:?}");
        let there = fake.peek("key").unwrap();
        assert_eq!(
            there,
            if loss.is_executed() { "value" } else { "" },
            "{loss:?}"
        );
        check_usable(&client, "other").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_is_lost_on_its_way_says_so() {
    for loss in Loss::ALL {
        let fake = Fake::new();
        let client = client(&fake);
        client
            .set_immutable("key", Set::new("value"))
            .await
            .unwrap();
        fake.hold_all();
        let call = spawn(&client, |client| async move { client.delete("key").await });
        loss.strike(&fake, "md", "key").await;
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{loss:?}");
        assert!(error.is_retryable(), "{loss:?}");
        assert_eq!(fake.peek("key").is_none(), loss.is_executed(), "{loss:?}");
        // Repeated it succeeds whatever became of the first.
        until_up(&client).await;
        client.delete("key").await.unwrap();
        assert_eq!(fake.peek("key"), None);
        check_usable(&client, "other").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_torn_anywhere_is_no_answer() {
    let value = "\r\nMN\r\nEN\r\nVA 1 c7 W\r\n";
    for bytes in 0..200 {
        let fake = Fake::new();
        let client = client(&fake);
        client.set_immutable("key", Set::new(value)).await.unwrap();
        fake.hold(Step::Reply);
        let call = spawn(&client, |client| async move {
            client.get("key", &asking()).await
        });
        let get = fake.wait_for(|request| request.is("mg", "key")).await;
        fake.reply_torn(get.id, bytes);
        fake.open_all();
        match call.await.unwrap() {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{bytes} bytes"),
            Ok(Lookup::Hit { value: found, .. }) => {
                // It was long enough to be all.
                assert_eq!(found, value);
                assert!(bytes > value.len());
                return;
            }
            other => panic!("after {bytes} bytes of the reply: {other:?}"),
        }
    }
    panic!("a whole reply has less than 200 bytes");
}

/// The lease's number is somebody else's after the restart, so that nothing but the connection tells them apart.
#[tokio::test(start_paused = true)]
async fn a_lease_of_before_a_restart_is_lost_though_its_fill_was_queued_before() {
    let fake = Fake::new();
    let client = client(&fake);
    let lease = win(&client, "key").await;
    assert_eq!(lease.token.token[0], 1);

    // No other task has run since, so the connection's hasn't seen it.
    let mut filling = pin!(fill(&client, "key", lease, "old"));
    assert!(poll_once(filling.as_mut()).await.is_none());
    assert!(fake.requests().is_empty());
    fake.restart();
    let mut other = fake.connect().await.unwrap();
    assert_eq!(other.ask("mg key N30 c\r\n").await.unwrap(), "HD c1 W\r\n");

    assert_eq!(filling.await.unwrap(), GONE);
    assert_eq!(fake.peek("key").unwrap(), "", "it is the other's to fill");
    check_usable(&client, "usable").await;
    assert_eq!(fake.peek("key").unwrap(), "");
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_filled_the_pipe_before_a_restart_is_lost_whole() {
    let fake = Fake::with(Settings {
        window: 4 << 10,
        ..Settings::default()
    });
    let client = client(&fake);
    let mut keys = Keys::new();
    for number in 0..100 {
        keys.push_raw(&format!("key:{number}")).unwrap();
    }
    let won = client.get_many(&keys, &asking()).await;
    let fills: Vec<Fill> = won
        .into_iter()
        .map(|found| match found {
            Ok(Lookup::Miss { lease: Some(lease) }) => Fill::new(lease, "x".repeat(1000)),
            other => panic!("every key should be won, and one is {other:?}"),
        })
        .collect();
    fake.stop();
    let call = spawn(&client, {
        let keys = keys.clone();
        |client| async move {
            let options = WriteOptions::default();
            client.fill_many(&keys, fills, &options).await
        }
    });
    fake.wait_for(|request| request.command() == "ms").await;
    fake.restart();
    let mut other = fake.connect().await.unwrap();
    for key in keys.iter() {
        let line = format!("mg {} N30 c\r\n", key.as_str());
        assert!(other.ask(&line).await.unwrap().ends_with("W\r\n"));
    }

    for outcome in call.await.unwrap() {
        assert_eq!(outcome.unwrap(), GONE);
    }
    check_usable(&client, "usable").await;
    for key in keys.iter() {
        assert_eq!(fake.peek(key.as_str()).unwrap(), "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_connection_is_gone_waits_for_no_other() {
    let fake = Fake::new();
    let client = client(&fake);
    let lease = win(&client, "key").await;
    fake.set_dials(Dials::Ignored);
    fake.cut_all();
    let options = asking();
    let mut dialling = pin!(client.get("key", &options));
    assert!(poll_once(dialling.as_mut()).await.is_none());
    tokio::task::yield_now().await;
    let before = Instant::now();
    assert_eq!(fill(&client, "key", lease, "old").await.unwrap(), GONE);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_arrives_late_stores_nothing_after_a_delete() {
    let fake = Fake::new();
    let client = client(&fake);
    let lease = win(&client, "key").await;
    fake.hold(Step::Execution);
    let call = spawn(&client, |client| async move {
        fill(&client, "key", lease, "old").await
    });
    let late = fake.wait_for(|request| request.is("ms", "key")).await;
    fake.cut(late.connection);
    assert_eq!(call.await.unwrap().unwrap(), GONE);

    // The old connection's fill stays with the server, while new ones come and go.
    fake.freeze(late.connection);
    fake.open(Step::Execution);
    until_up(&client).await;
    client.delete("key").await.unwrap();
    fake.execute(late.id);
    assert_eq!(fake.peek("key"), None);
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_arrives_late_only_removes() {
    let fake = Fake::new();
    let client = client(&fake);
    client.set_immutable("key", Set::new("old")).await.unwrap();
    fake.hold(Step::Execution);
    let call = spawn(&client, |client| async move { client.delete("key").await });
    let late = fake.wait_for(|request| request.is("md", "key")).await;
    fake.cut(late.connection);
    assert!(call.await.unwrap().is_err());

    let mut other = fake.connect().await.unwrap();
    other.say("ms key 3\r\nnew\r\n").await.unwrap();
    let set = fake.wait_for(|request| request.is("ms", "key")).await;
    fake.execute(set.id);
    fake.execute(late.id);
    assert_eq!(fake.peek("key"), None);
}

#[tokio::test(start_paused = true)]
async fn stored_is_said_of_what_was_deleted_before_it_is_heard() {
    let fake = Fake::new();
    let (filler, writer) = (client(&fake), client(&fake));
    let lease = win(&filler, "key").await;
    until_up(&writer).await;
    fake.hold(Step::Reply);
    let call = spawn(&filler, |client| async move {
        fill(&client, "key", lease, "old").await
    });
    let fill = fake.wait_for(|request| request.is("ms", "key")).await;
    let delete = spawn(&writer, |client| async move { client.delete("key").await });
    let written = fake.wait_for(|request| request.is("md", "key")).await;
    fake.reply(last_of(&fake, &written));
    delete.await.unwrap().unwrap();

    fake.reply(last_of(&fake, &fill));
    assert_eq!(call.await.unwrap().unwrap(), STORED);
    assert_eq!(fake.peek("key"), None);
}

/// The last request under way on the same connection: a batch is answered when its end is.
fn last_of(fake: &Fake, request: &Request) -> larder_harness::fake::RequestId {
    let requests = fake.requests();
    let mut same = requests
        .iter()
        .rev()
        .filter(|other| other.connection == request.connection);
    same.next().unwrap().id
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_comes_after_its_caller_left_is_nobodys() {
    let fake = Fake::new();
    let client = client(&fake);
    for key in ["early", "other"] {
        client.set_immutable(key, Set::new(key)).await.unwrap();
    }
    let connects = client.stats().servers[0].connects;
    fake.hold(Step::Reply);
    let early = spawn(&client, |client| async move {
        client.get("early", &asking()).await
    });
    fake.wait_for(|request| request.is("mg", "early")).await;
    // A delete waits longer than a look-up.
    let delete = spawn(
        &client,
        |client| async move { client.delete("other").await },
    );
    let error = early.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(!delete.is_finished());

    fake.open(Step::Reply);
    delete.await.unwrap().unwrap();
    check_usable(&client, "usable").await;
    assert_eq!(read(&client, "early").await.as_deref(), Some("early"));
    assert_eq!(read(&client, "other").await, None);
    assert_eq!(client.stats().servers[0].connects, connects);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_and_resumes_is_used_again() {
    let fake = Fake::new();
    let client = client(&fake);
    let lease = win(&client, "key").await;
    fake.stop();
    let error = fill(&client, "key", lease, "value").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    // Nobody else waits for it.
    let before = Instant::now();
    let error = client.get("key", &asking()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(before.elapsed(), Duration::ZERO);

    sleep(Duration::from_secs(5)).await;
    fake.resume();
    check_usable(&client, "other").await;
    // The fill was with the server all the time, and its lease stood.
    assert_eq!(read(&client, "key").await.as_deref(), Some("value"));
}

#[tokio::test(start_paused = true)]
async fn an_evicted_placeholder_loses_its_fill() {
    let fake = Fake::new();
    let client = client(&fake);
    let lease = win(&client, "key").await;
    assert!(fake.evict("key"));
    assert_eq!(fill(&client, "key", lease, "value").await.unwrap(), VOIDED);
    assert_eq!(fake.peek("key"), None);
}

#[tokio::test(start_paused = true)]
async fn a_full_server_costs_stores_and_no_connection() {
    let fake = Fake::new();
    let client = client(&fake);
    let lease = win(&client, "key").await;
    let connects = client.stats().servers[0].connects;
    fake.set_full(true);
    assert!(fill(&client, "key", lease, "value").await.is_err());
    // There is no room for a placeholder either.
    let found = client.get("key", &asking()).await.unwrap();
    assert!(matches!(found, Lookup::Miss { lease: None }), "{found:?}");
    fake.set_full(false);
    check_usable(&client, "key").await;
    let stats = &client.stats().servers[0];
    assert_eq!((stats.out_of_memory, stats.connects), (1, connects));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_serve_is_refused_with_the_reason() {
    let cas_disabled = Settings {
        cas_enabled: false,
        ..Settings::default()
    };
    let too_old = Settings {
        version: "1.6.9".to_owned(),
        ..Settings::default()
    };
    let no_room = Settings {
        maxconns: 0,
        ..Settings::default()
    };
    for (settings, kind, words) in [
        (cas_disabled, ErrorKind::Unsupported, "-C"),
        (too_old, ErrorKind::Unsupported, "1.6.13 or newer"),
        (no_room, ErrorKind::Unavailable, "(-c)"),
    ] {
        let client = client(&Fake::with(settings));
        let error = client.get("key", &asking()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// The answer has come, and its caller leaves without a look at it.
#[tokio::test(start_paused = true)]
async fn leases_that_came_for_a_caller_who_left_are_given_back() {
    for count in [1, 10, 300, 2_000] {
        let fake = Fake::new();
        let client = client(&fake);
        let mut keys = Keys::new();
        for number in 0..count {
            keys.push_raw(&format!("key:{number}")).unwrap();
        }
        // Both connections are up, so that the first poll sends everything.
        client.get_many(&keys, &GetOptions::look()).await;
        until_up(&client).await;
        {
            let options = asking();
            let mut call = pin!(client.get_many(&keys, &options));
            assert!(poll_once(call.as_mut()).await.is_none());
            while fake.peek(&format!("key:{}", count - 1)).is_none()
                || client.stats().servers[0].in_flight > 0
            {
                sleep(Duration::from_millis(1)).await;
            }
        }
        let left = Instant::now();
        for number in (0..count).step_by(97) {
            let key = format!("key:{number}");
            while fake.peek(&key).is_some() {
                sleep(Duration::from_millis(1)).await;
            }
            // Long before the lease runs out.
            assert!(left.elapsed() < Duration::from_secs(1), "{count} keys");
            win(&client, &key).await;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

/// A client that isn't bound to one runtime, and its server.
fn of_any_runtime() -> (Fake, Arc<Memcached>) {
    let fake = Fake::with_rt(Settings::default(), Rt::new());
    let client = client(&fake);
    (fake, client)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_no_dial_costs_the_dials_time_and_then_none() {
    let fake = Fake::new();
    let client = client(&fake);
    fake.set_dials(Dials::Ignored);
    for expected in [Duration::from_millis(250), Duration::ZERO] {
        let before = Instant::now();
        assert!(client.get("key", &GetOptions::look()).await.is_err());
        assert_eq!(before.elapsed(), expected);
    }
}

#[test]
fn a_dial_that_ends_with_its_runtime_leaves_the_next_to_another() {
    let (fake, client) = of_any_runtime();
    fake.set_dials(Dials::Ignored);
    runtime().block_on(async {
        let options = GetOptions::look();
        let mut call = pin!(client.get("key", &options));
        assert!(poll_once(call.as_mut()).await.is_none());
        tokio::task::yield_now().await;
    });
    fake.set_dials(Dials::Accepted);
    runtime().block_on(check_usable(&client, "key"));
}

#[test]
fn a_server_that_was_down_when_its_runtime_ended_is_found_up_by_the_next() {
    let (fake, client) = of_any_runtime();
    for is_checked in [false, true] {
        fake.set_dials(Dials::Ignored);
        fake.cut_all();
        runtime().block_on(async {
            while client.stats().servers[0].state != "down" {
                assert!(client.get("key", &GetOptions::look()).await.is_err());
                sleep(Duration::from_millis(10)).await;
            }
        });
        fake.set_dials(Dials::Accepted);
        runtime().block_on(async {
            if is_checked {
                assert!(client.check().await[0].answer.is_ok());
                assert_eq!(client.stats().servers[0].state, "up");
            }
            check_usable(&client, "key").await;
        });
    }
}

#[test]
fn a_connection_whose_runtime_ended_is_no_obstacle_to_a_check() {
    let (_fake, client) = of_any_runtime();
    runtime().block_on(check_usable(&client, "key"));
    runtime().block_on(async {
        assert!(client.check().await[0].answer.is_ok());
    });
}

#[tokio::test(start_paused = true)]
async fn durations_beyond_all_clocks_are_long_ones() {
    let fake = Fake::new();
    let client = client(&fake);
    let mut keys = Keys::new();
    for number in 0..100 {
        keys.push_raw(&format!("key:{number}")).unwrap();
    }
    let options = GetOptions::lease(Duration::MAX);
    for found in client.get_many(&keys, &options).await {
        assert!(matches!(found, Ok(Lookup::Miss { lease: Some(_) })));
    }
    let lease = match client.get("key", &options).await {
        Ok(Lookup::Miss { lease: Some(lease) }) => lease,
        other => panic!("it should be won, and is {other:?}"),
    };
    assert_eq!(fill(&client, "key", lease, "value").await.unwrap(), STORED);
    client.close(Duration::MAX).await;
    assert!(client.get("key", &GetOptions::look()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_delete_of_many_keys_is_waited_for_longer() {
    let fake = Fake::new();
    let mut config = MemcachedConfig::new(["cache"]);
    config.stall = Duration::from_secs(60);
    let client = Memcached::with_transport(config, fake.rt(), fake.transport()).unwrap();
    let mut keys = Keys::new();
    for number in 0..2_000 {
        keys.push_raw(&format!("key:{number}")).unwrap();
    }
    client.get_many(&keys, &GetOptions::look()).await;
    fake.stop();
    let before = Instant::now();
    for deleted in client.delete_many(&keys, &WriteOptions::default()).await {
        assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Timeout);
    }
    // 1 s, and 1 ms for every 20 keys and every 64 KiB.
    let (least, most) = (Duration::from_millis(1_100), Duration::from_millis(1_110));
    assert!(
        (least..most).contains(&before.elapsed()),
        "{:?}",
        before.elapsed()
    );
}
