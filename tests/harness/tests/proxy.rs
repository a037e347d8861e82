//! The proxy between a raw client and a real memcached.

use std::time::{Duration, Instant};

use larder_harness::proxy::Proxy;
use larder_harness::server::{Listen, MemcachedServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a test waits for what it knows must come.
const PATIENCE: Duration = Duration::from_secs(10);

struct Client(TcpStream);

impl Client {
    async fn connect(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// So many bytes of replies.
    async fn hear(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        let read = self.0.read_exact(&mut bytes);
        let read = timeout(PATIENCE, read).await;
        read.expect("there is a reply").unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// What comes until the connection ends, and whether it was reset.
    async fn hear_all(&mut self) -> (String, bool) {
        let mut bytes = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await;
        let reset = read.expect("the connection ends").is_err();
        (String::from_utf8(bytes).unwrap(), reset)
    }

    async fn check(&mut self, text: &str, reply: &str) {
        self.say(text).await;
        assert_eq!(self.hear(reply.len()).await, reply, "{text}");
    }
}

async fn start() -> (MemcachedServer, Proxy, Client) {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let proxy = Proxy::start(&server.address()).await.unwrap();
    let client = Client::connect(&proxy.address()).await;
    (server, proxy, client)
}

#[tokio::test]
async fn counts_commands_and_batches() {
    let (_server, proxy, mut client) = start().await;
    client
        .check("ms a 2 q\r\nmn\r\nms b 4 q\r\nmg x\r\nmn\r\n", "MN\r\n")
        .await;
    client
        .check("mg a v\r\nmd b q\r\nmn\r\n", "VA 2\r\nmn\r\nMN\r\n")
        .await;
    client
        .check(
            "get a b c\r\ngets a\r\n",
            "VALUE a 0 2\r\nmn\r\nEND\r\nVALUE a 0 2 1\r\nmn\r\nEND\r\n",
        )
        .await;
    let counts = proxy.counts();
    assert_eq!(counts.connections, 1);
    assert_eq!(counts.batches(), 2, "values aren't commands: {counts:?}");
    assert_eq!(
        (counts.of("ms"), counts.of("mg"), counts.of("md")),
        (2, 1, 1)
    );
    assert_eq!(
        (counts.of("get"), counts.of("gets"), counts.get_keys),
        (1, 1, 4)
    );
    assert_eq!(counts.writes, 3);

    proxy.reset_counts();
    client.check("mn\r\n", "MN\r\n").await;
    assert_eq!(proxy.counts().commands, [("mn".to_owned(), 1)].into());
}

#[tokio::test]
async fn a_turn_ends_with_a_reply() {
    let (_server, proxy, mut client) = start().await;
    client.check("mn\r\n", "MN\r\n").await;
    client.check("mn\r\n", "MN\r\n").await;
    assert_eq!(proxy.counts().turns, 2);

    proxy.hold_replies();
    for number in 1..=3 {
        client.say("mn\r\n").await;
        while proxy.counts().batches() < 2 + number {
            tokio::task::yield_now().await;
        }
    }
    proxy.release_replies();
    assert_eq!(client.hear(12).await, "MN\r\n".repeat(3));
    assert_eq!((proxy.counts().turns, proxy.counts().writes), (3, 5));
}

#[tokio::test]
async fn commands_are_counted_whatever_pieces_they_come_in() {
    let (_server, proxy, mut client) = start().await;
    for byte in ["ms a", " 6 q\r", "\nmn\r\nm", "n\r\nm", "n\r\n"] {
        client.say(byte).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.hear(4).await, "MN\r\n");
    assert_eq!((proxy.counts().of("ms"), proxy.counts().batches()), (1, 1));
}

#[tokio::test]
async fn serves_unix_sockets() {
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let proxy = Proxy::start(&server.address()).await.unwrap();
    let mut client = Client::connect(&proxy.address()).await;
    client.check("mn\r\n", "MN\r\n").await;
}

#[tokio::test]
async fn replies_come_later_by_the_delay() {
    let (_server, proxy, mut client) = start().await;
    proxy.delay_replies(Duration::from_millis(40));
    let start = Instant::now();
    client.check("mn\r\n", "MN\r\n").await;
    assert!(start.elapsed() >= Duration::from_millis(40));
}

#[tokio::test]
async fn a_held_reply_is_to_an_executed_request() {
    let (server, proxy, mut client) = start().await;
    let mut other = Client::connect(&server.address()).await;
    proxy.hold_replies();
    client.say("ms key 1\r\nx\r\n").await;
    proxy.held_reply().await;
    other.check("mg key v\r\n", "VA 1\r\nx\r\n").await;
    proxy.release_replies();
    assert_eq!(client.hear(4).await, "HD\r\n");
}

#[tokio::test]
async fn a_held_request_has_not_reached_the_server() {
    let (server, proxy, mut client) = start().await;
    let mut other = Client::connect(&server.address()).await;
    proxy.hold_requests();
    client.say("ms key 1\r\nx\r\n").await;
    proxy.held_request().await;
    other.check("mg key v\r\n", "EN\r\n").await;
    proxy.release_requests();
    assert_eq!(client.hear(4).await, "HD\r\n");
    other.check("mg key v\r\n", "VA 1\r\nx\r\n").await;
}

#[tokio::test]
async fn a_cut_loses_the_reply_and_not_the_effect() {
    let (_server, proxy, mut client) = start().await;
    proxy.hold_replies();
    client.say("ms key 1\r\nx\r\n").await;
    proxy.held_reply().await;
    proxy.cut();
    assert_eq!(client.hear_all().await, (String::new(), true));

    proxy.release_replies();
    let mut again = Client::connect(&proxy.address()).await;
    again.check("mg key v\r\n", "VA 1\r\nx\r\n").await;
}

#[tokio::test]
async fn a_connection_is_cut_in_the_middle_of_a_request() {
    let (_server, proxy, mut client) = start().await;
    proxy.cut_after_request_bytes("mn\r\nms key 1\r\n".len() as u64);
    client.say("mn\r\nms key 1\r\nx\r\n").await;
    assert!(client.hear_all().await.1);

    let mut again = Client::connect(&proxy.address()).await;
    again.check("mg key v\r\n", "EN\r\n").await;
}

#[tokio::test]
async fn a_connection_is_cut_in_the_middle_of_a_reply() {
    let (_server, proxy, mut client) = start().await;
    client.check("ms key 5\r\nvalue\r\n", "HD\r\n").await;
    proxy.cut_after_reply_bytes(8);
    client.say("mg key v\r\n").await;
    assert_eq!(client.hear_all().await, ("VA 5\r\nva".to_owned(), true));

    proxy.cut_after_reply_bytes(0);
    let mut again = Client::connect(&proxy.address()).await;
    again.say("md key\r\n").await;
    assert_eq!(again.hear_all().await, (String::new(), true));
    let mut last = Client::connect(&proxy.address()).await;
    last.check("mg key\r\n", "EN\r\n").await;
}

#[tokio::test]
async fn the_client_is_gone_with_the_server_and_the_server_with_the_client() {
    let (mut server, proxy, mut client) = start().await;
    client.check("mn\r\n", "MN\r\n").await;
    server.kill();
    client.hear_all().await;

    server.restart();
    let mut again = Client::connect(&proxy.address()).await;
    // Half closed, it is still answered.
    again.say("mn\r\nquit\r\n").await;
    again.0.shutdown().await.unwrap();
    assert_eq!(again.hear_all().await, ("MN\r\n".to_owned(), false));
}
