//! What depends on the machine: copying to and from the program, ticks, vCPU identity, doorbells.
//!
//! `bare` is the real one; `hosted` lets the portable part of the libos run as an ordinary library
//! under test, on host threads.

#[cfg(feature = "bare")]
mod bare;
#[cfg(feature = "bare")]
pub use bare::*;

#[cfg(not(feature = "bare"))]
mod hosted;
#[cfg(not(feature = "bare"))]
pub use hosted::*;

/// Time-stamp counter, read after whatever was read before: without the fence a CPU may read it early, and a thread
/// that has seen another one's time would be told an earlier one.
#[must_use]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 has both, and they are open to CPL 3.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Copies between the libos and memory that another party may write or read at the same time.
///
/// # Safety
/// Both ranges must be mapped for the whole length, and one of them be the libos's own.
pub unsafe fn copy_own(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's contract. `rep movsb` is opaque to the compiler: no assumption about what the
    // other party sees or writes.
    unsafe {
        core::arch::asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
}
