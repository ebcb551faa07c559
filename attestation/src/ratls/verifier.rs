//! Verifiers for `rustls`: what they accept is what the policy accepts.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::{binding, evidence_in};
use crate::bytes::Bytes32;
use crate::time::{Position, Timestamp};
use crate::verdict::VerifiedEvidence;
use crate::verifier::{Request, Verifier};

/// Accepts peers whose certificate carries evidence for their key that the policy accepts. For clients and servers,
/// TLS 1.3 only: in TLS 1.2 a certificate can be used with key exchanges that do not prove the key.
#[derive(Clone)]
pub struct RaTlsVerifier {
    verifier: Arc<Verifier>,
    nonce: Bytes32,
    algorithms: WebPkiSupportedAlgorithms,
}

impl RaTlsVerifier {
    /// A verifier with the signature algorithms of `provider`, for certificates made with `nonce`.
    pub fn new(verifier: Arc<Verifier>, nonce: Bytes32, provider: &CryptoProvider) -> Self {
        Self {
            verifier,
            nonce,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    /// Judges a peer's certificate as of `now`.
    ///
    /// # Errors
    /// `rustls::Error::InvalidCertificate`; the reasons are inside, as [`crate::Refused`].
    pub fn judge(&self, certificate: &[u8], now: Timestamp) -> Result<VerifiedEvidence, Error> {
        let (evidence, public_key, window) = evidence_in(certificate).map_err(other)?;
        match window.position(now, self.verifier.policy().clock_tolerance_seconds.into()) {
            Position::Before => return Err(CertificateError::NotValidYet.into()),
            Position::After => return Err(CertificateError::Expired.into()),
            Position::Inside => {}
        }
        let request = Request::at(now).with_report_data(binding(&public_key, &self.nonce));
        self.verifier.verify(&evidence, &request).map_err(other)
    }

    fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        self.judge(certificate, Timestamp(now.as_secs())).map(|_| ())
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

impl fmt::Debug for RaTlsVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaTlsVerifier")
            .field("nonce", &self.nonce)
            .finish_non_exhaustive()
    }
}

/// What both roles do alike. The two traits of `rustls` have the same three methods under one name each, so a macro
/// writes them into both.
macro_rules! signatures_of_tls13_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("RA-TLS needs TLS 1.3".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for RaTlsVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate, now)
            .map(|()| ServerCertVerified::assertion())
    }

    signatures_of_tls13_only!();
}

impl ClientCertVerifier for RaTlsVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate, now)
            .map(|()| ClientCertVerified::assertion())
    }

    signatures_of_tls13_only!();
}
