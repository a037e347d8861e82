//! Keys: what a data set's key function makes of its arguments.
//!
//! A key reads `prefix/name:part:part`. The map from arguments to key is injective: texts are percent-escaped, so that
//! no part can contain the `:` between parts, and a digest is a cryptographic hash. The prefix is added here, in
//! [`Keys::push`], and taken off here, in [`Key::without_prefix`]; nothing else in larder knows it is there.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use super::{Error, ErrorKind, Prefix, Result};

/// The longest key in bytes, with its prefix: memcached's limit.
pub const MAX_KEY: usize = 250;

/// Bytes of a digest: 160 bits of BLAKE3, enough against texts that an attacker chooses.
const DIGEST: usize = 20;

/// Something that can be part of a key.
///
/// Implement it by writing one part, or several, with the [`KeyWriter`]; two values must write the same only if they
/// are equal. Normalising (case, blanks) belongs in the type's constructor, so that the key and the loader see the
/// same. It is not `Display`, because what reads well is rarely injective.
///
/// ```
/// use larder_core::{KeyPart, KeyWriter, Keys, Prefix};
///
/// #[derive(Clone, PartialEq, Eq, Hash)]
/// struct Email(String);
///
/// impl KeyPart for Email {
///     fn write(&self, key: &mut KeyWriter<'_>) {
///         key.digest(self.0.as_bytes()); // people choose their addresses, of any length
///     }
/// }
///
/// let mut keys = Keys::new();
/// keys.push(Prefix::new("git-3f2a91c")?, "user_by_email", &(7_u32, Email("bob@example.com".into())))?;
/// keys.push(Prefix::new("git-3f2a91c")?, "stream", &(7_u32, "a:b c"))?;
/// assert!(keys.get(0).as_str().starts_with("git-3f2a91c/user_by_email:7:"));
/// assert_eq!(keys.get(1).as_str(), "git-3f2a91c/stream:7:a%3Ab%20c");
/// # Ok::<(), larder_core::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be part of a key",
    note = "for a type of your own write `#[derive(larder::KeyPart)]`; a part is an integer, a `bool`, a `char`, a text, a \
            `Uuid` (feature `uuid`), an enum without data, or made of such parts",
    note = "it isn't `Display`, because what reads well may be the same for two values"
)]
pub trait KeyPart {
    /// Whether this is text as people choose it: as it is it may be of any length, so that a key template says what
    /// becomes of it.
    #[doc(hidden)]
    const TEXT: bool = false;

    /// Writes this value.
    fn write(&self, key: &mut KeyWriter<'_>);
}

/// Writes the parts of one key; what it writes is always legal.
pub struct KeyWriter<'a> {
    text: &'a mut SmallVec<[u8; INLINE_TEXT]>,
    accessor: &'a str,
    parts: u32,
    hidden: u64,
}

impl fmt::Debug for KeyWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyWriter")
            .field("accessor", &self.accessor)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

