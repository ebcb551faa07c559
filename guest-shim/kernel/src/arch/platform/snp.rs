//! SEV-SNP: the start from a measured image, memory, messages and vCPUs. What is said and believed is `cloak_snp`'s.
//!
//! The VM has one context, whose libos runs where it was measured: nothing of it is copied.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::boot::{LaunchBlock, LibosHeader, platform};
use cloak_abi::kcall::{KcallError, PTE_NX, PTE_U, PTE_W, REPORT_DATA, ROOT_KEY};
use cloak_abi::layout::{
    BOOT_GPA, CERTIFICATES_GPA, GHCBS_GPA, KERNEL_PHYS_VA, KERNEL_VA, LIBOS_PHYS_VA, LIBOS_SHARED_VA,
    LIBOS_VCPU_VA, PAGE, PLATFORM_GPA, PLATFORM_LEN, SHARED_GPA,
};
use cloak_abi::ring::SHARED_LEN;
use cloak_abi::stop::Stop;
use cloak_pagetables::first::First;
use cloak_pagetables::frames::Memory;
use cloak_snp::cpuid::Table;
use cloak_snp::ghcb::{self, Ghcb};
use cloak_snp::message::{Channel, Level, MessageError};
use cloak_snp::pages::{self, Accepted};
use cloak_snp::report::{self, ByGhcb};
use cloak_snp::start::{Division, Given};
use cloak_snp::{Machine, keys, secrets, vmsa};
use zerocopy::{FromZeros, IntoBytes};

use super::instructions::Instructions;
use super::{MEASURED, Platform};
use crate::arch::{CONTEXTS, Context, Cpu, Window, block, cpu, entry};

/// The platform.
#[derive(Debug)]
pub struct Snp;

/// What the start leaves for later.
struct State {
    instructions: Instructions,
    channel: Channel,
    /// For the root of the context's keys: until that is taken, or nobody needs it.
    keys: Option<Channel>,
    /// What the machine was launched for, as the first report says.
    host_data: Option<[u8; 32]>,
    accepted: Accepted,
    /// Pages for the states of vCPUs.
    states: u64,
    /// What the CPU has of vector state.
    vector_state: u64,
    /// The pages of the vCPUs' blocks.
    blocks: u64,
    /// Root table of the first address space.
    root: u64,
}

struct Cell(UnsafeCell<State>);
// SAFETY: written at the start, by the one vCPU that runs then; afterwards under the context's lock.
unsafe impl Sync for Cell {}

static STATE: Cell = Cell(UnsafeCell::new(State {
    instructions: Instructions::Own,
    channel: Channel::closed(),
    keys: None,
    host_data: None,
    accepted: Accepted::new(),
    states: 0,
    vector_state: 1,
    blocks: 0,
    root: 0,
}));

impl State {
    /// # Safety
    /// Nobody else has it: at the start, or under the context's lock.
    unsafe fn get() -> &'static mut Self {
        // SAFETY: the caller's.
        unsafe { &mut *STATE.0.get() }
    }
}

fn ghcb_of(index: u64) -> Ghcb {
    Ghcb::registered(GHCBS_GPA + index * PAGE)
}

/// First Rust code of each vCPU in a measured guest.
pub fn start(index: u32) -> ! {
    // SAFETY: the first vCPU is alone; the others are created under the context's lock, and read only what stays.
    let state = unsafe { State::get() };
    if index != 0 {
        further(state, index);
    }
    state.instructions = Instructions::detect();
    match begin(state) {
        Ok((division, header)) => {
            MEASURED.store(true, Ordering::Relaxed);
            CONTEXTS[0].begin(&division.context);
            state.blocks = division.context.vcpu_blocks;
            let roots = CONTEXTS[0].short_roots();
            cpu::install(0, 0, KERNEL_PHYS_VA + state.blocks, &header, roots);
            entry::enter_libos(header.start, 0, [division.zeros.va, division.zeros.len])
        }
        Err(stop) => end(state.instructions, stop),
    }
}

/// Tells the hypervisor why, and goes no further whatever it does.
pub fn end(mut machine: Instructions, stop: Stop) -> ! {
    loop {
        ghcb::terminate(&mut machine, stop);
    }
}

/// Ends a guest whose kernel found something that must not be.
pub fn panic() {
    if MEASURED.load(Ordering::Relaxed) {
        // SAFETY: a copy of what does not change any more.
        let machine = unsafe { ptr::addr_of!((*STATE.0.get()).instructions).read() };
        end(machine, Stop::Panic);
    }
}

fn image() -> Result<LaunchBlock, Stop> {
    // SAFETY: measured, and nobody's to change.
    let image = unsafe { ptr::read_volatile((KERNEL_PHYS_VA + BOOT_GPA) as *const LaunchBlock) };
    if image.version != u64::from(cloak_abi::VERSION) || image.platform != platform::SNP {
        return Err(Stop::BootBlock);
    }
    Ok(image)
}

