//! The shared region as the service sees it: an unsafe island that owns the mapping.
//!
//! Nothing here hands out a reference to plain bytes: the guest may write at any moment. There are atomics
//! views of the contract's structures, and [`Buffer`], which copies in and out with atomic loads and
//! stores, or is given to the kernel as an address (`sys`).
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use cloak_abi::ring::{
    BUFFER, EVENTS_AT, EventPage, QUEUE_PAGE, QUEUES_AT, QueuePage, SHARED_LEN, SHARED_MAGIC, SLOTS,
    SLOTS_AT, SharedHeader, Slot, buffer_at,
};
use rustix::io::Errno;

use super::error::OsError;

/// Index of a slot that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotIndex(u16);

impl SlotIndex {
    /// Checks an index that came from the guest.
    #[must_use]
    pub fn new(index: u32) -> Option<Self> {
        u16::try_from(index)
            .ok()
            .filter(|i| usize::from(*i) < SLOTS)
            .map(Self)
    }

    /// The number.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Index of a vCPU that exists in the contract (not necessarily in this VM).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuIndex(u8);

impl VcpuIndex {
    /// Checks an index against the number of vCPUs of this VM, itself at most `MAX_VCPUS`.
    #[must_use]
    pub fn new(index: u32, vcpus: usize) -> Option<Self> {
        let most = vcpus.min(cloak_abi::layout::MAX_VCPUS);
        u8::try_from(index)
            .ok()
            .filter(|i| usize::from(*i) < most)
            .map(Self)
    }

    /// The number.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A mapping of the whole shared region, unmapped on drop.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to the value and lives as long; all access to it is atomic or by the kernel.
unsafe impl Send for Region {}
// SAFETY: as above; no method hands out non-atomic access.
unsafe impl Sync for Region {}

impl Region {
    /// Maps the region.
    ///
    /// # Errors
    /// When the file has another size than the contract's, or can't be mapped.
    pub fn map(file: BorrowedFd<'_>) -> Result<Self, OsError> {
        let found = rustix::fs::fstat(file)
            .map_err(OsError::at("fstat of the shared region"))?
            .st_size as u64;
        if found != SHARED_LEN as u64 {
            return Err(OsError::RegionSize {
                found,
                expected: SHARED_LEN as u64,
            });
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SHARED_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { base }),
            _ => Err(OsError::at("mmap of the shared region")(super::sys::last_errno())),
        }
    }

    /// Checks that the monitor that wrote the header is of this build.
    ///
    /// # Errors
    /// [`OsError::RegionVersion`].
    pub fn check_header(&self) -> Result<(), OsError> {
        let header = self.header();
        let magic = header.magic.load(Ordering::Acquire);
        let version = header.version.load(Ordering::Relaxed);
        if magic == SHARED_MAGIC && version == cloak_abi::VERSION {
            return Ok(());
        }
        let found = if magic == SHARED_MAGIC { version } else { 0 };
        Err(OsError::RegionVersion {
            found,
            expected: cloak_abi::VERSION,
        })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &SharedHeader {
        // SAFETY: offset 0, page-aligned, inside the mapping (tripwires in abi); atomics only.
        unsafe { self.base.cast::<SharedHeader>().as_ref() }
    }

    /// Queues of a vCPU.
    #[must_use]
    pub fn queue(&self, vcpu: VcpuIndex) -> &QueuePage {
        // SAFETY: vcpu < MAX_VCPUS, so the page lies below EVENTS_AT; page-aligned; atomics only.
        unsafe {
            self.base
                .add(QUEUES_AT + vcpu.index() * QUEUE_PAGE)
                .cast::<QueuePage>()
                .as_ref()
        }
    }

    /// The event queue.
    #[must_use]
    pub fn events(&self) -> &EventPage {
        // SAFETY: fixed offset, page-aligned, ends below SLOTS_AT (tripwire in abi); atomics only.
        unsafe { self.base.add(EVENTS_AT).cast::<EventPage>().as_ref() }
    }

    /// A slot.
    #[must_use]
    pub fn slot(&self, slot: SlotIndex) -> &Slot {
        let at = SLOTS_AT + slot.index() * size_of::<Slot>();
        // SAFETY: index < SLOTS, so it lies below BUFFERS_AT (tripwire in abi); 128-byte aligned; atomics only.
        unsafe { self.base.add(at).cast::<Slot>().as_ref() }
    }

    /// A slot's buffer.
    #[must_use]
    pub fn buffer(&self, slot: SlotIndex) -> Buffer<'_> {
        // SAFETY: index < SLOTS, so the BUFFER bytes end inside the mapping.
        let base = unsafe { self.base.add(buffer_at(slot.index())) };
        Buffer {
            base,
            len: BUFFER,
            region: PhantomData,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own mapping, and no borrow of it outlives the value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SHARED_LEN) };
    }
}

