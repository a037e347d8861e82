//! A key that was read, to be read again without its types: for whoever compares what is cached with what is true.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::BytesMut;
use serde_json::Value;

use super::accessor::Accessor;
use super::fetch::{Way, read_one};
use super::{Answer, BoxError, Cache, Dataset, Form, Lifetime, Source, Tier};
use crate::contract::Keys;
use crate::expansion::key_text;

/// A key of some data set, to be read through the cache and past it.
#[async_trait]
pub trait AnyKey<S: Source>: fmt::Debug + Send + Sync {
    /// The data set.
    fn accessor(&self) -> &'static str;

    /// The key as it is stored, without prefix. What can't be a key, is its data set's name.
    fn key(&self) -> &str;

    /// What a reader is given now; it isn't loaded into a tier, nor taken from one.
    async fn cached(&self, cache: &Cache<S>) -> Result<Seen, BoxError>;

    /// What the source has now. Nothing is filled.
    async fn fresh(&self, cache: &Cache<S>) -> Result<Seen, BoxError>;
}

/// A key of one data set.
pub(super) struct Again<D: Dataset> {
    key: D::Key,
    text: String,
}

impl<D: Dataset> Again<D> {
    /// It; `None` if its values can't differ from the source's, or have no form in which to compare them.
    pub(super) fn of(key: &D::Key) -> Option<Self> {
        if D::LIFETIME == Lifetime::Immutable || !D::Form::STORED {
            return None;
        }
        Some(Self {
            key: key.clone(),
            text: key_text::<D>(key).unwrap_or_else(|_| D::NAME.to_owned()),
        })
    }

    async fn read(&self, cache: &Cache<D::Source>, way: Way) -> Result<Seen, BoxError> {
        let value = read_one::<D>(&cache.without_scope(), &self.key, way).await?;
        Ok(Seen::of::<D>(&cache.accessor::<D>(), value.as_ref()))
    }
}

impl<D: Dataset> fmt::Debug for Again<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Again").field(&self.text).finish()
    }
}

#[async_trait]
impl<D: Dataset> AnyKey<D::Source> for Again<D> {
    fn accessor(&self) -> &'static str {
        D::NAME
    }

    fn key(&self) -> &str {
        &self.text
    }

    async fn cached(&self, cache: &Cache<D::Source>) -> Result<Seen, BoxError> {
        self.read(cache, Way::Through).await
    }

    async fn fresh(&self, cache: &Cache<D::Source>) -> Result<Seen, BoxError> {
        self.read(cache, Way::Past).await
    }
}

/// What a reader is given, in a form in which two of them can be compared: the stored form, as JSON.
///
/// Maps are equal whatever the order of their entries. Sets are lists in JSON, and equal only in the same order: store an
/// ordered one.
#[derive(Clone)]
pub struct Seen(Shown);

#[derive(Clone)]
enum Shown {
    Absent,
    Json(Value),
    /// What JSON can't show, such as a map whose keys aren't texts: as it would be stored.
    Bytes(Vec<u8>),
}

impl Seen {
    pub(super) fn of<D: Dataset>(accessor: &Accessor<D>, value: Option<&Answer<D>>) -> Self {
        let Some(value) = value else {
            return Self(Shown::Absent);
        };
        // Converting and serializing are the user's code.
        let json = catch_unwind(AssertUnwindSafe(|| {
            let stored = D::Form::to_stored(D::Tier::value(value)).ok()?;
            serde_json::to_value(stored).ok()
        }));
        Self(match json {
            Ok(Some(json)) => Shown::Json(json),
            _ => {
                let mut entry = BytesMut::new();
                let key = Keys::one("seen").expect("it is a legal key");
                // What can't be stored shows nothing, and is equal to its like.
                let _ = accessor.seal(
                    key.get(0),
                    Some(value),
                    SystemTime::UNIX_EPOCH,
                    Duration::ZERO,
                    &mut entry,
                );
                Shown::Bytes(entry.to_vec())
            }
        })
    }

