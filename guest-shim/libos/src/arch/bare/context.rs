//! Switching threads: stack, callee-saved registers, FS base, vector state.

use core::arch::{asm, global_asm};

use cloak_abi::layout::PAGE;

use crate::mem::frames;

/// Most bytes of vector state that are kept (AVX-512 and PKRU; AMX tiles are not enabled).
pub const XSAVE_MAX: usize = 4096;
/// Components that are saved: all that XCR0 may have without AMX.
const MASK_LOW: u32 = 0x2e7;

/// A thread that does not run.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    rsp: u64,
    fs_base: u64,
    /// XSAVE area, 64-byte aligned.
    vector: u64,
}

impl Context {
    /// The context of code that already runs: filled at the first switch away from it.
    #[must_use]
    pub fn idle(vector: u64) -> Self {
        init_vector(vector);
        Self {
            rsp: 0,
            fs_base: 0,
            vector,
        }
    }

    /// Sets the FS base with which it will go on.
    pub fn set_fs_base(&mut self, base: u64) {
        self.fs_base = base;
    }
}

/// A libos stack. Its frames are counted as a program's: who starts threads is refused before the libos has none left.
#[derive(Debug)]
pub struct Stack {
    gpa: u64,
}

impl Stack {
    /// Bytes of a libos stack.
    pub const SIZE: usize = 64 << 10;
    const FRAMES: usize = Self::SIZE / PAGE as usize;

    /// A fresh stack; `None` when memory is out.
    #[must_use]
    pub fn new() -> Option<Self> {
        let gpa = frames::take_run(Self::FRAMES).ok()?;
        Some(Self { gpa })
    }

    /// First address above it.
    #[must_use]
    pub fn top(&self) -> u64 {
        frames::window(self.gpa) + Self::SIZE as u64
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        frames::give_run(self.gpa, Self::FRAMES);
    }
}

global_asm!(
    // switch(rdi = &mut from, rsi = &to)
    ".globl libos_switch",
    "libos_switch:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "rdfsbase rax",
    "mov [rdi + 8], rax",
    "mov rcx, [rdi + 16]",
    "mov eax, {mask}",
    "xor edx, edx",
    "xsave64 [rcx]",
    "mov [rdi], rsp",
    "mov rsp, [rsi]",
    "mov rcx, [rsi + 16]",
    "xrstor64 [rcx]",
    "mov rax, [rsi + 8]",
    "wrfsbase rax",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    "libos_first:",
    "sub rsp, 8",
    "mov rdi, rbx",
    "call r12",
    "ud2",
    mask = const MASK_LOW,
);

unsafe extern "C" {
    fn libos_switch(from: *mut Context, to: *const Context);
    fn libos_first();
}

/// A context that will call `entry(argument)` on `stack_top`. `vector` is a zeroed, 64-byte aligned area of
/// [`XSAVE_MAX`] bytes that lives as long as the context.
#[must_use]
pub fn new_context(stack_top: u64, entry: extern "C" fn(u64) -> !, argument: u64, vector: u64) -> Context {
    // Popped in this order by the switch: r15 r14 r13 r12 rbp rbx, then the return address.
    let words = [
        0,
        0,
        0,
        entry as *const () as u64,
        0,
        argument,
        libos_first as *const () as u64,
    ];
    let rsp = stack_top - 64;
    for (i, word) in words.into_iter().enumerate() {
        // SAFETY: inside the fresh stack.
        unsafe { *((rsp + 8 * i as u64) as *mut u64) = word };
    }
    init_vector(vector);
    Context {
        rsp,
        fs_base: 0,
        vector,
    }
}

/// MXCSR and x87 control word as at a program's start.
fn init_vector(vector: u64) {
    // SAFETY: the area is at least 576 bytes; XSTATE_BV of 0 makes XRSTOR use initial values, but MXCSR
    // is always taken from the area.
    unsafe {
        *((vector + 24) as *mut u32) = 0x1f80;
        *(vector as *mut u16) = 0x37f;
    }
}

/// Switches from the running context to another; returns when somebody switches back.
///
/// # Safety
/// Both must live until then, and `to` must not run anywhere.
pub unsafe fn switch(from: *mut Context, to: *const Context) {
    // SAFETY: the caller's contract.
    unsafe { libos_switch(from, to) }
}

/// Saves the running thread's vector state to a 64-byte aligned area of [`XSAVE_MAX`] zeroed bytes. The low
/// halves of XMM0-15 are the libos's by now: they are in the entry's frame.
pub fn save_vector(area: &mut [u8; XSAVE_MAX]) {
    // SAFETY: large enough for the mask; alignment is asserted.
    unsafe {
        assert!(area.as_ptr().addr().is_multiple_of(64), "XSAVE alignment");
        asm!("xsave64 [{}]", in(reg) area.as_mut_ptr(), in("eax") MASK_LOW, in("edx") 0, options(nostack));
    }
}

/// Loads vector state, after making its header one that can't fault.
pub fn restore_vector(area: &mut [u8; XSAVE_MAX]) {
    let allowed = super::xcr0();
    let bv = u64::from_le_bytes(area[512..520].try_into().unwrap_or_default()) & allowed;
    area[512..520].copy_from_slice(&bv.to_le_bytes());
    area[520..576].fill(0);
    // Reserved bits of MXCSR would fault.
    let mxcsr = u32::from_le_bytes(area[24..28].try_into().unwrap_or_default()) & 0xffff;
    area[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    // SAFETY: header and MXCSR can't fault any more; alignment is asserted.
    unsafe {
        assert!(area.as_ptr().addr().is_multiple_of(64), "XSAVE alignment");
        asm!("xrstor64 [{}]", in(reg) area.as_ptr(), in("eax") MASK_LOW, in("edx") 0, options(nostack));
    }
}

/// Bytes of vector state that this CPU saves for the enabled components.
#[must_use]
pub fn vector_len() -> usize {
    let leaf = core::arch::x86_64::__cpuid_count(0xd, 0);
    (leaf.ebx as usize).clamp(576, XSAVE_MAX)
}

/// FS base of the running thread.
#[must_use]
pub fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: FSGSBASE is on.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// Sets the FS base of the running thread.
pub fn set_fs_base(base: u64) {
    // SAFETY: the libos does not use FS.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nostack, preserves_flags)) };
}
