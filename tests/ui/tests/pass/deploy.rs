//! What the running code keeps: types of one's own, each marked on purpose.

use std::convert::Infallible;
use std::sync::Arc;

use larder::{Dataset, DeployImmutable, DeployTier, Lifetime, Request, Rows, Unstored, Weigh};
use larder_ui::{Conn, Db, SourceMap, SourceMaps};

/// In place of a marked list: a type for the list that the release has.
struct Bundle(Vec<SourceMap>);

/// The release has exactly these.
impl DeployImmutable for Bundle {}

impl Weigh for Bundle {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.iter().map(Weigh::bytes).sum::<usize>()
    }
}

/// All of it, without arguments.
enum TheBundle {}

impl Dataset for TheBundle {
    const NAME: &'static str = "the_bundle";
    const LIFETIME: Lifetime = Lifetime::Immutable;
    type Source = Db;
    type Key = ();
    type Value = Bundle;
    type Form = Unstored;
    type Tier = DeployTier;
    type Error = Infallible;

    async fn load(conn: &mut Conn, _: Vec<()>) -> Result<Rows<Self>, Infallible> {
        let maps = SourceMaps::load(conn, vec![1, 2]).await?;
        let maps = maps.into_iter().map(|(_, map)| map).collect();
        Ok(vec![((), Bundle(maps))])
    }
}

fn main() {
    larder_ui::run(async {
        let cache = larder_ui::cache().await;
        let request = Request::begin(&cache);
        // Anyone may ask for it, with a request or without.
        let bundle = larder::get::<TheBundle>(&cache, &()).await;
        let same = larder::get::<TheBundle>(&request, &()).await;
        let [bundle, same] = [bundle, same].map(|read| read.expect("loads don't fail").unwrap());
        assert!(Arc::ptr_eq(&bundle, &same));
        assert_eq!(bundle.0.len(), 2);
        let map = larder::get::<SourceMaps>(&request, &1).await;
        assert_eq!(map.expect("loads don't fail").unwrap().lines, [1, 2, 3]);
    });
}
