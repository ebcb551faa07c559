//! The slave: a terminal, as programs see it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::control::{self, Access};
use super::termios::{ICANON, TOSTOP, VMIN, VTIME};
use super::{Pair, State, ioctl};
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::file::{File, Stat, ready};
use crate::fs::node::Node;
use crate::sched::WaitQueue;
use crate::sched::clock::deadline_in;
use crate::user::Buf;

/// Bytes handled at a time.
const PART: usize = 2048;

pub(super) struct Slave {
    pub(super) pair: Arc<Pair>,
    node: Arc<dyn Node>,
    /// Hang-ups of the slave before this was opened.
    before: u64,
}

impl Slave {
    /// Opens it.
    pub fn open(pair: Arc<Pair>, node: Arc<dyn Node>) -> SysResult<Arc<Self>> {
        let before = {
            let mut state = pair.state.lock();
            if state.master_gone || state.locked {
                return Err(Errno::EIO);
            }
            if state.exclusive && crate::fs::node::credentials().uid[1] != 0 {
                return Err(Errno::EBUSY);
            }
            state.slaves += 1;
            state.had_slave = true;
            state.hang_ups
        };
        pair.changed();
        Ok(Arc::new(Self { pair, node, before }))
    }

    fn is_dead(&self, state: &State) -> bool {
        state.hang_ups != self.before
    }

    /// A part of what there is, or nothing yet.
    fn try_read(&self, most: usize, enough: usize) -> Option<Vec<u8>> {
        let mut state = self.pair.state.lock();
        if self.is_dead(&state) {
            return Some(Vec::new());
        }
        if !state.discipline.has_input(enough) {
            return None;
        }
        let bytes = state.discipline.take(most);
        drop(state);
        self.pair.changed();
        Some(bytes)
    }

    fn wait_for_input(&self, most: usize) -> SysResult<Vec<u8>> {
        let (canonical, least, tenths) = {
            let state = self.pair.state.lock();
            let termios = &state.discipline.termios;
            (
                termios.lflag & ICANON != 0,
                usize::from(termios.cc[VMIN]).min(most),
                u64::from(termios.cc[VTIME]),
            )
        };
        let after = |tenths: u64| deadline_in(tenths * 100_000_000);
        let attempt = |enough| move || self.try_read(most, enough).map(Ok);
        if canonical || tenths == 0 {
            return self.pair.slave.wait(u64::MAX, attempt(least.max(1)));
        }
        // The time runs from the start without a least number of bytes, else between bytes.
        if least == 0 {
            return match self.pair.slave.wait(after(tenths), attempt(1)) {
                Err(Errno::ETIMEDOUT) => Ok(Vec::new()),
                result => result,
            };
        }
        let pending = || self.pair.state.lock().discipline.pending();
        self.pair.slave.wait(u64::MAX, || {
            let dead = self.is_dead(&self.pair.state.lock());
            (dead || pending() > 0).then_some(Ok(()))
        })?;
        loop {
            let before = pending();
            let more = self.pair.slave.wait(after(tenths), || {
                let dead = self.is_dead(&self.pair.state.lock());
                (dead || before >= least || pending() > before).then_some(Ok(()))
            });
            match more {
                Ok(()) if before < least && pending() > before => {}
                Ok(()) | Err(Errno::ETIMEDOUT) => return Ok(self.try_read(most, 1).unwrap_or_default()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Puts output; how many bytes there was room for.
    fn put(&self, bytes: &[u8]) -> SysResult<usize> {
        let taken = {
            let mut state = self.pair.state.lock();
            if self.is_dead(&state) {
                return Err(Errno::EIO);
            }
            let taken = bytes.len().min(state.output_room());
            let mut out = Vec::new();
            state.discipline.output(&bytes[..taken], &mut out);
            state.output.append(&mut out);
            taken
        };
        if taken > 0 {
            self.pair.changed();
        }
        Ok(taken)
    }
}

impl File for Slave {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        control::keep_out(&self.pair, Access::Read)?;
        let most = to.len().min(4096);
        let enough = {
            let state = self.pair.state.lock();
            let termios = &state.discipline.termios;
            let polled = termios.lflag & ICANON == 0 && (termios.cc[VMIN], termios.cc[VTIME]) == (0, 0);
            if polled { 0 } else { 1 }
        };
        let bytes = match self.try_read(most, 1) {
            // More is wanted than there is.
            Some(bytes) if enough == 0 || bytes.is_empty() || file.nonblocking() => bytes,
            Some(bytes) => self.complete(bytes, most)?,
            None if enough == 0 => Vec::new(),
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self.wait_for_input(most)?,
        };
        to.put(&bytes)
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        if self.pair.state.lock().discipline.termios.lflag & TOSTOP != 0 {
            control::keep_out(&self.pair, Access::Write)?;
        }
        let mut done = 0;
        let mut part = [0; PART];
        while !from.is_empty() {
            let len = from.len().min(PART);
            from.take(&mut part[..len])?;
            let mut at = 0;
            while at < len {
                let attempt = || match self.put(&part[at..len]) {
                    Ok(0) => None,
                    result => Some(result),
                };
                let put = match self.put(&part[at..len]) {
                    Ok(0) if file.nonblocking() => Err(Errno::EAGAIN),
                    Ok(0) => self.pair.slave.wait(u64::MAX, attempt),
                    result => result,
                };
                match put {
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
        self.node.stat()
    }

    fn poll(&self) -> u32 {
        let state = self.pair.state.lock();
        if self.is_dead(&state) {
            return ready::IN | ready::OUT | ready::ERR | ready::HUP | ready::RDNORM | ready::WRNORM;
        }
        let termios = &state.discipline.termios;
        let enough = if termios.cc[VTIME] == 0 {
            usize::from(termios.cc[VMIN]).max(1)
        } else {
            1
        };
        let mut bits = 0;
        if state.discipline.has_input(enough) {
            bits |= ready::IN | ready::RDNORM;
        }
        if state.output_room() > 0 {
            bits |= ready::OUT | ready::WRNORM;
        }
        bits
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.pair.slave)
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> SysResult {
        if self.is_dead(&self.pair.state.lock()) {
            return Err(Errno::EIO);
        }
        ioctl::on_slave(&self.pair, request, argument)
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.node)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Slave {
    /// With a least number of bytes, a read that found fewer waits for the others.
    fn complete(&self, mut bytes: Vec<u8>, most: usize) -> SysResult<Vec<u8>> {
        loop {
            let least = {
                let state = self.pair.state.lock();
                let termios = &state.discipline.termios;
                if termios.lflag & ICANON != 0 || termios.cc[VTIME] != 0 {
                    return Ok(bytes);
                }
                usize::from(termios.cc[VMIN]).min(most)
            };
            if bytes.len() >= least {
                return Ok(bytes);
            }
            let left = most - bytes.len();
            match self.pair.slave.wait(u64::MAX, || self.try_read(left, 1).map(Ok)) {
                Ok(more) if more.is_empty() => return Ok(bytes),
                Ok(more) => bytes.extend(more),
                Err(_) => return Ok(bytes),
            }
        }
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        self.pair.state.lock().slaves -= 1;
        self.pair.changed();
    }
}
