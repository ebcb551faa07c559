//! From a manifest to a run, and from a run without one to the manifest that says the same.
//!
//! ```text
//!   Manifest + RootKey + Caller ──of_manifest──▶ RunOptions ──run──▶ VM, with the manifest and its identity in it
//!   RunOptions without a manifest ──of_options──▶ Manifest
//! ```
//! On plain KVM the monitor, which is trusted, does this translation; what it comes out as is enforced by the libos. The OS service
//! sees the mounts and whether there is a network.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use cloak_manifest::model::{
    Keys, Network as StatedNetwork, NetworkMode, Platform, PlatformKind, Program, Resources,
    Volume as StatedVolume, VolumeKind,
};
use cloak_manifest::{Digest, Identity, Manifest, ManifestDigests, ManifestError, Purpose, RootKey};

use crate::platform::Machine;

use super::configuration;
use super::{Anchor, Environment, Network, Protected, Published, RunOptions, Volume, VolumeKey};

/// What the one who starts a context may say about it beside its manifest.
#[derive(Debug, Default)]
pub struct Caller {
    /// Arguments to add, if the manifest allows that.
    pub arguments: Vec<OsString>,
    /// Values for variables that the manifest leaves to the caller. Others are an error in `insisted`, and are
    /// passed over in here.
    pub environment: BTreeMap<String, String>,
    /// Ports to publish, of those that the manifest lets be published.
    pub published: Vec<Published>,
    /// Names of variables that the caller set on purpose.
    pub insisted: Vec<String>,
    /// What remembers the last roots of protected volumes, by their guest paths.
    pub anchors: BTreeMap<String, Box<dyn Anchor>>,
    /// Files that the OS side must not read or change: of the root key, of anchors.
    pub withheld: Vec<PathBuf>,
    /// Kind of machine.
    pub machine: Machine,
}

/// Why a manifest can't be run like this.
#[derive(Debug, thiserror::Error)]
pub enum StatedError {
    /// It can't be written down.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Not on this kind of machine.
    #[error("the manifest accepts the platforms {accepted}; this is {found}")]
    Platform {
        /// What this is.
        found: &'static str,
        /// What it accepts.
        accepted: String,
    },
    /// Arguments that nobody allowed.
    #[error(
        "the manifest does not let the caller add arguments (program.untrusted_args), and there are: {0:?}"
    )]
    Arguments(Vec<OsString>),
    /// A variable that nobody allowed.
    #[error("the manifest does not leave {0} to the caller (program.untrusted_environment)")]
    Variable(String),
    /// A key where none is wanted.
    #[error("a root key is for plain KVM; on a measured machine keys come from inside (docs/manifest.md)")]
    RootKey,
    /// A protected volume whose key would end with the run.
    #[error(
        "the volume at {0} is protected, and its key follows from a root key: give one with --root-key FILE \
         (cloak key new FILE makes it)"
    )]
    NoRootKey(String),
    /// An anchor for nothing.
    #[error("there is no protected volume at {0} to be anchored")]
    Anchor(String),
    /// A port that nobody allowed.
    #[error("the manifest does not let the port {0} be published (network.publish)")]
    Publish(String),
    /// Something that is not there yet: to go on without it would not be what the manifest says.
    #[error("the manifest names {what}, which cloak run does not have: {why}")]
    Missing {
        /// What.
        what: String,
        /// What would be needed.
        why: &'static str,
    },
    /// There is no randomness.
    #[error("drawing a key for this run: {0}")]
    Random(#[from] io::Error),
}

/// Measured volumes, and what is measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    /// Where the OS side has the contents, and where the guest sees them.
    pub volumes: Vec<(PathBuf, String)>,
    /// fs-verity digest and guest path of each file.
    pub files: Vec<([u8; 32], String)>,
    /// Guest path and target of each link.
    pub links: Vec<(String, String)>,
}

/// A manifest as it travels into a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    /// SHA-384 of the shim of this build.
    pub shim: Digest<48>,
    /// The manifest's canonical form.
    pub canonical: String,
    /// What follows from both.
    pub identity: Identity,
    /// Whether the owner may start further programs, and see the context's memory.
    pub exec: bool,
    /// What a measured launch is bound to: SHA-256 of the canonical form.
    pub host_data: [u8; 32],
    /// What a domain is bound to: SHA-384 of it.
    pub config_id: [u8; 48],
}

impl Stated {
    /// What a manifest makes of a context, with this build's shim.
    ///
    /// # Errors
    /// [`ManifestError::Write`].
    pub fn of(manifest: &Manifest) -> Result<Self, ManifestError> {
        let shim = Digest(crate::shim_digest());
        let canonical = manifest.canonical()?;
        let digests: ManifestDigests = manifest.digests()?;
        Ok(Self {
            shim,
            canonical,
            exec: manifest.program.exec,
            identity: Identity::of(&shim, &digests),
            host_data: digests.sha256.0,
            config_id: digests.sha384.0,
        })
    }
}

