//! Fingerprints: they tell layouts apart, and nothing else.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use larder_core::entry::fingerprint;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

macro_rules! shapes {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "only the shape counts")]
        $(#[$meta])*
        struct $name { $($(#[$field_meta])* $field: $type),* }
    )*};
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only the shape counts")]
enum Kind {
    Stream(u32),
    Private { to: Vec<u32> },
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only the shape counts")]
enum KindGrown {
    Bot,
    Stream(u32),
    Private { to: Vec<u32> },
}

shapes! {
    Base { id: u32, first: String, last: String, kind: Kind }
    AddedAtEnd { id: u32, first: String, last: String, kind: Kind, edited: Option<u64> }
    AddedInTheMiddle { id: u32, first: String, nick: Option<String>, last: String, kind: Kind }
    Removed { id: u32, first: String, kind: Kind }
    Swapped { id: u32, last: String, first: String, kind: Kind }
    Wider { id: u64, first: String, last: String, kind: Kind }
    Signed { id: i32, first: String, last: String, kind: Kind }
    Optional { id: u32, first: String, last: Option<String>, kind: Kind }
    Aliased { id: u32, #[serde(alias = "first")] given: String, last: String, kind: Kind }
    VariantAdded { id: u32, first: String, last: String, kind: KindGrown }
    Twin { id: u32, first: Box<str>, last: Cow<'static, str>, kind: Box<Kind> }
    Borrowed { id: u32, first: &'static str, #[serde(borrow)] last: Cow<'static, str>, kind: Kind }
}

#[test]
fn each_change_of_the_evolution_table_is_told_apart() {
    let all = [
        fingerprint::<Base>(),
        fingerprint::<AddedAtEnd>(),
        fingerprint::<AddedInTheMiddle>(),
        fingerprint::<Removed>(),
        fingerprint::<Swapped>(),
        fingerprint::<Wider>(),
        fingerprint::<Signed>(),
        fingerprint::<Optional>(),
        fingerprint::<Aliased>(),
        fingerprint::<VariantAdded>(),
    ]
    .map(|fingerprint| fingerprint.expect("derived types have a shape"));
    for (position, one) in all.iter().enumerate() {
        for other in &all[..position] {
            assert_ne!(one, other);
        }
    }
}

#[test]
fn owned_shared_and_borrowed_twins_are_equal() {
    assert_eq!(fingerprint::<Base>(), fingerprint::<Twin>());
    assert_eq!(fingerprint::<Base>(), fingerprint::<Borrowed>());
    assert_eq!(fingerprint::<String>(), fingerprint::<&'static str>());
}

macro_rules! distinct {
    ($($type:ty),* $(,)?) => {{
        let all = [$((stringify!($type), fingerprint::<$type>())),*];
        for (position, one) in all.iter().enumerate() {
            assert!(one.1.is_some(), "{}", one.0);
            for other in &all[..position] {
                assert_ne!(one.1, other.1, "{} and {}", one.0, other.0);
            }
        }
    }};
}

#[test]
fn types_of_the_standard_library_have_shapes() {
    distinct!(
        (), bool, u8, i8, u16, i16, u32, i32, u64, i64, u128, i128, f32, f64, char, String,
        Option<u8>, Option<Option<u8>>, (u8,), (u8, u16), (u16, u8), [u8; 3], [u8; 4], Vec<u8>,
        Vec<u16>, Vec<Vec<u8>>, BTreeMap<u8, u16>, BTreeMap<u16, u8>, BTreeMap<u8, Option<u16>>,
        Result<u8, u16>, Result<u16, u8>, IpAddr, SystemTime, Duration, std::ops::Range<u32>,
    );
    assert_eq!(
        fingerprint::<BTreeMap<u8, u16>>(),
        fingerprint::<HashMap<u8, u16>>()
    );
    // Their layout is that of the number; that they refuse zero is found out.
    assert_eq!(fingerprint::<NonZeroU32>(), fingerprint::<u32>());
}

#[test]
fn a_change_deep_inside_counts() {
    shapes! {
        Outer { inner: Vec<BTreeMap<String, Option<Inner>>> }
        Inner { kind: Kind }
        OtherOuter { inner: Vec<BTreeMap<String, Option<OtherInner>>> }
        OtherInner { kind: KindGrown }
    }
    assert!(fingerprint::<Outer>().is_some());
    assert_ne!(fingerprint::<Outer>(), fingerprint::<OtherOuter>());
}

#[test]
fn each_variant_counts_however_they_are_nested() {
    macro_rules! nested {
        ($module:ident, $last:ty) => {
            mod $module {
                #[derive(serde::Deserialize)]
                #[expect(dead_code, reason = "only the shape counts")]
                pub(super) enum Outer {
                    A,
                    B(Middle),
                    C { deep: Middle },
                }
                #[derive(serde::Deserialize)]
                #[expect(dead_code, reason = "only the shape counts")]
                pub(super) enum Middle {
                    D(Option<Inner>),
                    E(Vec<Inner>, Inner),
                }
                #[derive(serde::Deserialize)]
                #[expect(dead_code, reason = "only the shape counts")]
                pub(super) enum Inner {
                    F,
                    G(u8),
                    H { last: $last },
                }
            }
        };
    }
    nested!(one, u32);
    nested!(two, u64);
    assert!(fingerprint::<one::Outer>().is_some());
    assert_ne!(fingerprint::<one::Outer>(), fingerprint::<two::Outer>());
}

#[test]
fn recursive_types_have_shapes() {
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    enum Expression {
        Sum(Box<Self>, Box<Self>),
        Call {
            function: String,
            arguments: Vec<Self>,
        },
        Negated(Box<Self>),
        Number(i64),
    }
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    enum OtherExpression {
        Sum(Box<Self>, Box<Self>),
        Call {
            function: String,
            arguments: Vec<Self>,
        },
        Negated(Box<Self>),
        Number(u64),
    }
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    struct Tree(Vec<Self>);
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    struct Even {
        number: u8,
        next: Option<Box<Odd>>,
    }
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    struct Odd {
        next: Box<Even>,
    }
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    enum Ping {
        Again(Pong),
        End,
    }
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    enum Pong {
        Again(Box<Ping>),
    }
    distinct!(Expression, OtherExpression, Tree, Even, Odd, Ping, Pong);
}

#[test]
fn types_without_end_have_none() {
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    struct Endless {
        next: Box<Self>,
    }
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    enum AlsoEndless {
        A(Box<Self>),
        B(Box<Self>),
    }
    #[derive(Deserialize)]
    enum Never {}
    assert_eq!(fingerprint::<Endless>(), None);
    assert_eq!(fingerprint::<AlsoEndless>(), None);
    assert_eq!(fingerprint::<Never>(), None);
}

#[test]
fn types_that_ask_what_is_there_have_none() {
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only the shape counts")]
    struct Flat {
        id: u32,
        #[serde(flatten)]
        rest: BTreeMap<String, u32>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    #[expect(dead_code, reason = "only the shape counts")]
    enum Untagged {
        A(u32),
        B(String),
    }
    #[derive(Deserialize)]
    #[serde(tag = "type")]
    #[expect(dead_code, reason = "only the shape counts")]
    enum Tagged {
        A { a: u32 },
        B { b: String },
    }
    #[derive(Deserialize)]
    #[serde(tag = "type", content = "value")]
    #[expect(dead_code, reason = "only the shape counts")]
    enum Adjacent {
        A(u32),
        B(String),
    }
    assert_eq!(fingerprint::<Adjacent>(), None);
    assert_eq!(fingerprint::<Flat>(), None);
    assert_eq!(fingerprint::<Untagged>(), None);
    assert_eq!(fingerprint::<Tagged>(), None);
    assert_eq!(fingerprint::<serde_json::Value>(), None);
    assert_eq!(fingerprint::<Vec<serde_json::Value>>(), None);
}

#[test]
fn a_value_that_decides_what_follows_is_followed() {
    #[derive(Deserialize)]
    enum Tag {
        Number,
        Text,
        Last,
    }
    /// A tag, and then what the tag says.
    struct Tagged<L>(PhantomData<L>);
    impl<'de, L: Deserialize<'de>> Deserialize<'de> for Tagged<L> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Pair<L>(PhantomData<L>);
            impl<'de, L: Deserialize<'de>> Visitor<'de> for Pair<L> {
                type Value = Tagged<L>;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a tag and what it says")
                }
                fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Tagged<L>, A::Error> {
                    match pair.next_element()?.expect("a tuple of two") {
                        Tag::Number => drop(pair.next_element::<u8>()?),
                        Tag::Text => drop(pair.next_element::<String>()?),
                        Tag::Last => drop(pair.next_element::<L>()?),
                    }
                    Ok(Tagged(PhantomData))
                }
            }
            deserializer.deserialize_tuple(2, Pair(PhantomData))
        }
    }
    distinct!(Tagged<u32>, Tagged<u64>, Tagged<String>);
    // Two decisions in a row are too many, and that is noticed.
    assert_eq!(fingerprint::<Tagged<Kind>>(), None);
}

#[test]
fn types_that_validate_are_offered_what_they_may_like() {
    /// An address, checked on the way in.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    struct Email;
    impl TryFrom<String> for Email {
        type Error = &'static str;
        fn try_from(text: String) -> Result<Self, &'static str> {
            text.contains('@').then_some(Self).ok_or("no address")
        }
    }
    shapes! {
        Validating { email: Email, port: NonZeroU32, other: Email }
        Plain { email: String, port: u32, other: String }
    }
    assert!(fingerprint::<Validating>().is_some());
    assert_eq!(fingerprint::<Validating>(), fingerprint::<Plain>());

    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    struct Picky;
    impl TryFrom<String> for Picky {
        type Error = &'static str;
        fn try_from(text: String) -> Result<Self, &'static str> {
            (text == "abracadabra").then_some(Self).ok_or("wrong word")
        }
    }
    assert_eq!(fingerprint::<Picky>(), None);
}

/// A type whose visitor does whatever this function does with a list or map.
struct Odd<const WAY: usize>;

impl<'de, const WAY: usize> Deserialize<'de> for Odd<WAY> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Way<const WAY: usize>;
        impl<'de, const WAY: usize> Visitor<'de> for Way<WAY> {
            type Value = Odd<WAY>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an odd one")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Odd<WAY>, A::Error> {
                match WAY {
                    0 => while list.next_element::<Odd<WAY>>()?.is_some() {},
                    1 => while list.next_element::<u8>()?.is_some() {},
                    2 => panic!("an odd type"),
                    3 => return Err(A::Error::custom("never")),
                    _ => {}
                }
                Ok(Odd)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Odd<WAY>, A::Error> {
                if WAY == 5 {
                    while let Some(name) = map.next_key::<String>()? {
                        match name.as_str() {
                            "a" => drop(map.next_value::<u8>()?),
                            "b" => drop(map.next_value::<String>()?),
                            _ => drop(map.next_value::<IgnoredAny>()?),
                        }
                    }
                    return Ok(Odd);
                }
                Err(A::Error::custom("no map"))
            }
        }
        match WAY {
            0..=3 => deserializer.deserialize_seq(Way),
            4 => {
                // Goes on as if nothing had happened.
                let _ = Odd::<3>::deserialize(deserializer);
                Ok(Self)
            }
            6 => {
                // Asks forever, and never takes no for an answer.
                let mut depth = 0_u8;
                deserializer.deserialize_any(IgnoredAny).or_else(|error| {
                    depth += 1;
                    if depth > 0 {
                        Ok(IgnoredAny)
                    } else {
                        Err(error)
                    }
                })?;
                Ok(Self)
            }
            _ => deserializer.deserialize_struct("Odd", &["a", "b"], Way),
        }
    }
}

