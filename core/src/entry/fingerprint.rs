//! Fingerprints: a hash of the shape that a type has for serde.
//!
//! Positional codecs don't notice that a type changed: with two texts swapped, nearly every old entry decodes to a wrong
//! value. So the shape is hashed, and the hash seeds each entry's tag. No derive is needed: `T::deserialize` is run
//! against a [`Tracer`] that hands out dummies and records what was asked for, in which order, under which names.
//!
//! One run takes one path: each enum it meets becomes one of its variants. Runs are repeated, each towards a variant
//! that wasn't seen, until every variant was. A type that appears in itself is recorded once, and ended as quickly as
//! it can be where it appears again. Some types refuse dummies, since they validate; they are offered a few others.
//!
//! There is no fingerprint (`None`) for types that ask a codec what is there (`flatten`, `untagged`, `tag`, JSON values:
//! those that positional codecs can't read either), for types that refuse all dummies, and for types so large or odd that
//! the tracer's patience ends.

use std::any::type_name;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::catch_unwind;

use serde::de::value::{BorrowedStrDeserializer, U32Deserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use xxhash_rust::xxh3::xxh3_64;

/// How often a type is run at most: once for each variant of its enums, and once for each dummy that was refused.
const RUNS: usize = 2_000;

/// How much all runs together may ask for.
const STEPS: usize = 1_000_000;

/// How deep a run may go. Types aren't written this deep; reaching it means that a type contains itself without end.
const DEPTH: usize = 64;

/// A hash of the shape that this type has for serde: names, order and types of fields, names and order of variants, all
/// the way down. `None` where it can't be derived; then the accessor has to say `schema = N`.
///
/// Names of structs and enums don't count, so that a type can be renamed, and types that write the same bytes (`String`,
/// `Box<str>`, a borrowed twin) have one fingerprint. What a value *means* isn't in its shape: when metres become feet,
/// raise the accessor's revision.
///
/// The type's `Deserialize` runs a few times, which takes microseconds: do it once for each type.
///
/// ```
/// use larder_core::entry::fingerprint;
///
/// #[derive(serde::Deserialize)]
/// struct Before { first: String, last: String }
/// #[derive(serde::Deserialize)]
/// struct After { last: String, first: String }
///
/// assert_ne!(fingerprint::<Before>(), fingerprint::<After>());
/// assert!(fingerprint::<Before>().is_some());
/// ```
pub fn fingerprint<T: Deserialize<'static>>() -> Option<u64> {
    // A type's own code may panic on a dummy it didn't expect; then there is no fingerprint.
    catch_unwind(trace::<T>).ok().flatten()
}

fn trace<T: Deserialize<'static>>() -> Option<u64> {
    let trace = RefCell::new(Trace::default());
    trace.borrow_mut().steps = STEPS;
    for _ in 0..RUNS {
        let known = trace.borrow_mut().begin();
        let run = T::deserialize(Tracer {
            trace: &trace,
            depth: 0,
        });
        let mut trace = trace.borrow_mut();
        match run {
            Ok(_) if !trace.hopeless => {
                if trace.commit() {
                    return Some(trace.hash());
                }
                // A run that found nothing new, though something is left to find, will find nothing the next time.
                if trace.variants_seen() == known {
                    return None;
                }
            }
            Err(Ended) if !trace.hopeless && trace.mend() => {}
            _ => return None,
        }
    }
    None
}

/// The run ended before its time: a type refused a dummy, or went too deep, or can't be traced at all.
#[derive(Debug)]
struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("larder only asks for the shape of this type")
    }
}

impl std::error::Error for Ended {}

impl de::Error for Ended {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// What a type asked for, as one byte of the recorded shape.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Ask {
    Bool = 1,
    Char,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Text,
    Bytes,
    Unit,
    Option,
    List,
    Map,
    Tuple,
    /// A node follows, by its number.
    Node,
    Ignored,
    UnitVariant,
    NewtypeVariant,
    TupleVariant,
    StructVariant,
    /// The end of what has a length.
    End,
}

