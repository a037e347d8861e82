//! `flush_on`: each form, with what a transaction then flushes.

use larder::{Cache, Change, FlushQuery};
use serde::{Deserialize, Serialize};

use super::town::{Club, ClubField, Conn, DbResult, Town, User, change, commit, user};

#[larder::cached(
    source = Town, key = "by_email:{email:digest}", ttl = "1h",
    flush_on(User { email, is_active } => |user| user.email.clone()),
)]
async fn by_email(db: &mut Conn, email: &str) -> DbResult<Option<User>> {
    db.note(format!("by_email {email}"));
    Ok(db.read(|tables| {
        tables
            .users
            .values()
            .find(|user| user.email == email)
            .cloned()
    }))
}

#[larder::cached(many, source = Town, key = "by_id:{ids}", by = |user| user.id, ttl = "1h", flush_on(User { .. } => id))]
async fn by_id(db: &mut Conn, ids: &[u64]) -> DbResult<Vec<User>> {
    db.note(format!("by_id {ids:?}"));
    Ok(db.read(|tables| {
        ids.iter()
            .filter_map(|id| tables.users.get(id).cloned())
            .collect()
    }))
}

#[larder::cached(source = Town, key = "inhabitants:{realm}", ttl = "1h", flush_on(User {} => |user| user.realm))]
async fn inhabitants(db: &mut Conn, realm: u32) -> DbResult<usize> {
    db.note(format!("inhabitants {realm}"));
    Ok(db.read(|tables| {
        tables
            .users
            .values()
            .filter(|user| user.realm == realm)
            .count()
    }))
}

/// Rows of users are there before anybody asks.
#[larder::cached(
    source = Town, key = "is_active:{realm}:{id}", ttl = "1h", skip(hint),
    flush_on(existing User { is_active } => |user| [(user.realm, user.id), (0, user.id)]),
)]
async fn is_active(db: &mut Conn, realm: u32, hint: &str, id: u64) -> DbResult<bool> {
    db.note(format!("is_active {realm} {id} {hint}"));
    Ok(db.read(|tables| tables.users.get(&id).is_some_and(|user| user.is_active)))
}

/// Keyed by the primary key in a place of its own.
#[larder::cached(source = Town, key = "topic:{club}", ttl = "1h", skip(hint), flush_on(Club { topic } => id |club| *club))]
async fn topic(db: &mut Conn, club: u64, hint: u8) -> DbResult<Option<String>> {
    db.note(format!("topic {club} {hint}"));
    Ok(db.read(|tables| Some(tables.clubs.get(&club)?.topic.clone())))
}

/// What only the database knows: whose list shows a club's name.
#[larder::cached(
    source = Town, key = "clubs_of:{user}", ttl = "1h",
    flush_on(
        Club { name } => query |club| MembersOf(club.id),
        Club { members } => |club| club.members.clone(),
    ),
)]
async fn clubs_of(db: &mut Conn, user: u64) -> DbResult<Vec<String>> {
    db.note(format!("clubs_of {user}"));
    let has = |club: &&Club| club.members.contains(&user);
    Ok(db.read(|tables| {
        tables
            .clubs
            .values()
            .filter(has)
            .map(|club| club.name.clone())
            .collect()
    }))
}

#[derive(Serialize, Deserialize)]
struct MembersOf(u64);

impl FlushQuery<clubs_of> for MembersOf {
    const NAME: &'static str = "members";

    async fn keys(&self, conn: &mut Conn, after: Option<&u64>, limit: usize) -> DbResult<Vec<u64>> {
        let members = conn.read(|tables| tables.clubs[&self.0].members.clone());
        let members = members
            .into_iter()
            .filter(|id| after.is_none_or(|after| id > after));
        Ok(members.take(limit).collect())
    }
}

/// Made of another one, which its loader reads through the cache.
#[larder::cached(source = Town, key = "card:{id}", ttl = "1h", base = by_id, base = inhabitants, flush_on(User { email } => keys_of_card))]
async fn card(db: &mut Conn, id: u64) -> DbResult<Option<String>> {
    db.note(format!("card {id}"));
    Ok(db.read(|tables| Some(format!("card of {}", tables.users.get(&id)?.email))))
}

fn keys_of_card(user: &User) -> Option<u64> {
    (user.id != 0).then_some(user.id)
}

