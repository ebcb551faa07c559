//! Page-state changes for real: a guest of a few instructions on KVM's software-protected VM (`KVM_X86_SW_PROTECTED_VM`),
//! with the code that serves SNP guests. It needs a kernel that no distribution builds: `make lane-private`.

use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_VM_TYPES, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE,
    kvm_enable_cap, kvm_memory_attributes, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::private::PrivateMemory;
use super::snp::KVM_HC_MAP_GPA_RANGE;
use super::snp::calls::{Backing, Refusal, RunCalls};
use super::snp::page_state::PageState;

const SW_PROTECTED_VM: u64 = 1;
/// Memory of both kinds: the code, then the page that changes.
const START: u64 = 0x1_0000;
const LEN: u64 = 0x2_0000;
const PAGE: u64 = 0x2_0000;
/// Memory without guest_memfd.
const ORDINARY: u64 = 0x4_0000;

struct Vm {
    vm: VmFd,
    memory: PrivateMemory,
}

impl RunCalls for Vm {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        let set = self.vm.set_memory_attributes(attributes);
        Ok(set.map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        Ok(self.memory.discard(gpa, len, backing)?)
    }
}

/// A VM whose vCPU starts in real mode at [`START`], with `code` there; data segment at [`PAGE`], extra one at [`ORDINARY`].
fn guest(code: &[u8]) -> Option<(Vm, VcpuFd, &'static mut [u8])> {
    let kvm = Kvm::new().ok()?;
    if kvm.check_extension_raw(KVM_CAP_VM_TYPES.into()) & 1 << SW_PROTECTED_VM == 0 {
        crate::skipped::skip("this kernel has no KVM_SW_PROTECTED_VM (make lane-private)");
        return None;
    }
    let vm = kvm.create_vm_with_type(SW_PROTECTED_VM).expect("a protected VM");
    let capability = kvm_enable_cap {
        cap: KVM_CAP_EXIT_HYPERCALL,
        args: [1 << KVM_HC_MAP_GPA_RANGE, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&capability).expect("exits for hypercalls");
    let mut memory = PrivateMemory::default();
    let region = kvm_userspace_memory_region2 {
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: START,
        memory_size: LEN,
        ..Default::default()
    };
    memory.add(&vm, region).expect("memory of both kinds");
    memory.write_shared(START, code).expect("inside");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping, which is checked and never given back.
    let ordinary = unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            0x1000,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        );
        assert!(at != libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(at.cast::<u8>(), 0x1000)
    };
    let region = kvm_userspace_memory_region {
        slot: 1,
        flags: 0,
        guest_phys_addr: ORDINARY,
        memory_size: 0x1000,
        userspace_addr: ordinary.as_ptr() as u64,
    };
    // SAFETY: the mapping above.
    unsafe { vm.set_user_memory_region(region) }.expect("ordinary memory");
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .expect("CPUID");
    vcpu.set_cpuid2(&cpuid).expect("CPUID");
    let mut sregs = vcpu.get_sregs().expect("registers");
    for (segment, base) in [
        (&mut sregs.cs, START),
        (&mut sregs.ds, PAGE),
        (&mut sregs.es, ORDINARY),
    ] {
        (segment.base, segment.selector) = (base, (base >> 4) as u16);
    }
    vcpu.set_sregs(&sregs).expect("registers");
    let mut regs = vcpu.get_regs().expect("registers");
    (regs.rip, regs.rflags) = (0, 2);
    vcpu.set_regs(&regs).expect("registers");
    Some((Vm { vm, memory }, vcpu, ordinary))
}

/// `mov eax, 12; mov ebx, PAGE; mov ecx, 1; mov edx, attributes; vmmcall`.
fn change(private: bool) -> Vec<u8> {
    let mut code = Vec::new();
    let attributes = u32::from(private) << 4;
    for (opcode, value) in [
        (0xb8, KVM_HC_MAP_GPA_RANGE as u32),
        (0xbb, PAGE as u32),
        (0xb9, 1),
        (0xba, attributes),
    ] {
        code.extend([0x66, opcode]);
        code.extend(value.to_le_bytes());
    }
    code.extend([0x0f, 0x01, 0xd9]);
    // The hypercall's result.
    code.extend([0xe6, 0x11]);
    code
}

