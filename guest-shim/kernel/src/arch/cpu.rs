//! Per-vCPU state: descriptor tables, kernel stack and what the entry code needs at fixed offsets from it.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::boot::LibosHeader;
use cloak_abi::layout::{KERNEL_VA, LAST_PORT, MAX_VCPUS, doorbell_port, monitor_port};
use cloak_abi::vcpu::MonitorCall;

use super::entry;

/// Selectors are Linux's: programs see them in signal frames, and hosts that run CPL 3 natively load their own.
pub const KERNEL_CS: u16 = 0x10;
pub const USER_SS: u16 = 0x2b;
pub const USER_CS: u16 = 0x33;
/// Flags that SYSCALL clears: TF, IF, DF, NT, AC.
pub const FLAG_MASK: u64 = 0x4_4700;
const TSS_SELECTOR: u16 = 0x40;
/// Messages to a security processor are sealed on it, which takes most.
const STACK: usize = 4 * 4096 - 64;

/// One vCPU's kernel memory. The entry code finds it from the stack that the CPU switches to.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Cpu {
    stack: [u8; STACK],
    /// This vCPU's [`cloak_abi::vcpu::VcpuBlock`] in the kernel's window. First at the stack's top.
    pub block: u64,
    /// The frame with which a trap goes up: the libos's entry, whose stack pointer has no meaning.
    pub upcall: [u64; 5],
    /// Return address of the kernel-call instruction.
    pub kcall: u64,
    /// Where SYSCALL goes on when it entered CPL 0.
    pub syscall_stashed: u64,
    /// The VM's number of the vCPU.
    pub index: u64,
    /// The context whose vCPU it is, for good.
    pub context: u64,
    /// RAX while the SYSCALL stub needs it.
    pub spare: u64,
    /// Number of the address space that is current. Written by this vCPU, before it loads the root table.
    pub space: AtomicU64,
    gdt: [u64; 10],
    tss: Tss,
}

/// Offset of [`Cpu::block`]: the kernel stack ends there.
pub const STACK_TOP: usize = STACK;

#[repr(C, packed(4))]
#[derive(Debug)]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    bitmap_offset: u16,
    bitmap: [u8; BITMAP],
}

/// Bytes of the I/O permission bitmap: up to the ports of the last context, and a closing byte.
const BITMAP: usize = LAST_PORT as usize / 8 + 2;

pub static mut CPUS: [Cpu; MAX_VCPUS] = [const {
    Cpu {
        stack: [0; STACK],
        block: 0,
        upcall: [0; 5],
        kcall: 0,
        syscall_stashed: 0,
        index: 0,
        context: 0,
        spare: 0,
        space: AtomicU64::new(0),
        gdt: [0; 10],
        tss: Tss {
            reserved0: 0,
            rsp: [0; 3],
            reserved1: 0,
            ist: [0; 7],
            reserved2: 0,
            reserved3: 0,
            bitmap_offset: 0,
            bitmap: [0; BITMAP],
        },
    }
}; MAX_VCPUS];

/// vCPU `index`'s memory.
pub fn cpu(index: usize) -> &'static Cpu {
    // SAFETY: written by `install` on that vCPU before it can be asked for; constant afterwards but for
    // `spare` and the stack, which only assembly touches.
    unsafe {
        let all = &raw const CPUS;
        &(*all)[index]
    }
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Where a part of [`Cpu`] is for the entry code, which counts from the stack's top.
pub const fn above_stack(offset: usize) -> usize {
    offset - STACK_TOP
}

/// What a vCPU needs to enter CPL 3 and come back. `block` is its block in the kernel's window.
pub fn install(index: usize, context: u32, block: u64, header: &LibosHeader) {
    // SAFETY: each vCPU installs its own element, once, before it takes a trap from CPL 3.
    let cpu = unsafe {
        let all = &raw mut CPUS;
        &mut (*all)[index]
    };
    // The eight ports of its context, and no other's.
    cpu.tss.bitmap[doorbell_port(context) as usize / 8] = 0;
    cpu.block = block;
    cpu.upcall = [header.upcall, u64::from(USER_CS), 0x202, 0, u64::from(USER_SS)];
    cpu.kcall = header.kcall;
    cpu.syscall_stashed = header.syscall_stashed;
    cpu.context = u64::from(context);
    // STAR: SYSCALL loads CS 0x10, SS 0x18; SYSRET loads CS 0x33, SS 0x2b.
    wrmsr(0xc000_0081, 0x23 << 48 | u64::from(KERNEL_CS) << 32);
    wrmsr(0xc000_0082, entry::syscall_stub());
    wrmsr(0xc000_0084, FLAG_MASK);
    // Kernel GS for the SYSCALL stub, which has no stack of its own.
    wrmsr(0xc000_0102, &raw const cpu.block as u64);
}