impl KeyWriter<'_> {
    /// A part that is an integer.
    pub fn integer(&mut self, value: impl itoa::Integer) {
        self.begin_part();
        self.text
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// A part that is a text; bytes outside `[A-Za-z0-9._@+-]` are percent-escaped.
    ///
    /// A key is at most [`MAX_KEY`] bytes: for texts that people choose, [`KeyWriter::digest`] always fits.
    pub fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// A part that is any bytes, escaped like a text.
    pub fn bytes(&mut self, value: &[u8]) {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        self.begin_part();
        for &byte in value {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'@' | b'+' | b'-' => {
                    self.text.push(byte);
                }
                _ => self.text.extend_from_slice(&[
                    b'%',
                    HEX[usize::from(byte >> 4)],
                    HEX[usize::from(byte & 15)],
                ]),
            }
        }
    }

    /// A part that is the digest of any bytes: BLAKE3 cut to 160 bits, 27 characters.
    ///
    /// The data set's name and the part's position are hashed along, so that equal texts in two places have different
    /// digests. What the digest hides also seeds the entry's tag: even a collision would be a miss.
    pub fn digest(&mut self, value: &[u8]) {
        self.begin_part();
        let mut hasher = blake3::Hasher::new_derive_key("larder key digest 1");
        for field in [self.accessor.as_bytes(), &self.parts.to_le_bytes(), value] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        let mut characters = [0; DIGEST.div_ceil(3) * 4];
        let length = URL_SAFE_NO_PAD
            .encode_slice(&hasher.finalize().as_bytes()[..DIGEST], &mut characters)
            .expect("the buffer has room for the digest");
        self.text.extend_from_slice(&characters[..length]);
        self.hidden =
            xxhash_rust::xxh3::xxh3_64_with_seed(value, self.hidden ^ u64::from(self.parts));
    }

    /// A part that is the [`digest`](Self::digest) of what this writes: for a text of any length, or many parts in the
    /// room of one.
    ///
    /// What two values write differs if they do, and so do their digests.
    pub fn digest_of(&mut self, part: &(impl KeyPart + ?Sized)) {
        let mut text = SmallVec::new();
        let mut writer = KeyWriter {
            text: &mut text,
            accessor: self.accessor,
            parts: self.parts,
            hidden: self.hidden,
        };
        part.write(&mut writer);
        self.hidden = writer.hidden;
        self.digest(&text);
    }

    /// A part that is one of a few fixed words, such as the variant of an enum, or the absence of an option.
    ///
    /// # Panics
    ///
    /// If the word isn't made of `[A-Za-z0-9._@+!=-]`.
    pub fn word(&mut self, word: &'static str) {
        assert!(
            word.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._@+!=-".contains(&byte)),
            "`{word}` can't be a word in a key"
        );
        self.begin_part();
        self.text.extend_from_slice(word.as_bytes());
    }

    fn begin_part(&mut self) {
        self.text.push(b':');
        self.parts += 1;
    }
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl KeyPart for $integer {
            fn write(&self, key: &mut KeyWriter<'_>) {
                key.integer(*self);
            }
        }
    )*};
}

integers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

impl KeyPart for bool {
    fn write(&self, key: &mut KeyWriter<'_>) {
        key.word(if *self { "true" } else { "false" });
    }
}

impl KeyPart for char {
    fn write(&self, key: &mut KeyWriter<'_>) {
        key.text(self.encode_utf8(&mut [0; 4]));
    }
}

impl KeyPart for str {
    const TEXT: bool = true;

    fn write(&self, key: &mut KeyWriter<'_>) {
        key.text(self);
    }
}

impl KeyPart for String {
    const TEXT: bool = true;

    fn write(&self, key: &mut KeyWriter<'_>) {
        key.text(self);
    }
}

#[cfg(feature = "uuid")]
impl KeyPart for uuid::Uuid {
    fn write(&self, key: &mut KeyWriter<'_>) {
        let mut characters = [0; uuid::fmt::Simple::LENGTH];
        key.text(self.simple().encode_lower(&mut characters));
    }
}

impl<T: KeyPart + ?Sized> KeyPart for &T {
    const TEXT: bool = T::TEXT;

    fn write(&self, key: &mut KeyWriter<'_>) {
        (**self).write(key);
    }
}

/// `None` is the word `!`, which no text can be; `Some` is the word `=` and then the value.
impl<T: KeyPart> KeyPart for Option<T> {
    const TEXT: bool = T::TEXT;

    fn write(&self, key: &mut KeyWriter<'_>) {
        match self {
            None => key.word("!"),
            Some(value) => {
                key.word("=");
                value.write(key);
            }
        }
    }
}

