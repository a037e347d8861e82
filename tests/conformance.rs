//! Every backend passes the suite of `larder::conformance`, a line each.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_backends::{Memory, MemoryConfig};
use larder_core::conformance::{Abilities, Subject};
use larder_core::{Backend, Rt};

larder_core::conformance! {
    #[tokio::test(start_paused = true)]
    memory => MemorySubject::start(), except [
        store_holds_exactly_what_was_stored,
        lost_fill_leaves_nothing_in_the_store,
        lease_from_before_a_kill_is_lost,
        fill_queued_before_the_reconnect_is_lost,
        killed_server_is_reported_and_used_again,
        dead_server_fails_only_its_keys,
        hung_server_costs_a_call_its_deadline,
    ];
}

/// The memory store, under tokio's paused clock.
///
/// It can't be killed, stopped or looked into, since there is nothing beside the process it lives in.
struct MemorySubject(Memory);

impl MemorySubject {
    fn start() -> Self {
        let rt = Rt::following_tokio(SystemTime::UNIX_EPOCH);
        let memory = Memory::new(MemoryConfig::default(), rt);
        Self(memory.expect("the default configuration holds something"))
    }
}

#[async_trait::async_trait]
impl Subject for MemorySubject {
    fn can(&self) -> Abilities {
        Abilities::one_server().skips_time().exact_time()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.handle())
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::advance(duration).await;
    }
}
