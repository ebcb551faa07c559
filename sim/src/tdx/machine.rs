//! A machine with simulated TDX behind the calls that the host makes of KVM.
//!
//! It takes KVM's part, too: memory slots, attributes, and the checks that the kernel makes before it asks the module
//! (`arch/x86/kvm/vmx/tdx.c`). Every page of the domain has a host page of its own for private content and another for what
//! it shares, so that mixing them up shows.

use std::io;

use cloak_host::kvm::run_calls;
use cloak_host::kvm::tdx::abi::{CpuidEntry, kvm_tdx_capabilities, kvm_tdx_init_mem_region, kvm_tdx_init_vm};
use cloak_host::kvm::tdx::calls::{Backing, LaunchCalls, Offered, Refusal, RunCalls};
use cloak_host::tdvmcall::OFFERED_CALLS;
use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_SPLIT_IRQCHIP, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes,
    kvm_userspace_memory_region2,
};

use super::module::{Module, ModuleError, Params, SUPPORTED_ATTRIBUTES, SUPPORTED_XFAM};
use super::sept::{Memory, SecureEpt};
use crate::memory::{Gfn, Hfn, PAGE, PageBytes};

/// Distance from a guest page's number to its private host page's.
const PRIVATE_PAGES: u64 = 1 << 36;
/// The same to that of what it shares.
const SHARED_PAGES: u64 = 1 << 37;
/// Pages that one call adds before a signal comes: fewer than a launch has, so that the caller has to ask again.
const AT_ONCE: usize = 64;
/// Leaves of CPUID that may be chosen: more than a first asking has room for.
const LEAVES: usize = 40;
/// Its leaf: with the width of addresses.
const ADDRESSES: u32 = 0x8000_0008;

/// The machine.
#[derive(Debug)]
pub struct Machine<M = Memory> {
    /// Its TDX module, with the domain.
    pub module: Module<M>,
    split_irqchip: bool,
    exits: bool,
    slots: Vec<[u64; 2]>,
    private: Private,
    /// By index: whether the vCPU is initialised.
    vcpus: Vec<bool>,
    x2apic: Vec<bool>,
}

/// Which guest pages are private, a bit each.
#[derive(Debug, Default)]
struct Private(Vec<u64>);

