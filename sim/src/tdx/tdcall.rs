//! TDCALL as a guest makes it: a leaf in RAX, operands in registers, results in memory and registers (TDX module ABI 1.5,
//! "Guest-Side (TDCALL) Interface Functions").
//!
//! Operands are guest-physical addresses of private memory here, in which the module reads and writes by itself. VMCALL
//! (leaf 0) is the host's to answer, and not here.

use zerocopy::IntoBytes;

use super::module::{Module, ModuleError};
use super::sept::{Acceptance, Fault, SecureEpt};
use crate::memory::{Gfn, PAGE};

/// Registers of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// Leaf in bits 15:0, version in 23:16; then the status.
    pub rax: u64,
    /// First operand.
    pub rcx: u64,
    /// Second operand.
    pub rdx: u64,
    /// Third operand.
    pub r8: u64,
    /// Result.
    pub r9: u64,
}

/// TDG.VP.INFO.
pub const VP_INFO: u64 = 1;
/// TDG.MR.RTMR.EXTEND.
pub const RTMR_EXTEND: u64 = 2;
/// TDG.MR.REPORT.
pub const MR_REPORT: u64 = 4;
/// TDG.MEM.PAGE.ACCEPT.
pub const PAGE_ACCEPT: u64 = 6;

/// Status of an acceptance that changed nothing: no error, so that who looks for errors only misses it.
pub const PAGE_ALREADY_ACCEPTED: u64 = 0x0000_0b0a_0000_0000;
/// A page of 2 MiB was asked for, and there are small ones.
pub const PAGE_SIZE_MISMATCH: u64 = 0xc000_0b0b_0000_0000;

/// Bytes of a large page.
const LARGE: u64 = 2 << 20;
/// Width of guest-physical addresses.
const GPAW: u64 = 48;
/// The bit of an address that makes it shared.
const SHARED: u64 = 1 << (GPAW - 1);

/// Makes the call of vCPU `vcpu`.
///
/// # Errors
/// [`Fault`]: an exit to the host, after which the call is made again, or the domain's end. Nothing has changed.
pub fn call<M: SecureEpt>(module: &mut Module<M>, vcpu: u32, registers: &mut Registers) -> Result<(), Fault> {
    let status = match registers.rax {
        VP_INFO => vp_info(module, vcpu, registers),
        RTMR_EXTEND => rtmr_extend(module, registers)?,
        MR_REPORT => report(module, registers)?,
        PAGE_ACCEPT => accept(module, registers)?,
        _ => ModuleError::OperandInvalid as u64,
    };
    registers.rax = status;
    Ok(())
}

fn vp_info<M: SecureEpt>(module: &Module<M>, vcpu: u32, registers: &mut Registers) -> u64 {
    let Some(info) = module.info() else {
        return ModuleError::OpState as u64;
    };
    registers.rcx = GPAW;
    registers.rdx = u64::from_le_bytes(info.attributes);
    registers.r8 = u64::from(module.vcpus()) | u64::from(module.vcpus()) << 32;
    registers.r9 = vcpu.into();
    0
}

/// Bytes of an operand: aligned, so that they lie in one page, and private.
fn place(gpa: u64, len: usize) -> Result<(Gfn, usize), ModuleError> {
    if gpa >= SHARED || !gpa.is_multiple_of(len.next_power_of_two() as u64) {
        return Err(ModuleError::OperandInvalid);
    }
    Ok((Gfn(gpa / PAGE as u64), (gpa % PAGE as u64) as usize))
}

fn operand<const N: usize>(
    module: &Module<impl SecureEpt>,
    gpa: u64,
) -> Result<Result<[u8; N], ModuleError>, Fault> {
    let (gfn, at) = match place(gpa, N) {
        Ok(place) => place,
        Err(error) => return Ok(Err(error)),
    };
    let page = module.memory.read(gfn)?;
    let mut bytes = [0; N];
    bytes.copy_from_slice(&page[at..at + N]);
    Ok(Ok(bytes))
}

fn rtmr_extend<M: SecureEpt>(module: &mut Module<M>, registers: &Registers) -> Result<u64, Fault> {
    // 48 bytes, at a multiple of 64.
    let Ok(data) = operand::<48>(module, registers.rcx)? else {
        return Ok(ModuleError::OperandInvalid as u64);
    };
    let index = usize::try_from(registers.rdx).unwrap_or(usize::MAX);
    Ok(status(module.rtmr_extend(index, &data)))
}

fn report<M: SecureEpt>(module: &mut Module<M>, registers: &Registers) -> Result<u64, Fault> {
    let invalid = Ok(ModuleError::OperandInvalid as u64);
    let Ok(data) = operand::<64>(module, registers.rdx)? else {
        return invalid;
    };
    let Ok((gfn, at)) = place(registers.rcx, 1024) else {
        return invalid;
    };
    if registers.r8 != 0 {
        return invalid;
    }
    let report = match module.report(data) {
        Ok(report) => report,
        Err(error) => return Ok(error as u64),
    };
    let mut page = module.memory.read(gfn)?;
    page[at..at + 1024].copy_from_slice(report.as_bytes());
    module.memory.write(gfn, &page)?;
    Ok(0)
}

fn accept<M: SecureEpt>(module: &mut Module<M>, registers: &Registers) -> Result<u64, Fault> {
    let (gpa, level) = (registers.rcx & !0xfff, registers.rcx & 0xfff);
    if gpa >= SHARED || level > 1 {
        return Ok(ModuleError::OperandInvalid as u64);
    }
    let gfn = Gfn(gpa / PAGE as u64);
    let done = if level == 0 {
        Some(module.memory.accept(gfn)?)
    } else if gpa.is_multiple_of(LARGE) {
        module.memory.accept_large(gfn)?
    } else {
        return Ok(ModuleError::OperandInvalid as u64);
    };
    Ok(match done {
        Some(Acceptance::Accepted) => 0,
        Some(Acceptance::Already) => PAGE_ALREADY_ACCEPTED,
        None => PAGE_SIZE_MISMATCH,
    })
}

fn status(result: Result<(), ModuleError>) -> u64 {
    result.map_or_else(|error| error as u64, |()| 0)
}
