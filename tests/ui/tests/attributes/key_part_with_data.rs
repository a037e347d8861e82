//! How are two variants told apart?

#![allow(unused)]

#[derive(Clone, PartialEq, Eq, Hash, larder::KeyPart)]
enum Place {
    Nowhere,
    Street(u64),
}

fn main() {}
