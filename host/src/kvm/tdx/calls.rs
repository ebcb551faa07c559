//! The KVM calls that the launch of a TDX domain takes, behind a trait; those of its life are the same as on SNP.
//!
//! [`super::kernel::KvmTdx`] makes them. A test's double writes them down, and simulated hardware answers them.

use std::io;

use kvm_bindings::kvm_userspace_memory_region2;

use super::abi::{CpuidEntry, kvm_tdx_capabilities, kvm_tdx_init_mem_region, kvm_tdx_init_vm};
use crate::kvm::run_calls;
pub use crate::kvm::run_calls::{Backing, RunCalls};

/// Why a call came to nothing.
#[derive(Debug)]
pub struct Refusal {
    /// The kernel's answer.
    pub source: io::Error,
    /// The TDX module's, if it was asked and the kernel passes it on: 0 if not.
    pub module: u64,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, module: 0 }
    }
}

impl From<run_calls::Refusal> for Refusal {
    fn from(refusal: run_calls::Refusal) -> Self {
        refusal.source.into()
    }
}

/// What the kernel and the module offer.
#[derive(Debug, Clone, Default)]
pub struct Offered {
    /// All but the leaves.
    pub fixed: kvm_tdx_capabilities,
    /// Leaves of CPUID: the bits that may be chosen.
    pub cpuid: Vec<CpuidEntry>,
}

/// Calls of the launch, in the order in which they are made.
pub trait LaunchCalls: RunCalls {
    /// `KVM_ENABLE_CAP` with one argument.
    ///
    /// # Errors
    /// The kernel's answer.
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal>;

    /// `KVM_GET_SUPPORTED_CPUID`.
    ///
    /// # Errors
    /// As above.
    fn supported_cpuid(&mut self) -> Result<Vec<CpuidEntry>, Refusal>;

    /// `KVM_TDX_CAPABILITIES` with room for so many leaves: E2BIG asks for more.
    ///
    /// # Errors
    /// The kernel's and the module's answer, as for all that follow.
    fn capabilities(&mut self, room: usize) -> Result<Offered, Refusal>;

    /// `KVM_TDX_INIT_VM`. The call fills in the number of leaves.
    ///
    /// # Errors
    /// As above.
    fn init_vm(&mut self, data: kvm_tdx_init_vm, cpuid: &[CpuidEntry]) -> Result<(), Refusal>;

    /// `KVM_CREATE_VCPU`, `KVM_SET_CPUID2`. vCPUs come in the order of their numbers.
    ///
    /// # Errors
    /// As above.
    fn add_vcpu(&mut self, index: u32, cpuid: &[CpuidEntry]) -> Result<(), Refusal>;

    /// `KVM_TDX_INIT_VCPU`; `rcx` is what the vCPU finds in RCX and R8.
    ///
    /// # Errors
    /// As above.
    fn init_vcpu(&mut self, index: u32, rcx: u64) -> Result<(), Refusal>;

    /// `KVM_CREATE_GUEST_MEMFD` of so many bytes, then `KVM_SET_USER_MEMORY_REGION2` of `region` with it; the call fills in
    /// the two backings.
    ///
    /// # Errors
    /// As above.
    fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> Result<(), Refusal>;

    /// `KVM_TDX_INIT_MEM_REGION` on the first vCPU. `data.source_addr` is an address in `source`. Whether the call succeeds
    /// or fails, `data` says what is left.
    ///
    /// # Errors
    /// As above.
    fn init_mem_region(
        &mut self,
        data: &mut kvm_tdx_init_mem_region,
        flags: u32,
        source: &[u8],
    ) -> Result<(), Refusal>;

    /// `KVM_TDX_FINALIZE_VM`. The module fixes the measurement here.
    ///
    /// # Errors
    /// As above.
    fn finalize(&mut self) -> Result<(), Refusal>;
}

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {$(
        fn $name(&mut self, $($arg: $type),*) -> Result<$out, Refusal> {
            (**self).$name($($arg),*)
        }
    )*};
}

// Whoever lends it looks at it again after the launch.
impl<C: LaunchCalls + ?Sized> LaunchCalls for &mut C {
    forward! {
        enable(capability: u32, argument: u64) -> ();
        supported_cpuid() -> Vec<CpuidEntry>;
        capabilities(room: usize) -> Offered;
        init_vm(data: kvm_tdx_init_vm, cpuid: &[CpuidEntry]) -> ();
        add_vcpu(index: u32, cpuid: &[CpuidEntry]) -> ();
        init_vcpu(index: u32, rcx: u64) -> ();
        add_memory(region: kvm_userspace_memory_region2) -> ();
        init_mem_region(data: &mut kvm_tdx_init_mem_region, flags: u32, source: &[u8]) -> ();
        finalize() -> ();
    }
}
