//! `/api/streams`: where messages are sent, and who reads them.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::answer::{ApiError, Valid, answer, written};
use super::messages::text;
use super::visit::Visit;
use crate::App;
use crate::data::{self, Stream, StreamId, StreamPatch, User, UserId, streams, users};
use crate::writes;

/// The longest name and the longest description, in characters.
const LONGEST_NAME: usize = 60;
const LONGEST_DESCRIPTION: usize = 1_000;

/// `GET /api/streams`
pub(super) async fn list(State(app): State<App>, visit: Visit) -> Result<Response, ApiError> {
    let ids = visit
        .query(async {
            let mut db = app.db().read().await?;
            Stream::ids(&mut db).await
        })
        .await?;
    let streams = streams(&visit, &ids).await?;
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
    let subscribers = data::subscribers(&visit, id).await?;
    let subscribers =
        subscribers.ok_or_else(|| ApiError::unknown(format!("there is no stream {id}")))?;
    let ids = subscribers.iter().map(|subscriber| subscriber.user_id);
    let users = users(&visit, ids).await?;
    #[derive(Serialize)]
    struct View<'a> {
        #[serde(flatten)]
        user: &'a User,
        /// That of the subscription; `version` is the user's.
        subscription_version: i64,
    }
    #[derive(Serialize)]
    struct All<'a> {
        subscribers: Vec<View<'a>>,
    }
    let views = subscribers.iter().filter_map(|subscriber| {
        Some(View {
            user: users.get(&subscriber.user_id)?,
            subscription_version: subscriber.version,
        })
    });
    let subscribers = views.collect();
    Ok(answer(StatusCode::OK, &All { subscribers }))
}

/// `GET /api/streams/{id}`
pub(super) async fn by_id(
    visit: Visit,
    Valid(Path(id)): Valid<Path<StreamId>>,
) -> Result<Response, ApiError> {
    let stream = streams::one(&visit, id).await?;
    let stream = stream.ok_or_else(|| ApiError::unknown(format!("there is no stream {id}")))?;
    Ok(answer(StatusCode::OK, &stream))
}

/// `PATCH /api/streams/{id}`
pub(super) async fn change(
    visit: Visit,
    Valid(Path(id)): Valid<Path<StreamId>>,
    Valid(Json(mut patch)): Valid<Json<StreamPatch>>,
) -> Result<Response, ApiError> {
    if let Some(name) = &mut patch.name {
        *name = text("name", name, LONGEST_NAME)?;
    }
    if let Some(description) = &mut patch.description {
        *description = text("description", description, LONGEST_DESCRIPTION)?;
    }
    if patch.is_empty() {
        return Err(ApiError::bad(
            "nothing to change; name and description can be",
        ));
    }
    let changed = visit.write(async |cache| writes::change_stream(cache, id, patch).await);
    let changed = changed.await?;
    Ok(written(StatusCode::OK, &changed.value, &changed.committed))
}

/// `PUT /api/streams/{id}/subscribers/{user}`
pub(super) async fn subscribe(
    visit: Visit,
    Valid(Path(ids)): Valid<Path<(StreamId, UserId)>>,
) -> Result<Response, ApiError> {
    store(&visit, ids, true).await
}

/// `DELETE /api/streams/{id}/subscribers/{user}`
pub(super) async fn unsubscribe(
    visit: Visit,
    Valid(Path(ids)): Valid<Path<(StreamId, UserId)>>,
) -> Result<Response, ApiError> {
    store(&visit, ids, false).await
}

async fn store(
    visit: &Visit,
    (stream, user): (StreamId, UserId),
    is_active: bool,
) -> Result<Response, ApiError> {
    let stored = visit.write(async |cache| writes::subscribe(cache, stream, user, is_active).await);
    let stored = stored.await?;
    Ok(written(StatusCode::OK, &stored.value, &stored.committed))
}
