//! Entries: envelope, codec, compression.
