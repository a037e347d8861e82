//! The application's own state is a reader, but it outlives its requests.

use std::convert::Infallible;

use larder::{Cache, LoadError, Reader, Route};
use larder_ui::{Db, UserOfRequest};

struct App {
    cache: Cache<Db>,
}

impl<'a> Reader<'a, Db> for &'a App {
    fn route(self) -> Route<'a, Db> {
        Route::Cached(&self.cache)
    }
}

async fn show(app: &App) -> Result<(), LoadError<Infallible>> {
    larder::get::<UserOfRequest>(app, &7).await?;
    Ok(())
}

fn main() {}
