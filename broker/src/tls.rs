//! TLS 1.3 for both ends, from PEM files. `ring` does the cryptography.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is not PEM of the expected kind, or not there.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Certificate and key that do not fit, or a provider without TLS 1.3.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = std::fs::read(path).map_err(|error| TlsError::File {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    certificates_in(&read, path)
}

/// `name` is for messages.
fn certificates_in(pem: &[u8], name: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::File {
        path: name.to_owned(),
        problem,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain.map_err(|error| problem(error.to_string()))? {
        chain if chain.is_empty() => Err(problem("no certificate in PEM".to_owned())),
        chain => Ok(chain),
    }
}

/// The broker's end.
#[cfg(feature = "server")]
pub(crate) fn server(certificate: &Path, key: &Path) -> Result<rustls::ServerConfig, TlsError> {
    let chain = certificates(certificate)?;
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
        path: key.to_owned(),
        problem: error.to_string(),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A client's end, which trusts the certificates in `roots`.
pub(crate) fn client(roots: &Path) -> Result<ClientConfig, TlsError> {
    trusting(certificates(roots)?, roots)
}

/// The same, for certificates that are not in a file.
pub(crate) fn client_trusting(pem: &[u8]) -> Result<ClientConfig, TlsError> {
    let name = Path::new("the broker's certificates");
    trusting(certificates_in(pem, name)?, name)
}

fn trusting(roots: Vec<CertificateDer<'static>>, name: &Path) -> Result<ClientConfig, TlsError> {
    let mut store = RootCertStore::empty();
    // A system's bundle may hold certificates that are not understood here.
    let (added, _) = store.add_parsable_certificates(roots);
    if added == 0 {
        return Err(TlsError::File {
            path: name.to_owned(),
            problem: "no certificate that can be a root".to_owned(),
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(store)
        .with_no_client_auth())
}
