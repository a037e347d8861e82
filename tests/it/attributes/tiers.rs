//! Accessors with a tier answer shares.

use std::sync::Arc;

use larder::{Cache, DeployImmutable, Reader, Request, Weigh};

use super::town::{Conn, DbResult, Town};

#[larder::cached(many, source = Town, key = "name_of:{ids}", tier = request, ttl = "1h", by_hand)]
async fn names_of(db: &mut Conn, ids: &[u64]) -> DbResult<Vec<(u64, String)>> {
    db.note("names_of");
    let row = |id: &u64| {
        Some((
            *id,
            db.read(|tables| Some(tables.users.get(id)?.email.clone()))?,
        ))
    };
    Ok(ids.iter().filter_map(row).collect())
}

/// What is built once.
struct Map(Vec<u32>);

impl DeployImmutable for Map {}

impl Weigh for Map {
    fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

#[larder::cached(source = Town, key = "map_of:{id}", tier = deploy, immutable, form = larder::Unstored)]
async fn map_of(db: &mut Conn, id: u64) -> DbResult<Map> {
    db.note("map_of");
    Ok(Map(vec![u32::try_from(id).unwrap_or(0)]))
}

#[tokio::test]
async fn a_request_keeps_what_it_has_read() {
    let town = Town::new();
    let request = Request::begin(&town.cache().await);
    let name: Arc<String> = names_of::one(&request, 7).await.unwrap().unwrap();
    let again = names_of(&request, [7, 8]).await.unwrap();
    assert!(Arc::ptr_eq(&name, again.get(&7).unwrap()));
    assert_eq!(town.loads().len(), 2);
    names_of::flush(&request, [7]).await.unwrap();
    names_of::one(&request, 7).await.unwrap();
    assert_eq!(town.loads().len(), 1);
}

#[tokio::test]
async fn the_process_keeps_what_can_not_change() {
    let town = Town::new();
    let cache = town.cache().await;
    let map: Arc<Map> = map_of(&cache, 7).await.unwrap();
    assert!(Arc::ptr_eq(&map, &map_of(&cache, 7).await.unwrap()));
    assert_eq!(map.0, [7]);
    assert_eq!(town.loads(), ["map_of"]);
}

/// The application's own state.
#[derive(Reader)]
struct App {
    cache: Cache<Town>,
    #[expect(dead_code, reason = "there is more in it")]
    name: &'static str,
}

/// What a handler has at hand.
#[derive(Reader)]
struct Visit<'a> {
    #[reader]
    request: Request<Town>,
    cache: &'a Cache<Town>,
    _another: Cache<Town>,
}

#[derive(larder::Reader)]
struct Wrapper<S: larder::Source>(larder::Cache<S>);

#[tokio::test]
async fn state_that_holds_a_cache_or_a_request_reads() {
    let town = Town::new();
    let cache = town.cache().await;
    let app = App {
        cache: cache.clone(),
        name: "app",
    };
    map_of(&app, 7).await.unwrap();
    map_of::warm(&app, [8]).await.unwrap();
    map_of(&Wrapper(cache.clone()), 8).await.unwrap();
    assert_eq!(town.loads().len(), 2);

    let visit = Visit {
        request: Request::begin(&cache),
        cache: &cache,
        _another: cache.clone(),
    };
    let name = names_of::one(&visit, 7).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(
        &name,
        &names_of::one(&visit, 7).await.unwrap().unwrap()
    ));
    names_of::flush(&visit, [7]).await.unwrap();
    names_of::one(&visit, 7).await.unwrap();
    assert_eq!(town.loads().len(), 2);
    map_of(visit.cache, 7).await.unwrap();
}
