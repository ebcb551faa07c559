//! Ways into the libos and out of it.
//!
//! GS holds the running thread's [`Tcb`] while its program or the libos runs on its behalf. The libos is built
//! for baseline SSE, whose instructions leave the upper halves of vector registers alone, so an entry saves
//! XMM0-15 only; a thread switch saves the rest ([`super::context`]).

use core::arch::{asm, global_asm};
use core::cell::Cell;

use cloak_abi::boot::LIBOS_MAGIC;
use cloak_abi::layout::{LIBOS_SLOT, LIBOS_VCPU_VA, MAX_VCPUS};
use cloak_abi::vcpu::VcpuBlock;

/// At GS:0 of each thread. The assembly below knows the offsets.
#[repr(C)]
#[derive(Debug)]
pub struct Tcb {
    /// The thread (`sched::Thread`).
    pub thread: Cell<u64>,
    /// Top of its libos stack.
    pub stack_top: Cell<u64>,
    /// Scratch: the program's stack pointer at entry.
    pub user_rsp: Cell<u64>,
    /// The vCPU's block.
    pub vcpu_block: Cell<u64>,
    /// Index of the vCPU.
    pub vcpu_index: Cell<u64>,
}

/// General registers of the program, in Linux's `pt_regs` order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What an entry leaves on the libos stack.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub struct Frame {
    /// XMM0-15.
    pub xmm: [u128; 16],
    pad: u64,
    /// General registers.
    pub regs: Regs,
}

impl Frame {
    /// A frame that starts at `rip` with stack `rsp` and nothing else in the registers.
    #[must_use]
    pub fn start(rip: u64, rsp: u64) -> Self {
        let regs = Regs {
            rip,
            rsp,
            cs: 0x33,
            ss: 0x2b,
            rflags: 0x202,
            ..Regs::default()
        };
        Self {
            xmm: [0; 16],
            pad: 0,
            regs,
        }
    }
}

/// What an exception in the libos leaves on its stack.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct OwnTrap {
    xmm: [u128; 16],
    scratch: [u64; 9],
    /// Where to go on.
    pub rip: u64,
    cs: u64,
    /// Flags to go on with.
    pub rflags: u64,
    rsp: u64,
    ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 256 + 8 + 21 * 8);
const _: () = assert!(size_of::<OwnTrap>() == 256 + 14 * 8);

