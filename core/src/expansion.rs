//! What the expansions of the macros call: ordinary code, so that an expansion stays short enough to be read.

use std::borrow::Borrow;
use std::hash::Hash;

#[cfg(feature = "axum")]
pub use axum_core::extract::FromRef;
use indexmap::IndexMap;
pub use linkme;
pub use std::marker::PhantomData;

use crate::contract::{KeyPart, KeyWriter, Keys, Result};
pub use crate::entry::fingerprint;
use crate::read::{Dataset, KeyOf};
use crate::write::Entity;
pub use crate::write::{LINKED, Linked};

/// An assertion about types, whose failure the compiler shows where it is demanded.
#[track_caller]
pub const fn demand(rule: bool, otherwise: &str) {
    if !rule {
        panic!("{}", otherwise);
    }
}

/// A result, taken apart where only its alias is known.
pub trait Outcome {
    /// What it answers.
    type Value;
    /// Why it doesn't.
    type Error;
}

impl<T, E> Outcome for Result<T, E> {
    type Value = T;
    type Error = E;
}

/// What a declaration of `flush_on` answers: a key, or several.
#[diagnostic::on_unimplemented(
    message = "`flush_on` answers `{Self}`, and this accessor's keys are `{K}`",
    label = "isn't a key of this accessor, nor several",
    note = "a key is the tuple of the function's arguments in their order, owned, without those that are skipped: answer \
            one, or an array, a `Vec` or an `Option` of them"
)]
pub trait IntoKeys<K> {
    /// All of them.
    type Keys: Iterator<Item = K>;

    /// All of them.
    fn into_keys(self) -> Self::Keys;
}

impl<K> IntoKeys<K> for K {
    type Keys = std::iter::Once<K>;

    fn into_keys(self) -> Self::Keys {
        std::iter::once(self)
    }
}

impl<K> IntoKeys<K> for Option<K> {
    type Keys = std::option::IntoIter<K>;

    fn into_keys(self) -> Self::Keys {
        self.into_iter()
    }
}

impl<K> IntoKeys<K> for Vec<K> {
    type Keys = std::vec::IntoIter<K>;

    fn into_keys(self) -> Self::Keys {
        self.into_iter()
    }
}

impl<K, const N: usize> IntoKeys<K> for [K; N] {
    type Keys = std::array::IntoIter<K, N>;

    fn into_keys(self) -> Self::Keys {
        self.into_iter()
    }
}

/// The keys of an image, as [`FlushOn::entity`](crate::FlushOn::entity) takes them, where a closure answers one or several.
pub fn keys_of<T: 'static, K: 'static, A: IntoKeys<K> + 'static>(
    of: impl Fn(&T) -> A + Clone + Send + Sync + 'static,
) -> impl Fn(&T) -> A::Keys + Clone + Send + Sync + 'static {
    move |image| of(image).into_keys()
}

/// The same where keys have arguments that no image tells: `whole` adds them.
pub fn keys_of_rest<T: 'static, R: 'static, K: 'static, A: IntoKeys<R> + 'static>(
    of: impl Fn(&T) -> A + Clone + Send + Sync + 'static,
    whole: fn(R) -> K,
) -> impl Fn(&T) -> Vec<K> + Clone + Send + Sync + 'static {
    move |image| of(image).into_keys().map(whole).collect()
}

/// The key of an id, where keys have arguments that no id tells.
pub fn key_of_rest<T: Entity, R: 'static, K: 'static>(
    of: impl Fn(&T::Id) -> R + Clone + Send + Sync + 'static,
    whole: fn(R) -> K,
) -> impl Fn(&T::Id) -> K + Clone + Send + Sync + 'static {
    move |id| whole(of(id))
}

/// An argument that a loader gets and no key has: it must not shape the value, so that any two are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skipped<T>(pub T);

impl<T> PartialEq for Skipped<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Skipped<T> {}

