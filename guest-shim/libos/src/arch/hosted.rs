//! The machine under test: this process is the program, and host threads are vCPUs.

use std::sync::atomic::{AtomicPtr, Ordering};

use crate::errno::SysResult;

static SHARED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Sets where the shared region is (once, before the first request).
pub fn set_shared_base(base: *mut u8) {
    SHARED.store(base, Ordering::SeqCst);
}

/// Where the shared region is.
pub fn shared_base() -> *mut u8 {
    let base = SHARED.load(Ordering::Relaxed);
    assert!(!base.is_null(), "the test set no shared region");
    base
}

/// Index of the vCPU that runs this.
#[must_use]
pub fn vcpu_index() -> usize {
    0
}

/// Wakes the OS service (0) or vCPU n (1 + n). Tests poll.
pub fn doorbell(_value: u32) {}

/// Copies between the libos and the program.
///
/// # Errors
/// None here: a test passes addresses of its own. (The real one gives EFAULT.)
pub fn copy(to: u64, from: u64, len: usize) -> SysResult<()> {
    // SAFETY: a test's addresses.
    unsafe { super::copy_own(to as *mut u8, from as *const u8, len) };
    Ok(())
}

/// Runs `work`: the registers are this process's own.
pub fn with_wide_registers(work: &mut dyn FnMut()) {
    work();
}

/// Ticks in a second.
#[must_use]
pub fn ticks_per_second() -> u64 {
    2_000_000_000
}

/// A random word from the CPU, if it has one.
#[must_use]
pub fn hardware_random() -> Option<u64> {
    None
}
