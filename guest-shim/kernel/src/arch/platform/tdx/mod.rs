//! TDX: the start from a measured image, memory, reports and vCPUs. What is said and believed is `cloak_tdx`'s.
//!
//! All vCPUs start alike, at the measured reset vector, with a number that the module gives them, and whenever the host likes. All
//! but the first wait here until the kernel has released them.

mod exception;
mod instruction;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use cloak_abi::boot::{LibosHeader, platform};
use cloak_abi::kcall::{EXTENSION, KcallError, REPORT_DATA};
use cloak_abi::layout::{
    CERTIFICATES_GPA, KERNEL_PHYS_VA, LARGE, MAX_VCPUS, PAGE, PLATFORM_GPA, PLATFORM_LEN,
};
use cloak_abi::ring::SHARED_LEN;
use cloak_abi::stop::Stop;
use cloak_abi::vcpu::MonitorCall;
use cloak_measured::accepted::Accepted;
use cloak_measured::start::{Division, Given};
use cloak_measured::vector_state;
use cloak_pagetables::frames::Memory;
use cloak_tdx::vmcall::{self, Taken};
use cloak_tdx::{module, pages, quote};

use self::instruction::{Tdcall, address_of};
use super::{Platform, begin};
use crate::arch::cpu::{monitor, wrmsr};
use crate::arch::{CONTEXTS, Context, Cpu, Window, cpu, entry};

/// The platform.
#[derive(Debug)]
pub struct Tdx;

/// What the start leaves for later.
struct State {
    accepted: Accepted,
    /// What the CPU has of vector state.
    vector_state: u64,
    /// The pages of the vCPUs' blocks.
    blocks: u64,
    /// Root table of the first address space.
    root: u64,
    /// The bit that makes an address shared.
    shared: u64,
    /// Operands of calls that the module takes from memory: data at 0, a report at [`REPORT_AT`].
    operands: Operands,
}

/// A page of the kernel's image, which is private.
#[repr(C, align(4096))]
struct Operands([u64; PAGE as usize / 8]);

/// Where a report is in the page: a multiple of its size.
const REPORT_AT: usize = 1024;

struct Cell(UnsafeCell<State>);
// SAFETY: written at the start, by the one vCPU that runs then; afterwards under the context's lock.
unsafe impl Sync for Cell {}

static STATE: Cell = Cell(UnsafeCell::new(State {
    accepted: Accepted::new(),
    vector_state: 1,
    blocks: 0,
    root: 0,
    shared: 0,
    operands: Operands([0; PAGE as usize / 8]),
}));

impl State {
    /// # Safety
    /// Nobody else has it: at the start, or under the context's lock.
    unsafe fn get() -> &'static mut Self {
        // SAFETY: the caller's.
        unsafe { &mut *STATE.0.get() }
    }

    fn put(&mut self, bytes: &[u8]) {
        for (word, part) in self.operands.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*part);
        }
    }

    /// The words of a TDREPORT over `data`.
    fn report(&mut self, data: &[u8; REPORT_DATA]) -> Result<&[u64], Stop> {
        self.put(data);
        let at = address_of(&self.operands);
        module::report(&mut machine(), at, at + REPORT_AT as u64)?;
        // The module writes behind the compiler's back.
        let written = core::hint::black_box(&self.operands.0);
        Ok(&written[REPORT_AT / 8..(REPORT_AT + quote::REPORT) / 8])
    }
}

/// Whether the instruction is simulated, once the start knows.
static SIMULATED: AtomicU32 = AtomicU32::new(0);

/// Which instruction there is.
pub fn machine() -> Tdcall {
    if SIMULATED.load(Ordering::Relaxed) != 0 {
        Tdcall::Simulated
    } else {
        Tdcall::Own
    }
}

/// Which vCPUs the kernel has released. The host starts them when it likes.
static RELEASED: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];

/// First Rust code of each vCPU in a domain.
pub fn start(index: u32) -> ! {
    if index != 0 {
        wait_for_release(index);
        // SAFETY: released by a vCPU that had begun; what is read here stays.
        further(unsafe { State::get() }, index);
    }
    super::set(platform::TDX);
    let machine = Tdcall::detect();
    SIMULATED.store(u32::from(machine == Tdcall::Simulated), Ordering::Relaxed);
    // SAFETY: the first vCPU is alone: all others wait.
    let state = unsafe { State::get() };
    match begin(state) {
        Ok((division, header)) => {
            CONTEXTS[0].begin(&division.context);
            state.blocks = division.context.vcpu_blocks;
            cpu::take_short_way();
            cpu::install(0, 0, KERNEL_PHYS_VA + state.blocks, &header);
            entry::enter_libos(header.start, 0, [division.zeros.va, division.zeros.len])
        }
        Err(stop) => end(machine, stop),
    }
}

fn wait_for_release(index: u32) {
    // The reset page lets no higher number through.
    let released = &RELEASED[index as usize % MAX_VCPUS];
    while released.load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
}

/// Tells the hypervisor why, and goes no further whatever it does.
pub fn end(mut machine: Tdcall, stop: Stop) -> ! {
    loop {
        vmcall::fatal(&mut machine, stop);
        // A refusal changes nothing.
        let _ = vmcall::halt(&mut machine);
    }
}

