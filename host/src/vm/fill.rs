//! A VM's memory is filled: from the machine that was asked for to one whose vCPUs can run.
//!
//! On plain KVM the monitor places the shim itself ([`load`](super::load)). Elsewhere the launch is measured
//! ([`measured`](super::measured)): by simulated hardware in an ordinary VM, or by the hardware itself, where what the guest has for
//! itself is in guest_memfd, and its vCPUs come with the launch.

use std::sync::{Arc, Mutex};

use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::border::Border;
use super::clock::Clock;
use super::error::{Step, VmError};
use super::load::{Layout, Placed, Share};
use super::measured::{Backing, Measured};
use super::phases::Phases;
use super::slots::{add_doorbells, add_memory};
use super::{ContextOptions, Options, snp, tdx};
use crate::image::Measuring;
use crate::kvm;
use crate::kvm::snp::kernel::KvmSnp;
use crate::kvm::tdx::kernel::KvmTdx;
use crate::platform::{Certificates, GuestRam, Machine, Simulated, SimulatedSnp, SimulatedTdx};
use crate::tdvmcall::courier::Courier;

/// What is under a VM, as vCPU threads share it.
#[derive(Clone)]
pub enum Below {
    /// KVM as it is.
    Plain,
    /// Simulated hardware, and whose it is like.
    Simulated(Arc<Mutex<Box<dyn Simulated>>>, Measuring),
    /// SEV-SNP.
    Snp(Arc<snp::Guest<KvmSnp>>),
    /// TDX.
    Tdx(Arc<tdx::Domain<KvmTdx, Courier>>),
}

/// A VM with its memory filled, and the vCPUs that exist already.
pub struct Loaded {
    pub memory: GuestMemoryMmap,
    pub cpuid: CpuId,
    pub clock: Clock,
    pub entry: u64,
    pub placed: Vec<Placed>,
    pub below: Below,
    pub made: Vec<VcpuFd>,
}

/// A VM in which nothing is yet.
pub struct Empty {
    pub vm: Arc<VmFd>,
    /// What measures the launch; none: plain KVM.
    hardware: Option<Hardware>,
}

/// What measures a launch.
enum Hardware {
    /// SEV-SNP in software.
    SimulatedSnp(Box<dyn SimulatedSnp>),
    /// TDX in software.
    SimulatedTdx(Box<dyn SimulatedTdx>),
    /// SEV-SNP, and what goes with reports.
    Snp(KvmSnp, Certificates),
    /// TDX, and who fetches quotes.
    Tdx(KvmTdx, Courier),
}

impl Empty {
    /// Makes it.
    ///
    /// # Errors
    /// Why there can be no such VM.
    pub fn make(kvm: &Kvm, machine: Machine) -> Result<Self, VmError> {
        let hardware = match machine {
            Machine::Plain => None,
            Machine::SimulatedSnp(hardware) => Some(Hardware::SimulatedSnp(hardware)),
            Machine::SimulatedTdx(hardware) => Some(Hardware::SimulatedTdx(hardware)),
            Machine::Snp(certificates) => Some(Hardware::Snp(KvmSnp::create(kvm)?, certificates)),
            Machine::Tdx(quotes) => Some(Hardware::Tdx(KvmTdx::create(kvm)?, quotes)),
        };
        let vm = match &hardware {
            Some(Hardware::Snp(snp, _)) => snp.vm(),
            Some(Hardware::Tdx(tdx, _)) => tdx.vm(),
            _ => Arc::new(kvm.create_vm().step("creating a VM (KVM_CREATE_VM)")?),
        };
        Ok(Self { vm, hardware })
    }

    /// Fills it.
    ///
    /// # Errors
    /// Which step failed, and what to try.
    pub fn fill(
        self,
        kvm: &Kvm,
        borders: &[Border],
        phases: &mut Phases,
        options: &Options,
    ) -> Result<Loaded, VmError> {
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .step("reading KVM's CPUID")?;
        let loaded = match self.hardware {
            None => place(&self.vm, cpuid, borders, phases, options)?,
            Some(hardware) => hardware.launch(self.vm, cpuid, borders, phases, &options.contexts[0])?,
        };
        phases.done("loading the shim");
        Ok(loaded)
    }
}

/// Places the shim, on plain KVM.
fn place(
    vm: &VmFd,
    cpuid: CpuId,
    borders: &[Border],
    phases: &mut Phases,
    options: &Options,
) -> Result<Loaded, VmError> {
    let shares: Vec<Share<'_>> = options.contexts.iter().map(ContextOptions::share).collect();
    let layout = Layout::new(&shares, &options.segments, options.own_tables)?;
    let memory = kvm::ram::reserve(layout.ram)?;
    add_memory(vm, 0, &memory, borders)?;
    add_doorbells(vm, borders)?;
    phases.done("guest memory and its slots");
    let (first, tsc_khz, clock) = first_vcpu(vm, phases)?;
    let (entry, placed) = layout.load(&memory, tsc_khz)?;
    Ok(Loaded {
        memory,
        cpuid,
        clock,
        entry,
        placed,
        below: Below::Plain,
        made: vec![first],
    })
}

