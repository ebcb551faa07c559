//! The semaphore sets of the context.
//!
//! The operations of one `semop` are done all together or not at all. One that can't be done now waits at its set: who
//! changes a set wakes all that wait there, and each tries anew. What a process did with `SEM_UNDO` is kept per set
//! and process, and taken back when the process ends.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::table::{About, Caller, NO_WAIT, Object, READ, Table, WRITE};
use crate::errno::{Errno, SysResult};
use crate::sched::WaitQueue;

/// Most sets (`SEMMNI`).
pub const MOST: usize = 4096;
/// Most semaphores of a set (`SEMMSL`).
pub const MOST_IN_SET: usize = 32_000;
/// Most operations of one call (`SEMOPM`).
pub const MOST_OPERATIONS: usize = 500;
/// Highest value (`SEMVMX`), and the most that is taken back at once (`SEMAEM`).
pub const HIGHEST: i32 = 32_767;

/// `SEM_UNDO`.
const UNDO: u16 = 0x1000;

/// `struct sembuf` (`include/uapi/linux/sem.h`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Operation {
    /// Which semaphore of the set.
    pub number: u16,
    /// What to add; 0: wait until it is 0.
    pub change: i16,
    /// `IPC_NOWAIT`, `SEM_UNDO`.
    pub flags: u16,
}

/// A semaphore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Semaphore {
    /// 0 to [`HIGHEST`].
    pub value: u16,
    /// Process that changed it last; 0: none.
    pub pid: i32,
}

/// What a waiting thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    number: u16,
    /// That it is 0, and not that it grows.
    zero: bool,
}

/// A set.
#[derive(Debug)]
pub struct Set {
    about: About,
    semaphores: Vec<Semaphore>,
    /// Seconds since 1970 of the last operation and change; 0: never.
    times: [i64; 2],
    /// By thread.
    waiting: BTreeMap<i32, Wish>,
    /// What to add for a process when it ends, by process and semaphore.
    undo: BTreeMap<i32, Vec<i16>>,
    queue: Arc<WaitQueue>,
}

impl Object for Set {
    fn about(&self) -> &About {
        &self.about
    }
}

/// How operations went.
#[derive(Debug, PartialEq, Eq)]
enum Went {
    Done,
    /// This one has to wait.
    Blocked(Operation),
}

impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        (self.number, self.change, self.flags) == (other.number, other.change, other.flags)
    }
}

impl Eq for Operation {}

impl Set {
    fn new(about: About, count: usize, caller: &Caller<'_>) -> Self {
        Self {
            about,
            semaphores: alloc::vec![Semaphore::default(); count],
            times: [0, caller.now],
            waiting: BTreeMap::new(),
            undo: BTreeMap::new(),
            queue: Arc::new(WaitQueue::new()),
        }
    }

    /// Semaphores.
    #[must_use]
    pub fn semaphores(&self) -> &[Semaphore] {
        &self.semaphores
    }

    /// Seconds since 1970 of the last operation and change; 0: never.
    #[must_use]
    pub fn times(&self) -> [i64; 2] {
        self.times
    }

    /// The semaphore of this number.
    ///
    /// # Errors
    /// EINVAL.
    pub fn semaphore(&self, number: i32) -> SysResult<Semaphore> {
        let number = usize::try_from(number).map_err(|_| Errno::EINVAL)?;
        self.semaphores.get(number).copied().ok_or(Errno::EINVAL)
    }

    /// Threads that wait for a semaphore to become 0, or to grow.
    #[must_use]
    pub fn waiting(&self, number: i32, zero: bool) -> u64 {
        let wish = |w: &&Wish| i32::from(w.number) == number && w.zero == zero;
        self.waiting.values().filter(wish).count() as u64
    }

