//! #VE: registers to `cloak_tdx::exception`, and back. What is decided there is carried out here.
//!
//! It comes at any place where code of the shim or a program has an instruction that needs the hypervisor: at CPL 3 on the
//! vCPU's kernel stack, at CPL 0 on the stack that is in use. None comes before the module has been asked for the cause.

use core::arch::global_asm;

use cloak_abi::boot::platform;
use cloak_abi::layout::{doorbell_port, monitor_port};
use cloak_tdx::exception::{Interrupted, Outcome, handle};
use cloak_tdx::module;

use super::super::kind;
use crate::arch::panic_stop;

/// Vector of #VE.
const VECTOR: u32 = 20;

/// The interrupted code's registers, as the entry code pushes them, and the CPU before it.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    /// R15 to R8, RDI, RSI, RBP.
    others: [u64; 11],
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    /// Whether the instruction is at fault.
    fault: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

extern "C" fn on_exception(frame: &mut Frame) {
    if kind() != platform::TDX {
        panic_stop(0x100 | VECTOR);
    }
    let mut machine = super::machine();
    let mut registers = Interrupted {
        rax: frame.rax,
        rbx: frame.rbx,
        rcx: frame.rcx,
        rdx: frame.rdx,
        user: frame.cs & 3 != 0,
    };
    let ports = [doorbell_port(0), monitor_port(0)];
    let result = module::exception(&mut machine).and_then(|cause| {
        let outcome = handle(&mut machine, cause, &mut registers, &ports)?;
        Ok((outcome, cause.length))
    });
    match result {
        Ok((Outcome::Done, length)) => {
            (frame.rax, frame.rbx, frame.rcx, frame.rdx) =
                (registers.rax, registers.rbx, registers.rcx, registers.rdx);
            frame.rip = frame.rip.wrapping_add(length);
        }
        Ok((Outcome::Fault, _)) => frame.fault = 1,
        Err(stop) => super::end(machine, stop),
    }
}

// The way up for an instruction that is at fault is that of #GP.
global_asm!(
    ".globl virtualization_exception",
    "virtualization_exception:",
    "push 0",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {handler}",
    "mov rsp, rbp",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "cmp qword ptr [rsp], 0",
    "jne 2f",
    "add rsp, 8",
    "iretq",
    "2:",
    "mov qword ptr [rsp], 0", // the error code
    "push 13",
    "jmp trap",
    handler = sym on_exception,
);
