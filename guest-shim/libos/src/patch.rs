//! Turning SYSCALL sites into jumps.
//!
//! A system call by trap costs 1 to 4 us where it stays at CPL 3; a jump into the libos costs
//! nanoseconds. The first trap at a site (or a later one, where finding out takes a look at the whole text)
//! replaces five bytes by `jmp trampoline`:
//!
//! | shape | replaced | why it stays correct |
//! |---|---|---|
//! | `mov eax, n; syscall` | the `mov` | the SYSCALL stays; whoever jumps to it traps as before |
//! | `syscall; i...` where `i...` are three bytes or more of movable instructions | both | the jump stands at the SYSCALL's own address; nothing in the text jumps to `i` |
//!
//! Behind a replaced SYSCALL a thread may still stand: one that waits in this very call, or was interrupted there. So
//! such a site is written only while no other vCPU can be in the program ([`stop_others`]), and whoever goes back to
//! the program is sent to the moved instructions ([`physical`], the last thing on the way out).
//!
//! A trampoline lies within reach of its site, touches neither the program's stack nor its red zone, and ends
//! behind the replaced bytes. The program's text is written through the libos's window: its mapping is never
//! writable and executable at once. Code addresses that the program sees (signal frames) are those of the
//! original text: [`logical`] and [`physical`] convert.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cloak_abi::kcall::Kcall;
use cloak_abi::layout::MAX_VCPUS;
use hashbrown::HashMap;
use spin::{Mutex, MutexGuard};

use crate::arch::{self, Frame};
use crate::errno::{Errno, SysResult};
use crate::mem::area::{Area, Protection};
use crate::mem::{frames, space};
use crate::sched::{self, Guard, Lock};
use crate::user;
use crate::x86::jumps;

/// Sites patched, for `--stats`.
pub static PATCHED: AtomicU64 = AtomicU64::new(0);
/// Set from the configuration.
pub static DISABLED: AtomicBool = AtomicBool::new(false);

/// Traps at a site before its text is searched for jumps behind the SYSCALL: for a C library that takes some
/// milliseconds, and a trap about one microsecond.
const HOT: u16 = 1000;
/// The same for a text of at most so many bytes.
const HOT_SMALL: (u16, u64) = (32, 64 << 10);
/// Traps at a site in text that other processes have, too: a page is copied, and the vCPU forgets the old one.
const SHARED_HOT: u16 = 64;
/// Such a site is never patched.
const NEVER: u16 = u16::MAX;
/// Bytes of trampolines mapped at a time.
const REGION: u64 = 0x1_0000;
/// A trampoline is at most this far from its site (a 32-bit displacement, with room).
const REACH: u64 = 0x7000_0000;
/// Bytes of text that are searched at most.
const TEXT_MAX: u64 = 64 << 20;
const PAGE: u64 = cloak_abi::layout::PAGE;
/// How long the other vCPUs have to come out of the program, microseconds, and how often they are told.
const STOP_US: u64 = 20_000;
const KICKS: u64 = 20;

#[derive(Debug, Clone, Copy)]
struct Site {
    /// Where the trampoline goes on after the call.
    resume: u64,
    /// Bytes of instructions behind the SYSCALL that were moved there, so that their addresses are none any more.
    moved: u64,
}

#[derive(Debug, Default, Clone)]
struct State {
    /// Patched sites, by the address behind the SYSCALL.
    sites: BTreeMap<u64, Site>,
    /// Address behind the SYSCALL, by where its trampoline goes on.
    resumes: BTreeMap<u64, u64>,
    /// Traps at sites not patched; [`NEVER`]: not to be.
    seen: HashMap<u64, u16>,
    /// Trampoline regions: start and bytes used.
    regions: Vec<(u64, u64)>,
    /// Texts that were looked at, by their start.
    texts: BTreeMap<u64, Arc<Text>>,
}

/// A text whose jumps are known.
#[derive(Debug)]
struct Text {
    end: u64,
    /// Addresses behind SYSCALLs to which it jumps.
    targets: BTreeSet<u64>,
}

