//! One VM: from options to the end of its programs.
//!
//! [`Options`] → [`prepare`], [`Prepared::start`] (RAM, shim, shared regions, OS services, first vCPUs) → [`Running::wait`].
//! The thread that calls `wait` owns the VM's state; vCPU threads, the signal thread and the time-slice threads send it
//! [`Event`]s.
//!
//! A VM holds one or more contexts. Each has vCPUs, frames, a shared region and an OS service that are its alone: no
//! vCPU ever changes from one context to another, so that none carries anything over.

pub mod anchors;
pub mod clock;
mod context;
pub mod error;
mod exception;
pub mod exec;
mod hidden;
pub mod load;
mod measured;
pub(crate) mod pages;
pub mod phases;
mod protected;
pub mod resident;
pub mod shared;
pub mod signals;
mod snp;
mod tdx;
mod ticker;
mod vcpu;
pub mod view;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use cloak_abi::layout::{MAX_CONTEXTS, MAX_RAM, MAX_VCPUS, MIN_RAM, doorbell_port};
use cloak_abi::ring::{SHARED_LEN, STATS};
use cloak_memory::page::ContextId;
use kvm_bindings::{CpuId, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use zeroize::Zeroizing;

use self::anchors::{Anchor, Anchors};
use self::clock::Clock;
use self::context::Context;
use self::error::{Step, VmError};
use self::exec::Execs;
use self::load::{Layout, Placed, Segment, Share};
use self::measured::{Backing, Measured};
use self::phases::Phases;
use self::protected::Protected;
use self::resident::{Paging, Resident};
use self::shared::SharedRegion;
use self::view::View;
use crate::control::folder::Bound;
use crate::control::server::{self, Member};
use crate::control::wire::ContextInfo;
use crate::image::Measuring;
use crate::image::registers::Registers;
use crate::jail;
use crate::kvm;
use crate::kvm::snp::IdBlock;
use crate::kvm::snp::kernel::KvmSnp;
use crate::kvm::tdx::kernel::KvmTdx;
use crate::os::handed;
use crate::platform::{GuestRam, Machine, Simulated, SimulatedSnp, SimulatedTdx};
use crate::tdvmcall::courier::Courier;

/// A VM.
#[derive(Debug)]
pub struct Options {
    /// The KVM device.
    pub device: PathBuf,
    /// 1..=[`MAX_CONTEXTS`].
    pub contexts: Vec<ContextOptions>,
    /// What contexts share.
    pub segments: Vec<Segment>,
    /// The socket on which the owner may ask for things; none: nobody can.
    pub control: Option<Bound>,
    /// Contexts edit their page tables themselves: only where there is one.
    pub own_tables: bool,
    /// Kind of machine.
    pub machine: Machine,
}

/// What to run in a context, and in what.
#[derive(Debug)]
pub struct ContextOptions {
    /// What callers of the control socket are told of it.
    pub info: ContextInfo,
    /// vCPUs, at least 1; all contexts' together at most [`MAX_VCPUS`].
    pub vcpus: usize,
    /// Guest RAM, bytes.
    pub memory: u64,
    /// Configuration for the libos ([`cloak_abi::config`]). Keys are in it.
    pub config: Zeroizing<Vec<u8>>,
    /// Identity of the context.
    pub identity: [u8; 48],
    /// What a measured launch binds it to: SHA-256 of the manifest.
    pub host_data: [u8; 32],
    /// The same of a domain: SHA-384.
    pub config_id: [u8; 48],
    /// Who vouches for an SNP guest, if there is somebody.
    pub id_block: Option<IdBlock>,
    /// Key that guest memory is sealed under; none: one for this run.
    pub memory_key: Option<Box<Zeroizing<[u8; 32]>>>,
    /// Anchors of protected volumes, by the numbers that the configuration names.
    pub anchors: Vec<Box<dyn Anchor>>,
    /// How much of its RAM may be plaintext; none: all of it.
    pub resident: Option<Resident>,
}

/// How a context ended.
#[derive(Debug)]
pub struct Ended {
    /// How its program ended, or why it could not go on.
    pub outcome: Result<Outcome, VmError>,
    /// What it did.
    pub statistics: Statistics,
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
    /// It could not be started: exit code for the caller, and why.
    Refused(u8, String),
}

/// Counters of a run, indexed by [`cloak_abi::ring::Stat`], and exits to the monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Counters that the libos left.
    pub guest: [u64; STATS],
    /// Exits to the monitor, of all vCPUs.
    pub exits: u64,
    /// Where the time went.
    pub phases: Phases,
    /// What the pager did, if there was one.
    pub paging: Option<Paging>,
}

