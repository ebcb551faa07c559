//! A VM whose guest has memory for itself, as KVM takes it: what the launches of SNP guests and of TDX domains have in common.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use cloak_abi::layout::PAGE;
use kvm_bindings::{
    KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_enable_cap, kvm_memory_attributes,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::private::PrivateMemory;
use super::run_calls::Backing;

/// Most times that one call of a launch is made without progress: a signal came, memory was short, or the TDX module was busy.
pub const TRIES: u32 = 16;

/// The VM, its memory and its vCPUs.
#[derive(Debug)]
pub struct ProtectedVm {
    vm: Arc<VmFd>,
    memory: PrivateMemory,
    /// Its vCPUs, in the order of their numbers.
    pub vcpus: Vec<VcpuFd>,
    /// Guest TSC minus host TSC, as a wrapping difference: nobody reads a register of a vCPU once it is launched.
    pub tsc_offset: u64,
}

/// The kernel's answer, as the launches take it.
pub fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Whether the kernel will find `len` bytes at address `at` in `source`, which is all that it may be told to look at.
///
/// # Errors
/// EFAULT, as the kernel's answer to an address that is not there.
pub fn within(source: &[u8], at: u64, len: Option<u64>) -> io::Result<()> {
    let offset = at.checked_sub(source.as_ptr() as u64);
    let end = offset.zip(len).and_then(|(offset, len)| offset.checked_add(len));
    if end.is_some_and(|end| end <= source.len() as u64) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

impl ProtectedVm {
    /// Makes one of this type.
    ///
    /// # Errors
    /// The kernel's answer: it, its parameters or the processor do not offer that.
    pub fn create(kvm: &Kvm, kind: u64) -> io::Result<Self> {
        Ok(Self {
            vm: Arc::new(kvm.create_vm_with_type(kind).map_err(errno)?),
            memory: PrivateMemory::default(),
            vcpus: Vec::new(),
            tsc_offset: 0,
        })
    }

    /// The VM itself.
    #[must_use]
    pub fn vm(&self) -> Arc<VmFd> {
        self.vm.clone()
    }

    /// Frequency of the guest's TSC (`KVM_GET_TSC_KHZ` of the VM: there is no vCPU yet when it is asked for).
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn tsc_khz(&self) -> io::Result<u64> {
        const KVM_GET_TSC_KHZ: libc::Ioctl = 0xaea3;
        // SAFETY: the VM's own descriptor; the request takes no argument.
        let khz = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_GET_TSC_KHZ, 0) };
        u64::try_from(khz).map_err(|_| io::Error::last_os_error())
    }

    /// `KVM_ENABLE_CAP` with one argument.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn enable(&self, capability: u32, argument: u64) -> io::Result<()> {
        let capability = kvm_enable_cap {
            cap: capability,
            args: [argument, 0, 0, 0],
            ..Default::default()
        };
        self.vm.enable_cap(&capability).map_err(errno)
    }

    /// `KVM_CREATE_GUEST_MEMFD`, then `KVM_SET_USER_MEMORY_REGION2` with it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> io::Result<()> {
        self.memory.add(&self.vm, region)
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_attributes(&self, attributes: kvm_memory_attributes) -> io::Result<()> {
        self.vm.set_memory_attributes(attributes).map_err(errno)
    }

    /// Gives the host's memory behind a range back.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn discard(&self, gpa: u64, len: u64, backing: Backing) -> io::Result<()> {
        self.memory.discard(gpa, len, backing)
    }

    /// Its memory, as the host may see it.
    #[cfg(test)]
    pub fn memory(&self) -> &PrivateMemory {
        &self.memory
    }
}

/// The slot for a range of guest-physical memory, whole pages, and the attributes that make all of it private.
///
/// # Errors
/// What is wrong with the range.
pub fn slot(
    number: u32,
    [start, end]: [u64; 2],
) -> Result<(kvm_userspace_memory_region2, kvm_memory_attributes), &'static str> {
    if start >= end || !(start | end).is_multiple_of(PAGE) {
        return Err("a range of memory is not one of whole pages");
    }
    let region = kvm_userspace_memory_region2 {
        slot: number,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: start,
        memory_size: end - start,
        ..Default::default()
    };
    let private = kvm_memory_attributes {
        address: start,
        size: end - start,
        attributes: u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE),
        flags: 0,
    };
    Ok((region, private))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_of_no_bytes_outside_the_source() {
        let source = [0; 4096];
        let at = source.as_ptr() as u64;
        for (at, len, inside) in [
            (at, Some(4096), true),
            (at + 4095, Some(1), true),
            (at + 4096, Some(0), true),
            (at - 1, Some(1), false),
            (at, Some(4097), false),
            (at + 4096, Some(1), false),
            (at + 1, Some(u64::MAX), false),
            (at, None, false),
            (0, Some(1), false),
            (u64::MAX, Some(1), false),
        ] {
            assert_eq!(within(&source, at, len).is_ok(), inside, "{at:#x} {len:?}");
        }
    }
}