/// The patched sites of one address space.
#[derive(Debug, Default)]
pub struct Sites(Mutex<State>);

impl Sites {
    /// The same, for a copy of the address space.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }

    /// Text in `[start, end)` is gone.
    pub fn forget(&self, start: u64, end: u64) {
        let mut state = self.0.lock();
        let gone: Vec<u64> = state.sites.range(start..end).map(|(&rip, _)| rip).collect();
        for rip in gone {
            if let Some(site) = state.sites.remove(&rip) {
                state.resumes.remove(&site.resume);
            }
        }
        state.seen.retain(|rip, _| !(start..end).contains(rip));
        state.regions.retain(|(at, _)| !(start..end).contains(at));
        state.texts.retain(|&from, text| end <= from || text.end <= start);
    }
}

fn sites() -> MutexGuard<'static, State> {
    space::current().sites.0.lock()
}

/// Waits until no site is being written. While the guard lives none is.
pub fn hold() -> Guard<'static, ()> {
    WRITING.lock()
}

/// Held by whoever writes sites, who may wait for a page of the text meanwhile: vCPUs that only ask for it again and again
/// would never look whether that has come.
static WRITING: Lock<()> = Lock::new(());
/// Set while a site is written: nobody goes to the program.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// vCPUs that wait for that to end.
static STOPPED: [AtomicBool; MAX_VCPUS] = [const { AtomicBool::new(false) }; MAX_VCPUS];

/// No other vCPU is in the program until this is dropped.
#[derive(Debug)]
struct World(());

impl Drop for World {
    fn drop(&mut self) {
        STOPPING.store(false, Ordering::SeqCst);
    }
}

/// Keeps the other vCPUs out of the running program's address space.
///
/// A vCPU is out when it rests, when it has nothing to run, or when it has another address space. One that changes
/// any of that looks at [`STOPPING`] on its way to the program ([`depart`]), and we look at it after setting
/// [`STOPPING`]: one of both sees the other.
///
/// # Errors
/// EAGAIN when one does not come out in time, as when the host does not run it.
fn stop_others() -> SysResult<World> {
    STOPPING.store(true, Ordering::SeqCst);
    let world = World(());
    let (me, space) = (arch::vcpu_index(), space::current().tables);
    let patience = arch::ticks_per_second() / 1_000_000 * STOP_US;
    for other in (0..arch::boot().vcpus as usize).filter(|&i| i != me) {
        let begun = arch::ticks();
        let mut kicked = None;
        while sched::may_run_program(other, space) && !STOPPED[other].load(Ordering::SeqCst) {
            let waited = arch::ticks().saturating_sub(begun);
            if waited > patience {
                return Err(Errno::EAGAIN);
            }
            // A kick may find it just on its way out: it is back in the program then.
            let turn = waited / (patience / KICKS);
            if kicked != Some(turn) {
                kicked = Some(turn);
                arch::kcall(Kcall::Kick, other as u64);
            }
            core::hint::spin_loop();
        }
    }
    Ok(world)
}

/// Waits while sites are written. Gives whether that was so.
fn rest() -> bool {
    if !STOPPING.load(Ordering::SeqCst) {
        return false;
    }
    let stopped = &STOPPED[arch::vcpu_index()];
    stopped.store(true, Ordering::SeqCst);
    while STOPPING.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    stopped.store(false, Ordering::SeqCst);
    true
}

/// The last thing before a thread goes back to its program, which must follow without a park. Gives whether all of
/// `frame` must be restored: IRETQ lets the vCPU forget instructions that it has fetched.
///
/// `is_in_trampoline`: the frame is that of a call from a patched site, as it came.
pub fn depart(frame: &mut Frame, is_in_trampoline: bool) -> bool {
    let mut rested = false;
    while rest() {
        rested = true; // and again: the next one may have begun
    }
    if !is_in_trampoline {
        frame.regs.rip = physical(frame.regs.rip);
    }
    rested
}

