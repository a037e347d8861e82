//! `/api/messages`: pages of history, new messages, reactions to them, and topics that move.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize, Serializer};

use super::answer::{ApiError, Valid, answer, written};
use super::visit::Visit;
use crate::App;
use crate::data::{
    DisplayName, Message, MessageId, MessagesPage, NewMessage, Reaction, Stream, StreamId, Topic,
    UserId, display_names, messages, streams,
};
use crate::fill::unix_time;
use crate::render::render;
use crate::writes::{self, Sent};

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
type Names = BTreeMap<UserId, Arc<DisplayName>>;

/// A message as it is shown: with the names of today, and the versions of whom and what they are of.
#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    message: &'a Message,
    stream: Option<&'a str>,
    stream_version: Option<i64>,
    #[serde(serialize_with = "name_of")]
    sender_full_name: Option<Arc<DisplayName>>,
    /// Of everybody who has to do with it.
    #[serde(flatten, serialize_with = "names_of")]
    names: Names,
}

impl<'a> View<'a> {
    fn new(message: &'a Message, stream: Option<&'a Stream>, names: Names) -> Self {
        Self {
            message,
            stream: stream.map(|stream| stream.name.as_str()),
            stream_version: stream.map(|stream| stream.version),
            sender_full_name: names.get(&message.sender_id).map(Arc::clone),
            names,
        }
    }
}

fn name_of<S: Serializer>(name: &Option<Arc<DisplayName>>, to: S) -> Result<S::Ok, S::Error> {
    name.as_ref().map(|name| &name.full_name).serialize(to)
}

/// `names` by the ids of whom they are, and `name_versions` likewise.
fn names_of<S: Serializer>(names: &Names, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Both<'a> {
        names: BTreeMap<UserId, &'a str>,
        name_versions: BTreeMap<UserId, i64>,
    }
    let both = Both {
        names: names
            .iter()
            .map(|(&id, name)| (id, &*name.full_name))
            .collect(),
        name_versions: names.iter().map(|(&id, name)| (id, name.version)).collect(),
    };
    both.serialize(to)
}

/// The names of everybody who has to do with a message: what the request has read before comes from there.
async fn names(visit: &Visit, message: &Message) -> Result<Names, ApiError> {
    let names = display_names(visit, message.people()).await?;
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
    State(app): State<App>,
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
        let found = streams::one(&visit, stream).await?;
        found.ok_or_else(|| ApiError::unknown(format!("there is no stream {stream}")))?;
    }
    let found = messages(&visit, &ids).await?;
    // A message that was deleted since its id was found is left out.
    let messages: Vec<&Message> = found.iter().filter_map(|(_, message)| message).collect();
    let people = messages.iter().flat_map(|message| message.people());
    let places = messages.iter().map(|message| message.stream_id);
    let (_, places) = tokio::try_join!(display_names(&visit, people), streams(&visit, places))?;
    let mut views = Vec::with_capacity(messages.len());
    for message in messages {
        let names = names(&visit, message).await?;
        views.push(View::new(message, places.get(&message.stream_id), names));
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
    visit: Visit,
    Valid(Json(sending)): Valid<Json<Sending>>,
) -> Result<Response, ApiError> {
    let new = sending.message()?;
    let sent = visit.write(async |cache| writes::send_message(cache, new).await);
    let sent = sent.await?;
    let Sent {
        message,
        stream,
        sender,
    } = &sent.value;
    let name = DisplayName {
        full_name: sender.full_name.clone(),
        version: sender.version,
    };
    let names = Names::from([(sender.id, Arc::new(name))]);
    let view = View::new(message, Some(stream), names);
    Ok(written(StatusCode::CREATED, &view, &sent.committed))
}

/// The body of a move.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Moving {
    from: Topic,
    to: Topic,
}

/// `POST /api/messages/move`
pub(super) async fn move_topic(
    visit: Visit,
    Valid(Json(Moving { from, mut to })): Valid<Json<Moving>>,
) -> Result<Response, ApiError> {
    to.subject = text("subject", &to.subject, LONGEST_SUBJECT)?;
    if from == to {
        return Err(ApiError::bad("from and to are the same topic"));
    }
    let moved = visit.write(async |cache| writes::move_topic(cache, &from, &to).await);
    let moved = moved.await?;
    #[derive(Serialize)]
    struct Moved<'a> {
        id: MessageId,
        #[serde(flatten)]
        topic: &'a Topic,
        version: i64,
    }
    #[derive(Serialize)]
    struct All<'a> {
        messages: Vec<Moved<'a>>,
    }
    let messages = moved.value.iter().map(|&(id, version)| Moved {
        id,
        topic: &to,
        version,
    });
    let messages = messages.collect();
    Ok(written(StatusCode::OK, &All { messages }, &moved.committed))
}

/// What a reaction is, beside what it is to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reacting {
    user_id: UserId,
    emoji_name: String,
    emoji_code: String,
}

/// The reactions that can be given: characters, by their code points.
const REACTION_TYPE: &str = "unicode_emoji";

/// The longest name of an emoji, in characters, and the longest sequence of code points, in hexadecimal.
const LONGEST_EMOJI: usize = 60;

/// `POST /api/messages/{id}/reactions`
pub(super) async fn react(
    visit: Visit,
    Valid(Path(message_id)): Valid<Path<MessageId>>,
    Valid(Json(reacting)): Valid<Json<Reacting>>,
) -> Result<Response, ApiError> {
    let reaction = Reaction {
        message_id,
        user_id: reacting.user_id,
        emoji_name: text("emoji_name", &reacting.emoji_name, LONGEST_EMOJI)?,
        emoji_code: code_points(&reacting.emoji_code)?,
        reaction_type: REACTION_TYPE.to_owned(),
        version: 1,
    };
    let reacted = visit.write(async |cache| writes::react(cache, reaction).await);
    let reacted = reacted.await?;
    let (status, message) = (StatusCode::CREATED, &reacted.value);
    Ok(written(status, message, &reacted.committed))
}

/// Which reaction to take back.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unreacting {
    user_id: UserId,
    emoji_code: String,
}

/// `DELETE /api/messages/{id}/reactions?user_id=U&emoji_code=C`
pub(super) async fn unreact(
    visit: Visit,
    Valid(Path(message_id)): Valid<Path<MessageId>>,
    Valid(Query(unreacting)): Valid<Query<Unreacting>>,
) -> Result<Response, ApiError> {
    let code = code_points(&unreacting.emoji_code)?;
    let id = (
        message_id,
        unreacting.user_id,
        code,
        REACTION_TYPE.to_owned(),
    );
    let unreacted = visit.write(async |cache| writes::unreact(cache, id).await);
    let unreacted = unreacted.await?;
    let (status, message) = (StatusCode::OK, &unreacted.value);
    Ok(written(status, message, &unreacted.committed))
}

/// Code points in hexadecimal, such as `1f44d` or `1f1e9-1f1ea`, in lower case.
fn code_points(typed: &str) -> Result<String, ApiError> {
    let code = typed.to_lowercase();
    let is_character = |point: &str| {
        let number = u32::from_str_radix(point, 16).ok();
        number.and_then(char::from_u32).is_some() && !point.starts_with('+')
    };
    match code.len() <= LONGEST_EMOJI && code.split('-').all(is_character) {
        true => Ok(code),
        false => Err(ApiError::bad(
            "emoji_code takes code points in hexadecimal, such as 1f44d",
        )),
    }
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
