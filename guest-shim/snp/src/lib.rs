//! The guest's side of SEV-SNP, without the guest: what it says to the hypervisor and to the security processor, and what
//! it believes of their answers.
//!
//! | module | concept |
//! |---|---|
//! | [`ghcb`] | requests to the hypervisor, by register and by page |
//! | [`pages`] | memory that becomes the guest's, each page once |
//! | [`cpuid`] | the table of CPUID values that the firmware has checked |
//! | [`secrets`] | the keys that the firmware leaves, taken and wiped |
//! | [`message`] | sealed messages to the security processor, with numbers that never repeat |
//! | [`report`], [`keys`] | what is asked for by them |
//! | [`vmsa`] | the state in which a further vCPU starts |
//! | [`exception`] | instructions that the hypervisor intercepts (#VC), and [`instruction`] which of them it is |
//!
//! All of it stands on one seam, [`Machine`]: the instructions that only such a machine has. The kernel has two of it,
//! the CPU's own and those of simulated hardware, and tests have hostile ones; above the seam there is one code.
//! Whatever comes from there is parsed once, into a type, or ends the VM with a reason ([`Stop`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod exception;
pub mod ghcb;
pub mod instruction;
pub mod keys;
pub mod message;
pub mod pages;
pub mod report;
pub mod secrets;
#[cfg(test)]
mod testing;
pub mod vmsa;
mod weakened;
#[cfg(test)]
mod weakened_tests;

pub use cloak_abi::stop::Stop;

/// What PVALIDATE did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// It changed the page's state.
    Changed,
    /// It found the page in that state (CF = 1). To a guest that accepts each page once this is an attack.
    Unchanged,
    /// It failed, with this code.
    Failed(u32),
}

/// The code of PVALIDATE for a large page that the hypervisor backs by small ones.
pub const SIZE_MISMATCH: u32 = 6;

/// Bytes of a page that an instruction takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
}

/// The instructions of an SNP machine, and guest-physical memory as the kernel has it mapped. Addresses of words are
/// multiples of eight.
pub trait Machine {
    /// PVALIDATE of the page at `gpa`: accepts it, or takes that back.
    fn pvalidate(&mut self, gpa: u64, size: Size, accept: bool) -> Validation;
    /// RMPADJUST of the small page at `gpa`. Gives the instruction's code, 0 for success.
    fn rmp_adjust(&mut self, gpa: u64, attributes: u64) -> u32;
    /// Writes the GHCB's model-specific register, leaves to the hypervisor, and gives what the register holds then.
    fn vmgexit(&mut self, register: u64) -> u64;
    /// Reads a word.
    fn read(&self, gpa: u64) -> u64;
    /// Writes a word.
    fn write(&mut self, gpa: u64, value: u64);
    /// Clears a page.
    fn clear(&mut self, gpa: u64) {
        (gpa..gpa + cloak_abi::layout::PAGE)
            .step_by(8)
            .for_each(|at| self.write(at, 0));
    }
}
