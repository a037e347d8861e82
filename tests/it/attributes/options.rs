//! What options say becomes what a person would write.

use std::time::Duration;

use larder::{BoxError, Codec, Compression, Dataset, Form, Lifetime};

use super::town::{Conn, DbResult, Town, User};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[larder::cached(
    source = Town,
    key = "everything:{id}",
    ttl = "1h 30m",
    absent_ttl = "500ms",
    by_hand,
    codec = rmp,
    compress,
    schema = 17,
    revision = 3,
    outlives_deploys,
    max_value = "64KiB",
    lease = "3s",
    load_timeout = "1m",
    max_loads = 2,
)]
async fn everything(_db: &mut Conn, id: u64) -> DbResult<Option<u64>> {
    Ok(Some(id))
}

#[larder::cached(source = Town, key = "constants", ttl = WEEK, by_hand, max_value = 2 * 1024, codec = json)]
async fn constants(_db: &mut Conn) -> DbResult<u64> {
    Ok(0)
}

#[larder::cached(source = Town, key = "defaults", immutable)]
async fn defaults(_db: &mut Conn) -> DbResult<Option<u64>> {
    Ok(None)
}

/// Stores the address alone: the rest is in the key.
enum AddressOnly {}

impl Form<User> for AddressOnly {
    type Out<'a> = &'a str;
    type In = String;

    fn to_stored(user: &User) -> Result<&str, BoxError> {
        Ok(&user.email)
    }

    fn from_stored(email: String) -> Result<User, BoxError> {
        Ok(User {
            id: 0,
            realm: 0,
            email,
            is_active: true,
        })
    }
}

#[larder::cached(source = Town, key = "slim:{id}", ttl_only = "1h", form = AddressOnly, codec = bincode)]
async fn slim(db: &mut Conn, id: u64) -> DbResult<Option<User>> {
    Ok(db.read(|tables| tables.users.get(&id).cloned()))
}

#[test]
fn every_option_is_a_constant() {
    assert_eq!(
        everything::LIFETIME,
        Lifetime::Ttl(Duration::from_secs(5400))
    );
    assert_eq!(everything::ABSENT_TTL, Some(Duration::from_millis(500)));
    assert_eq!(everything::CODEC, Codec::Rmp);
    assert_eq!(everything::COMPRESSION, Compression::Zstd);
    assert_eq!(everything::SCHEMA, Some(17));
    assert_eq!(everything::REVISION, 3);
    const { assert!(everything::OUTLIVES_DEPLOYS) };
    assert_eq!(everything::MAX_VALUE, 64 * 1024);
    assert_eq!(everything::LEASE, Duration::from_secs(3));
    assert_eq!(everything::LOAD_TIMEOUT, Duration::from_secs(60));
    assert_eq!(everything::MAX_LOADS, 2);
}

#[test]
fn constants_of_ones_own_will_do() {
    assert_eq!(constants::LIFETIME, Lifetime::Ttl(WEEK));
    assert_eq!(constants::MAX_VALUE, 2048);
    assert_eq!(constants::CODEC, Codec::Json);
    assert_eq!(constants::ABSENT_TTL, Some(Duration::ZERO));
}

#[test]
fn what_is_not_said_is_the_default() {
    assert_eq!(defaults::LIFETIME, Lifetime::Immutable);
    assert_eq!(defaults::ABSENT_TTL, None);
    assert_eq!(defaults::CODEC, Codec::Postcard);
    assert_eq!(defaults::COMPRESSION, Compression::None);
    const { assert!(!defaults::OUTLIVES_DEPLOYS) };
    assert_eq!((defaults::REVISION, defaults::SCHEMA), (0, None));
}

#[tokio::test]
async fn a_form_of_ones_own_is_stored() {
    let town = Town::new();
    let cache = town.cache().await;
    assert_eq!(slim(&cache, 7).await.unwrap().unwrap().id, 7);
    assert_eq!(slim(&cache, 7).await.unwrap().unwrap().id, 0);
}
