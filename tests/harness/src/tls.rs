//! Authorities, the certificates they sign, and raw connections that trust them.
//!
//! Everything is made anew by every test, in files as servers and clients read them, and is gone with the authority.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};

use crate::raw::Raw;

/// An authority that signs certificates.
///
/// ```no_run
/// use larder_harness::server::{Listen, MemcachedServer};
/// use larder_harness::tls::Authority;
///
/// let authority = Authority::new();
/// let identity = authority.issue(&["127.0.0.1"]);
/// let server = MemcachedServer::start(Listen::Tcp, &["-Z", "-o", &identity.server_options()]);
/// ```
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

impl Authority {
    /// One of its own kind: no other trusts what it signs.
    #[expect(clippy::new_without_default, reason = "it makes files")]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of larder's tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.self_signed(&key).expect("an authority signs itself");
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("it is writable");
        Self {
            issuer: Issuer::new(params, key),
            directory,
        }
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Its own certificate and key, which are no server's.
    pub fn own(&self) -> Identity {
        let key = self.directory.path().join("ca-key.pem");
        std::fs::write(&key, self.issuer.key().serialize_pem()).expect("it is writable");
        Identity {
            certificate: self.file(),
            key,
        }
    }

    /// Signs a certificate for these names and addresses.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.sign(names, CertificateParams::default())
    }

    /// The same for a time that is over.
    pub fn issue_expired(&self, names: &[&str]) -> Identity {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(names, params)
    }

    fn sign(&self, names: &[&str], mut params: CertificateParams) -> Identity {
        let directory = tempfile::tempdir_in(self.directory.path())
            .expect("a temporary directory can be made")
            .keep();
        let names = names.iter().map(|&name| name.to_owned());
        let named = CertificateParams::new(names.collect::<Vec<_>>()).expect("these are names");
        params.subject_alt_names = named.subject_alt_names;
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("an authority signs");
        let identity = Identity {
            certificate: directory.join("certificate.pem"),
            key: directory.join("key.pem"),
        };
        std::fs::write(&identity.certificate, certificate.pem()).expect("it is writable");
        std::fs::write(&identity.key, key.serialize_pem()).expect("it is writable");
        identity
    }

    /// A raw connection to a server whose certificate it has signed for its address.
    ///
    /// # Panics
    ///
    /// If nobody listens there, or it can't be trusted.
    pub async fn connect(&self, address: &str) -> Raw {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(self.file()).expect("it was just written");
        roots.add(certificate).expect("it is an authority's");
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (host, _) = address.split_once(':').expect("an IPv4 address and port");
        let ip: IpAddr = host.parse().expect("an IPv4 address and port");
        let socket = TcpStream::connect(address)
            .await
            .expect("the server listens");
        let stream = TlsConnector::from(Arc::new(client))
            .connect(ServerName::from(ip), socket)
            .await
            .expect("the server speaks TLS, and its certificate is for its address");
        let (reader, writer) = tokio::io::split(stream);
        Raw::new(reader, writer)
    }
}

impl Identity {
    /// What makes a memcached that speaks TLS (`-Z`) show it, for its `-o`.
    pub fn server_options(&self) -> String {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        format!("ssl_chain_cert={certificate},ssl_key={key}")
    }

    /// Puts another into these files.
    pub fn replace(&self, other: &Self) {
        for (from, to) in [
            (&other.certificate, &self.certificate),
            (&other.key, &self.key),
        ] {
            std::fs::copy(from, to).expect("it is writable");
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("file", &self.file())
            .finish_non_exhaustive()
    }
}

/// A file of users and passwords as a memcached that demands one (`-Y`) reads it.
pub fn password_file(directory: &Path, user: &str, password: &str) -> PathBuf {
    let file = directory.join("passwords");
    std::fs::write(&file, format!("{user}:{password}\n")).expect("it is writable");
    file
}