global_asm!(
    // --- the header, first in the image --------------------------------------------------------------
    ".section .header, \"a\"",
    ".quad {magic}",
    ".quad {version}",
    ".quad libos_start",
    ".quad libos_syscall",
    ".quad libos_syscall_stashed",
    ".quad libos_upcall",
    ".quad libos_kcall_return",
    ".quad {boot}",
    ".quad libos_syscall_probe",
    ".text",

    ".macro SAVE",
    "push rax", "push rdi", "push rsi", "push rdx", "push rcx", "push rax", "push r8", "push r9", "push r10",
    "push r11", "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "sub rsp, 264",
    "movaps [rsp], xmm0", "movaps [rsp + 16], xmm1", "movaps [rsp + 32], xmm2", "movaps [rsp + 48], xmm3",
    "movaps [rsp + 64], xmm4", "movaps [rsp + 80], xmm5", "movaps [rsp + 96], xmm6", "movaps [rsp + 112], xmm7",
    "movaps [rsp + 128], xmm8", "movaps [rsp + 144], xmm9", "movaps [rsp + 160], xmm10",
    "movaps [rsp + 176], xmm11", "movaps [rsp + 192], xmm12", "movaps [rsp + 208], xmm13",
    "movaps [rsp + 224], xmm14", "movaps [rsp + 240], xmm15",
    "cld",
    ".endm",
    ".macro RESTORE",
    "movaps xmm0, [rsp]", "movaps xmm1, [rsp + 16]", "movaps xmm2, [rsp + 32]", "movaps xmm3, [rsp + 48]",
    "movaps xmm4, [rsp + 64]", "movaps xmm5, [rsp + 80]", "movaps xmm6, [rsp + 96]", "movaps xmm7, [rsp + 112]",
    "movaps xmm8, [rsp + 128]", "movaps xmm9, [rsp + 144]", "movaps xmm10, [rsp + 160]",
    "movaps xmm11, [rsp + 176]", "movaps xmm12, [rsp + 192]", "movaps xmm13, [rsp + 208]",
    "movaps xmm14, [rsp + 224]", "movaps xmm15, [rsp + 240]",
    "add rsp, 264",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "pop r11", "pop r10", "pop r9", "pop r8",
    "pop rax", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
    "add rsp, 8",
    ".endm",

    // --- system calls --------------------------------------------------------------------------------
    // By trap, where SYSCALL entered CPL 0: registers that it clobbers were stashed by the kernel.
    ".balign 16",
    "libos_syscall_stashed:",
    "mov rcx, gs:[24]",
    "mov r11, [rcx + 56]",
    "mov rcx, [rcx + 48]",
    // By trap: RCX = return address, R11 = flags.
    "libos_syscall:",
    "mov gs:[16], rsp",
    "mov rsp, gs:[8]",
    "push 0x2b",
    "push qword ptr gs:[16]",
    "push r11",
    "push 0x33",
    "push rcx",
    "SAVE",
    "mov esi, 1",
    "jmp 1f",
    // From a patched site: RCX = where to go on, flags as they are.
    ".balign 16",
    ".globl libos_patched",
    "libos_patched:",
    "mov gs:[16], rsp",
    "mov rsp, gs:[8]",
    "push 0x2b",
    "push qword ptr gs:[16]",
    "pushfq",
    "push 0x33",
    "push rcx",
    "SAVE",
    "xor esi, esi",
    "1:",
    "mov rdi, rsp",
    "call {syscall}",
    "test al, al",
    "jnz libos_resume",
    "RESTORE",
    "pop rcx",
    "add rsp, 8",
    "popfq",
    "pop rsp",
    "jmp rcx",

    // All registers as the frame says. IRETQ within CPL 3 takes everything from the libos's own stack.
    "libos_resume:",
    "RESTORE",
    "iretq",

    // --- upcalls -------------------------------------------------------------------------------------
    // RSP, RAX, RCX and flags are in the block. No interrupt touches that while the libos runs, nor does the code
    // below raise an exception before it has what it needs.
    ".balign 16",
    "libos_upcall:",
    "mov rcx, gs:[24]",
    "mov rax, [rcx + {b_rip}]",
    "shr rax, 39",
    "cmp eax, {slot}",
    "je 2f",
    "mov rsp, gs:[8]",
    "push 0x2b",
    "push qword ptr [rcx + {b_rsp}]",
    "push 0",
    "push 0x33",
    "push 0",
    "mov rax, [rcx + {b_rax}]",
    "mov rcx, [rcx + {b_rcx}]",
    "SAVE",
    "mov rdi, rsp",
    "call {upcall_user}",
    "jmp libos_resume",

    // It was an instruction of the libos, whose stack goes on.
    "2:",
    "mov rsp, [rcx + {b_rsp}]",
    "mov rax, [rcx + {b_rax}]",
    "mov rcx, [rcx + {b_rcx}]",
    "push rbp",
    "mov rbp, rsp",
    "and rsp, -16",
    "push 0x2b",
    "push rbp",
    "add qword ptr [rsp], 8",
    "push 0",
    "push 0x33",
    "push 0",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
    "sub rsp, 256",
    "movaps [rsp], xmm0", "movaps [rsp + 16], xmm1", "movaps [rsp + 32], xmm2", "movaps [rsp + 48], xmm3",
    "movaps [rsp + 64], xmm4", "movaps [rsp + 80], xmm5", "movaps [rsp + 96], xmm6", "movaps [rsp + 112], xmm7",
    "movaps [rsp + 128], xmm8", "movaps [rsp + 144], xmm9", "movaps [rsp + 160], xmm10",
    "movaps [rsp + 176], xmm11", "movaps [rsp + 192], xmm12", "movaps [rsp + 208], xmm13",
    "movaps [rsp + 224], xmm14", "movaps [rsp + 240], xmm15",
    "cld",
    "mov rdi, rsp",
    "call {upcall_own}",
    "movaps xmm0, [rsp]", "movaps xmm1, [rsp + 16]", "movaps xmm2, [rsp + 32]", "movaps xmm3, [rsp + 48]",
    "movaps xmm4, [rsp + 64]", "movaps xmm5, [rsp + 80]", "movaps xmm6, [rsp + 96]", "movaps xmm7, [rsp + 112]",
    "movaps xmm8, [rsp + 128]", "movaps xmm9, [rsp + 144]", "movaps xmm10, [rsp + 160]",
    "movaps xmm11, [rsp + 176]", "movaps xmm12, [rsp + 192]", "movaps xmm13, [rsp + 208]",
    "movaps xmm14, [rsp + 224]", "movaps xmm15, [rsp + 240]",
    "add rsp, 256",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "mov rbp, [rbp]",
    "iretq",

    // --- copies to and from the program --------------------------------------------------------------
    // A fault in one of these goes on at its `_end`.
    ".globl copy_program", ".globl copy_program_end", ".globl exchange_program", ".globl exchange_program_fault",
    ".globl exchange_program_end",
    "copy_program:",
    "rep movsb",
    "copy_program_end:",
    "ret",
    "exchange_program:",
    "xor ecx, ecx",
    "lock cmpxchg [rdi], esi",
    "mov ecx, 1",
    "exchange_program_end:",
    "ret",
    // Reads a word without serving a fault: ECX = 1 when it worked.
    ".globl read_program", ".globl read_program_end",
    "read_program:",
    "xor ecx, ecx",
    "mov eax, [rdi]",
    "mov ecx, 1",
    "read_program_end:",
    "ret",

    // --- SYSCALL self-test: where does it land? ------------------------------------------------------
    // LSTAR points here once, at boot. At CPL 0 the way back is SYSRET; at CPL 3 a jump.
    ".globl libos_syscall_probe",
    "libos_syscall_probe:",
    "mov eax, cs",
    "test al, 3",
    "jnz 2f",
    "sysretq",
    "2:",
    "jmp rcx",

    // --- first instruction on each vCPU --------------------------------------------------------------
    ".globl libos_start",
    "libos_start:",                 // edi = number, rsi and rdx: zeros that are not cleared yet
    "mov eax, edi",
    "mov r8, rax",
    "mov rdi, rsi",
    "mov rcx, rdx",
    "xor eax, eax",
    "rep stosb",
    "mov rdi, r8",
    "mov eax, edi",
    "shl rax, 16",
    "lea rsp, [rip + {stacks}]",
    "lea rsp, [rsp + rax + 65536]",
    "call {start}",
    "ud2",

    // --- kernel calls --------------------------------------------------------------------------------
    // The return address in RCX asks for the short way, where there is one.
    ".globl libos_switch_space",
    "libos_switch_space:",
    "mov eax, {switch}",
    "lea rcx, [rip + libos_kcall_return]",
    "jmp 2f",
    ".globl libos_kcall",
    "libos_kcall:",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "xor ecx, ecx",
    "2:",
    "int3",
    "libos_kcall_return:",
    "ret",

    magic = const LIBOS_MAGIC,
    switch = const cloak_abi::kcall::Kcall::SpaceSwitch as u64,
    version = const cloak_abi::VERSION,
    boot = sym super::BOOT,
    slot = const LIBOS_SLOT,
    b_rip = const core::mem::offset_of!(VcpuBlock, rip),
    b_rsp = const core::mem::offset_of!(VcpuBlock, rsp),
    b_rax = const core::mem::offset_of!(VcpuBlock, rax),
    b_rcx = const core::mem::offset_of!(VcpuBlock, rcx),
    syscall = sym super::traps::syscall,
    upcall_user = sym super::traps::upcall_user,
    upcall_own = sym super::traps::upcall_own,
    start = sym crate::boot::start,
    stacks = sym BOOT_STACKS,
);

