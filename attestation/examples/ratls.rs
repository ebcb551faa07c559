//! Two processes that know each other by what they are: TLS in which each side's certificate carries evidence.
//!
//! ```text
//! cargo run -p cloak-attestation --features ratls,sim --example ratls -- server 127.0.0.1:4433 &
//! cargo run -p cloak-attestation --features ratls,sim --example ratls -- client 127.0.0.1:4433
//! ```
//! The evidence is simulated: it shows the way of things and proves nothing. In a guest, `attest` asks the kernel
//! (`/sys/kernel/config/tsm/report`), and the policy names real platforms.
//!
//! What can be turned, to see it refused: `--measures HEX` (what this side is), `--expects HEX` (what it takes the other
//! for), `--nonce HEX` (what this side's evidence is fresh for), `--wants HEX` (what the other's has to be fresh for),
//! `--steal` (show another key's certificate).

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;

use cloak_attestation::bytes::{Bytes, Bytes32, Bytes48, Bytes64};
use cloak_attestation::evidence::Attestation;
use cloak_attestation::ratls::{Identity, RaTlsVerifier};
use cloak_attestation::sim::{QuoteFields, TdxWorld};
use cloak_attestation::time::{Timestamp, Window};
use cloak_attestation::{Evidence, Policy, Verifier};
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::EncodePrivateKey as _;
use rustls::crypto::ring::default_provider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream};

type Failure = Box<dyn Error>;

/// What one side is and what it takes the other for.
struct Side {
    measures: Bytes48,
    expects: Bytes48,
    nonce: Bytes32,
    wants: Bytes32,
    steals: bool,
}

impl Side {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut side = Self {
            measures: Bytes([0x11; 48]),
            expects: Bytes([0x11; 48]),
            nonce: Bytes32::ZERO,
            wants: Bytes32::ZERO,
            steals: false,
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--measures" => side.measures = value()?.parse()?,
                "--expects" => side.expects = value()?.parse()?,
                "--nonce" => side.nonce = value()?.parse()?,
                "--wants" => side.wants = value()?.parse()?,
                "--steal" => side.steals = true,
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(side)
    }

    /// A key, and a certificate that says what holds it.
    fn identity(&self) -> Result<Arc<SingleCertAndKey>, Failure> {
        let now = Timestamp::now();
        let world = TdxWorld::new(now)?;
        let attest = |report_data: Bytes64| -> Evidence {
            let fields = QuoteFields {
                mrtd: self.measures,
                report_data,
                ..QuoteFields::default()
            };
            let evidence = world
                .attest(&fields, &world.spec())
                .expect("the simulated signer signs");
            Attestation::SimulatedTdx(evidence).into()
        };
        let window = Window {
            from: now.minus_seconds(60),
            until: now.plus_seconds(3600),
        };
        let key = SigningKey::generate();
        let identity = Identity::new(&key, &self.nonce, window, attest)?;
        let shown = if self.steals { SigningKey::generate() } else { key };
        let pkcs8 = shown.to_pkcs8_der()?;
        let key = any_supported_type(&PrivatePkcs8KeyDer::from(pkcs8.as_bytes().to_vec()).into())?;
        let chain = vec![CertificateDer::from(identity.certificate_der().to_vec())];
        Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
    }

    /// Takes the other side for what it should be, and nothing else.
    fn verifier(&self) -> Result<Arc<RaTlsVerifier>, Failure> {
        let policy = Policy::from_toml(&format!(
            "platforms = [\"simulated-tdx\"]\n[[reference]]\nname = \"peer\"\nversion = \"1\"\nmrtd = [\"{}\"]",
            self.expects
        ))?;
        let verifier = Arc::new(Verifier::new(policy));
        Ok(Arc::new(RaTlsVerifier::new(
            verifier,
            self.wants,
            &default_provider(),
        )))
    }
}

fn serve(address: &str, side: &Side) -> Result<(), Failure> {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(side.verifier()?)
        .with_cert_resolver(side.identity()?);
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    let (mut socket, _) = listener.accept()?;
    let mut connection = ServerConnection::new(Arc::new(config))?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    let mut question = [0; 4];
    stream.read_exact(&mut question)?;
    stream.write_all(b"pong")?;
    stream.conn.send_close_notify();
    stream.flush()?;
    println!(
        "the peer is what it should be, and says {}",
        String::from_utf8_lossy(&question)
    );
    Ok(())
}

fn connect(address: &str, side: &Side) -> Result<(), Failure> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(side.verifier()?)
        .with_client_cert_resolver(side.identity()?);
    let mut socket = TcpStream::connect(address)?;
    // The name is not looked at: who the peer is, the policy says.
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("cloak")?)?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    println!(
        "the peer is what it should be, and says {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    match arguments {
        [role, address, options @ ..] if role == "server" => serve(address, &Side::parse(options)?),
        [role, address, options @ ..] if role == "client" => connect(address, &Side::parse(options)?),
        _ => Err("usage: ratls server|client ADDRESS [OPTIONS]".into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("refused: {error}");
            ExitCode::FAILURE
        }
    }
}
