//! `cloak volume`: makes protected volumes, lists and reads what is in them, checks them, gives them new keys.
//!
//! Takes parsed arguments and writers and gives an [`Outcome`]; nothing here ends the process.

mod list;
mod output;

use std::fs;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::anchor::{Anchor, NoAnchor};
use crate::check::Report;
use crate::error::VolumeError;
use crate::files::{FileAnchor, FileStore, fresh, now, sync_folder};
use crate::keys::{VolumeKey, own_registers};
use crate::rekey::rekey;
use crate::secret::{Secret, SecretError};
use crate::view::CiphertextView;
use crate::volume::{NewVolume, Options, Volume};

/// Decrypted blocks that a command keeps.
const CACHE: usize = 64 << 20;

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or as it should be. Exit code 0.
    Done,
    /// Looked at, and not as it should be. Exit code 1.
    Differs,
    /// Could not be done. Exit code 2.
    Failed,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        ExitCode::from(match outcome {
            Outcome::Done => 0,
            Outcome::Differs => 1,
            Outcome::Failed => 2,
        })
    }
}

/// Make, list, check protected volumes, and give them new keys.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an empty volume
    Create {
        /// Container: a file that is not there yet
        container: PathBuf,
        #[command(flatten)]
        key: Key,
        /// Make the key file, too (mode 0600)
        #[arg(long, requires = "key")]
        new_key_file: bool,
        /// The container grows up to this; with K, M, G or T
        #[arg(long, value_parser = size, default_value = "1T")]
        limit: u64,
        #[command(flatten)]
        anchor: AnchorFile,
    },
    /// List what is in a volume; without a key, what anyone sees
    Ls {
        /// Container
        container: PathBuf,
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        anchor: AnchorFile,
        /// Where to begin
        #[arg(default_value = "/")]
        path: String,
        /// With everything below
        #[arg(long, short = 'R')]
        recursive: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the content of a file to standard output
    Cat {
        /// Container
        container: PathBuf,
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        anchor: AnchorFile,
        /// File in the volume
        path: String,
    },
    /// Read and check everything; says what is wrong, and where
    Check {
        /// Container
        container: PathBuf,
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        anchor: AnchorFile,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Seal everything anew under another key; needs the volume's space once more
    Rekey {
        /// Container
        container: PathBuf,
        #[command(flatten)]
        key: Key,
        /// File with the new key
        #[arg(long, value_name = "FILE", required_unless_present = "new_manifest")]
        new_key: Option<PathBuf>,
        /// Make the new key file, too (mode 0600)
        #[arg(long, requires = "new_key")]
        new_key_file: bool,
        /// The new key is the one in this manifest's context, from the same root key
        #[arg(long, value_name = "FILE", requires = "root_key", conflicts_with = "new_key")]
        new_manifest: Option<PathBuf>,
        #[command(flatten)]
        anchor: AnchorFile,
    },
}

#[derive(Debug, Args)]
struct Key {
    /// File with the volume's key: 32 bytes, mode 0600
    #[arg(long, value_name = "FILE", conflicts_with = "key_fd")]
    key: Option<PathBuf>,
    /// Descriptor to read the volume's key from
    #[arg(long, value_name = "N")]
    key_fd: Option<RawFd>,
    /// Take the key that the volume has in this manifest's context, with this build's shim
    #[arg(long, value_name = "FILE", requires = "root_key", conflicts_with_all = ["key", "key_fd"])]
    manifest: Option<PathBuf>,
    /// File with the root key that it follows from
    #[arg(long, value_name = "FILE", requires = "manifest")]
    root_key: Option<PathBuf>,
    /// Which of the manifest's protected volumes, if it has several
    #[arg(long, value_name = "PATH", requires = "manifest")]
    guest: Option<String>,
}

/// Knows the keys of volumes that manifests name: manifests are beyond this crate.
pub trait Derive {
    /// The key of a manifest's volume from a root key, both files; without a guest path of the only protected volume.
    ///
    /// # Errors
    /// What is wrong with manifest, key or path.
    fn derive(
        &self,
        manifest: &Path,
        root: &Path,
        guest: Option<&str>,
    ) -> Result<Secret, Box<dyn std::error::Error>>;
}

#[derive(Debug, Args)]
struct AnchorFile {
    /// File that remembers the volume's last root, against rollback
    #[arg(long, value_name = "FILE")]
    anchor: Option<PathBuf>,
    /// Make that file if it is missing: the volume is trusted as it is now
    #[arg(long, requires = "anchor")]
    begin_anchor: bool,
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: another process has it open")]
    Busy { path: PathBuf },
    #[error("{path}: {source}")]
    Volume { path: PathBuf, source: VolumeError },
    #[error(transparent)]
    Key(#[from] SecretError),
    #[error("the manifest's key: {0}")]
    Derive(Box<dyn std::error::Error>),
    #[error("which key? give --key FILE, --key-fd N, or --manifest FILE with --root-key FILE")]
    NoKey,
    #[error("--key-fd: there is no descriptor {0}")]
    Descriptor(RawFd),
    #[error("{0}: no such file in the volume")]
    Path(String),
    #[error("writing the result: {0}")]
    Output(#[from] io::Error),
    #[error("writing the result: {0}")]
    Json(#[from] serde_json::Error),
}

type Done = Result<Outcome, CommandError>;

impl VolumeArgs {
    /// Does what was asked and prints.
    pub fn run(&self, keys: &dyn Derive, out: &mut dyn Write, err: &mut dyn Write) -> Outcome {
        let result = match &self.command {
            Command::Create {
                container,
                key,
                new_key_file,
                limit,
                anchor,
            } => key
                .create_if(*new_key_file)
                .and_then(|()| key.read(keys))
                .and_then(|key| create(container, key, *limit, anchor, out)),
            Command::Ls {
                container,
                key,
                anchor,
                path,
                recursive,
                json,
            } => match key.read(keys) {
                Ok(key) => open(container, key, anchor)
                    .and_then(|mut volume| list::list(&mut volume, container, path, *recursive, *json, out)),
                Err(CommandError::NoKey) => opaque(container, *json, out),
                Err(error) => Err(error),
            },
            Command::Cat {
                container,
                key,
                anchor,
                path,
            } => key
                .read(keys)
                .and_then(|key| open(container, key, anchor))
                .and_then(|mut volume| list::cat(&mut volume, container, path, out)),
            Command::Check {
                container,
                key,
                anchor,
                json,
            } => key
                .read(keys)
                .and_then(|key| check(container, key, anchor, *json, out, err)),
            Command::Rekey {
                container,
                key,
                new_key,
                new_key_file,
                new_manifest,
                anchor,
            } => key
                .new_one(new_key.as_deref(), *new_key_file, new_manifest.as_deref(), keys)
                .and_then(|new| {
                    key.read(keys)
                        .and_then(|key| change_key(container, key, new, anchor, out, err))
                }),
        };
        result.unwrap_or_else(|error| {
            // Where even that cannot be written, the exit code still says it.
            let _ = writeln!(err, "error: {error}");
            Outcome::Failed
        })
    }
}

impl Key {
    fn create_if(&self, wanted: bool) -> Result<(), CommandError> {
        match &self.key {
            Some(path) if wanted => Secret::create(path).map(drop).map_err(Into::into),
            _ => Ok(()),
        }
    }

    fn read(&self, keys: &dyn Derive) -> Result<VolumeKey, CommandError> {
        if let Some(manifest) = &self.manifest {
            return self.derived(manifest, keys);
        }
        let secret = match (&self.key, self.key_fd) {
            (Some(path), _) => Secret::open(path)?,
            (None, Some(fd)) => Secret::read(descriptor(fd)?, Path::new("from --key-fd"))?,
            (None, None) => return Err(CommandError::NoKey),
        };
        Ok(VolumeKey::new(secret.into_bytes()))
    }
}

impl Key {
    fn derived(&self, manifest: &Path, keys: &dyn Derive) -> Result<VolumeKey, CommandError> {
        let root = self.root_key.as_deref().ok_or(CommandError::NoKey)?;
        let secret = keys.derive(manifest, root, self.guest.as_deref());
        Ok(VolumeKey::new(secret.map_err(CommandError::Derive)?.into_bytes()))
    }

    /// The key that is to take its place.
    fn new_one(
        &self,
        file: Option<&Path>,
        make: bool,
        manifest: Option<&Path>,
        keys: &dyn Derive,
    ) -> Result<VolumeKey, CommandError> {
        let secret = match (file, manifest) {
            (_, Some(manifest)) => return self.derived(manifest, keys),
            (Some(file), None) if make => Secret::create(file)?,
            (Some(file), None) => Secret::open(file)?,
            (None, None) => return Err(CommandError::NoKey),
        };
        Ok(VolumeKey::new(secret.into_bytes()))
    }
}

/// The descriptor of a number, opened anew through `/proc`: a number alone can't be owned without `unsafe`.
fn descriptor(fd: RawFd) -> Result<OwnedFd, CommandError> {
    let opened = fs::File::open(format!("/proc/self/fd/{fd}"));
    opened
        .map(OwnedFd::from)
        .map_err(|_| CommandError::Descriptor(fd))
}

impl AnchorFile {
    fn anchor(&self, beginning: bool) -> Box<dyn Anchor + Send> {
        match &self.anchor {
            None => Box::new(NoAnchor),
            Some(path) if beginning || self.begin_anchor => Box::new(FileAnchor::begin(path)),
            Some(path) => Box::new(FileAnchor::existing(path)),
        }
    }
}

fn options(anchor: Box<dyn Anchor + Send>) -> Result<Options, CommandError> {
    Ok(Options {
        cache_bytes: CACHE,
        clock: now,
        expected: None,
        anchor,
        fresh: fresh()?,
        wide: own_registers,
    })
}

fn store(path: &Path, opened: io::Result<FileStore>) -> Result<FileStore, CommandError> {
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => CommandError::Busy {
            path: path.to_owned(),
        },
        _ => CommandError::File {
            path: path.to_owned(),
            source,
        },
    })
}

fn of(path: &Path) -> impl Fn(VolumeError) -> CommandError {
    move |source| CommandError::Volume {
        path: path.to_owned(),
        source,
    }
}

/// Opens for reading only.
fn open(path: &Path, key: VolumeKey, anchor: &AnchorFile) -> Result<Volume<FileStore>, CommandError> {
    let store = store(path, FileStore::open(path, false))?;
    Volume::open_read_only(store, key, options(anchor.anchor(false))?).map_err(of(path))
}

fn create(path: &Path, key: VolumeKey, limit: u64, anchor: &AnchorFile, out: &mut dyn Write) -> Done {
    let file = store(path, FileStore::create(path))?;
    let new = NewVolume {
        limit,
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    let made = Volume::create(file, key, &new, options(anchor.anchor(true))?)
        .and_then(|volume| {
            let id = volume.id();
            volume.close().map(|_| id)
        })
        .map_err(of(path));
    if made.is_err() {
        // It was made above and holds nothing.
        let _ = fs::remove_file(path);
    }
    let id = made?;
    sync_folder(path)?;
    writeln!(out, "{id}")?;
    Ok(Outcome::Done)
}

fn opaque(path: &Path, json: bool, out: &mut dyn Write) -> Done {
    let store = store(path, FileStore::open(path, false))?;
    let view = CiphertextView::open(store).map_err(of(path))?;
    output::opaque(&view, json, out)?;
    Ok(Outcome::Done)
}

fn check(
    path: &Path,
    key: VolumeKey,
    anchor: &AnchorFile,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Done {
    let mut volume = match open(path, key, anchor) {
        Ok(volume) => volume,
        // What keeps a volume from being opened is what a check is for.
        Err(CommandError::Volume { source, .. }) if !matches!(source, VolumeError::Store { .. }) => {
            let mut report = Report::default();
            report.find("volume", source);
            output::report(&report, json, out)?;
            return Ok(Outcome::Differs);
        }
        Err(error) => return Err(error),
    };
    let mut progress = output::Progress::new("blocks checked", err);
    let report = volume
        .check(&mut |blocks| progress.at(blocks))
        .map_err(of(path))?;
    progress.done();
    output::report(&report, json, out)?;
    Ok(if report.is_good() {
        Outcome::Done
    } else {
        Outcome::Differs
    })
}

fn change_key(
    path: &Path,
    key: VolumeKey,
    new_key: VolumeKey,
    anchor: &AnchorFile,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Done {
    // Alone: what is written while it is copied would be lost.
    let old = store(path, FileStore::open(path, true))?;
    let mut old = Volume::open_read_only(old, key, options(anchor.anchor(false))?).map_err(of(path))?;
    let mut name = path.to_owned().into_os_string();
    name.push(".rekey");
    let beside = PathBuf::from(name);
    // What an interrupted run left there is of no use.
    match fs::remove_file(&beside) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(CommandError::File { path: beside, source });
        }
        _ => {}
    }
    let file = store(&beside, FileStore::create(&beside))?;
    let mut progress = output::Progress::new("inodes copied", err);
    let new = rekey(&mut old, file, new_key, options(Box::new(NoAnchor))?, &mut |n| {
        progress.at(n)
    });
    progress.done();
    let mut new = new.map_err(of(&beside)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })?;
    let file = |source| CommandError::File {
        path: path.to_owned(),
        source,
    };
    fs::rename(&beside, path)
        .and_then(|()| sync_folder(path))
        .map_err(file)?;
    // From here on the new container is the one that counts; the anchor took it for the old one's successor anyway.
    if anchor.anchor.is_some() {
        anchor
            .anchor(false)
            .advance(&new.mark())
            .map_err(|e| of(path)(e.into()))?;
    }
    new.sync_all().map_err(of(path))?;
    writeln!(out, "{}: new key, counter {}", new.id(), new.mark().counter)?;
    Ok(Outcome::Done)
}

/// A number of bytes with K, M, G or T.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number of bytes, with K, M, G or T".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}
