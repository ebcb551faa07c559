//! `cloak run --manifest FILE`: what the manifest says, and of the command line what does not contradict it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;

use cloak_host::platform::Machine;
use cloak_host::run::stated::{Caller, StatedError, of_manifest};
use cloak_host::run::{Network, Resident, RunOptions};
use cloak_manifest::model::{NetworkMode, Volume, VolumeKind};
use cloak_manifest::{Manifest, ManifestError};

use super::Args;
use super::protected::ProtectedError;
use crate::commands::key::{self, KeyError};

/// Why it can't be run like this.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest can't be read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is none.
    #[error("{path}: {source}", path = path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: ManifestError,
    },
    /// The root key can't be had.
    #[error("root {0}")]
    RootKey(#[from] KeyError),
    /// An anchor can't be used.
    #[error("--anchor: {0}")]
    Anchor(#[from] ProtectedError),
    /// The command line says otherwise.
    #[error("{option} contradicts the manifest, which says {stated}")]
    Contradiction {
        /// The option.
        option: String,
        /// What the manifest says.
        stated: String,
    },
    /// It is the manifest that names volumes.
    #[error("{0} can't be given with --manifest: the manifest names all volumes")]
    Volume(&'static str),
    /// It shares memory with others.
    #[error(
        "the manifest shares the segment {0:?}: the contexts that share it have to be in one VM (cloak pod run)"
    )]
    Segment(String),
    /// Ports can't be published so.
    #[error("--publish: {0}")]
    Publish(String),
    /// The manifest asks for something else.
    #[error(transparent)]
    Stated(#[from] StatedError),
}

/// The options of the run.
///
/// # Errors
/// [`Error`].
pub fn options(args: Args, machine: Machine) -> Result<RunOptions, Error> {
    let path = args.manifest.clone().unwrap_or_default();
    let manifest = fs::read(&path).map_err(|source| Error::File {
        path: path.clone(),
        source,
    })?;
    let manifest = Manifest::parse(&manifest).map_err(|source| Error::Manifest { path, source })?;
    if let Some(segment) = manifest.segments.first() {
        return Err(Error::Segment(segment.name.clone()));
    }
    contradictions(&args, &manifest)?;
    super::publish::check(&args.publish).map_err(Error::Publish)?;
    let root = key::root(args.root_key.as_deref(), args.root_key_fd)?;
    let mut caller = Caller {
        arguments: args.command,
        published: args.publish,
        withheld: args.root_key.into_iter().collect(),
        machine,
        ..Caller::default()
    };
    for name in &manifest.program.untrusted_environment {
        if let Some(Ok(value)) = std::env::var_os(name).map(OsString::into_string) {
            caller.environment.insert(name.clone(), value);
        }
    }
    for variable in &args.environment {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (variable.as_str(), std::env::var(variable).ok()),
        };
        caller.insisted.push(name.to_owned());
        if let Some(value) = value {
            caller.environment.insert(name.to_owned(), value);
        }
    }
    for asked in args.anchor {
        // Before its file is made.
        let protected = |v: &&Volume| v.kind == VolumeKind::Protected;
        if !manifest
            .volumes
            .iter()
            .filter(protected)
            .any(|v| v.guest == asked.guest())
        {
            return Err(StatedError::Anchor(asked.guest().to_owned()).into());
        }
        caller.withheld.push(asked.file().to_owned());
        let (guest, anchor) = asked.open()?;
        caller.anchors.insert(guest, anchor);
    }
    let mut options = of_manifest(&manifest, root, caller)?;
    options.device = args.device;
    options.user = args.user;
    if let Some(name) = args.name {
        options.name = Some(name.as_str().to_owned());
        options.control = Some(name);
    }
    options.trace = args.trace;
    options.patch = !args.no_patch;
    options.kernel_tables = args.kernel_tables;
    options.resident = args
        .resident
        .zip(args.swap)
        .map(|(bytes, swap)| Resident { bytes, swap });
    Ok(options)
}

/// The same said twice is no contradiction.
fn contradictions(args: &Args, manifest: &Manifest) -> Result<(), Error> {
    let differ = |option: String, stated: String| Err(Error::Contradiction { option, stated });
    let resources = &manifest.resources;
    match args.cpus {
        Some(cpus) if cpus != resources.cpus as usize => {
            return differ(format!("--cpus {cpus}"), resources.cpus.to_string());
        }
        _ => {}
    }
    match args.memory {
        Some(memory) if memory != resources.memory_mib << 20 => {
            return differ(format!("--memory {memory}"), format!("{}M", resources.memory_mib));
        }
        _ => {}
    }
    match &args.workdir {
        Some(workdir) if workdir.as_os_str() != manifest.program.workdir.as_str() => {
            return differ(
                format!("--workdir {}", workdir.display()),
                manifest.program.workdir.clone(),
            );
        }
        _ => {}
    }
    let (network, name) = match manifest.network.mode {
        NetworkMode::None => (Network::None, "none"),
        NetworkMode::Host => (Network::Host, "host"),
        NetworkMode::Private => (Network::Private, "private"),
    };
    match args.network.map(Network::from) {
        Some(asked) if asked != network => {
            return differ("--network".to_owned(), name.to_owned());
        }
        _ => {}
    }
    if !args.volume.is_empty() {
        return Err(Error::Volume("--volume"));
    }
    if !args.protected.is_empty() {
        return Err(Error::Volume("--protected"));
    }
    Ok(())
}
