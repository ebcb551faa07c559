//! `cloak kbs get`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use cloak_attestation::bytes::{Bytes32, Bytes48};
use p256::ecdsa::SigningKey;
use p256::pkcs8::DecodePrivateKey as _;
use sha2::{Digest, Sha256};

use super::{CliError, read, read_text};
use crate::attester::{Attester, CONFIGFS_TSM, ConfigfsTsm, Program, Software};
use crate::client::Client;
use crate::path::ResourcePath;
use crate::protocol::Tee;
use crate::seal::write_private;

/// Where the broker is.
#[derive(Debug, Args)]
pub(super) struct Broker {
    /// Address of the broker: https://HOST:PORT.
    #[arg(long, env = "CLOAK_KBS_URL", value_name = "URL")]
    pub(super) url: String,
    /// Certificates that the broker's has to come from, PEM.
    #[arg(
        long,
        env = "CLOAK_KBS_CA",
        value_name = "FILE",
        default_value = "/etc/ssl/certs/ca-certificates.crt"
    )]
    pub(super) ca: PathBuf,
}

impl Broker {
    pub(super) fn client(&self) -> Result<Client, CliError> {
        Ok(Client::new(&self.url, &self.ca)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// Which secret: REPOSITORY/TYPE/TAG.
    path: ResourcePath,
    #[command(flatten)]
    broker: Broker,
    /// Where to write the secret, for its owner only; without, to standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Folder of the kernel's report interface.
    #[arg(long, value_name = "FOLDER", default_value = CONFIGFS_TSM)]
    tsm: PathBuf,
    /// Take evidence from this program instead: it gets REPORT_DATA in hexadecimal and writes evidence.
    #[arg(long, value_name = "PROGRAM", requires = "tee")]
    evidence_program: Option<PathBuf>,
    /// Kind of machine that the program speaks for: snp, tdx, software, simulated-snp, simulated-tdx.
    #[arg(long, value_parser = tee)]
    tee: Option<Tee>,
    /// Sign software evidence with this key instead: a P-256 key in PKCS#8 PEM.
    #[arg(
        long,
        value_name = "KEY",
        requires = "measurement",
        conflicts_with = "evidence_program"
    )]
    software_key: Option<PathBuf>,
    /// SHA-384 of what runs, for software evidence.
    #[arg(long, value_name = "HEX")]
    measurement: Option<Bytes48>,
    /// Manifest of what runs, for software evidence.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

fn tee(name: &str) -> Result<Tee, String> {
    Tee::from_name(name)
        .ok_or_else(|| format!("no such kind; there are {}", Tee::ALL.map(Tee::as_str).join(", ")))
}

impl GetArgs {
    pub(super) async fn run(&self, out: &mut dyn Write) -> Result<(), CliError> {
        let mut client = self.broker.client()?;
        let attester = self.attester()?;
        let session = client.attest(attester.as_ref()).await?;
        let secret = client.get(&session, &self.path).await?;
        match &self.output {
            Some(path) => write_private(path, &secret)?,
            None => out.write_all(&secret)?,
        }
        Ok(())
    }

    fn attester(&self) -> Result<Box<dyn Attester>, CliError> {
        if let (Some(path), Some(tee)) = (&self.evidence_program, self.tee) {
            return Ok(Box::new(Program {
                path: path.clone(),
                tee,
            }));
        }
        let (Some(path), Some(measurement)) = (&self.software_key, self.measurement) else {
            return Ok(Box::new(ConfigfsTsm::open(&self.tsm)?));
        };
        let key = SigningKey::from_pkcs8_pem(&read_text(path)?).map_err(|error| CliError::Content {
            path: path.clone(),
            problem: format!("not a P-256 key in PKCS#8 PEM: {error}"),
        })?;
        let manifest_digest = match &self.manifest {
            Some(path) => Bytes32::from(<[u8; 32]>::from(Sha256::digest(read(path)?))),
            None => Bytes32::ZERO,
        };
        Ok(Box::new(Software {
            key,
            measurement,
            manifest_digest,
        }))
    }
}