/// A data set without arguments has one key.
impl KeyPart for () {
    fn write(&self, _: &mut KeyWriter<'_>) {}
}

macro_rules! tuples {
    ($(($($name:ident)+))*) => {$(
        impl<$($name: KeyPart),+> KeyPart for ($($name,)+) {
            const TEXT: bool = $($name::TEXT)||+;

            #[expect(non_snake_case, reason = "the type's name serves as the variable's")]
            fn write(&self, key: &mut KeyWriter<'_>) {
                let ($($name,)+) = self;
                $($name.write(key);)+
            }
        }
    )*};
}

tuples!((A)(A B)(A B C)(A B C D)(A B C D E)(A B C D E F)(A B C D E F G)(A B C D E F G H));

/// Text kept without a heap allocation: one key of usual length.
const INLINE_TEXT: usize = 96;

/// A batch of keys in one buffer: no allocation per key, and none at all for one key of usual length.
///
/// ```
/// use larder_core::{Keys, Prefix};
///
/// let prefix = Prefix::new("v12")?;
/// let mut keys = Keys::new();
/// for id in [7_u64, 8, 7] {
///     keys.push(prefix, "message", &id)?;
/// }
/// assert_eq!(keys.iter().map(|key| key.as_str()).collect::<Vec<_>>(), ["v12/message:7", "v12/message:8", "v12/message:7"]);
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Keys {
    text: SmallVec<[u8; INLINE_TEXT]>,
    /// Where each key ends in `text`.
    ends: SmallVec<[u32; 2]>,
    /// What the digests of each key hide; empty while no key has a digest.
    hidden: SmallVec<[u64; 1]>,
}

impl Keys {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for this many keys of usual length.
    pub fn with_capacity(count: usize) -> Self {
        let mut keys = Self::default();
        if count > 1 {
            keys.text.reserve(count * INLINE_TEXT / 2);
            keys.ends.reserve(count);
        }
        keys
    }

    /// A batch of one raw key, such as a test or a tool has it.
    pub fn one(key: &str) -> Result<Self> {
        let mut keys = Self::new();
        keys.push_raw(key)?;
        Ok(keys)
    }

    /// Adds the key of these arguments of the data set `name`, under this prefix.
    ///
    /// Fails, and adds nothing, if the key would be longer than [`MAX_KEY`], or if the name isn't made of
    /// `[A-Za-z0-9._-]`.
    pub fn push(
        &mut self,
        prefix: Prefix,
        name: &str,
        arguments: &(impl KeyPart + ?Sized),
    ) -> Result<()> {
        let start = self.text.len();
        prefix.write(&mut self.text);
        self.text.push(b'/');
        self.push_parts(name, arguments, start)
    }

    /// Adds the name and the arguments to the key that begins at `start`, and ends it.
    fn push_parts(
        &mut self,
        name: &str,
        arguments: &(impl KeyPart + ?Sized),
        start: usize,
    ) -> Result<()> {
        // Without a branch per byte, since this is asked for every key.
        let legal = |byte: u8| {
            byte.is_ascii_alphanumeric() | (byte == b'.') | (byte == b'_') | (byte == b'-')
        };
        if !name
            .bytes()
            .fold(!name.is_empty(), |all, byte| all & legal(byte))
        {
            self.text.truncate(start);
            return Err(Error::new(
                ErrorKind::Key,
                format!(
                    "accessor `{}` can't have keys; its name must be made of A-Z a-z 0-9 . _ -",
                    name.escape_debug()
                ),
            ));
        }
        self.text.extend_from_slice(name.as_bytes());
        let mut writer = KeyWriter {
            text: &mut self.text,
            accessor: name,
            parts: 0,
            hidden: 0,
        };
        arguments.write(&mut writer);
        let hidden = writer.hidden;
        let length = self.text.len() - start;
        if length > MAX_KEY {
            self.text.truncate(start);
            return Err(too_long(name, length));
        }
        self.end_key(hidden);
        Ok(())
    }

    /// Adds the key of these arguments without a prefix: what [`Keys::push_under`] makes whole.
    ///
    /// Fails, and adds nothing, if it can't be a key.
    pub(crate) fn push_logical(
        &mut self,
        name: &str,
        arguments: &(impl KeyPart + ?Sized),
    ) -> Result<()> {
        let start = self.text.len();
        self.push_parts(name, arguments, start)
    }

    /// Adds a key that was made without a prefix, under this one.
    ///
    /// Fails, and adds nothing, if it would be too long to have been stored.
    pub(crate) fn push_under(&mut self, prefix: Prefix, logical: Key<'_>) -> Result<()> {
        let start = self.text.len();
        prefix.write(&mut self.text);
        self.text.push(b'/');
        self.text.extend_from_slice(logical.bytes);
        let length = self.text.len() - start;
        if length > MAX_KEY {
            self.text.truncate(start);
            return Err(too_long(logical.accessor(), length));
        }
        self.end_key(logical.hidden);
        Ok(())
    }

