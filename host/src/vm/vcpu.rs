//! One thread per vCPU: runs it, lets it sleep, injects kicks.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, MutexGuard};

use cloak_abi::layout::{KICK_VECTOR, SIM_PORT, doorbell_port, monitor_port};
use cloak_abi::sim::SimCall;
use cloak_abi::stop::Stop;
use cloak_abi::vcpu::MonitorCall;
use kvm_bindings::{KVM_MEMORY_EXIT_FLAG_PRIVATE, KVM_SYSTEM_EVENT_SEV_TERM};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::anchors::Anchors;
use super::error::{Step, VmError};
use super::exec::Execs;
use super::fill::Below;
use super::running::Event;
use super::shared::SharedRegion;
use super::ticker::Ticker;
use super::{clock, exception, pages, snp, tdx};
use crate::kvm;
use crate::kvm::snp::{KVM_EXIT_SNP_REQ_CERTS, KVM_HC_MAP_GPA_RANGE};
use crate::kvm::tdx::abi::{KVM_EXIT_TDX, KVM_SYSTEM_EVENT_TDX_FATAL};
use crate::kvm::tdx::kernel;
use crate::platform::{GuestRam, Injection, Out, Reply, Simulated};

/// The signal that makes a vCPU thread leave the guest. Its handler does nothing.
/// A real-time one: programs get all the others.
pub const KICK_SIGNAL: libc::c_int = 63;

/// What others need to reach a vCPU.
#[derive(Debug)]
pub struct Handle {
    /// Wakes it from a halt; the OS service and the guest's doorbell write it too.
    pub wake: OwnedFd,
    kick: AtomicBool,
    stop: AtomicBool,
    active: AtomicBool,
    thread: AtomicI32,
    immediate: AtomicU64,
    /// Exits to the monitor, for `--stats`.
    pub exits: AtomicU64,
}

impl Handle {
    /// A vCPU that is not started yet.
    #[must_use]
    pub fn new(wake: OwnedFd) -> Self {
        Self {
            wake,
            kick: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            active: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            immediate: AtomicU64::new(0),
            exits: AtomicU64::new(0),
        }
    }

    /// Makes the vCPU take a [`KICK_VECTOR`] interrupt soon, wherever it is.
    pub fn kick(&self) {
        self.kick.store(true, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // A signal that comes just before KVM_RUN would be lost: the flag makes the run return at once.
            let immediate = self.immediate.load(Ordering::SeqCst) as *const AtomicU8;
            // SAFETY: points at `immediate_exit` of the vCPU's run page, which is mapped while the thread is set.
            unsafe { (*immediate).store(1, Ordering::SeqCst) };
            // SAFETY: a thread of this process; an id that has just ended gives ESRCH.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, KICK_SIGNAL) };
        }
        self.wake();
    }

    /// Makes the vCPU leave the guest for good.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Whether it runs, or is about to: its thread has started, and does not wait in a halt.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    pub(super) fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::SeqCst);
    }

    /// Whether a kick waits to be taken.
    #[cfg(test)]
    pub(super) fn is_kicked(&self) -> bool {
        self.kick.load(Ordering::SeqCst)
    }

    /// Ends its halt, if it is in one.
    pub fn wake(&self) {
        ring(&self.wake);
    }
}

/// The thread's whole life.
pub struct Runner {
    /// Index of its context.
    pub context: usize,
    /// The context's number of it.
    pub index: usize,
    pub fd: VcpuFd,
    pub handle: Arc<Handle>,
    /// The vCPUs of its context.
    pub all: Arc<[Arc<Handle>]>,
    pub shared: Arc<SharedRegion>,
    pub anchors: Arc<Anchors>,
    pub execs: Option<Arc<Execs>>,
    pub events: Sender<(usize, Event)>,
    pub clock: clock::Clock,
    pub ticker: Ticker,
    /// What is under it.
    pub below: Below,
    /// Where it pushes frames of exceptions.
    pub ram: GuestRam,
    /// Rung where KVM does not do it by itself.
    pub doorbell: Arc<OwnedFd>,
}

