//! What a value takes in memory, estimated from what serde shows of it.
//!
//! Serde doesn't say what is inline and what is on the heap, so this follows how the usual types are made: texts and
//! lists own one allocation, maps one per table, everything else is inline. A `Box` counts as inline, so that a tree of
//! boxes is seen as one large value, and what a type skips isn't seen.

use std::fmt;

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer, StdError,
};

/// What an allocator takes for itself, in the mean.
const ALLOCATION: usize = 16;

/// The size of a `String` or a `Vec`.
const LIST: usize = size_of::<Vec<u8>>();

/// The size of a `HashMap`, and how many places it keeps for each that is taken, in the mean.
const MAP: usize = 48;
const SLACK: usize = 2;

/// About how many bytes a value owns beside the `size` of its type, from its serialized form; more than there may be if
/// it refuses to be serialized.
///
/// ```
/// use larder_core::entry::owned_bytes;
///
/// let texts = vec!["a".repeat(100), "b".repeat(100)];
/// let owned = owned_bytes(&texts, size_of_val(&texts));
/// assert!((250..350).contains(&owned), "{owned}");
/// assert_eq!(owned_bytes(&(7_u64, true), size_of::<(u64, bool)>()), 0);
/// ```
pub fn owned_bytes<T: Serialize + ?Sized>(value: &T, size: usize) -> usize {
    // What doesn't fit into the type is behind a `Box`.
    let owned = |weight: Weight| weight.heap + weight.inline.saturating_sub(size);
    value.serialize(Scale).map_or(usize::MAX, owned)
}

/// The bytes of a part of a value: inside of what holds it, and on the heap.
#[derive(Clone, Copy, Default)]
struct Weight {
    inline: usize,
    heap: usize,
}

impl Weight {
    fn inline(bytes: usize) -> Self {
        Self {
            inline: bytes,
            heap: 0,
        }
    }

    fn allocation(inline: usize, bytes: usize) -> Self {
        let heap = match bytes {
            0 => 0,
            _ => bytes + ALLOCATION,
        };
        Self { inline, heap }
    }

    fn add(&mut self, other: Self) {
        self.inline += other.inline;
        self.heap += other.heap;
    }
}

/// The value refused to be serialized.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value refused to be serialized")
    }
}

impl StdError for Refused {}

impl serde::ser::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

struct Scale;

macro_rules! inline {
    ($($name:ident: $type:ty,)*) => {$(
        fn $name(self, _: $type) -> Result<Weight, Refused> {
            Ok(Weight::inline(size_of::<$type>()))
        }
    )*};
}

impl Serializer for Scale {
    type Ok = Weight;
    type Error = Refused;
    type SerializeSeq = Elements;
    type SerializeTuple = Fields;
    type SerializeTupleStruct = Fields;
    type SerializeTupleVariant = Fields;
    type SerializeMap = Elements;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Fields;

    inline! {
        serialize_bool: bool,
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_i128: i128,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
        serialize_u128: u128,
        serialize_f32: f32,
        serialize_f64: f64,
        serialize_char: char,
    }

