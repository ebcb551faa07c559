//! Two ends with simulated evidence talk over TLS; what does not hold together is refused.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};

use cloak_attestation::bytes::{Bytes32, Bytes64};
use cloak_attestation::evidence::Attestation;
use cloak_attestation::ratls::{Identity, RaTlsVerifier, evidence_in};
use cloak_attestation::sim::{QuoteFields, TdxWorld};
use cloak_attestation::time::{Timestamp, Window};
use cloak_attestation::{Evidence, Policy, Refused, Verifier};
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::EncodePrivateKey as _;
use rustls::crypto::ring::default_provider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection, Stream,
};

static WORLD: LazyLock<TdxWorld> = LazyLock::new(|| TdxWorld::new(Timestamp::now()).unwrap());
const NONCE: Bytes32 = Bytes32::ZERO;

fn attest(report_data: Bytes64) -> Evidence {
    let fields = QuoteFields {
        report_data,
        ..QuoteFields::default()
    };
    Attestation::SimulatedTdx(WORLD.attest(&fields, &WORLD.spec()).unwrap()).into()
}

fn window() -> Window {
    Window {
        from: Timestamp::now().minus_seconds(60),
        until: Timestamp::now().plus_seconds(3600),
    }
}

struct Peer {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Peer {
    /// As it is: not even a certificate for another key is held back.
    fn resolver(&self) -> SingleCertAndKey {
        let key = any_supported_type(&self.key).unwrap();
        SingleCertAndKey::from(CertifiedKey::new(self.chain.clone(), key))
    }
}

fn peer(nonce: &Bytes32) -> Peer {
    let key = SigningKey::generate();
    let identity = Identity::new(&key, nonce, window(), attest).unwrap();
    let pkcs8 = key.to_pkcs8_der().unwrap();
    Peer {
        chain: vec![CertificateDer::from(identity.certificate_der().to_vec())],
        key: PrivatePkcs8KeyDer::from(pkcs8.as_bytes().to_vec()).into(),
    }
}

fn verifier(policy: &str) -> Arc<RaTlsVerifier> {
    let verifier = Verifier::new(Policy::from_toml(policy).unwrap());
    Arc::new(RaTlsVerifier::new(Arc::new(verifier), NONCE, &default_provider()))
}

const SIMULATED: &str = "platforms = [\"simulated-tdx\"]";

/// A handshake in both directions and one line each way. Gives the client's error.
fn talk(client: Peer, server: Peer, policy: &str) -> Result<String, Error> {
    let provider = Arc::new(default_provider());
    let server_config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier(SIMULATED))
        .with_cert_resolver(Arc::new(server.resolver()));
    let client_config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier(policy))
        .with_client_auth_cert(client.chain, client.key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut connection = ServerConnection::new(Arc::new(server_config)).unwrap();
            let mut line = [0; 5];
            let mut stream = Stream::new(&mut connection, &mut socket);
            if stream.read_exact(&mut line).is_ok() {
                let _ = stream.write_all(&line);
            }
        });
        let mut socket = TcpStream::connect(address).unwrap();
        let name = "attested.invalid".try_into().unwrap();
        let mut connection = ClientConnection::new(Arc::new(client_config), name).unwrap();
        let mut stream = Stream::new(&mut connection, &mut socket);
        let mut line = [0; 5];
        let spoken = stream
            .write_all(b"hello")
            .and_then(|()| stream.read_exact(&mut line));
        match spoken {
            Ok(()) => Ok(String::from_utf8_lossy(&line).into_owned()),
            Err(error) => Err(error
                .downcast::<Error>()
                .unwrap_or_else(|error| Error::General(error.to_string()))),
        }
    })
}

fn reasons(error: Error) -> Vec<String> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            let refused = other.0.downcast_ref::<Refused>().expect("a refusal");
            refused.codes().iter().map(ToString::to_string).collect()
        }
        other => vec![other.to_string()],
    }
}

#[test]
fn two_attested_ends_talk() {
    assert_eq!(talk(peer(&NONCE), peer(&NONCE), SIMULATED).unwrap(), "hello");
}

#[test]
fn a_strict_policy_refuses_the_server() {
    let refused = reasons(talk(peer(&NONCE), peer(&NONCE), "").unwrap_err());
    assert!(
        refused.contains(&"evidence.kind.not-allowed".to_owned()),
        "{refused:?}"
    );
}

#[test]
fn an_old_nonce_is_refused() {
    let old = Bytes32::from([1; 32]);
    let refused = reasons(talk(peer(&NONCE), peer(&old), SIMULATED).unwrap_err());
    assert_eq!(refused, ["evidence.report-data.mismatch"]);
}

#[test]
fn evidence_for_another_key_is_refused() {
    let honest = peer(&NONCE);
    let (stolen, ..) = evidence_in(&honest.chain[0]).unwrap();
    let key = SigningKey::generate();
    let identity = Identity::new(&key, &NONCE, window(), |_| stolen).unwrap();
    let refused = verifier(SIMULATED)
        .judge(identity.certificate_der(), Timestamp::now())
        .unwrap_err();
    assert_eq!(reasons(refused), ["evidence.report-data.mismatch"]);
}

#[test]
fn a_swapped_certificate_fails_the_handshake() {
    // The thief has the honest certificate, but not its key.
    let thief = Peer {
        chain: peer(&NONCE).chain,
        ..peer(&NONCE)
    };
    let error = talk(peer(&NONCE), thief, SIMULATED).unwrap_err();
    assert_eq!(error, CertificateError::BadSignature.into());
}

#[test]
fn dates_and_other_certificates() {
    let good = peer(&NONCE);
    let judge = |der: &[u8], now| verifier(SIMULATED).judge(der, now);
    let late = Timestamp::now().plus_seconds(7200);
    assert_eq!(
        judge(&good.chain[0], late).unwrap_err(),
        CertificateError::Expired.into()
    );
    let early = Timestamp::now().minus_seconds(7200);
    assert_eq!(
        judge(&good.chain[0], early).unwrap_err(),
        CertificateError::NotValidYet.into()
    );
    assert!(judge(cloak_attestation::tdx::intel_root(), Timestamp::now()).is_err());
    assert!(judge(&[], Timestamp::now()).is_err());
}
