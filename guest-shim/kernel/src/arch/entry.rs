//! Entry code: vectors, the way up to the libos, the SYSCALL hand-over, the kernel-call gate.
//!
//! Every instruction here costs 0.6 us and more where CPL 0 is interpreted, so there is no register save that is not
//! needed and no Rust on the upcall path.
//!
//! Stack on arrival, after the vector stub (offsets from RSP):
//! `0 vector, 8 error, 16 rip, 24 cs, 32 rflags, 40 rsp, 48 ss`, then [`super::cpu::Cpu::block`] at 56.

use core::arch::{asm, global_asm};

use cloak_abi::kcall::Kcall;
use cloak_abi::layout::{KERNEL_VA, KICK_VECTOR, LIBOS_SLOT};
use cloak_abi::vcpu::VcpuBlock;

use super::cpu::{Cpu, KERNEL_CS, USER_CS, USER_SS};

/// All that there are: an interrupt beyond the table would be a fault of whom it interrupts.
pub const VECTORS: usize = 256;
/// Bytes of the interrupt descriptor table.
pub const IDT_BYTES: usize = VECTORS * 16;
/// The linker script puts the stubs first: 16 bytes for each vector.
const STUBS: u64 = KERNEL_VA;

/// An interrupt descriptor table.
#[repr(align(16))]
pub struct Idt(pub [[u64; 2]; VECTORS]);

/// A gate to `handler` in the kernel's code, on stack `ist` of the interrupt stack table unless that is 0, which code of level
/// `dpl` and above may call by an instruction.
pub const fn gate_to(handler: u64, ist: u64, dpl: u64) -> [u64; 2] {
    let flags: u64 = 0x8e | dpl << 5;
    [
        handler & 0xffff
            | (KERNEL_CS as u64) << 16
            | ist << 32
            | flags << 40
            | (handler >> 16 & 0xffff) << 48,
        handler >> 32,
    ]
}

const fn gate(vector: u64) -> [u64; 2] {
    let handler = STUBS + 16 * vector;
    // INT3 (3) and INTO (4) may be raised by software at CPL 3; a double fault (8) has a stack of its own.
    let dpl = if vector == 3 || vector == 4 { 3 } else { 0 };
    // So has an NMI, which comes at any place, the stub of SYSCALL included, if a hypervisor likes.
    let ist = match vector {
        8 => 1,
        2 => 2,
        _ => 0,
    };
    gate_to(handler, ist, dpl)
}

const GATES: Idt = Idt({
    let mut table = [[0; 2]; VECTORS];
    let mut vector = 0;
    while vector < VECTORS {
        table[vector] = gate(vector as u64);
        vector += 1;
    }
    table
});
static IDT: Idt = GATES;
/// The same with a shorter way to another address space.
static mut SHORT_IDT: Idt = GATES;

/// Address of the interrupt descriptor table.
pub fn idt() -> u64 {
    IDT.0.as_ptr() as u64
}

/// Address of the one for contexts that answer for their tables themselves.
pub fn short_idt() -> u64 {
    let gate = gate_to(short_breakpoint as *const () as u64, 0, 3);
    let table = &raw mut SHORT_IDT;
    // SAFETY: nothing else is ever written there; no vCPU takes a breakpoint before it has been here itself.
    unsafe {
        (&raw mut (*table).0[3]).write_volatile(gate);
        (*table).0.as_ptr() as u64
    }
}

unsafe extern "C" {
    fn short_breakpoint();
    fn syscall_entry();
    fn kernel_entry();
    fn read_sev_status() -> u64;
}

/// Address of the first instruction of each vCPU.
pub fn first_instruction() -> u64 {
    kernel_entry as *const () as u64
}

/// What the CPU says of encrypted memory (`MSR_SEV_STATUS`); 0 where it has no such register.
pub fn sev_status() -> u64 {
    // SAFETY: the register has no effect; where it does not exist, the fault that a read raises goes on behind it.
    unsafe { read_sev_status() }
}

/// Address of the SYSCALL stub.
pub fn syscall_stub() -> u64 {
    syscall_entry as *const () as u64
}

/// Enters CPL 3 for the first time on this vCPU. `zeros` is memory that the libos clears before anything else: address and
/// length.
pub fn enter_libos(rip: u64, index: u64, zeros: [u64; 2]) -> ! {
    // SAFETY: `rip` is the libos's start, from its checked header; it sets its own stack.
    unsafe {
        asm!(
            "push {ss}", "push 0", "push 0x202", "push {cs}", "push {rip}",
            "xor eax, eax", "xor ebx, ebx", "xor ecx, ecx", "xor ebp, ebp",
            "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
            "iretq",
            ss = const USER_SS, cs = const USER_CS, rip = in(reg) rip, in("rdi") index,
            in("rsi") zeros[0], in("rdx") zeros[1],
            options(noreturn),
        );
    }
}

