//! What a test can do with the fake: steps, faults, time. That its replies are the real server's is another file's.

use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use larder_harness::fake::{Dials, Fake, Network, Pipe, Request, Settings, Stage, Step};
use larder_harness::server::{Listen, MemcachedServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The one request of this kind for this key.
async fn request(fake: &Fake, command: &str, key: &str) -> Request {
    fake.wait_for(|request| request.is(command, key)).await
}

/// Whether the future has nothing to say yet.
async fn is_pending(future: impl Future) -> bool {
    let mut future = pin!(future);
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

async fn check(pipe: &mut Pipe, text: &str, reply: &str) {
    assert_eq!(pipe.ask(text).await.unwrap(), reply, "{text}");
}

/// The same, tried by hand on 1.6.18.
#[tokio::test(start_paused = true)]
async fn leases_are_won_lost_filled_and_voided_as_in_the_real_one() {
    let mut pipe = Fake::new().connect().await.unwrap();
    check(&mut pipe, "mg k v\r\n", "EN\r\n").await;
    check(&mut pipe, "mg k t N30 c\r\n", "HD t-1 c1 W\r\n").await;
    check(&mut pipe, "mg k N30 t c\r\n", "HD t30 c1 Z\r\n").await;
    check(&mut pipe, "mg k v t\r\n", "VA 0 t30 Z\r\n\r\n").await;
    check(&mut pipe, "ms k 3 C999 T60\r\nold\r\n", "EX\r\n").await;
    check(&mut pipe, "ms k 3 C1 T60 q Oa\r\nnew\r\nmn\r\n", "MN\r\n").await;
    check(
        &mut pipe,
        "mg k v t c s k Ob\r\n",
        "VA 3 t60 c2 s3 kk Ob\r\nnew\r\n",
    )
    .await;
    check(
        &mut pipe,
        "md k q\r\nmd k q Oa\r\nmn\r\n",
        "NF Oa\r\nMN\r\n",
    )
    .await;
    check(&mut pipe, "ms k 3 C2\r\nnew\r\n", "NF\r\n").await;
    check(
        &mut pipe,
        "mg k N30 c\r\nms k 3 C2\r\nold\r\n",
        "HD c3 W\r\nEX\r\n",
    )
    .await;
    check(&mut pipe, "md k C3\r\nmg k N30 c\r\n", "HD\r\nHD c4 W\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_request_has_three_steps() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    fake.hold_all();
    pipe.say("ms k 1 q\r\nx\r\nmg k v\r\n").await.unwrap();
    let get = request(&fake, "mg", "k").await;
    let set = request(&fake, "ms", "k").await;
    assert_eq!(
        (set.stage, set.value.as_deref()),
        (Stage::Sent, Some(&b"x"[..]))
    );
    assert!(set.id < get.id);

    fake.arrive(set.id);
    let stages = |fake: &Fake| fake.requests().iter().map(|r| r.stage).collect::<Vec<_>>();
    assert_eq!(stages(&fake), [Stage::Arrived, Stage::Sent]);
    assert_eq!(fake.peek("k"), None);

    fake.execute(set.id);
    assert_eq!(stages(&fake), [Stage::Executed, Stage::Sent]);
    assert!(fake.peek("k").is_some());
    assert!(is_pending(pipe.hear()).await);

    // What was sent before it comes along.
    fake.reply(get.id);
    assert_eq!(stages(&fake), []);
    assert_eq!(pipe.hear().await.unwrap(), "VA 1\r\nx\r\n");
}

#[tokio::test(start_paused = true)]
async fn connections_take_their_steps_apart() {
    let fake = Fake::new();
    let (mut one, mut two) = (fake.connect().await.unwrap(), fake.connect().await.unwrap());
    fake.hold(Step::Execution);
    one.say("ms k 1\r\n1\r\n").await.unwrap();
    two.say("ms k 1\r\n2\r\n").await.unwrap();
    let of = |pipe: &Pipe| {
        let connection = pipe.id();
        fake.wait_for(move |request| request.connection == connection)
    };
    let (first, second) = (of(&one).await, of(&two).await);
    fake.execute(second.id);
    fake.execute(first.id);
    assert_eq!(fake.peek("k").as_deref(), Some(&b"1"[..]));
    // Nothing holds the replies.
    assert_eq!(one.hear().await.unwrap(), "HD\r\n");
    assert_eq!(two.hear().await.unwrap(), "HD\r\n");
}

#[tokio::test(start_paused = true)]
async fn what_was_held_flows_when_the_step_is_opened() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    fake.hold_all();
    pipe.say("mn\r\n").await.unwrap();
    fake.open(Step::Arrival);
    fake.open(Step::Reply);
    assert!(is_pending(pipe.hear()).await);
    fake.open(Step::Execution);
    assert_eq!(pipe.hear().await.unwrap(), "MN\r\n");
}

#[tokio::test(start_paused = true)]
async fn one_frozen_connection_holds_up_no_other() {
    let fake = Fake::new();
    let (mut one, mut two) = (fake.connect().await.unwrap(), fake.connect().await.unwrap());
    fake.freeze(one.id());
    one.say("ms k 1\r\n1\r\n").await.unwrap();
    check(&mut two, "mg k v\r\n", "EN\r\n").await;
    let set = request(&fake, "ms", "k").await;
    fake.execute(set.id);
    check(&mut two, "mg k v\r\n", "VA 1\r\n1\r\n").await;
    assert!(is_pending(one.hear()).await);
    fake.thaw(one.id());
    assert_eq!(one.hear().await.unwrap(), "HD\r\n");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "request 1 isn't under way")]
async fn a_step_of_what_is_answered_is_a_mistake_in_the_test() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    fake.hold(Step::Reply);
    pipe.say("mn\r\n").await.unwrap();
    let noop = request(&fake, "mn", "").await;
    fake.reply(noop.id);
    fake.reply(noop.id);
}

