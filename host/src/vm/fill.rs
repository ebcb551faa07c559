//! Fills the memory of a VM on plain KVM, or of one that simulated hardware protects. [`super::protected`] does it in hardware.

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
use crate::platform::{GuestRam, Machine, Simulated, SimulatedSnp, SimulatedTdx};
use crate::tdvmcall::courier::Courier;

/// Simulated hardware, as vCPU threads share it.
pub type Hardware = Arc<Mutex<Box<dyn Simulated>>>;

/// What is under a VM, as vCPU threads share it.
#[derive(Clone)]
pub enum Below {
    /// KVM as it is.
    Plain,
    /// Simulated hardware, and whose it is like.
    Simulated(Hardware, Measuring),
    /// SEV-SNP.
    Snp(Arc<snp::Guest<KvmSnp>>),
    /// TDX.
    Tdx(Arc<tdx::Domain<KvmTdx, Courier>>),
}

impl Below {
    fn simulated(hardware: Box<dyn Simulated>, like: Measuring, cpuid: &mut CpuId) -> Self {
        hardware.change_cpuid(cpuid);
        Self::Simulated(Arc::new(Mutex::new(hardware)), like)
    }
}

/// A VM with its memory filled, and its first vCPU.
pub struct Loaded {
    pub memory: GuestMemoryMmap,
    pub cpuid: CpuId,
    pub clock: Clock,
    pub entry: u64,
    pub placed: Vec<Placed>,
    pub below: Below,
    pub made: Vec<Option<VcpuFd>>,
}

/// How memory is to be filled.
enum Plan<'a> {
    Plain(Layout<'a>),
    Snp(Box<dyn SimulatedSnp>, Measured),
    Tdx(Box<dyn SimulatedTdx>, Measured),
}

/// Fills it.
///
/// # Errors
/// Which step failed, and what to try.
pub fn load_vm(
    kvm: &Kvm,
    vm: &VmFd,
    borders: &[Border],
    phases: &mut Phases,
    options: &mut Options,
) -> Result<Loaded, VmError> {
    let machine = std::mem::take(&mut options.machine);
    let contexts = &options.contexts;
    let shares: Vec<Share<'_>> = contexts.iter().map(ContextOptions::share).collect();
    let plan = match machine {
        Machine::Plain => Plan::Plain(Layout::new(&shares, &options.segments, options.own_tables)?),
        Machine::Snp(_) | Machine::Tdx(_) => return Err(VmError::Shim("a plain VM for protected memory")),
        Machine::SimulatedSnp(hardware) => Plan::Snp(
            hardware,
            Measured::new(&contexts[0], Measuring::Snp, Backing::Ram)?,
        ),
        Machine::SimulatedTdx(hardware) => Plan::Tdx(
            hardware,
            Measured::new(&contexts[0], Measuring::Tdx, Backing::Ram)?,
        ),
    };
    let memory = match &plan {
        Plan::Plain(layout) => kvm::ram::reserve(layout.ram)?,
        Plan::Snp(_, measured) | Plan::Tdx(_, measured) => measured.memory.clone(),
    };
    add_memory(vm, 0, &memory, borders)?;
    // An OUT that KVM takes by itself would not raise #VC or #VE, as it does on hardware.
    if matches!(plan, Plan::Plain(_)) {
        for (index, border) in (0..).zip(borders) {
            add_doorbells(vm, index, border)?;
        }
    }
    phases.done("guest memory and its slots");
    let mut cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .step("reading KVM's CPUID")?;
    let first = vm.create_vcpu(0).step("creating vCPU 0")?;
    let tsc_khz = u64::from(first.get_tsc_khz().step("reading the TSC frequency")?);
    let offset = kvm::tsc_offset(&first).step("reading the guest's TSC")?;
    let clock = Clock::new(tsc_khz, offset);
    phases.done("first vCPU");
    let (entry, placed, below) = match plan {
        Plan::Plain(layout) => {
            let (entry, placed) = layout.load(&memory, tsc_khz)?;
            (entry, placed, Below::Plain)
        }
        Plan::Snp(mut hardware, measured) => {
            eprintln!("cloak: {}", hardware.notice());
            hardware.bind(GuestRam::new(measured.memory.clone()));
            let (_, entry, placed) =
                measured.launch_snp(&mut *hardware, &contexts[0], &cpuid, tsc_khz, false)?;
            let below = Below::simulated(hardware, Measuring::Snp, &mut cpuid);
            (entry, vec![placed], below)
        }
        Plan::Tdx(mut hardware, measured) => {
            eprintln!("cloak: {}", hardware.notice());
            hardware.bind(GuestRam::new(measured.memory.clone()));
            let (_, entry, placed) = measured.launch_tdx(&mut *hardware, &contexts[0], tsc_khz)?;
            let below = Below::simulated(hardware, Measuring::Tdx, &mut cpuid);
            (entry, vec![placed], below)
        }
    };
    phases.done("loading the shim");
    Ok(Loaded {
        memory,
        cpuid,
        clock,
        entry,
        placed,
        below,
        made: vec![Some(first)],
    })
}