/// A range of bytes of the shared region.
#[derive(Debug, Clone, Copy)]
pub struct Buffer<'r> {
    base: NonNull<u8>,
    len: usize,
    region: PhantomData<&'r Region>,
}

impl<'r> Buffer<'r> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address for a system call.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// `len` bytes from `at`.
    ///
    /// # Errors
    /// `EINVAL` when they are not all inside.
    pub fn part(&self, at: usize, len: usize) -> Result<Buffer<'r>, Errno> {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::INVAL);
        }
        // SAFETY: at <= self.len, so the address stays inside (or one past) this buffer.
        let base = unsafe { self.base.add(at) };
        Ok(Buffer {
            base,
            len,
            region: PhantomData,
        })
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.len, "callers stay inside the buffer");
        // SAFETY: inside the buffer; every access of this process to shared bytes is atomic.
        unsafe { self.base.add(at).cast::<AtomicU8>().as_ref() }
    }

    /// Number of bytes before the first aligned word, and number of whole words after them.
    fn split(&self, len: usize) -> (usize, usize) {
        let lead = self.base.as_ptr().align_offset(8).min(len);
        (lead, (len - lead) / 8)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.len, "callers stay inside the buffer");
        let word = self.base.as_ptr().wrapping_add(at).cast::<AtomicU64>();
        assert!(word.is_aligned(), "callers start at the first aligned byte");
        // SAFETY: inside the buffer and aligned, both just checked; atomics only.
        unsafe { &*word }
    }

    /// Copies out as many bytes as fit both.
    pub fn read(&self, out: &mut [u8]) {
        let len = out.len().min(self.len);
        let (lead, words) = self.split(len);
        let tail = lead + words * 8;
        for at in (0..lead).chain(tail..len) {
            out[at] = self.byte(at).load(Ordering::Relaxed);
        }
        for at in (lead..tail).step_by(8) {
            out[at..at + 8].copy_from_slice(&self.word(at).load(Ordering::Relaxed).to_ne_bytes());
        }
    }

    /// Copies in as many bytes as fit both.
    pub fn write(&self, bytes: &[u8]) {
        let len = bytes.len().min(self.len);
        let (lead, words) = self.split(len);
        let tail = lead + words * 8;
        for at in (0..lead).chain(tail..len) {
            self.byte(at).store(bytes[at], Ordering::Relaxed);
        }
        for (word, at) in bytes[lead..tail].chunks_exact(8).zip((lead..tail).step_by(8)) {
            let value = u64::from_ne_bytes(word.try_into().expect("chunks of 8"));
            self.word(at).store(value, Ordering::Relaxed);
        }
    }

    /// Copies out a fixed number of bytes.
    ///
    /// # Errors
    /// `EINVAL` when they are not all inside.
    pub fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Errno> {
        let mut out = [0; N];
        self.part(at, N)?.read(&mut out);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    pub fn region() -> Region {
        let file = rustix::fs::memfd_create("region", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&file, SHARED_LEN as u64).expect("size");
        Region::map(file.as_fd()).expect("map")
    }

    #[test]
    fn copies_round_trip_at_every_alignment() {
        let region = region();
        let buffer = region.buffer(SlotIndex::new(3).expect("exists"));
        let bytes: Vec<u8> = (0..100).collect();
        for at in 0..17 {
            for len in [0, 1, 7, 8, 9, 31, 100] {
                let part = buffer.part(at, len).expect("inside");
                part.write(&bytes[..len]);
                let mut back = vec![0; len];
                part.read(&mut back);
                assert_eq!(back, bytes[..len]);
            }
        }
    }

    #[test]
    fn parts_stay_inside() {
        let region = region();
        let buffer = region.buffer(SlotIndex::new(255).expect("exists"));
        assert!(buffer.part(BUFFER, 0).is_ok());
        assert_eq!(buffer.part(BUFFER, 1).err(), Some(Errno::INVAL));
        assert_eq!(buffer.part(usize::MAX, 2).err(), Some(Errno::INVAL));
        assert!(SlotIndex::new(256).is_none());
        assert!(VcpuIndex::new(2, 2).is_none());
        assert!(VcpuIndex::new(64, 1000).is_none());
    }

    #[test]
    fn a_region_of_another_size_is_refused() {
        let file = rustix::fs::memfd_create("small", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        assert!(matches!(
            Region::map(file.as_fd()),
            Err(OsError::RegionSize { found: 0, .. })
        ));
    }

    #[test]
    fn a_header_of_another_build_is_refused() {
        let region = region();
        assert!(matches!(
            region.check_header(),
            Err(OsError::RegionVersion { found: 0, .. })
        ));
        region.header().magic.store(SHARED_MAGIC, Ordering::Relaxed);
        region
            .header()
            .version
            .store(cloak_abi::VERSION, Ordering::Relaxed);
        assert!(region.check_header().is_ok());
    }
}
