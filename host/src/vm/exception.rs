//! What a vCPU of simulated hardware takes: #VC where a real one would raise it, and what a hostile hypervisor injects.
//!
//! The event is delivered by hand, as the CPU does it (AMD64 Architecture Programmer's Manual, volume 2, section 8.9): KVM's own
//! injection knows no error code for #VC where the host is Intel's or emulated.

use std::sync::LazyLock;

use cloak_abi::layout::{KERNEL_GPA, KERNEL_PHYS_VA, KERNEL_VA};
use kvm_ioctls::VcpuFd;

use super::error::{Step, VmError};
use crate::kvm;
use crate::platform::{GuestRam, Injection};

/// Where the gate of a vector is, and of the TSS the stacks.
const GATE: u64 = 16;
const RSP0: u64 = 4;
const IST: u64 = 36;
const AVAILABLE_TSS: u8 = 9;
/// TF, IF, NT, RF.
const CLEARED: u64 = 1 << 8 | 1 << 9 | 1 << 14 | 1 << 16;

/// Delivers an event to a vCPU that is not in the guest.
///
/// # Errors
/// When the guest has no handler, or its tables are not in its kernel.
pub fn deliver(fd: &VcpuFd, memory: &GuestRam, event: Injection) -> Result<(), VmError> {
    let mut system = fd.get_sregs().step("reading a vCPU's system registers")?;
    let mut general = fd.get_regs().step("reading a vCPU's registers")?;
    let word = |va: u64| read(memory, va);
    let at = GATE * u64::from(event.vector);
    if at + GATE - 1 > u64::from(system.idt.limit) {
        return Err(VmError::Shim("an exception that the kernel has no handler for"));
    }
    let gate = [word(system.idt.base + at)?, word(system.idt.base + at + 8)?];
    let handler = gate[0] & 0xffff | gate[0] >> 48 << 16 | gate[1] << 32;
    let program = system.cs.selector & 3 != 0;
    let mut stack = match gate[0] >> 32 & 7 {
        0 if program => word(system.tr.base + RSP0)?,
        0 => general.rsp,
        number => word(system.tr.base + IST + 8 * (number - 1))?,
    } & !15;
    let frame = [
        u64::from(system.ss.selector),
        general.rsp,
        general.rflags,
        u64::from(system.cs.selector),
        general.rip,
    ];
    for value in frame.into_iter().chain(event.error) {
        stack -= 8;
        let written = memory.write(physical(stack)?, &value.to_le_bytes());
        written.map_err(|_| VmError::Shim("an exception's stack is not memory"))?;
    }
    if program {
        (system.cs, system.ss) = kvm::kernel_segments();
        if *IS_AMD {
            // KVM tells of a busy TSS where the CPU has none (`svm_get_segment`), and an emulated CPU minds.
            system.tr.type_ = AVAILABLE_TSS;
        }
        fd.set_sregs(&system).step("setting a vCPU's system registers")?;
    }
    (general.rip, general.rsp) = (handler, stack);
    general.rflags &= !CLEARED;
    fd.set_regs(&general).step("setting a vCPU's registers")
}

/// Asked once: the instruction is an exit where the host is a guest itself.
static IS_AMD: LazyLock<bool> = LazyLock::new(|| {
    let name = std::arch::x86_64::__cpuid(0);
    [name.ebx, name.edx, name.ecx]
        .map(u32::to_le_bytes)
        .as_flattened()
        == b"AuthenticAMD"
});

/// An address of the kernel's: what it has of its own is in its image, or in its window on memory.
fn physical(va: u64) -> Result<u64, VmError> {
    va.checked_sub(KERNEL_VA)
        .map(|offset| offset + KERNEL_GPA)
        .or_else(|| va.checked_sub(KERNEL_PHYS_VA))
        .ok_or(VmError::Shim("an exception's tables are not the kernel's"))
}

fn read(memory: &GuestRam, va: u64) -> Result<u64, VmError> {
    let mut word = [0; 8];
    let found = memory.read(physical(va)?, &mut word);
    found.map_err(|_| VmError::Shim("an exception's tables are not memory"))?;
    Ok(u64::from_le_bytes(word))
}
