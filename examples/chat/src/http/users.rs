//! `/api/users`: people by id and by e-mail address, and changes of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::answer::{ApiError, Valid, answer, written};
use super::messages::text;
use super::visit::Visit;
use crate::App;
use crate::data::{Email, UserId, UserPatch, Users, UsersByEmail};
use crate::writes::change_user;

/// The longest name, in characters.
const LONGEST_NAME: usize = 100;

/// `GET /api/users/{id}`
pub(super) async fn by_id(
    visit: Visit,
    Valid(Path(id)): Valid<Path<UserId>>,
) -> Result<Response, ApiError> {
    let user = larder::get::<Users>(&visit, &id).await?;
    let user = user.ok_or_else(|| ApiError::unknown(format!("there is no user {id}")))?;
    Ok(answer(StatusCode::OK, &user))
}

/// The query of a user by address.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ByEmail {
    email: Email,
}

/// `GET /api/users?email=`
pub(super) async fn by_email(
    visit: Visit,
    Valid(Query(ByEmail { email })): Valid<Query<ByEmail>>,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::unknown(format!("nobody has the e-mail address {}", email.as_str()));
    let id = larder::get::<UsersByEmail>(&visit, &email).await?;
    let id = id.ok_or_else(unknown)?;
    let user = larder::get::<Users>(&visit, &id).await?;
    Ok(answer(StatusCode::OK, &user.ok_or_else(unknown)?))
}

/// `PATCH /api/users/{id}`
pub(super) async fn change(
    State(app): State<Arc<App>>,
    visit: Visit,
    Valid(Path(id)): Valid<Path<UserId>>,
    Valid(Json(mut patch)): Valid<Json<UserPatch>>,
) -> Result<Response, ApiError> {
    if let Some(name) = &mut patch.full_name {
        *name = text("full_name", name, LONGEST_NAME)?;
    }
    if patch.is_empty() {
        return Err(ApiError::bad(
            "nothing to change; full_name, email and is_active can be",
        ));
    }
    let changed = visit
        .write(app.write(change_user(app.db().clone(), visit.cache(), id, patch)))
        .await?;
    Ok(written(StatusCode::OK, &changed.value, changed.flush))
}