/// A struct, tuple struct, newtype or enum.
#[derive(Debug)]
struct Node {
    /// Its fields or variants.
    names: &'static [&'static str],
    /// One branch for a struct, one for each variant of an enum.
    branches: Vec<Branch>,
    is_enum: bool,
}

/// A struct's inside, or one variant's.
#[derive(Debug, Default)]
struct Branch {
    /// What was asked for inside. Usually one text; more if a field's value decides what comes after it.
    shapes: Vec<Vec<u8>>,
    /// The nodes directly inside.
    children: HashSet<usize>,
    /// Ends nothing: choosing it to end a recursion led deeper.
    endless: bool,
}

/// Who asked: types have no identity without `'static`, but their visitors' names and the names of their fields tell
/// them apart well enough to know a recursion.
type Identity = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

/// A place where a scalar is asked for: the node around it (or the type itself), and the how many-th it is there.
type Place = (Option<(usize, usize)>, usize);

/// What is known after some runs, and the state of the present one.
#[derive(Default)]
struct Trace {
    nodes: Vec<Node>,
    numbers: HashMap<Identity, usize>,
    /// The shape of the type itself: usually one text, which names a node.
    root: Branch,
    /// Which dummy to offer where the first was refused.
    dummies: HashMap<Place, usize>,
    /// Structs that refuse to be read without their fields' names.
    by_name: HashSet<usize>,
    steps: usize,
    /// Something was asked for that has no shape, or patience ended.
    hopeless: bool,

    // The present run.
    /// The branches around the present place, from outside.
    open: Vec<Open>,
    /// Branches that were closed.
    closed: Vec<Open>,
    /// Nodes that this run met.
    met: HashSet<usize>,
    last_scalar: Option<(Place, usize)>,
    too_deep: bool,
}

/// A branch that is being recorded, or only run through.
struct Open {
    /// Node and branch; `None` is the type itself.
    branch: Option<(usize, usize)>,
    /// Whether it was met before in this run, so that it is only to be ended.
    quiet: bool,
    shape: Vec<u8>,
    children: HashSet<usize>,
    scalars: usize,
}

impl Open {
    fn new(branch: Option<(usize, usize)>, quiet: bool) -> Self {
        Self {
            branch,
            quiet,
            shape: Vec::new(),
            children: HashSet::new(),
            scalars: 0,
        }
    }
}

impl Trace {
    /// Begins a run; says how many variants were seen before it.
    fn begin(&mut self) -> usize {
        self.open.clear();
        self.open.push(Open::new(None, false));
        self.closed.clear();
        self.met.clear();
        self.last_scalar = None;
        self.too_deep = false;
        self.variants_seen()
    }

    fn variants_seen(&self) -> usize {
        let branches = self.nodes.iter().flat_map(|node| &node.branches);
        branches.filter(|branch| !branch.shapes.is_empty()).count()
    }

    /// Keeps what a run recorded; says whether nothing is left to be found.
    fn commit(&mut self) -> bool {
        self.open.truncate(1);
        let root = self.open.pop().expect("the root is open during a run");
        self.closed.push(root);
        for open in self.closed.drain(..) {
            let branch = match open.branch {
                None => &mut self.root,
                Some((node, branch)) => &mut self.nodes[node].branches[branch],
            };
            if !branch.shapes.contains(&open.shape) {
                branch.shapes.push(open.shape);
            }
            branch.children.extend(open.children);
        }
        let mut seen = HashSet::new();
        !self
            .root
            .children
            .iter()
            .any(|&node| self.has_more(node, &mut seen))
    }

    /// Whether a variant of this enum, or of one inside this node, wasn't seen.
    fn has_more(&self, node: usize, seen: &mut HashSet<usize>) -> bool {
        seen.insert(node)
            && self.nodes[node].branches.iter().any(|branch| {
                branch.shapes.is_empty()
                    || branch
                        .children
                        .iter()
                        .any(|&child| self.has_more(child, seen))
            })
    }