type Failed = Arc<dyn Fn(cloak_memory::MemoryError) + Send + Sync>;

/// What other threads tell the owner of the VM.
#[derive(Debug)]
pub(crate) enum Event {
    /// The guest asks for vCPU n of the context.
    Start(u32),
    /// The program has ended, and the vCPU that said so with it.
    Exited,
    /// A vCPU can't go on.
    Failed(VmError),
    /// A vCPU has left the guest because it was told to.
    Left,
    /// The OS service has ended.
    ServiceGone,
}

/// A VM whose first vCPUs run.
pub struct Running {
    kvm_vm: Arc<VmFd>,
    /// Keeps guest RAM mapped.
    memory: GuestMemoryMmap,
    contexts: Vec<Context>,
    cpuid: CpuId,
    entry: u64,
    below: Below,
    /// vCPUs that were made with the VM and do not run yet.
    made: Vec<Option<VcpuFd>>,
    /// A vCPU that runs already when the guest asks for it.
    early: Option<u32>,
    sender: Sender<(usize, Event)>,
    events: Receiver<(usize, Event)>,
}

/// What a context has in common with its OS service.
pub struct Border {
    /// The shared region.
    pub shared: Arc<SharedRegion>,
    /// Rung by the guest's doorbell.
    pub doorbell: OwnedFd,
    /// The monitor's end and the service's of the socket for further standard streams.
    pub streams: Option<(OwnedFd, OwnedFd)>,
    /// One per vCPU.
    pub wakes: Vec<OwnedFd>,
}

/// Simulated hardware, as vCPU threads share it.
pub(crate) type Hardware = Arc<Mutex<Box<dyn Simulated>>>;

/// What is under a VM, as vCPU threads share it.
#[derive(Clone)]
pub(crate) enum Below {
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

/// The parts that must exist before the OS services are started.
pub struct Prepared {
    kvm: Kvm,
    vm: Arc<VmFd>,
    protected: Option<Protected>,
    /// By index of the context.
    pub borders: Vec<Border>,
    /// Where the time goes.
    pub phases: Phases,
    options: Options,
}

/// Opens KVM, makes the VM and its shared regions.
///
/// # Errors
/// Which step failed and what to try.
pub fn prepare(mut options: Options) -> Result<Prepared, VmError> {
    let mut phases = Phases::default();
    hidden::hide()?;
    let kvm = kvm::open(&options.device)?;
    check(&kvm, &options)?;
    let protected = Protected::of(&kvm, &mut options.machine)?;
    let vm = match &protected {
        Some(protected) => protected.vm(),
        None => Arc::new(kvm.create_vm().step("creating a VM (KVM_CREATE_VM)")?),
    };
    let borders = options
        .contexts
        .iter()
        .map(Border::new)
        .collect::<Result<_, _>>()?;
    phases.done("opening KVM, making the VM");
    Ok(Prepared {
        kvm,
        vm,
        protected,
        borders,
        phases,
        options,
    })
}

impl Border {
    /// The service's end of the socket for further standard streams.
    ///
    /// # Panics
    /// When the monitor has taken the ends already, which it does after the services have started.
    pub fn service_streams(&self) -> BorrowedFd<'_> {
        let (_, service) = self
            .streams
            .as_ref()
            .expect("taken once the services have started");
        service.as_fd()
    }

    fn new(options: &ContextOptions) -> Result<Self, VmError> {
        Ok(Self {
            shared: Arc::new(SharedRegion::create(options.vcpus as u32)?),
            doorbell: eventfd()?,
            streams: Some(
                handed::channel()
                    .map_err(io::Error::from)
                    .step("making a socket")?,
            ),
            wakes: (0..options.vcpus).map(|_| eventfd()).collect::<Result<_, _>>()?,
        })
    }
}

