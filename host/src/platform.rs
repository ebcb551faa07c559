//! Kinds of machine that a VM can be on.
//!
//! Simulated hardware is no part of this crate: it comes from outside, as a [`Simulated`], and the program that links both
//! binds them. Nothing here chooses it by itself.

use std::fmt::Debug;
use std::io;

use cloak_abi::sim::SimCall;
use cloak_abi::stop::Stop;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::image::registers::Registers;
use crate::kvm::ram;
use crate::kvm::snp::calls::LaunchCalls;

/// A kind of machine.
#[derive(Debug, Default)]
pub enum Machine {
    /// Plain KVM.
    #[default]
    Plain,
    /// SEV-SNP in software.
    SimulatedSnp(Box<dyn Simulated>),
}

impl Machine {
    /// Whether it is software that does as hardware does.
    #[must_use]
    pub const fn is_simulated(&self) -> bool {
        matches!(self, Self::SimulatedSnp(_))
    }
}

/// Simulated hardware, which takes the calls of a launch, and afterwards what the guest would ask of the CPU.
pub trait Simulated: LaunchCalls + Send + Debug {
    /// What it tells the user that it is, at the start.
    fn notice(&self) -> String;

    /// Gives it the VM's memory, before the launch.
    fn bind(&mut self, memory: GuestRam);

    /// What a vCPU of the guest asks for.
    fn call(&mut self, vcpu: u32, call: SimCall, arguments: [u64; 2]) -> Reply;
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Its result.
    Value(u64),
    /// Its result, and another vCPU starts.
    Start(u64, u32, Registers),
    /// The guest says that it can't go on.
    Terminated(Option<Stop>),
}

/// A VM's memory, in the hands of simulated hardware. Private memory can be touched by nobody, the guest included, before
/// it is opened.
#[derive(Debug, Clone)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
}

impl GuestRam {
    pub(crate) const fn new(memory: GuestMemoryMmap) -> Self {
        Self { memory }
    }

    /// Opens whole pages, or closes them.
    ///
    /// # Errors
    /// Not memory, or the kernel's refusal.
    pub fn set_access(&self, gpa: u64, len: u64, open: bool) -> io::Result<()> {
        ram::set_access(&self.memory, gpa, len, open)
    }

    /// Reads memory that is open.
    ///
    /// # Errors
    /// Not memory.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory
            .read_slice(bytes, GuestAddress(gpa))
            .map_err(io::Error::other)
    }

    /// Writes memory that is open.
    ///
    /// # Errors
    /// Not memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(io::Error::other)
    }
}
