//! The numbers of the backend and of the tiers through the `metrics` facade (feature `metrics`).
//!
//! Accessors count into the facade as they go. Backend and tiers keep plain numbers, which are copied every few seconds
//! for as long as the cache lives.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::contract::{Backend, BackendStats, ServerStats};
use crate::{Rt, Scopes, TierStats, TiersStats};

/// How old the facade's numbers about a backend and about tiers may be.
const PERIOD: Duration = Duration::from_secs(5);

/// Copies the numbers of both until the backend is gone.
pub(crate) async fn keep_publishing(
    backend: Weak<dyn Backend>,
    tiers: Option<Weak<dyn Scopes>>,
    rt: Rt,
) {
    while let Some(backend) = backend.upgrade() {
        publish(&backend.stats());
        drop::<Arc<_>>(backend);
        if let Some(tiers) = tiers.as_ref().and_then(Weak::upgrade) {
            publish_tiers(&tiers.stats());
        }
        rt.sleep(PERIOD).await;
    }
}

fn publish(stats: &BackendStats) {
    for server in &stats.servers {
        publish_server(server);
    }
}

fn publish_server(stats: &ServerStats) {
    let server = || ("server", stats.server.clone());
    let counter = |name: &'static str, value| metrics::counter!(name, &[server()]).absolute(value);
    counter("larder_trips_total", stats.trips);
    counter("larder_trip_keys_total", stats.keys);
    counter("larder_connects_total", stats.connects);
    counter("larder_reconnects_total", stats.reconnects);
    counter("larder_timeouts_total", stats.timeouts);
    counter("larder_times_down_total", stats.times_down);
    counter(
        "larder_protocol_violations_total",
        stats.protocol_violations,
    );
    counter("larder_out_of_memory_total", stats.out_of_memory);
    for (direction, bytes) in [("in", stats.bytes_in), ("out", stats.bytes_out)] {
        let labels = [server(), ("direction", direction.to_owned())];
        metrics::counter!("larder_bytes_total", &labels).absolute(bytes);
    }
    let gauge = |name: &'static str, value| metrics::gauge!(name, &[server()]).set(value as f64);
    gauge("larder_in_flight", stats.in_flight);
    gauge("larder_server_down", u64::from(stats.state == "down"));
    for (name, value) in [
        ("larder_stored_entries", stats.entries),
        ("larder_stored_bytes", stats.stored_bytes),
    ] {
        if let Some(value) = value {
            gauge(name, value);
        }
    }
    if let Some(evictions) = stats.evictions {
        counter("larder_evictions_total", evictions);
    }
}

fn publish_tiers(stats: &TiersStats) {
    metrics::gauge!("larder_tiers_budget_bytes").set(stats.budget as f64);
    publish_tier("request", &stats.request);
    publish_tier("deploy", &stats.deploy);
}

fn publish_tier(tier: &'static str, stats: &TierStats) {
    metrics::gauge!("larder_tier_entries", "tier" => tier).set(stats.entries as f64);
    metrics::gauge!("larder_tier_bytes", "tier" => tier).set(stats.bytes as f64);
    metrics::counter!("larder_tier_evictions_total", "tier" => tier).absolute(stats.evicted);
}
