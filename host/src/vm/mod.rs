//! One VM: from options to the end of its programs.
//!
//! [`Options`] → [`prepare()`] (the VM, shared regions; then the OS services are started) → [`Prepared::start`] (RAM, shim, first
//! vCPUs) → [`Running::wait`]. The thread that calls `wait` owns the VM's state; vCPU threads and those that watch the OS
//! services send it [`Event`](running::Event)s.
//!
//! A VM holds one or more contexts. Each has vCPUs, frames, a shared region and an OS service that are its alone: no
//! vCPU ever changes from one context to another, so that none carries anything over.

pub mod anchors;
mod border;
pub mod clock;
mod context;
pub mod error;
mod exception;
pub mod exec;
mod fill;
mod hidden;
pub mod load;
mod measured;
mod outcome;
pub(crate) mod pages;
pub mod phases;
mod prepare;
pub mod resident;
mod running;
pub mod shared;
pub mod signals;
mod slots;
mod snp;
mod tdx;
mod ticker;
mod vcpu;
pub mod view;

use std::path::PathBuf;

use zeroize::Zeroizing;

use self::anchors::Anchor;
use self::load::{Segment, Share};
use self::resident::Resident;
use crate::control::folder::Bound;
use crate::control::wire::ContextInfo;
use crate::kvm::snp::IdBlock;

pub use self::border::Border;
pub use self::outcome::{Ended, Outcome, Statistics};
pub use self::prepare::{Prepared, prepare};
pub use self::running::Running;

/// A VM.
#[derive(Debug)]
pub struct Options {
    /// The KVM device.
    pub device: PathBuf,
    /// 1..=[`MAX_CONTEXTS`](cloak_abi::layout::MAX_CONTEXTS).
    pub contexts: Vec<ContextOptions>,
    /// What contexts share.
    pub segments: Vec<Segment>,
    /// The socket on which the owner may ask for things; none: nobody can.
    pub control: Option<Bound>,
    /// Contexts edit their page tables themselves: only where there is one.
    pub own_tables: bool,
}

/// What to run in a context, and in what.
#[derive(Debug)]
pub struct ContextOptions {
    /// What callers of the control socket are told of it.
    pub info: ContextInfo,
    /// vCPUs, at least 1; all contexts' together at most
    /// [`MAX_VCPUS`](cloak_abi::layout::MAX_VCPUS).
    pub vcpus: usize,
    /// Guest RAM, bytes.
    pub memory: u64,
    /// Configuration for the libos ([`cloak_abi::config`]). Keys are in it.
    pub config: Zeroizing<Vec<u8>>,
    /// Identity of the context.
    pub identity: [u8; 48],
    /// What a measured launch binds it to: SHA-256 of the manifest.
    pub host_data: [u8; 32],
    /// The same of a domain: SHA-384.
    pub config_id: [u8; 48],
    /// Who vouches for an SNP guest, if there is somebody.
    pub id_block: Option<IdBlock>,
    /// Key that guest memory is sealed under; none: one for this run.
    pub memory_key: Option<Box<Zeroizing<[u8; 32]>>>,
    /// Anchors of protected volumes, by the numbers that the configuration names.
    pub anchors: Vec<Box<dyn Anchor>>,
    /// How much of its RAM may be plaintext; none: all of it.
    pub resident: Option<Resident>,
}

impl ContextOptions {
    fn share(&self) -> Share<'_> {
        Share {
            memory: self.memory,
            vcpus: self.vcpus as u32,
            config: &self.config,
            identity: self.identity,
        }
    }
}
