//! Kernel calls and kicks.

use core::sync::atomic::Ordering;

use cloak_abi::boot::LibosHeader;
use cloak_abi::kcall::{ALL_SPACES, Kcall, KcallError};
use cloak_abi::vcpu::{MAX_OPS, MonitorCall, VcpuBlock, VcpuState};
use cloak_pagetables::tables::{Editor, Op};

use super::cpu::{self, Cpu, cpu, wrmsr};
use super::{CONTEXTS, Context, Shared, UNKNOWN_MODE, Window, entry, platform};

/// The context whose vCPU this is.
fn context(cpu: &Cpu) -> &'static Context {
    &CONTEXTS[cpu.context as usize]
}

impl Context {
    /// Runs `work` under the context's lock. Whoever waits acknowledges shoot-downs, so a holder that waits for
    /// this vCPU gets its answer.
    pub(super) fn locked<R>(&self, cpu: &Cpu, work: impl FnOnce(&mut Shared) -> R) -> R {
        while self
            .lock
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            self.acknowledge(cpu);
            core::hint::spin_loop();
        }
        // SAFETY: the lock is held, so this is the only reference.
        let result = work(unsafe { &mut *self.shared.get() });
        self.lock.store(0, Ordering::Release);
        result
    }

    /// Work that takes page tables, under the lock: where only resting ones are left, the context's vCPUs forget
    /// them, and the work is done anew.
    fn with_tables<R>(
        &self,
        cpu: &Cpu,
        shared: &mut Shared,
        mut work: impl FnMut(&mut Shared) -> Result<R, KcallError>,
    ) -> Result<R, KcallError> {
        match work(shared) {
            Err(KcallError::Tables) if shared.pool.is_resting() => {
                self.forget_all(cpu);
                shared.pool.settle(&mut Window);
                work(shared)
            }
            result => result,
        }
    }

    fn acknowledge(&self, cpu: &Cpu) {
        self.generation.acknowledge(self.own_index(cpu), cpu::reload);
    }

    /// The context's number of a vCPU.
    fn own_index(&self, cpu: &Cpu) -> usize {
        cpu.index as usize - self.constants().first_vcpu as usize
    }

    /// The context's vCPUs that have been started, but for `me`, with its numbers of them.
    fn others<'a>(&'a self, me: &'a Cpu) -> impl Iterator<Item = (usize, &'static Cpu)> + 'a {
        let all = self.constants();
        (0..all.vcpus as usize)
            .map(move |own| (own, cpu(all.first_vcpu as usize + own)))
            .filter(move |(_, other)| other.index != me.index && other.block != 0)
    }

    /// Every vCPU of the context forgets its translations, whatever the libos says of it: for the kernel's own sake.
    fn forget_all(&self, me: &Cpu) {
        cpu::reload();
        let generation = self.generation.raise();
        for (own, _) in self.others(me) {
            // One that is halted is woken.
            leave(me, MonitorCall::Kick, own as u32);
            while !self.generation.has_seen(own, generation) {
                self.acknowledge(me);
                core::hint::spin_loop();
            }
        }
        self.acknowledge(me);
    }

    /// Waits until every vCPU that could use an old translation of the space, for the context's sake, has forgotten
    /// it.
    fn shoot(&self, me: &Cpu, space: u64) {
        let concerns = |cpu: &Cpu, order| space == ALL_SPACES || cpu.space.load(order) == space;
        if concerns(me, Ordering::Relaxed) {
            cpu::reload();
        }
        if self.constants().vcpus == 1 {
            return;
        }
        let generation = self.generation.raise();
        for (own, target) in self.others(me) {
            if !concerns(target, Ordering::SeqCst) {
                continue; // what it loads when it comes to this space is new
            }
            let target_block = block(target);
            let is_halted = || target_block.state.load(Ordering::SeqCst) == VcpuState::Halted as u32;
            // The order matters: mark first, then look. The libos leaves Halted first, then looks at the mark.
            target_block.stale.store(1, Ordering::SeqCst);
            if is_halted() {
                continue;
            }
            if !self.generation.has_seen(own, generation) {
                leave(me, MonitorCall::Kick, own as u32);
            }
            while !self.generation.has_seen(own, generation) && !is_halted() {
                self.acknowledge(me);
                core::hint::spin_loop();
            }
        }
        self.acknowledge(me);
    }
}

