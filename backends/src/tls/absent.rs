//! What stands in for `client` in a build without the feature: a configuration that asks for TLS is an error.

use std::io;

use larder_core::Result;

use super::TlsConfig;
use crate::transport::{Address, Io};

/// There is none.
#[derive(Debug)]
pub(crate) enum Tls {}

impl Tls {
    pub(crate) fn new<'a>(
        config: TlsConfig<'_>,
        _: impl IntoIterator<Item = &'a Address>,
    ) -> Result<Option<Self>> {
        match config.is_on {
            true => {
                Err(config.refused("`tls` needs a build with larder's feature `tls`; turn it on"))
            }
            false => Ok(None),
        }
    }

    #[expect(clippy::unused_async, reason = "its twin waits")]
    pub(crate) async fn secure(&self, _: Io, _: &Address) -> Result<Io> {
        match *self {}
    }
}

pub(crate) fn refused_us(_: &io::Error) -> Option<String> {
    None
}
