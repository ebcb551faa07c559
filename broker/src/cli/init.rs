//! `cloak kbs init FOLDER`.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use sha2::{Digest, Sha256};

use super::CliError;
use crate::config::{Config, Limits};
use crate::random::random;
use crate::seal::{create_root_key, write_private};

const POLICY: &str = "\
# What evidence has to pass before a guest gets a session; each secret has a policy of its own beside. Without more
# words it is strict: real SEV-SNP and TDX only, no debugging, dates and revocation checked. docs/policy.md has them all.
version = 1
";

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Folder to make.
    folder: PathBuf,
    /// Names and addresses that clients reach the broker by, for its certificate.
    #[arg(long = "name", default_values = ["localhost", "127.0.0.1"])]
    names: Vec<String>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Database: sqlite:PATH or postgres://USER@HOST/NAME.
    #[arg(long, default_value = "sqlite:kbs.db")]
    database: String,
}

impl InitArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<(), CliError> {
        let folder = &self.folder;
        fs::create_dir(folder).map_err(|source| CliError::File {
            path: folder.clone(),
            source,
        })?;
        create_root_key(&folder.join("root.key"))?;
        let token_key = SigningKey::try_generate()
            .map_err(|_| crate::random::NoRandomness)?
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| CliError::Key(error.to_string()))?;
        write_private(&folder.join("token.key"), token_key.as_bytes())?;
        let admin = hex::encode(random::<32>()?);
        write_private(&folder.join("admin.token"), admin.as_bytes())?;
        let digest = hex::encode(Sha256::digest(&admin));
        write_private(&folder.join("admin.sha256"), digest.as_bytes())?;
        let tls = rcgen::generate_simple_self_signed(self.names.clone())?;
        write_private(
            &folder.join("tls.key"),
            tls.signing_key.serialize_pem().as_bytes(),
        )?;
        write_private(&folder.join("tls.crt"), tls.cert.pem().as_bytes())?;
        write_private(&folder.join("policy.toml"), POLICY.as_bytes())?;
        let text = toml::to_string(&self.config()).map_err(|error| CliError::Key(error.to_string()))?;
        write_private(&folder.join("kbs.toml"), text.as_bytes())?;
        let folder = folder.display();
        writeln!(
            out,
            "made {folder}; serve with: cloak kbs serve --config {folder}/kbs.toml"
        )?;
        writeln!(
            out,
            "{folder}/root.key opens every secret: keep a copy elsewhere, and no copy near the database's"
        )?;
        writeln!(
            out,
            "{folder}/admin.token is the administrator's: take it away from here, its digest is enough"
        )?;
        Ok(())
    }

    fn config(&self) -> Config {
        Config {
            listen: self.listen,
            database: self.database.clone(),
            database_ca: None,
            root_key: "root.key".into(),
            token_key: "token.key".into(),
            issuer: format!(
                "https://{}",
                self.names.first().map_or("localhost", String::as_str)
            ),
            tls_certificate: "tls.crt".into(),
            tls_key: "tls.key".into(),
            admin_token_digest: "admin.sha256".into(),
            attestation_policy: "policy.toml".into(),
            collateral: Vec::new(),
            limits: Limits::default(),
        }
    }
}
