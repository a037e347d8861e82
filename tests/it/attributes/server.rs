//! The same on a real memcached.

use larder::{BuilderExt as _, Cache, Config, Prefix, Tiers};
use larder_harness::server::{Listen, MemcachedServer};

use super::town::{Conn, DbResult, Town, User, change};

#[larder::cached(
    many, source = Town, key = "resident:{realm}:{ids}", by = |user| user.id, ttl = "1h", compress,
    flush_on(User { .. } => |user| (user.realm, user.id)),
)]
async fn residents(db: &mut Conn, realm: u32, ids: &[u64]) -> DbResult<Vec<User>> {
    db.note(format!("residents {realm} {ids:?}"));
    let lives_there = |user: &&User| user.realm == realm && ids.contains(&user.id);
    Ok(db.read(|tables| tables.users.values().filter(lives_there).cloned().collect()))
}

#[tokio::test]
async fn two_processes_share_what_is_stored_and_what_is_flushed() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let town = Town::new();
    let url = format!(
        "memcached://{}?prefix={}&timeout=10s&connect_timeout=10s&stall=10s&flush_timeout=10s",
        server.address(),
        Prefix::random()
    );
    let build = async || {
        let config = Config::new(&url).unwrap();
        Cache::builder(town.clone())
            .config(config)
            .tiers(Tiers::default())
            .build()
            .await
            .unwrap()
    };
    let (here, there) = (build().await, build().await);
    let (here, tally) = here.tallied();
    assert_eq!(
        residents(&here, 1, [7, 8])
            .await
            .unwrap()
            .into_found()
            .len(),
        2
    );
    tally.settled().await;
    assert_eq!(town.loads(), ["residents 1 [7, 8]"]);
    let found = residents(&there, 1, [8, 7, 9]).await.unwrap();
    assert_eq!(found.missing().collect::<Vec<_>>(), [&9]);
    assert_eq!(town.loads(), ["residents 1 [9]"]);

    change(&there, 7, |user| user.email = "ada@new".to_owned()).await;
    let ada = residents::one(&here, 1, 7).await.unwrap().unwrap();
    assert_eq!(ada.email, "ada@new");
    assert_eq!(town.loads(), ["residents 1 [7]"]);
}