/// Fills this vCPU's descriptor tables and loads them: from here on it can take a trap of its own.
pub fn load_tables(index: usize) {
    // SAFETY: each vCPU fills its own element, once, before it takes a trap.
    let cpu = unsafe {
        let all = &raw mut CPUS;
        &mut (*all)[index]
    };
    cpu.index = index as u64;
    let top = &raw const cpu.block as u64;
    cpu.tss.rsp[0] = top;
    // A double fault or machine check runs on the same stack: both end the VM.
    cpu.tss.ist[0] = top - 2048;
    // All that an NMI needs: its frame, at the far end.
    cpu.tss.ist[1] = &raw const cpu.stack as u64 + 256;
    cpu.tss.bitmap_offset = core::mem::offset_of!(Tss, bitmap) as u16;
    for byte in &mut cpu.tss.bitmap {
        *byte = 0xff;
    }
    let tss = &raw const cpu.tss as u64;
    let limit = size_of::<Tss>() as u64 - 1;
    cpu.gdt = [
        0,
        0,
        0x00af_9b00_0000_ffff, // 0x10 kernel code
        0x00cf_9300_0000_ffff, // 0x18 kernel data
        0x00cf_fb00_0000_ffff, // 0x23 32-bit user code (never used; SYSRET counts from it)
        0x00cf_f300_0000_ffff, // 0x2b user data
        0x00af_fb00_0000_ffff, // 0x33 user code
        0,
        limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56,
        tss >> 32,
    ];
    let gdt = Pointer {
        limit: size_of_val(&cpu.gdt) as u16 - 1,
        base: cpu.gdt.as_ptr() as u64,
    };
    load_idt(entry::idt());
    // SAFETY: the tables are complete and live as long as the VM; the code selector is the same flat one
    // that the monitor started us with.
    unsafe {
        asm!(
            "lgdt [{gdt}]", "ltr {tss:x}",
            "mov ss, {null:x}", "mov ds, {null:x}", "mov es, {null:x}",
            gdt = in(reg) &raw const gdt, tss = in(reg) TSS_SELECTOR,
            null = in(reg) 0,
        );
    }
}

/// Gives this vCPU the interrupt descriptor table at `base`, all of whose gates name the first stack of the interrupt stack
/// table. It is the one that traps from CPL 3 take anyway.
pub fn load_interrupts(index: usize, base: u64) {
    // SAFETY: this vCPU's own element, after `load_tables`.
    unsafe {
        let all = &raw mut CPUS;
        let cpu = &mut (*all)[index];
        cpu.tss.ist[0] = &raw const cpu.block as u64;
    }
    load_idt(base);
}

/// From here on the entry code of this vCPU loads any root table that it is asked for.
pub fn take_short_way() {
    load_idt(entry::short_idt());
}

/// Loads the interrupt descriptor table at `base`.
fn load_idt(base: u64) {
    let idt = Pointer {
        limit: entry::IDT_BYTES as u16 - 1,
        base,
    };
    // SAFETY: the callers' tables are complete, and live as long as the VM.
    unsafe { asm!("lidt [{}]", in(reg) &raw const idt) };
}

/// This vCPU's root table.
pub fn root() -> u64 {
    let root;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nostack, nomem)) };
    root
}

/// Sets a model-specific register.
pub fn wrmsr(register: u32, value: u64) {
    // SAFETY: called with the syscall registers, the GHCB's and the end of an interrupt only.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack));
    }
}

/// This vCPU (`cpu`) goes on in space `number`, whose root table is at `root`.
pub fn switch(cpu: &Cpu, number: u64, root: u64) {
    // Whoever changes the space's tables and then finds another number here may skip this vCPU: it has yet
    // to load the root, and what it finds from then on is new.
    cpu.space.store(number, Ordering::SeqCst);
    // SAFETY: a root table that maps the kernel as all do.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}

/// Forgets this vCPU's translations.
pub fn reload() {
    // SAFETY: the same root again.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) };
}

/// Leaves to the monitor. It knows the vCPU, and so the context, whose ports all mean the same.
pub fn monitor(call: MonitorCall, argument: u32) {
    // SAFETY: the monitor's port.
    unsafe {
        asm!("out dx, eax", in("dx") monitor_port(0), in("eax") call.encode(argument), options(nostack))
    };
}

/// Ends the VM: something that must not be. `reason` is told to the user.
pub fn panic_stop(reason: u32) -> ! {
    // Above the kernel's own reasons are those of exceptions (`entry::kernel_fault`).
    super::platform::panic(reason >= 0x100);
    loop {
        monitor(MonitorCall::Panic, reason);
    }
}

const _: () = assert!(KERNEL_VA.is_multiple_of(4096));
