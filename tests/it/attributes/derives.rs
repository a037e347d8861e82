//! `#[derive(Entity)]`: names, differences, shapes.

use larder::{Entity, FieldBits, FieldSet};
use serde::{Deserialize, Serialize};

use super::town::{Club, ClubField, User, UserField, user};

#[test]
fn fields_are_named_and_compared() {
    assert_eq!((User::NAME, Club::NAME), ("user", "club"));
    let names = UserField::ALL.iter().map(|field| field.name());
    assert_eq!(names.collect::<Vec<_>>(), ["realm", "email", "is_active"]);
    let ada = user(7, 1, "ada");
    let moved = User {
        email: "ada@new".to_owned(),
        is_active: false,
        ..ada.clone()
    };
    assert_eq!(
        ada.diff(&moved),
        FieldBits::from([UserField::Email, UserField::IsActive])
    );
    assert_eq!(ada.diff(&ada), FieldBits::NONE);
    assert_eq!(ada.id(), 7);
    assert_eq!(User::SET_BASED, FieldBits::NONE);
    assert_eq!(Club::SET_BASED, FieldBits::from([ClubField::Topic]));
}

/// Has a primary key of two columns, a field that nobody compares, and one whose name is a keyword.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Entity)]
struct UserGroup {
    #[entity(id)]
    realm: u32,
    #[entity(id)]
    name: String,
    r#type: f64,
    #[entity(skip)]
    last_seen: u64,
}

#[test]
fn a_primary_key_may_be_several_fields() {
    let group = UserGroup {
        realm: 1,
        name: "staff".to_owned(),
        r#type: 1.0,
        last_seen: 1,
    };
    let (realm, name): <UserGroup as Entity>::Id = group.id();
    assert_eq!((realm, &*name), (1, "staff"));
    assert_eq!(UserGroup::NAME, "user_group");
    assert_eq!(UserGroupField::ALL, [UserGroupField::Type]);
    assert_eq!(UserGroupField::Type.name(), "type");
    let later = UserGroup {
        last_seen: 2,
        ..group.clone()
    };
    assert_eq!(group.diff(&later), FieldBits::NONE);
    let other = UserGroup {
        r#type: 2.0,
        ..group.clone()
    };
    assert_eq!(group.diff(&other), UserGroupField::Type.into());
}

/// Nothing of it can change.
#[derive(Clone, Debug, PartialEq, Entity)]
struct Vote {
    #[entity(id)]
    id: u64,
}

#[test]
fn an_entity_may_only_come_and_go() {
    assert!(VoteField::ALL.is_empty());
    assert_eq!(Vote { id: 1 }.diff(&Vote { id: 2 }), FieldBits::NONE);
}

mod one {
    use super::*;

    #[derive(Entity)]
    pub(super) struct Row {
        #[entity(id)]
        id: u64,
        text: String,
    }
}

mod other {
    use super::*;

    #[derive(Entity)]
    pub(super) struct Row {
        #[entity(id)]
        id: u64,
        text: Option<String>,
    }
}

mod renamed {
    use super::*;

    #[derive(Deserialize, Entity)]
    #[serde(rename_all = "UPPERCASE")]
    pub(super) struct Row {
        #[entity(id)]
        id: u64,
        text: String,
    }
}

/// A number that is checked when it is read, so that its shape can't be found by trying.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
#[derive(Clone)]
struct Answer(u8);

impl TryFrom<u8> for Answer {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, &'static str> {
        match number {
            42 => Ok(Self(number)),
            _ => Err("not the answer"),
        }
    }
}

impl From<Answer> for u8 {
    fn from(number: Answer) -> Self {
        number.0
    }
}

#[derive(Entity)]
struct Checked {
    #[entity(id)]
    id: u64,
    number: Answer,
}

#[derive(Entity)]
struct Told {
    #[entity(id)]
    id: u64,
    #[entity(schema = 1)]
    number: Answer,
}

#[test]
fn shapes_follow_from_fields() {
    assert!(User::shape().is_some());
    assert_eq!(one::Row::shape(), one::Row::shape());
    assert_ne!(one::Row::shape(), other::Row::shape());
    assert_ne!(one::Row::shape(), renamed::Row::shape());
    assert_eq!(Checked::shape(), None);
    assert!(Told::shape().is_some());
}
