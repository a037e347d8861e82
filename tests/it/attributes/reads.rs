//! One key: what is answered, what it costs, and what else there is to do with it.

use std::convert::Infallible;

use larder::Request;

use super::town::{Conn, DbResult, Town, User, user};

#[larder::cached(source = Town, key = "a_user:{realm}:{email:digest}", ttl = "1h", by_hand)]
async fn a_user(db: &mut Conn, realm: u32, email: &str) -> Result<Option<User>, Infallible> {
    db.note(format!("a_user {realm} {email}"));
    let is_it = |user: &&User| user.realm == realm && user.email == email;
    Ok(db.read(|tables| tables.users.values().find(is_it).cloned()))
}

#[larder::cached(source = Town, key = "people", ttl_only = "10m")]
async fn people(db: &mut Conn) -> DbResult<usize> {
    db.note("people");
    Ok(db.read(|tables| tables.users.len()))
}

#[larder::cached(source = Town, key = "square:{of}", immutable)]
async fn square(db: &mut Conn, of: u64) -> DbResult<u64> {
    db.note(format!("square {of}"));
    Ok(of * of)
}

/// An argument that is taken by value and isn't `Copy`, and one that the body changes.
#[larder::cached(source = Town, key = "greeting:{name:escaped}:{times}", ttl_only = "10m")]
async fn greeting(_db: &mut Conn, name: String, mut times: u8) -> DbResult<String> {
    let mut greeting = name;
    while times > 0 {
        greeting.push('!');
        times -= 1;
    }
    Ok(greeting)
}

/// An argument that is called as the accessor is.
#[larder::cached(source = Town, key = "named_alike:{email:digest}", ttl_only = "10m")]
async fn email(db: &mut Conn, email: &str) -> DbResult<Option<u64>> {
    let is_it = |user: &&User| user.email == email;
    Ok(db.read(|tables| Some(tables.users.values().find(is_it)?.id)))
}

#[tokio::test]
async fn a_value_is_loaded_once() {
    let town = Town::new();
    let cache = town.cache().await;
    for _ in 0..2 {
        let ada = a_user(&cache, 1, "ada@town").await.unwrap();
        assert_eq!(ada, Some(user(7, 1, "ada")));
    }
    assert_eq!(town.loads(), ["a_user 1 ada@town"]);
}

#[tokio::test]
async fn absence_is_remembered_until_it_is_flushed() {
    let town = Town::new();
    let cache = town.cache().await;
    for _ in 0..2 {
        assert_eq!(a_user(&cache, 1, "alan@town").await.unwrap(), None);
    }
    assert_eq!(town.loads().len(), 1);

    town.write(|tables| _ = tables.users.insert(10, user(10, 1, "alan")));
    a_user::flush(&cache, 1, "alan@town").await.unwrap();
    let alan = a_user(&cache, 1, "alan@town").await.unwrap();
    assert_eq!(alan.map(|alan| alan.id), Some(10));
}

#[tokio::test]
async fn a_loader_that_always_has_a_value_answers_it_as_it_is() {
    let town = Town::new();
    let cache = town.cache().await;
    assert_eq!(
        people(&cache).await.unwrap() + people(&cache).await.unwrap(),
        6
    );
    assert_eq!(people::uncached(&cache).await.unwrap(), 3);
    assert_eq!(town.loads().len(), 2);
}

#[tokio::test]
async fn arguments_are_the_loaders_own() {
    let town = Town::new();
    let cache = town.cache().await;
    let greet = greeting(&cache, "Ada".to_owned(), 2).await.unwrap();
    assert_eq!(greet, "Ada!!");
}

#[tokio::test]
async fn an_argument_may_have_the_name_of_its_accessor() {
    let cache = Town::new().cache().await;
    assert_eq!(email(&cache, "ada@town").await.unwrap(), Some(7));
    email::flush(&cache, "ada@town").await.unwrap();
    assert_eq!(email::uncached(&cache, "alan@town").await.unwrap(), None);
}

#[tokio::test]
async fn a_refresh_replaces_what_is_there_and_an_uncached_read_does_not() {
    let town = Town::new();
    let cache = town.cache().await;
    assert_eq!(people(&cache).await.unwrap(), 3);
    town.write(|tables| _ = tables.users.remove(&9));
    assert_eq!(people::uncached(&cache).await.unwrap(), 2);
    assert_eq!(people(&cache).await.unwrap(), 3);
    assert_eq!(people::refresh(&cache).await.unwrap(), 2);
    assert_eq!(people(&cache).await.unwrap(), 2);
}

#[tokio::test]
async fn a_transaction_reads_past_the_cache() {
    let town = Town::new();
    let cache = town.cache().await;
    assert_eq!(people(&cache).await.unwrap(), 3);
    let mut tx = cache.begin().await.unwrap();
    tx.write(|tables| tables.users.clear());
    assert_eq!(people(&mut tx).await.unwrap(), 0);
    tx.rollback().await.unwrap();
    assert_eq!(people(&cache).await.unwrap(), 3);
}

#[tokio::test]
async fn a_request_flushes_and_warms_as_the_cache_does() {
    let town = Town::new();
    let cache = town.cache().await;
    let request = Request::begin(&cache);
    let keys = [a_user::key(1, "ada@town"), a_user::key(2, "linus@town")];
    a_user::warm(&request, &keys).await.unwrap();
    assert_eq!(town.loads().len(), 2);
    a_user(&request, 2, "linus@town").await.unwrap();
    assert!(town.loads().is_empty());
    a_user::flush(&request, 2, "linus@town").await.unwrap();
    a_user(&cache, 2, "linus@town").await.unwrap();
    assert_eq!(town.loads().len(), 1);
}

#[tokio::test]
async fn values_in_hand_are_stored_where_they_never_change() {
    let town = Town::new();
    let cache = town.cache().await;
    square::prime(&cache, [(9, 81)]).await.unwrap();
    assert_eq!(square(&cache, 9).await.unwrap(), 81);
    assert!(town.loads().is_empty());
    assert_eq!(square(&cache, 8).await.unwrap(), 64);
    assert_eq!(town.loads(), ["square 8"]);
}
