//! Whoever reads the user next would see a name that is in no database.

use std::convert::Infallible;

use larder::{LoadError, Request};
use larder_ui::{Db, UserOfRequest};

async fn shout(request: &Request<Db>) -> Result<(), LoadError<Infallible>> {
    if let Some(user) = larder::get::<UserOfRequest>(request, &7).await? {
        user.name = user.name.to_uppercase();
    }
    Ok(())
}

fn main() {}