#[tokio::test(start_paused = true)]
async fn a_cut_before_arrival_loses_the_request() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    fake.hold(Step::Arrival);
    pipe.say("ms k 1\r\nx\r\n").await.unwrap();
    fake.cut(pipe.id());
    assert_eq!(
        pipe.hear().await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(
        pipe.say("mn\r\n").await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    fake.open(Step::Arrival);
    assert_eq!(fake.peek("k"), None);
}

#[tokio::test(start_paused = true)]
async fn what_arrived_before_a_cut_is_executed_late_or_never() {
    let fake = Fake::new();
    for executed in [true, false] {
        let mut pipe = fake.connect().await.unwrap();
        fake.hold(Step::Execution);
        pipe.say("ms k 1\r\nx\r\n").await.unwrap();
        let set = request(&fake, "ms", "k").await;
        fake.cut(set.connection);
        assert!(pipe.hear().await.is_err());
        drop(pipe);
        if executed {
            fake.execute(set.id);
        } else {
            fake.discard(set.connection);
        }
        fake.open(Step::Execution);
        assert_eq!(fake.peek("k").is_some(), executed);
        assert!(fake.requests().is_empty());
        fake.evict("k");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_before_the_reply_loses_only_the_reply() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    fake.hold(Step::Reply);
    pipe.say("ms k 1\r\nx\r\n").await.unwrap();
    fake.cut(pipe.id());
    assert!(pipe.hear().await.is_err());
    assert!(fake.peek("k").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_torn_reply_ends_where_it_is_torn() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    fake.hold(Step::Reply);
    pipe.say("mn\r\nms k 5\r\nvalue\r\nmg k v\r\nmn\r\n")
        .await
        .unwrap();
    let get = request(&fake, "mg", "k").await;
    fake.reply_torn(get.id, 8);
    let mut replies = String::new();
    pipe.read_to_string(&mut replies).await.unwrap();
    assert_eq!(replies, "MN\r\nHD\r\nVA 5\r\nva");
}

#[tokio::test(start_paused = true)]
async fn a_restart_counts_cas_numbers_from_one() {
    let fake = Fake::new();
    let mut before = fake.connect().await.unwrap();
    check(&mut before, "mg k N30 c\r\n", "HD c1 W\r\n").await;
    fake.restart();
    assert_eq!(before.hear().await.unwrap(), "", "the connection ended");
    let mut after = fake.connect().await.unwrap();
    check(&mut after, "mg k N30 c\r\n", "HD c1 W\r\n").await;

    check(&mut after, "ms warm 1\r\nx\r\n", "HD\r\n").await;
    fake.restart_warm();
    let mut last = fake.connect().await.unwrap();
    check(&mut last, "mg warm v c\r\n", "VA 1 c2\r\nx\r\n").await;
    check(&mut last, "mg other N30 c\r\n", "HD c1 W\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_from_before_the_restart_is_read_after_it() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    pipe.say("mg k N30 c\r\n").await.unwrap();
    fake.restart();
    assert_eq!(pipe.hear().await.unwrap(), "HD c1 W\r\n");
    assert_eq!(pipe.hear().await.unwrap(), "");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_server_accepts_and_answers_nothing() {
    let fake = Fake::new();
    fake.stop();
    let mut pipe = fake.connect().await.unwrap();
    pipe.say("ms k 1\r\nx\r\n").await.unwrap();
    assert!(is_pending(pipe.hear()).await);
    assert_eq!(request(&fake, "ms", "k").await.stage, Stage::Arrived);
    fake.resume();
    assert_eq!(pipe.hear().await.unwrap(), "HD\r\n");
}

#[tokio::test(start_paused = true)]
async fn dials_are_refused_ignored_or_one_too_many() {
    let fake = Fake::with(Settings {
        maxconns: 1,
        ..Settings::default()
    });
    fake.set_dials(Dials::Refused);
    let refused = fake.connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    fake.set_dials(Dials::Ignored);
    let mut dial = pin!(fake.connect());
    assert!(is_pending(dial.as_mut()).await);
    fake.set_dials(Dials::Accepted);
    let mut pipe = dial.await.unwrap();
    check(&mut pipe, "mn\r\n", "MN\r\n").await;

    let mut second = fake.connect().await.unwrap();
    assert_eq!(
        second.hear().await.unwrap(),
        "ERROR Too many open connections\r\n"
    );
    assert_eq!(second.hear().await.unwrap(), "");
    drop(pipe);
    check(&mut fake.connect().await.unwrap(), "mn\r\n", "MN\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn names_move_between_servers() {
    use larder_backends::memcached::Address;

    let (old, new) = (Fake::new(), Fake::new());
    let network = Network::new().with("cache", &old);
    let (transport, address) = (network.transport(), Address::parse("cache").unwrap());
    let _open = transport.dial(&address).await.unwrap();
    network.set("cache", Some(&new));
    let _moved = transport.dial(&address).await.unwrap();
    assert_eq!((old.connections().len(), new.connections().len()), (1, 1));
    network.set("cache", None);
    let refused = transport.dial(&address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn items_go_when_tokios_clock_or_the_servers_own_says_so() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    let store = "ms a 1 T2\r\nx\r\nms b 1 T10\r\nx\r\nms c 1\r\nx\r\nmn\r\n";
    check(&mut pipe, store, "HD\r\nHD\r\nHD\r\nMN\r\n").await;
    tokio::time::advance(Duration::from_millis(1_999)).await;
    assert!(fake.peek("a").is_some());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(fake.peek("a").is_none());
    fake.advance(Duration::from_secs(8));
    assert!(fake.peek("b").is_none());
    assert!(fake.peek("c").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_second_begins_on_the_wall_clock() {
    let fake = Fake::new();
    fake.advance(Duration::from_millis(900));
    let mut pipe = fake.connect().await.unwrap();
    check(&mut pipe, "ms k 1 T1\r\nx\r\n", "HD\r\n").await;
    fake.advance(Duration::from_millis(100));
    assert!(fake.peek("k").is_none(), "one second was a tenth");
}

#[tokio::test(start_paused = true)]
async fn an_evicted_key_is_gone_and_its_lease_with_it() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    check(&mut pipe, "mg k N30 c\r\n", "HD c1 W\r\n").await;
    assert!(fake.evict("k"));
    assert!(!fake.evict("k"));
    check(&mut pipe, "ms k 1 C1\r\nx\r\n", "NF\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_server_without_cas_says_zero_and_accepts_no_fill() {
    let fake = Fake::with(Settings {
        cas_enabled: false,
        ..Settings::default()
    });
    let mut pipe = fake.connect().await.unwrap();
    check(&mut pipe, "mg k N30 c\r\n", "HD c0 W\r\n").await;
    check(&mut pipe, "ms k 1 C0\r\nx\r\n", "EX\r\n").await;
    let settings = pipe.ask("stats settings\r\n").await.unwrap();
    assert!(settings.contains("STAT cas_enabled no\r\n"));
}

/// As a real server with `-M` does it; that one is filled to the brim here.
#[tokio::test(start_paused = true)]
async fn a_full_server_refuses_stores_and_gives_no_leases() {
    let server = MemcachedServer::start(Listen::Tcp, &["-M", "-m", "2"]);
    let mut real = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap();
    let value = "x".repeat(500_000);
    for n in 0..10 {
        let fill = format!("ms fill-{n} 500000 q\r\n{value}\r\n");
        real.write_all(fill.as_bytes()).await.unwrap();
    }
    let attempt = "ms k 500000 c Oa\r\n".to_owned() + &value + "\r\nmn\r\n";
    real.write_all(attempt.as_bytes()).await.unwrap();
    let mut replies = Vec::new();
    while !replies.ends_with(b"MN\r\n") {
        real.read_buf(&mut replies).await.unwrap();
    }
    let replies = String::from_utf8(replies).unwrap();
    let refusal = "SERVER_ERROR out of memory storing object\r\n";
    assert!(replies.ends_with(&format!("{refusal}MN\r\n")), "{replies}");

    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    check(&mut pipe, "ms k 1\r\nx\r\n", "HD\r\n").await;
    fake.set_full(true);
    check(&mut pipe, &attempt, &format!("{refusal}MN\r\n")).await;
    // The old value is gone, and there is no room for a placeholder.
    check(&mut pipe, "mg k N30 v\r\n", "EN\r\n").await;
    fake.set_full(false);
    check(&mut pipe, "mg k N30 v\r\n", "VA 0 W\r\n\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn who_writes_without_reading_has_to_wait() {
    let fake = Fake::with(Settings {
        window: 1000,
        ..Settings::default()
    });
    let mut pipe = fake.connect().await.unwrap();
    check(
        &mut pipe,
        &format!("ms k 900\r\n{}\r\n", "x".repeat(900)),
        "HD\r\n",
    )
    .await;
    let gets = "mg k v\r\n".repeat(1000);
    assert!(is_pending(pipe.say(&gets)).await);

    let (mut reader, mut writer) = fake.connect().await.unwrap().split();
    let mut replies = Vec::new();
    let (sent, heard) = tokio::join!(writer.write_all(gets.as_bytes()), async {
        while replies.len() < 1000 * "VA 900\r\n\r\n".len() + 900_000 {
            reader.read_buf(&mut replies).await?;
        }
        std::io::Result::Ok(())
    });
    sent.unwrap();
    heard.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_is_still_served() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    fake.hold(Step::Arrival);
    pipe.say("ms k 1\r\nx\r\n").await.unwrap();
    drop(pipe);
    assert_eq!(fake.connections(), []);
    fake.open(Step::Arrival);
    assert!(fake.peek("k").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_modelled_is_said_so() {
    let fake = Fake::new();
    let mut pipe = fake.connect().await.unwrap();
    let reply = pipe.ask("incr k 1\r\nmn\r\n").await.unwrap();
    assert_eq!(
        reply,
        "SERVER_ERROR the fake memcached doesn't model `incr k 1`\r\n"
    );
    assert_eq!(pipe.hear().await.unwrap(), "");
    assert_eq!(fake.unmodelled(), ["incr k 1"]);
}
