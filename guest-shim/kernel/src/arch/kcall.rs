//! Kernel calls and kicks.

use core::sync::atomic::{AtomicU32, Ordering};

use cloak_abi::kcall::{Kcall, KcallError};
use cloak_abi::vcpu::{MAX_OPS, MonitorCall, VcpuBlock, VcpuState};
use cloak_pagetables::tables::{Editor, Op};

use super::cpu::{self, Cpu, cpu, monitor, wrmsr};
use super::{SHARED, Window, entry};
use crate::shoot::Generation;

static GENERATION: Generation = Generation::new();
/// Guards [`SHARED`] and all page tables.
static LOCK: AtomicU32 = AtomicU32::new(0);

/// Runs `work` under the kernel's lock. Whoever waits acknowledges shoot-downs, so a holder that waits for
/// this vCPU gets its answer.
fn locked<R>(cpu: &Cpu, work: impl FnOnce(&mut super::Shared) -> R) -> R {
    while LOCK
        .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        GENERATION.acknowledge(cpu.index as usize, cpu::reload);
        core::hint::spin_loop();
    }
    // SAFETY: the lock is held, so this is the only reference.
    let result = work(unsafe { &mut *(&raw mut SHARED) });
    LOCK.store(0, Ordering::Release);
    result
}

/// A kick interrupt: shoot-downs are acknowledged; what else it means is the libos's business.
pub extern "C" fn on_kick(index: u32) {
    GENERATION.acknowledge(index as usize, cpu::reload);
}

fn block(cpu: &Cpu) -> &VcpuBlock {
    // SAFETY: `install` set it to the vCPU's block in the kernel's window; the type is atomics only, so
    // concurrent writes by the libos are defined.
    unsafe { &*(cpu.block as *const VcpuBlock) }
}

/// Carries out kernel call `number` and gives its result register.
pub extern "C" fn dispatch(number: u64, first: u64, second: u64, index: u32) -> i64 {
    let cpu = cpu(index as usize);
    let result = match number {
        n if n == Kcall::PageOps as u64 => page_ops(cpu, first),
        n if n == Kcall::Flush as u64 => {
            cpu::reload();
            GENERATION.acknowledge(index as usize, || {});
            Ok(0)
        }
        n if n == Kcall::Kick as u64 => on_other(cpu, first, MonitorCall::Kick),
        n if n == Kcall::Start as u64 => on_other(cpu, first, MonitorCall::Start),
        n if n == Kcall::Exit as u64 => loop {
            monitor(MonitorCall::Exit, 0);
        },
        n if n == Kcall::SyscallMode as u64 => syscall_mode(first),
        n if n == Kcall::SpaceNew as u64 => space_new(cpu, first, None),
        n if n == Kcall::SpaceCopy as u64 => space_new(cpu, first, Some(second)),
        n if n == Kcall::SpaceSwitch as u64 => space_switch(cpu, first, second),
        n if n == Kcall::SpaceFree as u64 => space_free(cpu, first),
        n if n == Kcall::Shoot as u64 => {
            shoot(cpu, first, constants().vcpus);
            Ok(0)
        }
        _ => Err(KcallError::Invalid),
    };
    result.unwrap_or_else(|error| -(error as i64))
}

fn on_other(cpu: &Cpu, target: u64, call: MonitorCall) -> Result<i64, KcallError> {
    if target >= u64::from(constants().vcpus) || target == cpu.index {
        return Err(KcallError::Invalid);
    }
    monitor(call, target as u32);
    Ok(0)
}

/// What does not change after the first vCPU's start.
fn constants() -> &'static super::Constants {
    // SAFETY: written once, before any kernel call.
    unsafe { &*(&raw const super::CONSTANTS) }
}

fn space_switch(cpu: &Cpu, number: u64, root: u64) -> Result<i64, KcallError> {
    let all = constants();
    if all.checks {
        return locked(cpu, |shared| {
            cpu::switch(cpu, number, shared.spaces.root(number)?);
            Ok(0)
        });
    }
    // The context's own table: it answers for what is in it.
    if root != all.first_root && !all.tables.contains(&root) || root % cloak_abi::layout::PAGE != 0 {
        return Err(KcallError::Invalid);
    }
    cpu::switch(cpu, number, root);
    Ok(0)
}

/// Makes an address space: empty, or a copy of `source`.
fn space_new(cpu: &Cpu, number: u64, source: Option<u64>) -> Result<i64, KcallError> {
    let (root, vcpus) = locked(cpu, |shared| {
        if !constants().checks {
            return Err(KcallError::Invalid);
        }
        let first = shared.spaces.root(0)?;
        let source = source.map(|s| shared.spaces.root(s)).transpose()?;
        let slot = shared.spaces.vacant(number)?;
        let root = shared.pool.take(&mut Window)?;
        let mut editor = Editor {
            root,
            memory: &mut Window,
            pool: &mut shared.pool,
        };
        editor.begin(first);
        if let Some(Err(error)) = source.map(|s| editor.copy(s)) {
            editor.end();
            return Err(error);
        }
        *slot = root;
        Ok((root, constants().vcpus))
    })?;
    if let Some(source) = source {
        shoot(cpu, source, vcpus);
    }
    Ok(root as i64)
}

