//! The seam beneath `cloak_snp`: the instructions of an SNP machine, the CPU's own or those of simulated hardware.
//!
//! Which of them is the CPU's word, not the hypervisor's: an SNP guest reads `MSR_SEV_STATUS` without an exit, so no
//! hypervisor can make one believe that it is simulated. Where that register does not say so, nothing is protected by
//! hardware, whatever a hypervisor pretends.

use core::arch::asm;

use cloak_abi::layout::KERNEL_PHYS_VA;
use cloak_abi::sim::{SimCall, UNCHANGED};
use cloak_snp::{Machine, Size, Validation};

use super::simulated;
use crate::arch::cpu::wrmsr;
use crate::arch::entry;

const GHCB: u32 = 0xc001_0130;
/// SNP is active.
const SNP: u64 = 1 << 2;

/// Both, as the start found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// The CPU's.
    Own,
    /// Simulated hardware's.
    Simulated,
}

impl Instructions {
    /// Asks the CPU. The interrupt table must be loaded: a CPU that has no such register faults.
    pub fn detect() -> Self {
        if entry::sev_status() & SNP != 0 {
            Self::Own
        } else {
            Self::Simulated
        }
    }

    /// The bit of private memory in page tables: the simulated machine has none.
    pub fn private(self, bit: u64) -> u64 {
        match self {
            Self::Own => bit,
            Self::Simulated => 0,
        }
    }
}

fn address(gpa: u64) -> u64 {
    KERNEL_PHYS_VA + gpa
}

impl Machine for Instructions {
    fn pvalidate(&mut self, gpa: u64, size: Size, accept: bool) -> Validation {
        let large = u32::from(size == Size::Large);
        let (code, unchanged) = match self {
            Self::Own => {
                let (code, carry): (u64, u8);
                // SAFETY: PVALIDATE of a page that the window maps; it changes no memory.
                unsafe {
                    asm!(".byte 0xf2, 0x0f, 0x01, 0xff", "setc {carry}", carry = out(reg_byte) carry,
                        inout("rax") address(gpa) => code, in("ecx") large, in("edx") u32::from(accept));
                }
                (code as u32, carry != 0)
            }
            Self::Simulated => {
                let result = simulated::call(SimCall::Pvalidate, gpa | u64::from(large), accept.into());
                (result as u32, result & UNCHANGED != 0)
            }
        };
        match (code, unchanged) {
            (0, false) => Validation::Changed,
            (0, true) => Validation::Unchanged,
            (code, _) => Validation::Failed(code),
        }
    }

    fn rmp_adjust(&mut self, gpa: u64, attributes: u64) -> u32 {
        match self {
            Self::Own => {
                let code: u64;
                // SAFETY: RMPADJUST of a page that the window maps; it changes no memory.
                unsafe {
                    asm!(".byte 0xf3, 0x0f, 0x01, 0xfe", inout("rax") address(gpa) => code, in("rcx") 0u64,
                        in("rdx") attributes);
                }
                code as u32
            }
            Self::Simulated => simulated::call(SimCall::RmpAdjust, gpa, attributes) as u32,
        }
    }

    fn vmgexit(&mut self, register: u64) -> u64 {
        match self {
            Self::Own => {
                wrmsr(GHCB, register);
                let (low, high): (u32, u32);
                // SAFETY: VMGEXIT, then the register that it answers in. The hypervisor reads and writes shared pages
                // meanwhile, which only [`Machine::read`] and [`Machine::write`] reach.
                unsafe {
                    asm!("rep vmmcall", "rdmsr", in("ecx") GHCB, out("eax") low, out("edx") high, options(nostack));
                }
                u64::from(low) | u64::from(high) << 32
            }
            Self::Simulated => simulated::call(SimCall::VmgExit, register, 0),
        }
    }

    fn read(&self, gpa: u64) -> u64 {
        // SAFETY: memory that the window maps; others may write it, so it is read once and as a number.
        unsafe { core::ptr::read_volatile(address(gpa) as *const u64) }
    }

    fn write(&mut self, gpa: u64, value: u64) {
        // SAFETY: memory that the window maps and that is the kernel's, or shared.
        unsafe { core::ptr::write_volatile(address(gpa) as *mut u64, value) }
    }

    fn clear(&mut self, gpa: u64) {
        // SAFETY: as above, a whole page. One instruction: where CPL 0 is interpreted each costs 0.6 us.
        unsafe {
            asm!("rep stosq", inout("rdi") address(gpa) => _, inout("rcx") 512u64 => _, in("rax") 0u64,
                options(nostack));
        }
    }
}
