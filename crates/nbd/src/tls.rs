//! TLS with X.509 certificates, for both ends.
//!
//! The promise: certificates and keys come from a directory in the layout that QEMU, nbdkit and libnbd share,
//! every problem with them names its file and what to do, and a connection that was upgraded is as trustworthy as
//! the configured authority: a server's name is always checked, a client's certificate whenever it is asked for.
//! TLS 1.2 and 1.3 are spoken. Pre-shared keys, which some NBD tools offer too, are not.
//!
//! | file | server | client |
//! |---|---|---|
//! | `ca-cert.pem` | only with verification of clients | always |
//! | `ca-crl.pem` | revoked clients, if it exists | revoked servers, if it exists |
//! | `server-cert.pem`, `server-key.pem` | always | |
//! | `client-cert.pem`, `client-key.pem` | | both or none |
//!
//! What it doesn't know: NBD. The handshake says when to upgrade.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName,
};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Most bytes of one file; a bundle of all public authorities is about a fifth of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

const CA_CERT: &str = "ca-cert.pem";
const CA_CRL: &str = "ca-crl.pem";

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read.
    #[error("{}: can't read: {source}; the directory must hold {wanted}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it is for.
        wanted: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}; it must hold {wanted}, in PEM form", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What it must hold.
        wanted: &'static str,
    },
    /// Certificate and key don't make a pair.
    #[error("{} and {}: {problem}; give the key that the certificate was made for", .certificate.display(), .key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Only one half of a client's pair is there.
    #[error("{}: missing, but its counterpart is there; give both or none", .path.display())]
    HalfPair {
        /// The file that is missing.
        path: PathBuf,
    },
    /// The name of a server can't stand in a certificate.
    #[error(
        "\"{name}\" is neither a host name nor an IP address that a server certificate could be checked against"
    )]
    ServerName {
        /// The name.
        name: String,
    },
    /// The library refused the configuration as a whole.
    #[error("TLS can't be configured: {0}")]
    Library(String),
}

/// TLS of a server: with it, clients must upgrade before anything else.
#[derive(Clone)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
    verify_clients: bool,
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer")
            .field("verify_clients", &self.verify_clients)
            .finish_non_exhaustive()
    }
}

impl TlsServer {
    /// Reads `server-cert.pem` and `server-key.pem`, and with `verify_clients` also `ca-cert.pem`: then only
    /// clients with a certificate of that authority get in, and none that `ca-crl.pem` revokes, if that file
    /// exists. The files are read once; a server is started again to use new ones.
    ///
    /// # Errors
    /// [`TlsError`] with the file and what to do.
    pub fn from_directory(path: impl AsRef<Path>, verify_clients: bool) -> Result<Self, TlsError> {
        let directory = path.as_ref();
        let identity = Identity::read(directory, "server-cert.pem", "server-key.pem")?;
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(library)?;
        let builder = if verify_clients {
            let roots = Arc::new(authorities(directory)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .with_crls(revocations(directory)?)
                .allow_unknown_revocation_status()
                .build()
                .map_err(|error| content(directory.join(CA_CRL), error, "a list of revoked certificates"))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(identity.chain, identity.key)
            .map_err(|error| TlsError::Pair {
                certificate: identity.certificate_path,
                key: identity.key_path,
                problem: error.to_string(),
            })?;
        // NBD connections live long: sessions are not resumed, and nothing is written after the handshake that a
        // client might not read.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            verify_clients,
        })
    }

    /// Whether clients must show a certificate.
    #[must_use]
    pub fn verifies_clients(&self) -> bool {
        self.verify_clients
    }

    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).await
    }
}

