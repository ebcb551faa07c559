//! Page-state changes for real: a guest of a few instructions on KVM's software-protected VM (`KVM_X86_SW_PROTECTED_VM`),
//! with the code that serves SNP guests and TDX domains. It needs a kernel that no distribution builds: `make lane-private`.

use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_VM_TYPES, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use super::private::PrivateMemory;
use super::protected::{ProtectedVm, slot};
use super::run_calls::{Backing, Refusal, RunCalls};
use super::snp::KVM_HC_MAP_GPA_RANGE;
use crate::vm::pages::{Pages, REFUSED};

const SW_PROTECTED_VM: u64 = 1;
/// Memory of both kinds: the code, then the page that changes.
const START: u64 = 0x1_0000;
const LEN: u64 = 0x2_0000;
const PAGE: u64 = 0x2_0000;
/// Memory without guest_memfd.
const ORDINARY: u64 = 0x4_0000;

struct Vm(ProtectedVm);

impl RunCalls for Vm {
    fn set_attributes(&mut self, attributes: kvm_memory_attributes) -> Result<(), Refusal> {
        Ok(self.0.set_attributes(attributes)?)
    }

    fn discard(&mut self, gpa: u64, len: u64, backing: Backing) -> Result<(), Refusal> {
        Ok(self.0.discard(gpa, len, backing)?)
    }
}

/// A VM whose vCPU starts in real mode at [`START`], with `code` there; data segment at [`PAGE`], extra one at [`ORDINARY`].
fn guest(code: &[u8]) -> Option<(Pages<Vm>, VcpuFd, &'static mut [u8])> {
    let kvm = Kvm::new().ok()?;
    if kvm.check_extension_raw(KVM_CAP_VM_TYPES.into()) & 1 << SW_PROTECTED_VM == 0 {
        crate::skipped::skip("this kernel has no KVM_SW_PROTECTED_VM (make lane-private)");
        return None;
    }
    let mut own = ProtectedVm::create(&kvm, SW_PROTECTED_VM).expect("a protected VM");
    own.enable(KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
        .expect("exits for hypercalls");
    // A guest of SNP or TDX begins with all of it private, and the firmware puts its code there; this one reads it as shared.
    let (region, _) = slot(0, [START, START + LEN]).expect("whole pages");
    own.add_memory(region).expect("memory of both kinds");
    own.memory().write_shared(START, code).expect("inside");
    let vm = own.vm();
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
    let pages = Pages::new(
        Vm(own),
        vec![[START, START + LEN]],
        vec![[ORDINARY, ORDINARY + 0x1000]],
    );
    Some((pages, vcpu, ordinary))
}

/// Asks for the state of [`PAGE`].
fn change(private: bool) -> Vec<u8> {
    change_of(PAGE, private, 0)
}

/// `mov eax, 12; mov ebx, gpa; mov ecx, 1; mov edx, attributes; vmmcall; cmp al, expected; je over the next; out 0x11, al`.
fn change_of(gpa: u64, private: bool, expected: u8) -> Vec<u8> {
    let mut code = Vec::new();
    let attributes = u32::from(private) << 4;
    for (opcode, value) in [
        (0xb8, KVM_HC_MAP_GPA_RANGE as u32),
        (0xbb, gpa as u32),
        (0xb9, 1),
        (0xba, attributes),
    ] {
        code.extend([0x66, opcode]);
        code.extend(value.to_le_bytes());
    }
    code.extend([0x0f, 0x01, 0xd9]);
    code.extend([0x3c, expected, 0x74, 2, 0xe6, 0x11]);
    code
}

/// `mov al, [0]; out 0x10, al`.
const TELL: &[u8] = &[0xa0, 0, 0, 0xe6, 0x10];

/// Runs it until it halts; gives what it told, granting what it asks for. A fault of memory ends it, and gives the address.
fn run(pages: &Pages<Vm>, vcpu: &mut VcpuFd) -> (Vec<u8>, Option<u64>) {
    let mut told = Vec::new();
    loop {
        match vcpu.run().expect("the guest runs") {
            VcpuExit::IoOut(0x10, data) => told.push(data[0]),
            VcpuExit::IoOut(0x11, data) => panic!("the hypercall's result is {}", data[0]),
            VcpuExit::Hypercall(call) => {
                assert_eq!(call.nr, KVM_HC_MAP_GPA_RANGE);
                *call.ret = pages.change(&call.args).expect("an answer");
            }
            VcpuExit::MemoryFault { gpa, .. } => return (told, Some(gpa)),
            VcpuExit::Hlt => return (told, None),
            other => panic!("{other:?}"),
        }
    }
}

/// What the host does with memory that may be the guest's.
fn host(pages: &Pages<Vm>, does: impl FnOnce(&PrivateMemory) -> std::io::Result<()>) {
    pages.look(|vm| does(vm.0.memory()).expect("inside"));
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
    let Some((pages, mut vcpu, _)) = guest(&code) else {
        return;
    };
    host(&pages, |memory| memory.write_shared(PAGE, &[0x77]));
    assert_eq!(run(&pages, &mut vcpu), (vec![0x77, 0, 0x5a, 0, 0], None));
}

#[test]
fn the_host_does_not_see_what_is_private() {
    let mut code = change(true);
    code.extend([0xc6, 0x06, 0, 0, 0x5a]);
    code.extend(TELL);
    code.push(0xf4);
    let Some((pages, mut vcpu, _)) = guest(&code) else {
        return;
    };
    assert_eq!(run(&pages, &mut vcpu), (vec![0x5a], None));
    let mut seen = [1; 4096];
    host(&pages, |memory| memory.read_shared(PAGE, &mut seen));
    assert_eq!(seen, [0; 4096], "the host has another page there");
    host(&pages, |memory| memory.write_shared(PAGE, &[0x77]));
    // The guest's is as it was.
    let mut regs = vcpu.get_regs().expect("registers");
    regs.rip = code.len() as u64 - 1 - TELL.len() as u64;
    vcpu.set_regs(&regs).expect("registers");
    assert_eq!(run(&pages, &mut vcpu), (vec![0x5a], None));
}

#[test]
fn memory_that_is_not_what_the_guest_takes_it_for_is_an_exit_with_its_address() {
    // mov al, es:[0]; hlt
    let Some((pages, mut vcpu, ordinary)) = guest(&[0x26, 0xa0, 0, 0, 0xf4]) else {
        return;
    };
    ordinary[0] = 7;
    let private = kvm_memory_attributes {
        address: ORDINARY,
        size: 0x1000,
        attributes: u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE),
        flags: 0,
    };
    pages.look(|vm| vm.0.set_attributes(private).expect("an attribute"));
    assert_eq!(run(&pages, &mut vcpu), (Vec::new(), Some(ORDINARY)));
}

/// A wish that is none has an answer that KVM takes; the guest goes on, and nothing has changed.
#[test]
fn what_is_not_the_guests_is_refused_and_the_guest_goes_on() {
    let mut code = Vec::new();
    for gpa in [ORDINARY, START - 0x1000, START + LEN, 0xffff_f000] {
        code.extend(change_of(gpa, true, REFUSED as u8));
    }
    code.extend(change_of(ORDINARY, false, 0)); // always shared: it may be said
    code.extend([0x26]); // es: the ordinary page
    code.extend(TELL);
    code.push(0xf4);
    let Some((pages, mut vcpu, ordinary)) = guest(&code) else {
        return;
    };
    ordinary[0] = 7;
    assert_eq!(run(&pages, &mut vcpu), (vec![7], None));
}
