//! Several fakes behind one transport.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use larder_backends::memcached::{Address, Io, Transport};

use super::Fake;

/// Which fake answers at which address; clones share it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use larder_harness::fake::{Fake, Network};
///
/// let (old, new) = (Fake::new(), Fake::new());
/// let network = Network::new().with("cache-1", &old).with("cache-2", &new);
/// let transport = network.transport(); // for the client
///
/// // The name moves to another server: connections to the old one stay, the next dial goes to the new one.
/// network.set("cache-1", Some(&new));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Network {
    servers: Arc<Mutex<BTreeMap<Address, Fake>>>,
}

impl Network {
    /// One on which nobody listens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a server.
    ///
    /// # Panics
    ///
    /// If the address can't be one.
    #[must_use]
    pub fn with(self, address: &str, fake: &Fake) -> Self {
        self.set(address, Some(fake));
        self
    }

    /// Decides who answers at this address from the next dial on; with `None` dials are refused.
    ///
    /// # Panics
    ///
    /// If the address can't be one.
    pub fn set(&self, address: &str, fake: Option<&Fake>) {
        let address = Address::parse(address).unwrap_or_else(|error| panic!("{error}"));
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        match fake {
            Some(fake) => servers.insert(address, fake.clone()),
            None => servers.remove(&address),
        };
    }

    /// The transport to give to a client.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl Transport for Network {
    async fn dial(&self, address: &Address) -> io::Result<Io> {
        let server = {
            let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
            servers.get(address).cloned()
        };
        match server {
            Some(fake) => fake.dial(address).await,
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}