    /// All of them, or none.
    fn operate(&mut self, operations: &[Operation], caller: &Caller<'_>) -> SysResult<Went> {
        let mut undo = self.undo.remove(&caller.pid);
        if undo.is_none() && operations.iter().any(|o| o.flags & UNDO != 0) {
            undo = Some(alloc::vec![0; self.semaphores.len()]);
        }
        let mut done = 0;
        let mut went = Ok(Went::Done);
        for operation in operations {
            match self.one(*operation, undo.as_deref_mut()) {
                Ok(Went::Done) => done += 1,
                other => {
                    went = other;
                    break;
                }
            }
        }
        if went == Ok(Went::Done) {
            for operation in operations {
                self.semaphores[usize::from(operation.number)].pid = caller.pid;
            }
            self.times[0] = caller.now;
        } else {
            for operation in operations[..done].iter().rev() {
                let number = usize::from(operation.number);
                let value = &mut self.semaphores[number].value;
                *value = value.wrapping_add_signed(operation.change.wrapping_neg());
                if let Some(undo) = undo.as_mut().filter(|_| operation.flags & UNDO != 0) {
                    undo[number] += operation.change;
                }
            }
        }
        if let Some(undo) = undo.filter(|u| u.iter().any(|&change| change != 0)) {
            self.undo.insert(caller.pid, undo);
        }
        went
    }

    fn one(&mut self, operation: Operation, undo: Option<&mut [i16]>) -> SysResult<Went> {
        let number = usize::from(operation.number);
        let value = &mut self.semaphores[number].value;
        let after = i32::from(*value) + i32::from(operation.change);
        if after < 0 || operation.change == 0 && *value != 0 {
            return Ok(Went::Blocked(operation));
        }
        if after > HIGHEST {
            return Err(Errno::ERANGE);
        }
        if let Some(undo) = undo.filter(|_| operation.flags & UNDO != 0) {
            let adjusted = i32::from(undo[number]) - i32::from(operation.change);
            if adjusted.abs() > HIGHEST {
                return Err(Errno::ERANGE);
            }
            undo[number] = adjusted as i16;
        }
        *value = after as u16;
        Ok(Went::Done)
    }

    /// Takes back what a process did, as far as it goes; says whether there was something.
    fn take_back(&mut self, pid: i32) -> bool {
        let Some(undo) = self.undo.remove(&pid) else {
            return false;
        };
        for (semaphore, change) in self.semaphores.iter_mut().zip(undo) {
            if change != 0 {
                let value = i32::from(semaphore.value) + i32::from(change);
                semaphore.value = value.clamp(0, HIGHEST) as u16;
                semaphore.pid = pid;
            }
        }
        true
    }

    /// Sets semaphores from `first` on; nothing that a process did to them will be taken back.
    fn set(&mut self, first: usize, values: &[u16], caller: &Caller<'_>) {
        for undo in self.undo.values_mut() {
            undo[first..first + values.len()].fill(0);
        }
        for (semaphore, &value) in self.semaphores[first..].iter_mut().zip(values) {
            *semaphore = Semaphore {
                value,
                pid: caller.pid,
            };
        }
        self.times[1] = caller.now;
    }
}

/// All sets.
#[derive(Debug, Default)]
pub struct Semaphores(pub Table<Set>);

/// The sets of the context.
pub static SEMAPHORES: Mutex<Semaphores> = Mutex::new(Semaphores(Table::new()));

impl Semaphores {
    /// `semget`.
    ///
    /// # Errors
    /// As semget(2): ENOENT, EEXIST, EACCES, EINVAL, ENOSPC.
    pub fn find_or_make(&mut self, key: i32, count: i32, flags: u32, caller: &Caller<'_>) -> SysResult<i32> {
        let count = usize::try_from(count)
            .ok()
            .filter(|&count| count <= MOST_IN_SET)
            .ok_or(Errno::EINVAL)?;
        self.0.find_or_make(
            (key, flags, MOST),
            caller,
            |set| {
                if count > set.semaphores.len() {
                    Err(Errno::EINVAL)
                } else {
                    Ok(())
                }
            },
            |about| {
                if count == 0 {
                    Err(Errno::EINVAL)
                } else {
                    Ok(Set::new(about, count, caller))
                }
            },
        )
    }

    /// Whether the caller may do this to the set at all, and where to wait.
    ///
    /// # Errors
    /// EINVAL, EFBIG, EACCES.
    pub fn begin(
        &mut self,
        id: i32,
        operations: &[Operation],
        caller: &Caller<'_>,
    ) -> SysResult<Arc<WaitQueue>> {
        let set = self.0.find(id)?;
        let count = set.semaphores.len();
        if operations.iter().any(|o| usize::from(o.number) >= count) {
            return Err(Errno::EFBIG);
        }
        let changes = operations.iter().any(|o| o.change != 0);
        set.about.permit(caller.who, if changes { WRITE } else { READ })?;
        Ok(set.queue.clone())
    }

