//! A cache without tiers: it says so when it is built, and is right all the same.

use larder_core::{Cache, Dataset, ErrorKind, get, get_many};
use larder_tiers::Request;

use super::stage::{Chart, Draft, Map, Name, all, builder, built, counting, rows, said};
use crate::read::shelf::{Shelf, memory};

async fn check_refused<D: Dataset<Source = Shelf>>(tier: &str) {
    let refused = builder(&Shelf::default(), memory()).register::<D>();
    let error = refused.build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(
        error.to_string(),
        format!(
            "data set `{}` has the {tier} tier, and the cache has no tiers; give the builder some: \
             `.tiers(Tiers::default())`",
            D::NAME
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_data_set_with_a_tier_is_refused_with_what_to_write() {
    check_refused::<Name>("request").await;
    check_refused::<Draft>("request").await;
    check_refused::<Map>("deploy").await;
    check_refused::<Chart>("deploy").await;
}

#[tokio::test(start_paused = true)]
async fn warming_is_refused_as_well() {
    let refused = builder(&Shelf::default(), memory()).warm::<Map>([1]);
    let error = refused.build().await.unwrap_err();
    assert!(
        error.to_string().contains(".tiers(Tiers::default())"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_not_registered_is_read_past_the_cache() {
    let shelf = Shelf::of([1, 2]);
    let cache: Cache<Shelf> = built(builder(&shelf, memory())).await;
    let (request, tally) = counting(&cache);
    for _ in 0..2 {
        let batch = get_many::<Name>(&request, [1, 2, 1]).await.unwrap();
        assert_eq!(all(&batch), rows([1, 2, 1]));
        let batch = get_many::<Chart>(&cache, [1, 2]).await.unwrap();
        assert_eq!(all(&batch), rows([1, 2]));
        for id in [1, 9] {
            let expected = (id == 1).then(|| "row 1".to_owned());
            let draft = get::<Draft>(&request, &id).await.unwrap();
            assert_eq!(said(draft), expected);
            let map = get::<Map>(&cache, &id).await.unwrap();
            assert_eq!(said(map), expected);
        }
    }
    assert_eq!(shelf.loads(), 12, "nothing is kept");
    tally.settled().await;
    assert_eq!((tally.trips(), tally.tier_hits()), (0, 0), "nor stored");
    request.cache().flush::<Name>([1]).await.unwrap();
    request.end();
}

/// A source that is broken isn't asked less often for want of a tier, but neither is it more patient.
#[tokio::test(start_paused = true)]
async fn a_failure_makes_nobody_wait() {
    let shelf = Shelf::of([1]);
    let cache = built(builder(&shelf, memory())).await;
    shelf.fail();
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        get::<Map>(&cache, &1).await.unwrap_err();
    }
    assert_eq!(start.elapsed(), std::time::Duration::ZERO);
    let _ = Request::begin(&cache);
}
