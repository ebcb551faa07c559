//! Quotes, from the host's quoting service, in memory that the host has, too. What is believed of it is `cloak_tdx::quote`'s.
//!
//! One at a time, as there is one buffer. A host need not answer: after a while the caller gets an error; and as long as the host says
//! that it is at it, the buffer is its to write, so that nobody else gets to ask.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use cloak_abi::kcall::REPORT_DATA;
use cloak_tdx::quote::{self, HEADER, Progress};

use crate::attest;
use crate::errno::{Errno, SysResult};
use crate::sched::{self, clock, current};

/// How long a host may take, as on Linux; and between two looks.
const PATIENCE_NS: u64 = 30_000_000_000;
const LOOK_NS: u64 = 2_000_000;

static IN_USE: AtomicBool = AtomicBool::new(false);
/// The host had not answered when somebody gave up.
static ABANDONED: AtomicBool = AtomicBool::new(false);

/// The buffer, while somebody uses it.
struct Turn;

impl Turn {
    fn take(until: u64) -> SysResult<Self> {
        while IN_USE.swap(true, Ordering::Acquire) {
            pause(until)?;
        }
        Ok(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IN_USE.store(false, Ordering::Release);
    }
}

/// A quote over `data`.
///
/// # Errors
/// EBUSY: the host is still at an earlier one; ETIMEDOUT: it does not answer; EINTR; EIO: it makes none, or what it left is none of
/// this domain and over this data.
pub fn of(data: &[u8; REPORT_DATA]) -> SysResult<Vec<u8>> {
    let until = clock::monotonic().saturating_add(PATIENCE_NS);
    let _turn = Turn::take(until)?;
    if ABANDONED.load(Ordering::Relaxed) && progress() == Ok(Progress::InFlight) {
        return Err(Errno::EBUSY);
    }
    let report = loop {
        match attest::ask(data, 1) {
            Err(Errno::EAGAIN) => pause(until)?,
            result => break result?,
        }
    };
    let report = report.first_chunk().ok_or(Errno::EIO)?;
    ABANDONED.store(true, Ordering::Relaxed);
    let len = loop {
        match progress().map_err(|_| Errno::EIO) {
            Ok(Progress::Done(len)) => break len,
            Ok(Progress::InFlight) => pause(until)?,
            Err(errno) => {
                ABANDONED.store(false, Ordering::Relaxed);
                return Err(errno);
            }
        }
    };
    ABANDONED.store(false, Ordering::Relaxed);
    let quote = attest::host_bytes(HEADER + len).split_off(HEADER);
    quote::check(&quote, report).map_err(|_| Errno::EIO)?;
    Ok(quote)
}

fn progress() -> Result<Progress, quote::QuoteError> {
    let header = attest::host_bytes(HEADER);
    let mut words = [0; HEADER / 8];
    for (word, part) in words.iter_mut().zip(header.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*part);
    }
    quote::progress(words)
}

fn pause(until: u64) -> SysResult<()> {
    if clock::monotonic() >= until {
        return Err(Errno::ETIMEDOUT);
    }
    if current().has_signal() {
        return Err(Errno::EINTR);
    }
    sched::park(clock::deadline_in(LOOK_NS));
    Ok(())
}
