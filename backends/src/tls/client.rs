//! The client: rustls, and files that may be replaced while we run.
//!
//! The files are read at every dial and compared with what was read last, so that a renewed certificate is used by the
//! next connection. Someone who replaces certificate and key one after the other is met in between: whatever can't be
//! used is reported, and what was read last serves on.
//!
//! What it isn't: it has no way to skip the checks of certificate and name, and looks at no revocation lists.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use larder_core::{Error, ErrorKind, Result};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::{TlsConfig, refused};
use crate::transport::{Address, Io};

/// How connections to the servers of a store are encrypted.
pub(crate) struct Tls {
    /// The kind of store, as errors call it.
    store: &'static str,
    files: Files,
    /// What certificates are for; each server's own name if nothing is said.
    name: Option<ServerName<'static>>,
    current: Mutex<Current>,
}

/// What was read last that could be used.
struct Current {
    read: Contents,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// Reads the files, if the configuration asks for TLS; fails if they, or a server's name, can't be used.
    pub(crate) fn new<'a>(
        config: TlsConfig<'_>,
        servers: impl IntoIterator<Item = &'a Address>,
    ) -> Result<Option<Self>> {
        if !config.is_on {
            return Ok(None);
        }
        let name = config.server_name.map(|name| {
            ServerName::try_from(name.to_owned()).map_err(|_| {
                config.refused(format!(
                    "`server_name` is `{}`, which no certificate can be for; it takes a host name or an IP address",
                    name.escape_debug()
                ))
            })
        });
        let files = Files::new(config);
        let read = files.read().map_err(|reason| config.refused(reason))?;
        let client = files
            .client(&read)
            .map_err(|reason| config.refused(reason))?;
        let tls = Self {
            store: config.store,
            files,
            name: name.transpose()?,
            current: Mutex::new(Current { read, client }),
        };
        for server in servers {
            tls.name_of(server)?;
        }
        Ok(Some(tls))
    }

    /// Encrypts a connection, once the server has proved who it is. One to a unix socket stays as it is.
    pub(crate) async fn secure(&self, io: Io, address: &Address) -> Result<Io> {
        let Some(name) = self.name_of(address)? else {
            return Ok(io);
        };
        let client = self.client(address);
        let stream = tokio::io::join(io.reader, io.writer);
        let stream = TlsConnector::from(client)
            .connect(name, stream)
            .await
            .map_err(|error| self.explain(address, error))?;
        let (reader, writer) = tokio::io::split(stream);
        Ok(Io {
            reader: Box::new(reader),
            writer: Box::new(writer),
        })
    }

    /// What this server's certificate has to be for; nothing where there is no TLS.
    fn name_of(&self, address: &Address) -> Result<Option<ServerName<'static>>> {
        let Address::Tcp { host, .. } = address else {
            return Ok(None);
        };
        if let Some(name) = &self.name {
            return Ok(Some(name.clone()));
        }
        match ServerName::try_from(host.clone()) {
            Ok(name) => Ok(Some(name)),
            Err(_) => Err(refused(
                self.store,
                format!(
                    "no certificate can be for the name `{host}`; set `server_name` to one that the servers' is for"
                ),
            )),
        }
    }

    /// The client as the files are now, or as they were when they could be used.
    ///
    /// It reads them on the runtime's thread: a few kilobytes, less work than the handshake that follows.
    fn client(&self, server: &Address) -> Arc<ClientConfig> {
        let read = self.files.read();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = read.and_then(|read| match read == current.read {
            true => Ok(None),
            false => Ok(Some((self.files.client(&read)?, read))),
        });
        match renewed {
            Ok(None) => {}
            Ok(Some((client, read))) => {
                tracing::info!(%server, "read renewed TLS files");
                *current = Current { read, client };
            }
            Err(reason) => {
                tracing::warn!(%server, reason, "can't use the TLS files as they are now, so those read before serve on");
            }
        }
        Arc::clone(&current.client)
    }

    /// Why a handshake failed, and what can be done about it.
    fn explain(&self, address: &Address, error: io::Error) -> Error {
        let store = self.store;
        let cause = error
            .get_ref()
            .and_then(|cause| cause.downcast_ref::<rustls::Error>());
        let reason = match cause {
            Some(rustls::Error::InvalidCertificate(reason)) => self.distrust(address, reason),
            Some(rustls::Error::AlertReceived(alert)) => refusal(*alert),
            Some(rustls::Error::InvalidMessage(_)) => {
                "answers the TLS handshake with something else; name a port where it speaks TLS, or take `tls` away"
                    .to_owned()
            }
            Some(error) => format!("the TLS handshake failed ({error})"),
            None => {
                return Error::with_source(
                    ErrorKind::Unavailable,
                    format!("{store} {address}: the connection was lost in the TLS handshake ({error})"),
                    error,
                );
            }
        };
        Error::with_source(
            ErrorKind::Config,
            format!("{store} {address}: {reason}"),
            error,
        )
    }

    /// Why we refuse the server's certificate.
    fn distrust(&self, address: &Address, reason: &CertificateError) -> String {
        match reason {
            // Of an authority of the same name, which has another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "its certificate doesn't come from {}; name the certificate of the authority that signed it by `ca_file`",
                match &self.files.ca {
                    Some(file) => format!("an authority in {}", file.display()),
                    None => "an authority that this system knows".to_owned(),
                }
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired; renew it there, and check this host's clock".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate isn't valid yet; check the clocks of both hosts".to_owned()
            }
            CertificateError::NotValidForName => self.misnamed(address, &[]),
            CertificateError::NotValidForNameContext { presented, .. } => {
                self.misnamed(address, presented)
            }
            // What `openssl req -x509` makes when nothing else is said.
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                "its certificate is that of an authority (CA:TRUE), which can't be a server's; let it sign one for the \
                 server"
                    .to_owned()
            }
            other => format!("its certificate was refused ({other})"),
        }
    }

    fn misnamed(&self, address: &Address, presented: &[String]) -> String {
        let expected = match self.name_of(address) {
            Ok(Some(name)) => name.to_str().into_owned(),
            _ => address.to_string(),
        };
        let presented = match presented {
            [] => "another name".to_owned(),
            names => {
                // rustls has them as `DnsName("cache-1")` and `IpAddress(10.0.0.5)`.
                let bare = |name: &String| {
                    let name = name.split_once('(').map_or(&**name, |(_, name)| name);
                    name.trim_matches(['"', ')']).escape_debug().to_string()
                };
                names.iter().map(bare).collect::<Vec<_>>().join(", ")
            }
        };
        format!(
            "its certificate is for {presented} and not for {expected}; set `server_name` to a name that it is for"
        )
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why the server refused us, if that is what this error of a connection says. With TLS 1.3 it says so only once the
/// handshake is over for us.
pub(crate) fn refused_us(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(refusal(*alert)),
        _ => None,
    }
}

