//! Bytes of the container that are asked for before they are needed: who reads in a row finds the next ones there, which the host
//! fetched while the last ones were checked.
//!
//! They are bytes like any from the OS side, checked when they are used. What is written over meanwhile is forgotten here.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use cloak_abi::hostop::HostOp;

use crate::fs::hostfd::HostFd;
use crate::host::{CAPACITY, Pending, Request};

/// Slots that requests which nobody waits for leave to others.
pub(super) const LEFT: usize = 64;
/// Most readings at a time, of all volumes: one that nobody comes back to keeps its slot.
const MOST: usize = 16;
/// Readings that a row has at a time, once it goes on as was thought. One is enough while the OS service has a core to itself; where
/// it waits for one, the second gives it time.
const DEPTH: usize = 2;

/// What is read in a row, and what was asked for of it.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Where the last read ended.
    last: u64,
    /// Where the last read of a row ended: nodes, which lie elsewhere, are read in between.
    row: u64,
    readings: Vec<Reading>,
    /// Bytes were taken from them since somebody complained.
    given: bool,
}

/// One request's bytes.
#[derive(Debug)]
struct Reading {
    offset: u64,
    len: usize,
    state: State,
    _counted: Counted,
}

/// Readings there are. Each has a slot, for as long as nobody reads on.
static READINGS: AtomicUsize = AtomicUsize::new(0);

/// Slots that are kept here, for tests that count all of them.
#[cfg(test)]
pub(super) fn kept_slots() -> usize {
    READINGS.load(Ordering::SeqCst)
}

/// One of the readings.
#[derive(Debug)]
struct Counted;

impl Counted {
    /// Unless there are [`MOST`].
    fn new() -> Option<Self> {
        let more = |count: usize| (count < MOST).then_some(count + 1);
        let counted = READINGS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        counted.is_ok().then_some(Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        READINGS.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
enum State {
    Coming(Pending),
    There(Request),
}

impl Ahead {
    pub(super) const fn new() -> Self {
        Self {
            last: u64::MAX,
            row: u64::MAX,
            readings: Vec::new(),
            given: false,
        }
    }

    /// Fills the first bytes of `out`, which begins at `offset`, as far as they are here; gives how many.
    pub(super) fn take(&mut self, offset: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        while done < out.len() {
            match self.take_of_one(offset.saturating_add(done as u64), &mut out[done..]) {
                0 => break,
                got => done += got,
            }
        }
        done
    }

    fn take_of_one(&mut self, offset: u64, out: &mut [u8]) -> usize {
        let Some(index) = self.readings.iter().position(|reading| reading.has(offset)) else {
            return 0;
        };
        let Reading {
            offset: start,
            len,
            state,
            _counted,
        } = self.readings.remove(index);
        let (request, len) = match state {
            State::There(request) => (request, len),
            State::Coming(pending) => {
                let (request, answer) = pending.finish();
                // Who needs the bytes asks again, and hears why.
                (request, answer.len(len).unwrap_or(0))
            }
        };
        let at = (offset - start) as usize;
        let got = len.saturating_sub(at).min(out.len());
        request.get(at.min(len), &mut out[..got]);
        self.given |= got > 0;
        if got > 0 && at + got < len {
            let rest = Reading {
                offset: start,
                len,
                state: State::There(request),
                _counted,
            };
            self.readings.insert(index, rest);
        }
        got
    }

    /// `offset..end` was read, the first `found` bytes of it from here: asks for what comes next in its row, if that is one, but
    /// for nothing that `is_being_written`.
    pub(super) fn go_on(
        &mut self,
        fd: &HostFd,
        (offset, end): (u64, u64),
        found: usize,
        is_being_written: impl Fn(u64, u64) -> bool,
    ) {
        let in_a_row = offset == self.last || offset == self.row;
        self.last = end;
        if !in_a_row {
            return;
        }
        self.row = end;
        let mut next = end;
        while let Some(reading) = self.readings.iter().find(|reading| reading.has(next)) {
            next = reading.end();
        }
        self.readings
            .retain(|reading| end < reading.end() && reading.offset < next);
        let depth = if found > 0 { DEPTH } else { 1 };
        while self.readings.len() < depth && !is_being_written(next, next.saturating_add(CAPACITY as u64)) {
            let Some(reading) = Reading::begin(fd, next) else {
                break;
            };
            next = reading.end();
            self.readings.push(reading);
        }
    }

    /// Some bytes were not good: forgets what is here, and says whether they may have been from here.
    pub(super) fn distrust(&mut self) -> bool {
        self.readings.clear();
        core::mem::take(&mut self.given)
    }

    /// `start..end` is about to change.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        self.readings
            .retain(|reading| reading.end() <= start || end <= reading.offset);
    }
}

impl Reading {
    /// Asks for the bytes at `offset`, unless requests are scarce.
    fn begin(fd: &HostFd, offset: u64) -> Option<Self> {
        let counted = Counted::new()?;
        let args = [fd.number(), CAPACITY as u64, offset, 0, 0, 0];
        Some(Self {
            offset,
            len: CAPACITY,
            state: State::Coming(Request::spare(LEFT)?.begin(HostOp::PRead, args)),
            _counted: counted,
        })
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len as u64)
    }

    fn has(&self, offset: u64) -> bool {
        (self.offset..self.end()).contains(&offset)
    }
}
