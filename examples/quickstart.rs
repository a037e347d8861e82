//! Cached reads without a server: `cargo run --example quickstart`.

use std::convert::Infallible;
use std::time::Duration;

use larder::{BuilderExt as _, Cache, Config, Dataset, Lifetime, Plain, Rows, Source};

/// Where loads come from: here a service that takes its time.
#[derive(Clone)]
struct Weather;

impl Source for Weather {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(Self))
    }
}

/// What is cached: the forecast of a town, for ten minutes, flushed by nobody.
enum Forecast {}

impl Dataset for Forecast {
    const NAME: &'static str = "forecast";
    const LIFETIME: Lifetime = Lifetime::TtlOnly(Duration::from_secs(600));
    type Source = Weather;
    type Key = String;
    type Value = String;
    type Form = Plain;
    type Error = Infallible;

    async fn load(_: &mut Weather, towns: Vec<String>) -> Result<Rows<Self>, Infallible> {
        println!("  asking for {towns:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let forecast = |town: String| (town.clone(), format!("sun over {town}"));
        Ok(towns.into_iter().map(forecast).collect())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::new("memory://")?.env()?; // LARDER_URL=memcached://127.0.0.1:11211 LARDER_PREFIX=try-1
    let cache = Cache::builder(Weather).config(config).build().await?;
    for towns in [["Ghent", "Riga"], ["Riga", "Porto"], ["Porto", "Ghent"]] {
        let (cache, tally) = cache.tallied();
        let towns = towns.map(str::to_owned);
        println!("{towns:?}");
        let forecasts = larder::get_many::<Forecast>(&cache, &towns).await?;
        println!("  {:?}", forecasts.into_found());
        println!(
            "  {} hits, {} loaded, {:?}",
            tally.hits(),
            tally.loaded(),
            tally.read_time()
        );
    }
    Ok(())
}
