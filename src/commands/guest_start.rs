//! `cloak guest-start`: what a context with secrets starts with, inside. It proves to the manifest's broker what runs, takes what is
//! released, leaves it where the manifest says, and becomes the program.
//!
//! It is an ordinary program in the guest, and measured as one: the manifest lists it. Whoever answers at the broker's address has
//! to have the certificate that the manifest names; what it releases is encrypted to a key that is in the evidence
//! (docs/kbs.md). So the network and the host, which carries it, see neither.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cloak_broker::attester::{AttesterError, CONFIGFS_TSM, ConfigfsTsm};
use cloak_broker::client::{Client, ClientError, Session};
use cloak_broker::path::{PathError, ResourcePath};
use cloak_manifest::model::Secret;
use cloak_manifest::{Manifest, ManifestError};
use zeroize::Zeroizing;

/// The canonical form of the manifest, which the machine was launched for.
const MANIFEST: &str = "/sys/kernel/cloak/manifest";
/// Takes the root of the context's keys.
const ROOT_KEY: &str = "/sys/kernel/cloak/root_key";

/// The program to become, and its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    command: Vec<std::ffi::OsString>,
}

/// Why the program does not start.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the manifest: {0}")]
    Manifest(#[from] ManifestError),
    #[error("the manifest names no broker: this starts programs of contexts that have secrets")]
    NoBroker,
    #[error("the secret {name:?}: {source}")]
    Name { name: String, source: PathError },
    #[error("there is nothing to prove with what runs: {0}")]
    Evidence(#[from] AttesterError),
    #[error("the broker at {url} gives no session: {source}")]
    Session { url: String, source: ClientError },
    #[error("the broker at {url} does not release {name:?}: {source}")]
    Secret {
        url: String,
        name: String,
        source: ClientError,
    },
    #[error("the secret {name:?} can't be the variable {variable}: it is no text without NUL bytes")]
    Variable { name: String, variable: String },
    #[error("starting threads of the client: {0}")]
    Threads(io::Error),
    #[error("{path}: {source}", path = path.display())]
    Program { path: PathBuf, source: io::Error },
}

fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
    let path = path.as_ref().to_owned();
    |source| Error::File { path, source }
}

/// Fetches, and becomes the program. It comes back only where that fails.
pub fn run(args: &Args) -> ExitCode {
    let Err(error) = start(args);
    eprintln!("cloak: {error}");
    ExitCode::from(super::super::FAILED)
}

fn start(args: &Args) -> Result<std::convert::Infallible, Error> {
    let manifest = Manifest::parse(&fs::read(MANIFEST).map_err(at(MANIFEST))?)?;
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::Threads)?;
    for (variable, value) in runtime.block_on(fetch(&manifest))? {
        command.env(variable, value);
    }
    drop(runtime);
    let source = command.exec();
    Err(Error::Program {
        path: args.command[0].clone().into(),
        source,
    })
}

/// Takes everything that is released; gives the variables.
async fn fetch(manifest: &Manifest) -> Result<Vec<(String, String)>, Error> {
    let broker = manifest.broker.as_ref().ok_or(Error::NoBroker)?;
    let attester = ConfigfsTsm::open(CONFIGFS_TSM.as_ref())?;
    let refused = |source| Error::Session {
        url: broker.url.clone(),
        source,
    };
    let mut client = Client::trusting(&broker.url, broker.ca.as_bytes()).map_err(refused)?;
    let session = client.attest(&attester).await.map_err(refused)?;
    let mut broker = Broker {
        url: &broker.url,
        client,
        session,
    };
    // First: secrets may go into a volume that it opens.
    if let Some(name) = &manifest.keys.released {
        let key = broker.get(name).await?;
        fs::write(ROOT_KEY, &key).map_err(at(ROOT_KEY))?;
    }
    let mut variables = Vec::new();
    for secret in &manifest.secrets {
        let content = broker.get(&secret.name).await?;
        variables.extend(place(secret, &content)?);
    }
    Ok(variables)
}

struct Broker<'a> {
    url: &'a str,
    client: Client,
    session: Session,
}

impl Broker<'_> {
    async fn get(&mut self, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let full = if name.contains('/') {
            name.to_owned()
        } else {
            format!("default/secret/{name}")
        };
        let path: ResourcePath = full.parse().map_err(|source| Error::Name {
            name: name.to_owned(),
            source,
        })?;
        let released = self.client.get(&self.session, &path).await;
        released.map_err(|source| Error::Secret {
            url: self.url.to_owned(),
            name: full,
            source,
        })
    }
}

/// Leaves a secret in its file, for its owner only, and gives its variable.
fn place(secret: &Secret, content: &[u8]) -> Result<Option<(String, String)>, Error> {
    if let Some(path) = &secret.path {
        let new = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path);
        new.and_then(|mut file| file.write_all(content))
            .map_err(at(path))?;
    }
    let Some(variable) = &secret.variable else {
        return Ok(None);
    };
    match std::str::from_utf8(content) {
        Ok(text) if !text.contains('\0') => Ok(Some((variable.clone(), text.to_owned()))),
        _ => Err(Error::Variable {
            name: secret.name.clone(),
            variable: variable.clone(),
        }),
    }
}
