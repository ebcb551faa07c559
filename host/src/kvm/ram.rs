//! Guest RAM: private anonymous memory in 2 MiB alignment, so that the host can back it by large pages, but for its beginning
//! ([`SPARSE`]).
//!
//! Not a memfd: shared-memory files get no large pages on a host with default settings
//! (`shmem_enabled=never`), and where the host shadows page tables the first touch of a page then costs
//! 4.5 us instead of 0.1 us (measured: `docs/architecture.md`). The other side never maps this memory, so
//! nothing needs a descriptor for it.

use std::io;

use cloak_abi::layout::{HOLE_END, HOLE_START, LARGE, PAGE, PLATFORM_GPA, PLATFORM_LEN, RESET_GPA};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::vm::error::{Step, VmError};

/// Bytes from the beginning of RAM on that every guest uses a little of: the shim, its tables, its heap, the first program. They
/// get small pages. A guest of `busybox` touches 1300 of them in 12 large ones, and a large page is not always cheap:
/// where the host is a virtual machine itself, memory that was free for some seconds may have gone to the machine below, and
/// comes back at 2 ms for 2 MiB (measured: `docs/architecture.md`).
const SPARSE: u64 = 40 << 20;

/// Bytes below and above the hole for `bytes` of RAM (a multiple of 2 MiB).
#[must_use]
pub fn split(bytes: u64) -> (u64, u64) {
    (bytes.min(HOLE_START), bytes.saturating_sub(HOLE_START))
}

/// Reserves guest RAM; the host gives pages when they are touched.
///
/// # Errors
/// When the address space can't be had.
pub fn reserve(bytes: u64) -> Result<GuestMemoryMmap, VmError> {
    let (low, high) = split(bytes);
    let mut regions = vec![region(0, low, SPARSE, OPEN)?];
    if high > 0 {
        regions.push(region(HOLE_END, high, 0, OPEN)?);
    }
    arranged(regions)
}

/// The same for a simulated machine, which accepts, and so clears, all of a large page at once: private RAM that nobody can
/// touch before the guest has accepted it ([`set_access`]), the page of the reset vector, and what the guest shares with the
/// monitor. Ranges of the first two kinds, then the memory.
///
/// # Errors
/// As [`reserve`].
pub fn reserve_private(bytes: u64) -> Result<(Vec<[u64; 2]>, GuestMemoryMmap), VmError> {
    let private = private_ranges(bytes);
    let mut regions = Vec::new();
    for [start, end] in &private {
        regions.push(region(*start, end - start, 0, libc::PROT_NONE)?);
    }
    regions.push(region(PLATFORM_GPA, PLATFORM_LEN, 0, OPEN)?);
    Ok((private, arranged(regions)?))
}

/// What a guest on SNP hardware shares with the monitor: its private memory is in guest_memfd. Ranges of that, then the
/// memory.
///
/// # Errors
/// As [`reserve`].
pub fn reserve_shared(bytes: u64) -> Result<(Vec<[u64; 2]>, GuestMemoryMmap), VmError> {
    let regions = vec![region(PLATFORM_GPA, PLATFORM_LEN, 0, OPEN)?];
    Ok((private_ranges(bytes), arranged(regions)?))
}

fn private_ranges(bytes: u64) -> Vec<[u64; 2]> {
    let (low, high) = split(bytes);
    let mut private = vec![[0, low], [RESET_GPA, RESET_GPA + PAGE]];
    if high > 0 {
        private.push([HOLE_END, HOLE_END + high]);
    }
    private
}

