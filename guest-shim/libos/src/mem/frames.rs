//! The context's frames, and the window through which the libos reaches them.

use cloak_abi::layout::{HOLE_END, LIBOS_PHYS_VA, PAGE};
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::Mutex;

use super::extents::{Extents, Run};
use crate::arch;
use crate::errno::{Errno, SysResult};

static FRAMES: Mutex<Option<Extents>> = Mutex::new(None);
/// 1 + index of the vCPU that works on [`FRAMES`]: what it allocates meanwhile must not come from there.
static OWNER: AtomicUsize = AtomicUsize::new(0);

fn with<R>(work: impl FnOnce(&mut Extents) -> R) -> Option<R> {
    let mut frames = FRAMES.lock();
    OWNER.store(1 + arch::vcpu_index(), Ordering::Relaxed);
    let result = frames.as_mut().map(work);
    OWNER.store(0, Ordering::Relaxed);
    result
}

/// Whether the frame allocator itself is at work on this vCPU.
#[must_use]
pub fn is_busy() -> bool {
    OWNER.load(Ordering::Relaxed) == 1 + arch::vcpu_index()
}

/// Takes over the frames that the boot block leaves to the context.
pub fn init() {
    let boot = arch::boot();
    *FRAMES.lock() = Some(Extents::default());
    with(|extents| {
        extents.add(boot.free_frames, boot.ram_low);
        extents.add(HOLE_END, HOLE_END + boot.ram_high);
    });
}

/// Where the libos sees guest-physical `gpa`.
#[must_use]
pub fn window(gpa: u64) -> u64 {
    LIBOS_PHYS_VA + gpa
}

fn run(len: usize) -> SysResult<Run> {
    with(|f| f.take(len)).flatten().ok_or(Errno::ENOMEM)
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

/// Frames in use and in all.
#[must_use]
pub fn usage() -> (u64, u64) {
    with(|f| f.usage()).unwrap_or_default()
}