/// Stacks on which each vCPU starts, and on which its idle thread goes on.
#[repr(C, align(4096))]
pub struct BootStacks([[u8; 65536]; MAX_VCPUS]);
static mut BOOT_STACKS: BootStacks = BootStacks([[0; 65536]; MAX_VCPUS]);

unsafe extern "C" {
    /// Copies RCX bytes; what is left is in RCX.
    pub fn copy_program();
    fn copy_program_end();
    /// Compare-exchange; ECX = 1 when it did not fault.
    pub fn exchange_program();
    fn exchange_program_end();
    /// Reads a word; ECX = 1 when it did not fault.
    pub fn read_program();
    fn read_program_end();
    fn libos_kcall();
    fn libos_switch_space();
    fn libos_patched();
}

/// Where the copy routine that contains `rip` ends, if one does.
pub fn fixup(rip: u64) -> Option<u64> {
    let within = |start: unsafe extern "C" fn(), end: unsafe extern "C" fn()| {
        (start as *const () as u64..end as *const () as u64)
            .contains(&rip)
            .then_some(end as *const () as u64)
    };
    within(copy_program, copy_program_end)
        .or_else(|| within(exchange_program, exchange_program_end))
        .or_else(|| within(read_program, read_program_end))
}

/// Whether a fault at `rip` is to be reported only, not served (the code there holds a spin lock).
pub fn must_not_park(rip: u64) -> bool {
    (read_program as *const () as u64..read_program_end as *const () as u64).contains(&rip)
}

