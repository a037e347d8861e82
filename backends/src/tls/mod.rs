//! TLS over a connection that a transport has opened: what a store's configuration says about it, and the client that
//! does it. Every store with servers has the same keys, errors and renewal of certificates.
//!
//! In a build without the feature `tls` a client takes the other's place that can't be had: to ask for TLS is an error.

use std::path::Path;

use larder_core::{Error, ErrorKind, Result};

#[cfg_attr(not(feature = "tls"), path = "absent.rs")]
mod client;

pub(crate) use client::{Tls, refused_us};

/// What a store's configuration says about TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsConfig<'a> {
    /// The kind of store, as errors call it.
    pub(crate) store: &'static str,
    pub(crate) is_on: bool,
    pub(crate) ca_file: Option<&'a Path>,
    pub(crate) cert_file: Option<&'a Path>,
    pub(crate) key_file: Option<&'a Path>,
    pub(crate) server_name: Option<&'a str>,
}

impl TlsConfig<'_> {
    /// A key that would be ignored is an error: whoever wrote it believes that connections are safer than they are.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, is_set) in [
            ("ca_file", self.ca_file.is_some()),
            ("cert_file", self.cert_file.is_some()),
            ("key_file", self.key_file.is_some()),
            ("server_name", self.server_name.is_some()),
        ] {
            if is_set && !self.is_on {
                return Err(self.refused(format!(
                    "`{name}` is for TLS, which is off; set `tls = true`"
                )));
            }
        }
        match (self.cert_file, self.key_file) {
            (Some(_), None) => Err(self.refused("`cert_file` needs its `key_file`")),
            (None, Some(_)) => Err(self.refused("`key_file` needs its `cert_file`")),
            _ => Ok(()),
        }
    }

    /// The error of a configuration that can't work.
    fn refused(&self, message: impl Into<String>) -> Error {
        refused(self.store, message)
    }
}

fn refused(store: &str, message: impl Into<String>) -> Error {
    let message = message.into();
    Error::new(ErrorKind::Config, format!("{store} config: {message}"))
}
