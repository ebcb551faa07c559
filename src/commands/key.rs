//! `cloak key`: root keys, which a context's keys follow from.

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cloak_host::run::stated::Stated;
use cloak_manifest::model::VolumeKind;
use cloak_manifest::{Manifest, Purpose, RootKey, keys};
use cloak_volumes::cli::Derive;
use cloak_volumes::secret::Secret;

/// Why a key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Its file or what was in it.
    #[error(transparent)]
    File(#[from] keys::KeyError),
    /// There is no such descriptor.
    #[error("key: there is no descriptor {0}")]
    Descriptor(u32),
}

/// Make root keys.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a root key: a file of 32 random bytes with mode 0600 that is not there yet
    New {
        /// The file
        file: PathBuf,
    },
}

/// Does what was asked.
pub fn run(args: &Args) -> ExitCode {
    let Command::New { file } = &args.command;
    match RootKey::create(file) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The root key of a file or a descriptor, if one is named.
///
/// # Errors
/// [`KeyError`].
pub fn root(file: Option<&Path>, descriptor: Option<u32>) -> Result<Option<RootKey>, KeyError> {
    if let Some(file) = file {
        return Ok(Some(RootKey::open(file)?));
    }
    let Some(number) = descriptor else {
        return Ok(None);
    };
    // Opened anew: a number alone can't be owned without `unsafe`.
    let opened = File::open(format!("/proc/self/fd/{number}"));
    let fd = opened.map_err(|_| KeyError::Descriptor(number))?;
    Ok(Some(RootKey::read(
        OwnedFd::from(fd),
        Path::new("from the descriptor"),
    )?))
}

/// Keys of volumes that a manifest names, for `cloak volume`.
#[derive(Debug)]
pub struct OfManifests;

impl Derive for OfManifests {
    fn derive(&self, manifest: &Path, root: &Path, guest: Option<&str>) -> Result<Secret, Box<dyn Error>> {
        let bytes = fs::read(manifest).map_err(|error| format!("{}: {error}", manifest.display()))?;
        let parsed = Manifest::parse(&bytes).map_err(|error| format!("{}: {error}", manifest.display()))?;
        let protected = parsed.volumes.iter().filter(|v| v.kind == VolumeKind::Protected);
        let named: Vec<&str> = protected.map(|v| v.guest.as_str()).collect();
        let guest = match (guest, named.as_slice()) {
            (Some(guest), all) if all.contains(&guest) => guest,
            (None, [only]) => only,
            (_, []) => return Err(format!("{} names no protected volume", manifest.display()).into()),
            (_, all) => {
                return Err(format!("which volume? give --guest with one of {}", all.join(", ")).into());
            }
        };
        let stated = Stated::of(&parsed)?;
        let root = RootKey::open(root)?;
        Ok(Secret::from_bytes(
            root.derive(&stated.identity, Purpose::Volume(guest)),
        ))
    }
}
