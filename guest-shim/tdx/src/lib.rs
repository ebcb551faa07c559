//! The guest's side of TDX, without the guest: what it says to the TDX module and to the hypervisor, and what it believes of
//! their answers (TDX module ABI 1.5; Guest-Host Communication Interface 1.5).
//!
//! | module | concept |
//! |---|---|
//! | [`module`] | calls of the TDX module, which is trusted as the processor is |
//! | [`vmcall`] | calls of the hypervisor, which is not |
//! | [`pages`] | memory that becomes the guest's |
//! | [`exception`] | #VE: what the hypervisor would have to do for an instruction, and whether it may |
//! | [`quote`] | the buffer in which the hypervisor leaves a quote, and what a quote has to be of |
//!
//! All of it stands on one seam, [`Machine`]: the one instruction that only such a machine has. The kernel has two of it, the
//! CPU's own and that of simulated hardware, and tests have hostile ones; above the seam there is one code. Whatever comes from
//! there is parsed once, into a type, or ends the VM with a reason ([`Stop`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod exception;
pub mod module;
pub mod pages;
pub mod quote;
#[cfg(test)]
mod testing;
pub mod vmcall;
mod weakened;
#[cfg(test)]
mod weakened_tests;

pub use cloak_abi::sim::TdRegisters as Registers;
pub use cloak_abi::stop::Stop;

/// The instruction of a TDX machine. Addresses that go by registers are guest-physical.
pub trait Machine {
    /// TDCALL.
    fn tdcall(&mut self, registers: &mut Registers);
}
