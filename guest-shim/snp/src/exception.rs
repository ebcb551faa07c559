//! #VC: an instruction that the hypervisor intercepts, and what is done about it (AMD64 Architecture Programmer's Manual,
//! volume 2, section 15.35.5).
//!
//! The CPU raises it with the reason in the error code; a hypervisor can inject it with any reason at any instruction. So
//! the instruction itself has to say the same, or the guest ends. What the hypervisor is then told, and what it is believed:
//!
//! | reason | done |
//! |---|---|
//! | CPUID | answered from the table that was taken at the start; the hypervisor is not asked |
//! | RDTSC, RDTSCP | asked: the clock is the hypervisor's in any case |
//! | IN, OUT of the context's own ports | asked; the value alone goes out |
//! | VMMCALL, VMCALL | no such instruction (#UD): a program has nothing to ask a hypervisor for |
//! | alignment (#AC) | the program's own exception |
//! | access to a device, that is to memory that the hypervisor says is none | the guest ends |
//! | anything else | the guest ends |
//!
//! The others include those that fault at CPL 3 before they are intercepted (RDMSR, WRMSR, RDPMC, WBINVD, INVD, MONITOR, MWAIT,
//! debug registers). The kernel itself executes nothing that is intercepted: it asks by its GHCB, and its
//! model-specific registers are in the vCPU's protected state. So no register is on a list of those that are asked for,
//! and a #VC at CPL 0 ends the guest whatever its reason is.

use cloak_abi::layout::{doorbell_port, monitor_port};

use crate::cpuid::{Processor, Table};
use crate::ghcb::{Ghcb, exits, fields};
use crate::instruction::{Instruction, Port, decode};
use crate::weakened::{Protection, without};
use crate::{Machine, Stop};

/// Reasons, as the error code has them.
pub mod reasons {
    /// #AC.
    pub const ALIGNMENT: u64 = 0x51;
    /// RDTSC.
    pub const RDTSC: u64 = 0x6e;
    /// CPUID.
    pub const CPUID: u64 = 0x72;
    /// IN, OUT.
    pub const PORT: u64 = 0x7b;
    /// VMMCALL.
    pub const CALL: u64 = 0x81;
    /// RDTSCP.
    pub const RDTSCP: u64 = 0x87;
    /// A nested page fault.
    pub const DEVICE: u64 = 0x400;
}

/// RFLAGS.AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;
/// Bits of EXITINFO1 for IN and OUT: IN, the value's bytes from here on, 64-bit addresses.
const READS: u64 = 1;
const BYTES_AT: u32 = 4;
const WIDE: u64 = 1 << 9;

/// What the interrupted code has, as far as it matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// How the interrupted code goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// At the next instruction: the registers are changed.
    Done,
    /// At the same instruction: its bytes could not be read, and the CPU will say why.
    Again,
    /// With this exception.
    Raise(u8),
}

/// Whom it concerns.
#[derive(Debug)]
pub struct Vcpu<'a, M> {
    /// The machine.
    pub machine: &'a mut M,
    /// The vCPU's page.
    pub ghcb: Ghcb,
    /// CPUID, as it was at the start.
    pub table: &'a Table,
    /// What of CPUID is this vCPU's.
    pub processor: Processor,
    /// The context whose ports it may use.
    pub context: u32,
}