    /// These keys, made without a prefix, under this one.
    pub(crate) fn under(&self, prefix: Prefix) -> Self {
        let mut whole = Self::with_capacity(self.len());
        for key in self.iter() {
            // What is too long was never stored.
            let _ = whole.push_under(prefix, key);
        }
        whole
    }

    /// Adds all keys of another batch.
    pub(crate) fn append(&mut self, other: &Self) {
        self.text.reserve(other.text.len());
        for key in other.iter() {
            self.text.extend_from_slice(key.bytes);
            self.end_key(key.hidden);
        }
    }

    /// Adds a raw key, which must be 1 to [`MAX_KEY`] printable ASCII characters without blanks.
    pub fn push_raw(&mut self, key: &str) -> Result<()> {
        let reason = if key.is_empty() {
            "is empty".to_owned()
        } else if key.len() > MAX_KEY {
            format!("is {} bytes long, and {MAX_KEY} is the limit", key.len())
        } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            "has a character that isn't printable ASCII".to_owned()
        } else {
            self.text.extend_from_slice(key.as_bytes());
            self.end_key(0);
            return Ok(());
        };
        Err(Error::new(ErrorKind::Key, format!("the raw key {reason}")))
    }

    fn end_key(&mut self, hidden: u64) {
        let end = u32::try_from(self.text.len()).expect("a batch's keys fit into 4 GiB");
        self.ends.push(end);
        if hidden != 0 || !self.hidden.is_empty() {
            if self.hidden.is_empty() && self.ends.spilled() {
                self.hidden.reserve(self.ends.capacity());
            }
            self.hidden.resize(self.ends.len() - 1, 0);
            self.hidden.push(hidden);
        }
    }

    /// Keeps the first `count` keys.
    pub fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.hidden.truncate(count);
        self.text
            .truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    /// How many keys.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The key at this position.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[inline]
    pub fn get(&self, position: usize) -> Key<'_> {
        let start = match position {
            0 => 0,
            _ => self.ends[position - 1] as usize,
        };
        Key {
            bytes: &self.text[start..self.ends[position] as usize],
            hidden: self.hidden.get(position).copied().unwrap_or(0),
        }
    }

    /// The keys in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Key<'_>> {
        (0..self.len()).map(|position| self.get(position))
    }

    /// The keys at these positions, as a batch of their own.
    ///
    /// # Panics
    ///
    /// If a position has no key.
    pub fn select(&self, positions: impl IntoIterator<Item = usize>) -> Self {
        let positions = positions.into_iter();
        let mut keys = Self::with_capacity(positions.size_hint().0);
        for position in positions {
            let key = self.get(position);
            keys.text.extend_from_slice(key.bytes);
            keys.end_key(key.hidden);
        }
        keys
    }
}

fn too_long(accessor: &str, length: usize) -> Error {
    Error::new(
        ErrorKind::Key,
        format!(
            "the key of accessor `{accessor}` would be {length} bytes long, and {MAX_KEY} is the limit; \
             write long texts with KeyWriter::digest"
        ),
    )
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One key of a batch: printable ASCII without blanks, 1 to [`MAX_KEY`] bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key<'a> {
    bytes: &'a [u8],
    hidden: u64,
}

impl<'a> Key<'a> {
    /// The key as it goes over the wire.
    #[inline]
    pub fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The key as text.
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.bytes).expect("keys are ASCII")
    }

    /// The key as the data set sees it: `name:part:part`.
    pub fn without_prefix(self) -> &'a str {
        let key = self.as_str();
        key.split_once('/').map_or(key, |(_, rest)| rest)
    }

    /// The accessor whose key this is, if it was made without a prefix.
    pub(crate) fn accessor(self) -> &'a str {
        let key = self.as_str();
        key.split_once(':').map_or(key, |(accessor, _)| accessor)
    }

    /// A hash of the texts that this key's digests hide; 0 without digests. It seeds the entry's tag.
    pub fn hidden(self) -> u64 {
        self.hidden
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
