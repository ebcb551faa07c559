//! The calls as KVM takes them.
//!
//! The structures are `kvm-bindings`', which are generated from the kernel's headers; a test compares them with
//! the headers of the machine where those are new enough.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_X86_SNP_VM, kvm_memory_attributes, kvm_sev_cmd, kvm_sev_init, kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start, kvm_sev_snp_launch_update, kvm_userspace_memory_region2, sev_cmd_id,
    sev_cmd_id_KVM_SEV_INIT2, sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, sev_cmd_id_KVM_SEV_SNP_LAUNCH_START,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::IdBlock;
use super::calls::{Backing, LaunchCalls, Refusal, RunCalls};
use super::error::{At, SnpError, Step};
use crate::image::registers::Registers;
use crate::kvm::protected::{ProtectedVm, errno, within};
use crate::kvm::start;

/// The security processor's device.
pub const SEV_DEVICE: &str = "/dev/sev";

/// A VM of type 4.
#[derive(Debug)]
pub struct KvmSnp {
    own: ProtectedVm,
    sev: File,
    cpuid: CpuId,
}

impl KvmSnp {
    /// Makes the VM.
    ///
    /// # Errors
    /// [`SnpError::Refused`] at [`Step::CreateVm`]: the kernel, its parameters or the processor do not offer SNP.
    pub fn create(kvm: &Kvm) -> Result<Self, SnpError> {
        let own = ProtectedVm::create(kvm, u64::from(KVM_X86_SNP_VM));
        let own = own.map_err(Refusal::from).at(Step::CreateVm)?;
        let sev = File::options().read(true).write(true).open(Path::new(SEV_DEVICE));
        let sev = sev.map_err(Refusal::from).at(Step::Start)?;
        let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        Ok(Self {
            own,
            sev,
            cpuid: cpuid.map_err(refused).at(Step::CreateVm)?,
        })
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> Arc<VmFd> {
        self.own.vm()
    }

    /// Frequency of the guest's TSC.
    ///
    /// # Errors
    /// [`SnpError::Refused`].
    pub fn tsc_khz(&self) -> Result<u64, SnpError> {
        self.own.tsc_khz().map_err(Refusal::from).at(Step::CreateVm)
    }

    /// `KVM_MEMORY_ENCRYPT_OP` with a command of SEV's.
    ///
    /// # Safety
    /// `data` is of the type that `id` takes, and the addresses in it are valid for as long as the call lasts.
    unsafe fn command<T>(&self, id: sev_cmd_id, data: &mut T) -> Result<(), Refusal> {
        let mut command = kvm_sev_cmd {
            id,
            data: std::ptr::from_mut(data) as u64,
            sev_fd: self.sev.as_raw_fd() as u32,
            ..Default::default()
        };
        // SAFETY: the caller's promise; the kernel writes `error` back.
        let result = unsafe { self.own.vm().encrypt_op(&raw mut command) };
        result.map_err(|error| Refusal {
            source: errno(error),
            firmware: Some(command.error),
        })
    }
}

impl super::Launched<KvmSnp> {
    /// Its vCPUs, in the order of their numbers, and how its TSC differs from the host's ([`ProtectedVm::tsc_offset`]).
    pub fn take_vcpus(&mut self) -> (Vec<VcpuFd>, u64) {
        let own = &mut self.calls.own;
        (std::mem::take(&mut own.vcpus), own.tsc_offset)
    }
}

fn refused(error: kvm_ioctls::Error) -> Refusal {
    errno(error).into()
}

impl RunCalls for KvmSnp {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        Ok(self.own.set_attributes(attributes)?)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        Ok(self.own.discard(gpa, len, backing)?)
    }
}

impl LaunchCalls for KvmSnp {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        Ok(self.own.enable(capability, argument)?)
    }

    fn init2(&mut self, data: &mut kvm_sev_init) -> Result<(), Refusal> {
        // SAFETY: the command's own type, without addresses.
        unsafe { self.command(sev_cmd_id_KVM_SEV_INIT2, data) }
    }

    fn start(&mut self, data: &mut kvm_sev_snp_launch_start) -> Result<(), Refusal> {
        // SAFETY: as above.
        unsafe { self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, data) }
    }

    fn enable_certificates(&mut self) -> Result<(), Refusal> {
        // SAFETY: the command takes no data.
        unsafe { self.command(super::KVM_SEV_SNP_ENABLE_REQ_CERTS, &mut 0u64) }
    }

    fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> Result<(), Refusal> {
        Ok(self.own.add_memory(region)?)
    }

    fn update(&mut self, data: &mut kvm_sev_snp_launch_update, source: &mut [u8]) -> Result<(), Refusal> {
        within(source, data.uaddr, Some(data.len))?;
        // SAFETY: the command's own type; `uaddr` and `len` lie in `source`, which is ours to have changed.
        unsafe { self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, data) }
    }

    fn add_vcpu(&mut self, index: u32, registers: Registers) -> Result<(), Refusal> {
        let vcpu = self.own.vm().create_vcpu(u64::from(index)).map_err(refused)?;
        start::prepare_measured_vcpu(&vcpu, &self.cpuid, index, registers).map_err(refused)?;
        if index == 0 {
            self.own.tsc_offset = start::tsc_offset(&vcpu).map_err(refused)?;
        }
        self.own.vcpus.push(vcpu);
        Ok(())
    }

    fn finish(&mut self, data: &mut kvm_sev_snp_launch_finish, id: Option<&IdBlock>) -> Result<(), Refusal> {
        if let Some(id) = id {
            data.id_block_en = 1;
            data.id_block_uaddr = id.block.as_ptr() as u64;
            data.id_auth_uaddr = id.auth.as_ptr() as u64;
            data.auth_key_en = u8::from(id.author_key);
        }
        // SAFETY: the command's own type; the blocks that it points to are borrowed until the call is over.
        unsafe { self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, data) }
    }
}
