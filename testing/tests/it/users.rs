//! A source whose users are read by two data sets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_core::{Dataset, FlushOn, Lifetime, NoTier, Plain, RequestTier, Rows, Source};

/// Names by id.
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<Inner>);

#[derive(Default)]
struct Inner {
    names: Mutex<BTreeMap<u64, String>>,
}

impl Names {
    pub(crate) fn of(ids: impl IntoIterator<Item = u64>) -> Self {
        let names = Self::default();
        for id in ids {
            names.write(id, &format!("user {id}"));
        }
        names
    }

    /// Names somebody, and tells nobody.
    pub(crate) fn write(&self, id: u64, name: &str) {
        let mut names = self.0.names.lock().unwrap();
        names.insert(id, name.to_owned());
    }

    pub(crate) fn load(&self, ids: Vec<u64>) -> Vec<(u64, String)> {
        let names = self.0.names.lock().unwrap();
        let found = ids.into_iter();
        found
            .filter_map(|id| Some((id, names.get(&id)?.clone())))
            .collect()
    }
}

impl Source for Names {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        // Others have their turn meanwhile, as with a pool.
        tokio::task::yield_now().await;
        Ok(Box::new(self.clone()))
    }
}

macro_rules! names {
    ($(#[$doc:meta])* $name:ident = $text:literal, $tier:ty $(, $const:ident: $type:ty = $value:expr)*) => {
        $(#[$doc])*
        pub(crate) enum $name {}

        impl Dataset for $name {
            const NAME: &'static str = $text;
            const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
            $(const $const: $type = $value;)*
            type Source = Names;
            type Key = u64;
            type Value = String;
            type Form = Plain;
            type Tier = $tier;
            type Error = Infallible;

            fn flush_on(plan: &mut FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load(names: &mut Names, ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
                Ok(names.load(ids))
            }
        }
    };
}

names!(
    /// A name by id.
    Name = "name_by_id",
    NoTier,
    BULK: &'static str = "names_by_id"
);

names!(
    /// The same, kept for a request.
    Shown = "shown_name",
    RequestTier
);
