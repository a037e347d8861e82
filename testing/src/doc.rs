//! What the examples in the documentation read: not for anybody else.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_core::{Dataset, FlushOn, Lifetime, NoTier, Plain, Rows, Source};
use serde::{Deserialize, Serialize};

/// Users by their number.
#[derive(Clone, Debug, Default)]
pub struct Db(Arc<Mutex<Vec<User>>>);

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its number.
    pub id: u64,
    /// What it is called.
    pub name: String,
}

impl Db {
    /// Without users.
    pub fn new() -> Self {
        Self::default()
    }

    /// With users of these names, numbered from 0.
    pub fn of<const N: usize>(names: [&str; N]) -> Self {
        let named = |(id, name): (u64, &str)| User {
            id,
            name: name.to_owned(),
        };
        let users = (0..).zip(names).map(named).collect();
        Self(Arc::new(Mutex::new(users)))
    }

    /// Names a user otherwise, and tells nobody.
    pub fn rename(&self, id: u64, name: &str) {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.iter_mut().find(|user| user.id == id) {
            name.clone_into(&mut user.name);
        }
    }
}

impl Source for Db {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

/// A user by its number.
#[derive(Debug)]
pub enum UserById {}

impl Dataset for UserById {
    const NAME: &'static str = "user_by_id";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Db;
    type Key = u64;
    type Value = User;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(db: &mut Db, ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        let users = db.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = users.iter().filter(|user| ids.contains(&user.id));
        Ok(asked.map(|user| (user.id, user.clone())).collect())
    }
}
