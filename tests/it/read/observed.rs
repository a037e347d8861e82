//! What operators see: spans that belong together, one line in the log where one is enough, and no data in any of it.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use larder_core::{Dataset, FlushOn, Lifetime, NoTier, Plain, Rows, get, get_many};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use super::gate::Gate;
use super::shelf::{Broken, Conn, HOUR, Shelf, cache, cache_on, dataset, memory};

/// Everything that larder reported on this thread.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Reports>>);

#[derive(Default)]
struct Reports {
    spans: Vec<Span>,
    events: Vec<(Level, Fields)>,
}

#[derive(Clone, Debug)]
struct Span {
    id: u64,
    parent: Option<u64>,
    name: &'static str,
    fields: Fields,
}

/// Names and values, as text.
#[derive(Clone, Debug, Default, PartialEq)]
struct Fields(Vec<(&'static str, String)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = context.span(id).and_then(|span| span.parent());
        self.0.lock().unwrap().spans.push(Span {
            id: id.into_u64(),
            parent: parent.map(|parent| parent.id().into_u64()),
            name: attributes.metadata().name(),
            fields,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut reports = self.0.lock().unwrap();
        // Ids are used again: the latest is the one that is open.
        let mut spans = reports.spans.iter_mut().rev();
        let span = spans.find(|span| span.id == id.into_u64());
        values.record(&mut span.expect("recorded while open").fields);
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        self.0.lock().unwrap().events.push((level, fields));
    }
}

impl Seen {
    fn watch() -> (Self, DefaultGuard) {
        let seen = Self::default();
        let subscriber = tracing_subscriber::registry().with(seen.clone());
        (seen, tracing::subscriber::set_default(subscriber))
    }

    /// The spans since this was last asked.
    fn spans(&self) -> Vec<Span> {
        std::mem::take(&mut self.0.lock().unwrap().spans)
    }

    /// The messages of this level.
    fn log(&self, level: Level) -> Vec<String> {
        let reports = self.0.lock().unwrap();
        let events = reports.events.iter().filter(|(of, _)| *of == level);
        events.map(|(_, fields)| format!("{fields:?}")).collect()
    }

    /// Every field of every span and event.
    fn everything(&self) -> Vec<(&'static str, String)> {
        let reports = self.0.lock().unwrap();
        let spans = reports.spans.iter().map(|span| &span.fields);
        let events = reports.events.iter().map(|(_, fields)| fields);
        spans
            .chain(events)
            .flat_map(|fields| fields.0.clone())
            .collect()
    }
}

fn fields<const N: usize>(fields: [(&'static str, &str); N]) -> Fields {
    Fields(fields.map(|(name, value)| (name, value.to_owned())).into())
}

/// A data set whose keys and values are easily recognised.
enum Secret {}

const MARK: &str = "hush";

impl Dataset for Secret {
    const NAME: &'static str = "secret";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    const MAX_VALUE: usize = 50;
    type Source = Shelf;
    type Key = String;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(shelf: &mut Conn, texts: Vec<String>) -> Result<Rows<Self>, Broken> {
        shelf.0.load(&[texts.len() as u64]).await?;
        Ok(texts.into_iter().map(|text| (text.clone(), text)).collect())
    }
}

fn secret(number: u32) -> String {
    format!("{MARK}-{number}")
}

#[tokio::test(start_paused = true)]
async fn a_read_is_a_span_and_its_load_is_one_below() {
    let (seen, _watching) = Seen::watch();
    let (cache, tally) = cache(&Shelf::default()).await.tallied();
    seen.spans();

    get::<Secret>(&cache, &secret(1)).await.unwrap();
    tally.settled().await;
    let [read, load] = &seen.spans()[..] else {
        panic!("a read and its load")
    };
    assert_eq!((read.name, read.parent), ("larder.get", None));
    assert_eq!(
        read.fields,
        fields([("accessor", "\"secret\""), ("hits", "0")])
    );
    assert_eq!((load.name, load.parent), ("larder.load", Some(read.id)));
    assert_eq!(
        load.fields,
        fields([("accessor", "\"secret\""), ("keys", "1")])
    );

    let texts = [secret(1), secret(2), secret(3), secret(2)];
    get_many::<Secret>(&cache, &texts).await.unwrap();
    tally.settled().await;
    let [read, load] = &seen.spans()[..] else {
        panic!("a read and its load")
    };
    assert_eq!((read.name, read.parent), ("larder.get_many", None));
    let expected = [("accessor", "\"secret\""), ("keys", "3"), ("hits", "1")];
    assert_eq!(read.fields, fields(expected));
    assert_eq!((load.name, load.parent), ("larder.load", Some(read.id)));
    assert_eq!(
        load.fields,
        fields([("accessor", "\"secret\""), ("keys", "2")])
    );

    get::<Secret>(&cache, &secret(1)).await.unwrap();
    let [read] = &seen.spans()[..] else {
        panic!("a read alone")
    };
    assert_eq!(
        read.fields,
        fields([("accessor", "\"secret\""), ("hits", "1")])
    );
}

/// What the loader does is below the load, and so below the read, though it runs in a task of its own.
#[tokio::test(start_paused = true)]
async fn the_loaders_own_spans_are_below_the_load() {
    dataset!(Traced = "traced", Lifetime::Ttl(HOUR));
    enum Queried {}
    impl Dataset for Queried {
        const NAME: &'static str = "queried";
        const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
        type Source = Shelf;
        type Key = u64;
        type Value = String;
        type Form = Plain;
        type Tier = NoTier;
        type Error = Broken;

        fn flush_on(plan: &mut FlushOn<Self>) {
            plan.by_hand();
        }

        async fn load(shelf: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
            let _query = tracing::info_span!("query");
            Traced::load(shelf, ids).await
        }
    }

    let (seen, _watching) = Seen::watch();
    let cache = cache(&Shelf::of([7])).await;
    seen.spans();
    get::<Queried>(&cache, &7).await.unwrap();
    let spans = seen.spans();
    let [read, load, query] = &spans[..] else {
        panic!("{spans:?}")
    };
    assert_eq!((query.name, query.parent), ("query", Some(load.id)));
    assert_eq!(load.parent, Some(read.id));
}

#[tokio::test(start_paused = true)]
async fn no_key_and_no_value_is_reported() {
    let (seen, _watching) = Seen::watch();
    let shelf = Shelf::default();
    let gate = Gate::new(memory());
    let (cache, tally) = cache_on(&shelf, Arc::clone(&gate) as _).await.tallied();
    let (long, large) = (MARK.repeat(100), MARK.repeat(20));
    let texts = [secret(1), secret(2), long, large];

    for _ in 0..2 {
        get_many::<Secret>(&cache, &texts).await.unwrap();
        tally.settled().await;
        get::<Secret>(&cache, &texts[0]).await.unwrap();
    }
    cache.flush::<Secret>(&texts).await.unwrap();
    for trouble in [Shelf::fail, Shelf::panic] {
        trouble(&shelf);
        get::<Secret>(&cache, &texts[0]).await.unwrap_err();
        shelf.recover();
    }
    gate.set_down(true);
    get_many::<Secret>(&cache, &texts).await.unwrap();
    let _ = cache.flush::<Secret>(&texts).await;
    tally.settled().await;

    let everything = seen.everything();
    assert!(everything.len() > 20, "{everything:?}");
    for (name, value) in everything {
        assert!(!value.contains(MARK), "{name} = {value}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_data_set_that_cannot_be_cached_is_one_error() {
    dataset!(Nameless = "no name", Lifetime::Ttl(HOUR));
    let (seen, _watching) = Seen::watch();
    let cache = cache(&Shelf::of([7])).await;
    for _ in 0..5 {
        get::<Nameless>(&cache, &7).await.unwrap();
        get_many::<Nameless>(&cache, [7, 8]).await.unwrap();
        cache.flush::<Nameless>([7]).await.unwrap();
    }
    let errors = seen.log(Level::ERROR);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("needs a NAME of"), "{errors:?}");
    assert_eq!(seen.log(Level::WARN), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_a_key_is_one_warning() {
    let (seen, _watching) = Seen::watch();
    let cache = cache(&Shelf::default()).await;
    for number in 0..5 {
        let long = number.to_string().repeat(300);
        get::<Secret>(&cache, &long).await.unwrap();
        get_many::<Secret>(&cache, [&long, &secret(1)])
            .await
            .unwrap();
    }
    let warnings = seen.log(Level::WARN);
    let about_keys = warnings
        .iter()
        .filter(|warning| warning.contains("can't be a key"));
    assert_eq!(about_keys.count(), 1, "{warnings:?}");
    assert_eq!(seen.log(Level::ERROR), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_one_warning() {
    let (seen, _watching) = Seen::watch();
    let cache = cache(&Shelf::default()).await;
    let large = "x".repeat(60);
    for _ in 0..5 {
        get::<Secret>(&cache, &large).await.unwrap();
        get_many::<Secret>(&cache, [&large, &secret(1)])
            .await
            .unwrap();
    }
    let warnings = seen.log(Level::WARN);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("larger than MAX_VALUE"),
        "{warnings:?}"
    );
    assert_eq!(seen.log(Level::ERROR), [""; 0]);
}
