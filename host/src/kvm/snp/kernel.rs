//! The calls as KVM takes them.
//!
//! The structures are `kvm-bindings`', which are generated from the kernel's headers; a test compares them with
//! the headers of the machine where those are new enough.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use kvm_bindings::{
    CpuId, KVM_X86_SNP_VM, kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_sev_cmd,
    kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
    kvm_userspace_memory_region2, sev_cmd_id, sev_cmd_id_KVM_SEV_INIT2, sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::calls::{Backing, LaunchCalls, Refusal, RunCalls};
use super::error::{At, SnpError, Step};
use crate::image::registers::Registers;
use crate::kvm::start;

/// The security processor's device.
pub const SEV_DEVICE: &str = "/dev/sev";

/// A VM of type 4.
#[derive(Debug)]
pub struct KvmSnp {
    vm: VmFd,
    sev: File,
    cpuid: CpuId,
    /// Its vCPUs, in the order of their numbers.
    pub vcpus: Vec<VcpuFd>,
    memory: Vec<Slot>,
}

/// What is behind one range of guest-physical memory.
#[derive(Debug)]
struct Slot {
    gpa: u64,
    len: u64,
    shared: *mut libc::c_void,
    private: OwnedFd,
}

// SAFETY: the mapping is plain memory of this process; the pointer is only passed to system calls.
unsafe impl Send for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the mapping that `add_memory` made, of the same length. The VM that used it is closed before (the field
        // comes first), or keeps the pages by itself.
        unsafe { libc::munmap(self.shared, self.len as usize) };
    }
}

impl KvmSnp {
    /// Makes the VM.
    ///
    /// # Errors
    /// [`SnpError::Refused`] at [`Step::CreateVm`]: the kernel, its parameters or the processor do not offer SNP.
    pub fn create(kvm: &Kvm) -> Result<Self, SnpError> {
        let vm = kvm.create_vm_with_type(u64::from(KVM_X86_SNP_VM));
        let vm = vm.map_err(refused).at(Step::CreateVm)?;
        let sev = File::options().read(true).write(true).open(Path::new(SEV_DEVICE));
        let sev = sev.map_err(Refusal::from).at(Step::Start)?;
        let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        Ok(Self {
            vm,
            sev,
            cpuid: cpuid.map_err(refused).at(Step::CreateVm)?,
            vcpus: Vec::new(),
            memory: Vec::new(),
        })
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
        let result = unsafe { self.vm.encrypt_op(&raw mut command) };
        result.map_err(|error| Refusal {
            source: io::Error::from_raw_os_error(error.errno()),
            firmware: Some(command.error),
        })
    }

    fn slot(&self, gpa: u64, len: u64) -> Result<(&Slot, u64), Refusal> {
        let inside = |slot: &&Slot| {
            let offset = gpa.checked_sub(slot.gpa);
            offset.is_some_and(|offset| offset.checked_add(len).is_some_and(|end| end <= slot.len))
        };
        let slot = self.memory.iter().find(inside);
        let slot = slot.ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok((slot, gpa - slot.gpa))
    }
}

fn refused(error: kvm_ioctls::Error) -> Refusal {
    io::Error::from_raw_os_error(error.errno()).into()
}

fn checked(result: libc::c_int) -> Result<(), Refusal> {
    if result < 0 {
        Err(io::Error::last_os_error().into())
    } else {
        Ok(())
    }
}

impl RunCalls for KvmSnp {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        self.vm.set_memory_attributes(attributes).map_err(refused)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        let (slot, offset) = self.slot(gpa, len)?;
        match backing {
            Backing::Private => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: plain call on an own descriptor.
                checked(unsafe {
                    libc::fallocate(
                        slot.private.as_raw_fd(),
                        mode,
                        offset as libc::off_t,
                        len as libc::off_t,
                    )
                })
            }
            // SAFETY: inside the mapping, to which this process has no references.
            Backing::Shared => checked(unsafe {
                libc::madvise(
                    slot.shared.wrapping_byte_add(offset as usize),
                    len as usize,
                    libc::MADV_DONTNEED,
                )
            }),
        }
    }
}

impl LaunchCalls for KvmSnp {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        let capability = kvm_enable_cap {
            cap: capability,
            args: [argument, 0, 0, 0],
            ..Default::default()
        };
        self.vm.enable_cap(&capability).map_err(refused)
    }

    fn init2(&mut self, data: &mut kvm_sev_init) -> Result<(), Refusal> {
        // SAFETY: the command's own type, without addresses.
        unsafe { self.command(sev_cmd_id_KVM_SEV_INIT2, data) }
    }

    fn start(&mut self, data: &mut kvm_sev_snp_launch_start) -> Result<(), Refusal> {
        // SAFETY: as above.
        unsafe { self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, data) }
    }

    fn add_memory(&mut self, mut region: kvm_userspace_memory_region2) -> Result<(), Refusal> {
        let len = region.memory_size;
        let memfd = kvm_create_guest_memfd {
            size: len,
            ..Default::default()
        };
        let raw = self.vm.create_guest_memfd(memfd).map_err(refused)?;
        // SAFETY: a fresh descriptor that nobody else owns.
        let private = unsafe { OwnedFd::from_raw_fd(raw) };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping; the result is checked.
        let shared = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, access, flags, -1, 0) };
        if shared == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        region.userspace_addr = shared as u64;
        region.guest_memfd = private.as_raw_fd() as u32;
        self.memory.push(Slot {
            gpa: region.guest_phys_addr,
            len,
            shared,
            private,
        });
        // SAFETY: the mapping lives as long as the VM, and nobody keeps references into it.
        unsafe { self.vm.set_user_memory_region2(region) }.map_err(refused)
    }

    fn update(&mut self, data: &mut kvm_sev_snp_launch_update, source: &mut [u8]) -> Result<(), Refusal> {
        let start = source.as_ptr() as u64;
        let inside = data
            .uaddr
            .checked_sub(start)
            .and_then(|at| at.checked_add(data.len));
        if inside.is_none_or(|end| end > source.len() as u64) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT).into());
        }
        // SAFETY: the command's own type; `uaddr` and `len` lie in `source`, which is ours to have changed.
        unsafe { self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, data) }
    }

    fn add_vcpu(&mut self, index: u32, registers: Registers) -> Result<(), Refusal> {
        let vcpu = self.vm.create_vcpu(u64::from(index)).map_err(refused)?;
        start::prepare_measured_vcpu(&vcpu, &self.cpuid, index, registers).map_err(refused)?;
        self.vcpus.push(vcpu);
        Ok(())
    }

    fn finish(&mut self, data: &mut kvm_sev_snp_launch_finish) -> Result<(), Refusal> {
        // SAFETY: the command's own type; `Ready::finish` keeps the blocks that it points to until the call is over.
        unsafe { self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, data) }
    }
}