/// What a manifest says, as options of a run. Those that it does not say (`--trace`, `--resident`, `--name` and the like) are the
/// defaults' and may be changed afterwards.
///
/// # Errors
/// [`StatedError`].
pub fn of_manifest(
    manifest: &Manifest,
    root: Option<RootKey>,
    mut caller: Caller,
) -> Result<RunOptions, StatedError> {
    refuse_what_is_not_there(manifest, &caller.machine)?;
    if root.is_some() && !matches!(caller.machine, Machine::Plain) {
        return Err(StatedError::RootKey);
    }
    let program = &manifest.program;
    if !program.untrusted_args && !caller.arguments.is_empty() {
        return Err(StatedError::Arguments(caller.arguments));
    }
    let stated = Stated::of(manifest)?;
    let measured = !matches!(caller.machine, Machine::Plain);
    let mut options = RunOptions {
        cpus: Some(manifest.resources.cpus as usize),
        memory: manifest.resources.memory_mib << 20,
        environment: environment(program, &caller)?,
        workdir: Some(program.workdir.clone().into()),
        name: Some(manifest.name.clone()),
        network: match manifest.network.mode {
            NetworkMode::None => Network::None,
            NetworkMode::Host => Network::Host,
            NetworkMode::Private => Network::Private,
        },
        published: published(manifest, std::mem::take(&mut caller.published))?,
        host_root: None,
        machine: std::mem::take(&mut caller.machine),
        withheld: std::mem::take(&mut caller.withheld),
        ..RunOptions::new(
            first_program(manifest)
                .into_iter()
                .map(OsString::from)
                .chain(program.args.iter().map(OsString::from))
                .chain(std::mem::take(&mut caller.arguments))
                .collect(),
        )
    };
    for volume in &manifest.volumes {
        let key = |guest: &str| match &root {
            // The guest has it from elsewhere.
            _ if measured => Ok(VolumeKey::Inside),
            Some(root) => Ok(VolumeKey::Given(
                root.derive(&stated.identity, Purpose::Volume(guest)),
            )),
            None => Err(StatedError::NoRootKey(guest.to_owned())),
        };
        add_volume(&mut options, volume, key, &mut caller)?;
    }
    if let Some(guest) = caller.anchors.into_keys().next() {
        return Err(StatedError::Anchor(guest));
    }
    options.measured.files = manifest
        .files
        .iter()
        .map(|f| (f.digest.0, f.path.clone()))
        .collect();
    options.measured.links = manifest
        .links
        .iter()
        .map(|l| (l.path.clone(), l.target.clone()))
        .collect();
    let root = root.map_or_else(RootKey::ephemeral, Ok)?;
    options.memory_key = Some(root.derive(&stated.identity, Purpose::Memory));
    options.stated = Some(stated);
    Ok(options)
}

/// The program with its own name; where something is released to it, what fetches that and then becomes it.
fn first_program(manifest: &Manifest) -> Vec<&str> {
    let program = manifest.program.path.as_str();
    match &manifest.broker {
        Some(broker) if manifest.needs_broker() => vec![&broker.helper, START, "--", program],
        _ => vec![program],
    }
}

/// First argument of the helper of secrets, as the libos knows it, too (`stated::check`).
pub const START: &str = "guest-start";

/// How a manifest names a machine: a simulated one as what it simulates.
fn kind(machine: &Machine) -> (PlatformKind, &'static str) {
    match machine {
        Machine::Plain => (PlatformKind::Plain, "plain KVM"),
        Machine::Snp(_) => (PlatformKind::Snp, "SEV-SNP"),
        Machine::Tdx(_) => (PlatformKind::Tdx, "TDX"),
        Machine::SimulatedSnp(_) => (PlatformKind::Snp, "SEV-SNP, simulated"),
        Machine::SimulatedTdx(_) => (PlatformKind::Tdx, "TDX, simulated"),
    }
}

fn refuse_what_is_not_there(manifest: &Manifest, machine: &Machine) -> Result<(), StatedError> {
    let accept = &manifest.platform.accept;
    let (kind, found) = kind(machine);
    if !accept.contains(&kind) {
        let names: Vec<String> = accept.iter().map(|p| format!("{p:?}").to_lowercase()).collect();
        return Err(StatedError::Platform {
            found,
            accepted: names.join(", "),
        });
    }
    let released = manifest.secrets.iter().map(|secret| &secret.name);
    let mut released = released.chain(&manifest.keys.released);
    match released.next().filter(|_| kind == PlatformKind::Plain) {
        Some(name) => Err(StatedError::Missing {
            what: format!("the secret {name:?}"),
            why: "secrets are released after attestation, which this platform has not",
        }),
        None => Ok(()),
    }
}

/// The ports that the caller publishes, if the manifest lets them be.
fn published(manifest: &Manifest, asked: Vec<Published>) -> Result<Vec<Published>, StatedError> {
    for port in &asked {
        let name = port_name(port);
        if !manifest.network.publish.contains(&name) {
            return Err(StatedError::Publish(name));
        }
    }
    Ok(asked)
}

