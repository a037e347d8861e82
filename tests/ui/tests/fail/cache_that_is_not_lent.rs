//! Readers are lent for one read.

use std::convert::Infallible;

use larder::{Cache, LoadError};
use larder_ui::{Db, UserById};

async fn show(cache: Cache<Db>) -> Result<(), LoadError<Infallible>> {
    larder::get::<UserById>(cache, &7).await?;
    Ok(())
}

fn main() {}
