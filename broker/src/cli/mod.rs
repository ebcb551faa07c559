//! `cloak kbs`: sets up and runs a broker, fetches secrets from one, and keeps its secrets.

mod admin;
mod get;
mod init;
mod serve;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::attester::AttesterError;
use crate::audit::BrokenChain;
use crate::client::ClientError;
use crate::config::ConfigError;
use crate::jwe::JweError;
use crate::random::NoRandomness;
use crate::seal::SealError;
use crate::server::ServeError;
use crate::store::StoreError;

/// Run a key broker, and use one.
#[derive(Debug, Args)]
pub struct KbsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a folder with configuration, keys and a self-signed certificate.
    Init(init::InitArgs),
    /// Serve. SIGHUP takes up changed policies and certificates, SIGTERM and SIGINT stop.
    Serve(serve::ServeArgs),
    /// Fetch a secret, by showing evidence.
    Get(get::GetArgs),
    /// Write a secret, and its policy. As the administrator.
    Put(admin::PutArgs),
    /// Write the policy of a secret. As the administrator.
    SetPolicy(admin::SetPolicyArgs),
    /// List secrets. As the administrator.
    List(admin::ListArgs),
    /// Remove a secret and its policy. As the administrator.
    Remove(admin::RemoveArgs),
    /// Print the audit log and check that it is whole: over the network as the administrator, or in the database.
    Audit(admin::AuditArgs),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done. Exit code 0.
    Done,
    /// The broker refused, or the audit log is not whole. Exit code 1.
    Refused,
    /// It could not be done. Exit code 2.
    Failed,
}

impl From<Outcome> for std::process::ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Refused => 1,
            Outcome::Failed => 2,
        })
    }
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: {problem}")]
    Content { path: PathBuf, problem: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Attester(#[from] AttesterError),
    #[error(transparent)]
    Jwe(#[from] JweError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the audit log is not whole: {0}")]
    Audit(#[from] BrokenChain),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("{0}")]
    Key(String),
    #[error("writing the result: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn outcome(&self) -> Outcome {
        match self {
            CliError::Client(ClientError::Refused { .. }) | CliError::Audit(_) => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}

impl KbsArgs {
    /// Does what was asked and prints.
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Outcome {
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => return told(err, &error, Outcome::Failed),
        };
        let result = runtime.block_on(async {
            match &self.command {
                Command::Init(args) => args.run(out),
                Command::Serve(args) => args.run(out).await,
                Command::Get(args) => args.run(out).await,
                Command::Put(args) => args.run().await,
                Command::SetPolicy(args) => args.run().await,
                Command::List(args) => args.run(out).await,
                Command::Remove(args) => args.run().await,
                Command::Audit(args) => args.run(out, err).await,
            }
        });
        match result {
            Ok(()) => Outcome::Done,
            Err(error) => told(err, &error, error.outcome()),
        }
    }
}

fn told(err: &mut dyn Write, error: &dyn fmt::Display, outcome: Outcome) -> Outcome {
    // Where even that cannot be written, the exit code still says it.
    let _ = writeln!(err, "error: {error}");
    outcome
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|source| CliError::File {
        path: path.to_owned(),
        source,
    })
}

fn read_text(path: &Path) -> Result<String, CliError> {
    String::from_utf8(read(path)?).map_err(|_| CliError::Content {
        path: path.to_owned(),
        problem: "not UTF-8".to_owned(),
    })
}