fn space_free(cpu: &Cpu, number: u64) -> Result<i64, KcallError> {
    locked(cpu, |shared| {
        if !constants().checks {
            return Err(KcallError::Invalid);
        }
        let others = (0..u64::from(constants().vcpus)).filter(|&i| i != cpu.index);
        if others
            .into_iter()
            .any(|i| super::cpu(i as usize).space.load(Ordering::SeqCst) == number)
        {
            return Err(KcallError::Busy);
        }
        let root = shared.spaces.remove(number)?;
        if cpu.space.load(Ordering::Relaxed) == number {
            cpu::switch(cpu, 0, shared.spaces.root(0)?);
        }
        Editor {
            root,
            memory: &mut Window,
            pool: &mut shared.pool,
        }
        .end();
        Ok(0)
    })
}

fn page_ops(cpu: &Cpu, argument: u64) -> Result<i64, KcallError> {
    let (count, space) = (argument & 0xffff_ffff, argument >> 32);
    if count > MAX_OPS as u64 {
        return Err(KcallError::Invalid);
    }
    let (done, vcpus) = locked(cpu, |shared| {
        if !constants().checks {
            return Err(KcallError::Invalid); // the context's own business
        }
        let root = shared.spaces.root(space)?;
        let mut shoot = None;
        for (i, raw) in block(cpu).ops[..count as usize].iter().enumerate() {
            // Copied once: the libos of another vCPU could change it between check and use.
            let load = |word: &core::sync::atomic::AtomicU64| word.load(Ordering::Relaxed);
            let op = Op::check(
                load(&raw.va_kind),
                load(&raw.len),
                load(&raw.gpa),
                load(&raw.flags),
                &shared.owned,
            )?;
            if op.is_shoot() {
                shoot = Some(constants().vcpus);
                continue;
            }
            let mut editor = Editor {
                root,
                memory: &mut Window,
                pool: &mut shared.pool,
            };
            if let Err(error) = editor.apply(&op) {
                return if i == 0 { Err(error) } else { Ok((i, shoot)) };
            }
        }
        Ok((count as usize, shoot))
    })?;
    // A new entry needs no reload (the CPU does not cache absent ones); a changed one does.
    if let Some(vcpus) = vcpus {
        shoot(cpu, space, vcpus);
    }
    Ok(done as i64)
}

/// Waits until every vCPU that could use an old translation of the space has forgotten it.
fn shoot(me: &Cpu, space: u64, vcpus: u32) {
    if me.space.load(Ordering::Relaxed) == space {
        cpu::reload();
    }
    if vcpus == 1 {
        return;
    }
    let generation = GENERATION.raise();
    for other in (0..u64::from(vcpus)).filter(|&i| i != me.index) {
        let target = cpu(other as usize);
        if target.block == 0 {
            continue; // not started: it begins with empty translations
        }
        if target.space.load(Ordering::SeqCst) != space {
            continue; // what it loads when it comes to this space is new
        }
        let target_block = block(target);
        // The order matters: mark first, then look. The libos leaves Halted first, then looks at the mark.
        target_block.stale.store(1, Ordering::SeqCst);
        if target_block.state.load(Ordering::SeqCst) == VcpuState::Halted as u32 {
            continue;
        }
        if !GENERATION.has_seen(other as usize, generation) {
            monitor(MonitorCall::Kick, other as u32);
        }
        while !GENERATION.has_seen(other as usize, generation)
            && target_block.state.load(Ordering::SeqCst) != VcpuState::Halted as u32
        {
            GENERATION.acknowledge(me.index as usize, cpu::reload);
            core::hint::spin_loop();
        }
    }
    GENERATION.acknowledge(me.index as usize, cpu::reload);
}

fn syscall_mode(mode: u64) -> Result<i64, KcallError> {
    // SAFETY: checked at boot; the libos image stays mapped.
    let header = unsafe { &*(cloak_abi::layout::LIBOS_BASE as *const cloak_abi::boot::LibosHeader) };
    let target = match mode {
        0 => entry::syscall_stub(),
        1 => header.syscall,
        2 => header.syscall_probe,
        _ => return Err(KcallError::Invalid),
    };
    // Where SYSCALL stays at CPL 3, nothing there could set IF again: it must not be cleared.
    let mask = if mode == 1 {
        cpu::FLAG_MASK & !0x200
    } else {
        cpu::FLAG_MASK
    };
    wrmsr(0xc000_0084, mask);
    wrmsr(0xc000_0082, target);
    Ok(0)
}
