//! The calls as KVM takes them.

use std::io;
use std::sync::Arc;

use cloak_abi::layout::PAGE;
use kvm_bindings::{
    CpuId, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_memory_attributes, kvm_run,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{
    CpuidEntry, KVM_MEMORY_ENCRYPT_OP, KVM_TDX_CAPABILITIES, KVM_TDX_FINALIZE_VM, KVM_TDX_INIT_MEM_REGION,
    KVM_TDX_INIT_VCPU, KVM_TDX_INIT_VM, KVM_X86_TDX_VM, kvm_tdx_capabilities, kvm_tdx_cmd,
    kvm_tdx_init_mem_region, kvm_tdx_init_vm,
};
use super::calls::{Backing, LaunchCalls, Offered, Refusal, RunCalls};
use super::error::{At, Step, TdxError};
use crate::kvm::protected::{ProtectedVm, errno, within};
use crate::kvm::run_calls;
use crate::tdvmcall::Exit;

/// Most leaves of CPUID that KVM takes.
const MOST: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

/// A VM of type 5.
#[derive(Debug)]
pub struct KvmTdx {
    own: ProtectedVm,
    supported: Vec<CpuidEntry>,
}

/// A structure with leaves of CPUID after it.
#[repr(C)]
struct WithLeaves<T> {
    head: T,
    leaves: [CpuidEntry; MOST],
}

impl<T> WithLeaves<T> {
    fn new(head: T) -> Box<Self> {
        Box::new(Self {
            head,
            leaves: [CpuidEntry::default(); MOST],
        })
    }
}

fn refused(error: kvm_ioctls::Error) -> Refusal {
    errno(error).into()
}

fn invalid() -> Refusal {
    io::Error::from_raw_os_error(libc::EINVAL).into()
}

fn command(id: u32, flags: u32, data: u64) -> kvm_tdx_cmd {
    kvm_tdx_cmd {
        id,
        flags,
        data,
        hw_error: 0,
    }
}

impl KvmTdx {
    /// Makes the VM.
    ///
    /// # Errors
    /// [`TdxError::Refused`] at [`Step::CreateVm`]: the kernel, its parameters or the processor do not offer TDX.
    pub fn create(kvm: &Kvm) -> Result<Self, TdxError> {
        let own = ProtectedVm::create(kvm, KVM_X86_TDX_VM);
        let own = own.map_err(Refusal::from).at(Step::CreateVm)?;
        let supported = kvm.get_supported_cpuid(MOST);
        let supported = supported.map_err(refused).at(Step::SupportedCpuid)?;
        Ok(Self {
            own,
            supported: supported.as_slice().to_vec(),
        })
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> Arc<VmFd> {
        self.own.vm()
    }

    /// Frequency of the domain's TSC.
    ///
    /// # Errors
    /// [`TdxError::Refused`].
    pub fn tsc_khz(&self) -> Result<u64, TdxError> {
        self.own.tsc_khz().map_err(Refusal::from).at(Step::CreateVm)
    }

    /// A command of the VM.
    ///
    /// # Safety
    /// `data` of the command is what its number asks for: a value, or an address that is valid for the call.
    unsafe fn vm_command(&self, mut command: kvm_tdx_cmd) -> Result<(), Refusal> {
        // SAFETY: the caller's promise; the kernel writes `hw_error` back.
        let result = unsafe { self.own.vm().encrypt_op(&raw mut command) };
        result.map_err(|error| Refusal {
            source: errno(error),
            module: command.hw_error,
        })
    }

    /// A command of a vCPU.
    ///
    /// # Safety
    /// As of [`KvmTdx::vm_command`].
    unsafe fn vcpu_command(&self, index: usize, mut command: kvm_tdx_cmd) -> Result<(), Refusal> {
        let vcpu = self.own.vcpus.get(index).ok_or_else(invalid)?;
        // SAFETY: the caller's promise, and a structure of the size that the number names.
        if unsafe { ioctl_with_mut_ref(vcpu, KVM_MEMORY_ENCRYPT_OP, &mut command) } < 0 {
            return Err(Refusal {
                source: io::Error::last_os_error(),
                module: command.hw_error,
            });
        }
        Ok(())
    }
}

/// Guest TSC minus host TSC. The module has the register, so KVM does not read it as one of a vCPU's, but tells the offset.
fn tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    /// `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
    const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;
    let mut offset = 0u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw mut offset as u64,
        flags: 0,
    };
    // SAFETY: the structure that the request takes, which points to the eight bytes that this attribute has.
    if unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR, &attribute) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(offset)
}