impl Private {
    fn set(&mut self, gfn: Gfn, private: bool) {
        let (word, bit) = ((gfn.0 / 64) as usize, 1 << (gfn.0 % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if private {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    fn contains(&self, gfn: Gfn) -> bool {
        let word = self.0.get((gfn.0 / 64) as usize);
        word.is_some_and(|word| word >> (gfn.0 % 64) & 1 == 1)
    }
}

fn errno(number: i32) -> Refusal {
    io::Error::from_raw_os_error(number).into()
}

fn module(error: ModuleError) -> Refusal {
    Refusal {
        source: io::Error::from_raw_os_error(libc::EIO),
        module: error as u64,
    }
}

fn bytes(words: [u64; 6]) -> [u8; 48] {
    let mut digest = [0; 48];
    digest.copy_from_slice(words.map(u64::to_le_bytes).as_flattened());
    digest
}

impl Machine {
    /// A machine that says on standard error what it is; with the keys of the domain's memory and of the processor's
    /// reports.
    #[must_use]
    pub fn new(memory_key: &[u8; 64], report_key: [u8; 32]) -> Self {
        eprintln!("cloak: {NOTICE}");
        Self::of(Module::new(memory_key, report_key))
    }
}

/// What such a machine says of itself.
pub const NOTICE: &str = "simulated TDX: this protects nothing from whoever runs it";

impl<M: SecureEpt> Machine<M> {
    /// A machine with this module.
    #[must_use]
    pub fn of(module: Module<M>) -> Self {
        Self {
            module,
            split_irqchip: false,
            exits: false,
            slots: Vec::new(),
            private: Private::default(),
            vcpus: Vec::new(),
            x2apic: Vec::new(),
        }
    }

    /// KVM on an exit of the domain because nothing is mapped at a private address: gives it a page, which is pending then.
    ///
    /// # Errors
    /// EFAULT, as `KVM_EXIT_MEMORY_FAULT`: the address is not private memory; the module's.
    pub fn resolve(&mut self, gfn: Gfn) -> Result<(), Refusal> {
        if !self.private.contains(gfn) {
            return Err(errno(libc::EFAULT));
        }
        let page = Hfn(gfn.0 + PRIVATE_PAGES);
        self.module.page_aug(gfn, page).map_err(module)
    }

    /// The host page behind what the domain shares at an address.
    #[must_use]
    pub fn shared_page(&self, gfn: Gfn) -> Hfn {
        Hfn(gfn.0 + SHARED_PAGES)
    }

    /// Guest memory that there are slots for, half-open.
    #[must_use]
    pub fn slots(&self) -> &[[u64; 2]] {
        &self.slots
    }

    /// A slot without private memory: of what is always shared.
    pub fn add_shared_slot(&mut self, slot: [u64; 2]) {
        self.slots.push(slot);
    }

    /// Pages of a range that lies in one slot.
    fn pages(&self, gpa: u64, len: u64) -> io::Result<std::ops::Range<u64>> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        let end = gpa.checked_add(len).ok_or_else(wrong)?;
        let inside = |&[start, last]: &[u64; 2]| start <= gpa && end <= last;
        if !self.slots.iter().any(inside) || len == 0 || !(gpa | len).is_multiple_of(PAGE as u64) {
            return Err(wrong());
        }
        Ok(gpa / PAGE as u64..end / PAGE as u64)
    }
}

impl<M: SecureEpt> RunCalls for Machine<M> {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), run_calls::Refusal> {
        if attributes.flags != 0 || attributes.attributes & !u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL).into());
        }
        let private = attributes.attributes != 0;
        for page in self.pages(attributes.address, attributes.size)? {
            let gfn = Gfn(page);
            if private {
                self.private.set(gfn, true);
                self.module.memory.unshare(gfn);
            } else {
                self.private.set(gfn, false);
                self.module
                    .memory
                    .zap(gfn)
                    .map_err(|_| io::Error::from_raw_os_error(libc::EIO))?;
                let host = self.shared_page(gfn);
                self.module.memory.share(gfn, host);
            }
        }
        Ok(())
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), run_calls::Refusal> {
        for page in self.pages(gpa, len)? {
            let gfn = Gfn(page);
            match backing {
                // A hole in guest_memfd takes the page from the domain, whatever its attribute.
                Backing::Private => self
                    .module
                    .memory
                    .zap(gfn)
                    .map_err(|_| io::Error::from_raw_os_error(libc::EIO))?,
                Backing::Shared => {
                    let host = self.shared_page(gfn);
                    self.module.memory.host_write(host, &[0; PAGE]);
                }
            }
        }
        Ok(())
    }
}

