//! Kinds of machine that a VM can be on.
//!
//! Simulated hardware is no part of this crate: it comes from outside, as a [`Simulated`], and the program that links both
//! binds them. Nothing here chooses it by itself.

use std::fmt::Debug;
use std::io;

use cloak_abi::layout::{PLATFORM_GPA, PLATFORM_LEN};
use cloak_abi::sim::SimCall;
use cloak_abi::stop::Stop;
use kvm_bindings::CpuId;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::image::registers::Registers;
use crate::kvm::{ram, snp, tdx};
use crate::tdvmcall::buffer::SharedMemory;
use crate::tdvmcall::courier::Courier;

/// A kind of machine.
#[derive(Debug, Default)]
pub enum Machine {
    /// Plain KVM.
    #[default]
    Plain,
    /// SEV-SNP.
    Snp(Certificates),
    /// TDX, and who fetches its domains' quotes.
    Tdx(Courier),
    /// SEV-SNP in software.
    SimulatedSnp(Box<dyn SimulatedSnp>),
    /// TDX in software.
    SimulatedTdx(Box<dyn SimulatedTdx>),
}

impl Machine {
    /// Whether its firmware takes an ID block.
    #[must_use]
    pub const fn has_id_block(&self) -> bool {
        matches!(self, Self::Snp(_) | Self::SimulatedSnp(_))
    }

    /// Whether it is one in software.
    #[must_use]
    pub const fn is_simulated(&self) -> bool {
        matches!(self, Self::SimulatedSnp(_) | Self::SimulatedTdx(_))
    }
}

/// What goes with a guest's reports, in the form of the GHCB protocol's certificate table; empty: nothing.
#[derive(Debug, Default)]
pub struct Certificates(pub Vec<u8>);

/// Simulated SNP: it takes the calls of a launch, too.
pub trait SimulatedSnp: Simulated + snp::calls::LaunchCalls {}
impl<T: Simulated + snp::calls::LaunchCalls> SimulatedSnp for T {}

/// Simulated TDX: it takes the calls of a launch, too.
pub trait SimulatedTdx: Simulated + tdx::calls::LaunchCalls {}
impl<T: Simulated + tdx::calls::LaunchCalls> SimulatedTdx for T {}

/// Simulated hardware after the launch: what the guest would ask of the CPU.
pub trait Simulated: Send + Debug {
    /// What it tells the user that it is, at the start.
    fn notice(&self) -> String;

    /// Gives it the VM's memory, before the launch.
    fn bind(&mut self, memory: GuestRam);

    /// What a vCPU of the guest asks for.
    fn call(&mut self, vcpu: u32, call: SimCall, arguments: [u64; 2]) -> Reply;

    /// A vCPU executes an OUT of a port that is not the hardware's: what it takes in its place.
    fn intercept(&mut self, vcpu: u32, out: Out) -> Injection;

    /// A vCPU is in its kernel: what the hypervisor injects there, which it must not.
    fn injected(&mut self, _vcpu: u32) -> Option<Injection> {
        None
    }

    /// How a vCPU starts that the guest has made: known once.
    fn created(&mut self, _vcpu: u32) -> Option<Registers> {
        None
    }

    /// Whether the hypervisor starts the second vCPU at once, though nobody asked for it.
    fn starts_early(&self) -> bool {
        false
    }

    /// What the hypervisor makes of CPUID.
    fn change_cpuid(&self, _cpuid: &mut CpuId) {}
}

/// An OUT of a guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// The port.
    pub port: u16,
    /// Bytes of the value.
    pub size: u8,
    /// The value.
    pub value: u32,
    /// Whether a program or the libos executes it, and not the kernel.
    pub user: bool,
}

impl Out {
    /// Bytes of the instruction, with the port in DX: one, and a prefix for a size of two.
    #[must_use]
    pub const fn instruction_len(self) -> u64 {
        if self.size == 2 { 2 } else { 1 }
    }
}

/// An exception or an interrupt for a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// Which.
    pub vector: u8,
    /// The error code, if one is pushed.
    pub error: Option<u64>,
    /// It comes at the instruction behind the OUT, not at it.
    pub behind: bool,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Its result.
    Value(u64),
    /// Its result, and the guest has asked the hypervisor for an OUT of this value to this port.
    Out(u64, u16, u32),
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

/// Where a domain has its quotes left: what it shares with the hypervisor, and nothing else of its memory.
#[derive(Debug)]
pub struct Window(GuestRam);

impl Window {
    /// Of this memory.
    #[must_use]
    pub const fn new(memory: GuestRam) -> Self {
        Self(memory)
    }

    fn check(gpa: u64, len: usize) -> io::Result<()> {
        let end = gpa.checked_add(len as u64);
        let inside = gpa >= PLATFORM_GPA && end.is_some_and(|end| end <= PLATFORM_GPA + PLATFORM_LEN);
        inside.then_some(()).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl SharedMemory for Window {
    fn read(&self, gpa: u64, into: &mut [u8]) -> io::Result<()> {
        Self::check(gpa, into.len())?;
        self.0.read(gpa, into)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        Self::check(gpa, bytes.len())?;
        self.0.write(gpa, bytes)
    }
}
