//! The numbers of the backend, of the tiers and of what waits through the `metrics` facade (feature `metrics`).
//!
//! Accessors and commits count into the facade as they go. The others are plain numbers, which are copied every few
//! seconds for as long as the cache lives.

use std::sync::Weak;
use std::time::Duration;

use crate::contract::{BackendStats, ServerStats};
use crate::read::Shared;
use crate::{HitChecks, Rt, Source, TierStats, TiersStats, WriteStats};

/// How old the facade's numbers may be.
const PERIOD: Duration = Duration::from_secs(5);

/// Copies the numbers until the cache is gone.
pub(crate) async fn keep_publishing<S: Source>(shared: Weak<Shared<S>>, rt: Rt) {
    while let Some(shared) = shared.upgrade() {
        publish(&shared.backend.stats());
        if let Some(tiers) = &shared.tiers {
            publish_tiers(&tiers.stats());
        }
        if let Some(checks) = shared.hit_checks() {
            publish_checks(&checks);
        }
        publish_writes(&shared.writes.stats(), shared.generations.live().len());
        drop(shared);
        rt.sleep(PERIOD).await;
    }
}

fn publish_checks(checks: &HitChecks) {
    for (bound, value) in [
        ("estimate", checks.stale_per_million),
        ("at_least", checks.at_least_per_million),
        ("at_most", checks.at_most_per_million),
    ] {
        metrics::gauge!("larder_stale_hits_per_million", "bound" => bound).set(value);
    }
}

fn publish_writes(stats: &WriteStats, generations: usize) {
    metrics::gauge!("larder_flushes_waiting").set(stats.waiting as f64);
    metrics::gauge!("larder_held_keys").set(stats.held_keys as f64);
    metrics::gauge!("larder_generations_live").set(generations as f64);
    if let Some(outbox) = stats.outbox {
        metrics::gauge!("larder_outbox_rows").set(outbox.rows as f64);
        let oldest = outbox.oldest.unwrap_or_default();
        metrics::gauge!("larder_outbox_oldest_seconds").set(oldest.as_secs_f64());
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