/// Which leaves may be chosen, and of them which bits. Most are of no meaning: only their number matters.
fn configurable() -> Vec<CpuidEntry> {
    let leaf = |function, index, registers: [u32; 4]| {
        let [eax, ebx, ecx, edx] = registers;
        CpuidEntry {
            function,
            index,
            flags: u32::from(index != 0),
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    };
    let mut leaves = vec![
        leaf(1, 0, [0x0fff_3fff, 0x00ff_0000, 0x0100_0000, 0]),
        leaf(ADDRESSES, 0, [0x00ff_0000, 0, 0, 0]),
    ];
    leaves.extend((2..LEAVES as u32).map(|index| leaf(4, index, [1, 0, 0, 0])));
    leaves
}

impl<M: SecureEpt> LaunchCalls for Machine<M> {
    fn enable(&mut self, capability: u32, argument: u64) -> Result<(), Refusal> {
        match (capability, argument) {
            (KVM_CAP_SPLIT_IRQCHIP, 1..=256) if self.vcpus.is_empty() => self.split_irqchip = true,
            (KVM_CAP_EXIT_HYPERCALL, 0x1000) => self.exits = true,
            _ => return Err(errno(libc::EINVAL)),
        }
        Ok(())
    }

    fn supported_cpuid(&mut self) -> Result<Vec<CpuidEntry>, Refusal> {
        let leaf = |function, eax, ecx| CpuidEntry {
            function,
            eax,
            ecx,
            ..Default::default()
        };
        Ok(vec![
            leaf(1, 0x000c_06f2, 0x7ffa_fbff & !(1 << 21)),
            leaf(ADDRESSES, 0x0034_3934, 0),
        ])
    }

    fn capabilities(&mut self, room: usize) -> Result<Offered, Refusal> {
        let cpuid = configurable();
        if room < cpuid.len() {
            return Err(errno(libc::E2BIG));
        }
        Ok(Offered {
            fixed: kvm_tdx_capabilities {
                supported_attrs: SUPPORTED_ATTRIBUTES,
                supported_xfam: SUPPORTED_XFAM,
                user_tdvmcallinfo_1_r11: OFFERED_CALLS,
                nent: cpuid.len() as u32,
                ..Default::default()
            },
            cpuid,
        })
    }

    fn init_vm(&mut self, data: kvm_tdx_init_vm, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        if data.reserved != [0; 12] || data.padding != 0 {
            return Err(errno(libc::EINVAL));
        }
        let may = configurable();
        for leaf in cpuid {
            let same = |m: &&CpuidEntry| m.function == leaf.function && m.index == leaf.index;
            let may = may.iter().find(same).ok_or_else(|| errno(libc::EINVAL))?;
            let excess = [
                leaf.eax & !may.eax,
                leaf.ebx & !may.ebx,
                leaf.ecx & !may.ecx,
                leaf.edx & !may.edx,
            ];
            if excess != [0; 4] {
                return Err(module(ModuleError::OperandInvalid));
            }
        }
        let width = cpuid.iter().find(|leaf| leaf.function == ADDRESSES);
        if width.is_none_or(|leaf| leaf.eax >> 16 & 0xff != 48) {
            return Err(errno(libc::EINVAL));
        }
        let params = Params {
            attributes: data.attributes,
            xfam: data.xfam,
            mr_config_id: bytes(data.mrconfigid),
            mr_owner: bytes(data.mrowner),
            mr_owner_config: bytes(data.mrownerconfig),
        };
        self.module.init(params).map_err(module)
    }

    fn add_vcpu(&mut self, index: u32, cpuid: &[CpuidEntry]) -> Result<(), Refusal> {
        if index as usize != self.vcpus.len() {
            return Err(errno(libc::EEXIST));
        }
        if !self.split_irqchip {
            return Err(errno(libc::EINVAL));
        }
        let x2apic = cpuid
            .iter()
            .any(|leaf| leaf.function == 1 && leaf.ecx >> 21 & 1 == 1);
        self.x2apic.push(x2apic);
        self.vcpus.push(false);
        Ok(())
    }

    fn init_vcpu(&mut self, index: u32, _: u64) -> Result<(), Refusal> {
        let index = index as usize;
        if self.vcpus.get(index) != Some(&false) || self.x2apic.get(index) != Some(&true) {
            return Err(errno(libc::EINVAL));
        }
        self.module.add_vcpu().map_err(module)?;
        self.vcpus[index] = true;
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

    fn init_mem_region(
        &mut self,
        data: &mut kvm_tdx_init_mem_region,
        flags: u32,
        source: &[u8],
    ) -> Result<(), Refusal> {
        let wrong = || errno(libc::EINVAL);
        let aligned = (data.source_addr | data.gpa).is_multiple_of(PAGE as u64);
        if self.vcpus.first() != Some(&true) || self.module.info().is_some() || flags & !1 != 0 || !aligned {
            return Err(wrong());
        }
        let len = data.nr_pages.checked_mul(PAGE as u64).ok_or_else(wrong)?;
        let pages = self.pages(data.gpa, len)?;
        let at = data.source_addr.checked_sub(source.as_ptr() as u64);
        let at = at.ok_or_else(|| errno(libc::EFAULT))? as usize;
        let content = at.checked_add(len as usize).and_then(|end| source.get(at..end));
        let (content, _) = content.ok_or_else(|| errno(libc::EFAULT))?.as_chunks::<PAGE>();
        for (done, (page, content)) in pages.zip(content).enumerate() {
            if done == AT_ONCE {
                return Err(errno(libc::EINTR));
            }
            self.add_page(Gfn(page), content, flags == 1)?;
            data.gpa += PAGE as u64;
            data.source_addr += PAGE as u64;
            data.nr_pages -= 1;
        }
        Ok(())
    }

    fn finalize(&mut self) -> Result<(), Refusal> {
        if !self.exits {
            return Err(errno(libc::EINVAL));
        }
        self.module.finalize().map_err(module)
    }
}

impl<M: SecureEpt> Machine<M> {
    fn add_page(&mut self, gfn: Gfn, content: &PageBytes, measure: bool) -> Result<(), Refusal> {
        if !self.private.contains(gfn) {
            return Err(errno(libc::EFAULT));
        }
        let page = Hfn(gfn.0 + PRIVATE_PAGES);
        self.module.page_add(gfn, page, content).map_err(module)?;
        if measure {
            let gpa = gfn.0 * PAGE as u64;
            for chunk in (gpa..gpa + PAGE as u64).step_by(256) {
                self.module.mr_extend(chunk).map_err(module)?;
            }
        }
        Ok(())
    }
}
