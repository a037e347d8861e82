//! `/api/streams`: where messages are sent, and who reads them.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::answer::{ApiError, Valid, answer};
use super::visit::Visit;
use crate::App;
use crate::data::{Stream, StreamId, Streams, Subscribers, UserId, Users};

/// `GET /api/streams`
pub(super) async fn list(State(app): State<Arc<App>>, visit: Visit) -> Result<Response, ApiError> {
    let ids = visit
        .query(async {
            let mut db = app.db().read().await?;
            Stream::ids(&mut db).await
        })
        .await?;
    let streams = larder::get_many::<Streams>(&visit, &ids).await?;
    #[derive(Serialize)]
    struct All<'a> {
        streams: Vec<&'a Stream>,
    }
    let streams = streams.iter().filter_map(|(_, stream)| stream).collect();
    Ok(answer(StatusCode::OK, &All { streams }))
}

/// `GET /api/streams/{id}/subscribers`
///
/// Who reads the stream is one entry; what they are called today is added after the fetch.
pub(super) async fn subscribers(
    visit: Visit,
    Valid(Path(id)): Valid<Path<StreamId>>,
) -> Result<Response, ApiError> {
    let subscribers = larder::get::<Subscribers>(&visit, &id).await?;
    let subscribers =
        subscribers.ok_or_else(|| ApiError::unknown(format!("there is no stream {id}")))?;
    let users = larder::get_many::<Users>(&visit, &subscribers).await?;
    #[derive(Serialize)]
    struct Subscriber<'a> {
        id: UserId,
        full_name: &'a str,
        is_active: bool,
    }
    #[derive(Serialize)]
    struct All<'a> {
        subscribers: Vec<Subscriber<'a>>,
    }
    let subscribers = users
        .iter()
        .filter_map(|(_, user)| user)
        .map(|user| Subscriber {
            id: user.id,
            full_name: &user.full_name,
            is_active: user.is_active,
        })
        .collect();
    Ok(answer(StatusCode::OK, &All { subscribers }))
}
