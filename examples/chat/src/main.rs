//! The example service.
fn main() {}