/// Address that patched sites jump to.
pub fn patched_entry() -> u64 {
    libos_patched as *const () as u64
}

/// The kernel-call instruction.
pub fn kernel_call(number: u64, first: u64, second: u64) -> i64 {
    let result: i64;
    // SAFETY: the kernel preserves callee-saved registers and clears the others.
    unsafe {
        asm!("call {f}", f = sym libos_kcall, in("rdi") number, in("rsi") first,
            in("rdx") second, lateout("rax") result,
            clobber_abi("C"));
    }
    result
}

/// Goes on with the root table at `root`, which the kernel knows as space `tag`; negative where it does not.
pub fn switch_space(tag: u64, root: u64) -> i64 {
    let result: i64;
    // SAFETY: as above. All tables map what runs here.
    unsafe {
        asm!("call {f}", f = sym libos_switch_space, in("rdi") tag, in("rsi") root, lateout("rax") result,
            clobber_abi("C"));
    }
    result
}

/// The running thread's control block.
pub fn tcb() -> &'static Tcb {
    let tcb: *const Tcb;
    // SAFETY: GS holds it since `set_tcb` at the vCPU's start; the program is told not to change GS and only
    // harms itself if it does.
    unsafe { asm!("rdgsbase {}", out(reg) tcb, options(nomem, nostack, preserves_flags)) };
    // SAFETY: the block lives as long as its thread, which runs this.
    unsafe { &*tcb }
}

/// For each vCPU before its idle thread exists.
struct BootTcbs([Tcb; MAX_VCPUS]);
// SAFETY: each element is used by its own vCPU only.
unsafe impl Sync for BootTcbs {}
static BOOT_TCBS: BootTcbs = BootTcbs(
    [const {
        Tcb {
            thread: Cell::new(0),
            stack_top: Cell::new(0),
            user_rsp: Cell::new(0),
            vcpu_block: Cell::new(0),
            vcpu_index: Cell::new(0),
        }
    }; MAX_VCPUS],
);

/// Lets vCPU `index`, which runs this, ask for its index before it has a thread.
pub fn set_boot_tcb(index: usize) {
    // SAFETY: static.
    unsafe { set_tcb(&raw const BOOT_TCBS.0[index], index) };
}

/// Whether SYSCALL stays at CPL 3 on this host. To be called while the kernel's LSTAR points at the probe.
pub fn syscall_stays_in_user_mode() -> bool {
    let selector: u64;
    // SAFETY: the probe only reads CS and comes back; RCX and R11 are clobbered as by any SYSCALL.
    unsafe {
        asm!("syscall", lateout("rax") selector, out("rcx") _, out("r11") _, options(nostack));
    }
    selector & 3 == 3
}

/// Makes `tcb` the running thread's, on vCPU `index`.
///
/// # Safety
/// `tcb` must live while it is current.
pub unsafe fn set_tcb(tcb: *const Tcb, index: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        (*tcb)
            .vcpu_block
            .set(LIBOS_VCPU_VA + index as u64 * cloak_abi::layout::PAGE);
        (*tcb).vcpu_index.set(index as u64);
        asm!("wrgsbase {}", in(reg) tcb, options(nostack, preserves_flags));
    }
}

/// Leaves the libos with all registers of `frame`. The libos stack starts again at its top next time.
pub fn resume(frame: &Frame) -> ! {
    // SAFETY: the frame is copied below the stack's top, as if an entry had put it there.
    unsafe {
        asm!(
            "mov rsp, gs:[8]",
            "sub rsp, {size}",
            "mov rdi, rsp",
            "mov ecx, {words}",
            "rep movsq",
            "jmp libos_resume",
            size = const size_of::<Frame>(), words = const size_of::<Frame>() / 8, in("rsi") frame,
            options(noreturn)
        );
    }
}
