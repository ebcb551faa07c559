//! A machine with simulated SNP behind the calls that the host makes of KVM.
//!
//! It takes the host's part of KVM, too: memory slots, attributes, the state of vCPUs.

use std::io;

use cloak_attestation::measure::{PageKind, Segment, Vmsa};
use cloak_attestation::sim::{Endorsement, VekSpec};
use cloak_host::image::registers::Registers;
use cloak_host::kvm::snp::IdBlock;
use cloak_host::kvm::snp::calls::{Backing, LaunchCalls, Refusal, RunCalls};
use cloak_host::kvm::start_state;
use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes, kvm_segment, kvm_sev_init,
    kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
    kvm_userspace_memory_region2,
};

use crate::memory::{Fault, Gfn, Memory, PAGE, Ram};
use crate::processor::{Processor, Status, Vouched};

/// Pages that one update takes: fewer than a launch has, so that the caller has to ask again.
const AT_ONCE: usize = 64;

/// Where the launch is, as far as KVM keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Made,
    On,
    Launching,
    Finished,
}

/// The machine.
#[derive(Debug)]
pub struct Machine<R = Memory> {
    /// Its RAM.
    pub memory: R,
    /// Its security processor.
    pub processor: Processor,
    stage: Stage,
    exits: bool,
    slots: Vec<[u64; 2]>,
    vcpus: Vec<Registers>,
}

/// Keys of a machine. All that a guest has on it follows from them.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// The guest's memory key.
    pub memory: [u8; 64],
    /// The chip's secret.
    pub chip: [u8; 32],
    /// The guest's message keys, by VMPL.
    pub messages: [[u8; 32]; 4],
}

fn errno(number: i32) -> Refusal {
    io::Error::from_raw_os_error(number).into()
}

fn firmware(status: Status) -> Refusal {
    Refusal {
        source: io::Error::from_raw_os_error(libc::EIO),
        firmware: Some(status as u32),
    }
}

impl Machine {
    /// A machine that says on standard error what it is.
    #[must_use]
    pub fn new(secrets: &Secrets, endorsement: Endorsement, spec: VekSpec) -> Self {
        eprintln!("cloak: simulated SEV-SNP: this protects nothing from whoever runs it");
        let processor = Processor::new(secrets.chip, secrets.messages, endorsement, spec);
        Self::of(Memory::new(&secrets.memory), processor)
    }
}

impl<R: Ram> Machine<R> {
    /// A machine of these parts.
    #[must_use]
    pub fn of(memory: R, processor: Processor) -> Self {
        Self {
            memory,
            processor,
            stage: Stage::Made,
            exits: false,
            slots: Vec::new(),
            vcpus: Vec::new(),
        }
    }

    /// The guest's memory: half-open guest-physical ranges.
    #[must_use]
    pub fn slots(&self) -> &[[u64; 2]] {
        &self.slots
    }

    fn expect(&self, stage: Stage) -> Result<(), Refusal> {
        if self.stage == stage {
            Ok(())
        } else {
            Err(errno(libc::EINVAL))
        }
    }

    /// Pages of a range that lies in one slot.
    fn pages(&self, gpa: u64, len: u64) -> Result<std::ops::Range<u64>, Refusal> {
        let end = gpa.checked_add(len).ok_or_else(|| errno(libc::EINVAL))?;
        let inside = self
            .slots
            .iter()
            .any(|&[start, last]| start <= gpa && end <= last);
        if !inside || len == 0 || !(gpa | len).is_multiple_of(PAGE as u64) {
            return Err(errno(libc::EINVAL));
        }
        Ok(gpa / PAGE as u64..end / PAGE as u64)
    }
}

impl<R: Ram> RunCalls for Machine<R> {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        if attributes.flags != 0 || attributes.attributes & !u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0 {
            return Err(errno(libc::EINVAL));
        }
        let pages = self.pages(attributes.address, attributes.size)?;
        let changed = if attributes.attributes != 0 {
            self.memory.make_private(pages)
        } else {
            self.memory.make_shared(pages)
        };
        changed.map_err(|_: Fault| errno(libc::EIO))
    }

    fn discard(&mut self, gpa: u64, len: u64, _: Backing) -> Result<(), Refusal> {
        let pages = self.pages(gpa, len)?;
        self.memory.discard(pages);
        Ok(())
    }
}

