//! Fields are checked by the compiler.

#![allow(unused)]

#[derive(larder::Entity)]
#[entity(set_based(topic, id))]
struct Message {
    #[entity(id)]
    id: u64,
    topik: String,
}

fn main() {}