    /// After a run that failed: changes what made it fail, or says that there is nothing to change.
    fn mend(&mut self) -> bool {
        if self.too_deep {
            // Of the variants that were chosen to end a recursion, the innermost didn't.
            for open in self.open.iter().rev().filter(|open| open.quiet) {
                if let Some((node, branch)) = open.branch
                    && self.nodes[node].is_enum
                    && !self.nodes[node].branches[branch].endless
                {
                    self.nodes[node].branches[branch].endless = true;
                    return true;
                }
            }
            return false;
        }
        // A struct with hand-written code may want its fields' names, and ask for nothing before it gets them.
        if let Some(open) = self.open.last()
            && let Some((node, _)) = open.branch
            && open.scalars == 0
            && open.children.is_empty()
            && !self.nodes[node].is_enum
            && self.by_name.insert(node)
        {
            return true;
        }
        // Otherwise the last scalar was the one refused.
        let Some((place, offers)) = self.last_scalar else {
            return false;
        };
        let dummy = self.dummies.entry(place).or_default();
        *dummy += 1;
        *dummy < offers
    }

    fn hash(&self) -> u64 {
        fn number(number: usize, text: &mut Vec<u8>) {
            text.extend_from_slice(&(number as u64).to_le_bytes());
        }
        fn shapes(shapes: &[Vec<u8>], text: &mut Vec<u8>) {
            number(shapes.len(), text);
            for shape in shapes {
                number(shape.len(), text);
                text.extend_from_slice(shape);
            }
        }
        let mut text = Vec::new();
        shapes(&self.root.shapes, &mut text);
        for node in &self.nodes {
            text.push(u8::from(node.is_enum));
            number(node.names.len(), &mut text);
            for name in node.names {
                number(name.len(), &mut text);
                text.extend_from_slice(name.as_bytes());
            }
            for branch in &node.branches {
                shapes(&branch.shapes, &mut text);
            }
        }
        xxh3_64(&text)
    }

    fn here(&mut self) -> &mut Open {
        self.open.last_mut().expect("the root is open during a run")
    }

    fn give_up(&mut self) -> Ended {
        self.hopeless = true;
        Ended
    }

    fn record(&mut self, ask: Ask) -> Result<(), Ended> {
        self.steps = self.steps.saturating_sub(1);
        if self.steps == 0 {
            return Err(self.give_up());
        }
        self.here().shape.push(ask as u8);
        Ok(())
    }

    fn record_length(&mut self, ask: Ask, length: usize) -> Result<(), Ended> {
        self.record(ask)?;
        let length = (length as u64).to_le_bytes();
        self.here().shape.extend_from_slice(&length);
        Ok(())
    }

    /// Which of this many dummies to offer here.
    fn offer(&mut self, offers: usize) -> usize {
        let open = self.here();
        let place = (open.branch, open.scalars);
        open.scalars += 1;
        self.last_scalar = Some((place, offers));
        let dummy = self.dummies.get(&place).copied().unwrap_or(0);
        dummy.min(offers - 1)
    }

    fn is_quiet(&self) -> bool {
        self.open.last().is_some_and(|open| open.quiet)
    }

