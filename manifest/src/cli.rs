//! `cloak manifest`: writes a first manifest, checks one, prints digests, identity and schema.
//!
//! Takes parsed arguments and two writers and gives an [`Outcome`]; nothing here ends the process.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
pub use cloak_volumes::cli::Outcome;

use crate::identity::{Digest, Identity, NotADigest};
use crate::loads::{LoadError, files_of};
use crate::model::{
    Broker, Keys, Link, Manifest, MeasuredFile, Network, NetworkMode, Platform, Program, Resources, Secret,
    Volume, VolumeKind, json_schema,
};
use crate::text::ManifestError;
use crate::verity;

/// Write and check manifests.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a first manifest for a program, with the digests of the files that it loads
    Init(InitArgs),
    /// Check a manifest, and that the files it measures are what it says
    Check {
        /// Manifest, TOML
        manifest: PathBuf,
        /// Look for the measured files below this folder
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// Print a manifest in the form that digests are taken of
    Canonical {
        /// Manifest, TOML
        manifest: PathBuf,
    },
    /// Print a manifest's digests and, with a shim's, the identity
    Identity {
        /// Manifest, TOML
        manifest: PathBuf,
        /// SHA-384 of the shim, as `cloak measure --shim` prints it
        #[arg(long, value_name = "HEX")]
        shim: Option<String>,
    },
    /// Print the fs-verity digests of files
    Digest {
        /// Files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the JSON schema of manifests
    Schema,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Name of the context (default: the program's)
    #[arg(long)]
    name: Option<String>,
    /// Measure this file too, or all that is below this folder: what the program opens by itself (repeatable)
    #[arg(long, value_name = "PATH")]
    add: Vec<PathBuf>,
    /// Key broker that releases secrets (https://HOST or https://HOST:PORT); this program becomes their helper, and is measured
    #[arg(long, value_name = "URL", requires = "broker_ca")]
    broker: Option<String>,
    /// Certificates that the broker's has to come from, PEM
    #[arg(long, value_name = "FILE", requires = "broker")]
    broker_ca: Option<PathBuf>,
    /// A secret, as the broker calls it, and the file in memory that it appears in (repeatable)
    #[arg(long, value_name = "NAME=PATH", requires = "broker", value_parser = pair)]
    secret: Vec<(String, String)>,
    /// The secret that the context's keys follow from
    #[arg(long, value_name = "NAME", requires = "broker")]
    released: Option<String>,
    /// A protected volume: its container, and where it appears (repeatable)
    #[arg(long, value_name = "CONTAINER=GUEST", value_parser = pair)]
    protected: Vec<(String, String)>,
    /// Program, as a path
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Manifest { path: PathBuf, source: ManifestError },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("--shim: {0}")]
    Shim(#[from] NotADigest),
    #[error("writing the result: {0}")]
    Output(#[from] io::Error),
    #[error("writing the schema: {0}")]
    Json(#[from] serde_json::Error),
}

impl ManifestArgs {
    /// Does what was asked and prints.
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Outcome {
        let result = match &self.command {
            Command::Init(args) => args.write(out),
            Command::Check { manifest, root } => check(manifest, root, out, err),
            Command::Canonical { manifest } => canonical(manifest, out),
            Command::Identity { manifest, shim } => identity(manifest, shim.as_deref(), out),
            Command::Digest { files } => digests(files, out),
            Command::Schema => schema(out),
        };
        result.unwrap_or_else(|error| {
            // Where even that cannot be written, the exit code still says it.
            let _ = writeln!(err, "error: {error}");
            Outcome::Failed
        })
    }
}

impl InitArgs {
    fn write(&self, out: &mut dyn Write) -> Result<Outcome, CommandError> {
        let file = |source| CommandError::File {
            path: self.program.clone(),
            source,
        };
        let program = std::path::absolute(&self.program).map_err(file)?;
        let mut needed = files_of(&program)?;
        let broker = self.broker()?;
        if let Some(broker) = &broker {
            needed.add(Path::new(&broker.helper))?;
        }
        for path in &self.add {
            needed.add(path)?;
        }
        let mut files = Vec::new();
        for path in &needed.files {
            files.push(MeasuredFile {
                digest: file_digest(path)?,
                path: text(path)?,
            });
        }
        let mut links = Vec::new();
        for (path, target) in &needed.links {
            links.push(Link {
                path: text(path)?,
                target: text(target)?,
            });
        }
        // Symbolic links of folders go, the program's own name stays: many programs look at it.
        let folder = program.parent().unwrap_or(Path::new("/"));
        let folder = fs::canonicalize(folder).map_err(file)?;
        let path = folder.join(program.file_name().unwrap_or_default());
        let mut volumes = vec![Volume {
            guest: "/".to_owned(),
            kind: VolumeKind::Measured,
            source: Some("/".to_owned()),
            read_only: true,
            exclusive: false,
        }];
        // A volume there would hide what is measured below.
        if !needed
            .files
            .iter()
            .chain(needed.links.keys())
            .any(|path| path.starts_with("/tmp"))
        {
            volumes.push(volume("/tmp", VolumeKind::Memory, None));
        }
        for (container, guest) in &self.protected {
            let source = std::path::absolute(container).map_err(file)?;
            volumes.push(volume(guest, VolumeKind::Protected, Some(text(&source)?)));
        }
        for (_, path) in &self.secret {
            let folder = Path::new(path)
                .parent()
                .and_then(Path::to_str)
                .unwrap_or_default();
            // A folder in memory for what is in none yet.
            if !volumes
                .iter()
                .any(|v| v.kind != VolumeKind::Measured && Path::new(folder).starts_with(&v.guest))
            {
                volumes.push(volume(folder, VolumeKind::Memory, None));
            }
        }
        let manifest = Manifest {
            version: 1,
            name: self.name.clone().unwrap_or_else(|| name_of(&path)),
            program: Program {
                path: text(&path)?,
                args: self.args.clone(),
                workdir: "/".to_owned(),
                environment: [
                    ("PATH", "/usr/local/bin:/usr/bin:/bin"),
                    ("HOME", "/"),
                    ("LANG", "C.UTF-8"),
                ]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
                untrusted_environment: Vec::new(),
                untrusted_args: false,
                exec: false,
            },
            resources: Resources::default(),
            platform: Platform::default(),
            network: Network {
                mode: if broker.is_some() {
                    NetworkMode::Host
                } else {
                    NetworkMode::None
                },
                publish: Vec::new(),
            },
            volumes,
            files,
            links,
            broker,
            keys: Keys {
                released: self.released.clone(),
            },
            secrets: self.secret.iter().map(secret).collect(),
            segments: Vec::new(),
        };
        let of = |source| CommandError::Manifest {
            path: self.program.clone(),
            source,
        };
        manifest.check().map_err(of)?;
        write!(out, "{}", manifest.canonical().map_err(of)?)?;
        Ok(Outcome::Done)
    }
}

impl InitArgs {
    fn broker(&self) -> Result<Option<Broker>, CommandError> {
        let (Some(url), Some(ca)) = (&self.broker, &self.broker_ca) else {
            return Ok(None);
        };
        let ca = fs::read_to_string(ca).map_err(|source| CommandError::File {
            path: ca.clone(),
            source,
        })?;
        let helper = std::env::current_exe().and_then(fs::canonicalize);
        let helper = helper.map_err(|source| CommandError::File {
            path: "/proc/self/exe".into(),
            source,
        })?;
        Ok(Some(Broker {
            url: url.clone(),
            ca,
            helper: text(&helper)?,
        }))
    }
}

fn secret((name, path): &(String, String)) -> Secret {
    Secret {
        name: name.clone(),
        path: Some(path.clone()),
        variable: None,
    }
}

fn volume(guest: &str, kind: VolumeKind, source: Option<String>) -> Volume {
    Volume {
        guest: guest.to_owned(),
        kind,
        source,
        read_only: false,
        exclusive: false,
    }
}

/// Two texts with the last `=` between them.
fn pair(text: &str) -> Result<(String, String), String> {
    let (first, second) = text.rsplit_once('=').ok_or("there is no = in it")?;
    Ok((first.to_owned(), second.to_owned()))
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.chars().filter(|&c| good(c)).take(64).collect();
    if name.is_empty() {
        "program".to_owned()
    } else {
        name
    }
}

fn text(path: &Path) -> Result<String, LoadError> {
    let text = path.to_str().ok_or_else(|| LoadError::Path(path.to_owned()))?;
    Ok(text.to_owned())
}

fn read(path: &Path) -> Result<Manifest, CommandError> {
    let bytes = fs::read(path).map_err(|source| CommandError::File {
        path: path.to_owned(),
        source,
    })?;
    Manifest::parse(&bytes).map_err(|source| CommandError::Manifest {
        path: path.to_owned(),
        source,
    })
}

fn file_digest(path: &Path) -> Result<Digest<32>, CommandError> {
    let digest = File::open(path).and_then(|f| verity::digest(BufReader::with_capacity(1 << 16, f)));
    digest.map_err(|source| CommandError::File {
        path: path.to_owned(),
        source,
    })
}

fn check(
    path: &Path,
    root: &Path,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Outcome, CommandError> {
    let manifest = read(path)?;
    let mut outcome = Outcome::Done;
    for file in &manifest.files {
        let at = root.join(file.path.trim_start_matches('/'));
        match file_digest(&at) {
            Ok(found) if found == file.digest => {}
            Ok(found) => {
                writeln!(
                    err,
                    "{}: its digest is {found}, the manifest says {}",
                    file.path, file.digest
                )?;
                outcome = Outcome::Differs;
            }
            Err(error) => {
                writeln!(err, "{error}")?;
                outcome = Outcome::Differs;
            }
        }
    }
    if outcome == Outcome::Done {
        writeln!(
            out,
            "{}: good, {} files measured",
            manifest.name,
            manifest.files.len()
        )?;
    }
    Ok(outcome)
}

fn canonical(path: &Path, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let manifest = read(path)?;
    let text = manifest.canonical().map_err(|source| CommandError::Manifest {
        path: path.to_owned(),
        source,
    })?;
    write!(out, "{text}")?;
    Ok(Outcome::Done)
}

fn identity(path: &Path, shim: Option<&str>, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let digests = read(path)?.digests().map_err(|source| CommandError::Manifest {
        path: path.to_owned(),
        source,
    })?;
    writeln!(out, "sha256   {}", digests.sha256)?;
    writeln!(out, "sha384   {}", digests.sha384)?;
    if let Some(shim) = shim {
        writeln!(out, "identity {}", Identity::of(&shim.parse()?, &digests))?;
    }
    Ok(Outcome::Done)
}

/// In the format of `fsverity digest`.
fn digests(files: &[PathBuf], out: &mut dyn Write) -> Result<Outcome, CommandError> {
    for path in files {
        writeln!(out, "sha256:{} {}", file_digest(path)?, path.display())?;
    }
    Ok(Outcome::Done)
}

fn schema(out: &mut dyn Write) -> Result<Outcome, CommandError> {
    serde_json::to_writer_pretty(&mut *out, &json_schema())?;
    writeln!(out)?;
    Ok(Outcome::Done)
}