    /// Whether it is that there is nothing.
    pub const fn is_absent(&self) -> bool {
        matches!(self.0, Shown::Absent)
    }

    /// Where this, which was cached, differs from what is true; nothing if they are equal.
    pub fn differences(&self, fresh: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        match (&self.0, &fresh.0) {
            (Shown::Absent, Shown::Absent) => {}
            (Shown::Json(cached), Shown::Json(fresh)) => {
                compare("", Some(cached), Some(fresh), &mut differences);
            }
            (Shown::Bytes(cached), Shown::Bytes(fresh)) if cached == fresh => {}
            (cached, fresh) => differences.push(Difference {
                path: String::new(),
                cached: cached.to_string(),
                fresh: fresh.to_string(),
            }),
        }
        differences
    }
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.differences(other).is_empty()
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Json(value) => value.fmt(f),
            Self::Bytes(entry) => write!(f, "{} bytes that JSON can't show", entry.len()),
        }
    }
}

/// One place in which a cached value isn't what the source has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Where, such as `reactions[2].emoji`; empty for the value as a whole.
    pub path: String,
    /// What is cached there, as JSON, or `absent`.
    pub cached: String,
    /// What the source has there.
    pub fresh: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            cached,
            fresh,
        } = self;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        write!(f, "cached {cached}, true {fresh}")
    }
}

/// Adds each place in which they differ, the deepest that tells it.
fn compare(path: &str, cached: Option<&Value>, fresh: Option<&Value>, into: &mut Vec<Difference>) {
    match (cached, fresh) {
        (Some(cached), Some(fresh)) if cached == fresh => {}
        (Some(Value::Object(cached)), Some(Value::Object(fresh))) => {
            let added = fresh.keys().filter(|name| !cached.contains_key(*name));
            for name in cached.keys().chain(added) {
                let path = match path {
                    "" => name.clone(),
                    _ => format!("{path}.{name}"),
                };
                compare(&path, cached.get(name), fresh.get(name), into);
            }
        }
        (Some(Value::Array(cached)), Some(Value::Array(fresh))) => {
            for place in 0..cached.len().max(fresh.len()) {
                let path = format!("{path}[{place}]");
                compare(&path, cached.get(place), fresh.get(place), into);
            }
        }
        (cached, fresh) => {
            let shown = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
            into.push(Difference {
                path: path.to_owned(),
                cached: shown(cached),
                fresh: shown(fresh),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(cached: Value, fresh: Value, expected: &[&str]) {
        let seen = |value| Seen(Shown::Json(value));
        let differences = seen(cached).differences(&seen(fresh));
        let shown: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn differences_are_named_by_their_place() {
        check(json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1}), &[]);
        check(
            json!({"name": "Ada", "tags": ["x"]}),
            json!({"name": "Augusta", "tags": ["x", "y"]}),
            &[
                r#"name: cached "Ada", true "Augusta""#,
                r#"tags[1]: cached absent, true "y""#,
            ],
        );
        check(
            json!({"a": {"b": 1}}),
            json!({"a": {"c": 1}}),
            &["a.b: cached 1, true absent", "a.c: cached absent, true 1"],
        );
        check(json!(1), json!([1]), &["cached 1, true [1]"]);
    }

    #[test]
    fn absence_differs_from_a_value() {
        let absent = Seen(Shown::Absent);
        let null = Seen(Shown::Json(Value::Null));
        assert_eq!(absent, absent.clone());
        assert_eq!(
            absent.differences(&null)[0].to_string(),
            "cached absent, true null"
        );
    }

    #[test]
    fn what_json_cannot_show_is_compared_as_stored() {
        let bytes = |bytes: &[u8]| Seen(Shown::Bytes(bytes.to_vec()));
        assert_eq!(bytes(b"a"), bytes(b"a"));
        assert_ne!(bytes(b"a"), bytes(b"b"));
    }
}
