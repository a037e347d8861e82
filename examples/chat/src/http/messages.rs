//! `/api/messages`: pages of history, and new messages.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::answer::{ApiError, Valid, answer, written};
use super::visit::Visit;
use crate::App;
use crate::data::{
    DisplayNames, Message, MessageId, Messages, MessagesPage, NewMessage, Stream, StreamId,
    Streams, UserId,
};
use crate::fill::unix_time;
use crate::render::render;
use crate::writes::{Sent, send_message};

/// The most messages of one answer.
const MOST: u32 = 5_000;

/// What a page has if nothing is said.
const DEFAULT_BEFORE: u32 = 50;

/// The longest text of a message, and the longest topic, in characters.
const LONGEST_CONTENT: usize = 10_000;
const LONGEST_SUBJECT: usize = 60;

/// The query of a page.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    #[serde(default)]
    anchor: Anchor,
    before: Option<u32>,
    after: Option<u32>,
    stream: Option<StreamId>,
}

/// Where a page is: at a message, or behind the newest one.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "String")]
enum Anchor {
    #[default]
    Newest,
    At(MessageId),
}

impl TryFrom<String> for Anchor {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        match text.parse() {
            Ok(id) => Ok(Self::At(MessageId(id))),
            Err(_) if text == "newest" => Ok(Self::Newest),
            Err(_) => Err("an anchor is the id of a message, or `newest`"),
        }
    }
}

impl PageQuery {
    fn page(self) -> Result<MessagesPage, ApiError> {
        let after = self.after.unwrap_or(0);
        let before = match self.before {
            Some(before) => before,
            None if self.after.is_some() => 0,
            None => DEFAULT_BEFORE,
        };
        if before.checked_add(after).is_none_or(|all| all > MOST) {
            return Err(ApiError::bad(format!(
                "before and after are {before} and {after}; together at most {MOST}"
            )));
        }
        Ok(MessagesPage {
            anchor: match self.anchor {
                Anchor::Newest => None,
                Anchor::At(id) => Some(id),
            },
            before,
            after,
            stream: self.stream,
        })
    }
}

/// What people are called today, by their ids.
type Names = BTreeMap<UserId, Arc<String>>;

/// A message as it is shown: with the names of today.
#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    message: &'a Message,
    stream: Option<&'a str>,
    sender_full_name: Option<Arc<String>>,
    /// Of everybody who has to do with it.
    names: Names,
}

impl<'a> View<'a> {
    fn new(message: &'a Message, stream: Option<&'a Stream>, names: Names) -> Self {
        Self {
            message,
            stream: stream.map(|stream| stream.name.as_str()),
            sender_full_name: names.get(&message.sender_id).map(Arc::clone),
            names,
        }
    }
}

/// The names of everybody who has to do with a message: what the request has read before comes from there.
async fn names(visit: &Visit, message: &Message) -> Result<Names, ApiError> {
    let names = larder::get_many::<DisplayNames>(visit, message.people()).await?;
    let found = names
        .iter()
        .filter_map(|(id, name)| Some((*id, Arc::clone(name?))));
    Ok(found.collect())
}

/// `GET /api/messages?anchor=ID|newest&before=N&after=N&stream=S`
///
/// The ids come from the index, in the order of the history; the messages from one bulk call; what changes for other
/// reasons than a message, the names, is added after the fetch, from a bulk call for each kind. The one for the names of
/// people is for the request to keep them: each message then asks for its own.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    visit: Visit,
    Valid(Query(query)): Valid<Query<PageQuery>>,
) -> Result<Response, ApiError> {
    let page = query.page()?;
    let ids = visit
        .query(async {
            let mut db = app.db().read().await?;
            page.ids(&mut db).await
            // Here the connection goes back: what the accessors load begins with a snapshot of its own.
        })
        .await?;
    if let Some(stream) = page.stream.filter(|_| ids.is_empty()) {
        let found = larder::get::<Streams>(&visit, &stream).await?;
        found.ok_or_else(|| ApiError::unknown(format!("there is no stream {stream}")))?;
    }
    let messages = larder::get_many::<Messages>(&visit, &ids).await?;
    // A message that was deleted since its id was found is left out.
    let messages: Vec<&Message> = messages.iter().filter_map(|(_, message)| message).collect();
    let people: HashSet<UserId> = messages
        .iter()
        .flat_map(|message| message.people())
        .collect();
    let streams: HashSet<StreamId> = messages.iter().map(|message| message.stream_id).collect();
    let (_, streams) = tokio::try_join!(
        larder::get_many::<DisplayNames>(&visit, &people),
        larder::get_many::<Streams>(&visit, &streams)
    )?;
    let mut views = Vec::with_capacity(messages.len());
    for message in messages {
        let names = names(&visit, message).await?;
        views.push(View::new(message, streams.get(&message.stream_id), names));
    }
    #[derive(Serialize)]
    struct Page<'a> {
        messages: Vec<View<'a>>,
    }
    Ok(answer(StatusCode::OK, &Page { messages: views }))
}

/// The body of a new message.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sending {
    stream_id: StreamId,
    sender_id: UserId,
    subject: String,
    content: String,
}

impl Sending {
    fn message(self) -> Result<NewMessage, ApiError> {
        let subject = text("subject", &self.subject, LONGEST_SUBJECT)?;
        let content = text("content", &self.content, LONGEST_CONTENT)?;
        Ok(NewMessage {
            stream_id: self.stream_id,
            sender_id: self.sender_id,
            rendered_content: render(&content),
            subject,
            content,
            timestamp: unix_time(),
        })
    }
}

/// `POST /api/messages`
pub(super) async fn send(
    State(app): State<Arc<App>>,
    visit: Visit,
    Valid(Json(sending)): Valid<Json<Sending>>,
) -> Result<Response, ApiError> {
    let new = sending.message()?;
    let sent = visit
        .write(app.write(send_message(app.db().clone(), visit.cache(), new)))
        .await?;
    let Sent {
        message,
        stream,
        sender,
    } = &sent.value;
    let names = Names::from([(sender.id, Arc::new(sender.full_name.clone()))]);
    let view = View::new(message, Some(stream), names);
    Ok(written(StatusCode::CREATED, &view, sent.flush))
}

/// A text that somebody typed: without blanks around it, not empty, not too long, and of characters that can be shown.
pub(super) fn text(field: &str, typed: &str, longest: usize) -> Result<String, ApiError> {
    let text = typed.trim();
    if text.is_empty() || text.chars().count() > longest {
        return Err(ApiError::bad(format!(
            "{field} takes 1 to {longest} characters"
        )));
    }
    if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t' && c != '\r') {
        return Err(ApiError::bad(format!(
            "{field} contains control characters"
        )));
    }
    Ok(text.to_owned())
}