fn check(kvm: &Kvm, options: &Options) -> Result<(), VmError> {
    let contexts = options.contexts.len();
    if contexts == 0 || contexts > MAX_CONTEXTS || options.own_tables && contexts > 1 {
        return Err(VmError::Contexts {
            asked: contexts,
            most: MAX_CONTEXTS,
        });
    }
    if !matches!(options.machine, Machine::Plain) {
        check_measured(options)?;
    }
    let most = kvm.get_max_vcpus().min(MAX_VCPUS);
    let vcpus = options.contexts.iter().map(|c| c.vcpus).sum();
    if vcpus > most || options.contexts.iter().any(|c| c.vcpus == 0) {
        return Err(VmError::Cpus { asked: vcpus, most });
    }
    for context in &options.contexts {
        if context.memory < MIN_RAM {
            return Err(VmError::MemoryTooSmall {
                asked: context.memory >> 20,
                least: MIN_RAM >> 20,
            });
        }
        if context.memory > MAX_RAM {
            return Err(VmError::MemoryTooLarge {
                asked: context.memory >> 20,
                most: MAX_RAM >> 20,
            });
        }
    }
    let needed = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    for (cap, name) in needed {
        if !kvm.check_extension(cap) {
            let source = std::io::Error::other(format!("{name} is missing; use a newer kernel"));
            return Err(VmError::Kvm {
                step: "checking what KVM offers",
                source,
            });
        }
    }
    Ok(())
}

/// Why there is no view of a measured machine.
const NOT_OURS: &str = "the memory of a measured machine is not the monitor's to show";

/// What is there on plain KVM only.
fn check_measured(options: &Options) -> Result<(), VmError> {
    let not = |what, why| Err(VmError::NotOnPlatform { what, why });
    let contexts = &options.contexts;
    if contexts.len() > 1 || !options.own_tables {
        return not(
            "a VM of several contexts",
            "the kernel makes one from its measured image",
        );
    }
    Ok(())
}

impl Prepared {
    /// Fills guest RAM and starts the first vCPU of each context.
    ///
    /// # Errors
    /// Which step failed and what to try.
    pub fn start(self) -> Result<Running, VmError> {
        let Self {
            kvm,
            vm,
            protected,
            borders,
            mut phases,
            mut options,
        } = self;
        let Loaded {
            memory,
            cpuid,
            clock,
            entry,
            placed,
            below,
            made,
        } = match protected {
            Some(protected) => protected.load(&kvm, &borders, &mut phases, &options)?,
            None => load_vm(&kvm, &vm, &borders, &mut phases, &mut options)?,
        };
        let Options {
            contexts: all,
            control,
            ..
        } = options;
        let (sender, events) = channel();
        let mut contexts = Vec::new();
        let mut members = Vec::new();
        for (index, ((options, mut border), placed)) in all.into_iter().zip(borders).zip(placed).enumerate() {
            let failed: Failed = {
                let sender = sender.clone();
                // The receiver is gone only when the monitor is already ending.
                Arc::new(move |error| drop(sender.send((index, Event::Failed(VmError::Memory(error))))))
            };
            let id = ContextId(1 + index as u64);
            let mut key = options.memory_key;
            let paged = match &options.resident {
                Some(limit) => {
                    let failed = failed.clone();
                    let failed = move |error| failed(error);
                    Some(resident::start(limit, key.take(), &memory, id, &placed, failed)?)
                }
                None => None,
            };
            let (pager, paged) = paged.unzip();
            let anchors = Anchors::new(options.anchors, &memory, placed.anchors);
            let streams = border.streams.take();
            // The configuration ends here: keys are where they belong.
            let mut context = Context::new(index, border, placed, anchors, pager, clock);
            if control.is_some()
                && let Some((streams, _)) = streams
            {
                let allowed = options.info.exec;
                let execs = Execs::new(&memory, placed.exec, allowed, context.reach(), streams)?;
                let execs = Arc::new(execs);
                context.set_execs(execs.clone());
                members.push(Member {
                    info: options.info,
                    execs,
                    view: match paged {
                        _ if !matches!(below, Below::Plain) => View::none(NOT_OURS, id, &placed, failed),
                        Some(paged) => View::paged(paged, id, &placed, failed),
                        None => View::new(&memory, key, id, &placed, failed),
                    },
                });
            }
            contexts.push(context);
        }
        jail::enter_monitor()?;
        let mut running = Running {
            kvm_vm: vm,
            memory,
            contexts,
            cpuid,
            entry,
            below,
            made,
            early: None,
            sender,
            events,
        };
        if let Some(bound) = control {
            server::start(bound, members)?;
        }
        signals::forward(running.contexts.iter().map(Context::reach).collect());
        for index in 0..running.contexts.len() {
            running.contexts[index].start_ticker()?;
            let fd = running.create_vcpu(index, 0)?;
            let start = running.first_registers(index, 0)?;
            running.start_vcpu(index, 0, fd, start)?;
        }
        running.start_early()?;
        phases.done("threads");
        for context in &mut running.contexts {
            context.begin(&phases);
        }
        Ok(running)
    }
}