/// Leaves to the monitor, by the platform's way.
fn leave(cpu: &Cpu, call: MonitorCall, argument: u32) {
    platform::current().monitor(cpu, call, argument);
}

/// A kick interrupt: shoot-downs are acknowledged; what else it means is the libos's business.
pub extern "C" fn on_kick(index: u32) {
    let cpu = cpu(index as usize);
    context(cpu).acknowledge(cpu);
    platform::current().end_of_interrupt();
}

/// An interrupt that nothing here asked for: a hypervisor may inject what it likes. It is dropped, and counted.
pub extern "C" fn on_stray(index: u32) {
    block(cpu(index as usize)).dropped.fetch_add(1, Ordering::Relaxed);
    platform::current().end_of_interrupt();
}

/// The block that this vCPU shares with its libos.
pub(super) fn block(cpu: &Cpu) -> &'static VcpuBlock {
    // SAFETY: `install` set it to the vCPU's block in the kernel's window; the type is atomics only, so
    // concurrent writes by the libos are defined.
    unsafe { &*(cpu.block as *const VcpuBlock) }
}

/// Carries out kernel call `number` and gives its result register. `index` is the VM's number of the vCPU.
pub extern "C" fn dispatch(number: u64, first: u64, second: u64, index: u32) -> i64 {
    let cpu = cpu(index as usize);
    let context = context(cpu);
    let result = match number {
        n if n == Kcall::PageOps as u64 => page_ops(context, cpu, first),
        n if n == Kcall::Flush as u64 => {
            cpu::reload();
            context.generation.acknowledge(context.own_index(cpu), || {});
            Ok(0)
        }
        n if n == Kcall::Kick as u64 => other(context, cpu, first)
            .map(|own| leave(cpu, MonitorCall::Kick, own))
            .map(|()| 0),
        n if n == Kcall::Start as u64 => other(context, cpu, first)
            .and_then(|own| platform::current().start_vcpu(context, cpu, own))
            .map(|()| 0),
        n if n == Kcall::Accept as u64 => platform::current().accept(context, cpu, first).map(|()| 0),
        n if n == Kcall::Report as u64 => platform::current().report(context, cpu, first == 1),
        n if n == Kcall::Extend as u64 => platform::current().extend(context, cpu, first).map(|()| 0),
        n if n == Kcall::Key as u64 => platform::current().key(context, cpu, first == 1),
        n if n == Kcall::Exit as u64 => loop {
            leave(cpu, MonitorCall::Exit, 0);
        },
        n if n == Kcall::SyscallMode as u64 => syscall_mode(context, first),
        n if n == Kcall::SpaceNew as u64 => space_new(context, cpu, first, None),
        n if n == Kcall::SpaceCopy as u64 => space_new(context, cpu, first, Some(second)),
        n if n == Kcall::SpaceSwitch as u64 => space_switch(context, cpu, first, second),
        n if n == Kcall::SpaceFree as u64 => space_free(context, cpu, first),
        n if n == Kcall::Shoot as u64 => {
            context.shoot(cpu, first);
            Ok(0)
        }
        _ => Err(KcallError::Invalid),
    };
    result.unwrap_or_else(|error| -(error as i64))
}

/// Another vCPU of the context, by its number there.
fn other(context: &Context, cpu: &Cpu, target: u64) -> Result<u32, KcallError> {
    if target >= u64::from(context.constants().vcpus) || target == context.own_index(cpu) as u64 {
        return Err(KcallError::Invalid);
    }
    Ok(target as u32)
}

