//! A type for texts says what becomes of them in keys.

#![allow(unused)]

#[derive(Clone, PartialEq, Eq, Hash, larder::KeyPart)]
struct Email(String);

#[derive(Clone, PartialEq, Eq, Hash, larder::KeyPart)]
struct Place {
    #[key(lower)]
    street: String,
}

fn main() {}
