//! Programs that set a `tracing` subscriber themselves.

use larder_core::get;
use larder_testing::{TestCache, captured};
use tracing::subscriber::set_default;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry;

use crate::users::{Name, Names};

#[tokio::test]
#[should_panic(expected = "add `larder::testing::layer()` to it")]
async fn one_without_the_layer_is_refused() {
    let _here = set_default(registry());
    captured(async {}).await;
}

#[tokio::test]
async fn one_with_the_layer_counts() {
    let _here = set_default(registry().with(larder_testing::layer()));
    let cache = TestCache::new(Names::of([1])).await;
    let (_, captured) = captured(get::<Name>(&cache, &1)).await;
    captured.assert_loads(1);
    captured.assert_queries(0);
}

#[tokio::test]
#[should_panic(expected = "let `sqlx::query=debug` pass")]
async fn one_that_hides_statements_cant_count_them() {
    let _here = set_default(
        registry()
            .with(larder_testing::layer())
            .with(LevelFilter::INFO),
    );
    let ((), captured) = captured(async {}).await;
    captured.assert_trips(0);
    captured.assert_queries(0);
}
