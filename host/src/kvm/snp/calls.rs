//! The KVM calls that an SNP guest takes, behind two traits: those of its launch and those of its life.
//!
//! [`super::kernel::KvmSnp`] makes them. A test's double writes them down, and simulated hardware answers them. They are
//! two traits so that who holds a launched guest can name the second kind only.

use kvm_bindings::{
    kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
    kvm_userspace_memory_region2,
};

use super::IdBlock;
use crate::image::registers::Registers;
pub use crate::kvm::run_calls::{Backing, Refusal, RunCalls};

/// Calls of the launch, in the order in which they are made.
pub trait LaunchCalls: RunCalls {
    /// `KVM_ENABLE_CAP` with one argument.
    ///
    /// # Errors
    /// The kernel's answer.
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal>;

    /// `KVM_SEV_INIT2`.
    ///
    /// # Errors
    /// The kernel's and the firmware's answer, as for all that follow.
    fn init2(&mut self, data: &mut kvm_sev_init) -> Result<(), Refusal>;

    /// `KVM_SEV_SNP_LAUNCH_START`.
    ///
    /// # Errors
    /// As above.
    fn start(&mut self, data: &mut kvm_sev_snp_launch_start) -> Result<(), Refusal>;

    /// `KVM_SEV_SNP_ENABLE_REQ_CERTS`: extended guest requests ask for certificates by an exit.
    ///
    /// # Errors
    /// As above.
    fn enable_certificates(&mut self) -> Result<(), Refusal>;

    /// `KVM_CREATE_GUEST_MEMFD` of so many bytes, then `KVM_SET_USER_MEMORY_REGION2` of `region` with it; the call fills in
    /// the two backings.
    ///
    /// # Errors
    /// As above.
    fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> Result<(), Refusal>;

    /// `KVM_SEV_SNP_LAUNCH_UPDATE`. `data.uaddr` is an address in `source`, which the kernel may correct. On partial
    /// success `data` says what is left.
    ///
    /// # Errors
    /// As above.
    fn update(&mut self, data: &mut kvm_sev_snp_launch_update, source: &mut [u8]) -> Result<(), Refusal>;

    /// `KVM_CREATE_VCPU`, `KVM_SET_CPUID2`, `KVM_SET_SREGS`, `KVM_SET_REGS`.
    ///
    /// # Errors
    /// As above.
    fn add_vcpu(&mut self, index: u32, registers: Registers) -> Result<(), Refusal>;

    /// `KVM_SEV_SNP_LAUNCH_FINISH`. KVM measures the state of every vCPU here. The call fills in what the firmware is told of the
    /// ID block.
    ///
    /// # Errors
    /// As above.
    fn finish(&mut self, data: &mut kvm_sev_snp_launch_finish, id: Option<&IdBlock>) -> Result<(), Refusal>;
}

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $name(&mut self, $($arg: $type),*) -> Result<(), Refusal> {
            (**self).$name($($arg),*)
        }
    )*};
}

// Whoever lends it looks at it again after the launch.
impl<C: LaunchCalls + ?Sized> LaunchCalls for &mut C {
    forward! {
        enable(capability: u32, argument: u64);
        init2(data: &mut kvm_sev_init);
        start(data: &mut kvm_sev_snp_launch_start);
        enable_certificates();
        add_memory(region: kvm_userspace_memory_region2);
        update(data: &mut kvm_sev_snp_launch_update, source: &mut [u8]);
        add_vcpu(index: u32, registers: Registers);
        finish(data: &mut kvm_sev_snp_launch_finish, id: Option<&IdBlock>);
    }
}
