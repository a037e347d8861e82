//! What stands in for `tls` in a build without the feature: a configuration that asks for TLS is an error.

use std::io;

use larder_core::Result;

use super::config::{MemcachedConfig, refused};
use super::transport::{Address, Io};

/// There is none.
#[derive(Debug)]
pub(super) enum Tls {}

impl Tls {
    pub(super) fn new(config: &MemcachedConfig, _: &[Address]) -> Result<Option<Self>> {
        match config.tls {
            true => Err(refused(
                "`tls` needs a build with larder's feature `tls`; turn it on".to_owned(),
            )),
            false => Ok(None),
        }
    }

    #[expect(clippy::unused_async, reason = "its twin waits")]
    pub(super) async fn secure(&self, _: Io, _: &Address) -> Result<Io> {
        match *self {}
    }
}

pub(super) fn refused_us(_: &io::Error) -> Option<String> {
    None
}
