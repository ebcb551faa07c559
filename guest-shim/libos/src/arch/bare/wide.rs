//! Work that takes vector registers of every width.
//!
//! An entry saves XMM0-15 only, so what is wider is still the program's while the libos runs, and the libos's own code leaves it
//! alone. A cipher that is to be fast can't. What it may change is kept meanwhile, some 0.1 us for both ways, which is
//! little beside a block of 4 KiB and nothing beside several.
//!
//! It may happen anywhere in a call: kicks wait until the program goes on, the kernel has no vector instructions, and who is switched
//! away in the middle takes all of the registers along ([`super::context`]). Only who looks for the program's own state would look in
//! vain: a new signal frame, a new thread. Both are made with no such work under way, as it makes no calls of its own.

use core::arch::global_asm;
use core::ffi::c_void;
use core::mem::MaybeUninit;

use super::context::XSAVE_MAX;

/// AVX and the three parts of AVX-512: upper halves of 0-15, all of 16-31, masks. What XCR0 does not have is left out by the processor.
const UPPER: u32 = 0xe4;

/// Where the header of an XSAVE area begins and ends.
const HEADER: core::ops::Range<usize> = 512..576;

#[repr(C, align(64))]
struct Area(MaybeUninit<[u8; XSAVE_MAX]>);

global_asm!(
    // wide(rdi = area, rsi = function, rdx = its argument). In assembly, so that nothing is moved across it. XRSTOR of AVX loads
    // MXCSR, too; XSAVE of AVX has put it there, but an emulator may not.
    ".globl libos_wide",
    "libos_wide:",
    "push rbx",
    "mov rbx, rdi",
    "mov rdi, rdx",
    "stmxcsr [rbx + 24]",
    "mov eax, {upper}",
    "xor edx, edx",
    "xsave64 [rbx]",
    "call rsi",
    "mov eax, {upper}",
    "xor edx, edx",
    "xrstor64 [rbx]",
    "pop rbx",
    "ret",
    upper = const UPPER,
);

unsafe extern "C" {
    fn libos_wide(area: *mut Area, function: unsafe extern "C" fn(*mut c_void), argument: *mut c_void);
}

/// What is to be run.
struct Work<'w>(&'w mut dyn FnMut());

unsafe extern "C" fn run(work: *mut c_void) {
    // SAFETY: `with_wide_registers` passes its own, which nobody else has.
    unsafe { (*work.cast::<Work<'_>>()).0() }
}

/// Runs `work`, after which the wide registers are as before. It must not leave by unwinding; the libos does not unwind.
pub fn with_wide_registers(work: &mut dyn FnMut()) {
    let mut area = Area(MaybeUninit::uninit());
    // XRSTOR looks at the header, of which XSAVE writes a part; it takes components from where XSAVE put them.
    // SAFETY: inside the area.
    unsafe {
        area.0
            .as_mut_ptr()
            .cast::<u8>()
            .add(HEADER.start)
            .write_bytes(0, HEADER.len());
    }
    let mut work = Work(work);
    // SAFETY: the area is aligned, large enough for the mask, and its header is clean; `run` is given what it expects.
    unsafe { libos_wide(&raw mut area, run, (&raw mut work).cast()) };
}