global_asm!(
    // --- vector stubs -------------------------------------------------------------------------------
    ".section .vectors, \"ax\"",
    ".set v, 0",
    ".rept {vectors}",
    ".balign 16",
    ".if v == 3",
    "jmp breakpoint",
    ".elseif v == {kick}",
    "jmp kick",
    ".elseif v == 2",
    "iretq", // nobody here sends one: it is dropped
    ".elseif v == 8",
    "jmp double_fault",
    ".elseif v == 20",
    "jmp virtualization_exception", // `platform::tdx::exception`
    ".elseif v >= 32",
    "jmp stray",
    ".elseif v == 10 || v == 11 || v == 12 || v == 13 || v == 14 || v == 17 || v == 21 || v == 29 || v == 30",
    "push v",
    "jmp trap",
    ".else",
    "push 0",
    "push v",
    "jmp trap",
    ".endif",
    ".set v, v + 1",
    ".endr",
    ".text",

    // --- exceptions ---------------------------------------------------------------------------------
    // The interrupted registers that the upcall takes go to the vCPU's block, by a pop each; RAX and RCX with them. The
    // way back is a frame that is ready: the libos finds out whose instruction it was, and takes its stack itself.
    ".globl trap",
    "trap:",
    "test byte ptr [rsp + 24], 3",
    "jz kernel_trap",
    "push rcx",
    "mov rcx, [rsp + 64]",          // block
    "pop qword ptr [rcx + {b_rcx}]",
    "pop qword ptr [rcx + {b_vector}]",
    "pop qword ptr [rcx + {b_error}]",
    "pop qword ptr [rcx + {b_rip}]",
    "pop qword ptr [rcx + {b_cs}]",
    "pop qword ptr [rcx + {b_rflags}]",
    "pop qword ptr [rcx + {b_rsp}]",
    "mov [rcx + {b_rax}], rax",
    "mov rax, cr2",
    "mov [rcx + {b_cr2}], rax",
    "add rsp, 8 + {c_upcall}",
    "iretq",

    // An exception in the kernel itself: the kernel is wrong, or the host is. Stop.
    "double_fault:",
    "push 8",
    "kernel_trap:",
    "cmp dword ptr [rsp], 13",      // #GP at the one instruction that may raise it
    "jne 4f",
    "push rax",
    "lea rax, [rip + sev_probe]",
    "cmp [rsp + 24], rax",
    "lea rax, [rip + sev_absent]",
    "jne 3f",
    "mov [rsp + 24], rax",
    "pop rax",
    "add rsp, 16",
    "iretq",
    "3:",
    "pop rax",
    "4:",
    "mov edi, [rsp]",
    "mov rsi, [rsp + 16]",
    "mov rdx, cr2",
    "and rsp, -16",
    "call {kernel_fault}",

    // --- kick ---------------------------------------------------------------------------------------
    // While the libos runs it only learns that something is pending; the program is interrupted.
    "kick:",
    "push 0",
    "push {kick}",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "mov edi, [rsp + 72 + 56 + {c_index}]",
    "call {on_kick}",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "mov rcx, [rsp + 72]",
    "inc qword ptr [rcx + {b_interrupts}]",
    "mov rax, [rsp + 32]",
    "shr rax, 39",
    "cmp eax, {slot}",
    "je 2f",
    "pop rcx",
    "pop rax",
    "jmp trap",
    "2:",
    "mov dword ptr [rcx + {b_pending}], 1",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",

    // --- interrupts that nobody asked for -----------------------------------------------------------
    // Only at CPL 3, as kicks: the kernel runs with interrupts off.
    "stray:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "mov edi, [rsp + 72 + 40 + {c_index}]",
    "call {on_stray}",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",

    // --- kernel calls -------------------------------------------------------------------------------
    // The libos's stub is a function to its compiler: caller-saved registers are dead there.
    //
    // Where the libos edits its tables itself it could give itself anything there is, so what it names as a root table
    // is loaded as it comes. It says that it wants this by its return address in RCX, which no program's breakpoint has.
    ".globl short_breakpoint",
    "short_breakpoint:",
    "cmp [rsp], rcx",
    "jne breakpoint",
    // The number first, as in `cpu::switch`; loading CR3 makes it seen.
    "mov [rsp + 40 + {c_space}], rdi",
    "mov cr3, rsi",
    "iretq",
    "breakpoint:",
    "push rcx",
    "mov rcx, [rsp + 48 + {c_kcall}]",
    "cmp [rsp + 8], rcx",
    "jne 3f",
    "cmp rax, {flush}",
    "jne 5f",
    "mov rcx, cr3",
    "mov cr3, rcx",
    "xor eax, eax",
    "pop rcx",
    "iretq",
    // All others. Registers are cleared so that nothing of the kernel's is left in them.
    "5:",
    "mov ecx, [rsp + 48 + {c_index}]",
    "xchg rax, rdi",
    "xchg rax, rsi",                // number, first argument; second stays in rdx after the next
    "xchg rax, rdx",
    "call {kcall}",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor esi, esi",
    "xor edi, edi",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "add rsp, 8",
    "iretq",
    "3:",
    "pop rcx",
    "push 0",
    "push 3",
    "jmp trap",

    // --- SYSCALL where it enters CPL 0 --------------------------------------------------------------
    // Straight back up to the libos, with the return address and flags stashed in the vCPU's block.
    ".globl syscall_entry",
    "syscall_entry:",
    "swapgs",
    "mov gs:[{c_spare}], rax",
    "mov rax, gs:[0]",              // block
    "mov [rax + {b_srip}], rcx",
    "mov [rax + {b_srflags}], r11",
    "mov rcx, gs:[{c_stashed}]",
    "mov rax, gs:[{c_spare}]",
    "swapgs",
    "mov r11d, 0x202",
    "sysretq",

    // --- first instruction of each vCPU -------------------------------------------------------------
    ".globl kernel_entry",
    "kernel_entry:",                // edi = index
    "mov eax, edi",
    "imul rax, rax, {cpu_size}",
    "lea rsp, [rip + {cpus}]",
    "lea rsp, [rsp + rax + {stack_top}]",
    "and rsp, -16",
    "call {start}",
    "ud2",

    // --- whether encrypted memory is on -------------------------------------------------------------
    ".globl read_sev_status",
    "read_sev_status:",
    "mov ecx, 0xc0010131",
    "sev_probe:",
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "ret",
    "sev_absent:",
    "xor eax, eax",
    "ret",
    vectors = const VECTORS,
    kick = const KICK_VECTOR,
    slot = const LIBOS_SLOT,
    b_rip = const core::mem::offset_of!(VcpuBlock, rip),
    b_rsp = const core::mem::offset_of!(VcpuBlock, rsp),
    b_rflags = const core::mem::offset_of!(VcpuBlock, rflags),
    b_vector = const core::mem::offset_of!(VcpuBlock, vector),
    b_error = const core::mem::offset_of!(VcpuBlock, error),
    b_cr2 = const core::mem::offset_of!(VcpuBlock, cr2),
    b_pending = const core::mem::offset_of!(VcpuBlock, pending),
    b_rax = const core::mem::offset_of!(VcpuBlock, rax),
    b_rcx = const core::mem::offset_of!(VcpuBlock, rcx),
    b_cs = const core::mem::offset_of!(VcpuBlock, cs),
    b_interrupts = const core::mem::offset_of!(VcpuBlock, interrupts),
    b_srip = const core::mem::offset_of!(VcpuBlock, syscall_rip),
    b_srflags = const core::mem::offset_of!(VcpuBlock, syscall_rflags),
    c_upcall = const super::cpu::above_stack(core::mem::offset_of!(Cpu, upcall)),
    c_kcall = const super::cpu::above_stack(core::mem::offset_of!(Cpu, kcall)),
    c_index = const super::cpu::above_stack(core::mem::offset_of!(Cpu, index)),
    c_space = const super::cpu::above_stack(core::mem::offset_of!(Cpu, space)),
    c_stashed = const super::cpu::above_stack(core::mem::offset_of!(Cpu, syscall_stashed)),
    c_spare = const super::cpu::above_stack(core::mem::offset_of!(Cpu, spare)),
    flush = const Kcall::Flush as u64,
    cpu_size = const size_of::<Cpu>(),
    cpus = sym super::cpu::CPUS,
    stack_top = const super::cpu::STACK_TOP,
    kernel_fault = sym kernel_fault,
    on_kick = sym super::kcall::on_kick,
    on_stray = sym super::kcall::on_stray,
    kcall = sym super::kcall::dispatch,
    start = sym super::start,
);

extern "C" fn kernel_fault(vector: u32, rip: u64, cr2: u64) -> ! {
    // The monitor prints the reason word; the addresses are in registers that it can read.
    let _ = (rip, cr2);
    super::panic_stop(0x100 | vector)
}
