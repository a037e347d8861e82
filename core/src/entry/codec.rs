//! Codecs: how a value becomes payload bytes.
//!
//! All of them write into a buffer that is used again and again, refuse to write more than the accessor's `max_value`,
//! read within the bounds of [`super::bounded`], and refuse bytes that are left over.

use std::fmt;
#[cfg(any(feature = "rmp", feature = "json"))]
use std::io;

use serde::Serialize;
use serde::de::Deserialize;

use super::Rejection;
use crate::{Error, ErrorKind, Result};

/// How a value becomes payload bytes.
///
/// The variants are always there; [`Marshaller::new`](super::Marshaller::new) refuses one that isn't compiled in. Which
/// one suits which type, and what each does when a type changes, is in `docs/formats.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Postcard: small and fast, for types that serde's derive treats field by field.
    #[default]
    Postcard,
    /// MessagePack with field names: for types with serde's attributes, or read by two versions of a program at once.
    Rmp,
    /// The standard format of bincode 2.0.1, whose project is abandoned (RUSTSEC-2025-0141): for those who want it.
    Bincode,
    /// JSON: for entries that people or other programs read.
    Json,
}

impl Codec {
    /// The codec's name, which is also the name of the cargo feature that compiles it in.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postcard => "postcard",
            Self::Rmp => "rmp",
            Self::Bincode => "bincode",
            Self::Json => "json",
        }
    }

    pub(super) const fn is_compiled_in(self) -> bool {
        match self {
            Self::Postcard => cfg!(feature = "postcard"),
            Self::Rmp => cfg!(feature = "rmp"),
            Self::Bincode => cfg!(feature = "bincode"),
            Self::Json => cfg!(feature = "json"),
        }
    }

    /// Writes the value into the buffer, whose content it replaces.
    pub(super) fn encode<T: Serialize + ?Sized>(
        self,
        value: &T,
        max_value: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        buffer.clear();
        let mut sink = Sink {
            buffer,
            max_value,
            full: false,
        };
        match self.write(value, &mut sink) {
            Ok(()) => Ok(()),
            Err(_) if sink.full => Err(too_large::<T>(self, max_value)),
            Err(source) => Err(source),
        }
    }

    fn write<T: Serialize + ?Sized>(self, value: &T, sink: &mut Sink<'_>) -> Result<()> {
        match self {
            #[cfg(feature = "postcard")]
            Self::Postcard => postcard::serialize_with_flavor(value, sink)
                .map_err(|source| unwritable::<T>(self, source)),
            #[cfg(feature = "rmp")]
            Self::Rmp => value
                .serialize(&mut rmp_serde::Serializer::new(sink).with_struct_map())
                .map_err(|source| unwritable::<T>(self, source)),
            #[cfg(feature = "bincode")]
            Self::Bincode => bincode::serde::encode_into_writer(value, sink, BINCODE)
                .map_err(|source| unwritable::<T>(self, source)),
            #[cfg(feature = "json")]
            Self::Json => {
                serde_json::to_writer(sink, value).map_err(|source| unwritable::<T>(self, source))
            }
            #[cfg(not(feature = "postcard"))]
            Self::Postcard => self.refuse(value, sink),
            #[cfg(not(feature = "rmp"))]
            Self::Rmp => self.refuse(value, sink),
            #[cfg(not(feature = "bincode"))]
            Self::Bincode => self.refuse(value, sink),
            #[cfg(not(feature = "json"))]
            Self::Json => self.refuse(value, sink),
        }
    }

    /// The value of these bytes, never `None`; refused if they aren't exactly one, or go beyond the bounds.
    ///
    /// It answers what `open` answers, since large values are dear to move from one enum to another.
    pub(super) fn decode<'de, T: Deserialize<'de>>(
        self,
        payload: &'de [u8],
        max_value: usize,
    ) -> Result<Option<T>, Rejection> {
        match self {
            #[cfg(feature = "postcard")]
            Self::Postcard => {
                let mut deserializer = postcard::Deserializer::from_bytes(payload);
                match super::bounded::deserialize(&mut deserializer, max_value) {
                    Ok(value) if deserializer.finalize().is_ok_and(<[u8]>::is_empty) => {
                        Ok(Some(value))
                    }
                    _ => Err(Rejection::Undecodable),
                }
            }
            #[cfg(feature = "rmp")]
            Self::Rmp => {
                let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
                let value = super::bounded::deserialize(&mut deserializer, max_value);
                // The reader doesn't tell where it stands, so ask for one more value: only at the end is there no marker.
                match (value, bool::deserialize(&mut deserializer)) {
                    (Ok(value), Err(rmp_serde::decode::Error::InvalidMarkerRead(_))) => {
                        Ok(Some(value))
                    }
                    _ => Err(Rejection::Undecodable),
                }
            }
            #[cfg(feature = "bincode")]
            Self::Bincode => {
                let seed = BoundedSeed {
                    max_value,
                    value: std::marker::PhantomData,
                };
                match bincode::serde::seed_decode_from_slice(seed, payload, BINCODE) {
                    Ok((value, read)) if read == payload.len() => Ok(Some(value)),
                    _ => Err(Rejection::Undecodable),
                }
            }
            #[cfg(feature = "json")]
            Self::Json => {
                let mut deserializer = serde_json::Deserializer::from_slice(payload);
                match super::bounded::deserialize(&mut deserializer, max_value) {
                    Ok(value) if deserializer.end().is_ok() => Ok(Some(value)),
                    _ => Err(Rejection::Undecodable),
                }
            }
            #[cfg(not(feature = "postcard"))]
            Self::Postcard => nothing(payload, max_value),
            #[cfg(not(feature = "rmp"))]
            Self::Rmp => nothing(payload, max_value),
            #[cfg(not(feature = "bincode"))]
            Self::Bincode => nothing(payload, max_value),
            #[cfg(not(feature = "json"))]
            Self::Json => nothing(payload, max_value),
        }
    }

    #[cfg(not(all(
        feature = "postcard",
        feature = "rmp",
        feature = "bincode",
        feature = "json"
    )))]
    fn refuse<T: ?Sized>(self, _: &T, _: &mut Sink<'_>) -> Result<()> {
        Err(self.not_compiled_in())
    }

    pub(super) fn not_compiled_in(self) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!("the codec {self} isn't compiled in; turn on larder's feature `{self}`"),
        )
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The standard format, with a limit: without one, a damaged length aborts the process.
///
/// The limit counts what the bytes claim. Texts are lent from the payload, so a claim below it allocates nothing either.
#[cfg(feature = "bincode")]
const BINCODE: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ 1 << 30 }>,
> = bincode::config::standard().with_limit();

