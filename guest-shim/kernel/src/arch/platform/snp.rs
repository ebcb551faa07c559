//! SEV-SNP: the start from a measured image, memory, messages and vCPUs. What is said and believed is `cloak_snp`'s.
//!
//! The VM has one context, whose libos runs where it was measured: nothing of it is copied.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;

use cloak_abi::boot::{LibosHeader, platform};
use cloak_abi::kcall::{KcallError, REPORT_DATA, ROOT_KEY};
use cloak_abi::layout::{GHCBS_GPA, KERNEL_PHYS_VA, PAGE, monitor_port};
use cloak_abi::stop::Stop;
use cloak_abi::vcpu::MonitorCall;
use cloak_measured::accepted::Accepted;
use cloak_measured::start::{Division, Given};
use cloak_snp::cpuid::Table;
use cloak_snp::exception;
use cloak_snp::ghcb::{self, Ghcb};
use cloak_snp::message::{Channel, Level, MessageError};
use cloak_snp::pages;
use cloak_snp::report::{self, ByGhcb};
use cloak_snp::{Machine, keys, secrets, vmsa};

use super::instructions::Instructions;
use super::{Platform, begin, guard, vc};
use crate::arch::{CONTEXTS, Context, Cpu, cpu, entry};

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
    guard(0);
    match begin(state) {
        Ok((division, header)) => {
            super::set(platform::SNP);
            CONTEXTS[0].begin(&division.context);
            state.blocks = division.context.vcpu_blocks;
            cpu::install(0, 0, KERNEL_PHYS_VA + state.blocks, &header);
            entry::enter_libos(header.start, 0, [division.zeros.va, division.zeros.len])
        }
        Err(stop) => end(state.instructions, stop),
    }
}

/// Which instructions there are: known before the first exception can come.
pub fn instructions() -> Instructions {
    // SAFETY: a copy of what does not change any more.
    unsafe { ptr::addr_of!((*STATE.0.get()).instructions).read() }
}

/// Tells the hypervisor why, and goes no further whatever it does.
pub fn end(mut machine: Instructions, stop: Stop) -> ! {
    loop {
        ghcb::terminate(&mut machine, stop);
    }
}

/// From the measured image to a context that can be entered.
fn begin(state: &mut State) -> Result<(Division, LibosHeader), Stop> {
    let image = begin::image(platform::SNP)?;
    let machine = &mut state.instructions;
    ghcb::agree(machine, image.private)?;
    let ghcb = Ghcb::register(machine, GHCBS_GPA)?;
    let given = Given::take(|gpa| machine.read(gpa), image.parameters)?;
    let cpuid = Table::take(machine, image.cpuid)?;
    cpuid.agree(image.private)?;
    state.vector_state = cpuid.vector_state()?;
    begin::enable_vector_state(state.vector_state, *machine == Instructions::Simulated);
    vc::settle(cpuid, state.vector_state, &image);
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
    begin::tables(&mut division, &image, 0).map_err(|_| Stop::Memory)?;
    state.states = division.states;
    state.root = division.context.root;
    // SAFETY: tables that map the kernel, its stack and all memory as the ones before did.
    unsafe { asm!("mov cr3, {}", in(reg) division.context.root, options(nostack)) };
    let blocks = division.context.vcpu_blocks;
    for own in 0..u64::from(division.context.vcpus) {
        machine.clear(blocks + own * PAGE);
    }
    let header = begin::libos(&division, &image)?;
    Ok((division, header))
}

/// A vCPU that the kernel created.
fn further(state: &mut State, index: u32) -> ! {
    let mut machine = state.instructions;
    guard(index);
    begin::enable_vector_state(state.vector_state, machine == Instructions::Simulated);
    if let Err(stop) = Ghcb::register(&mut machine, GHCBS_GPA + u64::from(index) * PAGE) {
        end(machine, stop);
    }
    crate::arch::start_in(&CONTEXTS[0], 0, state.blocks, index)
}

/// From here on this vCPU takes no event that a hypervisor makes up. The table has the short way, too.
fn guard(index: u32) {
    cpu::load_interrupts(index as usize, guard::idt());
}

impl Platform for Snp {
    fn monitor(&self, cpu: &Cpu, call: MonitorCall, argument: u32) {
        let mut machine = instructions();
        let value = call.encode(argument).into();
        exception::write(&mut machine, ghcb_of(cpu.index), monitor_port(0), 4, value)
            .unwrap_or_else(|stop| end(machine, stop));
    }

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
        })?;
        // The state is the new vCPU's; a thread to run it is the monitor's to make.
        self.monitor(cpu, MonitorCall::Start, own);
        Ok(())
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
        let data = begin::argument::<REPORT_DATA>(cpu);
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
            begin::answer(
                cpu,
                report
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|part| u64::from_le_bytes(*part)),
            );
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
            begin::answer(
                cpu,
                root.as_chunks::<8>()
                    .0
                    .iter()
                    .map(|part| u64::from_le_bytes(*part)),
            );
            Ok(ROOT_KEY as i64)
        })
    }
}
