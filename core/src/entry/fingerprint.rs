//! The shape of a type.

use serde::de::DeserializeOwned;

/// The fingerprint of a type's shape.
pub fn fingerprint<T: DeserializeOwned>() -> Option<u64> {
    Some(xxhash_rust::xxh3::xxh3_64(
        std::any::type_name::<T>().as_bytes(),
    ))
}
