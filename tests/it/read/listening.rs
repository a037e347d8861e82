//! What a listener is told, and what it can ask again.

use std::sync::{Arc, Mutex};

use larder_core::{AnyKey, Cache, Event, Listener, Prefix, Seen, get, get_many, uncached};

use super::shelf::{Fact, Row, Shelf, clock, memory};

/// A key that was hit, and what its reader was given.
type Hit = (Box<dyn AnyKey<Shelf>>, Seen);

#[derive(Debug, Default)]
struct Ear {
    heard: Mutex<Vec<String>>,
    keys: Mutex<Vec<Box<dyn AnyKey<Shelf>>>>,
    hits: Mutex<Vec<Hit>>,
}

impl Listener<Shelf> for Ear {
    fn hear(&self, event: &Event<'_, Shelf>) {
        let told = match event {
            Event::Read(read) => {
                self.keys.lock().unwrap().extend(read.keys_again());
                format!(
                    "{} {} of {}: {} hits, {} absent, {} misses, {} shared",
                    if read.is_single { "get" } else { "get_many" },
                    read.keys,
                    read.accessor,
                    read.hits,
                    read.absent,
                    read.misses,
                    read.shared
                )
            }
            Event::Hit(hit) => {
                self.hits.lock().unwrap().extend(hit.again());
                format!("hit {}", hit.key.as_str())
            }
            Event::LoadStarted { accessor, keys } => format!("load {keys} of {accessor}"),
            Event::Loaded { found, .. } => format!("loaded {found:?}"),
            Event::LoadSettled { filled, .. } => format!("filled {filled}"),
            Event::Flush { keys } => format!("flush {}", keys.get(0).as_str()),
            Event::Flushed { failed, .. } => format!("flushed {failed:?}"),
            _ => "something else".to_owned(),
        };
        self.heard.lock().unwrap().push(told);
    }
}

async fn cache(shelf: &Shelf) -> (Cache<Shelf>, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let cache = Cache::builder(shelf.clone())
        .backend(memory())
        .prefix(Prefix::new("test").unwrap())
        .rt(clock())
        .listener(Arc::clone(&ear) as Arc<dyn Listener<Shelf>>)
        .build();
    (cache.await.unwrap(), ear)
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_told_in_order() {
    let shelf = Shelf::of([7]);
    let (cache, ear) = cache(&shelf).await;
    let (cache, tally) = cache.tallied();
    let prefix = cache.prefix();
    get_many::<Row>(&cache, [7, 9]).await.unwrap();
    tally.settled().await;
    get_many::<Row>(&cache, [7, 9]).await.unwrap();
    get::<Row>(&cache, &7).await.unwrap();
    uncached::<Row>(&cache, &7).await.unwrap();
    cache.flush::<Row>([7]).await.unwrap();
    shelf.fail();
    get::<Row>(&cache, &7).await.unwrap_err();
    tally.settled().await;

    let seven = format!("hit {prefix}/row:7");
    let nine = format!("hit {prefix}/row:9");
    assert_eq!(
        *ear.heard.lock().unwrap(),
        [
            "load 2 of row",
            "loaded Some(1)",
            "filled 2",
            "get_many 2 of row: 0 hits, 0 absent, 2 misses, 0 shared",
            &seven,
            &nine,
            "get_many 2 of row: 1 hits, 1 absent, 0 misses, 0 shared",
            &seven,
            "get 1 of row: 1 hits, 0 absent, 0 misses, 0 shared",
            "load 1 of row",
            "loaded Some(1)",
            "filled 0",
            "get 1 of row: 0 hits, 0 absent, 1 misses, 0 shared",
            "flush row:7",
            "flushed None",
            "load 1 of row",
            "loaded None",
            "filled 0",
            "get 1 of row: 0 hits, 0 absent, 1 misses, 0 shared",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_read_is_compared_with_the_source() {
    let shelf = Shelf::of([7]);
    let (cache, ear) = cache(&shelf).await;
    let (cache, tally) = cache.tallied();
    get::<Row>(&cache, &7).await.unwrap();
    get::<Fact>(&cache, &7).await.unwrap();
    tally.settled().await;

    // What never changes can't be stale.
    let [key] = &ear.keys.lock().unwrap().split_off(0)[..] else {
        panic!("one key was read that may change");
    };
    assert_eq!((key.accessor(), key.key()), ("row", "row:7"));
    let before = key.fresh(&cache).await.unwrap();
    assert_eq!(key.cached(&cache).await.unwrap(), before);

    // Written behind the cache's back.
    shelf.write(7, "another");
    let (cached, fresh) = (key.cached(&cache).await, key.fresh(&cache).await);
    let differences = cached.unwrap().differences(&fresh.unwrap());
    assert_eq!(
        differences[0].to_string(),
        r#"cached "row 7", true "another""#
    );
    let hits = ear.hits.lock().unwrap();
    assert_eq!(hits.len(), 2);
    assert!(hits.iter().all(|(_, seen)| *seen == before));
}
