//! Calls of the TDX module (leaf in RAX, status in RAX afterwards). Who is asked here is trusted as the processor is: a refusal
//! means that the guest, or its idea of the module, is wrong.

use cloak_abi::layout::{LARGE, PAGE};

use crate::weakened::{Protection, without};
use crate::{Machine, Registers, Stop};

/// Leaf numbers.
pub mod leaf {
    /// TDG.VP.VMCALL: to the hypervisor.
    pub const VMCALL: u64 = 0;
    /// TDG.VP.INFO.
    pub const INFO: u64 = 1;
    /// TDG.MR.RTMR.EXTEND.
    pub const EXTEND: u64 = 2;
    /// TDG.VP.VEINFO.GET.
    pub const EXCEPTION: u64 = 3;
    /// TDG.MR.REPORT.
    pub const REPORT: u64 = 4;
    /// TDG.MEM.PAGE.ACCEPT.
    pub const ACCEPT: u64 = 6;
}

/// ATTRIBUTES: the host may look into the domain.
pub const DEBUG: u64 = 1;
/// ATTRIBUTES: a page that the domain has not accepted stops it, rather than raise an exception in it. Without it the host
/// chooses the moment at which the handler runs.
pub const SEPT_VE_DISABLE: u64 = 1 << 28;

/// Bits of a status that say what it is; the rest say of which operand.
const CLASS: u64 = 0xffff_ffff_0000_0000;
const ALREADY_ACCEPTED: u64 = 0x0000_0b0a_0000_0000;
const SIZE_MISMATCH: u64 = 0xc000_0b0b_0000_0000;

fn call(machine: &mut impl Machine, registers: Registers) -> Registers {
    let mut registers = registers;
    machine.tdcall(&mut registers);
    registers
}

/// What the module says of the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Width of guest-physical addresses; the highest bit of one makes it shared.
    pub width: u32,
    /// ATTRIBUTES.
    pub attributes: u64,
    /// vCPUs.
    pub vcpus: u32,
}

/// TDG.VP.INFO.
///
/// # Errors
/// [`Stop::Module`].
pub fn info(machine: &mut impl Machine) -> Result<Info, Stop> {
    let answer = call(
        machine,
        Registers {
            rax: leaf::INFO,
            ..Registers::default()
        },
    );
    if answer.rax != 0 {
        return Err(Stop::Module);
    }
    Ok(Info {
        width: (answer.rcx & 0x3f) as u32,
        attributes: answer.rdx,
        vcpus: answer.r8 as u32,
    })
}

impl Info {
    /// The domain is one that the measured image was made for: `shared` is the bit that it has in its page tables; and it is none
    /// that the host can look into, or whose pages it can take unnoticed.
    ///
    /// # Errors
    /// [`Stop::Width`], [`Stop::Attributes`].
    pub fn agree(&self, shared: u64) -> Result<(), Stop> {
        let bit = self.width.checked_sub(1).and_then(|bit| 1u64.checked_shl(bit));
        if bit != Some(shared) && !without(Protection::Width) {
            return Err(Stop::Width);
        }
        let closed = self.attributes & (DEBUG | SEPT_VE_DISABLE) == SEPT_VE_DISABLE;
        if !closed && !without(Protection::Attributes) {
            return Err(Stop::Attributes);
        }
        Ok(())
    }
}

/// Bytes of a page that the module accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
}

impl Size {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => PAGE,
            Self::Large => LARGE,
        }
    }
}

/// What TDG.MEM.PAGE.ACCEPT did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// The page is the guest's now, and zero.
    Accepted,
    /// It was before. The status counts as a success: who looks for errors only takes a page that has content.
    Already,
    /// The hypervisor backs it by small pages.
    SizeMismatch,
    /// It is none that can be accepted.
    Refused,
}

/// TDG.MEM.PAGE.ACCEPT of the page at `gpa`.
pub fn accept(machine: &mut impl Machine, gpa: u64, size: Size) -> Acceptance {
    let level = u64::from(size == Size::Large);
    let registers = Registers {
        rax: leaf::ACCEPT,
        rcx: gpa | level,
        ..Registers::default()
    };
    match call(machine, registers).rax & CLASS {
        0 => Acceptance::Accepted,
        ALREADY_ACCEPTED => Acceptance::Already,
        SIZE_MISMATCH => Acceptance::SizeMismatch,
        _ => Acceptance::Refused,
    }
}

