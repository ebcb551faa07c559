//! From [`Options`] to a VM that runs. In between the OS services are started: before memory is filled, and before the monitor
//! locks itself up.

use std::sync::Arc;
use std::sync::mpsc::channel;

use cloak_abi::layout::{MAX_CONTEXTS, MAX_RAM, MAX_VCPUS, MIN_RAM};
use cloak_memory::MemoryError;
use cloak_memory::page::ContextId;
use kvm_ioctls::{Cap, Kvm};

use super::anchors::Anchors;
use super::border::Border;
use super::context::Context;
use super::error::VmError;
use super::exec::Execs;
use super::fill::{Below, Empty, Loaded};
use super::phases::Phases;
use super::running::{Event, Running};
use super::view::View;
use super::{Options, hidden, resident, signals};
use crate::control::server::{self, Member};
use crate::platform::Machine;
use crate::{jail, kvm};

type Failed = Arc<dyn Fn(MemoryError) + Send + Sync>;

/// The parts that must exist before the OS services are started.
pub struct Prepared {
    kvm: Kvm,
    empty: Empty,
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
pub fn prepare(options: Options, machine: Machine) -> Result<Prepared, VmError> {
    let mut phases = Phases::default();
    hidden::hide()?;
    let kvm = kvm::open(&options.device)?;
    check(&kvm, &options, &machine)?;
    let empty = Empty::make(&kvm, machine)?;
    let borders = options
        .contexts
        .iter()
        .map(Border::new)
        .collect::<Result<_, _>>()?;
    phases.done("opening KVM, making the VM");
    Ok(Prepared {
        kvm,
        empty,
        borders,
        phases,
        options,
    })
}

fn check(kvm: &Kvm, options: &Options, machine: &Machine) -> Result<(), VmError> {
    let contexts = options.contexts.len();
    if contexts == 0 || contexts > MAX_CONTEXTS || options.own_tables && contexts > 1 {
        return Err(VmError::Contexts {
            asked: contexts,
            most: MAX_CONTEXTS,
        });
    }
    if !matches!(machine, Machine::Plain) {
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
            empty,
            borders,
            mut phases,
            options,
        } = self;
        let vm = empty.vm.clone();
        let Loaded {
            memory,
            cpuid,
            clock,
            entry,
            placed,
            below,
            made,
        } = empty.fill(&kvm, &borders, &mut phases, &options)?;
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
            made: made.into_iter().map(Some).collect(),
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