    /// Tries the operations, which [`Semaphores::begin`] allowed; nothing: they have to wait, as thread `tid` does then.
    ///
    /// # Errors
    /// EAGAIN (`IPC_NOWAIT`), ERANGE; EIDRM: the set was removed meanwhile.
    pub fn operate(
        &mut self,
        id: i32,
        operations: &[Operation],
        tid: i32,
        caller: &Caller<'_>,
    ) -> Option<SysResult<()>> {
        let Ok(set) = self.0.find(id) else {
            return Some(Err(Errno::EIDRM));
        };
        let result = match set.operate(operations, caller) {
            Ok(Went::Done) => Ok(()),
            Ok(Went::Blocked(at)) if u32::from(at.flags) & NO_WAIT == 0 => {
                let (number, zero) = (at.number, at.change == 0);
                set.waiting.insert(tid, Wish { number, zero });
                return None;
            }
            Ok(Went::Blocked(_)) => Err(Errno::EAGAIN),
            Err(error) => Err(error),
        };
        set.waiting.remove(&tid);
        Some(result)
    }

    /// Thread `tid` waits no longer.
    pub fn give_up(&mut self, id: i32, tid: i32) {
        if let Ok(set) = self.0.find(id) {
            set.waiting.remove(&tid);
        }
    }

    /// `SETVAL`, `SETALL`: sets semaphores from `first` on; gives whom to wake.
    ///
    /// # Errors
    /// EINVAL, EACCES, ERANGE.
    pub fn set(
        &mut self,
        id: i32,
        first: i32,
        values: &[u16],
        caller: &Caller<'_>,
    ) -> SysResult<Arc<WaitQueue>> {
        let set = self.0.find_for(id, WRITE, caller.who)?;
        let first = usize::try_from(first).map_err(|_| Errno::EINVAL)?;
        if set.semaphores.len().checked_sub(first) < Some(values.len()) {
            return Err(Errno::EINVAL);
        }
        if values.iter().any(|&value| i32::from(value) > HIGHEST) {
            return Err(Errno::ERANGE);
        }
        set.set(first, values, caller);
        Ok(set.queue.clone())
    }