/// The first vCPU of an ordinary VM, and what it says of the time.
fn first_vcpu(vm: &VmFd, phases: &mut Phases) -> Result<(VcpuFd, u64, Clock), VmError> {
    let first = vm.create_vcpu(0).step("creating vCPU 0")?;
    let tsc_khz = u64::from(first.get_tsc_khz().step("reading the TSC frequency")?);
    let offset = kvm::tsc_offset(&first).step("reading the guest's TSC")?;
    phases.done("first vCPU");
    Ok((first, tsc_khz, Clock::new(tsc_khz, offset)))
}

impl Hardware {
    /// What its image is made for, and where the guest's own memory is.
    fn wants(&self) -> (Measuring, Backing) {
        match self {
            Self::SimulatedSnp(_) => (Measuring::Snp, Backing::Ram),
            Self::SimulatedTdx(_) => (Measuring::Tdx, Backing::Ram),
            Self::Snp(..) => (Measuring::Snp, Backing::GuestMemfd),
            Self::Tdx(..) => (Measuring::Tdx, Backing::GuestMemfd),
        }
    }

    fn launch(
        self,
        vm: Arc<VmFd>,
        mut cpuid: CpuId,
        borders: &[Border],
        phases: &mut Phases,
        context: &ContextOptions,
    ) -> Result<Loaded, VmError> {
        let (like, backing) = self.wants();
        let measured = Measured::new(context, like, backing)?;
        let memory = measured.memory.clone();
        match backing {
            // Without doorbells: an OUT that KVM takes by itself would not raise #VC or #VE, as it does in hardware.
            Backing::Ram => add_memory(&vm, 0, &memory, borders)?,
            Backing::GuestMemfd => {
                add_memory(&vm, measured.private.len() as u32, &memory, borders)?;
                add_doorbells(&vm, borders)?;
            }
        }
        phases.done("guest memory and its slots");
        let ram = GuestRam::new(memory.clone());
        let own = measured.private.clone();
        let (below, made, clock) = match self {
            Self::SimulatedSnp(mut hardware) => {
                let (first, tsc_khz, clock) = first_vcpu(&vm, phases)?;
                begin(&mut *hardware, ram);
                measured.launch_snp(&mut *hardware, context, &cpuid, tsc_khz, false)?;
                (simulated(hardware, like, &mut cpuid), vec![first], clock)
            }
            Self::SimulatedTdx(mut hardware) => {
                let (first, tsc_khz, clock) = first_vcpu(&vm, phases)?;
                begin(&mut *hardware, ram);
                measured.launch_tdx(&mut *hardware, context, tsc_khz)?;
                (simulated(hardware, like, &mut cpuid), vec![first], clock)
            }
            Self::Snp(snp, Certificates(certificates)) => {
                let tsc_khz = snp.tsc_khz()?;
                let asked = !certificates.is_empty();
                let mut guest = measured.launch_snp(snp, context, &cpuid, tsc_khz, asked)?;
                let (vcpus, offset) = guest.take_vcpus();
                let guest = snp::Guest::new(guest, own, certificates, ram);
                (Below::Snp(Arc::new(guest)), vcpus, Clock::new(tsc_khz, offset))
            }
            Self::Tdx(tdx, quotes) => {
                let tsc_khz = tdx.tsc_khz()?;
                let mut domain = measured.launch_tdx(tdx, context, tsc_khz)?;
                let (vcpus, offset) = domain.take_vcpus();
                let domain = tdx::Domain::new(domain, own, ram, quotes, vm);
                (Below::Tdx(Arc::new(domain)), vcpus, Clock::new(tsc_khz, offset))
            }
        };
        Ok(Loaded {
            memory,
            cpuid,
            clock,
            entry: measured.entry(),
            placed: vec![measured.placed(context)],
            below,
            made,
        })
    }
}

/// Simulated hardware says what it is, and gets its memory.
fn begin(hardware: &mut (impl Simulated + ?Sized), memory: GuestRam) {
    eprintln!("cloak: {}", hardware.notice());
    hardware.bind(memory);
}

fn simulated(hardware: Box<dyn Simulated>, like: Measuring, cpuid: &mut CpuId) -> Below {
    hardware.change_cpuid(cpuid);
    Below::Simulated(Arc::new(Mutex::new(hardware)), like)
}