impl Runner {
    /// Runs the vCPU until the VM ends.
    pub fn run(mut self) {
        let run = self.fd.get_kvm_run();
        self.handle
            .immediate
            .store(&raw mut run.immediate_exit as u64, Ordering::SeqCst);
        // SAFETY: no arguments.
        self.handle
            .thread
            .store(unsafe { libc::gettid() }, Ordering::SeqCst);
        self.enter();
        let event = loop {
            match self.step() {
                Ok(None) => {}
                Ok(Some(event)) => break event,
                Err(error) => break Event::Failed(error),
            }
        };
        self.handle.set_active(false);
        self.handle.thread.store(0, Ordering::SeqCst);
        // The receiver is gone only when the monitor is already ending.
        let _ = self.events.send((self.context, event));
    }

    /// It may run a program from now on.
    fn enter(&self) {
        self.handle.set_active(true);
        self.ticker.wake();
    }

    fn step(&mut self) -> Result<Option<Event>, VmError> {
        if self.handle.stop.load(Ordering::SeqCst) {
            return Ok(Some(Event::Left));
        }
        self.prepare_kick()?;
        // The kernel uses the first context's, the libos its own: the kernel opened no others to it. The vCPU says
        // whose call it is.
        let ports = [monitor_port(0), monitor_port(self.context as u32)];
        let exit = self.fd.run();
        match exit {
            Ok(VcpuExit::IoOut(port, data)) if matches!(self.below, Below::Simulated(..)) => {
                let (size, value) = (data.len() as u8, value_of(data));
                if port == SIM_PORT {
                    self.hardware_call(value)
                } else {
                    self.intercept(port, size, value).map(|()| None)
                }
            }
            Ok(VcpuExit::IoOut(port, data)) if ports.contains(&port) => {
                let value = value_of(data);
                self.monitor_call(value)
            }
            Ok(VcpuExit::IoOut(..)) => Ok(None),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Ok(None),
            Ok(VcpuExit::Hypercall(call)) if call.nr == KVM_HC_MAP_GPA_RANGE => {
                let arguments = call.args;
                self.page_state(&arguments)
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_SNP_REQ_CERTS)) => self.certificates(),
            Ok(VcpuExit::Unsupported(KVM_EXIT_TDX)) => self.domain_call(),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_TDX_FATAL, data)) => Err(tdx::gave_up(data)),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SEV_TERM, data)) => {
                Err(snp::terminated(data.first().copied().unwrap_or_default()))
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, .. }) => Err(pages::touched(
                gpa,
                flags & u64::from(KVM_MEMORY_EXIT_FLAG_PRIVATE) != 0,
            )),
            Ok(other) => {
                let what = format!("{other:?}");
                Err(self.stuck(what))
            }
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => Ok(None),
            Err(e) => {
                let what = std::io::Error::from_raw_os_error(e.errno()).to_string();
                Err(self.stuck(what))
            }
        }
    }

    /// Injects a pending kick when the guest can take it, or asks KVM to tell when it can.
    fn prepare_kick(&mut self) -> Result<(), VmError> {
        self.fd.set_kvm_immediate_exit(0);
        if !self.handle.kick.load(Ordering::SeqCst) {
            return Ok(());
        }
        if let Below::Tdx(domain) = &self.below {
            self.handle.kick.store(false, Ordering::SeqCst);
            // One that comes before the vCPU has turned its interrupts on is lost, and raised again at the next exit.
            if !domain.kick(self.index as u32)? {
                self.handle.kick.store(true, Ordering::SeqCst);
            }
            return Ok(());
        }
        let run = self.fd.get_kvm_run();
        if run.ready_for_interrupt_injection != 0 && run.if_flag != 0 {
            run.request_interrupt_window = 0;
            self.handle.kick.store(false, Ordering::SeqCst);
            return inject(&self.fd);
        }
        run.request_interrupt_window = 1;
        Ok(())
    }

    /// An OUT of the guest's on simulated hardware, as KVM takes one of a real guest's: by its GHCB.
    fn port_out(&mut self, port: u16, value: u32) -> Result<Option<Event>, VmError> {
        if port == doorbell_port(self.context as u32) {
            match value.checked_sub(1).map(|number| self.all.get(number as usize)) {
                None => ring(&self.doorbell),
                Some(Some(other)) => other.wake(),
                Some(None) => {}
            }
            Ok(None)
        } else if port == monitor_port(self.context as u32) {
            self.monitor_call(value)
        } else {
            Ok(None)
        }
    }

    /// An OUT that the guest executes itself, which is not for it to do: the hardware says what comes of it.
    fn intercept(&mut self, port: u16, size: u8, value: u32) -> Result<(), VmError> {
        // Where the instruction is depends on the host, until it is over.
        self.fd.set_kvm_immediate_exit(1);
        if let Ok(other) = self.fd.run() {
            let what = format!("{other:?} in the middle of an instruction");
            return Err(self.stuck(what));
        }
        self.fd.set_kvm_immediate_exit(0);
        let system = self.fd.get_sregs().step("reading a vCPU's system registers")?;
        let mut general = self.fd.get_regs().step("reading a vCPU's registers")?;
        let out = Out {
            port,
            size,
            value,
            user: system.cs.selector & 3 != 0,
        };
        let event = self.hardware()?.intercept(self.index as u32, out);
        if !event.behind {
            general.rip = general.rip.wrapping_sub(out.instruction_len());
            self.fd.set_regs(&general).step("setting a vCPU's registers")?;
        }
        self.deliver(event)
    }

    fn deliver(&mut self, event: Injection) -> Result<(), VmError> {
        exception::deliver(&self.fd, &self.ram, event)?;
        // No interrupt is taken before the handler says so.
        self.fd.get_kvm_run().if_flag = 0;
        Ok(())
    }

    /// `KVM_EXIT_HYPERCALL`: pages are to be private, or shared.
    fn page_state(&mut self, arguments: &[u64; 6]) -> Result<Option<Event>, VmError> {
        let result = match &self.below {
            Below::Snp(guest) => guest.pages.change(arguments)?,
            Below::Tdx(domain) => domain.pages.change(arguments)?,
            _ => return Err(self.stuck("a page-state change on this machine".to_owned())),
        };
        // The exit was a hypercall's, so this is the part of the union that counts.
        self.fd.get_kvm_run().__bindgen_anon_1.hypercall.ret = result;
        Ok(None)
    }

    /// `KVM_EXIT_SNP_REQ_CERTS`: address, pages, result.
    fn certificates(&mut self) -> Result<Option<Event>, VmError> {
        let Below::Snp(guest) = &self.below else {
            return Err(self.stuck("a request for certificates on this machine".to_owned()));
        };
        // SAFETY: bytes of the union that the exit has filled; the three words begin the union, whose padding has 256 bytes.
        let padding = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.padding };
        let mut words = [0u64; 3];
        for (word, bytes) in words.iter_mut().zip(padding.chunks_exact(8)) {
            *word = u64::from_ne_bytes(std::array::from_fn(|i| bytes[i] as u8));
        }
        let (pages, result) = guest.certificates(words[0], words[1]);
        let answer = [words[0], pages, result].map(u64::to_ne_bytes);
        for (to, byte) in padding.iter_mut().zip(answer.as_flattened()) {
            *to = *byte as _;
        }
        Ok(None)
    }

    /// `KVM_EXIT_TDX`: a call of the domain's that is not KVM's to answer.
    fn domain_call(&mut self) -> Result<Option<Event>, VmError> {
        let Below::Tdx(domain) = &self.below else {
            return Err(self.stuck("a domain's call on this machine".to_owned()));
        };
        let run = self.fd.get_kvm_run();
        let mut exit = kernel::exit(run);
        domain.call(self.index as u32, &mut exit);
        kernel::answer(run, &exit);
        Ok(None)
    }

    fn hardware(&self) -> Result<MutexGuard<'_, Box<dyn Simulated>>, VmError> {
        let Below::Simulated(hardware, _) = &self.below else {
            return Err(self.stuck("a call of simulated hardware without any".to_owned()));
        };
        match hardware.lock() {
            Ok(hardware) => Ok(hardware),
            Err(_) => Err(self.stuck("the simulated hardware has failed".to_owned())),
        }
    }

    fn monitor_call(&mut self, value: u32) -> Result<Option<Event>, VmError> {
        self.handle.exits.fetch_add(1, Ordering::Relaxed);
        match MonitorCall::decode(value) {
            Some((MonitorCall::Halt, _)) => {
                self.halt();
                Ok(None)
            }
            Some((MonitorCall::Kick, target)) => {
                if let Some(other) = self.all.get(target as usize) {
                    other.kick();
                }
                Ok(None)
            }
            Some((MonitorCall::Start, target)) => {
                // The receiver is gone only when the monitor is already ending.
                let _ = self.events.send((self.context, Event::Start(target)));
                Ok(None)
            }
            Some((MonitorCall::Anchor, number)) => self.anchors.call(number).map(|()| None),
            Some((MonitorCall::Ended, slot)) => {
                let execs = self.execs.as_ref();
                let execs = execs.ok_or(VmError::Shim("the end of a process that nobody started"))?;
                execs.ended(slot).map(|()| None)
            }
            Some((MonitorCall::Exit, _)) => Ok(Some(Event::Exited)),
            Some((MonitorCall::Panic, reason)) => Err(self.stuck(format!("kernel stop {reason:#x}"))),
            None => Err(self.stuck(format!("unknown monitor call {value:#x}"))),
        }
    }

    /// What the guest asks of simulated hardware.
    fn hardware_call(&mut self, value: u32) -> Result<Option<Event>, VmError> {
        let Some(call) = SimCall::decode(value) else {
            return Err(self.stuck(format!("unknown call of simulated hardware {value:#x}")));
        };
        let mut registers = self.fd.get_regs().step("reading a vCPU's registers")?;
        let arguments = [registers.rdi, registers.rsi];
        if call == SimCall::VectorState {
            return kvm::set_vector_state(&self.fd, arguments[0]).map(|()| None);
        }
        let index = self.index as u32;
        let (reply, injected) = {
            let mut hardware = self.hardware()?;
            (hardware.call(index, call, arguments), hardware.injected(index))
        };
        let (result, out) = match reply {
            Reply::Value(value) => (value, None),
            Reply::Out(value, port, data) => (value, Some((port, data))),
            Reply::Terminated(stop) => {
                let text = stop.map_or("for a reason that is not known", Stop::text);
                return Err(VmError::Stopped(text));
            }
        };
        registers.rax = result;
        self.fd.set_regs(&registers).step("setting a vCPU's registers")?;
        if let Some(event) = injected {
            self.fd.set_kvm_immediate_exit(1);
            // The instruction is over then.
            let _ = self.fd.run();
            self.fd.set_kvm_immediate_exit(0);
            self.deliver(event)?;
        }
        out.map_or(Ok(None), |(port, data)| self.port_out(port, data))
    }

    /// Sleeps until woken or until the deadline that the guest left in its queue page.
    fn halt(&self) {
        let deadline = self.shared.queue(self.index).deadline.load(Ordering::SeqCst);
        let mut poll = libc::pollfd {
            fd: self.handle.wake.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = self.clock.until(deadline);
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        self.handle.set_active(false);
        // SAFETY: one pollfd, an optional timespec; a signal (EINTR) is as good as a wake-up.
        unsafe { libc::ppoll(&raw mut poll, 1, timeout, std::ptr::null()) };
        let mut drained = [0u8; 8];
        // SAFETY: a non-blocking eventfd; eight bytes.
        unsafe { libc::read(self.handle.wake.as_raw_fd(), drained.as_mut_ptr().cast(), 8) };
        self.enter();
    }

    fn stuck(&self, what: String) -> VmError {
        let registers = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(r), Ok(s)) => format!(
                "rip {:#x} rsp {:#x} rax {:#x} rdi {:#x} rsi {:#x} rdx {:#x} rcx {:#x} flags {:#x} cs {:#x} cr2 {:#x} cr3 {:#x}",
                r.rip, r.rsp, r.rax, r.rdi, r.rsi, r.rdx, r.rcx, r.rflags, s.cs.selector, s.cr2, s.cr3
            ),
            _ => "registers unreadable".to_owned(),
        };
        VmError::Vcpu {
            vcpu: self.index,
            what: format!("{what}; {registers}"),
        }
    }
}

fn value_of(data: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    let size = data.len().min(bytes.len());
    bytes[..size].copy_from_slice(&data[..size]);
    u32::from_le_bytes(bytes)
}

fn ring(eventfd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: an own eventfd; eight bytes. A full counter (EAGAIN) means that it rings anyway.
    unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), 8) };
}

/// `KVM_INTERRUPT`, which kvm-ioctls does not wrap.
fn inject(fd: &VcpuFd) -> Result<(), VmError> {
    const KVM_INTERRUPT: u32 = 0x4004_ae86;
    let interrupt = kvm_bindings::kvm_interrupt {
        irq: u32::from(KICK_VECTOR),
    };
    // SAFETY: the vCPU's own descriptor and the structure that the request takes.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT as _, &raw const interrupt) };
    if result < 0 {
        Err(VmError::last_os("injecting an interrupt"))
    } else {
        Ok(())
    }
}
