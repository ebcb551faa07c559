//! Bytes of the container that are asked for before they are needed: who reads in a row finds the next ones there, which the host
//! fetched while the last ones were checked.
//!
//! They are bytes like any from the OS side, checked when they are used. What is written over meanwhile is forgotten here.

use core::sync::atomic::{AtomicUsize, Ordering};

use cloak_abi::hostop::HostOp;

use crate::fs::hostfd::HostFd;
use crate::host::{CAPACITY, Pending, Request};

/// Slots that requests which nobody waits for leave to others.
pub(super) const LEFT: usize = 64;
/// Most readings at a time, of all volumes: one that nobody comes back to keeps its slot.
const MOST: usize = 16;

/// What is read in a row, and what was asked for of it.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Where the last read ended.
    last: u64,
    /// Where the last read of a row ended: nodes, which lie elsewhere, are read in between.
    row: u64,
    reading: Option<Reading>,
    /// Bytes were taken from it since somebody complained.
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
            reading: None,
            given: false,
        }
    }

    /// Fills the first bytes of `out`, which begins at `offset`, as far as they are here; gives how many.
    pub(super) fn take(&mut self, offset: u64, out: &mut [u8]) -> usize {
        let Some(reading) = self.reading.take_if(|reading| reading.has(offset)) else {
            return 0;
        };
        let Reading {
            offset: start,
            len,
            state,
            _counted,
        } = reading;
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
            self.reading = Some(Reading {
                offset: start,
                len,
                state: State::There(request),
                _counted,
            });
        }
        got
    }

    /// Notes that `offset..end` was read. Where that makes a row whose next bytes are not asked for, gives their place.
    pub(super) fn wants(&mut self, offset: u64, end: u64) -> Option<(u64, u64)> {
        let in_a_row = offset == self.last || offset == self.row;
        self.last = end;
        if !in_a_row {
            return None;
        }
        self.row = end;
        let asked = self.reading.as_ref().is_some_and(|reading| reading.has(end));
        (!asked).then(|| (end, end.saturating_add(CAPACITY as u64)))
    }

    /// Asks for the bytes at `offset`, unless requests are scarce.
    pub(super) fn begin(&mut self, fd: &HostFd, offset: u64) {
        self.reading = None;
        self.reading = Counted::new().and_then(|counted| {
            let args = [fd.number(), CAPACITY as u64, offset, 0, 0, 0];
            Some(Reading {
                offset,
                len: CAPACITY,
                state: State::Coming(Request::spare(LEFT)?.begin(HostOp::PRead, args)),
                _counted: counted,
            })
        });
    }

    /// Some bytes were not good: forgets what is here, and says whether they may have been from here.
    pub(super) fn distrust(&mut self) -> bool {
        self.reading = None;
        core::mem::take(&mut self.given)
    }

    /// `start..end` is about to change.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        self.reading
            .take_if(|reading| reading.offset < end && start < reading.end());
    }
}

impl Reading {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len as u64)
    }

    fn has(&self, offset: u64) -> bool {
        (self.offset..self.end()).contains(&offset)
    }
}