impl super::Finalized<KvmTdx> {
    /// Its vCPUs, in the order of their numbers, and how its TSC differs from the host's ([`ProtectedVm::tsc_offset`]).
    pub fn take_vcpus(&mut self) -> (Vec<VcpuFd>, u64) {
        let own = &mut self.calls.own;
        (std::mem::take(&mut own.vcpus), own.tsc_offset)
    }
}

/// Copies what the exit `KVM_EXIT_TDX` says.
#[must_use]
pub fn exit(run: &kvm_run) -> Exit {
    // SAFETY: the union's member of all its bytes; any bits are numbers.
    let bytes = unsafe { run.__bindgen_anon_1.padding };
    let bytes = bytes.map(|byte| byte as u8);
    Exit::read_from_prefix(&bytes).map_or_else(|_| Exit::default(), |(exit, _)| exit)
}

/// Writes an answer where the kernel reads it at the next `KVM_RUN`.
pub fn answer(run: &mut kvm_run, exit: &Exit) {
    // SAFETY: as above.
    let bytes = unsafe { &mut run.__bindgen_anon_1.padding };
    for (to, from) in bytes.iter_mut().zip(exit.as_bytes()) {
        *to = *from as libc::c_char;
    }
}

impl RunCalls for KvmTdx {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), run_calls::Refusal> {
        Ok(self.own.set_attributes(attributes)?)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), run_calls::Refusal> {
        Ok(self.own.discard(gpa, len, backing)?)
    }
}