/// From the measured image to a context that can be entered.
fn begin(state: &mut State) -> Result<(Division, LibosHeader), Stop> {
    let image = begin::image(platform::TDX)?;
    let machine = &mut machine();
    let info = module::info(machine)?;
    info.agree(image.shared)?;
    state.shared = image.shared;
    enable_interrupts(machine)?;
    // All that is not private: what the hypervisor reads, and behind it the region that the OS service has.
    vmcall::map_gpa(
        machine,
        PLATFORM_GPA | image.shared,
        PLATFORM_LEN + SHARED_LEN as u64,
    )?;
    let given = Given::take(|gpa| Window.read(gpa), image.parameters)?;
    if given.vcpus() > info.vcpus.into() {
        return Err(Stop::Parameters);
    }
    state.vector_state = offered_vector_state()?;
    begin::enable_vector_state(state.vector_state, *machine == Tdcall::Simulated);
    let mut division = Division::new(&given, &image)?;
    for gpa in division.first_blocks() {
        if !state.accepted.mark(gpa) {
            return Err(Stop::Memory);
        }
        pages::accept(machine, gpa)?;
    }
    begin::tables(&mut division, &image, machine.shared(image.shared)).map_err(|_| Stop::Memory)?;
    state.root = division.context.root;
    load_root(state.root);
    for own in 0..u64::from(division.context.vcpus) {
        Window.fill(division.context.vcpu_blocks + own * PAGE, 0, 0, PAGE / 8);
    }
    let header = begin::libos(&division, &image)?;
    Ok((division, header))
}

/// What the module says that there is (CPUID leaf 0xd, which it answers by the domain's XFAM).
fn offered_vector_state() -> Result<u64, Stop> {
    const STATE: u32 = 0xd;
    let found = core::arch::x86_64::__cpuid_count(STATE, 0);
    let has = u64::from(found.eax) | u64::from(found.edx) << 32;
    vector_state::choose(has).ok_or(Stop::CpuidState)
}

/// The interrupt controller that the hypervisor has for this vCPU delivers nothing before its spurious-interrupt register says
/// that it is on.
fn enable_interrupts(machine: &mut Tdcall) -> Result<(), Stop> {
    const SPURIOUS: u32 = 0x80f;
    const ON: u64 = 0x1ff;
    vmcall::write_msr(machine, SPURIOUS, ON)
}

fn load_root(root: u64) {
    // SAFETY: tables that map the kernel, its stacks and all memory as the ones before did.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}

/// A vCPU that the kernel has released.
fn further(state: &State, index: u32) -> ! {
    load_root(state.root);
    begin::enable_vector_state(state.vector_state, machine() == Tdcall::Simulated);
    if let Err(stop) = enable_interrupts(&mut machine()) {
        end(machine(), stop);
    }
    cpu::take_short_way();
    crate::arch::start_in(&CONTEXTS[0], 0, state.blocks, index)
}

impl Platform for Tdx {
    fn monitor(&self, _: &Cpu, call: MonitorCall, argument: u32) {
        monitor(call, argument);
    }

    fn start_vcpu(&self, _: &Context, _: &Cpu, own: u32) -> Result<(), KcallError> {
        let released = RELEASED.get(own as usize).ok_or(KcallError::Invalid)?;
        released.store(1, Ordering::Release);
        monitor(MonitorCall::Start, own);
        Ok(())
    }

    fn accept(&self, context: &Context, cpu: &Cpu, gpa: u64) -> Result<(), KcallError> {
        if !gpa.is_multiple_of(LARGE) || !context.may_accept(gpa) {
            return Err(KcallError::Frame);
        }
        context.locked(cpu, |_| {
            // SAFETY: under the lock.
            let state = unsafe { State::get() };
            if !state.accepted.mark(gpa) {
                return Err(KcallError::Invalid);
            }
            // There is no memory to go on with, and what is there can't be trusted.
            pages::accept(&mut machine(), gpa).unwrap_or_else(|stop| end(machine(), stop));
            Ok(())
        })
    }

    fn report(&self, context: &Context, cpu: &Cpu, with_quote: bool) -> Result<i64, KcallError> {
        let data = begin::argument::<REPORT_DATA>(cpu);
        context.locked(cpu, |_| {
            // SAFETY: under the lock.
            let state = unsafe { State::get() };
            let shared = state.shared;
            let report = state.report(&data).map_err(|_| KcallError::Platform)?;
            if with_quote {
                let words = quote::request().into_iter().chain(report.iter().copied());
                for (at, word) in (0u64..).step_by(8).zip(words) {
                    Window.write(CERTIFICATES_GPA + at, word);
                }
            }
            begin::answer(cpu, report.iter().copied());
            if with_quote {
                let asked =
                    vmcall::get_quote(&mut machine(), CERTIFICATES_GPA | shared, quote::BUFFER as u64);
                match asked {
                    Ok(Taken::Yes) => {}
                    Ok(Taken::Later) => return Err(KcallError::Busy),
                    Ok(Taken::No) | Err(_) => return Err(KcallError::Platform),
                }
            }
            Ok(quote::REPORT as i64)
        })
    }

    fn extend(&self, context: &Context, cpu: &Cpu, index: u64) -> Result<(), KcallError> {
        /// The first two are for firmware and loaders.
        const OURS: core::ops::Range<u64> = 2..4;
        if !OURS.contains(&index) {
            return Err(KcallError::Invalid);
        }
        let data = begin::argument::<EXTENSION>(cpu);
        context.locked(cpu, |_| {
            // SAFETY: under the lock.
            let state = unsafe { State::get() };
            state.put(&data);
            let at = address_of(&state.operands);
            module::extend(&mut machine(), index, at).map_err(|_| KcallError::Platform)
        })
    }

    fn end_of_interrupt(&self) {
        const END: u32 = 0x80b;
        // The CPU takes it without an exit. The simulated machine has no interrupt controller.
        if machine() == Tdcall::Own {
            wrmsr(END, 0);
        }
    }
}
