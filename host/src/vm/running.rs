//! A VM whose programs run: its owner, who is told everything by [`Event`]s.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::Ended;
use super::context::Context;
use super::error::{Step, VmError};
use super::fill::Below;
use crate::image::Measuring;
use crate::image::registers::Registers;
use crate::kvm;
use crate::platform::GuestRam;

/// What other threads tell the owner of the VM.
#[derive(Debug)]
pub enum Event {
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
    pub(super) kvm_vm: Arc<VmFd>,
    /// Keeps guest RAM mapped.
    pub(super) memory: GuestMemoryMmap,
    pub(super) contexts: Vec<Context>,
    pub(super) cpuid: CpuId,
    pub(super) entry: u64,
    pub(super) below: Below,
    /// vCPUs that were made with the VM and do not run yet.
    pub(super) made: Vec<Option<VcpuFd>>,
    /// A vCPU that runs already when the guest asks for it.
    pub(super) early: Option<u32>,
    pub(super) sender: Sender<(usize, Event)>,
    pub(super) events: Receiver<(usize, Event)>,
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
    pub(super) fn create_vcpu(&mut self, index: usize, own: usize) -> Result<VcpuFd, VmError> {
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
    pub(super) fn first_registers(&self, index: usize, own: usize) -> Result<Registers, VmError> {
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

    pub(super) fn start_vcpu(
        &mut self,
        index: usize,
        own: usize,
        fd: VcpuFd,
        start: Registers,
    ) -> Result<(), VmError> {
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
    pub(super) fn start_early(&mut self) -> Result<(), VmError> {
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
