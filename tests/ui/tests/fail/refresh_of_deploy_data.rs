//! Refreshed here, it would be as it was everywhere else.

use std::convert::Infallible;

use larder::{Cache, LoadError};
use larder_ui::{Db, SourceMaps};

async fn again(cache: &Cache<Db>) -> Result<(), LoadError<Infallible>> {
    larder::refresh::<SourceMaps>(cache, &7).await?;
    Ok(())
}

fn main() {}