    /// `IPC_SET`.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn change(&mut self, id: i32, owner: (u32, u32), mode: u32, caller: &Caller<'_>) -> SysResult<()> {
        let set = self.0.find_owned(id, caller.who)?;
        set.about.change(owner, mode);
        set.times[1] = caller.now;
        Ok(())
    }

    /// `IPC_RMID`: gone at once; gives whom to wake.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn remove(&mut self, id: i32, caller: &Caller<'_>) -> SysResult<Arc<WaitQueue>> {
        Ok(self.0.remove(id, caller.who)?.queue)
    }

    /// A process has ended; gives whom to wake.
    pub fn process_ended(&mut self, pid: i32) -> Vec<Arc<WaitQueue>> {
        let touched = self.0.all_mut().filter_map(|set| {
            let queue = set.queue.clone();
            set.take_back(pid).then_some(queue)
        });
        touched.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::testing::{by, user};
    use super::super::table::{CREATE, PRIVATE};
    use super::*;

    fn op(number: u16, change: i16, flags: u16) -> Operation {
        Operation {
            number,
            change,
            flags,
        }
    }

    fn values(all: &mut Semaphores, id: i32) -> Vec<u16> {
        let set = all.0.find(id).expect("there");
        set.semaphores().iter().map(|s| s.value).collect()
    }

    #[test]
    fn operations_are_done_whole_or_not_at_all() {
        let (mut all, me) = (Semaphores::default(), user(1));
        let id = all.find_or_make(PRIVATE, 3, 0o600, &by(&me)).expect("made");
        let try_all = |all: &mut Semaphores, ops: &[Operation]| all.operate(id, ops, 70, &by(&me));
        assert_eq!(
            try_all(&mut all, &[op(0, 5, 0), op(1, 2, 0), op(0, -3, 0)]),
            Some(Ok(()))
        );
        assert_eq!(values(&mut all, id), [2, 2, 0]);
        // The third can't be done: the first two are not either, nor are they undone later.
        let ops = [op(0, -1, UNDO), op(2, 7, UNDO), op(1, -3, 0)];
        assert_eq!(try_all(&mut all, &ops), None);
        assert_eq!(values(&mut all, id), [2, 2, 0]);
        assert_eq!(all.0.find(id).map(|s| s.waiting(1, false)), Ok(1));
        assert!(all.process_ended(7).is_empty());
        assert_eq!(
            try_all(&mut all, &[op(0, 1, 0), op(1, i16::MAX, 0)]),
            Some(Err(Errno::ERANGE))
        );
        assert_eq!(
            try_all(&mut all, &[op(0, 1, 0), op(0, 0, NO_WAIT as u16)]),
            Some(Err(Errno::EAGAIN))
        );
        assert_eq!(values(&mut all, id), [2, 2, 0]);
        assert_eq!(all.0.find(id).map(|s| s.waiting(1, false)), Ok(0), "it gave up");
        assert_eq!(try_all(&mut all, &[op(0, 0, 0)]), None);
        assert_eq!(all.0.find(id).map(|s| s.waiting(0, true)), Ok(1));
        all.give_up(id, 70);
        assert_eq!(all.0.find(id).map(|s| s.waiting(0, true)), Ok(0));
        all.remove(id, &by(&me)).expect("removed");
        assert_eq!(try_all(&mut all, &[op(0, 1, 0)]), Some(Err(Errno::EIDRM)));
    }

    #[test]
    fn what_a_process_did_is_taken_back_when_it_ends() {
        let (mut all, me) = (Semaphores::default(), user(1));
        let id = all.find_or_make(PRIVATE, 2, 0o600, &by(&me)).expect("made");
        let other = Caller { pid: 8, ..by(&me) };
        all.set(id, 0, &[4, 4], &by(&me)).expect("set");
        assert_eq!(
            all.operate(
                id,
                &[op(0, -3, UNDO), op(1, -3, UNDO), op(1, 1, UNDO)],
                7,
                &by(&me)
            ),
            Some(Ok(()))
        );
        assert_eq!(all.operate(id, &[op(0, -1, UNDO)], 8, &other), Some(Ok(())));
        assert_eq!(values(&mut all, id), [0, 2]);
        assert_eq!(all.process_ended(7).len(), 1);
        assert_eq!(values(&mut all, id), [3, 4]);
        assert!(all.process_ended(7).is_empty());
        // A value that was set is nobody's to take back.
        all.set(id, 0, &[9], &by(&me)).expect("set");
        all.process_ended(8);
        assert_eq!(values(&mut all, id), [9, 4]);
        // More than there is to take back: as far as it goes.
        assert_eq!(all.operate(id, &[op(1, 5, UNDO)], 8, &other), Some(Ok(())));
        assert_eq!(all.operate(id, &[op(1, -8, 0)], 7, &by(&me)), Some(Ok(())));
        all.process_ended(8);
        assert_eq!(values(&mut all, id), [9, 0]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let (mut all, me, other) = (Semaphores::default(), user(1), user(2));
        assert_eq!(
            all.find_or_make(5, 0, CREATE | 0o600, &by(&me)),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            all.find_or_make(5, -1, CREATE | 0o600, &by(&me)),
            Err(Errno::EINVAL)
        );
        let id = all.find_or_make(5, 2, CREATE | 0o640, &by(&me)).expect("made");
        assert_eq!(all.find_or_make(5, 0, 0, &by(&me)), Ok(id));
        assert_eq!(all.find_or_make(5, 3, 0, &by(&me)), Err(Errno::EINVAL));
        let begin = |all: &mut Semaphores, who, ops: &[Operation]| all.begin(id, ops, &by(who)).map(|_| ());
        assert_eq!(begin(&mut all, &me, &[op(2, 0, 0)]), Err(Errno::EFBIG));
        assert_eq!(begin(&mut all, &other, &[op(0, 0, 0)]), Err(Errno::EACCES));
        let member = crate::process::Credentials {
            groups: alloc::vec![1],
            ..user(3)
        };
        assert_eq!(begin(&mut all, &member, &[op(0, 0, 0)]), Ok(()));
        assert_eq!(begin(&mut all, &member, &[op(0, 1, 0)]), Err(Errno::EACCES));
        let set =
            |all: &mut Semaphores, first, values: &[u16]| all.set(id, first, values, &by(&me)).map(|_| ());
        assert_eq!(set(&mut all, 2, &[0]), Err(Errno::EINVAL));
        assert_eq!(set(&mut all, -1, &[0]), Err(Errno::EINVAL));
        assert_eq!(set(&mut all, 1, &[0x8000]), Err(Errno::ERANGE));
    }
}
