//! One VM: from options to the program's end.
//!
//! [`Options`] → [`prepare`], [`Prepared::start`] (RAM, shim, shared region, OS service, first vCPU) → [`Running::wait`]. The thread
//! that calls `wait` owns the VM's state; vCPU threads, the signal thread and the time-slice thread send it
//! [`Event`]s.

pub mod anchors;
pub mod clock;
pub mod error;
mod hidden;
pub mod load;
pub mod phases;
pub mod resident;
pub mod shared;
pub mod signals;
mod ticker;
mod vcpu;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use cloak_abi::layout::{DOORBELL_PORT, LARGE, MAX_RAM, MAX_VCPUS, MIN_RAM, SHARED_GPA};
use cloak_abi::ring::{SHARED_LEN, STATS, Stat};
use cloak_memory::pager::Pager;
use kvm_bindings::{CpuId, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use zeroize::Zeroizing;

use self::anchors::{Anchor, Anchors};
use self::clock::Clock;
use self::error::{Step, VmError};
use self::phases::Phases;
use self::resident::{Paging, Resident};
use self::shared::SharedRegion;
use self::vcpu::{Handle, Runner};
use crate::jail;
use crate::kvm::{self, Start};

/// What to run, and in what.
#[derive(Debug)]
pub struct Options {
    /// The KVM device.
    pub device: PathBuf,
    /// vCPUs, 1..=[`MAX_VCPUS`].
    pub vcpus: usize,
    /// Guest RAM, bytes.
    pub memory: u64,
    /// Configuration for the libos ([`cloak_abi::config`]). Keys are in it.
    pub config: Zeroizing<Vec<u8>>,
    /// Identity of the context.
    pub identity: [u8; 48],
    /// Key that guest memory is sealed under; none: one for this run.
    pub memory_key: Option<Box<Zeroizing<[u8; 32]>>>,
    /// Anchors of protected volumes, by the numbers that the configuration names.
    pub anchors: Vec<Box<dyn Anchor>>,
    /// The VM has one context, which edits its page tables itself.
    pub own_tables: bool,
    /// How much of guest RAM may be plaintext; none: all of it.
    pub resident: Option<Resident>,
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

/// What other threads tell the owner of the VM.
#[derive(Debug)]
pub(crate) enum Event {
    /// The guest asks for vCPU n.
    Start(u32),
    /// The program has ended.
    Exited,
    /// A vCPU can't go on.
    Failed(VmError),
    /// The OS service has ended.
    ServiceGone,
}

/// A VM whose first vCPU runs.
pub struct Running {
    kvm_vm: VmFd,
    /// Keeps guest RAM mapped.
    _memory: GuestMemoryMmap,
    shared: Arc<SharedRegion>,
    handles: Arc<[Arc<Handle>]>,
    cpuid: CpuId,
    entry: u64,
    clock: Clock,
    ticker: ticker::Ticker,
    pager: Option<Pager>,
    anchors: Arc<Anchors>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    phases: Phases,
    /// The guest's TSC when its first vCPU started.
    started: u64,
}

/// The parts that must exist before the OS service is started.
pub struct Prepared {
    kvm: Kvm,
    vm: VmFd,
    /// The shared region.
    pub shared: Arc<SharedRegion>,
    /// Rung by the guest's doorbell.
    pub doorbell: OwnedFd,
    /// One per vCPU.
    pub wakes: Vec<OwnedFd>,
    /// Where the time goes.
    pub phases: Phases,
    options: Options,
}

/// Opens KVM, makes the VM and its shared region.
///
/// # Errors
/// Which step failed and what to try.
pub fn prepare(options: Options) -> Result<Prepared, VmError> {
    let mut phases = Phases::default();
    hidden::hide()?;
    let kvm = kvm::open(&options.device)?;
    check(&kvm, &options)?;
    let vm = kvm.create_vm().step("creating a VM (KVM_CREATE_VM)")?;
    let shared = Arc::new(SharedRegion::create(options.vcpus as u32)?);
    let doorbell = eventfd()?;
    let wakes = (0..options.vcpus).map(|_| eventfd()).collect::<Result<_, _>>()?;
    phases.done("opening KVM, making the VM");
    Ok(Prepared {
        kvm,
        vm,
        shared,
        doorbell,
        wakes,
        phases,
        options,
    })
}

fn check(kvm: &Kvm, options: &Options) -> Result<(), VmError> {
    let most = kvm.get_max_vcpus().min(MAX_VCPUS);
    if options.vcpus == 0 || options.vcpus > most {
        return Err(VmError::Cpus {
            asked: options.vcpus,
            most,
        });
    }
    if options.memory < MIN_RAM {
        return Err(VmError::MemoryTooSmall {
            asked: options.memory >> 20,
            least: MIN_RAM >> 20,
        });
    }
    if options.memory > MAX_RAM {
        return Err(VmError::MemoryTooLarge {
            asked: options.memory >> 20,
            most: MAX_RAM >> 20,
        });
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

impl Prepared {
    /// Fills guest RAM and starts the first vCPU.
    ///
    /// # Errors
    /// Which step failed and what to try.
    pub fn start(self) -> Result<Running, VmError> {
        let Self {
            kvm,
            vm,
            shared,
            doorbell,
            wakes,
            mut phases,
            options,
        } = self;
        let ram = options.memory & !(LARGE - 1);
        let memory = kvm::ram::reserve(ram)?;
        add_memory(&vm, &memory, &shared)?;
        add_doorbells(&vm, &doorbell, &wakes)?;
        phases.done("guest memory and its slots");
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .step("reading KVM's CPUID")?;
        let first = vm.create_vcpu(0).step("creating vCPU 0")?;
        let tsc_khz = u64::from(first.get_tsc_khz().step("reading the TSC frequency")?);
        let clock = Clock::new(tsc_khz, guest_tsc_offset(&first)?);
        phases.done("first vCPU");
        let plan = load::Plan {
            ram,
            vcpus: options.vcpus as u32,
            tsc_khz,
            config: &options.config,
            identity: options.identity,
            own_tables: options.own_tables,
        };
        let load::Loaded {
            entry,
            anchors,
            free_frames,
        } = load::load(&memory, &plan)?;
        let anchors = Arc::new(Anchors::new(options.anchors, &memory, anchors));
        // Keys are where they belong.
        drop(options.config);
        phases.done("loading the shim");
        let handles: Arc<[_]> = wakes
            .into_iter()
            .map(|wake| Arc::new(Handle::new(wake)))
            .collect();
        let (sender, events) = channel();
        let pager = match &options.resident {
            Some(limit) => {
                let failed = sender.clone();
                let failed = move |error| {
                    // The receiver is gone only when the monitor is already ending.
                    let _ = failed.send(Event::Failed(VmError::Memory(error)));
                };
                Some(resident::start(
                    limit,
                    options.memory_key,
                    &memory,
                    free_frames,
                    failed,
                )?)
            }
            None => None,
        };
        jail::enter_monitor()?;
        let ticker = ticker::Ticker::start(shared.clone(), handles.clone(), clock)?;
        let mut running = Running {
            kvm_vm: vm,
            _memory: memory,
            shared,
            handles,
            cpuid,
            entry,
            clock,
            ticker,
            pager,
            anchors,
            sender,
            events,
            phases,
            started: 0,
        };
        signals::forward(running.shared.clone(), running.handles.clone());
        running.start_vcpu(0, first)?;
        running.started = running.clock.guest_now();
        running.phases.done("threads");
        Ok(running)
    }
}

impl Running {
    /// Serves events until the program has ended.
    ///
    /// # Errors
    /// When the VM could not go on.
    pub fn wait(self) -> Result<(Outcome, Statistics), VmError> {
        loop {
            match self.events.recv() {
                Ok(Event::Start(index)) => {
                    let fd = self
                        .kvm_vm
                        .create_vcpu(u64::from(index))
                        .step("creating a further vCPU")?;
                    self.start_vcpu(index as usize, fd)?;
                }
                Ok(Event::Exited) => return self.outcome(),
                Ok(Event::Failed(error)) => return Err(self.explain(error)),
                Ok(Event::ServiceGone) => self.service_gone(),
                Err(_) => return Err(VmError::Shimmed("every vCPU thread has ended".to_owned())),
            }
        }
    }

    fn start_vcpu(&self, index: usize, fd: VcpuFd) -> Result<(), VmError> {
        kvm::prepare_vcpu(
            &fd,
            &self.cpuid,
            Start {
                entry: self.entry,
                index: index as u64,
            },
        )?;
        let handle = self
            .handles
            .get(index)
            .ok_or(VmError::Shim("start of a vCPU that does not exist"))?;
        let runner = Runner {
            index,
            fd,
            handle: handle.clone(),
            all: self.handles.clone(),
            shared: self.shared.clone(),
            anchors: self.anchors.clone(),
            events: self.sender.clone(),
            clock: self.clock,
            ticker: self.ticker.clone(),
        };
        self.ticker.wake();
        thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(128 << 10)
            .spawn(move || runner.run())
            .step("starting a vCPU thread")?;
        Ok(())
    }

    /// No answer will come any more: the guest must learn it, wherever it waits.
    fn service_gone(&self) {
        self.shared.header().service_gone.store(1, Ordering::SeqCst);
        self.handles.iter().for_each(|h| h.kick());
    }

    fn statistics(&self) -> Statistics {
        let header = self.shared.header();
        let mut guest = [0; STATS];
        for (to, from) in guest.iter_mut().zip(&header.stats) {
            *to = from.load(Ordering::Relaxed);
        }
        let mut phases = self.phases.clone();
        let entered = guest[Stat::Entered as usize].saturating_sub(self.started);
        let boot = self.clock.duration(entered);
        phases.done_in_two("shim's start, loading the program", boot, "the program");
        Statistics {
            guest,
            phases,
            paging: self.pager.as_ref().map(|p| Paging::of(p.counters())),
            exits: self.handles.iter().map(|h| h.exits.load(Ordering::Relaxed)).sum(),
        }
    }

    fn message(&self) -> String {
        let header = self.shared.header();
        let words: Vec<u8> = header
            .message
            .iter()
            .flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        let len = (header.message_len.load(Ordering::Acquire) as usize).min(words.len());
        String::from_utf8_lossy(&words[..len]).into_owned()
    }

    fn outcome(&self) -> Result<(Outcome, Statistics), VmError> {
        let status = self.shared.header().exit_status.load(Ordering::Acquire);
        let code = status as u8;
        let outcome = match status >> 32 {
            1 => Outcome::Exited(code),
            2 => Outcome::Signalled(code),
            3 => Outcome::Refused(code, self.message()),
            _ => return Err(VmError::Shimmed(self.message())),
        };
        Ok((outcome, self.statistics()))
    }

    /// A kernel stop says more when the libos left a message before it.
    fn explain(&self, error: VmError) -> VmError {
        let message = self.message();
        if message.is_empty() {
            error
        } else {
            VmError::Shimmed(format!("{message} ({error})"))
        }
    }

    /// Where to report the end of the OS service.
    pub fn on_service_end(&self) -> impl Fn() + Send + 'static {
        let sender = self.sender.clone();
        move || {
            // The receiver is gone only when the monitor is already ending.
            let _ = sender.send(Event::ServiceGone);
        }
    }
}

fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap, shared: &SharedRegion) -> Result<(), VmError> {
    let mut slots: Vec<(u64, u64, u64)> = memory
        .iter()
        .map(|r| (r.start_addr().raw_value(), r.len(), r.as_ptr() as u64))
        .collect();
    slots.push((SHARED_GPA, SHARED_LEN as u64, shared.host_address()));
    for (slot, (guest_phys_addr, memory_size, userspace_addr)) in (0..).zip(slots) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: the mappings live as long as the process (guest RAM is never unmapped, the shared region
        // neither), and nobody else in it keeps references into them.
        unsafe { vm.set_user_memory_region(region) }
            .step("giving the VM its memory (KVM_SET_USER_MEMORY_REGION)")?;
    }
    Ok(())
}

/// Value 0 on the doorbell port wakes the OS service, value 1 + n vCPU n, without a return to the monitor.
fn add_doorbells(vm: &VmFd, doorbell: &OwnedFd, wakes: &[OwnedFd]) -> Result<(), VmError> {
    let port = IoEventAddress::Pio(u64::from(DOORBELL_PORT));
    for (value, fd) in (0u32..).zip(std::iter::once(doorbell).chain(wakes)) {
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

/// Guest TSC minus host TSC, as a wrapping difference.
fn guest_tsc_offset(vcpu: &VcpuFd) -> Result<u64, VmError> {
    let entry = kvm_bindings::kvm_msr_entry {
        index: 0x10,
        ..Default::default()
    };
    let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).map_err(|_| VmError::Shim("MSR list"))?;
    vcpu.get_msrs(&mut msrs).step("reading the guest's TSC")?;
    // SAFETY: every x86-64 has it.
    let host = unsafe { std::arch::x86_64::_rdtsc() };
    Ok(msrs.as_slice()[0].data.wrapping_sub(host))
}
