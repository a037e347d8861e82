//! What happens to old entries when a type changes: the table of `docs/formats.md`, made by doing it.
//!
//! For each codec: does the new type read the old entry right, refuse it, or read something else? And does the
//! fingerprint notice, so that the entry never gets to the codec?

use std::fmt::Debug;

use larder_core::entry::{Codec, fingerprint};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::support::{CODECS, keys, marshaller, seal};

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// As if nothing had changed.
    Read,
    /// Undecodable: a miss.
    Refused,
    /// Another value, silently.
    Wrong,
}

impl Outcome {
    fn of<Old: Serialize, New: DeserializeOwned + Debug>(
        codec: Codec,
        old: &Old,
        same: fn(&Old, &New) -> bool,
    ) -> Self {
        // One fingerprint for both, as if nothing noticed the change.
        let marshaller = marshaller(codec);
        let (keys, entry) = (keys(), seal(&marshaller, old));
        let checked = marshaller.check(keys.get(0), &entry).unwrap();
        match marshaller.open::<New>(checked) {
            Ok(new) if new.as_ref().is_some_and(|new| same(old, new)) => Self::Read,
            Ok(_) => Self::Wrong,
            Err(_) => Self::Refused,
        }
    }
}

/// The worst that happens, over all samples.
fn row<Old, New>(change: &str, old: &[Old], same: fn(&Old, &New) -> bool) -> String
where
    Old: Serialize + DeserializeOwned,
    New: DeserializeOwned + Debug,
{
    let cell = |codec| {
        let outcomes = old
            .iter()
            .map(|old| Outcome::of(codec, old, same))
            .collect::<Vec<_>>();
        if outcomes.contains(&Outcome::Wrong) {
            "**wrong value**"
        } else if outcomes.contains(&Outcome::Refused) {
            "miss"
        } else {
            "read"
        }
    };
    let [postcard, rmp, bincode, json] = CODECS.map(cell);
    let (old, new) = (fingerprint::<Old>(), fingerprint::<New>());
    assert!(old.is_some() && new.is_some());
    let noticed = if old == new { "no" } else { "yes" };
    format!("| {change} | {postcard} | {bincode} | {rmp} | {json} | {noticed} |\n")
}

macro_rules! versions {
    ($($name:ident { $($(#[$meta:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename = "User")]
        struct $name { $($(#[$meta])* $field: $type),* }
    )*};
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Role {
    Admin,
    Guest,
    Member(u8),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum RoleWithBot {
    Bot,
    Admin,
    Guest,
    Member(u8),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum RoleWithBotLast {
    Admin,
    Guest,
    Member(u8),
    Bot,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum RoleTurned {
    Guest,
    Admin,
    Member(u8),
}

versions! {
    Old { id: u32, first: String, last: String }
    AddedOptional { id: u32, first: String, last: String, nick: Option<String> }
    AddedDefault { id: u32, first: String, last: String, #[serde(default)] karma: u32 }
    AddedPlain { id: u32, first: String, last: String, karma: u32 }
    AddedInTheMiddle { id: u32, nick: Option<String>, first: String, last: String }
    Removed { id: u32, first: String }
    RemovedInTheMiddle { id: u32, last: String }
    Renamed { id: u32, given: String, last: String }
    Aliased { id: u32, #[serde(alias = "first")] given: String, last: String }
    Reordered { id: u32, last: String, first: String }
    ReorderedTypes { first: String, last: String, id: u32 }
    Wider { id: u64, first: String, last: String }
    Signed { id: i32, first: String, last: String }
    Optional { id: u32, first: String, last: Option<String> }
    Boxed { id: u32, first: Box<str>, last: std::borrow::Cow<'static, str> }
}

fn table() -> String {
    let users =
        [(7, "Ada", "Lovelace"), (150, "Bob", "B"), (3, "", "Smith")].map(|(id, first, last)| {
            Old {
                id,
                first: first.into(),
                last: last.into(),
            }
        });
    let roles = [Role::Admin, Role::Guest, Role::Member(0), Role::Member(2)];
    let rows = [
        row::<_, Old>("none", &users, |old, new| old == new),
        row(
            "`Option` field added at the end",
            &users,
            |old, new: &AddedOptional| {
                (old.id, &old.first, &old.last, None)
                    == (new.id, &new.first, &new.last, new.nick.as_ref())
            },
        ),
        row(
            "`Option` field added in the middle",
            &users,
            |old, new: &AddedInTheMiddle| {
                (old.id, &old.first, &old.last, None)
                    == (new.id, &new.first, &new.last, new.nick.as_ref())
            },
        ),
        row(
            "field with `serde(default)` added",
            &users,
            |old, new: &AddedDefault| {
                (old.id, &old.first, &old.last, 0) == (new.id, &new.first, &new.last, new.karma)
            },
        ),
        row("any other field added", &users, |_, _: &AddedPlain| false),
        row("last field removed", &users, |old, new: &Removed| {
            (old.id, &old.first) == (new.id, &new.first)
        }),
        row(
            "field in the middle removed",
            &users,
            |old, new: &RemovedInTheMiddle| (old.id, &old.last) == (new.id, &new.last),
        ),
        row("field renamed", &users, |old, new: &Renamed| {
            (old.id, &old.first, &old.last) == (new.id, &new.given, &new.last)
        }),
        row(
            "field renamed, with `serde(alias)`",
            &users,
            |old, new: &Aliased| (old.id, &old.first, &old.last) == (new.id, &new.given, &new.last),
        ),
        row(
            "fields of one type reordered",
            &users,
            |old, new: &Reordered| {
                (old.id, &old.first, &old.last) == (new.id, &new.first, &new.last)
            },
        ),
        row(
            "fields of different types reordered",
            &users,
            |old, new: &ReorderedTypes| {
                (old.id, &old.first, &old.last) == (new.id, &new.first, &new.last)
            },
        ),
        row("`u32` to `u64`", &users, |old, new: &Wider| {
            (u64::from(old.id), &old.first, &old.last) == (new.id, &new.first, &new.last)
        }),
        row("`u32` to `i32`", &users, |old, new: &Signed| {
            (i64::from(old.id), &old.first, &old.last) == (i64::from(new.id), &new.first, &new.last)
        }),
        row("`T` to `Option<T>`", &users, |old, new: &Optional| {
            (old.id, &old.first, Some(&old.last)) == (new.id, &new.first, new.last.as_ref())
        }),
        row(
            "`String` to `Box<str>` or `Cow<str>`",
            &users,
            |old, new: &Boxed| {
                (old.id, &*old.first, &*old.last) == (new.id, &*new.first, &*new.last)
            },
        ),
        row(
            "enum variant added at the end",
            &roles,
            |old, new: &RoleWithBotLast| format!("{old:?}") == format!("{new:?}"),
        ),
        row(
            "enum variant added before others",
            &roles,
            |old, new: &RoleWithBot| format!("{old:?}") == format!("{new:?}"),
        ),
        row(
            "enum variants reordered",
            &roles,
            |old, new: &RoleTurned| format!("{old:?}") == format!("{new:?}"),
        ),
    ];
    format!(
        "| change | postcard | bincode | rmp | json | fingerprint changes |\n\
         | --- | --- | --- | --- | --- | --- |\n{}",
        rows.concat()
    )
}

#[test]
fn the_documented_table_is_true() {
    let document = include_str!("../../../docs/formats.md");
    let table = table();
    assert!(
        document.contains(&table),
        "docs/formats.md should hold this table:\n\n{table}"
    );
}