/// `mov al, [0]; out 0x10, al`.
const TELL: &[u8] = &[0xa0, 0, 0, 0xe6, 0x10];

/// Runs it until it halts; gives what it told, granting what it asks for. A fault of memory ends it, and gives the address.
fn run(vm: &mut Vm, vcpu: &mut VcpuFd) -> (Vec<u8>, Option<u64>) {
    let mut told = Vec::new();
    loop {
        match vcpu.run().expect("the guest runs") {
            VcpuExit::IoOut(0x10, data) => told.push(data[0]),
            VcpuExit::IoOut(0x11, data) => assert_eq!(data[0], 0, "the hypercall's result"),
            VcpuExit::Hypercall(call) => {
                assert_eq!(call.nr, KVM_HC_MAP_GPA_RANGE);
                let wish = PageState::parse(&call.args, &[[START, START + LEN]]).expect("own memory");
                *call.ret = 0;
                wish.grant(vm).expect("granted");
            }
            VcpuExit::MemoryFault { gpa, .. } => return (told, Some(gpa)),
            VcpuExit::Hlt => return (told, None),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_page_is_two_pages_and_each_change_gives_one_back() {
    let mut code = TELL.to_vec(); // shared: what the host wrote
    code.extend(change(true));
    code.extend(TELL); // private: zeros
    code.extend([0xc6, 0x06, 0, 0, 0x5a]); // mov byte [0], 0x5a
    code.extend(TELL);
    code.extend(change(false));
    code.extend(TELL); // shared again: the host's memory was given back at the first change
    code.extend(change(true));
    code.extend(TELL); // private again: a hole was punched
    code.push(0xf4);
    let Some((mut vm, mut vcpu, _)) = guest(&code) else {
        return;
    };
    vm.memory.write_shared(PAGE, &[0x77]).expect("inside");
    assert_eq!(run(&mut vm, &mut vcpu), (vec![0x77, 0, 0x5a, 0, 0], None));
}

#[test]
fn the_host_does_not_see_what_is_private() {
    let mut code = change(true);
    code.extend([0xc6, 0x06, 0, 0, 0x5a]);
    code.extend(TELL);
    code.push(0xf4);
    let Some((mut vm, mut vcpu, _)) = guest(&code) else {
        return;
    };
    assert_eq!(run(&mut vm, &mut vcpu), (vec![0x5a], None));
    let mut seen = [1; 4096];
    vm.memory.read_shared(PAGE, &mut seen).expect("inside");
    assert_eq!(seen, [0; 4096], "the host has another page there");
    vm.memory.write_shared(PAGE, &[0x77]).expect("inside");
    // The guest's is as it was.
    let mut regs = vcpu.get_regs().expect("registers");
    regs.rip = code.len() as u64 - 1 - TELL.len() as u64;
    vcpu.set_regs(&regs).expect("registers");
    assert_eq!(run(&mut vm, &mut vcpu), (vec![0x5a], None));
}

#[test]
fn memory_that_is_not_what_the_guest_takes_it_for_is_an_exit_with_its_address() {
    // mov al, es:[0]; hlt
    let Some((mut vm, mut vcpu, ordinary)) = guest(&[0x26, 0xa0, 0, 0, 0xf4]) else {
        return;
    };
    ordinary[0] = 7;
    let private = kvm_memory_attributes {
        address: ORDINARY,
        size: 0x1000,
        attributes: u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE),
        flags: 0,
    };
    vm.set_attributes(private).expect("an attribute");
    assert_eq!(run(&mut vm, &mut vcpu), (Vec::new(), Some(ORDINARY)));
}
