//! The cache lives as long as the process: nothing would end what is kept.

use std::convert::Infallible;

use larder::{Cache, LoadError};
use larder_ui::{Db, UserOfRequest};

async fn show(cache: &Cache<Db>) -> Result<(), LoadError<Infallible>> {
    larder::get::<UserOfRequest>(cache, &7).await?;
    Ok(())
}

fn main() {}