/// A value within bounds, for a codec that takes nothing but a seed.
#[cfg(feature = "bincode")]
struct BoundedSeed<T> {
    max_value: usize,
    value: std::marker::PhantomData<T>,
}

#[cfg(feature = "bincode")]
impl<'de, T: Deserialize<'de>> serde::de::DeserializeSeed<'de> for BoundedSeed<T> {
    type Value = T;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        super::bounded::deserialize(deserializer, self.max_value)
    }
}

/// What a codec that isn't compiled in reads.
#[cfg(not(all(
    feature = "postcard",
    feature = "rmp",
    feature = "bincode",
    feature = "json"
)))]
fn nothing<T>(_: &[u8], _: usize) -> Result<Option<T>, Rejection> {
    Err(Rejection::Foreign)
}

#[cold]
fn unwritable<T: ?Sized>(
    codec: Codec,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::with_source(
        ErrorKind::Codec,
        format!(
            "a value of type {} can't be written as {codec}; the codec `rmp` takes more of what serde can say",
            std::any::type_name::<T>()
        ),
        source,
    )
}

#[cold]
fn too_large<T: ?Sized>(codec: Codec, max_value: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "a value of type {} takes more than {max_value} bytes as {codec}; raise the accessor's max_value, \
             or store less",
            std::any::type_name::<T>()
        ),
    )
}

/// A buffer that takes so much and no more.
struct Sink<'b> {
    buffer: &'b mut Vec<u8>,
    max_value: usize,
    /// Whether something didn't fit.
    full: bool,
}

impl Sink<'_> {
    #[inline]
    fn extend(&mut self, bytes: &[u8]) -> bool {
        self.full |= bytes.len() > self.max_value.saturating_sub(self.buffer.len());
        if !self.full {
            self.buffer.extend_from_slice(bytes);
        }
        !self.full
    }
}

#[cfg(feature = "postcard")]
impl postcard::ser_flavors::Flavor for &mut Sink<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.full |= self.buffer.len() >= self.max_value;
        if self.full {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.buffer.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.extend(bytes) {
            Ok(())
        } else {
            Err(postcard::Error::SerializeBufferFull)
        }
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(any(feature = "rmp", feature = "json"))]
impl io::Write for Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.extend(bytes) {
            Ok(())
        } else {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "bincode")]
impl bincode::enc::write::Writer for &mut Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        if self.extend(bytes) {
            Ok(())
        } else {
            Err(bincode::error::EncodeError::UnexpectedEnd)
        }
    }
}
