//! One thread per vCPU: runs it, lets it sleep, injects kicks.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use cloak_abi::layout::{KICK_VECTOR, SIM_PORT, doorbell_port, monitor_port};
use cloak_abi::sim::SimCall;
use cloak_abi::stop::Stop;
use cloak_abi::vcpu::MonitorCall;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::anchors::Anchors;
use super::error::{Step, VmError};
use super::exec::Execs;
use super::shared::SharedRegion;
use super::ticker::Ticker;
use super::{Event, Hardware, clock};
use crate::platform::{PortWrite, Reply};

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

    /// Ends its halt, if it is in one.
    pub fn wake(&self) {
        ring(&self.wake);
    }
}

/// Wakes who waits for the eventfd.
fn ring(event: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: an own eventfd; eight bytes. A full counter (EAGAIN) means that it wakes anyway.
    unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), 8) };
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
    /// Wakes the OS service.
    pub doorbell: Arc<OwnedFd>,
    pub shared: Arc<SharedRegion>,
    pub anchors: Arc<Anchors>,
    pub execs: Option<Arc<Execs>>,
    pub events: Sender<(usize, Event)>,
    pub clock: clock::Clock,
    pub ticker: Ticker,
    /// Simulated hardware, if the machine has any.
    pub hardware: Option<Hardware>,
    /// It raises an exception where an instruction would leave.
    pub raises: bool,
    /// One is to be raised at the next entry: an interrupt has to wait, or KVM would deliver it in the handler.
    pub raised: bool,
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
        let event = loop {
            match self.step() {
                Ok(None) => {}
                Ok(Some(event)) => break event,
                Err(error) => break Event::Failed(error),
            }
        };
        self.handle.thread.store(0, Ordering::SeqCst);
        // The receiver is gone only when the monitor is already ending.
        let _ = self.events.send((self.context, event));
    }

    fn step(&mut self) -> Result<Option<Event>, VmError> {
        if self.handle.stop.load(Ordering::SeqCst) {
            return Ok(Some(Event::Left));
        }
        self.prepare_kick()?;
        let raises = self.raises;
        // The kernel uses the first context's, the libos its own: the kernel opened no others to it. The vCPU says
        // whose call it is.
        let ports = [monitor_port(0), monitor_port(self.context as u32)];
        let exit = self.fd.run();
        match exit {
            Ok(VcpuExit::IoOut(port, data)) if raises && port != SIM_PORT => {
                let mut bytes = [0; 4];
                let size = data.len().min(bytes.len());
                bytes[..size].copy_from_slice(&data[..size]);
                let write = PortWrite {
                    port,
                    size: size as u8,
                    value: u32::from_le_bytes(bytes),
                };
                self.handle.exits.fetch_add(1, Ordering::Relaxed);
                self.raise(write)
            }
            Ok(VcpuExit::IoOut(port, data)) if ports.contains(&port) => {
                let value = <[u8; 4]>::try_from(data).map_or(u32::MAX, u32::from_le_bytes);
                self.handle.exits.fetch_add(1, Ordering::Relaxed);
                self.monitor_call(value)
            }
            Ok(VcpuExit::IoOut(SIM_PORT, data)) if self.hardware.is_some() => {
                let value = <[u8; 4]>::try_from(data).map_or(u32::MAX, u32::from_le_bytes);
                self.handle.exits.fetch_add(1, Ordering::Relaxed);
                self.hardware_call(value)
            }
            Ok(VcpuExit::IoOut(..)) => Ok(None),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Ok(None),
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
        let raised = std::mem::take(&mut self.raised);
        let stray = if self.raises { self.stray() } else { None };
        let kick = self.handle.kick.load(Ordering::SeqCst);
        if !kick && stray.is_none() {
            return Ok(());
        }
        let run = self.fd.get_kvm_run();
        if !raised && run.ready_for_interrupt_injection != 0 && run.if_flag != 0 {
            run.request_interrupt_window = 0;
            if let Some(vector) = stray {
                return inject(&self.fd, vector);
            }
            self.handle.kick.store(false, Ordering::SeqCst);
            return inject(&self.fd, KICK_VECTOR);
        }
        if kick {
            run.request_interrupt_window = 1;
        }
        Ok(())
    }

    fn stray(&self) -> Option<u8> {
        self.hardware.as_ref()?.lock().ok()?.stray_interrupt()
    }

    fn monitor_call(&mut self, value: u32) -> Result<Option<Event>, VmError> {
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

    /// Lets the guest have an exception in the place of the instruction.
    fn raise(&mut self, write: PortWrite) -> Result<Option<Event>, VmError> {
        // KVM ends the instruction at the next entry, or has done so: after this one it has, whichever way it took.
        self.fd.set_kvm_immediate_exit(1);
        match self.fd.run() {
            Err(e) if e.errno() == libc::EINTR => {}
            other => {
                let what = format!("an entry that should have ended at once: {other:?}");
                return Err(self.stuck(what));
            }
        }
        self.fd.set_kvm_immediate_exit(0);
        let Some(Ok(vector)) = self
            .hardware
            .as_ref()
            .map(|hardware| hardware.lock().map(|mut h| h.exception(self.index as u32, write)))
        else {
            return Err(self.stuck("the simulated hardware has failed".to_owned()));
        };
        let mut registers = self.fd.get_regs().step("reading a vCPU's registers")?;
        registers.rip = registers.rip.wrapping_sub(write.instruction_len());
        self.fd.set_regs(&registers).step("setting a vCPU's registers")?;
        let mut events = self.fd.get_vcpu_events().step("reading a vCPU's events")?;
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = 0;
        self.fd
            .set_vcpu_events(&events)
            .step("giving a vCPU an exception")?;
        self.raised = true;
        Ok(None)
    }

    /// A write that a guest has asked for by a call.
    fn asked_write(&mut self, write: PortWrite) -> Result<Option<Event>, VmError> {
        let context = self.context as u32;
        if write.port == monitor_port(context) || write.port == monitor_port(0) {
            return self.monitor_call(write.value);
        }
        if write.port == doorbell_port(context) {
            match (write.value as usize).checked_sub(1) {
                None => ring(&self.doorbell),
                Some(other) => {
                    if let Some(other) = self.all.get(other) {
                        other.wake();
                    }
                }
            }
        }
        Ok(None)
    }

    /// What the guest asks of simulated hardware.
    fn hardware_call(&mut self, value: u32) -> Result<Option<Event>, VmError> {
        let (Some(hardware), Some(call)) = (&self.hardware, SimCall::decode(value)) else {
            return Err(self.stuck(format!("unknown call of simulated hardware {value:#x}")));
        };
        let mut registers = self.fd.get_regs().step("reading a vCPU's registers")?;
        let arguments = [registers.rdi, registers.rsi];
        let reply = match hardware.lock() {
            Ok(mut hardware) => hardware.call(self.index as u32, call, arguments),
            Err(_) => return Err(self.stuck("the simulated hardware has failed".to_owned())),
        };
        registers.rax = match reply {
            Reply::Value(value) => value,
            Reply::Start(value, number, start) => {
                // The receiver is gone only when the monitor is already ending.
                let _ = self.events.send((self.context, Event::StartAt(number, start)));
                value
            }
            Reply::Out(value, write) => {
                registers.rax = value;
                self.fd.set_regs(&registers).step("setting a vCPU's registers")?;
                return self.asked_write(write);
            }
            Reply::Terminated(stop) => {
                let text = stop.map_or("for a reason that is not known", Stop::text);
                return Err(VmError::Stopped(text));
            }
        };
        self.fd.set_regs(&registers).step("setting a vCPU's registers")?;
        Ok(None)
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
        // SAFETY: one pollfd, an optional timespec; a signal (EINTR) is as good as a wake-up.
        unsafe { libc::ppoll(&raw mut poll, 1, timeout, std::ptr::null()) };
        let mut drained = [0u8; 8];
        // SAFETY: a non-blocking eventfd; eight bytes.
        unsafe { libc::read(self.handle.wake.as_raw_fd(), drained.as_mut_ptr().cast(), 8) };
        self.ticker.wake();
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

/// `KVM_INTERRUPT`, which kvm-ioctls does not wrap.
fn inject(fd: &VcpuFd, vector: u8) -> Result<(), VmError> {
    const KVM_INTERRUPT: u32 = 0x4004_ae86;
    let interrupt = kvm_bindings::kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: the vCPU's own descriptor and the structure that the request takes.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT as _, &raw const interrupt) };
    if result < 0 {
        Err(VmError::last_os("injecting an interrupt"))
    } else {
        Ok(())
    }
}