/// Why the server refused us.
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "demands a certificate of its clients; name one, and its key, by `cert_file` and `key_file`".to_owned()
        }
        AlertDescription::HandshakeFailure => {
            "refused the TLS handshake; if it demands a certificate of its clients, name one, and its key, by `cert_file` \
             and `key_file`, else compare versions and ciphers"
                .to_owned()
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => format!(
            "refused our certificate ({alert:?}); `cert_file` has to hold one that an authority that the \
             server trusts has signed and that hasn't expired, followed by its intermediates"
        ),
        alert => format!("refused the TLS handshake ({alert:?})"),
    }
}

/// Where certificates and keys are.
#[derive(Debug)]
struct Files {
    ca: Option<PathBuf>,
    /// Our certificate, and its key.
    identity: Option<(PathBuf, PathBuf)>,
}

/// What is in them.
#[derive(PartialEq)]
struct Contents {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// What is wrong with a file, and which.
type Reason = String;

impl Files {
    fn new(config: TlsConfig<'_>) -> Self {
        let identity = config.cert_file.zip(config.key_file);
        Self {
            ca: config.ca_file.map(Path::to_owned),
            identity: identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned())),
        }
    }

    fn read(&self) -> Result<Contents, Reason> {
        Ok(Contents {
            ca: self.ca.as_deref().map(read).transpose()?,
            identity: match &self.identity {
                Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
                None => None,
            },
        })
    }

    /// A client that trusts, and shows, what is in the files.
    fn client(&self, contents: &Contents) -> Result<Arc<ClientConfig>, Reason> {
        let roots = match (&contents.ca, &self.ca) {
            (Some(pem), Some(file)) => authorities(pem, file)?,
            _ => authorities_of_the_system()?,
        };
        // A program that chose a provider, say a certified one, gets it; others needn't choose.
        let provider = CryptoProvider::get_default()
            .map_or_else(|| Arc::new(ring::default_provider()), Arc::clone);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("rustls can't speak TLS as it is set up here ({error})"))?
            .with_root_certificates(roots);
        let (Some((chain, key)), Some((chain_file, key_file))) =
            (&contents.identity, &self.identity)
        else {
            return Ok(full_handshakes(builder.with_no_client_auth()));
        };
        let chain = certificates(chain, chain_file)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            format!(
                "{} holds no private key in PEM that could be read; one with a passphrase can't be",
                key_file.display()
            )
        })?;
        let client = builder.with_client_auth_cert(chain, key).map_err(|error| {
            format!(
                "{} and {} can't be used together ({error})",
                chain_file.display(),
                key_file.display()
            )
        })?;
        Ok(full_handshakes(client))
    }
}

/// Resumes no sessions: a memcached that demands certificates of its clients ends a connection that tries (OpenSSL's
/// session id context is missing there), and connections live too long to gain by it.
fn full_handshakes(mut client: ClientConfig) -> Arc<ClientConfig> {
    client.resumption = Resumption::disabled();
    Arc::new(client)
}

fn read(file: &Path) -> Result<Vec<u8>, Reason> {
    std::fs::read(file).map_err(|error| format!("{} can't be read ({error})", file.display()))
}

fn authorities(pem: &[u8], file: &Path) -> Result<RootCertStore, Reason> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, file)? {
        roots.add(certificate).map_err(|error| {
            format!(
                "{} holds something that is no certificate ({error})",
                file.display()
            )
        })?;
    }
    Ok(roots)
}

fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{} holds no certificate in PEM", file.display())),
        Err(error) => Err(format!("{} isn't PEM ({error})", file.display())),
    }
}

fn authorities_of_the_system() -> Result<RootCertStore, Reason> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some system has a certificate among its hundred that rustls can't read; the others are as good.
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err(
            "this system has no certificates of authorities; name those to trust by `ca_file`"
                .to_owned(),
        ),
        false => Ok(roots),
    }
}
