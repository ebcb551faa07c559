//! Kinds of machine that a VM can be on.
//!
//! Simulated hardware is no part of this crate: it comes from outside, as a [`Simulated`], and the program that links both
//! binds them. Nothing here chooses it by itself.

use std::fmt::Debug;
use std::io;

use cloak_abi::sim::SimCall;
use cloak_abi::stop::Stop;
use kvm_bindings::CpuId;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::image::Measuring;
use crate::image::registers::Registers;
use crate::kvm::{ram, snp, tdx};

/// A kind of machine.
#[derive(Debug, Default)]
pub enum Machine {
    /// Plain KVM.
    #[default]
    Plain,
    /// SEV-SNP in software.
    SimulatedSnp(Box<dyn SimulatedSnp>),
    /// TDX in software.
    SimulatedTdx(Box<dyn SimulatedTdx>),
}

impl Machine {
    /// Whose way of measuring it has, if any.
    #[must_use]
    pub const fn measuring(&self) -> Option<Measuring> {
        match self {
            Self::Plain => None,
            Self::SimulatedSnp(_) => Some(Measuring::Snp),
            Self::SimulatedTdx(_) => Some(Measuring::Tdx),
        }
    }
}

/// Simulated SNP: it takes the calls of a launch, too.
pub trait SimulatedSnp: Simulated + snp::calls::LaunchCalls {}
impl<T: Simulated + snp::calls::LaunchCalls> SimulatedSnp for T {}

/// Simulated TDX: it takes the calls of a launch, too.
pub trait SimulatedTdx: Simulated + tdx::calls::LaunchCalls {}
impl<T: Simulated + tdx::calls::LaunchCalls> SimulatedTdx for T {}

/// An instruction of the guest's that leaves to the hypervisor on an ordinary VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortWrite {
    /// The port.
    pub port: u16,
    /// Bytes of the value.
    pub size: u8,
    /// The value.
    pub value: u32,
}

impl PortWrite {
    /// Bytes of the instruction, with the port in DX: one, and a prefix for a size of two.
    #[must_use]
    pub const fn instruction_len(self) -> u64 {
        if self.size == 2 { 2 } else { 1 }
    }
}

/// Simulated hardware after the launch: what the guest would ask of the CPU.
pub trait Simulated: Send + Debug {
    /// What it tells the user that it is, at the start.
    fn notice(&self) -> String;

    /// Gives it the VM's memory, before the launch.
    fn bind(&mut self, memory: GuestRam);

    /// What a vCPU of the guest asks for.
    fn call(&mut self, vcpu: u32, call: SimCall, arguments: [u64; 2]) -> Reply;

    /// Whether instructions that leave to the hypervisor raise an exception in the guest instead, which asks for what it needs.
    fn raises(&self) -> bool {
        false
    }

    /// Takes such an instruction; gives the exception's vector.
    fn exception(&mut self, _vcpu: u32, _instruction: PortWrite) -> u8 {
        0
    }

    /// An interrupt that the hypervisor injects though nobody asked for it.
    fn stray_interrupt(&mut self) -> Option<u8> {
        None
    }

    /// Whether the hypervisor starts the second vCPU at once, though nobody asked for it.
    fn starts_early(&self) -> bool {
        false
    }

    /// What the hypervisor makes of CPUID.
    fn change_cpuid(&self, _cpuid: &mut CpuId) {}
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Its result.
    Value(u64),
    /// Its result, and another vCPU starts.
    Start(u64, u32, Registers),
    /// Its result, and the guest asks for this write.
    Out(u64, PortWrite),
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