fn space_switch(context: &Context, cpu: &Cpu, number: u64, root: u64) -> Result<i64, KcallError> {
    let all = context.constants();
    if all.checks {
        return context.locked(cpu, |shared| {
            cpu::switch(cpu, number, shared.spaces.root(number)?);
            Ok(0)
        });
    }
    // The context's own table: it answers for what is in it.
    let root = root & !all.private;
    let known = root == all.first_root || all.roots.iter().any(|range| range.contains(&root));
    if !known || !root.is_multiple_of(cloak_abi::layout::PAGE) {
        return Err(KcallError::Invalid);
    }
    cpu::switch(cpu, number, root | all.private);
    Ok(0)
}

/// Calls that only contexts make whose tables the kernel edits.
fn refuse_own_tables(context: &Context) -> Result<(), KcallError> {
    if context.constants().checks {
        Ok(())
    } else {
        Err(KcallError::Invalid)
    }
}

/// Makes an address space: empty, or a copy of `source`.
fn space_new(context: &Context, cpu: &Cpu, number: u64, source: Option<u64>) -> Result<i64, KcallError> {
    refuse_own_tables(context)?;
    let make = |shared: &mut Shared| {
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
        Ok(root)
    };
    let root = context.locked(cpu, |shared| context.with_tables(cpu, shared, make))?;
    if let Some(source) = source {
        context.shoot(cpu, source);
    }
    Ok(root as i64)
}

fn space_free(context: &Context, cpu: &Cpu, number: u64) -> Result<i64, KcallError> {
    refuse_own_tables(context)?;
    context.locked(cpu, |shared| {
        if context
            .others(cpu)
            .any(|(_, other)| other.space.load(Ordering::SeqCst) == number)
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

fn page_ops(context: &Context, cpu: &Cpu, argument: u64) -> Result<i64, KcallError> {
    refuse_own_tables(context)?;
    let (count, space) = (argument & 0xffff_ffff, argument >> 32);
    if count > MAX_OPS as u64 {
        return Err(KcallError::Invalid);
    }
    let (done, shoot) = context.locked(cpu, |shared| {
        let root = shared.spaces.root(space)?;
        let mut shoot = false;
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
                shoot = true;
                continue;
            }
            let apply = |shared: &mut Shared| {
                Editor {
                    root,
                    memory: &mut Window,
                    pool: &mut shared.pool,
                }
                .apply(&op)
            };
            if let Err(error) = context.with_tables(cpu, shared, apply) {
                return if i == 0 { Err(error) } else { Ok((i, shoot)) };
            }
        }
        Ok((count as usize, shoot))
    })?;
    // A new entry needs no reload (the CPU does not cache absent ones); a changed one does.
    if shoot {
        context.shoot(cpu, space);
    }
    Ok(done as i64)
}

/// Points SYSCALL to where it is taken.
pub fn set_syscall_mode(header: &LibosHeader, mode: u32) {
    let target = match mode {
        0 => entry::syscall_stub(),
        1 => header.syscall,
        _ => header.syscall_probe,
    };
    // Where SYSCALL stays at CPL 3, nothing there could set IF again: it must not be cleared.
    let mask = if mode == 1 {
        cpu::FLAG_MASK & !0x200
    } else {
        cpu::FLAG_MASK
    };
    wrmsr(0xc000_0084, mask);
    wrmsr(0xc000_0082, target);
}

/// Where SYSCALL enters CPL 0, anything but the stub would give code of the libos the kernel's rights: it is decided
/// once, by the libos as it was measured, before any program runs.
fn syscall_mode(context: &Context, mode: u64) -> Result<i64, KcallError> {
    let mode = u32::try_from(mode).map_err(|_| KcallError::Invalid)?;
    if mode > UNKNOWN_MODE || context.mode.load(Ordering::Relaxed) != UNKNOWN_MODE {
        return Err(KcallError::Invalid);
    }
    context.mode.store(mode, Ordering::Relaxed);
    set_syscall_mode(&context.constants().header, mode);
    Ok(0)
}