/// Answers a #VC at CPL 3 of the reason `reason`. `bytes` are at the interrupted instruction.
///
/// # Errors
/// [`Stop`]: the guest must not go on.
pub fn answer<M: Machine>(
    vcpu: &mut Vcpu<'_, M>,
    reason: u64,
    bytes: &[u8],
    registers: &mut Registers,
) -> Result<Outcome, Stop> {
    match reason {
        reasons::DEVICE => return Err(Stop::Device),
        reasons::ALIGNMENT if registers.rflags & ALIGNMENT_CHECK != 0 => return Ok(Outcome::Raise(17)),
        reasons::ALIGNMENT => return Err(Stop::Unfounded),
        reasons::CPUID | reasons::RDTSC | reasons::RDTSCP | reasons::PORT | reasons::CALL => {}
        _ => return Err(Stop::Intercepted),
    }
    let Some((mut instruction, len)) = decode(bytes) else {
        return Ok(Outcome::Again);
    };
    if without(Protection::Founded) {
        instruction = believed(reason);
    }
    match (reason, instruction) {
        (reasons::CPUID, Instruction::Cpuid) => {
            let (leaf, subleaf) = (registers.rax as u32, registers.rcx as u32);
            let [mut eax, ebx, ecx, edx] = vcpu.table.answer(leaf, subleaf, vcpu.processor);
            if without(Protection::Table) {
                vcpu.ghcb.exit(vcpu.machine, reason, [0, 0], &[])?;
                eax = vcpu.ghcb.field(vcpu.machine, fields::RAX) as u32;
            }
            registers.rax = eax.into();
            registers.rbx = ebx.into();
            registers.rcx = ecx.into();
            registers.rdx = edx.into();
        }
        (reasons::RDTSC, Instruction::Rdtsc) => clock(vcpu, reason, registers)?,
        (reasons::RDTSCP, Instruction::Rdtscp) => {
            clock(vcpu, reason, registers)?;
            registers.rcx = vcpu.ghcb.field(vcpu.machine, fields::RCX) & 0xffff_ffff;
        }
        (reasons::PORT, Instruction::Port(access)) => port(vcpu, access, registers)?,
        (reasons::CALL, Instruction::Call) => return Ok(Outcome::Raise(6)),
        _ => return Err(Stop::Unfounded),
    }
    registers.rip = registers.rip.wrapping_add(len);
    Ok(Outcome::Done)
}

/// The instruction that has this reason, for a guest that takes the hypervisor's word.
fn believed(reason: u64) -> Instruction {
    match reason {
        reasons::CPUID => Instruction::Cpuid,
        reasons::PORT => Instruction::Port(Port {
            number: None,
            bytes: 4,
            reads: false,
        }),
        _ => Instruction::Other,
    }
}

fn clock<M: Machine>(vcpu: &mut Vcpu<'_, M>, reason: u64, registers: &mut Registers) -> Result<(), Stop> {
    vcpu.ghcb.exit(vcpu.machine, reason, [0, 0], &[])?;
    registers.rax = vcpu.ghcb.field(vcpu.machine, fields::RAX) & 0xffff_ffff;
    registers.rdx = vcpu.ghcb.field(vcpu.machine, fields::RDX) & 0xffff_ffff;
    Ok(())
}

/// IN or OUT. The CPU's own table of ports has let it through; that the port is the context's is seen to once more.
fn port<M: Machine>(vcpu: &mut Vcpu<'_, M>, access: Port, registers: &mut Registers) -> Result<(), Stop> {
    let number = access.number.map_or(registers.rdx as u16, u16::from);
    let first = doorbell_port(vcpu.context);
    let own = (first..monitor_port(vcpu.context) + 4).contains(&number);
    if !own && !without(Protection::Ports) {
        return Err(Stop::Intercepted);
    }
    let bits = u64::MAX >> (64 - 8 * u32::from(access.bytes));
    if access.reads {
        let value = read(vcpu.machine, vcpu.ghcb, number, access.bytes)? & bits;
        // A value of four bytes clears the upper half, as all of that size do.
        let kept = if access.bytes == 4 {
            0
        } else {
            registers.rax & !bits
        };
        registers.rax = kept | value;
        Ok(())
    } else {
        write(
            vcpu.machine,
            vcpu.ghcb,
            number,
            access.bytes,
            registers.rax & bits,
        )
    }
}

const fn about(port: u16, bytes: u8) -> u64 {
    (port as u64) << 16 | (bytes as u64) << BYTES_AT | WIDE
}

/// OUT of so many bytes to a port, by the hypervisor.
///
/// # Errors
/// [`Stop::Answer`].
pub fn write(machine: &mut impl Machine, ghcb: Ghcb, port: u16, bytes: u8, value: u64) -> Result<(), Stop> {
    let more = [(fields::RAX, value)];
    ghcb.exit(machine, exits::PORT, [about(port, bytes), 0], &more)
        .map(drop)
}

fn read(machine: &mut impl Machine, ghcb: Ghcb, port: u16, bytes: u8) -> Result<u64, Stop> {
    // RAX is in the request as KVM takes no request without it.
    let more = [(fields::RAX, 0)];
    ghcb.exit(machine, exits::PORT, [about(port, bytes) | READS, 0], &more)?;
    Ok(ghcb.field(machine, fields::RAX))
}

#[cfg(test)]
#[path = "exception_tests.rs"]
mod tests;
