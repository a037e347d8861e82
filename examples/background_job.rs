//! A background job beside a service: it warms what the day will need, works through it in batches, reports what that
//! cost, writes, flushes, and ends in good order. `cargo run --example background_job`

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::{BuilderExt as _, Cache, Config, Direct, Source};

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

/// The balances of accounts, in cents.
#[larder::cached(many, source = Ledger, key = "balance:{accounts}", ttl = "1d", by_hand)]
async fn balances(ledger: &mut Ledger, accounts: &[u32]) -> Result<Vec<(u32, i64)>, Infallible> {
    let balances = ledger.0.lock().expect("no writer panics");
    let row = |account: &u32| Some((*account, *balances.get(account)?));
    Ok(accounts.iter().filter_map(row).collect())
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
        .build()
        .await?;

    let (job, cost) = cache.tallied();
    balances::warm(&job, 0..10_000).await?; // through the loader, 2,000 at a time
    println!(
        "warmed in {} loads and {} trips",
        cost.loads(),
        cost.trips()
    );

    let mut total = 0;
    for batch in (0..10_000_u32).collect::<Vec<_>>().chunks(1_000) {
        let batch = balances(&job, batch).await?.require()?;
        total += batch.into_iter().sum::<i64>();
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
            let before = balances::one(Direct(&mut transaction), 7).await?;
            let after = before.unwrap_or(0) - 50;
            ledger.0.lock().expect("no writer panics").insert(7, after);
            balances::flush(&job, [7]).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        }
    });
    write.await?.map_err(|error| error.to_string())?;
    println!("account 7 has {:?} cents", balances::one(&job, 7).await?);

    cache.close(Duration::from_secs(5)).await; // fills and flushes under way first
    Ok(())
}
