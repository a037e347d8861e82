//! `/api/users`: people by id and by e-mail address, and changes of them.

use axum::Json;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::answer::{ApiError, Valid, answer, written};
use super::messages::text;
use super::visit::Visit;
use crate::data::{self, Email, Subscribed, User, UserId, UserPatch, user_by_email, users};
use crate::writes;

/// The longest name, in characters.
const LONGEST_NAME: usize = 100;

/// `GET /api/users/{id}`
pub(super) async fn by_id(
    visit: Visit,
    Valid(Path(id)): Valid<Path<UserId>>,
) -> Result<Response, ApiError> {
    let user = users::one(&visit, id).await?;
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
    let id = user_by_email(&visit, &email).await?;
    let user = users::one(&visit, id.ok_or_else(unknown)?).await?;
    let user = match user.filter(|user| user.email == email) {
        Some(user) => Some(user),
        // Each entry was right when it was read, and in between the address got another user: the source says whom.
        None => match user_by_email::uncached(&visit, &email).await? {
            Some(id) => users::uncached(&visit, id).await?,
            None => None,
        },
    };
    Ok(answer(StatusCode::OK, &user.ok_or_else(unknown)?))
}

/// `PATCH /api/users/{id}`
pub(super) async fn change(
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
    let changed = visit.write(async |cache| writes::change_user(cache, id, patch).await);
    let changed = changed.await?;
    Ok(written(StatusCode::OK, &changed.value, &changed.committed))
}

/// The body of an exchange of addresses.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Swapping {
    users: [UserId; 2],
}

/// `POST /api/users/swap-emails`
pub(super) async fn swap_emails(
    visit: Visit,
    Valid(Json(Swapping {
        users: [one, other],
    })): Valid<Json<Swapping>>,
) -> Result<Response, ApiError> {
    if one == other {
        return Err(ApiError::bad("users takes the ids of two users"));
    }
    let swapped = visit.write(async |cache| writes::swap_emails(cache, one, other).await);
    let swapped = swapped.await?;
    #[derive(Serialize)]
    struct Both<'a> {
        users: &'a [User; 2],
    }
    let users = &swapped.value;
    Ok(written(StatusCode::OK, &Both { users }, &swapped.committed))
}

/// `GET /api/users/{id}/subscriptions`
pub(super) async fn subscriptions(
    visit: Visit,
    Valid(Path(id)): Valid<Path<UserId>>,
) -> Result<Response, ApiError> {
    let subscriptions = data::subscriptions(&visit, id).await?;
    let subscriptions =
        subscriptions.ok_or_else(|| ApiError::unknown(format!("there is no user {id}")))?;
    #[derive(Serialize)]
    struct All {
        subscriptions: Vec<Subscribed>,
    }
    Ok(answer(StatusCode::OK, &All { subscriptions }))
}