impl Running {
    /// Serves events until all programs have ended.
    ///
    /// # Errors
    /// When the VM could not go on.
    pub fn wait(mut self) -> Result<Vec<Ended>, VmError> {
        while self.contexts.iter().any(|context| context.ended.is_none()) {
            let Ok((index, event)) = self.events.recv() else {
                return Err(VmError::Shimmed("every vCPU thread has ended".to_owned()));
            };
            match event {
                Event::Start(own) if self.early == Some(own) => {}
                Event::Start(own) => {
                    let start = self.further_registers(index, own);
                    self.start_further(index, own, start);
                }
                Event::Exited => {
                    let context = &mut self.contexts[index];
                    context.left += 1;
                    let outcome = context.outcome();
                    context.end(outcome);
                }
                Event::Failed(error) => {
                    let context = &mut self.contexts[index];
                    context.left += 1;
                    let error = context.explain(error);
                    context.end(Err(error));
                }
                Event::Left => self.contexts[index].left += 1,
                Event::ServiceGone => self.contexts[index].service_gone(),
            }
            self.contexts[index].release(&self.memory);
        }
        Ok(self
            .contexts
            .into_iter()
            .filter_map(|context| context.ended)
            .collect())
    }

    /// vCPU `own` of context `index`.
    fn create_vcpu(&mut self, index: usize, own: usize) -> Result<VcpuFd, VmError> {
        let number = self.contexts[index].number_of(own)?;
        if let Some(made) = self.made.get_mut(number as usize).and_then(Option::take) {
            return Ok(made);
        }
        if matches!(self.below, Below::Snp(_) | Below::Tdx(_)) {
            return Err(VmError::Shim("start of a vCPU that was not launched"));
        }
        self.kvm_vm
            .create_vcpu(u64::from(number))
            .step("creating a further vCPU")
    }

    /// How vCPU `own` of context `index` starts, where the monitor says it.
    fn first_registers(&self, index: usize, own: usize) -> Result<Registers, VmError> {
        let context = &self.contexts[index];
        Ok(Registers {
            rip: self.entry,
            root: context.root(),
            rdi: u64::from(context.number_of(own)?),
        })
    }

    /// How a vCPU starts that the guest asks for: the guest makes its state where that is measured.
    fn further_registers(&self, index: usize, own: u32) -> Result<Registers, VmError> {
        let Below::Simulated(hardware, Measuring::Snp) = &self.below else {
            return self.first_registers(index, own as usize);
        };
        let created = hardware
            .lock()
            .ok()
            .and_then(|mut hardware| hardware.created(own));
        created.ok_or(VmError::Shim("start of a vCPU that has no state"))
    }

    /// Starts a vCPU that the guest asked for; a failure ends its context.
    fn start_further(&mut self, index: usize, own: u32, start: Result<Registers, VmError>) {
        let started = start.and_then(|start| {
            let fd = self.create_vcpu(index, own as usize)?;
            self.start_vcpu(index, own as usize, fd, start)
        });
        if let Err(error) = started {
            self.contexts[index].end(Err(error));
        }
    }

