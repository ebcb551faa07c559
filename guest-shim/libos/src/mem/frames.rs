//! The context's frames, and the window through which the libos reaches them.
//!
//! A frame belongs to whoever took it. When an address space is copied, the copy becomes another owner of the
//! frames that it maps: these are counted beside the frame's first owner, in a table with a number for each frame
//! (its pages are zero, and cost nothing, until a process forks).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};

use cloak_abi::boot::platform;
use cloak_abi::kcall::Kcall;
use cloak_abi::layout::{LARGE, LIBOS_PHYS_VA, PAGE};
use spin::{Mutex, Once};

use super::extents::{Extents, Run, Taker};
use crate::arch;
use crate::errno::{Errno, SysResult};

static FRAMES: Mutex<Option<Extents>> = Mutex::new(None);
/// 1 + index of the vCPU that works on [`FRAMES`]: what it allocates meanwhile must not come from there.
static OWNER: AtomicUsize = AtomicUsize::new(0);

fn with<R>(work: impl FnOnce(&mut Extents) -> R) -> Option<R> {
    let mut frames = FRAMES.lock();
    OWNER.store(1 + arch::vcpu_index(), Ordering::Relaxed);
    let result = frames.as_mut().map(|frames| {
        let result = work(frames);
        super::set_scarce(frames.are_scarce());
        result
    });
    OWNER.store(0, Ordering::Relaxed);
    result
}

/// Whether the frame allocator itself is at work on this vCPU.
#[must_use]
pub fn is_busy() -> bool {
    OWNER.load(Ordering::Relaxed) == 1 + arch::vcpu_index()
}

/// Takes over the frames that are the context's and hold nothing.
pub fn init() {
    let boot = arch::boot();
    *FRAMES.lock() = Some(Extents::new(if must_accept() { accept } else { take_as_is }));
    with(|extents| {
        let [[_, end], [start, last]] = boot.frames;
        extents.add(boot.free_frames, end);
        extents.add(start, last);
    });
    OTHERS.call_once(|| {
        let mut all = Vec::new();
        for [start, end] in boot.frames {
            for first in (start..end).step_by(PART as usize) {
                all.push(counts(first, end.min(first + PART)));
            }
        }
        all
    });
}

/// Whether memory is the context's only when it has been accepted, and has any content then.
#[must_use]
pub fn must_accept() -> bool {
    u64::from(arch::boot().platform) != platform::PLAIN
}

/// Memory that is the context's, and zero.
fn take_as_is(_: u64) {}

/// Makes the large page at `gpa` the context's, all zero.
fn accept(gpa: u64) {
    if arch::kcall(Kcall::Accept, gpa) != 0 {
        arch::panic_exit("memory that the kernel does not accept");
    }
    // SAFETY: the kernel has accepted it once and for all, so nothing is in it, and the window maps it. At CPL 3, which is fast
    // everywhere.
    unsafe { core::ptr::write_bytes(window(gpa) as *mut u8, 0, LARGE as usize) };
}

/// Guest-physical memory whose counts fit the largest run of frames.
const PART: u64 = 4 << 30;

/// Other owners of each frame: slices for consecutive parts of guest-physical memory.
static OTHERS: Once<Vec<(u64, &'static [AtomicU16])>> = Once::new();

fn counts(first: u64, end: u64) -> (u64, &'static [AtomicU16]) {
    let len = ((end - first) / PAGE) as usize;
    let bytes = len * size_of::<AtomicU16>();
    let Ok(gpa) = take_run(bytes.div_ceil(PAGE as usize)) else {
        arch::panic_exit("no memory for the counts of frames");
    };
    // SAFETY: fresh zero frames that are never given back, mapped in the window; zero is a valid count.
    (first, unsafe {
        core::slice::from_raw_parts(window(gpa) as *const AtomicU16, len)
    })
}

fn others(gpa: u64) -> &'static AtomicU16 {
    let parts = OTHERS.get().map_or(&[][..], Vec::as_slice);
    parts
        .iter()
        .rev()
        .find(|(first, _)| *first <= gpa)
        .and_then(|(first, counts)| counts.get(((gpa - first) / PAGE) as usize))
        .unwrap_or_else(|| arch::panic_exit("a frame outside memory"))
}

