//! Vectors of a guest whose hypervisor injects what it likes: the table of a measured guest, in the place of the one that
//! plain KVM has ([`crate::arch::entry`]), whose handlers it goes on to where an event is one that there can be.
//!
//! ```text
//! event ─▶ may it be, in this form?       no: dropped and counted, as if it had not come
//!          does it come while the kernel runs? yes: the guest ends
//!          #VC: exception::answer         all others: trap, kick, breakpoint
//! ```
//! - **Which**: exceptions that a program can cause, #VC, and the kick. All other vectors return at once.
//! - **Form**: whether an error code was pushed is the hypervisor's choice, and the CPU's only for real exceptions. A handler
//!   that takes one for the other reads the frame shifted by a word: the flags as code segment. The CPU aligns the stack
//!   before it pushes, so bit 3 of RSP says which it was.
//! - **When**: the kernel runs with interrupts off, and executes nothing that faults. A hypervisor's injection minds neither.
//!   Each vector has a stack of its own, the vCPU's: so nothing is pushed onto a program's stack between SYSCALL and
//!   the way up, which would write into its red zone. For the kernel's own frames there this is the end, as it is meant
//!   to be.
//!
//! What can't be told from its real likeness is an exception that a program might cause where it is: it looks as if it had.
//! That needs restricted injection, which KVM does not offer (`docs/platforms.md`).

use core::arch::global_asm;

use cloak_abi::layout::{KERNEL_VA, KICK_VECTOR};
use cloak_abi::vcpu::VcpuBlock;

use crate::arch::cpu::{Cpu, above_stack};
use crate::arch::entry::{Idt, VECTORS, gate_to};

/// The linker script puts the stubs here, behind those of plain KVM's table: 16 bytes for each exception, then one for the kick,
/// and one for all others.
const STUBS: u64 = KERNEL_VA + 16 * VECTORS as u64;
const EXCEPTIONS: u64 = 32;

const fn gate(vector: u64) -> [u64; 2] {
    let stub = if vector < EXCEPTIONS {
        vector
    } else if vector == KICK_VECTOR as u64 {
        EXCEPTIONS
    } else {
        EXCEPTIONS + 1
    };
    let handler = STUBS + 16 * stub;
    // INT3 may be executed at CPL 3; all run on the first stack of the interrupt stack table.
    let dpl = if vector == 3 { 3 } else { 0 };
    gate_to(handler, 1, dpl)
}

static IDT: Idt = Idt({
    let mut table = [[0; 2]; VECTORS];
    let mut vector = 0;
    while vector < VECTORS {
        table[vector] = gate(vector as u64);
        vector += 1;
    }
    table
});

/// Address of the table.
pub fn idt() -> u64 {
    IDT.0.as_ptr() as u64
}

/// The interrupted code, as the entry code leaves it. Registers that functions preserve are still in the CPU.
#[derive(Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Frame {
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

global_asm!(
    ".section .vectors.guarded, \"ax\"",
    ".set v, 0",
    ".rept 32",
    ".balign 16",
    ".if v == 3",
    "jmp guarded_breakpoint",
    ".elseif v == 29",
    "jmp guarded_vc",
    ".elseif v == 8 || v == 18",
    "jmp guarded_end",
    ".elseif v == 10 || v == 11 || v == 12 || v == 13 || v == 14 || v == 17",
    "push v",
    "jmp guarded_error",
    ".elseif v == 0 || v == 1 || v == 4 || v == 5 || v == 6 || v == 7 || v == 16 || v == 19",
    "push 0",
    "push v",
    "jmp guarded_plain",
    ".else",
    "jmp dropped",
    ".endif",
    ".set v, v + 1",
    ".endr",
    ".balign 16",
    "jmp guarded_kick",
    ".balign 16",
    "jmp dropped",
    ".text",

    // The stack's top is a multiple of 16, and a frame without an error code has five words.
    // --- exceptions with an error code: vector, error, rip --------------------------------------------
    "guarded_error:",
    "test spl, 8",
    "jnz trap",
    "add rsp, 8",
    "jmp dropped",
    // --- without one: vector, 0, rip ------------------------------------------------------------------
    "guarded_plain:",
    "test spl, 8",
    "jnz trap",
    "add rsp, 16",
    // --- what must not be: rip, or error and rip ------------------------------------------------------
    "dropped:",
    "test spl, 8",
    "jnz 2f",
    "add rsp, 8",
    "2:",
    "test byte ptr [rsp + 8], 3",
    "jz guarded_end",
    "push rcx",
    "mov rcx, [rsp + 48]",          // block
    "inc qword ptr [rcx + {b_dropped}]",
    "pop rcx",
    "iretq",

    "guarded_kick:",
    "test spl, 8",
    "jz dropped",
    "test byte ptr [rsp + 8], 3",
    "jz guarded_end",
    "jmp kick",

    "guarded_breakpoint:",
    "test spl, 8",
    "jz dropped",
    "test byte ptr [rsp + 8], 3",
    "jz guarded_end",
    "jmp short_breakpoint", // a measured guest's one context answers for its tables itself

    // --- #VC: error, rip ------------------------------------------------------------------------------
    "guarded_vc:",
    "test spl, 8",
    "jnz dropped",
    "test byte ptr [rsp + 16], 3",
    "jz guarded_end",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "mov rdi, rsp",
    "mov esi, [rsp + 128 + {c_index}]",
    "call {exception}",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 8",
    "iretq",

    "guarded_end:",
    "and rsp, -16",
    "call {interrupted}",
    b_dropped = const core::mem::offset_of!(VcpuBlock, dropped),
    c_index = const above_stack(core::mem::offset_of!(Cpu, index)),
    exception = sym super::vc::exception,
    interrupted = sym super::vc::interrupted,
);

const _: () = assert!(size_of::<Frame>() == 128);
