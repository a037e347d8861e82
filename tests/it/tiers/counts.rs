//! What a request keeps of its reads, and what its reads cost then.

use std::sync::Arc;

use larder_core::{
    Dataset, FlushOn, KeyPart, KeyWriter, Lifetime, Plain, RequestTier, Rows, get, get_many, warm,
};
use larder_tiers::Request;

use super::stage::{
    Badge, Cost, Draft, Name, Text, all, builder, built, cache, cache_on, check, counting, rows,
    said, text, tiered,
};
use crate::read::shelf::{Broken, Conn, HOUR, Shelf, memory};

#[tokio::test(start_paused = true)]
async fn a_bulk_read_takes_what_the_request_has_and_asks_once_for_the_rest() {
    let shelf = Shelf::of(1..=6);
    let cache = cache(&shelf).await;
    warm::<Name>(&cache, 1..=6).await.unwrap();
    let (request, tally) = counting(&cache);

    let batch = get_many::<Name>(&request, [2, 5]).await.unwrap();
    assert_eq!(all(&batch), rows([2, 5]));
    let mut cost = Cost {
        trips: 1,
        keys: 2,
        hits: 2,
        ..Cost::default()
    };
    check(&tally, cost);

    let asked = [6, 5, 4, 3, 5, 2, 1, 6];
    let batch = get_many::<Name>(&request, asked).await.unwrap();
    assert_eq!(all(&batch), rows(asked));
    cost.trips += 1;
    cost.keys += 6;
    cost.tier_hits += 2;
    cost.hits += 4;
    check(&tally, cost);

    let batch = get_many::<Name>(&request, asked).await.unwrap();
    assert_eq!(all(&batch), rows(asked));
    assert_eq!(said(get::<Name>(&request, &3).await.unwrap()), text(3));
    cost.keys += 7;
    cost.tier_hits += 7;
    check(&tally, cost);
    assert_eq!(shelf.asked(), [[1, 2, 3, 4, 5, 6]]);

    let stats = cache.stats();
    assert_eq!(stats.accessors.len(), 1);
    let name = &stats.accessors[0];
    assert_eq!((name.keys, name.tier_hits, name.tier_misses), (21, 9, 6));
    let tiers = stats.tiers.unwrap();
    assert_eq!((tiers.request.hits, tiers.request.misses), (9, 6));
    assert_eq!((tiers.deploy.hits, tiers.deploy.misses), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_neither_the_request_nor_the_store_has_is_one_load_and_one_fill() {
    let shelf = Shelf::of(1..=6);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get_many::<Name>(&request, [1, 2]).await.unwrap();
    let batch = get_many::<Name>(&request, 1..=6).await.unwrap();
    assert_eq!(all(&batch), rows(1..=6));
    get_many::<Name>(&request, 1..=6).await.unwrap();
    tally.settled().await;
    let cost = Cost {
        trips: 4,
        keys: 14,
        tier_hits: 8,
        hits: 0,
        loads: 2,
    };
    check(&tally, cost);
    assert_eq!(tally.loaded(), 6);
    assert_eq!(shelf.asked(), [vec![1, 2], vec![3, 4, 5, 6]]);
}

#[tokio::test(start_paused = true)]
async fn keys_asked_for_twice_count_once() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    for _ in 0..2 {
        let batch = get_many::<Name>(&request, [7, 9, 7, 8, 9]).await.unwrap();
        let answers = [7, 9, 7, 8, 9].map(|id| (id, text(id).filter(|_| id != 9)));
        assert_eq!(all(&batch), answers);
    }
    tally.settled().await;
    let cost = Cost {
        trips: 2,
        keys: 6,
        tier_hits: 3,
        hits: 0,
        loads: 1,
    };
    check(&tally, cost);
    assert_eq!(shelf.asked(), [[7, 8, 9]]);
}

#[tokio::test(start_paused = true)]
async fn everyone_in_a_request_shares_one_value() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let request = Request::begin(&cache);
    let first = get::<Name>(&request, &7).await.unwrap().unwrap();
    let clone = request.clone();
    let task = tokio::spawn(async move { get::<Name>(&clone, &7).await.unwrap().unwrap() });
    assert!(Arc::ptr_eq(&first, &task.await.unwrap()));
    let batch = get_many::<Name>(&request, [7]).await.unwrap();
    assert!(Arc::ptr_eq(&first, batch.get(&7).unwrap()));
    let other = get::<Name>(&Request::begin(&cache), &7).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &other.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn an_absent_row_is_remembered_for_the_request() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    let batch = get_many::<Name>(&request, [9, 7]).await.unwrap();
    assert_eq!(all(&batch), [(9, None), (7, text(7))]);
    tally.settled().await;
    let trips = tally.trips();

    shelf.write(9, "row 9");
    cache.flush::<Name>([9]).await.unwrap();
    assert_eq!(get::<Name>(&request, &9).await.unwrap(), None);
    let batch = get_many::<Name>(&request, [7, 9]).await.unwrap();
    assert_eq!(batch.missing().collect::<Vec<_>>(), [&9]);
    assert_eq!((tally.trips(), tally.tier_hits()), (trips, 3));

    let next = Request::begin(&cache);
    assert_eq!(said(get::<Name>(&next, &9).await.unwrap()), text(9));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_as_fresh_as_its_first_read_and_the_next_asks_anew() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    tally.settled().await;
    for (id, row) in [(7, "new"), (8, "new too")] {
        shelf.write(id, row);
    }
    cache.flush::<Name>([7, 8]).await.unwrap();

    let names = |batch| all(&batch).into_iter().map(|(_, name)| name.unwrap());
    let batch = get_many::<Name>(&request, [7, 8]).await.unwrap();
    assert_eq!(names(batch).collect::<Vec<_>>(), ["row 7", "new too"]);
    let (next, tally) = counting(&cache);
    let batch = get_many::<Name>(&next, [7, 8]).await.unwrap();
    assert_eq!(names(batch).collect::<Vec<_>>(), ["new", "new too"]);
    assert_eq!((tally.tier_hits(), tally.hits()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn accessors_with_the_same_arguments_do_not_meet() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let request = Request::begin(&cache);
    get::<Name>(&request, &7).await.unwrap();
    shelf.write(7, "of another data set");
    let badge = get::<Badge>(&request, &7).await.unwrap();
    assert_eq!(said(badge).as_deref(), Some("of another data set"));
    let draft = get::<Draft>(&request, &7).await.unwrap();
    assert_eq!(said(draft).as_deref(), Some("of another data set"));
    assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    assert_eq!(shelf.loads(), 3);
}

tiered!(
    /// A mistake: the name is taken.
    Namesake = "name": RequestTier, Plain, Lifetime::Ttl(HOUR)
);

/// Its keys are the other's as well, so that only one of them may keep anything.
#[tokio::test(start_paused = true)]
async fn a_second_data_set_of_the_same_name_has_no_part_in_the_tier() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let request = Request::begin(&cache);
    assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    shelf.write(7, "new");
    for _ in 0..2 {
        let namesake = get::<Namesake>(&request, &7).await.unwrap();
        assert_eq!(said(namesake).as_deref(), Some("new"));
        assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    }
    assert_eq!(shelf.loads(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_never_stored_is_kept_all_the_same() {
    let shelf = Shelf::of(1..=3);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    for _ in 0..2 {
        let batch = get_many::<Draft>(&request, 1..=3).await.unwrap();
        assert_eq!(all(&batch), rows(1..=3));
    }
    let cost = Cost {
        trips: 0,
        keys: 6,
        tier_hits: 3,
        hits: 0,
        loads: 1,
    };
    check(&tally, cost);
    let next = Request::begin(&cache);
    get::<Draft>(&next, &2).await.unwrap();
    assert_eq!(shelf.asked(), [vec![1, 2, 3], vec![2]]);
}

/// Two parts, of which the second may be digested.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    realm: String,
    name: String,
    digested: bool,
}

impl KeyPart for Place {
    fn write(&self, key: &mut KeyWriter<'_>) {
        self.realm.write(key);
        match self.digested {
            true => key.digest(self.name.as_bytes()),
            false => self.name.write(key),
        }
    }
}

fn place(realm: &str, name: &str) -> Place {
    Place {
        realm: realm.into(),
        name: name.into(),
        digested: false,
    }
}

fn digested(realm: &str, name: &str) -> Place {
    Place {
        digested: true,
        ..place(realm, name)
    }
}

/// Answers its own arguments; its loads are counted by the shelf.
enum Places {}

impl Dataset for Places {
    const NAME: &'static str = "place";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    type Source = Shelf;
    type Key = Place;
    type Value = Text;
    type Form = Plain;
    type Tier = RequestTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(conn: &mut Conn, keys: Vec<Place>) -> Result<Rows<Self>, Broken> {
        conn.0.load(&[keys.len() as u64]).await?;
        let text = |key: &Place| Text(format!("{} of {}", key.name, key.realm));
        Ok(keys
            .into_iter()
            .map(|key| (key.clone(), text(&key)))
            .collect())
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_key_counts() {
    let shelf = Shelf::default();
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    let long = "x".repeat(5_000);
    let longer = "x".repeat(5_001);
    let keys = [
        place("a", "b"),
        place("a:b", ""),
        place("", "a:b"),
        place("b", "a"),
        digested("a", "c"),
        digested("b", "c"),
        digested("a", &long),
        digested("a", &longer),
    ];
    for _ in 0..2 {
        let batch = get_many::<Places>(&request, &keys).await.unwrap();
        for (key, text) in batch.iter() {
            assert_eq!(text.unwrap().0, format!("{} of {}", key.name, key.realm));
        }
    }
    assert_eq!((shelf.loads(), tally.tier_hits()), (1, keys.len() as u64));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_a_key_is_loaded_each_time_and_hinders_no_other() {
    let shelf = Shelf::default();
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    let keys = [
        place("a", &"x".repeat(300)),
        place("a", "b"),
        place("a", &"y".repeat(300)),
        place("a", "c"),
    ];
    for round in 0..3 {
        let batch = get_many::<Places>(&request, &keys).await.unwrap();
        for (key, text) in batch.iter() {
            assert_eq!(text.unwrap().0, format!("{} of {}", key.name, key.realm));
        }
        tally.settled().await;
        assert_eq!(
            (tally.tier_hits(), tally.trips()),
            (2 * round, 2),
            "round {round}"
        );
    }
    assert_eq!(shelf.asked(), [[4], [2], [2]], "how many keys were loaded");
    let one = get::<Places>(&request, &keys[0]).await.unwrap();
    assert!(one.is_some());
    assert_eq!((tally.keys(), tally.loads()), (13, 4));
}

#[tokio::test(start_paused = true)]
async fn requests_of_two_caches_on_one_budget_do_not_meet() {
    let (shelf, other) = (Shelf::of([7]), Shelf::default());
    other.write(7, "of the other service");
    let tiers = larder_tiers::Tiers::default();
    let one = built(builder(&shelf, memory()).tiers(tiers.clone())).await;
    let two = built(builder(&other, memory()).tiers(tiers)).await;
    let (one, two) = (Request::begin(&one), Request::begin(&two));
    for _ in 0..2 {
        assert_eq!(said(get::<Name>(&one, &7).await.unwrap()), text(7));
        let name = said(get::<Name>(&two, &7).await.unwrap());
        assert_eq!(name.as_deref(), Some("of the other service"));
    }
    assert_eq!((shelf.loads(), other.loads()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_another_process_stored_is_kept_like_one_that_was_loaded() {
    let store = memory();
    let (shelf, elsewhere) = (Shelf::of([7]), Shelf::of([7]));
    let filler = cache_on(&elsewhere, Arc::clone(&store)).await;
    let (filling, tally) = counting(&filler);
    get::<Name>(&filling, &7).await.unwrap();
    tally.settled().await;
    let cache = cache_on(&shelf, store).await;
    let (request, tally) = counting(&cache);
    for _ in 0..3 {
        assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    }
    assert_eq!((tally.trips(), tally.tier_hits(), shelf.loads()), (1, 2, 0));
}
