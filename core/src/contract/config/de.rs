//! Texts into a serde struct, with errors that name key, value and origin.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, Expected, IntoDeserializer, MapAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::layer::{Setting, Value};
use super::settings::{GENERAL, SECTIONS};

/// The keys of a backend's struct, or of a section's, in alphabetical order.
///
/// ```
/// # use larder_core::config;
/// #[derive(serde::Deserialize)]
/// struct CupboardConfig { shelves: u32, capacity: u64 }
///
/// assert_eq!(config::known_keys::<CupboardConfig>(), ["capacity", "shelves"]);
/// ```
pub fn known_keys<T: DeserializeOwned>() -> Vec<&'static str> {
    let mut keys = Vec::new();
    // It fails as soon as it has seen the names of the fields, which is all it is for.
    let _ = T::deserialize(Fields(&mut keys));
    keys.sort_unstable();
    keys
}

/// What is wrong with the configuration, in one sentence.
#[derive(Debug)]
pub(super) struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Problem {}

impl Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("expected {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("expected {expected}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("key `{field}` must be set"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self(format!("expected one of {}", expected.join(", ")))
    }
}

/// The keys of one backend, or of one section, about to become its struct.
pub(super) struct Struct<'de, I> {
    /// Whose keys they are.
    name: &'de str,
    /// Whether the keys were written after the section's name.
    in_section: bool,
    settings: I,
    /// The key whose value comes next.
    current: Option<(&'de str, &'de Setting)>,
}

impl<'de, I: Iterator<Item = (&'de str, &'de Setting)> + Clone> Struct<'de, I> {
    pub(super) fn of_backend(name: &'de str, settings: I) -> Self {
        Self {
            name,
            in_section: false,
            settings,
            current: None,
        }
    }

    pub(super) fn of_section(name: &'de str, settings: I) -> Self {
        Self {
            in_section: true,
            ..Self::of_backend(name, settings)
        }
    }

    /// Asked before any value is read: a backend whose author forgot `deny_unknown_fields` refuses them as well.
    fn check_names(&self, known: &[&str]) -> Result<(), Problem> {
        let unknown = |(key, _): &(&str, &Setting)| !known.contains(key);
        let Some((key, setting)) = self.settings.clone().find(unknown) else {
            return Ok(());
        };
        let mut known: Vec<String> = known.iter().map(|known| self.written(known)).collect();
        known.sort_unstable();
        let mut problem = format!(
            "unknown key `{}` in {} config ({}); known keys: {}",
            self.written(key).escape_debug(),
            self.name,
            setting.origin,
            known.join(", "),
        );
        if !self.in_section {
            let _ = write!(
                problem,
                ", and for every backend: backend, {}, {}_*, url",
                GENERAL.join(", "),
                SECTIONS.join("_*, "),
            );
        }
        Err(Problem(problem))
    }

    /// The key as it is written in a configuration.
    fn written(&self, key: &str) -> String {
        match self.in_section {
            true => format!("{}_{key}", self.name),
            false => key.to_owned(),
        }
    }
}

impl<'de, I: Iterator<Item = (&'de str, &'de Setting)> + Clone> Deserializer<'de>
    for Struct<'de, I>
{
    type Error = Problem;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.check_names(fields)?;
        let name = self.name;
        visitor
            .visit_map(self)
            .map_err(|problem| Problem(format!("{name} config: {problem}")))
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de, I: Iterator<Item = (&'de str, &'de Setting)> + Clone> MapAccess<'de> for Struct<'de, I> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Problem> {
        self.current = self.settings.next();
        self.current
            .map(|(key, _)| seed.deserialize(StrDeserializer::new(key)))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let (key, setting) = self
            .current
            .take()
            .expect("a map asks for a value after its key");
        seed.deserialize(Written::from(&setting.value))
            .map_err(|problem| {
                let key = self.written(key);
                let (shown, origin) = (setting.shown(&key), &setting.origin);
                Problem(format!("{key} = `{shown}` ({origin}): {problem}"))
            })
    }
}

/// One value as it was written.
#[derive(Clone, Copy)]
enum Written<'de> {
    Text(&'de str),
    List(&'de [String]),
}

impl<'de> Written<'de> {
    fn text(self) -> Result<&'de str, Problem> {
        match self {
            Self::Text(text) => Ok(text.trim()),
            Self::List(_) => Err(Problem("expected one value, not a list".to_owned())),
        }
    }

    fn parse<T: FromStr>(self, expected: impl FnOnce() -> String) -> Result<T, Problem> {
        self.text()?
            .parse()
            .map_err(|_| Problem(format!("expected {}", expected())))
    }
}

impl<'de> From<&'de Value> for Written<'de> {
    fn from(value: &'de Value) -> Self {
        match value {
            Value::Text(text) => Self::Text(text),
            Value::List(items) => Self::List(items),
        }
    }
}

impl<'de> IntoDeserializer<'de, Problem> for Written<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! integers {
    ($($integer:ident $deserialize:ident $visit:ident,)*) => {$(
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            let range = || format!("a whole number from {} to {}", $integer::MIN, $integer::MAX);
            visitor.$visit(self.parse(range)?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Written<'de> {
    type Error = Problem;

    integers! {
        u8 deserialize_u8 visit_u8,
        u16 deserialize_u16 visit_u16,
        u32 deserialize_u32 visit_u32,
        u64 deserialize_u64 visit_u64,
        u128 deserialize_u128 visit_u128,
        i8 deserialize_i8 visit_i8,
        i16 deserialize_i16 visit_i16,
        i32 deserialize_i32 visit_i32,
        i64 deserialize_i64 visit_i64,
        i128 deserialize_i128 visit_i128,
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_f64(self.parse(|| "a number".to_owned())?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_bool(self.parse(|| "true or false".to_owned())?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_enum(StrDeserializer::new(self.text()?))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let items: Vec<_> = match self {
            Self::List(items) => items.iter().map(|item| Written::Text(item)).collect(),
            Self::Text(text) if text.trim().is_empty() => Vec::new(),
            Self::Text(text) => text.split(',').map(Written::Text).collect(),
        };
        visitor.visit_seq(SeqDeserializer::new(items.into_iter()))
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_borrowed_str(self.text()?)
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier ignored_any
    }
}

/// Asks a struct for the names of its fields.
struct Fields<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Problem;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.0.extend(fields);
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Problem> {
        Err(Problem("only the names were asked for".to_owned()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
