//! Values whose shape can't be derived from serde, and `SCHEMA`, which stands for it.

use std::collections::BTreeMap;

use larder_core::entry::Codec;
use larder_core::{Cache, Dataset, FlushOn, Lifetime, NoTier, Plain, Rows, get};
use serde::{Deserialize, Serialize};

use super::shelf::{Broken, Conn, HOUR, Row, Shelf, memory};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flattened {
    id: u64,
    #[serde(flatten)]
    rest: BTreeMap<String, String>,
}

impl From<(u64, String)> for Flattened {
    fn from((id, text): (u64, String)) -> Self {
        let rest = BTreeMap::from([("text".to_owned(), text)]);
        Self { id, rest }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text { text: String },
}

impl From<(u64, String)> for Untagged {
    fn from((id, text): (u64, String)) -> Self {
        match id % 2 {
            0 => Self::Number(id),
            _ => Self::Text { text },
        }
    }
}

macro_rules! shaped {
    ($name:ident of $value:ty: $codec:expr, $schema:expr) => {
        enum $name {}

        impl Dataset for $name {
            const NAME: &'static str = stringify!($name);
            const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
            const CODEC: Codec = $codec;
            const SCHEMA: Option<u64> = $schema;
            type Source = Shelf;
            type Key = u64;
            type Value = $value;
            type Form = Plain;
            type Tier = NoTier;
            type Error = Broken;

            fn flush_on(plan: &mut FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load(shelf: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
                let rows = Row::load(shelf, ids).await?.into_iter();
                Ok(rows.map(|row| (row.0, row.into())).collect())
            }
        }
    };
}

shaped!(FlattenedUnsaid of Flattened: Codec::Rmp, None);
shaped!(UntaggedUnsaid of Untagged: Codec::Json, None);
shaped!(FlattenedRmp of Flattened: Codec::Rmp, Some(1));
shaped!(FlattenedJson of Flattened: Codec::Json, Some(1));
shaped!(UntaggedRmp of Untagged: Codec::Rmp, Some(1));
shaped!(UntaggedJson of Untagged: Codec::Json, Some(1));

#[tokio::test]
async fn a_shape_that_cannot_be_derived_fails_the_build_and_names_schema() {
    #[track_caller]
    fn check(built: Result<Cache<Shelf>, larder_core::Error>, name: &str) {
        let error = built.expect_err(name).to_string();
        assert!(error.contains(&format!("data set `{name}`")), "{error}");
        assert!(error.contains("SCHEMA"), "{error}");
    }
    let builder = || Cache::builder(Shelf::default()).backend(memory());
    check(
        builder().register::<FlattenedUnsaid>().build().await,
        "FlattenedUnsaid",
    );
    check(
        builder().register::<UntaggedUnsaid>().build().await,
        "UntaggedUnsaid",
    );
}

async fn check_cached<D>()
where
    D: Dataset<Source = Shelf, Key = u64, Error = Broken, Tier = larder_core::NoTier>,
    D::Value: From<(u64, String)> + Clone + PartialEq + std::fmt::Debug,
{
    let shelf = Shelf::of([7, 8]);
    let cache = Cache::builder(shelf.clone())
        .backend(memory())
        .register::<D>()
        .build()
        .await
        .unwrap();
    let (cache, tally) = cache.tallied();
    for _ in 0..2 {
        for id in [7, 8] {
            let expected = D::Value::from((id, format!("row {id}")));
            let read = get::<D>(&cache, &id).await.unwrap();
            assert_eq!(read, Some(expected), "{}", D::NAME);
            tally.settled().await;
        }
    }
    assert_eq!((tally.loads(), tally.hits()), (2, 2), "{}", D::NAME);
}

#[tokio::test]
async fn with_a_schema_such_values_are_cached_in_codecs_that_describe_themselves() {
    check_cached::<FlattenedRmp>().await;
    check_cached::<FlattenedJson>().await;
    check_cached::<UntaggedRmp>().await;
    check_cached::<UntaggedJson>().await;
}