/// TLS of a client: with it, the client upgrades before anything else and goes no further without.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl TlsClient {
    /// Reads `ca-cert.pem`, the authority that the server's certificate must come from; `ca-crl.pem` if it exists;
    /// and `client-cert.pem` with `client-key.pem`, if they exist, to show to the server. `server_name` is the
    /// host name or IP address that the server's certificate must be for.
    ///
    /// # Errors
    /// [`TlsError`] with the file and what to do.
    pub fn from_directory(path: impl AsRef<Path>, server_name: &str) -> Result<Self, TlsError> {
        let directory = path.as_ref();
        let server_name = ServerName::try_from(server_name.to_owned()).map_err(|_| TlsError::ServerName {
            name: server_name.to_owned(),
        })?;
        let provider = provider();
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(authorities(directory)?),
            Arc::clone(&provider),
        )
        .with_crls(revocations(directory)?)
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| content(directory.join(CA_CRL), error, "a list of revoked certificates"))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(library)?
            .with_webpki_verifier(verifier);
        let files = ["client-cert.pem", "client-key.pem"];
        let config = match files.map(|file| directory.join(file).exists()) {
            [false, false] => builder.with_no_client_auth(),
            [true, true] => {
                let identity = Identity::read(directory, files[0], files[1])?;
                builder
                    .with_client_auth_cert(identity.chain, identity.key)
                    .map_err(|error| TlsError::Pair {
                        certificate: identity.certificate_path,
                        key: identity.key_path,
                        problem: error.to_string(),
                    })?
            }
            [has_certificate, _] => {
                let missing = files[usize::from(has_certificate)];
                return Err(TlsError::HalfPair {
                    path: directory.join(missing),
                });
            }
        };
        Ok(Self {
            config: Arc::new(config),
            server_name,
        })
    }

    pub(crate) async fn connect<S>(&self, stream: S) -> io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsConnector::from(Arc::clone(&self.config))
            .connect(self.server_name.clone(), stream)
            .await
    }
}

/// Named rather than taken from the process, which may have another default or, with two compiled in, none.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn library(error: rustls::Error) -> TlsError {
    TlsError::Library(error.to_string())
}

/// A certificate with those that lead to its authority, and its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    certificate_path: PathBuf,
    key_path: PathBuf,
}

impl Identity {
    fn read(directory: &Path, certificate: &str, key: &str) -> Result<Self, TlsError> {
        const KEY: &str = "an unencrypted private key";
        let (certificate_path, key_path) = (directory.join(certificate), directory.join(key));
        let chain = certificates(&certificate_path)?;
        let bytes = read_bounded(&key_path, KEY)?;
        let key =
            PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| content(key_path.clone(), error, KEY))?;
        Ok(Self {
            chain,
            key,
            certificate_path,
            key_path,
        })
    }
}

fn authorities(directory: &Path) -> Result<RootCertStore, TlsError> {
    let path = directory.join(CA_CERT);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots
            .add(certificate)
            .map_err(|error| content(path.clone(), error, "certificates of authorities"))?;
    }
    Ok(roots)
}

/// The lists of revoked certificates; none when the file does not exist.
fn revocations(directory: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    const WANTED: &str = "a list of revoked certificates";
    let path = directory.join(CA_CRL);
    match read_bounded(&path, WANTED) {
        Ok(bytes) => all_of(&path, &bytes, WANTED),
        Err(TlsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const WANTED: &str = "a certificate";
    all_of(path, &read_bounded(path, WANTED)?, WANTED)
}

/// All PEM sections of one kind, at least one.
fn all_of<T: PemObject>(path: &Path, bytes: &[u8], wanted: &'static str) -> Result<Vec<T>, TlsError> {
    let found: Result<Vec<T>, _> = T::pem_slice_iter(bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(content(path.to_owned(), "nothing of the kind found", wanted)),
        Ok(found) => Ok(found),
        Err(error) => Err(content(path.to_owned(), error, wanted)),
    }
}

fn content(path: PathBuf, problem: impl fmt::Display, wanted: &'static str) -> TlsError {
    TlsError::Content {
        path,
        problem: problem.to_string(),
        wanted,
    }
}

fn read_bounded(path: &Path, wanted: &'static str) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        wanted,
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(content(path.to_owned(), "larger than 1 MiB", wanted));
    }
    Ok(bytes)
}
