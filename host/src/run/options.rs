//! What a user asks for.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::thread;

use cloak_abi::config::Published;
use cloak_abi::layout::MAX_VCPUS;
use zeroize::Zeroizing;

use super::stated::{Measured, Stated};
use crate::control::folder::Name;
use crate::kvm::snp::IdBlock;
use crate::platform::Machine;
use crate::vm::anchors::Anchor;
use crate::vm::load;
use crate::vm::resident::Resident;

/// A host directory or file in the guest's name space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// On the host.
    pub host: PathBuf,
    /// In the guest, absolute.
    pub guest: PathBuf,
    /// Whether the program may only read it.
    pub read_only: bool,
    /// Whether nobody else changes it while the program runs.
    pub exclusive: bool,
}

/// Where a protected volume's key comes from.
pub enum VolumeKey {
    /// The monitor, which is trusted.
    Given(Box<Zeroizing<[u8; 32]>>),
    /// Inside: the machine, or a broker.
    Inside,
    /// Nowhere: the program finds the ciphertext, to be read.
    Nobody,
}

/// A protected volume: the OS side has its container, the guest its key.
pub struct Protected {
    /// The container: a file.
    pub container: PathBuf,
    /// In the guest, absolute.
    pub guest: PathBuf,
    /// Whether the program may only read it.
    pub read_only: bool,
    /// Its key.
    pub key: VolumeKey,
    /// What remembers its last root.
    pub anchor: Option<Box<dyn Anchor>>,
    /// Files that the OS side must not read or change: of the key, of the anchor.
    pub withheld: Vec<PathBuf>,
}

impl fmt::Debug for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Protected")
            .field("container", &self.container)
            .field("guest", &self.guest)
            .finish_non_exhaustive()
    }
}

/// Memory that several contexts share, as a file in `/dev/shm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Name of the file.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Indices of the contexts that share it.
    pub contexts: Vec<usize>,
}

/// The program's environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Do not pass the caller's on.
    pub clear: bool,
    /// `NAME=value`, or `NAME` to pass one on.
    pub set: Vec<String>,
}

/// What the host's root is to a program. The OS service opens it for reading only, either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootTree {
    /// Changes stay in guest memory, and end with the program.
    #[default]
    Overlay,
    /// Writes give EROFS.
    ReadOnly,
}

/// What of the network a program sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    #[default]
    Host,
    /// None: sockets answer as in an empty network namespace.
    None,
    /// Its own: what is said there stays inside, but for connections to others and ports that are published.
    Private,
}

/// What a user asks for.
#[derive(Debug)]
pub struct RunOptions {
    /// The KVM device.
    pub device: PathBuf,
    /// vCPUs; none: the host's processors.
    pub cpus: Option<usize>,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Environment.
    pub environment: Environment,
    /// As whom the program runs and its files are accessed: `USER[:GROUP]`; none: as the caller.
    pub user: Option<String>,
    /// Working directory; none: the caller's.
    pub workdir: Option<PathBuf>,
    /// What the host's root is to the program; none: it is not there, and neither is a `/tmp` in memory.
    pub host_root: Option<RootTree>,
    /// Volumes of the host besides.
    pub volumes: Vec<Volume>,
    /// Volumes in guest memory: where, and whether the program may only read them.
    pub memory_volumes: Vec<(PathBuf, bool)>,
    /// What is measured.
    pub measured: Measured,
    /// Protected volumes.
    pub protected: Vec<Protected>,
    /// Further files that the OS side must not read or change.
    pub withheld: Vec<PathBuf>,
    /// Network.
    pub network: Network,
    /// Ports of a private network that the host publishes.
    pub published: Vec<Published>,
    /// The manifest that all of this follows from; none: one is made of it.
    pub stated: Option<Stated>,
    /// Key of guest memory that is sealed; none: one for this run.
    pub memory_key: Option<Box<Zeroizing<[u8; 32]>>>,
    /// How much of guest memory may be plaintext; none: all of it.
    pub resident: Option<Resident>,
    /// Name of the context: the host name inside.
    pub name: Option<String>,
    /// Name under which the owner may ask for things while it runs; none: nobody can. [`run_all`](super::run_all) takes its own.
    pub control: Option<Name>,
    /// Kind of machine.
    pub machine: Machine,
    /// Who vouches for an SNP guest, if there is somebody.
    pub id_block: Option<IdBlock>,
    /// One line per system call.
    pub trace: bool,
    /// Turn system-call sites into jumps.
    pub patch: bool,
    /// Let the kernel edit and check page tables although there is one context.
    pub kernel_tables: bool,
    /// Program and arguments, not empty.
    pub command: Vec<OsString>,
}

impl RunOptions {
    /// A program and its arguments (not empty), and for the rest what `cloak run` does by default.
    #[must_use]
    pub fn new(command: Vec<OsString>) -> Self {
        Self {
            device: "/dev/kvm".into(),
            cpus: None,
            memory: 4 << 30,
            environment: Environment::default(),
            user: None,
            workdir: None,
            host_root: Some(RootTree::default()),
            volumes: Vec::new(),
            memory_volumes: Vec::new(),
            measured: Measured::default(),
            protected: Vec::new(),
            withheld: Vec::new(),
            network: Network::Host,
            published: Vec::new(),
            stated: None,
            memory_key: None,
            resident: None,
            name: None,
            control: None,
            machine: Machine::Plain,
            id_block: None,
            trace: false,
            patch: true,
            kernel_tables: false,
            command,
        }
    }

    /// How many vCPUs there will be.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.cpus.unwrap_or_else(|| {
            thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_VCPUS)
        })
    }
}

impl Segment {
    /// Without its name, which only the libos needs.
    pub(super) fn place(self) -> load::Segment {
        load::Segment {
            bytes: self.bytes,
            contexts: self.contexts,
        }
    }
}
