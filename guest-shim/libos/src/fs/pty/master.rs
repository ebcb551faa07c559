//! The master: who has it is the terminal's keyboard and screen.

use alloc::sync::Arc;
use core::any::Any;

use spin::Mutex;

use super::{OUTPUT_MAX, Owner, PAIRS, PAIRS_MAX, Pair, State, ioctl};
use crate::errno::{Errno, SysResult};
use crate::fs::attributes::make_dev;
use crate::fs::file::{File, Stat, ready};
use crate::fs::flags::S_IFCHR;
use crate::fs::{OpenFile, node, providers};
use crate::sched::WaitQueue;
use crate::user::Buf;

/// Bytes handled at a time.
const PART: usize = 4096;
/// Group of terminals (`tty`), as `devpts` is mounted by distributions.
const TTY_GROUP: u32 = 5;

pub(super) struct Master(pub(super) Arc<Pair>);

/// Opens `/dev/ptmx`: makes a pair.
///
/// # Errors
/// ENOSPC when there are too many.
pub fn open_master() -> SysResult<Arc<dyn File>> {
    Ok(Arc::new(Master(new_pair()?)))
}

/// A pair that no side is open of, locked.
pub(super) fn new_pair() -> SysResult<Arc<Pair>> {
    let now = providers::get().now();
    let mut pairs = PAIRS.lock();
    let number = (0u32..)
        .find(|number| !pairs.contains_key(number))
        .filter(|_| pairs.len() < PAIRS_MAX)
        .ok_or(Errno::ENOSPC)?;
    let pair = Arc::new(Pair {
        number,
        state: Mutex::new(State {
            locked: true,
            ..State::default()
        }),
        master: WaitQueue::new(),
        slave: WaitQueue::new(),
        owner: Mutex::new(Owner {
            uid: node::credentials().uid[3],
            gid: TTY_GROUP,
            mode: 0o620,
            times: [now; 3],
        }),
    });
    pairs.insert(number, Arc::downgrade(&pair));
    Ok(pair)
}

impl Master {
    fn try_read(&self, to: &mut Buf) -> Option<SysResult<usize>> {
        let mut state = self.0.state.lock();
        if state.packets && state.news != 0 {
            let news = core::mem::take(&mut state.news);
            return Some(to.put(&[news]));
        }
        if state.output.is_empty() {
            let is_over = state.had_slave && state.slaves == 0;
            return is_over.then_some(Err(Errno::EIO));
        }
        let head = usize::from(state.packets);
        if to.len() <= head {
            return Some(Ok(0));
        }
        let len = state.output.len().min(to.len() - head);
        let mut bytes = alloc::vec![0; head];
        bytes.extend(state.output.drain(..len));
        drop(state);
        self.0.changed();
        Some(to.put(&bytes))
    }

    /// Gives bytes to the line discipline; how many it took.
    fn give(&self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        let (signals, foreground) = {
            let mut state = self.0.state.lock();
            let mut signals = alloc::vec::Vec::new();
            while taken < bytes.len() && state.output.len() < 2 * OUTPUT_MAX {
                let room = state.discipline.room().min(bytes.len() - taken);
                if room == 0 {
                    break;
                }
                let effects = state.discipline.receive(&bytes[taken..taken + room]);
                signals.extend(self.0.received(&mut state, effects));
                taken += room;
            }
            (signals, state.foreground)
        };
        self.0.raise(foreground, &signals);
        if taken > 0 {
            self.0.changed();
        }
        taken
    }
}

impl File for Master {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        match self.try_read(to) {
            Some(result) => result,
            None if file.nonblocking() => Err(Errno::EAGAIN),
            None => self.0.master.wait(u64::MAX, || self.try_read(to)),
        }
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        let mut done = 0;
        let mut part = [0; PART];
        while !from.is_empty() {
            let len = from.len().min(PART);
            from.take(&mut part[..len])?;
            let mut at = self.give(&part[..len]);
            while at < len {
                let rest = &part[at..len];
                let attempt = || match self.give(rest) {
                    0 => None,
                    taken => Some(Ok(taken)),
                };
                let waited = if file.nonblocking() {
                    Err(Errno::EAGAIN)
                } else {
                    self.0.master.wait(u64::MAX, attempt)
                };
                match waited {
                    Ok(taken) => at += taken,
                    Err(e) if done + at == 0 => return Err(e),
                    Err(_) => return Ok(done + at),
                }
            }
            done += len;
        }
        Ok(done)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(Stat {
            mode: S_IFCHR | 0o666,
            rdev: make_dev(5, 2),
            nlink: 1,
            blksize: 1024,
            ..Stat::default()
        })
    }

    fn poll(&self) -> u32 {
        let state = self.0.state.lock();
        let mut bits = 0;
        if !state.output.is_empty() || state.packets && state.news != 0 {
            bits |= ready::IN | ready::RDNORM;
        }
        if state.packets && state.news != 0 {
            bits |= ready::PRI;
        }
        if state.discipline.room() > 0 {
            bits |= ready::OUT | ready::WRNORM;
        }
        if state.had_slave && state.slaves == 0 {
            bits |= ready::HUP;
        }
        bits
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.master)
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> SysResult {
        ioctl::on_master(&self.0, request, argument)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.0.state.lock().master_gone = true;
        PAIRS.lock().remove(&self.0.number);
        self.0.hang_up_slave();
    }
}