/// From the measured image to a context that can be entered.
fn begin(state: &mut State) -> Result<(Division, LibosHeader), Stop> {
    let image = image()?;
    let machine = &mut state.instructions;
    ghcb::agree(machine, image.private)?;
    let ghcb = Ghcb::register(machine, GHCBS_GPA)?;
    let given = Given::take(machine, image.parameters)?;
    let cpuid = Table::take(machine, image.cpuid)?;
    cpuid.agree(image.private)?;
    state.vector_state = cpuid.vector_state()?;
    enable_vector_state(state.vector_state);
    let [for_keys, for_reports] = secrets::take(machine, image.secrets)?;
    state.keys = Some(Channel::open(Level::Keys, for_keys));
    state.channel = Channel::open(Level::Reports, for_reports);
    let mut division = Division::new(&given, &image)?;
    for gpa in division.first_blocks() {
        if !state.accepted.mark(gpa) {
            return Err(Stop::Memory);
        }
        pages::accept(machine, ghcb, gpa)?;
    }
    // A bit that the tables have; the simulated machine has none.
    division.context.private_bit = machine.private(image.private).checked_ilog2().unwrap_or(0);
    tables(&mut division, &image).map_err(|_| Stop::Memory)?;
    state.states = division.states;
    state.root = division.context.root;
    // SAFETY: tables that map the kernel, its stack and all memory as the ones before did.
    unsafe { asm!("mov cr3, {}", in(reg) division.context.root, options(nostack)) };
    let blocks = division.context.vcpu_blocks;
    for own in 0..u64::from(division.context.vcpus) {
        machine.clear(blocks + own * PAGE);
    }
    let header = libos(machine, &division, &image)?;
    Ok((division, header))
}

/// The context's first tables: what the monitor makes on plain KVM.
fn tables(division: &mut Division, image: &LaunchBlock) -> Result<(), KcallError> {
    let context = &mut division.context;
    let memory = &mut Window;
    let pool = [context.table_pool, context.table_pool_end];
    let mut tables = First::new(memory, pool, context.private())?;
    let (own, user) = (PTE_W | PTE_NX, PTE_W | PTE_NX | PTE_U);
    // The kernel is mapped by measured tables, which stay.
    let slot = 8 * (KERNEL_VA >> 39 & 511);
    let kernel = tables.memory.read(image.root + slot);
    tables.memory.write(tables.root + slot, kernel);
    for [start, end] in division.ram {
        tables.map(KERNEL_PHYS_VA + start, start, end - start, own)?;
    }
    tables.map_shared(KERNEL_PHYS_VA + PLATFORM_GPA, PLATFORM_GPA, PLATFORM_LEN, own)?;
    for part in image.libos.iter().filter(|part| part.memory > 0) {
        tables.map(
            part.va,
            part.gpa,
            part.content.next_multiple_of(PAGE),
            part.flags | PTE_U,
        )?;
    }
    let zeros = division.zeros;
    tables.map(zeros.va, zeros.gpa, zeros.len, user)?;
    for [start, end] in context.frames {
        tables.map(LIBOS_PHYS_VA + start, start, end - start, user)?;
    }
    let told = PLATFORM_GPA + PLATFORM_LEN - CERTIFICATES_GPA;
    tables.map_shared(LIBOS_PHYS_VA + CERTIFICATES_GPA, CERTIFICATES_GPA, told, user)?;
    let blocks_len = u64::from(context.vcpus) * PAGE;
    tables.map(LIBOS_VCPU_VA, context.vcpu_blocks, blocks_len, user)?;
    tables.map_shared(LIBOS_SHARED_VA, SHARED_GPA, SHARED_LEN as u64, user)?;
    context.root = tables.root;
    context.table_pool_next = tables.next();
    Ok(())
}

/// Leaves the context's block in its libos; gives the libos's header.
fn libos(machine: &mut Instructions, division: &Division, image: &LaunchBlock) -> Result<LibosHeader, Stop> {
    let mut header = LibosHeader::new_zeroed();
    for (index, word) in (0u64..).zip(header.as_mut_bytes().as_chunks_mut::<8>().0) {
        *word = machine.read(division.context.libos_gpa + 8 * index).to_le_bytes();
    }
    let context = division.context.as_bytes();
    let place = image.libos.iter().find_map(|part| {
        let offset = header.boot_copy.checked_sub(part.va)?;
        let fits = offset.checked_add(context.len() as u64)? <= part.content;
        (fits && offset.is_multiple_of(8)).then_some(part.gpa + offset)
    });
    let place = place.ok_or(Stop::Libos)?;
    for (index, word) in (0u64..).zip(context.as_chunks::<8>().0) {
        machine.write(place + 8 * index, u64::from_le_bytes(*word));
    }
    Ok(header)
}

