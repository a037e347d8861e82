//! A flush reaches the store; the processes that keep the value it doesn't.

use larder::{Cache, FlushError};
use larder_ui::{Db, SourceMaps};

async fn replaced(cache: &Cache<Db>) -> Result<(), FlushError> {
    cache.flush::<SourceMaps>([7]).await
}

fn main() {}