    /// Records that a node is asked for, and opens the branch of it that this run takes.
    fn enter(
        &mut self,
        identity: Identity,
        names: &'static [&'static str],
        is_enum: bool,
    ) -> Result<Entered, Ended> {
        let next = self.nodes.len();
        let node = *self.numbers.entry(identity).or_insert(next);
        if node == next {
            let branches = if is_enum { names.len() } else { 1 };
            self.nodes.push(Node {
                names,
                branches: std::iter::repeat_with(Branch::default)
                    .take(branches)
                    .collect(),
                is_enum,
            });
        }
        self.record_length(Ask::Node, node)?;
        self.here().children.insert(node);
        let quiet = self.is_quiet() || !self.met.insert(node);
        let branch = if is_enum {
            self.choose(node, quiet)?
        } else {
            0
        };
        let height = self.open.len();
        self.open.push(Open::new(Some((node, branch)), quiet));
        Ok(Entered {
            node,
            branch,
            height,
        })
    }

    /// The variant that this run takes.
    fn choose(&mut self, node: usize, quiet: bool) -> Result<usize, Ended> {
        let branches = &self.nodes[node].branches;
        let unseen = || branches.iter().position(|b| b.shapes.is_empty());
        let towards_more = || {
            branches.iter().position(|branch| {
                let mut seen = HashSet::from([node]);
                branch
                    .children
                    .iter()
                    .any(|&child| self.has_more(child, &mut seen))
            })
        };
        let ends = || {
            let known = branches
                .iter()
                .position(|b| !b.endless && !b.shapes.is_empty() && b.children.is_empty());
            known.or_else(|| branches.iter().position(|branch| !branch.endless))
        };
        let chosen = if quiet {
            ends()
        } else {
            unseen().or_else(towards_more).or_else(ends)
        };
        match chosen {
            Some(branch) => Ok(branch),
            None if branches.is_empty() => Err(self.give_up()),
            // Every variant leads deeper, so that what led here has to be chosen otherwise.
            None => {
                self.too_deep = true;
                Err(Ended)
            }
        }
    }

    /// Closes this branch. Not called when a run ends early: what stays open tells where.
    fn leave(&mut self, entered: &Entered) {
        // A type that goes on after an error leaves branches open inside.
        self.open.truncate(entered.height + 1);
        if let Some(open) = self.open.pop()
            && !open.quiet
        {
            self.closed.push(open);
        }
    }
}

/// A branch that was entered.
struct Entered {
    node: usize,
    branch: usize,
    /// How many branches are open around it.
    height: usize,
}

/// The deserializer that hands out dummies.
#[derive(Clone, Copy)]
struct Tracer<'t> {
    trace: &'t RefCell<Trace>,
    depth: usize,
}

impl Tracer<'_> {
    fn record(self, ask: Ask) -> Result<(), Ended> {
        self.trace.borrow_mut().record(ask)
    }

    fn record_length(self, ask: Ask, length: usize) -> Result<(), Ended> {
        self.trace.borrow_mut().record_length(ask, length)
    }

    fn scalar<T: Copy>(self, ask: Ask, dummies: &[T]) -> Result<T, Ended> {
        let mut trace = self.trace.borrow_mut();
        trace.record(ask)?;
        Ok(dummies[trace.offer(dummies.len())])
    }

    fn deeper(self) -> Result<Self, Ended> {
        if self.depth >= DEPTH {
            self.trace.borrow_mut().too_deep = true;
            return Err(Ended);
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }

    fn give_up<T>(self) -> Result<T, Ended> {
        Err(self.trace.borrow_mut().give_up())
    }

    /// A fixed or short run of elements.
    fn elements(self, count: usize) -> Result<Elements<'static, Self>, Ended> {
        Ok(Elements {
            tracer: self.deeper()?,
            left: count,
            names: &[],
        })
    }

    /// How many elements a list or map has: one, or none where only an end is wanted.
    fn some(self) -> usize {
        usize::from(!self.trace.borrow().is_quiet())
    }

    /// Enters the node that asked, and runs through the branch that is taken.
    fn node<V: Visitor<'static>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        is_enum: bool,
        inside: impl FnOnce(Self, &Entered) -> Result<V::Value, Ended>,
    ) -> Result<V::Value, Ended> {
        let identity = (type_name::<V>(), type_name::<V::Value>(), name, names);
        let inner = self.deeper()?;
        let entered = self.trace.borrow_mut().enter(identity, names, is_enum)?;
        let value = inside(inner, &entered)?;
        self.trace.borrow_mut().leave(&entered);
        Ok(value)
    }

    fn fields<V: Visitor<'static>>(
        self,
        names: &'static [&'static str],
        by_name: bool,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        let mut elements = Elements {
            tracer: self.deeper()?,
            left: names.len(),
            names,
        };
        let value = if by_name {
            visitor.visit_map(&mut elements)
        } else {
            visitor.visit_seq(&mut elements)
        }?;
        self.record(Ask::End)?;
        Ok(value)
    }
}

