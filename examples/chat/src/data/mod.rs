//! What the chat keeps and what it caches of it: one file per entity, with its rows, its data sets and its writes.
//!
//! The cut follows one rule: **what changes for other reasons than the entity itself is not in its entry.** A message's
//! entry holds its text, history and reactions, and of people and streams only their ids: a user's new name would
//! otherwise make thousands of messages stale. Names are added after the fetch, by a bulk accessor of their own.
//!
//! | data set | key | value | stale when |
//! |---|---|---|---|
//! | [`messages`](fn@messages) | message id | [`Message`] with its reactions, compressed with a dictionary | the message is written, or a reaction to it |
//! | [`users`](fn@users) | user id | [`User`] | the user is written |
//! | [`user_by_email`](fn@user_by_email) | e-mail address | user id | the address gets or loses its user |
//! | [`display_names`](fn@display_names) | user id | the name | the user is written |
//! | [`streams`](fn@streams) | stream id | [`Stream`] | the stream is written |
//! | [`subscribers`](fn@subscribers) | stream id | who reads it | a subscription of the stream is written |
//! | [`subscriptions`](fn@subscriptions) | user id | streams with their names | a subscription of the user is written, or one of the streams |
//! | [`script_map`](fn@script_map) | nothing | [`Symbols`], never stored | never: it is a part of the program |
//!
//! Each says so itself, in its `flush_on`, of the entities: what is written ([`User`], [`Stream`], [`Subscription`],
//! [`Message`], [`Reaction`]). A write says what it changed, and knows nothing of data sets: see [`writes`](crate::writes).
//!
//! Two of them have a tier in the process. Display names are wanted again and again while a page is put together, so a
//! request keeps those it has read; the script's map is expensive to parse and can't change, so the process keeps it.
//!
//! Absence is cached too (`404` is an answer like any other), so that what is created makes it stale as well.

mod message;
mod reaction;
mod stream;
mod subscription;
mod symbols;
mod user;

use larder::KeyPart;
use serde::{Deserialize, Serialize};

use crate::db::column;

pub use message::{Edit, Message, MessageField, MessagesPage, NewMessage, Topic, messages};
pub(crate) use message::{insert_all, sample};
pub use reaction::{Reaction, ReactionField, ReactionId};
pub use stream::{Stream, StreamField, StreamPatch, streams};
pub use subscription::{
    ReadersOf, Subscribed, Subscriber, Subscription, SubscriptionField, subscribers, subscriptions,
};
pub use symbols::{Origin, Symbols, script_map};
pub use user::{
    BadEmail, DisplayName, Email, User, UserField, UserPatch, display_names, user_by_email, users,
};

/// How an id comes out of a URL, a row or a key: a number of its own type.
macro_rules! ids {
    ($($(#[doc = $doc:literal])* $name:ident)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, KeyPart)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        column!($name(i64));

        impl From<$name> for i64 {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// Names a message; later messages have larger ids.
    MessageId
    /// Names a stream.
    StreamId
    /// Names a user.
    UserId
}