/// Opens guest RAM to everybody in this process and to the guest, or closes it to all.
///
/// # Errors
/// When it is not RAM, or the kernel refuses.
pub fn set_access(memory: &GuestMemoryMmap, gpa: u64, len: u64, open: bool) -> io::Result<()> {
    let slice = memory
        .get_slice(GuestAddress(gpa), len as usize)
        .map_err(io::Error::other)?;
    let prot = if open { OPEN } else { libc::PROT_NONE };
    let start = slice.ptr_guard_mut().as_ptr();
    // SAFETY: anonymous guest RAM of one region (`get_slice`), to which no reference is ever held.
    if unsafe { libc::mprotect(start.cast(), len as usize, prot) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const OPEN: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn arranged(regions: Vec<GuestRegionMmap>) -> Result<GuestMemoryMmap, VmError> {
    GuestMemoryMmap::from_regions(regions).map_err(|e| VmError::Os {
        step: "arranging guest RAM",
        source: io::Error::other(e),
    })
}

/// Of which the first `sparse` bytes get small pages, and the rest large ones where the host has some.
fn region(start: u64, bytes: u64, sparse: u64, prot: libc::c_int) -> Result<GuestRegionMmap, VmError> {
    let (len, sparse) = (bytes as usize, sparse as usize);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh anonymous reservation, LARGE longer than needed so that an aligned part fits.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), len + LARGE as usize, prot, flags, -1, 0) };
    if raw == libc::MAP_FAILED {
        return Err(VmError::last_os("reserving guest RAM"));
    }
    let aligned = (raw as usize).next_multiple_of(LARGE as usize) as *mut u8;
    // SAFETY: inside the reservation. Large pages are a wish, and core dumps of the monitor must not hold
    // guest memory; either may be refused without harm to correctness.
    unsafe {
        let sparse = sparse.min(len);
        libc::madvise(aligned.cast(), sparse, libc::MADV_NOHUGEPAGE);
        libc::madvise(aligned.add(sparse).cast(), len - sparse, libc::MADV_HUGEPAGE);
        libc::madvise(aligned.cast(), len, libc::MADV_DONTDUMP);
    }
    // SAFETY: `[aligned, aligned + len)` is mapped as said, and never unmapped while the process lives
    // (the region does not own it).
    let mapping = unsafe {
        MmapRegionBuilder::new(len)
            .with_raw_mmap_pointer(aligned)
            .with_mmap_prot(prot)
            .with_mmap_flags(flags)
            .build()
    }
    .map_err(io::Error::other)
    .step("describing guest RAM")?;
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(VmError::Os {
        step: "placing guest RAM",
        source: io::Error::from_raw_os_error(libc::EOVERFLOW),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn is_resident(memory: &GuestMemoryMmap, gpa: u64) -> bool {
        let page = memory.get_slice(GuestAddress(gpa), PAGE as usize).unwrap();
        let mut resident = 0;
        // SAFETY: a page of guest RAM, and one byte for its answer.
        let asked = unsafe {
            libc::mincore(
                page.ptr_guard_mut().as_ptr().cast(),
                PAGE as usize,
                &raw mut resident,
            )
        };
        assert_eq!(asked, 0);
        resident & 1 != 0
    }

    #[test]
    fn what_every_guest_touches_a_little_of_is_given_by_small_pages() {
        let memory = reserve(2 * SPARSE).unwrap();
        for gpa in [0, SPARSE - LARGE] {
            memory.write_obj(1_u8, GuestAddress(gpa)).unwrap();
            assert!(is_resident(&memory, gpa));
            assert!(!is_resident(&memory, gpa + PAGE), "beside {gpa:#x}");
        }
    }

    /// What is wished for the mapping of guest RAM that has `gpa`, as the kernel tells it (`VmFlags` in proc_pid_smaps(5)).
    fn wishes(memory: &GuestMemoryMmap, gpa: u64) -> String {
        let slice = memory.get_slice(GuestAddress(gpa), PAGE as usize).unwrap();
        let at = slice.ptr_guard_mut().as_ptr() as usize;
        let range = |line: &str| {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            let number = |digits| usize::from_str_radix(digits, 16).ok();
            Some(number(start)?..number(end)?)
        };
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps
            .lines()
            .skip_while(|line| range(line).is_none_or(|range| !range.contains(&at)));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        flags.to_owned() + " "
    }

    #[test]
    fn all_behind_it_gets_large_pages() {
        let memory = reserve(2 * SPARSE).unwrap();
        assert!(wishes(&memory, SPARSE - PAGE).contains(" nh "));
        for gpa in [SPARSE, 2 * SPARSE - PAGE] {
            let wishes = wishes(&memory, gpa);
            assert!(wishes.contains(" hg "), "at {gpa:#x}: {wishes}");
        }
    }
}
