//! A tier that keeps what changes is what there is none of.

use std::sync::Arc;

use larder::Tier;
use larder_ui::User;

enum ForTenMinutes {}

impl Tier<User> for ForTenMinutes {
    type Held = Arc<User>;
}

fn main() {}