/// A vCPU that the kernel created.
fn further(state: &mut State, index: u32) -> ! {
    let mut machine = state.instructions;
    enable_vector_state(state.vector_state);
    if let Err(stop) = Ghcb::register(&mut machine, GHCBS_GPA + u64::from(index) * PAGE) {
        end(machine, stop);
    }
    crate::arch::start_in(&CONTEXTS[0], 0, state.blocks, index)
}

fn enable_vector_state(mask: u64) {
    // SAFETY: CR4.OSXSAVE is set, and the mask is one that a processor with these parts takes.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack, nomem));
    }
}

/// The words of the vCPU's block by which bytes go to and from the libos.
fn words(cpu: &Cpu) -> impl Iterator<Item = &'static AtomicU64> {
    let ops = block(cpu).ops.iter();
    ops.flat_map(|op| [&op.va_kind, &op.len, &op.gpa, &op.flags])
}

impl Platform for Snp {
    fn start_vcpu(&self, context: &Context, cpu: &Cpu, own: u32) -> Result<(), KcallError> {
        context.locked(cpu, |_| {
            // SAFETY: under the lock.
            let state = unsafe { State::get() };
            let machine = &mut state.instructions;
            let page = state.states + u64::from(own) * PAGE;
            machine.clear(page);
            for (at, word) in vmsa::words(entry::first_instruction(), state.root, own.into()) {
                machine.write(page + at, word);
            }
            if machine.rmp_adjust(page, vmsa::ATTRIBUTES) != 0 {
                end(*machine, Stop::Vmsa);
            }
            ghcb::create_vcpu(machine, ghcb_of(cpu.index), own, page)
                .unwrap_or_else(|stop| end(state.instructions, stop));
            Ok(())
        })
    }

    fn accept(&self, context: &Context, cpu: &Cpu, gpa: u64) -> Result<(), KcallError> {
        if !gpa.is_multiple_of(cloak_abi::layout::LARGE) || !context.may_accept(gpa) {
            return Err(KcallError::Frame);
        }
        context.locked(cpu, |_| {
            // SAFETY: under the lock.
            let state = unsafe { State::get() };
            if !state.accepted.mark(gpa) {
                return Err(KcallError::Invalid);
            }
            // There is no memory to go on with, and what is there can't be trusted.
            pages::accept(&mut state.instructions, ghcb_of(cpu.index), gpa)
                .unwrap_or_else(|stop| end(state.instructions, stop));
            Ok(())
        })
    }

    fn report(&self, context: &Context, cpu: &Cpu, certificates: bool) -> Result<i64, KcallError> {
        let words = || words(cpu);
        let mut data = [0; REPORT_DATA];
        for (part, word) in data.as_chunks_mut::<8>().0.iter_mut().zip(words()) {
            *part = word.load(Ordering::Relaxed).to_le_bytes();
        }
        context.locked(cpu, |_| {
            // SAFETY: under the lock.
            let state = unsafe { State::get() };
            let mut carrier = ByGhcb {
                machine: &mut state.instructions,
                ghcb: ghcb_of(cpu.index),
                certificates,
            };
            let response =
                report::ask(&mut state.channel, &data, &mut carrier).map_err(|error| match error {
                    MessageError::Length => KcallError::Invalid,
                    _ => KcallError::Platform,
                })?;
            state.host_data.get_or_insert(response.host_data());
            let report = response.report();
            for (word, part) in words().zip(report.as_chunks::<8>().0) {
                word.store(u64::from_le_bytes(*part), Ordering::Relaxed);
            }
            Ok(report.len() as i64)
        })
    }

    fn key(&self, context: &Context, cpu: &Cpu, wanted: bool) -> Result<i64, KcallError> {
        context.locked(cpu, |_| {
            // SAFETY: under the lock.
            let state = unsafe { State::get() };
            // Gone with this call, whatever becomes of it.
            let channel = state.keys.take().ok_or(KcallError::Invalid)?;
            if !wanted {
                return Ok(0);
            }
            let host_data = state.host_data.ok_or(KcallError::Invalid)?;
            let mut carrier = ByGhcb {
                machine: &mut state.instructions,
                ghcb: ghcb_of(cpu.index),
                certificates: false,
            };
            let root = keys::root(channel, &host_data, &mut carrier).map_err(|_| KcallError::Platform)?;
            for (word, part) in words(cpu).zip(root.as_chunks::<8>().0) {
                word.store(u64::from_le_bytes(*part), Ordering::Relaxed);
            }
            Ok(ROOT_KEY as i64)
        })
    }
}
