//! Why an SNP guest was not launched.

use std::fmt;
use std::io;

use super::calls::Refusal;
use super::firmware::FirmwareError;

/// The steps of a launch, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `KVM_CREATE_VM` of type 4.
    CreateVm,
    /// `KVM_CAP_EXIT_HYPERCALL`.
    ExitHypercall,
    /// `KVM_SEV_INIT2`.
    Init,
    /// `KVM_SEV_SNP_LAUNCH_START`.
    Start,
    /// `KVM_SEV_SNP_ENABLE_REQ_CERTS`.
    Certificates,
    /// guest_memfd and its memory slot.
    Memory,
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    Private,
    /// `KVM_SEV_SNP_LAUNCH_UPDATE` of the page at this guest-physical address.
    Update(u64),
    /// A vCPU and its registers.
    Vcpu(u32),
    /// `KVM_SEV_SNP_LAUNCH_FINISH`.
    Finish,
    /// A page-state change that the guest asked for.
    PageState,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateVm => f.write_str("making an SNP VM (KVM_CREATE_VM, type 4)"),
            Self::ExitHypercall => f.write_str("asking for page-state exits (KVM_CAP_EXIT_HYPERCALL)"),
            Self::Init => f.write_str("turning on SEV-SNP (KVM_SEV_INIT2)"),
            Self::Start => f.write_str("beginning the launch (KVM_SEV_SNP_LAUNCH_START)"),
            Self::Certificates => {
                f.write_str("asking for exits to certificates (KVM_SEV_SNP_ENABLE_REQ_CERTS)")
            }
            Self::Memory => {
                f.write_str("private memory (KVM_CREATE_GUEST_MEMFD, KVM_SET_USER_MEMORY_REGION2)")
            }
            Self::Private => f.write_str("making memory private (KVM_SET_MEMORY_ATTRIBUTES)"),
            Self::Update(gpa) => write!(f, "adding the page at {gpa:#x} (KVM_SEV_SNP_LAUNCH_UPDATE)"),
            Self::Vcpu(index) => write!(f, "vCPU {index} and its registers"),
            Self::Finish => f.write_str("ending the launch (KVM_SEV_SNP_LAUNCH_FINISH)"),
            Self::PageState => f.write_str("a page-state change (KVM_HC_MAP_GPA_RANGE)"),
        }
    }
}

impl Step {
    fn advice(self, source: &io::Error) -> &'static str {
        let errno = source.raw_os_error();
        match self {
            Self::CreateVm | Self::ExitHypercall | Self::Memory | Self::Private => {
                "SNP guests need Linux 6.11 or later, kvm_amd.sev_snp=Y and an EPYC of the third generation or later; see `cloak doctor`"
            }
            Self::Init if errno == Some(libc::EBUSY) => "too many SEV guests: every ASID is in use",
            Self::Certificates => {
                "the kernel is older than Linux 7.0; without --certificates guests run, and their reports have none"
            }
            Self::Init => "the kernel does not offer these features; see `cloak doctor`",
            Self::Start => "can this user open /dev/sev, and does the policy fit the machine?",
            Self::Update(_) if errno == Some(libc::EEXIST) => {
                "the page was added before: two regions of the image overlap"
            }
            Self::Update(_) => {
                "is the page inside a private region, and does guest_memfd have memory for it?"
            }
            Self::Vcpu(_) => {
                "KVM refuses the registers or the CPUID: is the CPU older than the image's needs?"
            }
            Self::Finish => "does the ID block fit the measurement (`cloak measure --platform snp`)?",
            Self::PageState => "the guest asked for what is not its memory",
        }
    }
}

/// A failed launch, or a guest's impossible wish.
#[derive(Debug, thiserror::Error)]
pub enum SnpError {
    /// The kernel or the firmware refused.
    #[error("{step}: {source}{}; {}", firmware.map(|f| format!(" ({f})")).unwrap_or_default(),
        firmware.map_or_else(|| step.advice(source), FirmwareError::advice))]
    Refused {
        /// What was being done.
        step: Step,
        /// The kernel's answer.
        source: io::Error,
        /// The firmware's.
        firmware: Option<FirmwareError>,
    },
    /// The kernel reports success, and has done nothing.
    #[error(
        "{step}: the kernel added nothing and reported no error; its version may not be one that Cloak knows"
    )]
    NoProgress {
        /// What was being done.
        step: Step,
    },
    /// Not what a launch can be asked for.
    #[error("{step}: {problem}")]
    Request {
        /// What was being done.
        step: Step,
        /// What is wrong with it.
        problem: &'static str,
    },
}

pub(super) trait At<T> {
    fn at(self, step: Step) -> Result<T, SnpError>;
}

impl<T> At<T> for Result<T, Refusal> {
    fn at(self, step: Step) -> Result<T, SnpError> {
        self.map_err(|refusal| SnpError::Refused {
            step,
            source: refusal.source,
            // 0 is success and all ones "the firmware was not called".
            firmware: refusal
                .firmware
                .filter(|&code| code != 0 && code != u32::MAX)
                .map(FirmwareError),
        })
    }
}