#[test]
fn odd_types_neither_panic_nor_loop() {
    assert_eq!(fingerprint::<Odd<0>>(), None, "a list of itself, by hand");
    assert!(fingerprint::<Odd<1>>().is_some());
    assert_eq!(fingerprint::<Odd<2>>(), None, "panics");
    assert_eq!(fingerprint::<Odd<3>>(), None, "refuses");
    assert!(fingerprint::<(Odd<4>, u8)>().is_some(), "swallows an error");
    assert!(
        fingerprint::<Odd<5>>().is_some(),
        "reads fields by name only"
    );
    assert_eq!(
        fingerprint::<Odd<6>>(),
        None,
        "asks what is there, and lies about it"
    );
    assert!(fingerprint::<PhantomData<u8>>().is_some());
}

#[test]
fn a_type_with_very_many_paths_ends() {
    macro_rules! tower {
        ($lower:ident $($upper:ident)*) => {
            #[derive(Deserialize)]
            enum $lower { A, B }
            tower!(@ $lower $($upper)*);
        };
        (@ $lower:ident $upper:ident $($rest:ident)*) => {
            #[derive(Deserialize)]
            #[expect(dead_code, reason = "only the shape counts")]
            struct $upper {
                a: Box<$lower>,
                b: Box<$lower>,
                c: Box<$lower>,
                d: Box<$lower>,
            }
            tower!(@ $upper $($rest)*);
        };
        (@ $top:ident) => {};
    }
    tower!(T0 T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11 T12 T13 T14);
    assert!(fingerprint::<T5>().is_some());
    assert_eq!(fingerprint::<T14>(), None);
}
