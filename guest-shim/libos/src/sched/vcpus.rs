//! vCPUs: what each does, which address space it has loaded, and when another one is woken.

use alloc::sync::Arc;
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cloak_abi::kcall::Kcall;
use cloak_abi::layout::MAX_VCPUS;
use cloak_abi::vcpu::VcpuState;

use super::run::POLL_US;
use super::thread::Thread;
use crate::arch;
use crate::host;
use crate::mem::tables::Tables;

/// How long a thread is left to another vCPU that has its address space loaded.
const LEAVE_US: u64 = 10;
/// The same for a halted one, which is woken.
const LEAVE_HALTED_US: u64 = 50;
/// Changes of address space on one vCPU in a millisecond after which another one is woken: processes that hand over to
/// each other do so without an entry to the kernel where each has a vCPU.
const CHANGES: u64 = 8;

/// What one vCPU knows of itself. Only that vCPU touches it.
pub(super) struct Vcpu {
    pub(super) current: UnsafeCell<Option<Arc<Thread>>>,
    pub(super) previous: UnsafeCell<Option<Arc<Thread>>>,
    pub(super) idle: UnsafeCell<Option<Arc<Thread>>>,
    /// How long it polls, microseconds: more when that brought something the last time, less when not.
    pub(super) patience: AtomicU64,
    /// How often it has polled.
    pub(super) polls: AtomicU64,
    /// The millisecond of its last change of address space, and how many there were in it.
    changes: Cell<(u64, u64)>,
    /// Tag of the address space that it has loaded ([`Tables::tag`]). Others read it.
    pub(super) space: AtomicU64,
    /// Another vCPU has woken it since it halted: it looks for work once more before it halts again.
    pub(super) rung: AtomicBool,
}

// SAFETY: each element is used by its own vCPU only.
unsafe impl Sync for Vcpu {}

pub(super) static VCPUS: [Vcpu; MAX_VCPUS] = [const {
    Vcpu {
        current: UnsafeCell::new(None),
        previous: UnsafeCell::new(None),
        idle: UnsafeCell::new(None),
        patience: AtomicU64::new(POLL_US),
        polls: AtomicU64::new(0),
        changes: Cell::new((0, 0)),
        space: AtomicU64::new(0),
        rung: AtomicBool::new(false),
    }
}; MAX_VCPUS];

/// This vCPU loads an address space, if it has not.
pub(super) fn load_space(tables: Tables) {
    let loaded = &vcpu().space;
    if loaded.load(Ordering::Relaxed) != tables.tag() {
        // First the tag: who sees the old one may take the old tables away, and they must not be loaded then.
        loaded.store(tables.tag(), Ordering::SeqCst);
        tables.load();
        note_change();
    }
}

/// This vCPU has changed its address space.
fn note_change() {
    let changes = &vcpu().changes;
    let now = arch::ticks() / (arch::ticks_per_second() / 1000);
    let (when, before) = changes.get();
    let count = if when == now { before + 1 } else { 1 };
    changes.set((now, count));
    if count == CHANGES {
        wake_a_vcpu();
    }
}

/// What is better for a thread that waits than to run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// Nothing.
    No,
    /// A vCPU that has its address space loaded takes it.
    Polls,
    /// The same where that one is halted: it can be woken in less time than a change of address space takes.
    Halted(usize),
}

/// For a thread that has waited for so many ticks.
pub(super) fn elsewhere(thread: &Thread, me: usize, waited: u64) -> Elsewhere {
    let tag = thread.space().tables.tag();
    let has = |i: usize| VCPUS[i].space.load(Ordering::Relaxed) == tag;
    if has(me) || waited > in_ticks(LEAVE_HALTED_US) {
        return Elsewhere::No;
    }
    let find = |state: VcpuState| (0..awake()).find(|&i| i != me && has(i) && host_state(i) == state as u32);
    if waited <= in_ticks(LEAVE_US) && find(VcpuState::Polling).is_some() {
        return Elsewhere::Polls;
    }
    find(VcpuState::Halted).map_or(Elsewhere::No, Elsewhere::Halted)
}

/// Wakes a halted vCPU, once until it runs: where all cores are taken that may last longer than until the next call.
pub(super) fn ring(halted: usize) {
    if !VCPUS[halted].rung.swap(true, Ordering::SeqCst) {
        arch::doorbell(1 + halted as u32);
    }
}

pub(super) fn in_ticks(us: u64) -> u64 {
    us * arch::ticks_per_second() / 1_000_000
}

/// The kernel has freed an address space: if this vCPU had it, it has the first one now.
pub fn space_freed(tables: Tables) {
    let loaded = &vcpu().space;
    if loaded.load(Ordering::Relaxed) == tables.tag() {
        loaded.store(0, Ordering::SeqCst);
    }
}

/// Whether a vCPU has these tables loaded, as they are or as they were when something else was mapped there.
pub fn has_root(tables: Tables) -> bool {
    (0..vcpus()).any(|i| tables.is_tagged(VCPUS[i].space.load(Ordering::SeqCst)))
}

/// Whether this vCPU has an address space loaded.
pub fn is_loaded_here(tables: Tables) -> bool {
    vcpu().space.load(Ordering::Relaxed) == tables.tag()
}

/// Whether another vCPU than this one has an address space loaded.
pub fn is_loaded_elsewhere(tables: Tables) -> bool {
    let me = arch::vcpu_index();
    (0..vcpus()).any(|i| i != me && VCPUS[i].space.load(Ordering::SeqCst) == tables.tag())
}

/// Whether vCPU `index` may be in a program in this address space. `false` stays so until it has passed
/// [`crate::patch::depart`].
pub fn may_run_program(index: usize, space: Tables) -> bool {
    let state = host_state(index);
    let is_idle = [VcpuState::Halted, VcpuState::Polling, VcpuState::Offline]
        .iter()
        .any(|idle| *idle as u32 == state);
    !is_idle && VCPUS[index].space.load(Ordering::SeqCst) == space.tag()
}

pub(super) fn wake_a_vcpu() {
    let state = |i: &usize| host_state(*i);
    let count = awake();
    if (0..count).any(|i| state(&i) == VcpuState::Polling as u32) {
        return;
    }
    if let Some(halted) = (0..count).find(|i| state(i) == VcpuState::Halted as u32) {
        ring(halted);
    } else if let Some(offline) = (0..count).find(|&i| VcpuState::leave_offline(&arch::vcpu_block(i).state)) {
        set_state(offline, VcpuState::Polling);
        arch::kcall(Kcall::Start, offline as u64);
    }
}

pub(super) fn host_state(index: usize) -> u32 {
    arch::vcpu_block(index).state.load(Ordering::SeqCst)
}

pub(super) fn set_state(index: usize, state: VcpuState) {
    arch::vcpu_block(index)
        .state
        .store(state as u32, Ordering::SeqCst);
    host::queue(index).state.store(state as u32, Ordering::SeqCst);
}

/// How many vCPUs should be awake, the first ones: the host sees whether it has cores for them.
fn awake() -> usize {
    host::header().awake_of(vcpus())
}

/// Whether a vCPU leaves its work to others.
pub(super) fn is_spare(index: usize) -> bool {
    index >= awake()
}

pub(super) fn vcpus() -> usize {
    arch::boot().vcpus as usize
}

pub(super) fn vcpu() -> &'static Vcpu {
    &VCPUS[arch::vcpu_index()]
}

/// How long it is worth while to poll on this vCPU, microseconds.
#[must_use]
pub fn patience() -> u64 {
    vcpu().patience.load(Ordering::Relaxed)
}
