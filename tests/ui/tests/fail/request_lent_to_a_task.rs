//! The task may outlive the request that was lent to it: it is given the request, or a clone.

use larder::{Cache, Request};
use larder_ui::{Db, UserOfRequest};

async fn handle(cache: &Cache<Db>) {
    let request = Request::begin(cache);
    tokio::spawn(async { larder::get::<UserOfRequest>(&request, &7).await });
}

fn main() {}
