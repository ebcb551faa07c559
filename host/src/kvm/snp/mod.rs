//! The launch of an SNP guest, without firmware in the guest: Linux 6.11 and later, `Documentation/virt/kvm/x86/amd-memory-encryption.rst`.
//!
//! ```text
//! Configured ─start─▶ Started ─back─▶ Backed ─add─▶ Populated ─vcpus─▶ Ready ─finish─▶ Launched
//!             caps,            memfd,         pages          registers       VMSAs are
//!             INIT2,           slots,                                        measured
//!             START            private
//! ```
//! Each step consumes the state before it, and [`Launched`] takes [`RunCalls`] only: a LAUNCH command after FINISH,
//! which leaves the firmware's guest context in a state that nobody has specified, can't be written.
//!
//! ```
//! # use cloak_host::kvm::snp::{Launched, calls::{LaunchCalls, RunCalls}};
//! fn after<C: LaunchCalls>(mut guest: Launched<C>, pages: kvm_bindings::kvm_memory_attributes) {
//!     guest.set_attributes(pages).ok();
//! }
//! ```
//! ```compile_fail,E0599
//! # use cloak_host::kvm::snp::{Launched, calls::{LaunchCalls, RunCalls}};
//! fn after<C: LaunchCalls>(mut guest: Launched<C>, mut pages: kvm_bindings::kvm_sev_snp_launch_update) {
//!     guest.update(&mut pages, &mut []).ok();
//! }
//! ```
//! None of this has run on SNP hardware: `docs/platforms.md`.

pub mod calls;
pub mod error;
pub mod firmware;
pub mod kernel;
pub mod page_state;

use cloak_abi::layout::PAGE;
use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_SEV_SNP_PAGE_TYPE_CPUID, KVM_SEV_SNP_PAGE_TYPE_NORMAL,
    KVM_SEV_SNP_PAGE_TYPE_SECRETS, KVM_SEV_SNP_PAGE_TYPE_UNMEASURED, kvm_memory_attributes, kvm_sev_init,
    kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
};

use self::calls::{Backing, LaunchCalls, Refusal, RunCalls};
use self::error::{At, SnpError, Step};
use crate::image::memory::PageBytes;
use crate::image::{Kind, LaunchImage, Measuring};
use crate::kvm::protected::{TRIES, slot};

/// Number of the hypercall by which a guest changes the state of its pages.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;
/// Extended guest requests ask for certificates by an exit (Linux 7.0), which `kvm-bindings` does not know.
pub const KVM_SEV_SNP_ENABLE_REQ_CERTS: u32 = kvm_bindings::sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH + 1;
/// That exit: address, number of pages, result.
pub const KVM_EXIT_SNP_REQ_CERTS: u32 = 43;
/// The GHCB protocol that the shim speaks.
const GHCB_VERSION: u16 = 2;

/// The guest policy (SNP ABI, section 4.3): bit 17 is always one; SMT is allowed, debugging and migration are not.
pub const POLICY: u64 = 1 << 17 | 1 << 16;

/// Who vouches for the image, in the firmware's own form (SNP ABI, section 8.18).
#[derive(Debug, Clone)]
pub struct IdBlock {
    /// The ID block.
    pub block: [u8; 96],
    /// Signatures and keys.
    pub auth: Box<[u8; 4096]>,
    /// Whether `auth` has the signature of an author key, too.
    pub author_key: bool,
}

/// What is not the image's.
#[derive(Debug, Clone)]
pub struct Options {
    /// Guest policy, as [`POLICY`].
    pub policy: u64,
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// HOST_DATA: SHA-256 over the manifest's digest.
    pub host_data: [u8; 32],
    /// Page of CPUID values, as the firmware wants it.
    pub cpuid: Box<PageBytes>,
    /// The page of parameters.
    pub parameters: Box<PageBytes>,
    /// ID block, if there is one.
    pub id: Option<IdBlock>,
    /// Whether there are certificates to give out.
    pub certificates: bool,
}

/// Nothing done yet.
#[derive(Debug)]
pub struct Configured<C> {
    calls: C,
    image: LaunchImage,
    options: Options,
}

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<C>(Configured<C>);
    )*};
}

states! {
    /// The firmware has a context for the guest, with nothing measured.
    Started,
    /// The guest has private memory.
    Backed,
    /// All pages of the image are in it, and measured.
    Populated,
    /// All vCPUs have their registers.
    Ready
}

/// The guest can run. No LAUNCH command can be given any more.
#[derive(Debug)]
pub struct Launched<C> {
    calls: C,
}

impl<C: LaunchCalls> Configured<C> {
    /// What to launch, on which VM of type 4.
    ///
    /// # Errors
    /// [`SnpError::Request`]: another platform's image, a policy that no firmware takes, no vCPU.
    pub fn new(calls: C, image: LaunchImage, options: Options) -> Result<Self, SnpError> {
        let wrong = |problem| SnpError::Request {
            step: Step::Start,
            problem,
        };
        if image.platform != Measuring::Snp {
            return Err(wrong("the image is another platform's"));
        }
        if options.policy & 1 << 17 == 0 {
            return Err(wrong("bit 17 of a policy is always one"));
        }
        if options.vcpus == 0 {
            return Err(wrong("a guest has at least one vCPU"));
        }
        Ok(Self {
            calls,
            image,
            options,
        })
    }

