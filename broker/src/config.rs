//! Configuration of a broker, in TOML. Paths are relative to the file.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloak_attestation::Policy;
use cloak_attestation::policy::PolicyError;
use serde::{Deserialize, Serialize};

use crate::session::Bounds;

/// What `kbs.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub struct Config {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// `sqlite:PATH` or `postgres://USER@HOST/NAME`.
    pub database: String,
    /// Roots, PEM, that PostgreSQL's certificate has to come from. With it connections are encrypted or not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_ca: Option<PathBuf>,
    /// Root key, 64 hexadecimal digits, for its owner only.
    pub root_key: PathBuf,
    /// Key that signs tokens: PKCS#8 PEM on P-256, for its owner only.
    pub token_key: PathBuf,
    /// `iss` of tokens.
    pub issuer: String,
    /// Certificate chain of the server, PEM.
    pub tls_certificate: PathBuf,
    /// Its key, PEM.
    pub tls_key: PathBuf,
    /// SHA-256 of the administrator's token, 64 hexadecimal digits. The token itself isn't kept here.
    pub admin_token_digest: PathBuf,
    /// What evidence has to pass before it gets a session. A secret's own policy is asked as well.
    pub attestation_policy: PathBuf,
    /// `QuoteCollateralV3` JSON files, for guests that bring a TDX quote alone.
    #[serde(default)]
    pub collateral: Vec<PathBuf>,
    /// Bounds on what clients can make the broker do.
    #[serde(default)]
    pub limits: Limits,
}

/// Bounds on what clients can make the broker do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How long a challenge can be answered.
    pub challenge_seconds: u32,
    /// How long an attested session and its token last.
    pub session_seconds: u32,
    /// Sessions at a time.
    pub sessions: usize,
    /// Room for the evidence of all sessions.
    pub evidence_mebibytes: usize,
    /// Largest body.
    pub body_kibibytes: usize,
    /// Requests that one address may make in a second; an IPv6 address stands for its /64.
    pub requests_per_second: NonZeroU32,
    /// Requests that one address may make at once after a pause.
    pub burst: NonZeroU32,
    /// How long a request may take.
    pub request_seconds: u32,
    /// How long requests may go on after the order to stop.
    pub stop_seconds: u32,
}

/// Why there is no configuration to work by.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not this configuration.
    #[error("{path}: {source}")]
    Toml {
        /// Which.
        path: PathBuf,
        /// Why, with line and column.
        source: Box<toml::de::Error>,
    },
    /// Not a policy.
    #[error("{path}: {source}")]
    Policy {
        /// Which.
        path: PathBuf,
        /// Why, with line and column.
        source: Box<PolicyError>,
    },
    /// A file that is not what it should be.
    #[error("{path}: {problem}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Default for Limits {
    fn default() -> Self {
        const PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("fifty is not zero");
        const BURST: NonZeroU32 = NonZeroU32::new(200).expect("two hundred is not zero");
        Self {
            challenge_seconds: 60,
            session_seconds: 300,
            sessions: 65_536,
            evidence_mebibytes: 512,
            body_kibibytes: 1024,
            requests_per_second: PER_SECOND,
            burst: BURST,
            request_seconds: 30,
            stop_seconds: 10,
        }
    }
}

impl Limits {
    /// Bounds of the sessions.
    pub fn session_bounds(&self) -> Bounds {
        Bounds {
            challenge: Duration::from_secs(self.challenge_seconds.into()),
            attested: Duration::from_secs(self.session_seconds.into()),
            sessions: self.sessions,
            evidence_bytes: self.evidence_mebibytes.saturating_mul(1 << 20),
        }
    }
}

impl Config {
    /// Reads a configuration and makes its paths whole.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let mut config: Self = toml::from_str(&text).map_err(|source| ConfigError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    fn resolve(&mut self, folder: &Path) {
        let files = [
            &mut self.root_key,
            &mut self.token_key,
            &mut self.tls_certificate,
            &mut self.tls_key,
            &mut self.admin_token_digest,
            &mut self.attestation_policy,
        ];
        for file in files
            .into_iter()
            .chain(&mut self.collateral)
            .chain(&mut self.database_ca)
        {
            *file = folder.join(&file);
        }
        if let Some(file) = self.database.strip_prefix("sqlite:") {
            self.database = format!("sqlite:{}", folder.join(file).display());
        }
    }

    /// Reads the attestation policy.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read_policy(&self) -> Result<Policy, ConfigError> {
        let path = &self.attestation_policy;
        Policy::from_toml(&read(path)?).map_err(|source| ConfigError::Policy {
            path: path.clone(),
            source: Box::new(source),
        })
    }

    /// Reads the digest of the administrator's token.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read_admin_token_digest(&self) -> Result<[u8; 32], ConfigError> {
        let mut digest = [0; 32];
        hex::decode_to_slice(read(&self.admin_token_digest)?.trim(), &mut digest).map_err(|_| {
            ConfigError::Content {
                path: self.admin_token_digest.clone(),
                problem: "not 64 hexadecimal digits".to_owned(),
            }
        })?;
        Ok(digest)
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::File {
        path: path.to_owned(),
        source,
    })
}