impl<T> Hash for Skipped<T> {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl<T> KeyPart for Skipped<T> {
    fn write(&self, _: &mut KeyWriter<'_>) {}
}

/// Keys by what they share beside their ids, as a bulk loader is called: once, unless somebody asked for several kinds at
/// once.
pub fn groups<K, G: Eq + Hash, Id>(
    keys: Vec<K>,
    split: impl Fn(K) -> (G, Id),
) -> impl Iterator<Item = (G, Vec<Id>)> {
    let mut groups: IndexMap<G, Vec<Id>, foldhash::fast::RandomState> = IndexMap::default();
    // For the one kind that there usually is; of many, each would have room for all.
    let mut room = keys.len();
    for key in keys {
        let (group, id) = split(key);
        let ids = groups.entry(group);
        ids.or_insert_with(|| Vec::with_capacity(std::mem::take(&mut room)))
            .push(id);
    }
    groups.into_iter()
}

/// An id as a read is given it: by itself or borrowed.
pub fn id<Id: Clone>(id: impl Borrow<Id>) -> Id {
    id.borrow().clone()
}

/// The keys of these ids, with what they share.
pub fn keys<Id: Clone, K>(
    ids: impl IntoIterator<Item = impl Borrow<Id>>,
    key: impl Fn(Id) -> K,
) -> Vec<K> {
    ids.into_iter().map(|id| key(id.borrow().clone())).collect()
}

/// Values with the ids that are in them.
pub fn by<V, Id>(values: Vec<V>, id: impl Fn(&V) -> Id) -> impl Iterator<Item = (Id, V)> {
    values.into_iter().map(move |value| (id(&value), value))
}

/// The value of a data set whose loader has one for every key.
pub fn always<V>(value: Option<V>) -> V {
    value.expect("its loader answers every key, and no absence is remembered")
}

/// A key as the data set sees it, `name:part:part`.
pub fn key_text<D: Dataset>(key: &D::Key) -> Result<String> {
    let mut keys = Keys::new();
    keys.push_logical(D::NAME, &KeyOf::<D>(key))?;
    Ok(keys.get(0).as_str().to_owned())
}

/// Asks for the shape of a field's type, by `(&Probe::<T>(PhantomData)).shape()`: where it can't be deserialized at all,
/// it isn't stored, and has the shape of nothing.
///
/// The method of `Probe` is found before that of `&Probe`, so that the compiler chooses by what the type can do.
#[derive(Debug)]
pub struct Probe<T>(pub std::marker::PhantomData<T>);

/// The shape of what can be deserialized.
pub trait Shaped {
    /// It; `None` if it can't be derived.
    fn shape(&self) -> Option<u64>;
}

impl<T: serde::de::DeserializeOwned> Shaped for Probe<T> {
    fn shape(&self) -> Option<u64> {
        fingerprint::<T>()
    }
}

/// The shape of what can't.
pub trait Unshaped {
    /// One for all.
    fn shape(&self) -> Option<u64>;
}

impl<T> Unshaped for &Probe<T> {
    fn shape(&self) -> Option<u64> {
        Some(0)
    }
}

/// The shape of an entity, of the text of its declaration and the shapes of its fields; `None` if one of them has none.
pub fn shape(declaration: &str, fields: &[Option<u64>]) -> Option<u64> {
    let seed = xxhash_rust::xxh3::xxh3_64(declaration.as_bytes());
    fields.iter().try_fold(seed, |seed, field| {
        Some(xxhash_rust::xxh3::xxh3_64_with_seed(
            &(*field)?.to_le_bytes(),
            seed,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_grouped_in_the_order_of_asking() {
        let keys = vec![(7, 'a'), (8, 'b'), (7, 'c')];
        let groups: Vec<_> = groups(keys, |(realm, id)| (realm, id)).collect();
        assert_eq!(groups, [(7, vec!['a', 'c']), (8, vec!['b'])]);
    }

    #[test]
    fn one_key_or_several_are_keys() {
        fn keys(of: impl IntoKeys<u8>) -> Vec<u8> {
            of.into_keys().collect()
        }
        assert_eq!(keys(7), [7]);
        assert_eq!(keys([7, 8]), [7, 8]);
        assert_eq!(keys(vec![7, 8]), [7, 8]);
        assert!(keys(None).is_empty());
    }

    #[test]
    fn skipped_arguments_are_equal_and_write_nothing() {
        assert_eq!(Skipped(1), Skipped(2));
        let mut keys = crate::Keys::new();
        keys.push_raw("v/a:7").unwrap();
        let prefix = crate::Prefix::new("v").unwrap();
        keys.push(prefix, "a", &(7, Skipped("x"))).unwrap();
        assert_eq!(keys.get(0).as_str(), keys.get(1).as_str());
    }

    #[test]
    #[expect(
        clippy::needless_borrow,
        reason = "the borrow is what makes the compiler choose"
    )]
    fn the_shape_of_an_entity_is_that_of_its_fields() {
        struct Opaque;
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        #[expect(dead_code, reason = "only its shape is asked for")]
        enum Untagged {
            Number(u8),
        }
        let number = (&Probe::<u8>(std::marker::PhantomData)).shape();
        let text = (&Probe::<String>(std::marker::PhantomData)).shape();
        assert_ne!(number, text);
        assert!(number.is_some() && text.is_some());
        assert_eq!(
            (&Probe::<Opaque>(std::marker::PhantomData)).shape(),
            Some(0)
        );
        assert_eq!((&Probe::<Untagged>(std::marker::PhantomData)).shape(), None);
        assert_ne!(shape("a", &[number]), shape("a", &[text]));
        assert_ne!(shape("a", &[number]), shape("b", &[number]));
        assert_eq!(shape("a", &[number, None]), None);
    }
}
