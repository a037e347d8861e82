//! One data set twice: by traits, and by the attribute and the derive that write them.
//! `cargo run --example accessors_by_hand`
//!
//! Both have the same name, the same keys and the same layout, so that what one has stored the other finds. A program has
//! one of them: here each has a source of its own, over one store.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;

use larder::contract::{GetOptions, Lookup};
use larder::{Backend, BackendExt as _, Cache, Keys, Memory, MemoryConfig, Prefix, Rt, Source};

/// In place of a database: names, by town and number.
type Register = BTreeMap<(u32, u64), String>;

#[derive(Clone)]
struct Db<Way> {
    register: Arc<Register>,
    way: PhantomData<Way>,
}

#[derive(Clone)]
struct ByHand;

#[derive(Clone)]
struct ByAttribute;

impl<Way: Clone + Send + Sync + 'static> Source for Db<Way> {
    type Conn = Register;
    type Guard = Box<Register>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Register>, Infallible> {
        Ok(Box::new(Register::clone(&self.register)))
    }
}

mod by_hand {
    use std::convert::Infallible;
    use std::time::Duration;

    use larder::{
        Batch, Dataset, Entity, FieldBits, FieldSet, FlushOn, Lifetime, LoadError, NoTier, Plain,
        Reader, Rows,
    };
    use serde::{Deserialize, Serialize};

    use super::{ByHand, Db, Register};

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub(super) struct User {
        pub(super) id: u64,
        pub(super) town: u32,
        pub(super) name: String,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum UserField {
        Town,
        Name,
    }

    impl FieldSet for UserField {
        const ALL: &'static [Self] = &[Self::Town, Self::Name];

        fn name(self) -> &'static str {
            match self {
                Self::Town => "town",
                Self::Name => "name",
            }
        }
    }

    impl Entity for User {
        const NAME: &'static str = "user";
        type Id = u64;
        type Field = UserField;

        fn id(&self) -> u64 {
            self.id
        }

        fn diff(&self, other: &Self) -> FieldBits {
            FieldBits::of([
                (UserField::Town, self.town != other.town),
                (UserField::Name, self.name != other.name),
            ])
        }
    }

    pub(super) enum Residents {}

    impl Dataset for Residents {
        const NAME: &'static str = "resident";
        const KEY: &'static str = "resident:{town}:{ids}";
        const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
        type Source = Db<ByHand>;
        type Key = (u32, u64);
        type Value = User;
        type Form = Plain;
        type Tier = NoTier;
        type Error = Infallible;

        fn flush_on(plan: &mut FlushOn<Self>) {
            plan.entity([UserField::Town, UserField::Name], |user: &User| {
                [(user.town, user.id)]
            });
        }

        async fn load(db: &mut Register, keys: Vec<(u32, u64)>) -> Result<Rows<Self>, Infallible> {
            println!("  by hand: loads {keys:?}");
            let row = |(town, id)| {
                let name = db.get(&(town, id))?.clone();
                Some(((town, id), User { id, town, name }))
            };
            Ok(keys.into_iter().filter_map(row).collect())
        }
    }

    larder::dataset!(Residents);

    pub(super) async fn residents(
        reader: impl Reader<'_, Db<ByHand>>,
        town: u32,
        ids: &[u64],
    ) -> Result<Batch<u64, User>, LoadError<Infallible>> {
        let keys = ids.iter().map(|id| (town, *id));
        let found = larder::get_many::<Residents>(reader, keys).await?;
        Ok(found.map_keys(|(_, id)| id))
    }
}

mod by_attribute {
    use std::convert::Infallible;

    use larder::Entity;
    use serde::{Deserialize, Serialize};

    use super::{ByAttribute, Db, Register};

    #[derive(Clone, Debug, Entity, Serialize, Deserialize)]
    pub(super) struct User {
        #[entity(id)]
        pub(super) id: u64,
        pub(super) town: u32,
        pub(super) name: String,
    }

    #[larder::cached(
        many, source = Db<ByAttribute>, key = "resident:{town}:{ids}", by = |user| user.id, ttl = "1h",
        flush_on(User { town, name } => |user| (user.town, user.id)),
    )]
    pub(super) async fn residents(
        db: &mut Register,
        town: u32,
        ids: &[u64],
    ) -> Result<Vec<User>, Infallible> {
        println!("  by attribute: loads {ids:?} of {town}");
        let row = |id| {
            let name = db.get(&(town, id))?.clone();
            Some(User { id, town, name })
        };
        Ok(ids.iter().copied().filter_map(row).collect())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names = [((1, 7), "Ada"), ((1, 8), "Grace"), ((1, 9), "Emmy")];
    let register: Register = names.map(|(key, name)| (key, name.to_owned())).into();
    let register = Arc::new(register);
    let store: Arc<dyn Backend> = Arc::new(Memory::new(MemoryConfig::default(), Rt::new())?);
    let prefix = Prefix::new("both")?;

    let by_hand = Db::<ByHand> {
        register: Arc::clone(&register),
        way: PhantomData,
    };
    let by_hand = Cache::builder(by_hand).backend(Arc::clone(&store));
    let by_hand = by_hand.prefix(prefix).build().await?;
    let by_attribute = Db::<ByAttribute> {
        register,
        way: PhantomData,
    };
    let by_attribute = Cache::builder(by_attribute).backend(Arc::clone(&store));
    let by_attribute = by_attribute.prefix(prefix).build().await?;

    println!("7 and 8, by hand, and then 7, 8 and 9, by attribute:");
    let found = by_hand::residents(&by_hand, 1, &[7, 8]).await?;
    println!("  {} found", found.into_found().len());
    let found = by_attribute::residents(&by_attribute, 1, [7, 8, 9]).await?;
    println!("  {} found", found.into_found().len());
    let found = by_hand::residents(&by_hand, 1, &[9]).await?;
    println!(
        "9, by hand, who needn't load it: {} found",
        found.into_found().len()
    );

    println!("What the store has:");
    for id in 7..10_u64 {
        let mut keys = Keys::new();
        keys.push(by_hand.prefix(), "resident", &(1_u32, id))?;
        let key = keys.get(0);
        if let Lookup::Hit { value, .. } = store.get(key.as_str(), &GetOptions::default()).await? {
            println!("  {}: {}", key.without_prefix(), value.escape_ascii());
        }
    }

    println!("What a change of a user flushes:");
    print!("  {}", larder::plan::<by_hand::User>());
    print!("  {}", larder::plan::<by_attribute::User>());
    Ok(())
}