impl LaunchCalls for KvmTdx {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        Ok(self.own.enable(capability, argument)?)
    }

    fn supported_cpuid(&mut self) -> Result<Vec<CpuidEntry>, Refusal> {
        Ok(self.supported.clone())
    }

    fn capabilities(&mut self, room: usize) -> Result<Offered, Refusal> {
        let mut data = WithLeaves::new(kvm_tdx_capabilities {
            nent: room.min(MOST) as u32,
            ..Default::default()
        });
        let at = std::ptr::from_mut(&mut *data) as u64;
        // SAFETY: the structure that the command fills, with at least as many leaves behind it as it says.
        unsafe { self.vm_command(command(KVM_TDX_CAPABILITIES, 0, at)) }?;
        let leaves = data.leaves.get(..data.head.nent as usize);
        Ok(Offered {
            fixed: data.head,
            cpuid: leaves.ok_or_else(invalid)?.to_vec(),
        })
    }

    fn init_vm(&mut self, mut data: kvm_tdx_init_vm, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        data.nent = cpuid.len() as u32;
        let mut data = WithLeaves::new(data);
        let leaves = data.leaves.get_mut(..cpuid.len());
        leaves.ok_or_else(invalid)?.copy_from_slice(cpuid);
        let at = std::ptr::from_mut(&mut *data) as u64;
        // SAFETY: the structure that the command reads, with as many leaves behind it as it says.
        unsafe { self.vm_command(command(KVM_TDX_INIT_VM, 0, at)) }
    }

    fn add_vcpu(&mut self, index: u32, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        let vcpu = self.own.vm().create_vcpu(u64::from(index)).map_err(refused)?;
        let cpuid = CpuId::from_entries(cpuid).map_err(|_| invalid())?;
        vcpu.set_cpuid2(&cpuid).map_err(refused)?;
        if index == 0 {
            self.own.tsc_offset = tsc_offset(&vcpu)?;
        }
        self.own.vcpus.push(vcpu);
        Ok(())
    }

    fn init_vcpu(&mut self, index: u32, rcx: u64) -> Result<(), Refusal> {
        // SAFETY: the command takes a value.
        unsafe { self.vcpu_command(index as usize, command(KVM_TDX_INIT_VCPU, 0, rcx)) }
    }

    fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> Result<(), Refusal> {
        Ok(self.own.add_memory(region)?)
    }

    fn init_mem_region(
        &mut self,
        data: &mut kvm_tdx_init_mem_region,
        flags: u32,
        source: &[u8],
    ) -> Result<(), Refusal> {
        within(source, data.source_addr, data.nr_pages.checked_mul(PAGE))?;
        let at = std::ptr::from_mut(data) as u64;
        // SAFETY: the structure that the command reads and writes; what it points to lies in `source`, which is only read.
        unsafe { self.vcpu_command(0, command(KVM_TDX_INIT_MEM_REGION, flags, at)) }
    }

    fn finalize(&mut self) -> Result<(), Refusal> {
        // SAFETY: the command takes no argument.
        unsafe { self.vm_command(command(KVM_TDX_FINALIZE_VM, 0, 0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::program::Shim;
    use crate::image::{LaunchImage, Measuring};
    use crate::kvm::tdx::config::SEPT_VE_DISABLE;
    use crate::kvm::tdx::{Configured, Options};

    /// `KVM_CAP_VM_TYPES`.
    const VM_TYPES: u64 = 235;

    /// The whole launch where there is TDX; elsewhere the refusal that a user sees.
    #[test]
    fn a_machine_with_tdx_launches_the_image_and_one_without_says_what_it_lacks() {
        let Ok(kvm) = Kvm::new() else {
            crate::skipped::skip("no KVM here");
            return;
        };
        let offered = kvm.check_extension_raw(VM_TYPES) >> KVM_X86_TDX_VM & 1 == 1;
        let created = KvmTdx::create(&kvm);
        assert_eq!(offered, created.is_ok());
        let calls = match created {
            Ok(calls) => calls,
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("type 5") && text.contains("cloak doctor"), "{text}");
                return;
            }
        };
        let options = Options {
            attributes: SEPT_VE_DISABLE,
            vcpus: 2,
            mr_config_id: [1; 48],
            parameters: Box::new([0; PAGE as usize]),
        };
        let image = LaunchImage::new(&Shim::embedded().expect("own"), Measuring::Tdx).expect("an image");
        let memory = [[0, 64 << 20], [0xffff_f000, 1 << 32]];
        Configured::new(calls, image, options)
            .and_then(Configured::init)
            .and_then(|domain| domain.vcpus()?.back(&memory)?.add()?.finalize())
            .expect("a launch");
    }

    #[test]
    fn an_exit_is_read_and_answered_in_its_place() {
        let mut run = kvm_run::default();
        let exit_of = Exit {
            flags: 0,
            nr: 0x1_0002,
            words: [1 << 63, 0x8000, 0x2000, 4, 5, 6],
        };
        answer(&mut run, &exit_of);
        assert_eq!(exit(&run), exit_of);
        let at = std::mem::offset_of!(kvm_run, __bindgen_anon_1);
        // SAFETY: all of it is numbers, and initialised.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const run).cast::<u8>(), size_of::<kvm_run>()) };
        assert_eq!(bytes[at + 8..at + 16], 0x1_0002u64.to_le_bytes());
        assert_eq!(bytes[at + 56..at + 64], 6u64.to_le_bytes());
        assert!(bytes[at + 64..].iter().all(|&byte| byte == 0) && bytes[..at].iter().all(|&byte| byte == 0));
    }
}