macro_rules! scalars {
    ($($method:ident: $ask:ident, $visit:ident [$($dummy:expr),*])*) => {$(
        fn $method<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
            visitor.$visit(self.scalar(Ask::$ask, &[$($dummy),*])?)
        }
    )*};
}

/// Texts that types parse: numbers, times, addresses, ids.
const TEXTS: &[&str] = &[
    "",
    "1",
    "a",
    "a@example.com",
    "2025-01-01T00:00:00Z",
    "2025-01-01T00:00:00",
    "2025-01-01",
    "00:00:00",
    "127.0.0.1",
    "127.0.0.1:80",
    "https://example.com/",
    "00000000-0000-4000-8000-000000000000",
    "UTC",
    "en",
    "1.0.0",
];

/// Bytes of the lengths that types insist on.
const BYTES: &[&[u8]] = &[
    &[0; 16],
    &[],
    &[0; 32],
    &[0; 4],
    &[0; 8],
    &[0; 20],
    &[0; 64],
];

impl Deserializer<'static> for Tracer<'_> {
    type Error = Ended;

    // One comes first, since some numbers refuse to be zero.
    scalars! {
        deserialize_bool: Bool, visit_bool [false, true]
        deserialize_char: Char, visit_char ['a', '0', 'A', ' ']
        deserialize_i8: I8, visit_i8 [1, 0, -1]
        deserialize_i16: I16, visit_i16 [1, 0, -1, 2025]
        deserialize_i32: I32, visit_i32 [1, 0, -1, 2025]
        deserialize_i64: I64, visit_i64 [1, 0, -1, 2025]
        deserialize_i128: I128, visit_i128 [1, 0, -1]
        deserialize_u8: U8, visit_u8 [1, 0, 16]
        deserialize_u16: U16, visit_u16 [1, 0, 2025]
        deserialize_u32: U32, visit_u32 [1, 0, 2025]
        deserialize_u64: U64, visit_u64 [1, 0, 2025]
        deserialize_u128: U128, visit_u128 [1, 0]
        deserialize_f32: F32, visit_f32 [1.0, 0.0, 0.5]
        deserialize_f64: F64, visit_f64 [1.0, 0.0, 0.5]
    }