/// A guest's port as manifests name it.
fn port_name(port: &Published) -> String {
    let protocol = if port.datagrams { "udp" } else { "tcp" };
    format!("{}/{protocol}", port.port)
}

fn publishable(published: &[Published]) -> Vec<String> {
    let mut names: Vec<String> = published.iter().map(port_name).collect();
    names.sort();
    names.dedup();
    names
}

/// Nothing of the caller's but what the manifest leaves to it.
fn environment(program: &Program, caller: &Caller) -> Result<Environment, StatedError> {
    let open = |name: &String| program.untrusted_environment.contains(name);
    if let Some(name) = caller.insisted.iter().find(|name| !open(name)) {
        return Err(StatedError::Variable(name.clone()));
    }
    let fixed = program.environment.iter();
    let chosen = caller.environment.iter().filter(|(name, _)| open(name));
    Ok(Environment {
        clear: true,
        set: fixed
            .chain(chosen)
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
    })
}

fn add_volume(
    options: &mut RunOptions,
    volume: &StatedVolume,
    key: impl Fn(&str) -> Result<VolumeKey, StatedError>,
    caller: &mut Caller,
) -> Result<(), StatedError> {
    // A checked manifest has a source where one is needed.
    let source = PathBuf::from(volume.source.as_deref().unwrap_or_default());
    match volume.kind {
        VolumeKind::Shared => options.volumes.push(Volume {
            host: source,
            guest: volume.guest.clone().into(),
            read_only: volume.read_only,
            exclusive: volume.exclusive,
        }),
        VolumeKind::Memory => options
            .memory_volumes
            .push((volume.guest.clone().into(), volume.read_only)),
        VolumeKind::Measured => options.measured.volumes.push((source, volume.guest.clone())),
        VolumeKind::Protected => {
            options.protected.push(Protected {
                container: source,
                guest: volume.guest.clone().into(),
                read_only: volume.read_only,
                key: key(&volume.guest)?,
                anchor: caller.anchors.remove(&volume.guest),
                withheld: Vec::new(),
            });
        }
        VolumeKind::Ciphertext => options.protected.push(Protected {
            container: source,
            guest: volume.guest.clone().into(),
            read_only: true,
            key: VolumeKey::Nobody,
            anchor: None,
            withheld: Vec::new(),
        }),
    }
    Ok(())
}

/// The manifest of a run that has none: the host's root shared and read-only, a `/tmp` in memory, what was asked for besides.
/// Arguments and variables are the caller's, as who starts such a run chooses all of it. That changes to the root stay in
/// guest memory is not stated: of the host's files it is true either way that they are only read.
#[must_use]
pub fn of_options(options: &RunOptions, program: &std::path::Path, vcpus: usize) -> Manifest {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let volume = |guest: String, kind, source: Option<String>, read_only| StatedVolume {
        guest,
        kind,
        source,
        read_only,
        exclusive: false,
    };
    let mut volumes = vec![
        volume("/".to_owned(), VolumeKind::Shared, Some("/".to_owned()), true),
        volume("/tmp".to_owned(), VolumeKind::Memory, None, false),
    ];
    volumes.extend(options.volumes.iter().map(|v| StatedVolume {
        exclusive: v.exclusive,
        ..volume(
            text(&v.guest),
            VolumeKind::Shared,
            Some(text(&v.host)),
            v.read_only,
        )
    }));
    volumes.extend(options.protected.iter().map(|v| {
        volume(
            text(&v.guest),
            match v.key {
                VolumeKey::Given(_) | VolumeKey::Inside => VolumeKind::Protected,
                VolumeKey::Nobody => VolumeKind::Ciphertext,
            },
            Some(text(&v.container)),
            v.read_only,
        )
    }));
    let name = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Manifest {
        version: 1,
        name: options.name.clone().unwrap_or(name),
        program: Program {
            path: text(program),
            args: Vec::new(),
            workdir: text(&configuration::workdir(options)),
            environment: BTreeMap::new(),
            untrusted_environment: configuration::environment(&options.environment)
                .iter()
                .filter_map(|variable| {
                    String::from_utf8(variable.split(|b| *b == b'=').next()?.to_vec()).ok()
                })
                .collect(),
            untrusted_args: true,
            exec: true,
        },
        resources: Resources {
            memory_mib: options.memory >> 20,
            cpus: vcpus as u32,
        },
        platform: Platform {
            accept: vec![kind(&options.machine).0],
        },
        network: StatedNetwork {
            mode: match options.network {
                Network::None => NetworkMode::None,
                Network::Host => NetworkMode::Host,
                Network::Private => NetworkMode::Private,
            },
            publish: publishable(&options.published),
        },
        volumes,
        files: Vec::new(),
        links: Vec::new(),
        broker: None,
        keys: Keys::default(),
        secrets: Vec::new(),
        segments: Vec::new(),
    }
}