    fn start_vcpu(&mut self, index: usize, own: usize, fd: VcpuFd, start: Registers) -> Result<(), VmError> {
        let context = &mut self.contexts[index];
        let number = context.number_of(own)?;
        match &self.below {
            Below::Plain => kvm::prepare_vcpu(&fd, &self.cpuid, start)?,
            Below::Simulated(_, Measuring::Snp) => {
                kvm::prepare_measured_vcpu(&fd, &self.cpuid, number, start)
                    .step("setting a measured vCPU's registers")?;
            }
            Below::Simulated(_, Measuring::Tdx) => {
                kvm::prepare_domain_vcpu(&fd, &self.cpuid, number)
                    .step("setting the registers of a domain's vCPU")?;
            }
            // Its state is the guest's, since the launch measured it or the guest made it; or the module's.
            Below::Snp(_) | Below::Tdx(_) => {}
        }
        let ram = GuestRam::new(self.memory.clone());
        context.start_vcpu(own, fd, self.sender.clone(), self.below.clone(), ram)
    }

    /// What a hypervisor does that starts a domain's vCPU before it is asked for.
    fn start_early(&mut self) -> Result<(), VmError> {
        let Below::Simulated(hardware, _) = &self.below else {
            return Ok(());
        };
        if hardware.lock().is_ok_and(|hardware| hardware.starts_early()) {
            let fd = self.create_vcpu(0, 1)?;
            let start = self.first_registers(0, 1)?;
            self.start_vcpu(0, 1, fd, start)?;
            self.early = Some(1);
        }
        Ok(())
    }

    /// Where to report the end of a context's OS service.
    pub fn on_service_end(&self, context: usize) -> impl Fn() + Send + 'static {
        let sender = self.sender.clone();
        move || {
            // The receiver is gone only when the monitor is already ending.
            let _ = sender.send((context, Event::ServiceGone));
        }
    }
}

/// A VM with its memory filled, and its first vCPU.
struct Loaded {
    memory: GuestMemoryMmap,
    cpuid: CpuId,
    clock: Clock,
    entry: u64,
    placed: Vec<Placed>,
    below: Below,
    made: Vec<Option<VcpuFd>>,
}

/// How memory is to be filled.
enum Plan<'a> {
    Plain(Layout<'a>),
    Snp(Box<dyn SimulatedSnp>, Measured),
    Tdx(Box<dyn SimulatedTdx>, Measured),
}

fn load_vm(
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

impl ContextOptions {
    fn share(&self) -> Share<'_> {
        Share {
            memory: self.memory,
            vcpus: self.vcpus as u32,
            config: &self.config,
            identity: self.identity,
        }
    }
}

/// Ordinary memory, in the slots from `first` on.
fn add_memory(vm: &VmFd, first: u32, memory: &GuestMemoryMmap, borders: &[Border]) -> Result<(), VmError> {
    let ram = memory
        .iter()
        .map(|r| (r.start_addr().raw_value(), r.len(), r.as_ptr() as u64));
    let shared = (0..).zip(borders).map(|(index, border)| {
        let at = load::shared_gpa(index);
        (at, SHARED_LEN as u64, border.shared.host_address())
    });
    for (slot, (guest_phys_addr, memory_size, userspace_addr)) in (first..).zip(ram.chain(shared)) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: the mappings live as long as the process (guest RAM is never unmapped, shared regions
        // neither), and nobody else in it keeps references into them.
        unsafe { vm.set_user_memory_region(region) }
            .step("giving the VM its memory (KVM_SET_USER_MEMORY_REGION)")?;
    }
    Ok(())
}

/// Value 0 on the context's doorbell port wakes its OS service, value 1 + n its vCPU n, without a return to the monitor.
fn add_doorbells(vm: &VmFd, context: u32, border: &Border) -> Result<(), VmError> {
    let port = IoEventAddress::Pio(u64::from(doorbell_port(context)));
    for (value, fd) in (0u32..).zip(std::iter::once(&border.doorbell).chain(&border.wakes)) {
        let event = borrowed(fd);
        vm.register_ioevent(&event, &port, value)
            .step("registering a doorbell (KVM_IOEVENTFD)")?;
        std::mem::forget(event);
    }
    Ok(())
}

fn borrowed(fd: &OwnedFd) -> vmm_sys_util::eventfd::EventFd {
    // SAFETY: an eventfd; the caller forgets the result, so it is not closed twice.
    unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(fd.as_raw_fd()) }
}

fn eventfd() -> Result<OwnedFd, VmError> {
    // SAFETY: constants; the result is checked.
    let raw = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if raw < 0 {
        return Err(VmError::last_os("making an eventfd"));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
