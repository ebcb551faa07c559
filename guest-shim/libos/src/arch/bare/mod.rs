//! The machine for real: CPL 3 in the libos's slot.

mod context;
mod entry;
mod memory;
mod traps;
mod wide;

pub use context::{
    Context, Stack, XSAVE_MAX, fs_base, new_context, restore_vector, save_vector, set_fs_base, switch,
    vector_len,
};
pub use entry::{
    Frame, Regs, Tcb, patched_entry, resume, set_boot_tcb, set_tcb, syscall_stays_in_user_mode, tcb,
};
pub use wide::with_wide_registers;

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use cloak_abi::anchor::{self, ANCHORS, AnchorSlot};
use cloak_abi::boot::ContextBlock;
use cloak_abi::exec::{self, ExecPage};
use cloak_abi::kcall::Kcall;
use cloak_abi::layout::{LIBOS_SHARED_VA, LIBOS_VCPU_VA, MAX_SEGMENTS, PAGE, doorbell_port, monitor_port};
use cloak_abi::vcpu::{MonitorCall, VcpuBlock};

use crate::errno::{Errno, SysResult};

/// A cell for the context's part of the boot block; written by the monitor before the first instruction.
#[repr(transparent)]
struct BootCell(UnsafeCell<ContextBlock>);
// SAFETY: never written after the start.
unsafe impl Sync for BootCell {}

static BOOT: BootCell = BootCell(UnsafeCell::new(ContextBlock {
    // Not zero, so that it lies in the image's data.
    index: 1,
    vcpus: 0,
    first_vcpu: 0,
    own_tables: 0,
    frames: [[0; 2]; 2],
    segments: [[0; 2]; MAX_SEGMENTS],
    table_pool: 0,
    table_pool_end: 0,
    table_pool_next: 0,
    root: 0,
    free_frames: 0,
    libos_gpa: 0,
    vcpu_blocks: 0,
    config_gpa: 0,
    config_len: 0,
    tsc_khz: 0,
    platform: 0,
    private_bit: 0,
    identity: [0; 48],
}));

/// What the context has.
pub fn boot() -> &'static ContextBlock {
    // SAFETY: constant since before the first instruction. `black_box` because the compiler must not
    // believe the initial value.
    unsafe { &*core::hint::black_box(BOOT.0.get()) }
}

/// Where the shared region is.
pub fn shared_base() -> *mut u8 {
    LIBOS_SHARED_VA as *mut u8
}

/// Index of the vCPU that runs this. Constant while the libos does not park.
pub fn vcpu_index() -> usize {
    tcb().vcpu_index.get() as usize
}

/// vCPU `index`'s block.
pub fn vcpu_block(index: usize) -> &'static VcpuBlock {
    assert!(index < boot().vcpus as usize, "vCPU index");
    // SAFETY: mapped for every vCPU; atomics only.
    unsafe { &*((LIBOS_VCPU_VA + index as u64 * PAGE) as *const VcpuBlock) }
}

/// Wakes the OS service (0) or vCPU n (1 + n), without a return to the monitor.
pub fn doorbell(value: u32) {
    let port = doorbell_port(boot().index);
    // SAFETY: the port that the kernel opened for this.
    unsafe { core::arch::asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

/// Leaves to the monitor, with the call's argument.
pub fn monitor(call: MonitorCall, argument: u32) {
    let port = monitor_port(boot().index);
    // SAFETY: the port that the kernel opened for this.
    unsafe {
        core::arch::asm!("out dx, eax", in("dx") port, in("eax") call.encode(argument), options(nostack))
    };
}

/// Where anchor `number` of a protected volume is told to the monitor.
pub fn anchor_slot(number: usize) -> &'static AnchorSlot {
    assert!(number < ANCHORS, "number of an anchor");
    let page = anchor::page_at(boot().config_gpa, boot().config_len);
    let at = crate::mem::frames::window(page) + (number * size_of::<AnchorSlot>()) as u64;
    // SAFETY: the page lies before the first free frame, for the life of the VM; atomics only.
    unsafe { &*(at as *const AnchorSlot) }
}

/// Where the monitor asks for further processes.
pub fn exec_page() -> &'static ExecPage {
    let head = exec::head_at(boot().config_gpa, boot().config_len);
    // SAFETY: before the first free frame, for the life of the VM; atomics only.
    unsafe { &*(crate::mem::frames::window(head) as *const ExecPage) }
}

