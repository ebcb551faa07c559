//! The shared region on the host: a memfd, mapped by the monitor and handed to the OS service.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use cloak_abi::layout::{LARGE, MAX_VCPUS};
use cloak_abi::ring::{
    BUFFER, BUFFERS_AT, EVENTS_AT, EventPage, QUEUE_PAGE, QUEUES_AT, QueuePage, SHARED_LEN, SHARED_MAGIC,
    SharedHeader,
};

use super::error::VmError;

/// The region. Only atomics are ever referenced in it: the guest and the OS service write it at any time.
#[derive(Debug)]
pub struct SharedRegion {
    fd: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the region is only reached through references to atomics.
unsafe impl Send for SharedRegion {}
// SAFETY: as above.
unsafe impl Sync for SharedRegion {}

impl SharedRegion {
    /// Makes the region and fills in its header.
    ///
    /// # Errors
    /// When the memfd or its mapping can't be had.
    pub fn create(vcpus: u32) -> Result<Self, VmError> {
        // SAFETY: a literal name; the result is checked.
        let raw = unsafe {
            libc::memfd_create(
                c"cloak-shared".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            )
        };
        if raw < 0 {
            return Err(VmError::last_os("making the shared region"));
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: plain call on an own descriptor.
        if unsafe { libc::ftruncate(raw, SHARED_LEN as libc::off_t) } < 0 {
            return Err(VmError::last_os("sizing the shared region"));
        }
        seal(&fd)?;
        let base = map_aligned(&fd)?;
        let region = Self { fd, base };
        let header = region.header();
        header.magic.store(SHARED_MAGIC, Ordering::Relaxed);
        header.version.store(cloak_abi::VERSION, Ordering::Relaxed);
        header.timer.store(u64::MAX, Ordering::Relaxed);
        header.vcpus.store(vcpus, Ordering::Release);
        Ok(region)
    }

    /// The descriptor, to hand to the OS service.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Where the monitor has it mapped (for the KVM memory slot).
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &SharedHeader {
        // SAFETY: offset 0 of a mapping that lives as long as `self`; all fields are atomics.
        unsafe { self.base.cast::<SharedHeader>().as_ref() }
    }

    /// Queue page of vCPU `index` (below [`MAX_VCPUS`]).
    #[must_use]
    pub fn queue(&self, index: usize) -> &QueuePage {
        assert!(index < MAX_VCPUS, "vCPU index");
        // SAFETY: in bounds by the assertion; all fields are atomics.
        unsafe {
            self.base
                .add(QUEUES_AT + index * QUEUE_PAGE)
                .cast::<QueuePage>()
                .as_ref()
        }
    }

    /// Readiness events.
    #[must_use]
    pub fn events(&self) -> &EventPage {
        // SAFETY: a constant offset inside the mapping; all fields are atomics.
        unsafe { self.base.add(EVENTS_AT).cast::<EventPage>().as_ref() }
    }
}

/// Fixes the size for good. Who holds the descriptor, the OS service, could otherwise cut the file short and have the
/// monitor, and the guest, end by SIGBUS at their next access.
fn seal(fd: &OwnedFd) -> Result<(), VmError> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a plain call on an own descriptor.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(VmError::last_os("sealing the size of the shared region"));
    }
    Ok(())
}

/// Maps the region in 2 MiB alignment, so that the guest's large pages are cheap to shadow.
fn map_aligned(fd: &OwnedFd) -> Result<NonNull<u8>, VmError> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh reservation without access.
    let raw = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            SHARED_LEN + LARGE as usize,
            libc::PROT_NONE,
            flags,
            -1,
            0,
        )
    };
    if raw == libc::MAP_FAILED {
        return Err(VmError::last_os("reserving the shared region"));
    }
    let aligned = (raw as usize).next_multiple_of(LARGE as usize) as *mut libc::c_void;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: replaces part of the reservation above, which nobody else knows.
    let base = unsafe {
        libc::mmap(
            aligned,
            SHARED_LEN,
            prot,
            libc::MAP_SHARED | libc::MAP_FIXED,
            fd.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(VmError::last_os("mapping the shared region"));
    }
    // What every program uses; one call instead of a fault for each page. A refusal costs time only.
    // SAFETY: inside the mapping.
    unsafe { libc::madvise(base, BUFFERS_AT + 4 * BUFFER, libc::MADV_POPULATE_WRITE) };
    NonNull::new(base.cast()).ok_or(VmError::Shim("mapping at address zero"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;

    /// What the OS service could do with its copy of the descriptor.
    #[test]
    fn who_has_the_descriptor_cannot_change_the_size_or_the_seals() {
        let region = SharedRegion::create(1).expect("a region");
        let theirs = region.fd().try_clone().expect("a copy");
        let raw = theirs.as_raw_fd();
        let refused = |result: i64| {
            assert_eq!(
                (result, Error::last_os_error().raw_os_error()),
                (-1, Some(libc::EPERM))
            );
        };
        let whole = SHARED_LEN as libc::off_t;
        // SAFETY: plain calls on an own descriptor.
        unsafe {
            refused(libc::ftruncate(raw, 0).into());
            refused(libc::ftruncate(raw, whole - 4096).into());
            refused(libc::ftruncate(raw, whole + 4096).into());
            refused(libc::fallocate(raw, 0, whole, 4096).into());
            refused(libc::fcntl(raw, libc::F_ADD_SEALS, libc::F_SEAL_WRITE).into());
        }
        // Holes may be punched: those read as zeros and kill nobody.
        assert_eq!(region.header().magic.load(Ordering::Relaxed), SHARED_MAGIC);
        assert_eq!(region.header().vcpus.load(Ordering::Relaxed), 1);
    }
}
