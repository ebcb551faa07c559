//! Memory that only the guest reads: guest_memfd behind memory slots, with ordinary memory beside it for what it shares.
//!
//! Each address of a slot has both backings; KVM's memory attributes say which of them the guest's page tables lead to.
//! The same on SNP, on TDX and on KVM's software-protected VMs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{kvm_create_guest_memfd, kvm_userspace_memory_region2};
use kvm_ioctls::VmFd;
use vm_memory::VolatileSlice;

use super::run_calls::Backing;

/// All slots of a VM. Is to live as long as the VM.
#[derive(Debug, Default)]
pub struct PrivateMemory(Vec<Slot>);

/// What is behind one range of guest-physical memory.
#[derive(Debug)]
struct Slot {
    gpa: u64,
    len: u64,
    shared: *mut libc::c_void,
    private: OwnedFd,
}

// SAFETY: the mapping is plain memory of this process; the pointer goes to system calls and to volatile accesses only.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the mapping that `add` made, of the same length. A VM that still uses it keeps the pages by itself.
        unsafe { libc::munmap(self.shared, self.len as usize) };
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl PrivateMemory {
    /// `KVM_CREATE_GUEST_MEMFD` of the region's size, then `KVM_SET_USER_MEMORY_REGION2` with it. Fills in both backings.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn add(&mut self, vm: &VmFd, mut region: kvm_userspace_memory_region2) -> io::Result<()> {
        let len = region.memory_size;
        let memfd = kvm_create_guest_memfd {
            size: len,
            ..Default::default()
        };
        let raw = vm
            .create_guest_memfd(memfd)
            .map_err(|error| errno(error.errno()))?;
        // SAFETY: a fresh descriptor that nobody else owns.
        let private = unsafe { OwnedFd::from_raw_fd(raw) };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping; the result is checked.
        let shared = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, access, flags, -1, 0) };
        if shared == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        region.userspace_addr = shared as u64;
        region.guest_memfd = private.as_raw_fd() as u32;
        let slot = Slot {
            gpa: region.guest_phys_addr,
            len,
            shared,
            private,
        };
        // SAFETY: the mapping lives as long as the VM, and nobody keeps references into it.
        unsafe { vm.set_user_memory_region2(region) }.map_err(|error| errno(error.errno()))?;
        self.0.push(slot);
        Ok(())
    }

    /// Gives the host's memory behind `[gpa, gpa + len)` back: that of the private pages, or that of the shared ones.
    ///
    /// # Errors
    /// The kernel's answer; EFAULT if it is not within one slot.
    pub fn discard(&self, gpa: u64, len: u64, backing: Backing) -> io::Result<()> {
        let (slot, offset) = self.slot(gpa, len)?;
        match backing {
            Backing::Private => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let (offset, len) = (offset as libc::off_t, len as libc::off_t);
                // SAFETY: plain call on an own descriptor.
                checked(unsafe { libc::fallocate(slot.private.as_raw_fd(), mode, offset, len) })
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

    /// Copies what the guest shares at `gpa`, once: it may change while that is done and after.
    ///
    /// # Errors
    /// EFAULT if it is not within one slot.
    pub fn read_shared(&self, gpa: u64, into: &mut [u8]) -> io::Result<()> {
        self.shared(gpa, into.len())?.copy_to(into);
        Ok(())
    }

    /// Writes what the guest shares at `gpa`.
    ///
    /// # Errors
    /// As [`PrivateMemory::read_shared`].
    pub fn write_shared(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        self.shared(gpa, bytes.len())?.copy_from(bytes);
        Ok(())
    }

    fn shared(&self, gpa: u64, len: usize) -> io::Result<VolatileSlice<'_>> {
        let (slot, offset) = self.slot(gpa, len as u64)?;
        let at = slot.shared.wrapping_byte_add(offset as usize);
        // SAFETY: inside the mapping, which lives as long as the slot; all accesses to it are volatile.
        Ok(unsafe { VolatileSlice::new(at.cast(), len) })
    }

    fn slot(&self, gpa: u64, len: u64) -> io::Result<(&Slot, u64)> {
        let inside = |slot: &&Slot| {
            let offset = gpa.checked_sub(slot.gpa);
            offset.is_some_and(|offset| offset.checked_add(len).is_some_and(|end| end <= slot.len))
        };
        let slot = self.0.iter().find(inside).ok_or_else(|| errno(libc::EFAULT))?;
        Ok((slot, gpa - slot.gpa))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::{
        KVM_CAP_GUEST_MEMFD, KVM_MEM_GUEST_MEMFD, KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM,
    };
    use kvm_ioctls::Kvm;

    const START: u64 = 0x10_0000;
    const LEN: u64 = 0x10_0000;

    /// A VM with memory of both kinds, where this kernel has one: an ordinary VM, or a software-protected one.
    fn memory() -> Option<(VmFd, PrivateMemory)> {
        let kvm = Kvm::new().ok()?;
        let made = [KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM]
            .map(|kind| kvm.create_vm_with_type(kind.into()).ok());
        // Of a VM: that some kind of VM has it says nothing of another.
        let has = |vm: &VmFd| vm.check_extension_raw(KVM_CAP_GUEST_MEMFD.into()) > 0;
        let Some(vm) = made.into_iter().flatten().find(has) else {
            crate::skipped::skip("this kernel has no VM with guest_memfd");
            return None;
        };
        let mut memory = PrivateMemory::default();
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: START,
            memory_size: LEN,
            ..Default::default()
        };
        memory.add(&vm, region).expect("a slot");
        Some((vm, memory))
    }

    #[test]
    fn what_is_shared_is_read_as_written_until_it_is_discarded() {
        let Some((_vm, memory)) = memory() else { return };
        let mut found = [0; 5000];
        memory.write_shared(START + 0xff0, &[7; 5000]).expect("inside");
        memory.read_shared(START + 0xff0, &mut found).expect("inside");
        assert_eq!(found, [7; 5000]);
        memory.discard(START, LEN, Backing::Private).expect("inside");
        memory.read_shared(START + 0xff0, &mut found).expect("inside");
        assert_eq!(found, [7; 5000], "the other backing");
        memory.discard(START, LEN, Backing::Shared).expect("inside");
        memory.read_shared(START + 0xff0, &mut found).expect("inside");
        assert_eq!(found, [0; 5000]);
    }

    #[test]
    fn nothing_outside_a_slot_is_touched() {
        let Some((vm, mut memory)) = memory() else { return };
        for (gpa, len) in [
            (0, 1),
            (START - 1, 2),
            (START + LEN - 1, 2),
            (START + LEN, 1),
            (u64::MAX, 2),
            (START, LEN as usize + 1),
        ] {
            let mut bytes = vec![1; len];
            let errno = |result: io::Result<()>| result.expect_err("outside").raw_os_error();
            assert_eq!(errno(memory.read_shared(gpa, &mut bytes)), Some(libc::EFAULT));
            assert_eq!(errno(memory.write_shared(gpa, &bytes)), Some(libc::EFAULT));
            for backing in [Backing::Private, Backing::Shared] {
                assert_eq!(
                    errno(memory.discard(gpa, len as u64, backing)),
                    Some(libc::EFAULT)
                );
            }
        }
        // A second slot over the first is the kernel's to refuse.
        let region = kvm_userspace_memory_region2 {
            slot: 1,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: START + 0x1000,
            memory_size: 0x1000,
            ..Default::default()
        };
        assert!(memory.add(&vm, region).is_err());
    }
}
