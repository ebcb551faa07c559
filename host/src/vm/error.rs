//! What can go wrong while a VM is set up or runs, named for the step and with what to try.

use std::io;
use std::path::PathBuf;

/// A failure of the monitor.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// `/dev/kvm` can't be opened.
    #[error("opening {path}: {source}; {hint}", path = path.display())]
    OpenKvm {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        source: io::Error,
        /// What to try.
        hint: &'static str,
    },
    /// The device is not KVM.
    #[error("{path} does not answer as KVM (expected API version 12, found {found}); is it another device?", path = path.display())]
    NotKvm {
        /// What was opened.
        path: PathBuf,
        /// Its answer.
        found: i32,
    },
    /// A KVM call failed.
    #[error("{step}: {source}")]
    Kvm {
        /// Which step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call of the monitor failed.
    #[error("{step}: {source}")]
    Os {
        /// Which step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Memory can't be sealed, or what the OS side gave back was not what it was given.
    #[error(transparent)]
    Memory(#[from] cloak_memory::MemoryError),
    /// The control socket can't be had.
    #[error(transparent)]
    Control(#[from] crate::control::ControlError),
    /// The monitor's jail could not be closed.
    #[error(transparent)]
    Jail(#[from] crate::jail::JailError),
    /// The program can't run as this user.
    #[error("--user {name}: {why}")]
    User {
        /// As it was asked for.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// A volume's host side can't be opened.
    #[error("volume: opening {path}: {source}", path = path.display())]
    Volume {
        /// On the host.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A key or an anchor would be in the hands of the OS side.
    #[error(
        "{file} is not for the OS side and lies in {volume}, which a volume gives to it; keep it elsewhere",
        file = file.display(), volume = volume.display()
    )]
    Exposed {
        /// Key or anchor.
        file: PathBuf,
        /// The shared volume.
        volume: PathBuf,
    },
    /// The manifest of the run can't be written down.
    #[error(transparent)]
    Manifest(#[from] cloak_manifest::ManifestError),
    /// Too little memory asked for.
    #[error("--memory {asked} MiB is too small: the shim and a small program need at least {least} MiB")]
    MemoryTooSmall {
        /// Asked for, MiB.
        asked: u64,
        /// Least, MiB.
        least: u64,
    },
    /// Too much memory asked for.
    #[error("--memory {asked} MiB is too large: at most {most} MiB are possible")]
    MemoryTooLarge {
        /// Asked for, MiB.
        asked: u64,
        /// Most, MiB.
        most: u64,
    },
    /// Number of contexts out of range.
    #[error("{asked} contexts in one VM are not possible: 1 to {most} are")]
    Contexts {
        /// Asked for.
        asked: usize,
        /// Most.
        most: usize,
    },
    /// Number of segments of a context out of range.
    #[error("a context shares at most {most} segments with others")]
    Segments {
        /// Most.
        most: usize,
    },
    /// vCPU count out of range.
    #[error("--cpus {asked} is not possible: this host allows 1 to {most}")]
    Cpus {
        /// Asked for.
        asked: usize,
        /// Most.
        most: usize,
    },
    /// The embedded shim is not what it should be.
    #[error("the embedded shim is damaged ({0}); build Cloak again")]
    Shim(&'static str),
    /// The shim stopped.
    #[error("the shim stopped: {0}")]
    Shimmed(String),
    /// The launch of a measured guest.
    #[error(transparent)]
    Snp(#[from] crate::kvm::snp::error::SnpError),
    /// The launch of a domain.
    #[error(transparent)]
    Tdx(#[from] crate::kvm::tdx::error::TdxError),
    /// A page that a guest touched as what it is not.
    #[error("the page at {gpa:#x}: {problem}")]
    Touched {
        /// Which page.
        gpa: u64,
        /// How.
        problem: &'static str,
    },
    /// More configuration than there is room for.
    #[error("arguments and environment have {bytes} bytes; on this platform {most} are possible")]
    ConfigTooLarge {
        /// There are.
        bytes: usize,
        /// Most.
        most: usize,
    },
    /// Something that this platform does not have yet.
    #[error("{what} is not there on this platform: {why}")]
    NotOnPlatform {
        /// What.
        what: &'static str,
        /// What would be needed.
        why: &'static str,
    },
    /// The kernel stopped, and said why.
    #[error("the shim's kernel stopped: {0}")]
    Stopped(&'static str),
    /// KVM could not go on with a vCPU.
    #[error("vCPU {vcpu} can't go on: {what}")]
    Vcpu {
        /// Which.
        vcpu: usize,
        /// KVM's reason, with registers.
        what: String,
    },
}

impl VmError {
    /// The last OS error, under the name of the step that met it.
    pub(crate) fn last_os(step: &'static str) -> Self {
        Self::Os {
            step,
            source: io::Error::last_os_error(),
        }
    }
}

/// Names the step of a KVM call.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, VmError>;
}

impl<T> Step<T> for Result<T, kvm_ioctls::Error> {
    fn step(self, step: &'static str) -> Result<T, VmError> {
        self.map_err(|e| VmError::Kvm {
            step,
            source: io::Error::from_raw_os_error(e.errno()),
        })
    }
}

impl<T> Step<T> for Result<T, io::Error> {
    fn step(self, step: &'static str) -> Result<T, VmError> {
        self.map_err(|source| VmError::Os { step, source })
    }
}