    fn serialize_str(self, text: &str) -> Result<Weight, Refused> {
        Ok(Weight::allocation(LIST, text.len()))
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<Weight, Refused> {
        Ok(Weight::allocation(LIST, bytes.len()))
    }

    fn serialize_none(self) -> Result<Weight, Refused> {
        // Of what is absent serde shows nothing; in most types it is a text or a number.
        Ok(Weight::inline(LIST))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Weight, Refused> {
        let mut weight = value.serialize(self)?;
        if weight.heap == 0 {
            // A pointer has room to say that there is none; a number needs a word beside it.
            weight.inline += size_of::<usize>();
        }
        Ok(weight)
    }

    fn serialize_unit(self) -> Result<Weight, Refused> {
        Ok(Weight::default())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Weight, Refused> {
        Ok(Weight::default())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
    ) -> Result<Weight, Refused> {
        Ok(Weight::inline(size_of::<usize>()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Weight, Refused> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<Weight, Refused> {
        let mut weight = value.serialize(self)?;
        weight.inline += size_of::<usize>();
        Ok(weight)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements, Refused> {
        Ok(Elements {
            inline: LIST,
            slack: 1,
            bytes: 0,
        })
    }

    fn serialize_tuple(self, _: usize) -> Result<Fields, Refused> {
        Ok(Fields(Weight::default()))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Fields, Refused> {
        Ok(Fields(Weight::default()))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields, Refused> {
        Ok(Fields(Weight::inline(size_of::<usize>())))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Elements, Refused> {
        Ok(Elements {
            inline: MAP,
            slack: SLACK,
            bytes: 0,
        })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields, Refused> {
        Ok(Fields(Weight::default()))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields, Refused> {
        Ok(Fields(Weight::inline(size_of::<usize>())))
    }
}

/// What is in one allocation: the elements of a list or map.
struct Elements {
    inline: usize,
    /// Places for each element.
    slack: usize,
    bytes: usize,
}

impl Elements {
    fn element<T: Serialize + ?Sized>(&mut self, element: &T) -> Result<(), Refused> {
        let weight = element.serialize(Scale)?;
        self.bytes += weight.inline * self.slack + weight.heap;
        Ok(())
    }

    fn weight(self) -> Weight {
        Weight::allocation(self.inline, self.bytes)
    }
}

impl SerializeSeq for Elements {
    type Ok = Weight;
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, element: &T) -> Result<(), Refused> {
        self.element(element)
    }

    fn end(self) -> Result<Weight, Refused> {
        Ok(self.weight())
    }
}

impl SerializeMap for Elements {
    type Ok = Weight;
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        self.element(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.element(value)
    }

    fn end(self) -> Result<Weight, Refused> {
        Ok(self.weight())
    }
}

/// What lies side by side: the fields of a struct, a tuple or a variant.
struct Fields(Weight);

macro_rules! side_by_side {
    ($($trait:ident::$method:ident($($key:ty)?);)*) => {$(
        impl $trait for Fields {
            type Ok = Weight;
            type Error = Refused;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $key,)? value: &T) -> Result<(), Refused> {
                self.0.add(value.serialize(Scale)?);
                Ok(())
            }

            fn end(self) -> Result<Weight, Refused> {
                Ok(self.0)
            }
        }
    )*};
}

side_by_side! {
    SerializeTuple::serialize_element();
    SerializeTupleStruct::serialize_field();
    SerializeTupleVariant::serialize_field();
    SerializeStruct::serialize_field(&'static str);
    SerializeStructVariant::serialize_field(&'static str);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    struct User {
        id: u64,
        name: String,
        tags: Vec<String>,
        about: Option<Box<str>>,
    }

    /// The estimate is within these bounds of what the allocator would be asked for.
    #[track_caller]
    fn check<T: Serialize>(value: &T, asked_for: usize) {
        let owned = owned_bytes(value, size_of::<T>());
        let (least, most) = (asked_for * 3 / 4, asked_for * 2 + 2 * ALLOCATION);
        assert!((least..=most).contains(&owned), "{owned} for {asked_for}");
    }

    #[test]
    fn estimates_are_near_what_is_allocated() {
        check(&7_u64, 0);
        check(&"x".repeat(1_000), 1_000);
        check(&vec![1_u64; 1_000], 8_000);
        check(&vec![1_u8; 1_000], 1_000);
        check(&vec![(1_u32, 2_u32); 1_000], 8_000);
        check(&vec!["x".repeat(30); 100], 100 * (LIST + 30));
        let map: BTreeMap<u64, u64> = (0..1_000).map(|number| (number, number)).collect();
        check(&map, 20_000);
        let user = User {
            id: 7,
            name: "x".repeat(50),
            tags: vec!["y".repeat(20); 5],
            about: Some("z".repeat(500).into()),
        };
        check(&user, 50 + 5 * (LIST + 20) + 500);
        check(&vec![Some(1_u64); 100], 1_600);
    }

    #[test]
    fn what_is_behind_boxes_is_seen() {
        #[derive(Serialize)]
        enum Tree {
            Leaf(u64),
            Node(Box<Self>, Box<Self>),
        }
        fn tree(depth: u32) -> Tree {
            match depth {
                0 => Tree::Leaf(7),
                _ => Tree::Node(tree(depth - 1).into(), tree(depth - 1).into()),
            }
        }
        let boxes = (2 << 10) - 2;
        check(&tree(10), boxes * size_of::<Tree>() / 2);
        let chain = (0..1_000).fold(Tree::Leaf(7), |tail, _| {
            Tree::Node(Tree::Leaf(7).into(), tail.into())
        });
        assert!(owned_bytes(&chain, size_of::<Tree>()) > 16_000);
        check(&Box::new([7_u64; 32]), 256);
    }

    #[test]
    fn what_cannot_be_serialized_weighs_too_much() {
        struct Broken;
        impl Serialize for Broken {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("broken"))
            }
        }
        assert_eq!(owned_bytes(&vec![Broken], size_of::<Vec<Broken>>()), 0);
    }
}
