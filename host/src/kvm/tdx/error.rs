//! Why a TDX domain was not launched.

use std::fmt;
use std::io;

use super::calls::Refusal;
use super::status::ModuleStatus;
use crate::kvm::run_calls;

/// The steps of a launch, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `KVM_CREATE_VM` of type 5.
    CreateVm,
    /// `KVM_CAP_SPLIT_IRQCHIP`.
    SplitIrqchip,
    /// `KVM_CAP_EXIT_HYPERCALL`.
    ExitHypercall,
    /// `KVM_GET_SUPPORTED_CPUID`.
    SupportedCpuid,
    /// `KVM_TDX_CAPABILITIES`.
    Capabilities,
    /// `KVM_TDX_INIT_VM`.
    Init,
    /// A vCPU and its CPUID.
    Vcpu(u32),
    /// `KVM_TDX_INIT_VCPU`.
    InitVcpu(u32),
    /// guest_memfd and its memory slot.
    Memory,
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    Private,
    /// `KVM_TDX_INIT_MEM_REGION` of the page at this guest-physical address.
    Region(u64),
    /// `KVM_TDX_FINALIZE_VM`.
    Finalize,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateVm => f.write_str("making a TDX domain (KVM_CREATE_VM, type 5)"),
            Self::SplitIrqchip => f.write_str("leaving the I/O APIC out (KVM_CAP_SPLIT_IRQCHIP)"),
            Self::ExitHypercall => f.write_str("asking for page-state exits (KVM_CAP_EXIT_HYPERCALL)"),
            Self::SupportedCpuid => f.write_str("asking for CPUID values (KVM_GET_SUPPORTED_CPUID)"),
            Self::Capabilities => f.write_str("asking what TDX offers (KVM_TDX_CAPABILITIES)"),
            Self::Init => f.write_str("initialising the domain (KVM_TDX_INIT_VM)"),
            Self::Vcpu(index) => write!(f, "vCPU {index} and its CPUID (KVM_CREATE_VCPU, KVM_SET_CPUID2)"),
            Self::InitVcpu(index) => write!(f, "initialising vCPU {index} (KVM_TDX_INIT_VCPU)"),
            Self::Memory => {
                f.write_str("private memory (KVM_CREATE_GUEST_MEMFD, KVM_SET_USER_MEMORY_REGION2)")
            }
            Self::Private => f.write_str("making memory private (KVM_SET_MEMORY_ATTRIBUTES)"),
            Self::Region(gpa) => write!(f, "adding the page at {gpa:#x} (KVM_TDX_INIT_MEM_REGION)"),
            Self::Finalize => f.write_str("ending the launch (KVM_TDX_FINALIZE_VM)"),
        }
    }
}

impl Step {
    fn advice(self, source: &io::Error) -> &'static str {
        let errno = source.raw_os_error();
        match self {
            Self::CreateVm | Self::Memory | Self::Private => {
                "TDX domains need Linux 6.16 or later, kvm_intel.tdx=Y, a Xeon of the fourth generation or later and TDX on in the BIOS; see `cloak doctor`"
            }
            Self::SplitIrqchip | Self::ExitHypercall | Self::SupportedCpuid | Self::Capabilities => {
                "this KVM does not offer what a TDX domain needs: use Linux 6.16 or later"
            }
            Self::Init if matches!(errno, Some(libc::ENOSPC | libc::EBUSY | libc::EAGAIN)) => {
                "too many domains: every key number is in use, or a control group (misc, tdx) allows no more"
            }
            Self::Init => {
                "the kernel or the module does not take ATTRIBUTES, XFAM or CPUID; see its log for `tdx`"
            }
            Self::Vcpu(_) | Self::InitVcpu(_) => {
                "take at most as many vCPUs as the host has logical processors; the CPUID has to offer x2APIC"
            }
            Self::Region(_) if errno == Some(libc::EIO) => {
                "was the page added before? Two regions of the image may overlap; see the kernel's log for `tdx`"
            }
            Self::Region(_) => {
                "is the page inside a private region, and does guest_memfd have memory for it?"
            }
            Self::Finalize => "were all pages of the image added? See the kernel's log for `tdx`",
        }
    }
}

/// A failed launch.
#[derive(Debug, thiserror::Error)]
pub enum TdxError {
    /// The kernel or the module refused.
    #[error("{step}: {source}{}; {}", module.map(|status| format!(" ({status})")).unwrap_or_default(),
        module.map_or_else(|| step.advice(source), ModuleStatus::advice))]
    Refused {
        /// What was being done.
        step: Step,
        /// The kernel's answer.
        source: io::Error,
        /// The TDX module's.
        module: Option<ModuleStatus>,
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
    /// The machine lacks what a domain of ours has to have.
    #[error("{step}: this machine does not offer {what} ({bits:#x}); update the TDX module or the kernel")]
    Lacking {
        /// What was being done.
        step: Step,
        /// What kind of bits.
        what: &'static str,
        /// The ones that are missing.
        bits: u64,
    },
}

pub(super) trait At<T> {
    fn at(self, step: Step) -> Result<T, TdxError>;
}

impl<T> At<T> for Result<T, Refusal> {
    fn at(self, step: Step) -> Result<T, TdxError> {
        self.map_err(|refusal| TdxError::Refused {
            step,
            source: refusal.source,
            module: Some(refusal.module)
                .filter(|&status| status != 0)
                .map(ModuleStatus),
        })
    }
}

impl<T> At<T> for Result<T, run_calls::Refusal> {
    fn at(self, step: Step) -> Result<T, TdxError> {
        self.map_err(Refusal::from).at(step)
    }
}