    fn deserialize_str<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        visitor.visit_borrowed_str(self.scalar(Ask::Text, TEXTS)?)
    }

    fn deserialize_string<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        visitor.visit_borrowed_bytes(self.scalar(Ask::Bytes, BYTES)?)
    }

    fn deserialize_byte_buf<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.record(Ask::Option)?;
        if self.trace.borrow().is_quiet() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self.deeper()?)
        }
    }

    fn deserialize_unit<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.record(Ask::Unit)?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'static>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'static>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.node::<V>(name, &[], false, |inside, _| {
            visitor.visit_newtype_struct(inside)
        })
    }

    fn deserialize_seq<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.record(Ask::List)?;
        let value = visitor.visit_seq(&mut self.elements(self.some())?)?;
        self.record(Ask::End)?;
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'static>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.record_length(Ask::Tuple, length)?;
        let value = visitor.visit_seq(&mut self.elements(length)?)?;
        self.record(Ask::End)?;
        Ok(value)
    }

    fn deserialize_tuple_struct<V: Visitor<'static>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.node::<V>(name, &[], false, |inside, _| {
            inside.deserialize_tuple(length, visitor)
        })
    }

    fn deserialize_map<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.record(Ask::Map)?;
        let value = visitor.visit_map(&mut self.elements(self.some())?)?;
        self.record(Ask::End)?;
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'static>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.node::<V>(name, fields, false, |inside, entered| {
            let by_name = inside.trace.borrow().by_name.contains(&entered.node);
            inside.fields(fields, by_name, visitor)
        })
    }

    fn deserialize_enum<V: Visitor<'static>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.node::<V>(name, variants, true, |tracer, entered| {
            visitor.visit_enum(Variant {
                tracer,
                branch: entered.branch,
            })
        })
    }

    fn deserialize_ignored_any<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.record(Ask::Ignored)?;
        visitor.visit_unit()
    }

    fn deserialize_any<V: Visitor<'static>>(self, _: V) -> Result<V::Value, Ended> {
        self.give_up()
    }

    /// Names of fields and variants are handed out elsewhere; whoever asks for one here decides by what it is told.
    fn deserialize_identifier<V: Visitor<'static>>(self, _: V) -> Result<V::Value, Ended> {
        self.give_up()
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The elements of a list or tuple, the entries of a map, the fields of a struct.
struct Elements<'n, T> {
    tracer: T,
    left: usize,
    /// The names of the fields, if these are the fields of a struct.
    names: &'n [&'static str],
}

impl<T> Elements<'_, T> {
    fn next(&mut self) -> bool {
        let is_there = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_there
    }
}

impl<'t> SeqAccess<'static> for &mut Elements<'_, Tracer<'t>> {
    type Error = Ended;

    fn next_element_seed<S: DeserializeSeed<'static>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Ended> {
        if self.next() {
            seed.deserialize(self.tracer).map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<'t> MapAccess<'static> for &mut Elements<'_, Tracer<'t>> {
    type Error = Ended;

    fn next_key_seed<S: DeserializeSeed<'static>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Ended> {
        let position = self.names.len().wrapping_sub(self.left);
        if !self.next() {
            return Ok(None);
        }
        match self.names.get(position) {
            Some(name) => seed.deserialize(BorrowedStrDeserializer::new(name)),
            None => seed.deserialize(self.tracer),
        }
        .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'static>>(&mut self, seed: S) -> Result<S::Value, Ended> {
        seed.deserialize(self.tracer)
    }
}

/// One variant of an enum.
struct Variant<'t> {
    tracer: Tracer<'t>,
    branch: usize,
}

impl<'t> EnumAccess<'static> for Variant<'t> {
    type Error = Ended;
    type Variant = Tracer<'t>;

    fn variant_seed<S: DeserializeSeed<'static>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Tracer<'t>), Ended> {
        let number = u32::try_from(self.branch).map_err(|_| Ended)?;
        let number: U32Deserializer<Ended> = de::IntoDeserializer::into_deserializer(number);
        Ok((seed.deserialize(number)?, self.tracer))
    }
}

impl VariantAccess<'static> for Tracer<'_> {
    type Error = Ended;

    fn unit_variant(self) -> Result<(), Ended> {
        self.record(Ask::UnitVariant)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'static>>(self, seed: S) -> Result<S::Value, Ended> {
        self.record(Ask::NewtypeVariant)?;
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'static>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.record_length(Ask::TupleVariant, length)?;
        let value = visitor.visit_seq(&mut self.elements(length)?)?;
        self.record(Ask::End)?;
        Ok(value)
    }

    fn struct_variant<V: Visitor<'static>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Ended> {
        {
            let mut trace = self.trace.borrow_mut();
            trace.record_length(Ask::StructVariant, fields.len())?;
            for field in fields {
                let shape = &mut trace.here().shape;
                shape.extend_from_slice(&(field.len() as u64).to_le_bytes());
                shape.extend_from_slice(field.as_bytes());
            }
        }
        self.fields(fields, false, visitor)
    }
}
