//! The seam beneath `cloak_tdx`: TDCALL, the CPU's own or that of simulated hardware.
//!
//! Which of them is the TDX module's word, not the hypervisor's: it answers leaf 0x21 of CPUID in a domain, without an exit, so
//! no hypervisor can make one believe that it is simulated. Where the leaf does not say so, nothing is protected by hardware,
//! whatever a hypervisor pretends.

use core::arch::global_asm;
use core::arch::x86_64::__cpuid_count;

use cloak_abi::layout::{KERNEL_GPA, KERNEL_VA};
use cloak_abi::sim::SimCall;
use cloak_tdx::{Machine, Registers};

use super::super::simulated;

/// The leaf by which a domain knows that it is one, and what is in EBX, EDX and ECX there.
const LEAF: u32 = 0x21;
const NAME: [u32; 3] = [
    u32::from_le_bytes(*b"Inte"),
    u32::from_le_bytes(*b"lTDX"),
    u32::from_le_bytes(*b"    "),
];

/// Both, as the start found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tdcall {
    /// The CPU's.
    Own,
    /// Simulated hardware's.
    Simulated,
}

impl Tdcall {
    /// Asks the module.
    pub fn detect() -> Self {
        let found = __cpuid_count(LEAF, 0);
        if [found.ebx, found.edx, found.ecx] == NAME {
            Self::Own
        } else {
            Self::Simulated
        }
    }

    /// The bit of shared memory in page tables: the simulated machine has none.
    pub fn shared(self, bit: u64) -> u64 {
        match self {
            Self::Own => bit,
            Self::Simulated => 0,
        }
    }
}

/// Guest-physical address of something in the kernel's image, where all of its stacks are, too.
pub fn address_of<T>(thing: &T) -> u64 {
    core::ptr::from_ref(thing) as u64 - KERNEL_VA + KERNEL_GPA
}

impl Machine for Tdcall {
    fn tdcall(&mut self, registers: &mut Registers) {
        match self {
            // SAFETY: the call takes and gives registers only. What it does to memory its caller has asked for.
            Self::Own => unsafe { cloak_tdcall(registers) },
            Self::Simulated => {
                // It reads and writes the registers in memory. Nothing else refers to them.
                simulated::call(SimCall::Tdcall, address_of(registers), 0);
            }
        }
    }
}

unsafe extern "C" {
    fn cloak_tdcall(registers: *mut Registers);
}

// Loads all registers, makes the call, and stores them.
global_asm!(
    "cloak_tdcall:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsi, [rdi + 32]",
    "mov r8, [rdi + 48]",
    "mov r9, [rdi + 56]",
    "mov r10, [rdi + 64]",
    "mov r11, [rdi + 72]",
    "mov r12, [rdi + 80]",
    "mov r13, [rdi + 88]",
    "mov r14, [rdi + 96]",
    "mov r15, [rdi + 104]",
    "mov rdi, [rdi + 40]",
    ".byte 0x66, 0x0f, 0x01, 0xcc", // tdcall
    "xchg rdi, [rsp]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 32], rsi",
    "mov [rdi + 48], r8",
    "mov [rdi + 56], r9",
    "mov [rdi + 64], r10",
    "mov [rdi + 72], r11",
    "mov [rdi + 80], r12",
    "mov [rdi + 88], r13",
    "mov [rdi + 96], r14",
    "mov [rdi + 104], r15",
    "pop rax",
    "mov [rdi + 40], rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);
