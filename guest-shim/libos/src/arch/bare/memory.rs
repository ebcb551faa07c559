//! The memory functions that the compiler calls: there is no C library here.
//!
//! Small sizes are copied by overlapping 16- and 8-byte moves, large ones by the CPU's string instructions.

use core::arch::asm;
use core::ptr::{read_unaligned, write_unaligned};

/// From here on the string instructions are faster than a loop.
const STRING: usize = 512;

/// C's `memcpy`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's contract; all accesses are inside both ranges.
    unsafe {
        match len {
            0..16 => small(to, from, len),
            16..STRING => {
                let last = read_unaligned(from.add(len - 16).cast::<u128>());
                let mut at = 0;
                while at + 16 < len {
                    let block = read_unaligned(from.add(at).cast::<u128>());
                    write_unaligned(to.add(at).cast(), block);
                    at += 16;
                }
                write_unaligned(to.add(len - 16).cast(), last);
            }
            _ => asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
                options(nostack, preserves_flags)),
        }
    }
    to
}

/// Fewer than 16 bytes; reads all before it writes, so the ranges may overlap.
unsafe fn small(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        if len >= 8 {
            let (a, b) = (
                read_unaligned(from.cast::<u64>()),
                read_unaligned(from.add(len - 8).cast::<u64>()),
            );
            write_unaligned(to.cast(), a);
            write_unaligned(to.add(len - 8).cast(), b);
        } else if len >= 4 {
            let (a, b) = (
                read_unaligned(from.cast::<u32>()),
                read_unaligned(from.add(len - 4).cast::<u32>()),
            );
            write_unaligned(to.cast(), a);
            write_unaligned(to.add(len - 4).cast(), b);
        } else if len >= 1 {
            let (a, b, c) = (*from, *from.add(len / 2), *from.add(len - 1));
            *to = a;
            *to.add(len / 2) = b;
            *to.add(len - 1) = c;
        }
    }
}

/// C's `memmove`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's contract. Going up is right when the target is below; otherwise go down.
    unsafe {
        if (to as usize).wrapping_sub(from as usize) >= len {
            // Disjoint, or the target starts below the source: but the 16-byte loop saves its last block
            // before it writes, so overlap from below is only safe for the string instruction.
            if (from as usize).wrapping_sub(to as usize) >= len {
                return memcpy(to, from, len);
            }
            asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
                options(nostack, preserves_flags));
        } else if len < 16 {
            small(to, from, len);
        } else {
            let mut at = len;
            while at >= 16 {
                at -= 16;
                let block = read_unaligned(from.add(at).cast::<u128>());
                write_unaligned(to.add(at).cast(), block);
            }
            small(to, from, at);
        }
    }
    to
}

/// C's `memset`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    let byte = value as u8;
    // SAFETY: the caller's contract.
    unsafe {
        if (16..STRING).contains(&len) {
            let block = u128::from_ne_bytes([byte; 16]);
            let mut at = 0;
            while at + 16 < len {
                write_unaligned(to.add(at).cast(), block);
                at += 16;
            }
            write_unaligned(to.add(len - 16).cast(), block);
        } else {
            asm!("rep stosb", inout("rdi") to => _, in("al") byte, inout("rcx") len => _,
                options(nostack, preserves_flags));
        }
    }
    to
}

/// C's `memcmp`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut at = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while at + 8 <= len {
            let (x, y) = (
                read_unaligned(a.add(at).cast::<u64>()),
                read_unaligned(b.add(at).cast::<u64>()),
            );
            if x != y {
                return if x.swap_bytes() < y.swap_bytes() { -1 } else { 1 };
            }
            at += 8;
        }
        while at < len {
            let (x, y) = (
                core::ptr::read_volatile(a.add(at)),
                core::ptr::read_volatile(b.add(at)),
            );
            if x != y {
                return i32::from(x) - i32::from(y);
            }
            at += 1;
        }
    }
    0
}

/// C's `bcmp`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's contract.
    unsafe { memcmp(a, b, len) }
}

/// C's `strlen`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller's contract.
    while unsafe { core::ptr::read_volatile(text.add(len)) } != 0 {
        len += 1;
    }
    len
}

/// Named by precompiled code; panics abort here, so it is never called.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() {}

/// As above: unwinding does not happen here.
#[unsafe(no_mangle)]
pub extern "C" fn _Unwind_Resume() -> ! {
    super::panic_exit("unwinding in the libos")
}
