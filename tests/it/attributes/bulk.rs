//! Many keys: how the loader is called, and what is answered.

use std::convert::Infallible;

use super::town::{Conn, DbResult, Town, User};

#[larder::cached(many, source = Town, key = "neighbour:{realm}:{ids}", by = |user| user.id, ttl = "1h", by_hand)]
async fn neighbours(db: &mut Conn, realm: u32, ids: &[u64]) -> Result<Vec<User>, Infallible> {
    db.note(format!("neighbours {realm} {ids:?}"));
    let is_there = |user: &&User| user.realm == realm && ids.contains(&user.id);
    Ok(db.read(|tables| tables.users.values().filter(is_there).cloned().collect()))
}

#[larder::cached(many, source = Town, key = "address:{ids}", ttl = "1h", by_hand)]
async fn addresses(db: &mut Conn, ids: Vec<u64>) -> DbResult<Vec<(u64, String)>> {
    db.note(format!("addresses {ids:?}"));
    let row = |id| {
        Some((
            id,
            db.read(|tables| Some(tables.users.get(&id)?.email.clone()))?,
        ))
    };
    Ok(ids.into_iter().filter_map(row).collect())
}

#[larder::cached(many, source = Town, key = "lives_at:{prefix:escaped}:{names:digest}", ttl_only = "1h", skip(hint))]
async fn lives_at(
    db: &mut Conn,
    prefix: &str,
    hint: u8,
    names: Vec<String>,
) -> DbResult<Vec<(String, u64)>> {
    db.note(format!("lives_at {prefix} {hint} {names:?}"));
    let row = |name: String| {
        let email = format!("{prefix}{name}@town");
        let mut found = None;
        db.read(|tables| {
            found = tables
                .users
                .values()
                .find(|user| user.email == email)
                .map(|user| user.id)
        });
        Some((name, found?))
    };
    Ok(names.into_iter().filter_map(row).collect())
}

/// What its ids share is called as the accessor is.
#[larder::cached(many, source = Town, key = "in_realm:{realm}:{ids}", ttl_only = "1h")]
async fn realm(db: &mut Conn, realm: u32, ids: &[u64]) -> DbResult<Vec<(u64, bool)>> {
    let lives_there =
        |id: &u64| db.read(|tables| tables.users.get(id).map(|user| user.realm == realm));
    let rows = ids.iter().filter_map(|id| Some((*id, lives_there(id)?)));
    Ok(rows.collect())
}

#[tokio::test]
async fn answers_come_as_asked_and_each_id_is_loaded_once() {
    let town = Town::new();
    let cache = town.cache().await;
    let found = neighbours(&cache, 1, [8, 9, 7, 8]).await.unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|(id, user)| (*id, user.is_some()))
        .collect();
    assert_eq!(found, [(8, true), (9, false), (7, true), (8, true)]);
    assert_eq!(town.loads(), ["neighbours 1 [8, 9, 7]"]);

    let ids = vec![7, 10];
    let found = neighbours(&cache, 1, &ids).await.unwrap();
    assert_eq!(found.missing().collect::<Vec<_>>(), [&10]);
    assert_eq!(town.loads(), ["neighbours 1 [10]"]);
}

#[tokio::test]
async fn the_loader_is_called_once_for_what_is_shared() {
    let town = Town::new();
    let cache = town.cache().await;
    let keys = [(1, 7), (2, 9), (1, 8)];
    assert_eq!(keys[0], neighbours::key(1, 7));
    neighbours::warm(&cache, keys).await.unwrap();
    assert_eq!(town.loads(), ["neighbours 1 [7, 8]", "neighbours 2 [9]"]);
    let linus = neighbours::one(&cache, 2, 9).await.unwrap();
    assert_eq!(linus.unwrap().email, "linus@town");
    assert!(town.loads().is_empty());
}

#[tokio::test]
async fn one_and_many_share_entries() {
    let town = Town::new();
    let cache = town.cache().await;
    assert_eq!(
        addresses::one(&cache, 7).await.unwrap().as_deref(),
        Some("ada@town")
    );
    let found = addresses(&cache, &[7, 8]).await.unwrap();
    assert_eq!(found.into_found(), ["ada@town", "grace@town"]);
    assert_eq!(town.loads(), ["addresses [7]", "addresses [8]"]);
}

#[tokio::test]
async fn ids_are_flushed_together() {
    let town = Town::new();
    let cache = town.cache().await;
    neighbours(&cache, 1, [7, 8]).await.unwrap();
    addresses(&cache, [7, 8]).await.unwrap();
    town.loads();
    neighbours::flush(&cache, 1, &[7, 8]).await.unwrap();
    addresses::flush(&cache, [8]).await.unwrap();
    neighbours(&cache, 1, [7, 8]).await.unwrap();
    addresses(&cache, [7, 8]).await.unwrap();
    assert_eq!(town.loads(), ["neighbours 1 [7, 8]", "addresses [8]"]);
    addresses::refresh(&cache, 7).await.unwrap();
    neighbours::uncached(&cache, 1, &7).await.unwrap();
    assert_eq!(town.loads(), ["addresses [7]", "neighbours 1 [7]"]);
}

#[tokio::test]
async fn texts_are_shared_by_many_ids() {
    let town = Town::new();
    let cache = town.cache().await;
    let names = ["a".to_owned(), "nobody".to_owned()];
    let found = lives_at(&cache, "ad", 1, &names).await.unwrap();
    assert_eq!(found.get(&names[0]), Some(&7));
    assert_eq!(found.get(&names[1]), None);
    // What is skipped isn't part of the key.
    lives_at(&cache, "ad", 2, &names).await.unwrap();
    assert_eq!(
        lives_at::one(&cache, "ad", 3, names[0].clone())
            .await
            .unwrap(),
        Some(7)
    );
    assert_eq!(town.loads(), [r#"lives_at ad 1 ["a", "nobody"]"#]);
    lives_at::flush(&cache, "ad", &names[..1]).await.unwrap();
    lives_at(&cache, "ad", 4, &names).await.unwrap();
    assert_eq!(town.loads(), [r#"lives_at ad 4 ["a"]"#]);
}

#[tokio::test]
async fn what_is_shared_may_have_the_name_of_its_accessor() {
    let cache = Town::new().cache().await;
    let found = realm(&cache, 1, [7, 9, 10]).await.unwrap();
    assert_eq!(found.get(&7), Some(&true));
    assert_eq!(found.get(&9), Some(&false));
    assert_eq!(found.get(&10), None);
}
