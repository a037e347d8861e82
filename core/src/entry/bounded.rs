//! A deserializer around another one, that bounds what hostile input can make it do.
//!
//! Codecs believe what the bytes say. Nested lists overflow the stack, a list that claims 2^64 elements of no size
//! never ends, a list of one-byte elements that are large in memory fills it. [`Bounded`] stands between a codec and
//! the value's type, whatever the codec, and
//!
//! * refuses to go deeper than [`DEPTH`] levels,
//! * pays for each element of a list or map from an amount of room that `max_value` fixes, before the element is decoded,
//! * never repeats a large claim as a size hint (some collections reserve whatever they are told),
//! * lends texts and bytes from the input where a codec would rather allocate what the length claims.
//!
//! What it can't bound: the size of what a type keeps inline. A boxed array of 8 KB behind an `Option` of one byte is
//! 8 KB each time.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

/// How deep values may be nested: lists, maps, structs, enums, options and newtypes count one level each.
pub(super) const DEPTH: u16 = 128;

/// What the elements of all lists and maps of one value may take in memory, however small `max_value` is.
const ROOM: usize = 16 << 20;

/// What they may take beyond that for each byte of `max_value`.
///
/// Every element with a size is written as a byte at least, so that what is sealed can be opened, unless its elements
/// are larger than this in memory and next to nothing on the wire.
const ROOM_PER_BYTE: usize = 32;

/// The least an element is charged with, so that lists of elements without size end.
const LEAST: usize = 16;

/// The largest size hint handed on.
const HINT: usize = 1024;

/// What is left of the room for elements, for one value.
#[derive(Debug)]
pub(super) struct Room(Cell<usize>);

impl Room {
    pub(super) fn new(max_value: usize) -> Self {
        let room = max_value.saturating_mul(ROOM_PER_BYTE);
        Self(Cell::new(room.saturating_add(ROOM)))
    }

    #[inline]
    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        match self.0.get().checked_sub(bytes) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(E::custom("lists with too many elements")),
        }
    }

    #[inline]
    fn give_back(&self, bytes: usize) {
        self.0.set(self.0.get() + bytes);
    }
}

/// What an element of this type is charged with.
#[inline]
fn charge<V>() -> usize {
    size_of::<V>().max(LEAST)
}

/// Something of serde's, with bounds: a deserializer, a visitor, an access, a seed.
#[derive(Clone, Copy)]
pub(super) struct Bounded<'r, T> {
    inner: T,
    room: &'r Room,
    /// How many levels may follow.
    depth: u16,
    /// Whether the elements below belong to a list or map, whose length is the input's choice.
    counted: bool,
}

impl<'r, T> Bounded<'r, T> {
    pub(super) fn new(inner: T, room: &'r Room) -> Self {
        Self {
            inner,
            room,
            depth: DEPTH,
            counted: false,
        }
    }

    /// The same bounds around something else.
    #[inline]
    fn with<U>(&self, inner: U) -> Bounded<'r, U> {
        Bounded {
            inner,
            room: self.room,
            depth: self.depth,
            counted: self.counted,
        }
    }

    /// This deserializer, and the visitor one level deeper.
    #[inline]
    fn descend<V, E: Error>(self, visitor: V, counted: bool) -> Result<(T, Bounded<'r, V>), E> {
        match self.depth.checked_sub(1) {
            Some(depth) => {
                let visitor = Bounded {
                    inner: visitor,
                    room: self.room,
                    depth,
                    counted,
                };
                Ok((self.inner, visitor))
            }
            None => Err(E::custom("nested too deeply")),
        }
    }

    #[inline]
    fn pay<V, E: Error>(&self) -> Result<(), E> {
        if self.counted {
            self.room.take(charge::<V>())
        } else {
            Ok(())
        }
    }

    /// Gives back what was paid for an element, if it turned out that there is no more.
    #[inline]
    fn refund<V>(&self, paid_for: &Option<V>) {
        if self.counted && paid_for.is_none() {
            self.room.give_back(charge::<V>());
        }
    }

    #[inline]
    fn hint(&self, claimed: Option<usize>) -> Option<usize> {
        claimed.map(|length| length.min(HINT))
    }
}

macro_rules! scalars {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = D::Error;

    scalars! {
        deserialize_bool deserialize_char
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64
        deserialize_str deserialize_bytes deserialize_unit
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        // bincode reserves what the length claims for an owned text, and only compares it for a lent one.
        self.inner.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_bytes(visitor)
    }

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, true)?;
        inner.deserialize_any(visitor)
    }

    #[inline]
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, false)?;
        inner.deserialize_ignored_any(visitor)
    }

    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_identifier(visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, false)?;
        inner.deserialize_option(visitor)
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, false)?;
        inner.deserialize_newtype_struct(name, visitor)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, true)?;
        inner.deserialize_seq(visitor)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, false)?;
        inner.deserialize_tuple(length, visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, false)?;
        inner.deserialize_tuple_struct(name, length, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, true)?;
        inner.deserialize_map(visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, false)?;
        inner.deserialize_struct(name, fields, visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.descend(visitor, false)?;
        inner.deserialize_enum(name, variants, visitor)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visits {
    ($($method:ident: $value:ty)*) => {$(
        #[inline]
        fn $method<E: Error>(self, value: $value) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Bounded<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visits! {
        visit_bool: bool visit_char: char
        visit_i8: i8 visit_i16: i16 visit_i32: i32 visit_i64: i64 visit_i128: i128
        visit_u8: u8 visit_u16: u16 visit_u32: u32 visit_u64: u64 visit_u128: u128
        visit_f32: f32 visit_f64: f64
        visit_str: &str visit_borrowed_str: &'de str visit_string: String
        visit_bytes: &[u8] visit_borrowed_bytes: &'de [u8] visit_byte_buf: Vec<u8>
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    #[inline]
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let inner = self.with(inner);
        self.inner.visit_some(inner)
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let inner = self.with(inner);
        self.inner.visit_newtype_struct(inner)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.inner.visit_seq(access)
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.inner.visit_map(access)
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.inner.visit_enum(access)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        let inner = self.with(inner);
        self.inner.deserialize(inner)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.pay::<S::Value, _>()?;
        let seed = self.with(seed);
        let element = self.inner.next_element_seed(seed)?;
        self.refund(&element);
        Ok(element)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint(self.inner.size_hint())
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.pay::<S::Value, _>()?;
        let seed = self.with(seed);
        let key = self.inner.next_key_seed(seed)?;
        self.refund(&key);
        Ok(key)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.pay::<S::Value, _>()?;
        let seed = self.with(seed);
        self.inner.next_value_seed(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint(self.inner.size_hint())
    }
}

impl<'r, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'r, A> {
    type Error = A::Error;
    type Variant = Bounded<'r, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let bounds = self.with(());
        let (value, variant) = self.inner.variant_seed(bounds.with(seed))?;
        Ok((value, bounds.with(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.newtype_variant_seed(seed)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.with(visitor);
        self.inner.tuple_variant(length, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.with(visitor);
        self.inner.struct_variant(fields, visitor)
    }
}

/// The value that this deserializer holds, within bounds.
#[inline]
pub(super) fn deserialize<'de, T, D>(deserializer: D, max_value: usize) -> Result<T, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let room = Room::new(max_value);
    T::deserialize(Bounded::new(deserializer, &room))
}
