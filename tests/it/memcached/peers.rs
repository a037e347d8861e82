//! Raw values and the `memcache` crate: what one stores, the other reads.

use larder_core::{BackendExt, Fill, FillOutcome, GetOptions, Set};
use larder_harness::server::MemcachedServer;

use super::{asking, hit, start, won};

fn peer(server: &MemcachedServer) -> memcache::Client {
    memcache::connect(format!("memcache://{}?protocol=ascii", server.address())).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_larder_stores_the_memcache_crate_reads() {
    let (server, memcached) = start(&[]);
    memcached
        .set_immutable("ours:1", Set::new("set by larder"))
        .await
        .unwrap();
    let lease = won(memcached.get("ours:2", &asking()).await);
    let outcome = memcached
        .fill("ours:2", Fill::new(lease, "filled by larder"))
        .await;
    assert_eq!(outcome.unwrap(), FillOutcome::Stored);
    let peer = peer(&server);
    assert_eq!(
        peer.get::<String>("ours:1").unwrap().as_deref(),
        Some("set by larder")
    );
    assert_eq!(
        peer.get::<String>("ours:2").unwrap().as_deref(),
        Some("filled by larder")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_memcache_crate_stores_larder_reads() {
    let (server, memcached) = start(&[]);
    let peer = peer(&server);
    peer.set("theirs:1", "set by memcache", 60).unwrap();
    assert_eq!(
        hit(memcached.get("theirs:1", &GetOptions::look()).await),
        b"set by memcache"
    );
    memcached.delete("theirs:1").await.unwrap();
    assert_eq!(peer.get::<String>("theirs:1").unwrap(), None);
}