/// A trap came from the SYSCALL before `rip`.
pub fn visit(rip: u64) {
    if DISABLED.load(Ordering::Relaxed) {
        return;
    }
    let count = {
        let mut state = sites();
        if state.sites.contains_key(&rip) {
            return; // somebody jumps to the SYSCALL itself
        }
        let count = state.seen.entry(rip).or_insert(0);
        if *count == NEVER {
            return;
        }
        *count += 1;
        *count
    };
    let due = match count {
        1 => !is_copied(rip),
        // Again and again: somebody else may be writing a site just then.
        n if n.is_multiple_of(HOT) => true,
        n if n.is_multiple_of(SHARED_HOT) && is_copied(rip) => true,
        n if n == HOT_SMALL.0 => text_around(rip).is_ok_and(|(start, end)| end - start <= HOT_SMALL.1),
        _ => false,
    };
    if !due {
        return;
    }
    let Some(_writing) = WRITING.try_lock() else {
        return;
    };
    let hot = count.is_multiple_of(HOT) || count == HOT_SMALL.0;
    match patch(rip, hot) {
        // Another vCPU did not come out of the program: after some more traps.
        Err(Errno::EAGAIN) => drop(sites().seen.insert(rip, count / 2)),
        Err(_) if hot => drop(sites().seen.insert(rip, NEVER)),
        _ => {}
    }
}

/// Whether other processes have the text at `rip`, too: to patch it takes a copy of the page, which a process that
/// soon ends or runs another program does not earn back.
fn is_copied(rip: u64) -> bool {
    let (leaf, _) = space::current().tables.look(rip);
    leaf.is_some_and(|leaf| frames::is_shared(leaf.gpa))
}

/// What will be replaced, and what the trampoline does instead.
struct Plan {
    start: u64,
    /// Instructions before the call, after it.
    before: Vec<u8>,
    after: Vec<u8>,
    /// Where the program goes on.
    back: u64,
    replaced: usize,
}