/// Copies the request that stands behind the head: at most `len` bytes.
pub fn exec_request(len: usize) -> alloc::vec::Vec<u8> {
    let head = exec::head_at(boot().config_gpa, boot().config_len);
    let mut bytes = alloc::vec![0; len.min(exec::REQUEST_MAX)];
    let from = (crate::mem::frames::window(head) + exec::HEAD_LEN as u64) as *const u8;
    // SAFETY: the buffer lies behind the head and has that many bytes; the monitor leaves it alone until `asked` is clear.
    unsafe { super::copy_own(bytes.as_mut_ptr(), from, bytes.len()) };
    bytes
}

/// A kernel call.
pub fn kcall(call: Kcall, argument: u64) -> i64 {
    kcall2(call, argument, 0)
}

/// A kernel call with two arguments.
pub fn kcall2(call: Kcall, first: u64, second: u64) -> i64 {
    vcpu_block(vcpu_index()).kcalls.fetch_add(1, Ordering::Relaxed);
    entry::kernel_call(call as u64, first, second)
}

/// Loads an address space's root table; the kernel knows the space as `tag`. Negative when it does not.
pub fn switch_space(tag: u64, root: u64) -> i64 {
    vcpu_block(vcpu_index()).kcalls.fetch_add(1, Ordering::Relaxed);
    entry::switch_space(tag, root)
}

/// Ticks in a second.
pub fn ticks_per_second() -> u64 {
    boot().tsc_khz * 1000
}

/// Copies between the libos and the program.
///
/// # Errors
/// EFAULT when an address of the program is not mapped or not accessible.
pub fn copy(to: u64, from: u64, len: usize) -> SysResult<()> {
    let left: usize;
    // SAFETY: the callers checked that the program's side is outside the libos slot, and their own side is
    // their own. A fault inside `copy_program` resumes at its end with what is left in RCX.
    unsafe {
        core::arch::asm!("call {f}", f = sym entry::copy_program, inout("rdi") to => _, inout("rsi") from => _,
            inout("rcx") len => left);
    }
    if left == 0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Compares and exchanges a word of the program's memory; gives what was there.
///
/// # Errors
/// EFAULT.
pub fn compare_exchange_program(address: u64, old: u32, new: u32) -> SysResult<u32> {
    crate::user::check_word(address)?;
    let found: u32;
    let ok: u32;
    // SAFETY: as `copy`.
    unsafe {
        core::arch::asm!("call {f}", f = sym entry::exchange_program, in("rdi") address, in("esi") new,
            inout("eax") old => found, out("ecx") ok);
    }
    if ok == 1 { Ok(found) } else { Err(Errno::EFAULT) }
}

/// Reads a word of the program's memory, if it is there now. Never parks.
pub fn read_program_word(address: u64) -> Option<u32> {
    crate::user::check_word(address).ok()?;
    let (value, ok): (u32, u32);
    // SAFETY: as `copy`; a fault gives ECX = 0.
    unsafe {
        core::arch::asm!("call {f}", f = sym entry::read_program, in("rdi") address, out("eax") value, out("ecx") ok);
    }
    (ok == 1).then_some(value)
}

/// Vector state components that are enabled.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is on.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    (u64::from(low) | u64::from(high) << 32) & 0x2e7
}

/// A random word from the CPU, if it has one.
pub fn hardware_random() -> Option<u64> {
    static HAS: spin::Lazy<bool> = spin::Lazy::new(|| core::arch::x86_64::__cpuid(1).ecx & 1 << 30 != 0);
    if !*HAS {
        return None;
    }
    for _ in 0..10 {
        let (value, ok): (u64, u8);
        // SAFETY: RDRAND exists.
        unsafe {
            core::arch::asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack))
        };
        if ok != 0 {
            return Some(value);
        }
    }
    None
}

/// Ends the VM with a message: the libos found something that must not be.
pub fn panic_exit(message: &str) -> ! {
    exit(cloak_abi::ring::exit_status::PANIC, message)
}

/// Ends the VM.
pub fn exit(status: u64, message: &str) -> ! {
    let header = crate::host::header();
    let mut words = [0u8; 1024];
    let len = message.len().min(words.len());
    words[..len].copy_from_slice(&message.as_bytes()[..len]);
    for (to, from) in header.message.iter().zip(words.chunks_exact(8)) {
        to.store(
            u64::from_le_bytes(from.try_into().unwrap_or_default()),
            Ordering::Relaxed,
        );
    }
    header.message_len.store(len as u32, Ordering::Relaxed);
    header.exit_status.store(status, Ordering::Release);
    loop {
        kcall(Kcall::Exit, 0);
    }
}

/// Gate for the header in `entry`.
const _: () = assert!(core::mem::offset_of!(VcpuBlock, syscall_rip) == 48);