/// TDG.MR.REPORT over the 64 bytes at `data`, a multiple of 64, left at `report`, a multiple of 1024: both in private memory.
///
/// # Errors
/// [`Stop::Module`].
pub fn report(machine: &mut impl Machine, data: u64, report: u64) -> Result<(), Stop> {
    succeed(
        machine,
        Registers {
            rax: leaf::REPORT,
            rcx: report,
            rdx: data,
            ..Registers::default()
        },
    )
}

/// TDG.MR.RTMR.EXTEND of register `index` with the 48 bytes at `data`, a multiple of 64.
///
/// # Errors
/// [`Stop::Module`].
pub fn extend(machine: &mut impl Machine, index: u64, data: u64) -> Result<(), Stop> {
    succeed(
        machine,
        Registers {
            rax: leaf::EXTEND,
            rcx: data,
            rdx: index,
            ..Registers::default()
        },
    )
}

fn succeed(machine: &mut impl Machine, registers: Registers) -> Result<(), Stop> {
    match call(machine, registers).rax {
        0 => Ok(()),
        _ => Err(Stop::Module),
    }
}

/// Why a #VE came (TDG.VP.VEINFO.GET). The module tells it once; until then no other can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// As VMX numbers exits.
    pub reason: u32,
    /// More of it.
    pub qualification: u64,
    /// Bytes of the instruction: 1 to 15.
    pub length: u64,
}

/// TDG.VP.VEINFO.GET.
///
/// # Errors
/// [`Stop::Exception`]: there is none, or it is of no instruction.
pub fn exception(machine: &mut impl Machine) -> Result<Cause, Stop> {
    let answer = call(
        machine,
        Registers {
            rax: leaf::EXCEPTION,
            ..Registers::default()
        },
    );
    let cause = Cause {
        reason: answer.rcx as u32,
        qualification: answer.rdx,
        length: answer.r10 & 0xffff_ffff,
    };
    if answer.rax == 0 && (1..=15).contains(&cause.length) || without(Protection::Caused) {
        Ok(cause)
    } else {
        Err(Stop::Exception)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answering;
    use proptest::prelude::*;

    #[test]
    fn a_domain_of_another_kind_is_refused() {
        let info = Info {
            width: 48,
            attributes: SEPT_VE_DISABLE,
            vcpus: 2,
        };
        assert_eq!(info.agree(1 << 47), Ok(()));
        for width in [0, 47, 49, 52, 63] {
            assert_eq!(Info { width, ..info }.agree(1 << 47), Err(Stop::Width));
        }
        for attributes in [0, DEBUG, DEBUG | SEPT_VE_DISABLE, !SEPT_VE_DISABLE] {
            assert_eq!(Info { attributes, ..info }.agree(1 << 47), Err(Stop::Attributes));
        }
    }

    #[test]
    fn what_an_acceptance_did_is_told_apart() {
        for (status, found) in [
            (0, Acceptance::Accepted),
            (ALREADY_ACCEPTED, Acceptance::Already),
            (ALREADY_ACCEPTED | 1, Acceptance::Already),
            (SIZE_MISMATCH | 3, Acceptance::SizeMismatch),
            (0xc000_0100_0000_0001, Acceptance::Refused),
            (0x8000_0200_0000_0000, Acceptance::Refused),
            (u64::MAX, Acceptance::Refused),
        ] {
            let mut machine = Answering::new(|r: &mut Registers| {
                assert_eq!((r.rax, r.rcx), (leaf::ACCEPT, 0x60_0001));
                r.rax = status;
            });
            assert_eq!(accept(&mut machine, 0x60_0000, Size::Large), found, "{status:#x}");
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        for status in [1, 1 << 63] {
            let mut machine = Answering::new(|r: &mut Registers| r.rax = status);
            assert_eq!(report(&mut machine, 0x1000, 0x2000), Err(Stop::Module));
            assert_eq!(extend(&mut machine, 2, 0x1000), Err(Stop::Module));
            assert_eq!(info(&mut machine), Err(Stop::Module));
            assert_eq!(exception(&mut machine), Err(Stop::Exception));
        }
    }

    proptest! {
        #[test]
        fn an_exception_has_an_instruction_or_is_none(rax in 0u64..2, rcx: u64, rdx: u64, r10: u64) {
            let mut machine = Answering::new(|r: &mut Registers| (r.rax, r.rcx, r.rdx, r.r10) = (rax, rcx, rdx, r10));
            match exception(&mut machine) {
                Ok(cause) => prop_assert!(rax == 0 && (1..=15).contains(&cause.length)),
                Err(stop) => prop_assert_eq!(stop, Stop::Exception),
            }
        }
    }
}