/// Reads everything of user 7, and says what had to be loaded.
async fn read_all(cache: &Cache<Town>, town: &Town) -> Vec<String> {
    by_email(cache, "ada@town").await.unwrap();
    by_id(cache, [7]).await.unwrap();
    inhabitants(cache, 1).await.unwrap();
    is_active(cache, 1, "x", 7).await.unwrap();
    topic(cache, 5, 1).await.unwrap();
    clubs_of(cache, 7).await.unwrap();
    card(cache, 7).await.unwrap();
    town.loads()
}

async fn warm() -> (Town, Cache<Town>) {
    let town = Town::new();
    let cache = town.cache().await;
    assert_eq!(read_all(&cache, &town).await.len(), 7);
    assert!(read_all(&cache, &town).await.is_empty());
    (town, cache)
}

#[tokio::test]
async fn a_field_flushes_those_who_watch_it_under_both_keys() {
    let (town, cache) = warm().await;
    assert_eq!(by_email(&cache, "ada@new").await.unwrap(), None);
    town.loads();
    change(&cache, 7, |user| user.email = "ada@new".to_owned()).await;
    assert_eq!(
        read_all(&cache, &town).await,
        ["by_email ada@town", "by_id [7]", "card 7"]
    );
    assert!(by_email(&cache, "ada@new").await.unwrap().is_some());
}

#[tokio::test]
async fn existing_rows_are_flushed_by_a_change_under_every_key_that_is_told() {
    let (town, cache) = warm().await;
    is_active(&cache, 0, "", 7).await.unwrap();
    change(&cache, 7, |user| user.is_active = false).await;
    town.loads();
    assert_eq!(
        read_all(&cache, &town).await,
        ["by_email ada@town", "by_id [7]", "is_active 1 7 x"]
    );
    assert!(!is_active(&cache, 0, "y", 7).await.unwrap());
    assert_eq!(town.loads(), ["is_active 0 7 y"]);
}

#[tokio::test]
async fn creation_and_deletion_are_watched_without_any_field() {
    let (town, cache) = warm().await;
    change(&cache, 7, |user| user.realm = 3).await;
    assert_eq!(read_all(&cache, &town).await, ["by_id [7]"]);
    commit(&cache, async |tx| {
        let alan = user(10, 1, "alan");
        tx.write(|tables| _ = tables.users.insert(10, alan.clone()));
        tx.changed(Change::create(&alan));
    })
    .await;
    assert_eq!(read_all(&cache, &town).await, ["inhabitants 1"]);
}

#[tokio::test]
async fn a_query_finds_the_keys_after_the_commit() {
    let (town, cache) = warm().await;
    commit(&cache, async |tx| {
        let before = tx.lock::<Club>(&5).await.unwrap().unwrap();
        let after = Club {
            name: "go".to_owned(),
            ..before.clone()
        };
        tx.write(|tables| _ = tables.clubs.insert(5, after.clone()));
        tx.changed(Change::update(&before, &after));
    })
    .await;
    assert_eq!(read_all(&cache, &town).await, ["clubs_of 7"]);
    assert_eq!(clubs_of(&cache, 7).await.unwrap(), ["go"]);
}

#[tokio::test]
async fn rows_are_changed_without_images_where_keys_are_ids() {
    let (town, cache) = warm().await;
    commit(&cache, async |tx| {
        tx.write(|tables| tables.clubs.get_mut(&5).unwrap().topic = "endgames".to_owned());
        tx.changed(Change::<Club>::rows([5], [ClubField::Topic]));
    })
    .await;
    assert_eq!(read_all(&cache, &town).await, ["topic 5 1"]);
    assert_eq!(
        topic(&cache, 5, 2).await.unwrap().as_deref(),
        Some("endgames")
    );
}

#[test]
fn plans_print_what_is_declared() {
    let plan = larder::plan::<Club>().to_string();
    let expected = "\
clubs_of on club: members; created, deleted; keys of both images
clubs_of on club: name; created, deleted; keys of the query `members`, after the commit
topic on club: topic; created, deleted; the key of its id
";
    assert_eq!(plan, expected);
    let plan = larder::plan::<User>().to_string();
    for line in [
        "by_email on user: email, is_active; created, deleted; keys of both images",
        "by_id on user: any field; created, deleted; the key of its id",
        "inhabitants on user: no field; created, deleted; keys of both images",
        "is_active on user: is_active; deleted; keys of both images",
        "card on user: email; created, deleted; keys of both images",
    ] {
        assert!(plan.contains(line), "{plan}");
    }
}
