//! Real servers that die, hang and come back under writers and readers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::Rt;
use larder_harness::server::{Listen, MemcachedServer};

use super::office::{ON, Office, Process, fresh, pending};

/// Two processes on this server, each with connections of its own.
async fn processes(office: &Office, server: &MemcachedServer) -> [Process; 2] {
    let process = async || {
        let mut config = MemcachedConfig::new([server.address()]);
        config.connect_timeout = Duration::from_secs(2);
        config.flush_timeout = Duration::from_secs(1);
        let memcached = Memcached::new(config, Rt::new()).unwrap();
        office.on(&Arc::new(memcached)).process().await
    };
    [process().await, process().await]
}

/// The server hangs: nobody is told `Fresh`, the writer reads the source, and once the server goes on, so does the flush.
#[tokio::test]
async fn a_flush_to_a_server_that_hangs_is_pending_until_it_goes_on() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let office = Office::new(ON);
    let [writer, reader] = processes(&office, &server).await;
    assert_eq!(writer.name().await, "Ada");
    assert_eq!(reader.name().await, "Ada");
    server.stop();
    let one = pending(writer.rename("Grace").await);
    assert_eq!(writer.name().await, "Grace");
    let began = Instant::now();
    let two = pending(writer.rename("Hedy").await);
    let took = began.elapsed();
    assert!(
        took < Duration::from_millis(900),
        "it is known to be away, and took {took:?}"
    );
    assert_eq!(writer.name().await, "Hedy");
    server.resume();
    let delivered = async { one.delivered().await && two.delivered().await };
    let delivered = tokio::time::timeout(Duration::from_secs(20), delivered).await;
    assert!(delivered.expect("soon"));
    assert_eq!(reader.name().await, "Hedy");
    assert_eq!(writer.name().await, "Hedy");
}

/// The server is killed between a fill and a flush, and comes back empty.
#[tokio::test]
async fn a_flush_to_a_server_that_was_killed_is_delivered_to_the_next_one() {
    let mut server = MemcachedServer::start(Listen::Tcp, &[]);
    let office = Office::new(ON);
    let [writer, reader] = processes(&office, &server).await;
    reader.name().await;
    server.kill();
    let pending = pending(writer.rename("Grace").await);
    assert_eq!(
        [writer.name().await, reader.name().await],
        ["Grace", "Grace"]
    );
    server.restart();
    let delivered = tokio::time::timeout(Duration::from_secs(20), pending.delivered()).await;
    assert!(delivered.expect("soon"));
    assert_eq!(
        [writer.name().await, reader.name().await],
        ["Grace", "Grace"]
    );
    // And all is as before.
    let began = Instant::now();
    loop {
        let committed = writer.rename("Hedy").await.unwrap();
        if committed.flush.is_fresh() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{committed:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!([writer.name().await, reader.name().await], ["Hedy", "Hedy"]);
}

/// A load whose lease the server gave before it was killed, and whose number it gives again after.
#[tokio::test]
async fn a_fill_from_before_a_restart_does_not_undo_a_write() {
    let mut server = MemcachedServer::start(Listen::Tcp, &[]);
    let office = Office::new(ON);
    let [writer, reader] = processes(&office, &server).await;
    writer.name_of("somebody@office").await; // both are connected
    reader.line.loads().close();
    let reading = tokio::spawn({
        let reader = reader.clone();
        async move { reader.name().await }
    });
    reader.line.loads().arrived().await;
    server.restart();
    let began = Instant::now();
    loop {
        let committed = writer.rename("Grace").await.unwrap();
        if committed.flush.is_fresh() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{committed:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    reader.line.loads().open();
    assert_eq!(reading.await.unwrap(), "Ada", "it began before the write");
    assert_eq!(
        [writer.name().await, reader.name().await],
        ["Grace", "Grace"]
    );
    fresh(writer.rename("Hedy").await);
    assert_eq!(reader.name().await, "Hedy");
}
