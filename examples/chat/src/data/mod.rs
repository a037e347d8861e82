//! What the chat keeps and what it caches of it: one file per entity, with its rows, its data sets and its writes.
//!
//! The cut follows one rule: **what changes for other reasons than the entity itself is not in its entry.** A message's
//! entry holds its text, history and reactions, and of people and streams only their ids: a user's new name would
//! otherwise make thousands of messages stale. Names are added after the fetch, by a bulk accessor of their own.
//!
//! | data set | key | value | flushed when |
//! |---|---|---|---|
//! | [`Messages`] | message id | [`Message`], compressed with a dictionary | the message is sent |
//! | [`Users`] | user id | [`User`] | anything about the user changes |
//! | [`UsersByEmail`] | e-mail address | user id | the address gets or loses its user |
//! | [`DisplayNames`] | user id | the name | anything about the user changes |
//! | [`Streams`] | stream id | [`Stream`] | never: nothing writes streams after the first start |
//! | [`Subscribers`] | stream id | user ids | never, likewise |
//! | [`ScriptMap`] | nothing | [`Symbols`], never stored | never: it is a part of the program |
//!
//! Two of them have a tier in the process. Display names are wanted again and again while a page is put together, so a
//! request keeps those it has read; the script's map is expensive to parse and can't change, so the process keeps it.
//!
//! Absence is cached too (`404` is an answer like any other), so what is created must be flushed as well.

mod messages;
mod script_map;
mod streams;
mod users;

use larder::{KeyPart, KeyWriter};
use serde::{Deserialize, Serialize};

pub use messages::{Edit, Message, Messages, MessagesPage, NewMessage, Reaction};
pub(crate) use messages::{insert_all, sample};
pub use script_map::{Origin, ScriptMap, Symbols};
pub use streams::{Stream, Streams, Subscribers};
pub use users::{BadEmail, DisplayNames, Email, StoredUser, User, UserPatch, Users, UsersByEmail};

/// How an id comes out of a URL, a row or a key: a number of its own type.
macro_rules! ids {
    ($($(#[doc = $doc:literal])* $name:ident)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl KeyPart for $name {
            fn write(&self, key: &mut KeyWriter<'_>) {
                key.integer(self.0);
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

/// These ids as the one parameter of `… IN (SELECT value FROM json_each(?))`: one prepared statement for any number.
fn id_list<I: Serialize>(ids: &[I]) -> String {
    serde_json::to_string(ids).expect("numbers are always JSON")
}