impl<R: Ram> LaunchCalls for Machine<R> {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        if capability != KVM_CAP_EXIT_HYPERCALL || argument != 1 << 12 {
            return Err(errno(libc::EINVAL));
        }
        self.exits = true;
        Ok(())
    }

    fn init2(&mut self, data: &mut kvm_sev_init) -> Result<(), Refusal> {
        self.expect(Stage::Made)?;
        if data.flags != 0 || data.vmsa_features != 0 || data.ghcb_version > 2 || !self.vcpus.is_empty() {
            return Err(errno(libc::EINVAL));
        }
        self.stage = Stage::On;
        Ok(())
    }

    fn start(&mut self, data: &mut kvm_sev_snp_launch_start) -> Result<(), Refusal> {
        self.expect(Stage::On)?;
        if data.flags != 0 || !self.exits {
            return Err(errno(libc::EINVAL));
        }
        self.processor.start(data.policy).map_err(firmware)?;
        self.stage = Stage::Launching;
        Ok(())
    }

    fn enable_certificates(&mut self) -> Result<(), Refusal> {
        // It has them from the start.
        Ok(())
    }

    fn add_memory(&mut self, region: kvm_userspace_memory_region2) -> Result<(), Refusal> {
        let (start, len) = (region.guest_phys_addr, region.memory_size);
        let end = start.checked_add(len).ok_or_else(|| errno(libc::EINVAL))?;
        if len == 0 || !(start | len).is_multiple_of(PAGE as u64) {
            return Err(errno(libc::EINVAL));
        }
        if self.slots.iter().any(|&[from, to]| start < to && from < end) {
            return Err(errno(libc::EEXIST));
        }
        self.slots.push([start, end]);
        Ok(())
    }

    fn update(&mut self, data: &mut kvm_sev_snp_launch_update, source: &mut [u8]) -> Result<(), Refusal> {
        self.expect(Stage::Launching)?;
        let kind = match data.type_ {
            1 => PageKind::Normal,
            3 => PageKind::Zero,
            4 => PageKind::Unmeasured,
            5 => PageKind::Secrets,
            6 => PageKind::Cpuid,
            _ => return Err(errno(libc::EINVAL)),
        };
        let at = data.uaddr.checked_sub(source.as_ptr() as u64);
        let at = at.ok_or_else(|| errno(libc::EFAULT))? as usize;
        let bytes = at
            .checked_add(data.len as usize)
            .and_then(|end| source.get_mut(at..end));
        let bytes = bytes.ok_or_else(|| errno(libc::EFAULT))?;
        let gpa = data
            .gfn_start
            .checked_mul(PAGE as u64)
            .ok_or_else(|| errno(libc::EINVAL))?;
        let pages = self.pages(gpa, data.len)?;
        for (page, content) in pages.zip(bytes.as_chunks_mut::<PAGE>().0).take(AT_ONCE) {
            let gfn = Gfn(page);
            if !self.memory.is_private(gfn) {
                return Err(errno(libc::EINVAL));
            }
            if self.memory.launchable(gfn) == Err(Fault::Immutable) {
                return Err(errno(libc::EEXIST));
            }
            self.processor
                .update(&mut self.memory, gfn, kind, content)
                .map_err(firmware)?;
            data.gfn_start += 1;
            data.uaddr += PAGE as u64;
            data.len -= PAGE as u64;
        }
        Ok(())
    }

    fn add_vcpu(&mut self, index: u32, registers: Registers) -> Result<(), Refusal> {
        self.expect(Stage::Launching)?;
        if index as usize != self.vcpus.len() {
            return Err(errno(libc::EEXIST));
        }
        self.vcpus.push(registers);
        Ok(())
    }

    fn finish(&mut self, data: &mut kvm_sev_snp_launch_finish, id: Option<&IdBlock>) -> Result<(), Refusal> {
        self.expect(Stage::Launching)?;
        if data.flags != 0 {
            return Err(errno(libc::EINVAL));
        }
        for registers in &self.vcpus {
            self.processor
                .update_state(&state(*registers))
                .map_err(firmware)?;
        }
        let id = id.map(|id| Vouched {
            block: &id.block,
            auth: &id.auth[..],
            author_key: id.author_key,
        });
        self.processor.finish(data.host_data, id).map_err(firmware)?;
        self.stage = Stage::Finished;
        Ok(())
    }
}

/// The state that KVM makes of a vCPU's registers at the end of a launch (`sev_es_sync_vmsa`), from what the host sets by
/// KVM_SET_SREGS and KVM_SET_REGS. It does not use what the prediction is made of.
fn state(registers: Registers) -> [u8; PAGE] {
    let (sregs, regs) = start_state(registers);
    let packed = |s: &kvm_segment| Segment {
        selector: s.selector,
        attributes: u16::from(s.type_)
            | u16::from(s.s) << 4
            | u16::from(s.dpl) << 5
            | u16::from(s.present) << 7
            | u16::from(s.avl) << 8
            | u16::from(s.l) << 9
            | u16::from(s.db) << 10
            | u16::from(s.g) << 11,
        limit: s.limit,
        base: s.base,
    };
    let table = |base, limit: u16| Segment {
        selector: 0,
        attributes: 0,
        limit: limit.into(),
        base,
    };
    let segments = [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(packed);
    Vmsa {
        segments,
        gdtr: table(sregs.gdt.base, sregs.gdt.limit),
        ldtr: packed(&sregs.ldt),
        idtr: table(sregs.idt.base, sregs.idt.limit),
        tr: packed(&sregs.tr),
        // SVME is on in every guest, and MCE.
        efer: sregs.efer | 1 << 12,
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4 | 1 << 6,
        rip: regs.rip,
        rsp: regs.rsp,
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rbp: regs.rbp,
        rsi: regs.rsi,
        rdi: regs.rdi,
        sev_features: 1,
    }
    .to_page()
}
