//! What a request keeps: read by the request, its clones, and what holds it.

use std::convert::Infallible;
use std::sync::Arc;

use larder::{Cache, Direct, LoadError, Reader, Request, Route, ScopedReader};
use larder_ui::{Conn, Db, User, UserById, UserOfRequest, user};

/// The application's own reader, by way of the request.
struct Visit {
    request: Request<Db>,
}

impl<'a> Reader<'a, Db> for &'a Visit {
    fn route(self) -> Route<'a, Db> {
        self.request.route()
    }
}

impl<'a> ScopedReader<'a, Db> for &'a Visit {}

async fn handle(cache: &Cache<Db>) -> Result<(), LoadError<Infallible>> {
    let visit = Visit {
        request: Request::begin(cache),
    };
    let one: Option<Arc<User>> = larder::get::<UserOfRequest>(&visit, &7).await?;
    let batch = larder::get_many::<UserOfRequest>(&visit.request, [7, 9]).await?;
    assert_eq!(batch.get(&7), one.as_ref());

    // A task is given a clone, and may outlive the handler.
    let request = visit.request.clone();
    let task = tokio::spawn(async move { larder::get::<UserOfRequest>(&request, &7).await });
    let theirs = task.await.expect("it doesn't panic")?;

    // Inside a transaction its connection reads.
    let mut transaction = Conn;
    larder::get::<UserOfRequest>(Direct(&mut transaction), &7).await?;

    // Who changes a value changes their own.
    let mut loud = User::clone(&theirs.expect("everyone exists"));
    loud.name = loud.name.to_uppercase();
    assert_eq!(*one.expect("everyone exists"), user());

    // Data that changes can be refreshed, and flushed.
    larder::refresh::<UserOfRequest>(&visit, &7).await?;
    let flushed = visit.request.cache().flush::<UserOfRequest>([7]).await;
    flushed.expect("the store is in this process");

    // Without a request: data without a tier.
    let stored: Option<User> = larder::get::<UserById>(cache, &7).await?;
    assert_eq!(stored, Some(user()));
    Ok(())
}

fn main() {
    larder_ui::run(async {
        let cache = larder_ui::cache().await;
        handle(&cache).await.expect("loads don't fail");
    });
}
