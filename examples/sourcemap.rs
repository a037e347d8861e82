//! A source map that is parsed once per process: `cargo run --example sourcemap`

use std::{io, time::Instant};

use larder::{BuilderExt as _, Cache, Config, DeployImmutable, Source, Tiers, Unstored, Weigh};
use sourcemap::{RawToken, SourceMap};

/// Where maps come from: a release, which has the file of one.
#[derive(Clone)]
struct Release(Box<str>);

impl Source for Release {
    type Conn = str;
    type Guard = Box<str>;
    type Error = io::Error;
    async fn acquire(&self) -> io::Result<Box<str>> {
        Ok(self.0.clone())
    }
}

struct Map(SourceMap);

/// Nobody changes a file of a release: this line is what lets the process keep it.
impl DeployImmutable for Map {}

impl Weigh for Map {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.get_token_count() as usize * size_of::<RawToken>()
    }
}

// In the process alone: to decode a map would take as long as to parse it.
#[larder::cached(source = Release, key = "map", immutable, form = Unstored, tier = deploy)]
async fn map(file: &mut str) -> io::Result<Map> {
    let map = SourceMap::from_slice(file.as_bytes()).map_err(io::Error::other)?;
    Ok(Map(map))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As a bundler would have written it: every ninth column of `app.min.js` is the next line of `app.js`.
    let mappings = ",SACA".repeat(100_000);
    let file = format!(r#"{{"version":3,"sources":["app.js"],"mappings":"AAAA{mappings}"}}"#);
    let cache = Cache::builder(Release(file.into()))
        .config(Config::new("memory://")?)
        .tiers(Tiers::default());
    let cache = cache.build().await?;
    for time in ["first", "second"] {
        let begin = Instant::now();
        let map = map(&cache).await?;
        let place = map.0.lookup_token(0, 1234);
        let line = place.ok_or("the map has the place")?.get_src_line() + 1;
        println!("{time}: line {line}, found in {:?}", begin.elapsed());
    }
    Ok(())
}
