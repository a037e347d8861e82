//! A request's own writes, and what it keeps of what it has read.

use larder_core::{Change, FieldBits, get};
use larder_tiers::{Request, Tiers};

use super::ledger::Ledger;
use super::office::{
    Member, MembersOf, ON, Office, Process, Stream, User, UserField, ada, data_set, fresh, pending,
    streams_of,
};

data_set!(
    /// A user's name, kept for the request.
    Badge = "badge": u64 => String;
    RequestTier
    |plan| plan.id::<User>([UserField::Name], |id| *id);
    |conn, id| conn.find::<User>(*id).map(|user| user.name)
);

data_set!(
    /// The names of a user's streams, kept for the request.
    Channels = "channels": u64 => Vec<String>;
    RequestTier
    |plan| plan
        .entity(FieldBits::ALL, |member: &Member| [member.user])
        .query::<Stream, MembersOf>(FieldBits::ALL, |stream| MembersOf(stream.id));
    |conn, user| Some(streams_of(conn, *user))
);

async fn process(office: &Office) -> Process {
    let tiers = Tiers::default();
    office
        .build(|builder| {
            let builder = builder.register::<Badge>().register::<Channels>();
            builder.tiers(tiers).version("1")
        })
        .await
}

async fn badge(request: &Request<Ledger>) -> String {
    let badge = get::<Badge>(request, &7).await.unwrap();
    badge.expect("there is a user 7").to_string()
}

async fn channels(request: &Request<Ledger>) -> String {
    get::<Channels>(request, &7)
        .await
        .unwrap()
        .unwrap()
        .join(", ")
}

/// The request that writes, as a process of its own for the helpers.
fn within(process: &Process, request: &Request<Ledger>) -> Process {
    Process {
        cache: request.cache().clone(),
        line: process.line.clone(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_sees_what_it_wrote() {
    let office = Office::new(ON);
    let process = process(&office).await;
    let (writes, reads) = (Request::begin(&process), Request::begin(&process));
    assert_eq!([badge(&writes).await, badge(&reads).await], ["Ada", "Ada"]);
    fresh(within(&process, &writes).rename("Grace").await);
    assert_eq!(badge(&writes).await, "Grace");
    assert_eq!(badge(&reads).await, "Ada", "it goes on as it began");
    assert_eq!(badge(&Request::begin(&process)).await, "Grace");
}

/// It reads the old value again, from the store, between what it said and its commit.
#[tokio::test(start_paused = true)]
async fn what_a_request_kept_before_its_commit_is_dropped_after_it() {
    let office = Office::new(ON);
    let process = process(&office).await;
    let (cache, tally) = process.tallied();
    let request = Request::begin(&cache);
    badge(&request).await;
    let mut tx = request.cache().begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    let own = get::<Badge>(&mut tx, &7).await.unwrap().unwrap();
    assert_eq!(*own, "Grace");
    let kept = tally.tier_hits();
    tx.changed(Change::update(&before, &after));
    assert_eq!(badge(&request).await, "Ada", "outside the transaction");
    assert_eq!(tally.tier_hits(), kept, "it was dropped at once");
    assert_eq!(badge(&request).await, "Ada");
    assert_eq!(tally.tier_hits(), kept + 1, "and is kept again");
    fresh(tx.commit().await);
    assert_eq!(badge(&request).await, "Grace");
}

/// Its keys begin otherwise by then, as after a purge or a deploy.
#[tokio::test(start_paused = true)]
async fn what_a_request_kept_is_dropped_after_its_commit_under_another_prefix_too() {
    let office = Office::new(ON);
    let process = process(&office).await;
    let request = Request::begin(&process);
    let mut tx = request.cache().begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    tx.changed(Change::update(&before, &after));
    process.purge("badge").await.unwrap();
    assert_eq!(badge(&request).await, "Ada", "outside the transaction");
    fresh(tx.commit().await);
    assert_eq!(badge(&request).await, "Grace");
}

/// What a query finds is known after the commit alone.
#[tokio::test(start_paused = true)]
async fn a_request_sees_what_it_wrote_where_a_query_finds_the_keys() {
    let office = Office::new(ON);
    let process = process(&office).await;
    let request = Request::begin(&process);
    assert_eq!(channels(&request).await, "general");
    let renames = |stream: &mut Stream| stream.name = "lobby".to_owned();
    fresh(within(&process, &request).update(renames, 5).await);
    assert_eq!(channels(&request).await, "lobby");
}

/// The store still has what is old: for the rest of the request nothing of it is used, though it may be delivered
/// meanwhile.
#[tokio::test(start_paused = true)]
async fn pending_keys_are_read_from_the_source_for_the_rest_of_the_request() {
    let office = Office::new(ON);
    let gate = office.gate();
    let process = process(&office.on(&gate)).await;
    let request = Request::begin(&process);
    badge(&request).await;
    channels(&request).await;
    gate.set_deaf_to_deletes(true);
    let pending = pending(within(&process, &request).rename("Grace").await);
    let loaded = process.line.loaded();
    assert_eq!(
        [badge(&request).await, badge(&request).await],
        ["Grace", "Grace"]
    );
    assert_eq!(process.line.loaded(), loaded + 2);
    gate.set_deaf_to_deletes(false);
    assert!(pending.delivered().await);
    badge(&request).await;
    assert_eq!(process.line.loaded(), loaded + 3);
    channels(&request).await;
    assert_eq!(
        process.line.loaded(),
        loaded + 3,
        "other keys are kept as before"
    );
}

/// A request that is over, or whose write was undone, loses nothing.
#[tokio::test(start_paused = true)]
async fn a_rollback_leaves_the_request_as_it_was() {
    let office = Office::new(ON);
    let process = process(&office).await;
    let request = Request::begin(&process);
    badge(&request).await;
    let mut tx = request.cache().begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    tx.changed(Change::delete(&before));
    tx.rollback().await.unwrap();
    let loaded = process.line.loaded();
    assert_eq!(badge(&request).await, "Ada");
    assert_eq!(
        process.line.loaded(),
        loaded,
        "from the store, which has it still"
    );
}
