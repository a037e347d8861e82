//! The same for many.

use std::convert::Infallible;

use larder::{Cache, LoadError};
use larder_ui::{Db, UserOfRequest};

async fn show(cache: &Cache<Db>) -> Result<(), LoadError<Infallible>> {
    larder::get_many::<UserOfRequest>(cache, [7, 9]).await?;
    Ok(())
}

fn main() {}
