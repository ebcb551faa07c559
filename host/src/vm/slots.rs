//! What KVM is told of a VM's memory, and of the ports by which its contexts wake others.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use cloak_abi::layout::doorbell_port;
use cloak_abi::ring::SHARED_LEN;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::border::Border;
use super::error::{Step, VmError};
use super::load;

/// Ordinary memory, in the slots from `first` on.
///
/// # Errors
/// KVM's refusal.
pub fn add_memory(
    vm: &VmFd,
    first: u32,
    memory: &GuestMemoryMmap,
    borders: &[Border],
) -> Result<(), VmError> {
    let ram = memory
        .iter()
        .map(|r| (r.start_addr().raw_value(), r.len(), r.as_ptr() as u64));
    let shared = (0..).zip(borders).map(|(index, border)| {
        let at = load::shared_gpa(index);
        (at, SHARED_LEN as u64, border.shared.host_address())
    });
    for (slot, (guest_phys_addr, memory_size, userspace_addr)) in (first..).zip(ram.chain(shared)) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: the mappings live as long as the process (guest RAM is never unmapped, shared regions
        // neither), and nobody else in it keeps references into them.
        unsafe { vm.set_user_memory_region(region) }
            .step("giving the VM its memory (KVM_SET_USER_MEMORY_REGION)")?;
    }
    Ok(())
}

/// Value 0 on a context's doorbell port wakes its OS service, value 1 + n its vCPU n, without a return to the monitor.
///
/// # Errors
/// KVM's refusal.
pub fn add_doorbells(vm: &VmFd, borders: &[Border]) -> Result<(), VmError> {
    for (context, border) in (0..).zip(borders) {
        let port = IoEventAddress::Pio(u64::from(doorbell_port(context)));
        for (value, fd) in (0u32..).zip(std::iter::once(&border.doorbell).chain(&border.wakes)) {
            let event = borrowed(fd);
            vm.register_ioevent(&event, &port, value)
                .step("registering a doorbell (KVM_IOEVENTFD)")?;
        }
    }
    Ok(())
}

/// As `kvm-ioctls` wants it.
fn borrowed(fd: &OwnedFd) -> ManuallyDrop<EventFd> {
    // SAFETY: an eventfd, which is not closed by the result.
    ManuallyDrop::new(unsafe { EventFd::from_raw_fd(fd.as_raw_fd()) })
}
