//! The registers and CPUID that a vCPU starts with: long mode, CPL 0, the kernel's entry.

use kvm_bindings::{CpuId, kvm_regs, kvm_segment, kvm_sregs, kvm_xcrs};
use kvm_ioctls::VcpuFd;

use crate::vm::error::{Step, VmError};

/// What a vCPU starts with.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Kernel entry, guest-virtual.
    pub entry: u64,
    /// Guest-physical address of its context's first root table.
    pub root: u64,
    /// The VM's number of the vCPU, in RDI.
    pub index: u64,
}

/// CR4: PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
/// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;

/// Sets CPUID, system and general registers of a fresh vCPU.
///
/// # Errors
/// Which of them KVM refused.
pub fn prepare_vcpu(vcpu: &VcpuFd, cpuid: &CpuId, start: Start) -> Result<(), VmError> {
    vcpu.set_cpuid2(&with_apic_id(cpuid, start.index as u32))
        .step("setting a vCPU's CPUID")?;
    let mut sregs = vcpu.get_sregs().step("reading a vCPU's system registers")?;
    system_registers(&mut sregs, start.root);
    vcpu.set_sregs(&sregs).step("setting a vCPU's system registers")?;
    enable_vector_state(vcpu, cpuid)?;
    let regs = kvm_regs {
        rip: start.entry,
        rdi: start.index,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).step("setting a vCPU's registers")
}

fn system_registers(sregs: &mut kvm_sregs, root: u64) {
    let flat = |selector, type_, l, db| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l,
        db,
        g: 1,
        ..Default::default()
    };
    sregs.cr0 = CR0;
    sregs.cr3 = root;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    sregs.cs = flat(0x10, 11, 1, 0);
    let data = flat(0x18, 3, 0, 1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

/// Turns on every vector state that the CPU and KVM offer, as Linux would for its programs.
fn enable_vector_state(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), VmError> {
    let leaf = cpuid
        .as_slice()
        .iter()
        .find(|e| e.function == 0xd && e.index == 0);
    // x87, SSE, AVX, AVX-512 (three parts), PKRU. AMX tiles need a permission of their own: left off.
    let wanted = 0x2e7;
    let Some(leaf) = leaf else { return Ok(()) };
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = (u64::from(leaf.eax) | u64::from(leaf.edx) << 32) & wanted | 1;
    vcpu.set_xcrs(&xcrs).step("enabling a vCPU's vector state (XCR0)")
}

fn with_apic_id(cpuid: &CpuId, id: u32) -> CpuId {
    let mut own = cpuid.clone();
    for entry in own.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => entry.edx = id,
            _ => {}
        }
    }
    own
}