    /// Turns SNP on and begins the launch.
    ///
    /// # Errors
    /// [`SnpError::Refused`], as in all that follow.
    pub fn start(mut self) -> Result<Started<C>, SnpError> {
        // Without it every page-state change of the guest fails.
        self.calls
            .enable(KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
            .at(Step::ExitHypercall)?;
        let mut init = kvm_sev_init {
            ghcb_version: GHCB_VERSION,
            ..Default::default()
        };
        self.calls.init2(&mut init).at(Step::Init)?;
        let mut start = kvm_sev_snp_launch_start {
            policy: self.options.policy,
            ..Default::default()
        };
        self.calls.start(&mut start).at(Step::Start)?;
        // Before the first vCPU: the kernel takes it no later.
        if self.options.certificates {
            self.calls.enable_certificates().at(Step::Certificates)?;
        }
        Ok(Started(self))
    }
}

impl<C: LaunchCalls> Started<C> {
    /// Gives it memory: guest-physical ranges, whole pages, that do not overlap. All of it begins private.
    ///
    /// # Errors
    /// As above.
    pub fn back(mut self, ranges: &[[u64; 2]]) -> Result<Backed<C>, SnpError> {
        for (number, &range) in (0..).zip(ranges) {
            let (region, private) = slot(number, range).map_err(|problem| SnpError::Request {
                step: Step::Memory,
                problem,
            })?;
            self.0.calls.add_memory(region).at(Step::Memory)?;
            self.0.calls.set_attributes(private).at(Step::Private)?;
        }
        Ok(Backed(self.0))
    }
}

impl<C: LaunchCalls> Backed<C> {
    /// Adds the image's pages in their order, which is measured.
    ///
    /// # Errors
    /// As above; [`SnpError::NoProgress`].
    pub fn add(mut self) -> Result<Populated<C>, SnpError> {
        let Configured {
            calls,
            image,
            options,
        } = &mut self.0;
        for run in image.runs() {
            let mut bytes = Vec::with_capacity(run.len() * PAGE as usize);
            for page in run {
                bytes.extend_from_slice(match page.kind {
                    Kind::Measured | Kind::Secrets => &page.contents[..],
                    Kind::Unmeasured => &options.parameters[..],
                    Kind::Cpuid => &options.cpuid[..],
                });
            }
            add_run(calls, run[0].gpa, run[0].kind, &mut bytes)?;
        }
        Ok(Populated(self.0))
    }
}

/// The kernel adds what it can, says how far it came, and wants to be asked again.
fn add_run(calls: &mut impl LaunchCalls, gpa: u64, kind: Kind, bytes: &mut [u8]) -> Result<(), SnpError> {
    let mut data = kvm_sev_snp_launch_update {
        gfn_start: gpa / PAGE,
        uaddr: bytes.as_ptr() as u64,
        len: bytes.len() as u64,
        type_: page_type(kind),
        ..Default::default()
    };
    let mut idle = 0;
    let mut corrected = false;
    while data.len > 0 {
        let (before, at) = (data.len, data.gfn_start.saturating_mul(PAGE));
        let step = Step::Update(at);
        match calls.update(&mut data, bytes) {
            Ok(()) if data.len == before => return Err(SnpError::NoProgress { step }),
            Ok(()) => idle = 0,
            Err(refusal) => {
                let errno = refusal.source.raw_os_error();
                let again = matches!(errno, Some(libc::EAGAIN | libc::EINTR)) && idle < TRIES;
                // The page has been replaced by one that the firmware accepts. The shim checks it in any case.
                let better =
                    kind == Kind::Cpuid && !corrected && refusal.firmware == Some(firmware::INVALID_PARAM);
                if !again && !better {
                    return Err(refusal).at(step);
                }
                idle = if data.len < before { 0 } else { idle + 1 };
                corrected |= better;
            }
        }
        if data.len > before {
            return Err(SnpError::NoProgress { step });
        }
    }
    Ok(())
}

fn page_type(kind: Kind) -> u8 {
    let number = match kind {
        Kind::Measured => KVM_SEV_SNP_PAGE_TYPE_NORMAL,
        Kind::Unmeasured => KVM_SEV_SNP_PAGE_TYPE_UNMEASURED,
        Kind::Secrets => KVM_SEV_SNP_PAGE_TYPE_SECRETS,
        Kind::Cpuid => KVM_SEV_SNP_PAGE_TYPE_CPUID,
    };
    number as u8
}

impl<C: LaunchCalls> Populated<C> {
    /// Makes the vCPUs. Their order is measured.
    ///
    /// # Errors
    /// As above.
    pub fn vcpus(mut self) -> Result<Ready<C>, SnpError> {
        for index in 0..self.0.options.vcpus {
            let image = &self.0.image;
            let state = if index == 0 { image.first } else { image.others };
            self.0.calls.add_vcpu(index, state).at(Step::Vcpu(index))?;
        }
        Ok(Ready(self.0))
    }
}

impl<C: LaunchCalls> Ready<C> {
    /// Ends the launch: the firmware fixes the measurement.
    ///
    /// # Errors
    /// As above.
    pub fn finish(self) -> Result<Launched<C>, SnpError> {
        let Configured {
            mut calls, options, ..
        } = self.0;
        let mut data = kvm_sev_snp_launch_finish {
            host_data: options.host_data,
            ..Default::default()
        };
        calls.finish(&mut data, options.id.as_ref()).at(Step::Finish)?;
        Ok(Launched { calls })
    }
}

/// The calls that may still be made.
impl<C: LaunchCalls> RunCalls for Launched<C> {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        self.calls.set_attributes(attributes)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        self.calls.discard(gpa, len, backing)
    }
}

#[cfg(test)]
pub(crate) mod tests;
