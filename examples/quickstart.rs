//! Cached reads without a server: `cargo run --example quickstart`.

use std::{convert::Infallible, time::Duration};

use larder::{BuilderExt as _, Cache, Config, Dataset, Lifetime, NoTier, Plain, Rows, Source};

/// Where loads come from: usually a database, whose pool hands out connections.
#[derive(Clone)]
struct Weather;

impl Source for Weather {
    type Conn = ();
    type Guard = Box<()>;
    type Error = Infallible;
    async fn acquire(&self) -> Result<Box<()>, Infallible> {
        Ok(Box::new(()))
    }
}

/// What is cached: the forecast of a town, for ten minutes.
enum Forecast {}

impl Dataset for Forecast {
    const NAME: &'static str = "forecast";
    const LIFETIME: Lifetime = Lifetime::TtlOnly(Duration::from_mins(10));
    type Source = Weather;
    type Key = &'static str;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;
    async fn load(_: &mut (), towns: Vec<&'static str>) -> Result<Rows<Self>, Infallible> {
        println!("loading {towns:?}");
        let row = |town| (town, format!("sun over {town}"));
        Ok(towns.into_iter().map(row).collect())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::new("memory://")?.env()?; // LARDER_URL=memcached://127.0.0.1 LARDER_PREFIX=try-1
    let cache = Cache::builder(Weather).config(config).build().await?;
    println!("{:?}", larder::get::<Forecast>(&cache, &"Riga").await?); // a miss: loads Riga
    println!("{:?}", larder::get::<Forecast>(&cache, &"Riga").await?); // a hit: loads nothing
    let towns = ["Ghent", "Riga", "Porto"];
    let batch = larder::get_many::<Forecast>(&cache, towns).await?; // loads Ghent and Porto in one call
    println!("{:?}", batch.into_found());
    Ok(())
}
