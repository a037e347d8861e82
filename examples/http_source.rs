//! A source that isn't SQL: an HTTP API. `cargo run --example http_source`
//!
//! The API has no bulk form, so that the loader asks for several keys at once, concurrently; a 404 is an absence; any
//! other failure is the error of the read, and isn't stored. The program starts the API itself, on a free port.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder::{BuilderExt as _, Cache, Config, Source};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The API: its client pools connections, so that a connection of larder's is a clone of the handle.
#[derive(Clone)]
struct Api {
    client: reqwest::Client,
    base: Arc<str>,
}

impl Source for Api {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = reqwest::Error;

    async fn acquire(&self) -> Result<Box<Self>, reqwest::Error> {
        Ok(Box::new(self.clone()))
    }
}

impl Api {
    async fn price(&self, item: &str) -> Result<Option<Price>, reqwest::Error> {
        let url = format!("{}/prices/{item}", self.base);
        let response = self.client.get(url).send().await?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        response.error_for_status()?.json().await.map(Some)
    }
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Price {
    item: String,
    cents: u64,
}

#[larder::cached(
    many, source = Api, key = "price:{items:digest}", by = |price| price.item.clone(), ttl_only = "60s",
)]
async fn prices(api: &mut Api, items: Vec<String>) -> Result<Vec<Price>, reqwest::Error> {
    let mut requests = JoinSet::new();
    for item in items {
        let api = api.clone();
        requests.spawn(async move { api.price(&item).await });
    }
    let mut prices = Vec::new();
    while let Some(price) = requests.join_next().await {
        prices.extend(price.expect("no request is aborted, and none panics")?);
    }
    Ok(prices)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (base, requests) = start_api().await?;
    let api = Api {
        client: reqwest::Client::builder()
            .timeout(Duration::from_secs(5))
            .build()?,
        base: base.into(),
    };
    let cache = Cache::builder(api)
        .config(Config::new("memory://")?.env()?)
        .build()
        .await?;
    for _ in 0..2 {
        let items = ["tea", "milk", "unicorn"].map(str::to_owned);
        for (item, price) in prices(&cache, &items).await?.iter() {
            match price {
                Some(price) => println!("{item}: {} cents", price.cents),
                None => println!("{item}: not sold"),
            }
        }
        println!(
            "requests to the API so far: {}",
            requests.load(Ordering::Relaxed)
        );
    }
    let failed = prices::one(&cache, "broken".to_owned()).await;
    println!("broken: {}", failed.expect_err("the API answers 500"));
    cache.close(Duration::from_secs(1)).await;
    Ok(())
}

/// An API in fifteen lines: its address, and how many requests it has answered.
async fn start_api() -> std::io::Result<(String, Arc<AtomicU64>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    tokio::spawn(async move {
        let prices = HashMap::from([("tea", 250), ("milk", 120)]);
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let item = request
                .split(' ')
                .nth(1)
                .and_then(|path| path.rsplit('/').next())
                .unwrap_or("");
            let (status, body) = match prices.get(item) {
                Some(cents) => ("200 OK", format!(r#"{{"item":"{item}","cents":{cents}}}"#)),
                None if item == "broken" => ("500 Internal Server Error", String::new()),
                None => ("404 Not Found", String::new()),
            };
            counter.fetch_add(1, Ordering::Relaxed);
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    Ok((base, requests))
}
