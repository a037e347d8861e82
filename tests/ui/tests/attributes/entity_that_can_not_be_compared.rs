//! A change is found by comparing.

#![allow(unused)]

#[derive(larder::Entity)]
struct Message {
    #[entity(id)]
    id: u64,
    body: Body,
}

struct Body;

fn main() {}
