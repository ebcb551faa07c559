//! The registers and CPUID that a vCPU starts with: long mode, CPL 0, the kernel's entry.

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_regs, kvm_segment, kvm_sregs, kvm_xcrs};
use kvm_ioctls::VcpuFd;

use crate::image::registers::{CODE, CR0, CR4, DATA, EFER, Registers};
use crate::image::reset::VECTOR;
use crate::vm::error::{Step, VmError};

/// Sets CPUID, system and general registers of a fresh vCPU.
///
/// # Errors
/// Which of them KVM refused.
pub fn prepare_vcpu(vcpu: &VcpuFd, cpuid: &CpuId, start: Registers) -> Result<(), VmError> {
    vcpu.set_cpuid2(&with_apic_id(cpuid, start.rdi as u32))
        .step("setting a vCPU's CPUID")?;
    let mut sregs = vcpu.get_sregs().step("reading a vCPU's system registers")?;
    system_registers(&mut sregs, start.root);
    vcpu.set_sregs(&sregs).step("setting a vCPU's system registers")?;
    enable_vector_state(vcpu, cpuid)?;
    vcpu.set_regs(&general_registers(start))
        .step("setting a vCPU's registers")
}

/// As [`prepare_vcpu`], for a vCPU whose state is measured: XCR0 stays as after reset, and the number is not in a
/// register but for the first, because the measurement is the same for all.
///
/// # Errors
/// KVM's answer.
pub fn prepare_measured_vcpu(
    vcpu: &VcpuFd,
    cpuid: &CpuId,
    index: u32,
    start: Registers,
) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_cpuid2(&with_apic_id(cpuid, index))?;
    let mut sregs = vcpu.get_sregs()?;
    system_registers(&mut sregs, start.root);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&general_registers(start))
}

/// Sets the state that a TDX module gives a vCPU (TDX module ABI, "Initial State of Guest General Purpose Registers"): flat 32-bit
/// protected mode at the image's reset vector, with the number in RSI.
///
/// # Errors
/// KVM's answer.
pub fn prepare_domain_vcpu(vcpu: &VcpuFd, cpuid: &CpuId, index: u32) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_cpuid2(&with_apic_id(cpuid, index))?;
    let mut sregs = vcpu.get_sregs()?;
    // PE and NE; MCE, of which the module's VMXE is none that an ordinary VM has.
    (sregs.cr0, sregs.cr4, sregs.efer) = (0x21, 0x40, 0);
    let flat = |(selector, type_)| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        s: 1,
        present: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat((8, 11));
    let data = flat((16, 3));
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: VECTOR,
        rsi: index.into(),
        rflags: 2,
        ..Default::default()
    })
}

/// Every general register, RDX too: after reset it holds the processor's signature.
fn general_registers(start: Registers) -> kvm_regs {
    kvm_regs {
        rip: start.rip,
        rdi: start.rdi,
        rflags: 2,
        ..Default::default()
    }
}

/// What [`prepare_measured_vcpu`] makes of a vCPU that has just been reset (KVM's `init_vmcb`).
#[must_use]
pub fn start_state(start: Registers) -> (kvm_sregs, kvm_regs) {
    let mut sregs = kvm_sregs::default();
    (sregs.gdt.limit, sregs.idt.limit) = (0xffff, 0xffff);
    (sregs.ldt.limit, sregs.ldt.type_, sregs.ldt.present) = (0xffff, 2, 1);
    (sregs.tr.limit, sregs.tr.type_, sregs.tr.present) = (0xffff, 11, 1);
    system_registers(&mut sregs, start.root);
    (sregs, general_registers(start))
}

/// Code and stack segment of the kernel after a way in from CPL 3: the CPU leaves the second one without a selector.
#[must_use]
pub fn kernel_segments() -> (kvm_segment, kvm_segment) {
    (flat(CODE), flat((0, DATA.1)))
}

fn flat((selector, attributes): (u16, u16)) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_: (attributes & 15) as u8,
        s: (attributes >> 4 & 1) as u8,
        present: (attributes >> 7 & 1) as u8,
        l: (attributes >> 9 & 1) as u8,
        db: (attributes >> 10 & 1) as u8,
        g: (attributes >> 11 & 1) as u8,
        ..Default::default()
    }
}

fn system_registers(sregs: &mut kvm_sregs, root: u64) {
    sregs.cr0 = CR0;
    sregs.cr3 = root;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    sregs.cs = flat(CODE);
    let data = flat(DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

/// Guest TSC minus host TSC, as a wrapping difference.
///
/// # Errors
/// KVM's answer.
pub fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let entry = kvm_bindings::kvm_msr_entry {
        index: 0x10,
        ..Default::default()
    };
    let invalid = |_| kvm_ioctls::Error::new(libc::EINVAL);
    let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).map_err(invalid)?;
    vcpu.get_msrs(&mut msrs)?;
    // SAFETY: every x86-64 has it.
    let host = unsafe { std::arch::x86_64::_rdtsc() };
    Ok(msrs.as_slice()[0].data.wrapping_sub(host))
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
    let offered = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
    set_vector_state(vcpu, offered & wanted | 1)
}

/// Sets XCR0.
///
/// # Errors
/// KVM's answer.
pub fn set_vector_state(vcpu: &VcpuFd, mask: u64) -> Result<(), VmError> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = mask;
    vcpu.set_xcrs(&xcrs).step("enabling a vCPU's vector state (XCR0)")
}

fn with_apic_id(cpuid: &CpuId, id: u32) -> CpuId {
    let mut own = cpuid.clone();
    own.as_mut_slice()
        .iter_mut()
        .for_each(|leaf| set_apic_id(leaf, id));
    own
}

/// Writes a vCPU's number where one of its leaves has it.
pub(crate) fn set_apic_id(leaf: &mut kvm_cpuid_entry2, id: u32) {
    match leaf.function {
        1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
        0xb | 0x1f => leaf.edx = id,
        _ => {}
    }
}