fn patch(rip: u64, hot: bool) -> SysResult<()> {
    let mut bytes = [0u8; 9 + 16];
    // Near the edges of a mapping there may be fewer bytes: such sites keep trapping.
    user::copy_in(&mut bytes, rip - 9)?;
    if bytes[7..9] != [0x0f, 0x05] {
        return Err(Errno::EINVAL);
    }
    let plan = match load_before(&bytes, rip) {
        Some(plan) => plan,
        None if hot => movable_after(&bytes[9..], rip)?,
        None => return Err(Errno::EINVAL), // when it is hot
    };
    let moved = plan.after.len() as u64;
    let trampoline = place(plan.start, 64)?;
    let (code, resume) = assemble(trampoline, &plan);
    write_text(trampoline, &code)?;
    {
        let mut state = sites();
        state.sites.insert(rip, Site { resume, moved });
        state.resumes.insert(resume, rip);
    }
    let mut jump = alloc::vec![0xe9];
    jump.extend_from_slice(&(trampoline.wrapping_sub(plan.start + 5) as u32).to_le_bytes());
    jump.resize(plan.replaced, 0x90);
    if let Err(error) = replace(plan.start, &jump, moved > 0) {
        space::current().sites.forget(rip, rip + 1);
        return Err(error);
    }
    PATCHED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// `mov eax, imm32` or `mov rax, imm32` right before the SYSCALL.
fn load_before(bytes: &[u8], rip: u64) -> Option<Plan> {
    let number = |at: usize| {
        u64::from(u32::from_le_bytes([
            bytes[at],
            bytes[at + 1],
            bytes[at + 2],
            bytes[at + 3],
        ]))
    };
    let in_call = sched::frame().regs.orig_rax;
    // A prefix would make another instruction of it; the value is a second witness.
    let (len, start) = if bytes[..3] == [0x48, 0xc7, 0xc0] && number(3) == in_call {
        (7, 0)
    } else if bytes[2] == 0xb8 && bytes[1] & 0xf0 != 0x40 && number(3) == in_call {
        (5, 2)
    } else {
        return None;
    };
    Some(Plan {
        start: rip - 2 - len as u64,
        before: bytes[start..start + len].to_vec(),
        after: Vec::new(),
        back: rip,
        replaced: len,
    })
}

/// Movable instructions of three bytes or more behind the SYSCALL, to which nothing jumps.
fn movable_after(bytes: &[u8], rip: u64) -> SysResult<Plan> {
    let mut len = 0;
    while len < 3 {
        len += movable(&bytes[len..]).ok_or(Errno::EINVAL)?;
    }
    if jumped_to(rip, len)? {
        return Err(Errno::EINVAL);
    }
    Ok(Plan {
        start: rip - 2,
        before: Vec::new(),
        after: bytes[..len].to_vec(),
        back: rip + len as u64,
        replaced: 2 + len,
    })
}

/// Length of the instruction at the start of `bytes` if it means the same anywhere: register operands and
/// immediates only, no control flow. These are what compilers put behind a SYSCALL.
fn movable(bytes: &[u8]) -> Option<usize> {
    let (rex, rest) = match bytes.first()? {
        b @ 0x40..=0x4f => (Some(b), &bytes[1..]),
        _ => (None, bytes),
    };
    let prefix = usize::from(rex.is_some());
    let opcode = *rest.first()?;
    let modrm = *rest.get(1)?;
    let register_only = modrm >> 6 == 3;
    let len = match opcode {
        0x3d | 0x25 | 0x0d => 5, // cmp, and, or eax/rax, imm32
        0x85 | 0x89 | 0x8b | 0x31 | 0x33 | 0x39 | 0x3b | 0x63 if register_only => 2, // test, mov, xor, cmp, movsxd
        0x83 if register_only => 3,                                                  // op r, imm8
        0x81 if register_only => 6,                                                  // op r, imm32
        _ => return None,
    };
    (rest.len() >= len).then_some(prefix + len)
}

/// Whether anything in the text around jumps into `[rip, rip + len)`. The first question about a text looks at
/// all of it.
fn jumped_to(rip: u64, len: usize) -> SysResult<bool> {
    let is_target = |targets: &BTreeSet<u64>| targets.range(rip..rip + len as u64).next().is_some();
    if let Some((_, text)) = sites().texts.range(..=rip).next_back()
        && rip < text.end
    {
        return Ok(is_target(&text.targets));
    }
    let (start, end) = text_around(rip)?;
    if end - start > TEXT_MAX {
        return Err(Errno::EINVAL);
    }
    let mut bytes = alloc::vec![0u8; (end - start) as usize];
    user::copy_in(&mut bytes, start)?;
    let targets = jumps::jump_targets(start, &bytes);
    let found = is_target(&targets);
    sites().texts.insert(start, Arc::new(Text { end, targets }));
    Ok(found)
}

/// The mapping that `rip` is in.
fn text_around(rip: u64) -> SysResult<(u64, u64)> {
    let space = space::current().lock();
    let (start, area) = space.areas.find(rip).ok_or(Errno::EFAULT)?;
    Ok((start, area.end))
}

/// Trampoline code at `at`, and where in it the program goes on after the call.
fn assemble(at: u64, plan: &Plan) -> (Vec<u8>, u64) {
    let entry = arch::patched_entry();
    let mut code = plan.before.clone();
    // lea rcx, [rip + 14]: behind the jump and its address
    code.extend_from_slice(&[0x48, 0x8d, 0x0d, 14, 0, 0, 0]);
    // jmp [rip + 0]
    code.extend_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
    code.extend_from_slice(&entry.to_le_bytes());
    let resume = at + code.len() as u64;
    code.extend_from_slice(&plan.after);
    code.push(0xe9);
    let next = at + code.len() as u64 + 4;
    code.extend_from_slice(&(plan.back.wrapping_sub(next) as u32).to_le_bytes());
    (code, resume)
}

/// Room for a trampoline within reach of `site`.
fn place(site: u64, len: u64) -> SysResult {
    let near = |at: u64| at.abs_diff(site) < REACH;
    if let Some((start, used)) = sites()
        .regions
        .iter_mut()
        .find(|(s, u)| near(*s) && u + len <= REGION)
    {
        let at = *start + *used;
        *used += len;
        return Ok(at);
    }
    let mut space = space::current().lock();
    let low = site
        .saturating_sub(REACH - 2 * REGION)
        .max(cloak_abi::layout::USER_MIN);
    let high = site
        .saturating_add(REACH - 2 * REGION)
        .min(cloak_abi::layout::USER_END);
    let start = space
        .areas
        .free_range(low, high, REGION, REGION)
        .filter(|&s| cloak_abi::layout::is_user_range(s, REGION))
        .ok_or(Errno::ENOMEM)?;
    let area = Area {
        name: "[cloak]",
        ..Area::anonymous(start + REGION, Protection::READ | Protection::EXECUTE)
    };
    space.areas.insert(start, area);
    space.populate(start, start + 16 * PAGE);
    drop(space);
    sites().regions.push((start, len));
    Ok(start)
}

/// Writes to a page that is mapped executable, through the window.
fn write_text(at: u64, bytes: &[u8]) -> SysResult<()> {
    own_text(at, bytes.len())?;
    store_text(at, bytes)
}

/// The same for text that is this address space's own already.
fn store_text(at: u64, bytes: &[u8]) -> SysResult<()> {
    for (i, &byte) in bytes.iter().enumerate() {
        let target = text_window(at + i as u64)?;
        // SAFETY: an own frame of this address space, reached through the window.
        unsafe { core::ptr::write_volatile(target as *mut u8, byte) };
    }
    Ok(())
}

/// Text that other processes have too gets frames of this one's own.
fn own_text(at: u64, len: usize) -> SysResult<()> {
    let last = at + len as u64 - 1;
    let mut space = space::current().lock();
    space.own(at)?;
    if last & !(PAGE - 1) != at & !(PAGE - 1) {
        space.own(last)?;
    }
    Ok(())
}

fn text_window(at: u64) -> SysResult {
    match space::current().tables.look(at).0 {
        // A page that others share must stay as it is.
        Some(leaf) if !leaf.is_shared() => Ok(frames::window(leaf.gpa) + at % PAGE),
        _ => Err(Errno::EFAULT),
    }
}

/// Replaces text that other vCPUs may be about to execute. `stands`: threads may stand inside of it.
fn replace(at: u64, bytes: &[u8], stands: bool) -> SysResult<()> {
    own_text(at, bytes.len())?;
    let target = text_window(at)?;
    text_window(at + bytes.len() as u64 - 1)?;
    let offset = (at % 8) as usize;
    if stands || offset + bytes.len() > 8 {
        let _world = stop_others()?;
        return store_text(at, bytes);
    }
    // One aligned store is seen whole.
    let word = (target & !7) as *mut u64;
    // SAFETY: an own frame of this address space, reached through the window; aligned, inside one page.
    unsafe {
        let mut image = word.read_volatile().to_le_bytes();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        word.write_volatile(u64::from_le_bytes(image));
    }
    Ok(())
}

/// The address in the original text for an address in a trampoline behind its call.
#[must_use]
pub fn logical(rip: u64) -> u64 {
    let state = sites();
    let Some((&resume, &original)) = state.resumes.range(..=rip).next_back() else {
        return rip;
    };
    let moved = state.sites.get(&original).map_or(0, |s| s.moved);
    if rip == resume || rip - resume < moved {
        original + (rip - resume)
    } else {
        rip
    }
}

/// Where to go on for an address in the original text whose instruction was moved.
#[must_use]
pub fn physical(rip: u64) -> u64 {
    let state = sites();
    match state.sites.range(..=rip).next_back() {
        Some((&original, site)) if rip - original < site.moved => site.resume + (rip - original),
        _ => rip,
    }
}
