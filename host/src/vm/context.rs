//! One context of a VM, as the monitor keeps it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread;

use cloak_abi::ring::{STATS, Stat};
use cloak_memory::pager::Pager;
use kvm_ioctls::VcpuFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::anchors::Anchors;
use super::clock::Clock;
use super::error::{Step, VmError};
use super::exec::Execs;
use super::fill::Below;
use super::load::Placed;
use super::phases::Phases;
use super::resident::Paging;
use super::running::Event;
use super::shared::SharedRegion;
use super::signals::Reach;
use super::ticker::Ticker;
use super::vcpu::{Handle, Runner};
use super::{Border, Ended, Outcome, Statistics};
use crate::platform::GuestRam;

/// A context.
pub(super) struct Context {
    index: usize,
    shared: Arc<SharedRegion>,
    handles: Arc<[Arc<Handle>]>,
    doorbell: Arc<OwnedFd>,
    placed: Placed,
    anchors: Arc<Anchors>,
    pager: Option<Pager>,
    execs: Option<Arc<Execs>>,
    clock: Clock,
    ticker: Option<Ticker>,
    phases: Phases,
    /// The guest's TSC when its first vCPU started.
    began: u64,
    started: usize,
    /// How many of its vCPU threads have ended.
    pub left: usize,
    /// How it ended.
    pub ended: Option<Ended>,
}

impl Context {
    pub fn new(
        index: usize,
        border: Border,
        placed: Placed,
        anchors: Anchors,
        pager: Option<Pager>,
        clock: Clock,
    ) -> Self {
        let wakes = border.wakes.into_iter();
        Self {
            index,
            shared: border.shared,
            handles: wakes.map(|wake| Arc::new(Handle::new(wake))).collect(),
            doorbell: Arc::new(border.doorbell),
            placed,
            anchors: Arc::new(anchors),
            pager,
            execs: None,
            clock,
            ticker: None,
            phases: Phases::default(),
            began: 0,
            started: 0,
            left: 0,
            ended: None,
        }
    }

    /// Its owner may ask for further processes.
    pub fn set_execs(&mut self, execs: Arc<Execs>) {
        self.execs = Some(execs);
    }

    /// What others need to tell it something.
    pub fn reach(&self) -> Reach {
        Reach {
            shared: self.shared.clone(),
            handles: self.handles.clone(),
        }
    }

    /// Guest-physical address of its first root table.
    pub fn root(&self) -> u64 {
        self.placed.root
    }

    /// The VM's number of its vCPU `own`.
    pub fn number_of(&self, own: usize) -> Result<u32, VmError> {
        if own < self.handles.len() {
            Ok(self.placed.first_vcpu + own as u32)
        } else {
            Err(VmError::Shim("start of a vCPU that does not exist"))
        }
    }

    /// Starts its time slices.
    pub fn start_ticker(&mut self) -> Result<(), VmError> {
        self.ticker = Some(Ticker::start(
            self.shared.clone(),
            self.handles.clone(),
            self.clock,
        )?);
        Ok(())
    }

    /// Runs its vCPU `own`, in a thread.
    pub fn start_vcpu(
        &mut self,
        own: usize,
        fd: VcpuFd,
        events: Sender<(usize, Event)>,
        below: Below,
        ram: GuestRam,
    ) -> Result<(), VmError> {
        let (Some(handle), Some(ticker)) = (self.handles.get(own), &self.ticker) else {
            return Err(VmError::Shim("start of a vCPU that does not exist"));
        };
        let runner = Runner {
            context: self.index,
            index: own,
            fd,
            handle: handle.clone(),
            all: self.handles.clone(),
            doorbell: self.doorbell.clone(),
            shared: self.shared.clone(),
            anchors: self.anchors.clone(),
            execs: self.execs.clone(),
            events,
            clock: self.clock,
            ticker: ticker.clone(),
            below,
            ram,
        };
        thread::Builder::new()
            .name(format!("vcpu{}", self.placed.first_vcpu as usize + own))
            .stack_size(128 << 10)
            .spawn(move || runner.run())
            .step("starting a vCPU thread")?;
        self.started += 1;
        Ok(())
    }

    /// Its first vCPU runs; what the monitor did until then.
    pub fn begin(&mut self, phases: &Phases) {
        self.began = self.clock.guest_now();
        self.phases = phases.clone();
    }

    /// It has ended; its vCPUs leave the guest.
    pub fn end(&mut self, outcome: Result<Outcome, VmError>) {
        if self.ended.is_none() {
            self.ended = Some(Ended {
                outcome,
                statistics: self.statistics(),
            });
            self.handles.iter().for_each(|handle| handle.stop());
            if let Some(execs) = &self.execs {
                execs.close();
            }
        }
    }

    /// When it has ended and its last vCPU has left, nothing of it stays in guest RAM.
    pub fn release(&self, memory: &GuestMemoryMmap) {
        if self.ended.is_none() || self.left < self.started || self.pager.is_some() {
            return;
        }
        for [start, end] in self.placed.frames {
            let Ok(host) = memory.get_host_address(GuestAddress(start)) else {
                continue;
            };
            // SAFETY: private anonymous guest RAM that only this context's vCPUs used, none of which runs. A refusal
            // leaves what no other context can map.
            unsafe { libc::madvise(host.cast(), (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }

    /// No answer will come any more: the guest must learn it, wherever it waits.
    pub fn service_gone(&self) {
        self.shared.header().service_gone.store(1, Ordering::SeqCst);
        self.handles.iter().for_each(|h| h.kick());
    }

    /// How its program ended, as the libos left it.
    pub fn outcome(&self) -> Result<Outcome, VmError> {
        let status = self.shared.header().exit_status.load(Ordering::Acquire);
        let code = status as u8;
        match status >> 32 {
            1 => Ok(Outcome::Exited(code)),
            2 => Ok(Outcome::Signalled(code)),
            3 => Ok(Outcome::Refused(code, self.message())),
            _ => Err(VmError::Shimmed(self.message())),
        }
    }

    /// A kernel stop says more when the libos left a message before it.
    pub fn explain(&self, error: VmError) -> VmError {
        let message = self.message();
        if message.is_empty() {
            error
        } else {
            VmError::Shimmed(format!("{message} ({error})"))
        }
    }

    fn statistics(&self) -> Statistics {
        let header = self.shared.header();
        let mut guest = [0; STATS];
        for (to, from) in guest.iter_mut().zip(&header.stats) {
            *to = from.load(Ordering::Relaxed);
        }
        let mut phases = self.phases.clone();
        let entered = guest[Stat::Entered as usize].saturating_sub(self.began);
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
}
