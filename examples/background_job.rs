//! A background job beside a service: it warms what the day will need, works through it in batches, reports what that
//! cost, writes, flushes, and ends in good order. `cargo run --example background_job`

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::{
    BuilderExt as _, Cache, Config, Dataset, Direct, FlushOn, Lifetime, NoTier, Plain, Rows, Source,
};

/// A ledger in place of a database.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<BTreeMap<u32, i64>>>);

impl Source for Ledger {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

/// The balance of an account, in cents.
enum Balance {}

impl Dataset for Balance {
    const NAME: &'static str = "balance";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(24 * 3600));
    type Source = Ledger;
    type Key = u32;
    type Value = i64;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(ledger: &mut Ledger, accounts: Vec<u32>) -> Result<Rows<Self>, Infallible> {
        let balances = ledger.0.lock().expect("no writer panics");
        let row = |account| Some((account, *balances.get(&account)?));
        Ok(accounts.into_iter().filter_map(row).collect())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ledger = Ledger::default();
    ledger
        .0
        .lock()
        .expect("no writer panics")
        .extend((0..10_000).map(|account| (account, 1_000)));

    let config = Config::new("memory://")?.env()?;
    let cache = Cache::builder(ledger.clone())
        .config(config)
        .register::<Balance>()
        .build()
        .await?;

    let (job, cost) = cache.tallied();
    larder::warm::<Balance>(&job, 0..10_000).await?; // through the loader, 2,000 at a time
    println!(
        "warmed in {} loads and {} trips",
        cost.loads(),
        cost.trips()
    );

    let mut total = 0;
    for batch in (0..10_000_u32).collect::<Vec<_>>().chunks(1_000) {
        let balances = larder::get_many::<Balance>(&job, batch).await?.require()?;
        total += balances.into_iter().sum::<i64>();
    }
    println!(
        "{total} cents in all; {} loads and {} trips by now",
        cost.loads(),
        cost.trips()
    );

    // A write computes from what the database says, not from the cache; then it flushes, in a task that nothing
    // cancels between the two.
    let write = tokio::spawn({
        let (ledger, job) = (ledger.clone(), job.clone());
        async move {
            let mut transaction = ledger.clone();
            let before = larder::get::<Balance>(Direct(&mut transaction), &7).await?;
            let after = before.unwrap_or(0) - 50;
            ledger.0.lock().expect("no writer panics").insert(7, after);
            job.flush::<Balance>([7]).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        }
    });
    write.await?.map_err(|error| error.to_string())?;
    println!(
        "account 7 has {:?} cents",
        larder::get::<Balance>(&job, &7).await?
    );

    cache.close(Duration::from_secs(5)).await; // fills and flushes under way first
    Ok(())
}