/// Contiguous frames get another owner.
pub fn share_run(gpa: u64, pages: u64) {
    for i in 0..pages {
        // There are fewer address spaces than the count can hold.
        others(gpa + i * PAGE).fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a frame has several owners.
#[must_use]
pub fn is_shared(gpa: u64) -> bool {
    owners(gpa) != 1
}

/// How many address spaces have the private page at `gpa`.
#[must_use]
pub fn owners(gpa: u64) -> u64 {
    u64::from(others(gpa).load(Ordering::SeqCst)) + 1
}

/// Whether one of contiguous frames has several owners.
#[must_use]
pub fn is_any_shared(gpa: u64, pages: u64) -> bool {
    (0..pages).any(|i| is_shared(gpa + i * PAGE))
}

/// An owner gives contiguous frames up. The last one frees them.
pub fn release_run(gpa: u64, pages: u64) {
    let mut free = 0u64;
    for i in 0..pages {
        let count = others(gpa + i * PAGE);
        let less = |n: u16| n.checked_sub(1);
        if count
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_err()
        {
            free += 1;
            continue;
        }
        if free > 0 {
            give_run(gpa + (i - free) * PAGE, free as usize);
            free = 0;
        }
    }
    if free > 0 {
        give_run(gpa + (pages - free) * PAGE, free as usize);
    }
}

/// Where the libos sees guest-physical `gpa`.
#[must_use]
pub fn window(gpa: u64) -> u64 {
    LIBOS_PHYS_VA + gpa
}

/// Frames for what programs have.
fn run(len: usize) -> SysResult<Run> {
    with(|f| f.take(len, Taker::Program))
        .flatten()
        .ok_or(Errno::ENOMEM)
}

/// `len` contiguous frames with any content, for the libos itself: its heap, and page tables. None where there are none.
pub fn take_own_run(len: usize) -> Option<u64> {
    with(|f| f.take(len, Taker::Libos)).flatten().map(|run| run.gpa)
}

/// `len` contiguous frames, all zero; gives the guest-physical address.
///
/// # Errors
/// ENOMEM.
pub fn take_run(len: usize) -> SysResult<u64> {
    let run = run(len)?;
    if run.dirty {
        // SAFETY: the run is ours alone, and the window maps it.
        unsafe { core::ptr::write_bytes(window(run.gpa) as *mut u8, 0, len * PAGE as usize) };
    }
    Ok(run.gpa)
}

/// `len` contiguous frames with any content: the caller overwrites them all.
///
/// # Errors
/// ENOMEM.
pub fn take_run_dirty(len: usize) -> SysResult<u64> {
    run(len).map(|run| run.gpa)
}

/// Gives contiguous frames back.
pub fn give_run(gpa: u64, len: usize) {
    with(|f| f.give(gpa, len));
}

/// One zero frame, as an address in the window.
///
/// # Errors
/// ENOMEM.
pub fn take_zeroed() -> SysResult<u64> {
    take_run(1).map(window)
}

/// Gives back what [`take_zeroed`] gave.
pub fn give(address: u64) {
    give_run(address - LIBOS_PHYS_VA, 1);
}

/// Frames that may be in use; the rest of what programs have leaves ([`super::swap`]). All of them unless the host says otherwise.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// At most so many bytes of plaintext.
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes / PAGE, Ordering::Relaxed);
}

/// How many frames too many are in use once `more` are taken; none if they fit.
#[must_use]
pub fn beyond_limit(more: u64) -> Option<u64> {
    let limit = LIMIT.load(Ordering::Relaxed);
    let over = usage().0.saturating_add(more).saturating_sub(limit);
    (over > 0).then_some(over)
}

/// Whether there is memory to waste: an eighth of all is free.
#[must_use]
pub fn are_plentiful() -> bool {
    let (used, all) = usage();
    let all = all.min(LIMIT.load(Ordering::Relaxed));
    used < all - all / 8
}

/// Frames in use and in all.
#[must_use]
pub fn usage() -> (u64, u64) {
    with(|f| f.usage()).unwrap_or_default()
}
