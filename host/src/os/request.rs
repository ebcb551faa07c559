//! A request as it was copied out of its slot, and its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cloak_abi::hostop::{HostOp, MAX_IO};
use cloak_abi::ring::Slot;
use rustix::io::Errno;

use super::region::{Buffer, SlotIndex, VcpuIndex};
use super::server::Shared;
use super::table::Entry;

/// One request, copied once. The slot is not read again.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Where it came from and where the answer goes.
    pub slot: SlotIndex,
    /// Whose completion queue gets the answer.
    pub vcpu: VcpuIndex,
    /// Operation number.
    pub op: u32,
    /// Arguments.
    pub args: [u64; 6],
    /// Identity.
    pub seq: u64,
}

impl Request {
    /// Copies a slot. A vCPU that does not exist is replaced by the one that submitted.
    pub fn copy(slot: SlotIndex, from: &Slot, submitter: VcpuIndex, vcpus: usize) -> Self {
        Self {
            slot,
            vcpu: VcpuIndex::new(from.vcpu.load(Ordering::Relaxed), vcpus).unwrap_or(submitter),
            op: from.op.load(Ordering::Relaxed),
            args: std::array::from_fn(|i| from.args[i].load(Ordering::Relaxed)),
            seq: from.seq.load(Ordering::Relaxed),
        }
    }

    /// Whether what is ready must have been reported when it is answered: it asks for nothing else, or it makes something
    /// ready and is rare.
    pub fn asks_for_reports(&self) -> bool {
        match HostOp::from_u32(self.op) {
            Some(HostOp::Poll) => self.args[0] == 0,
            Some(HostOp::Watch | HostOp::Connect | HostOp::Shutdown) => true,
            _ => false,
        }
    }
}

/// Answer of a request that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Result: not negative, or a negative error number.
    pub result: i64,
    /// Second result.
    pub extra: u64,
}

impl Answer {
    /// A result with a second one.
    pub fn with(result: usize, extra: u64) -> Self {
        Self {
            result: i64::try_from(result).unwrap_or(i64::MAX),
            extra,
        }
    }
}

impl From<()> for Answer {
    fn from((): ()) -> Self {
        Self { result: 0, extra: 0 }
    }
}

impl From<usize> for Answer {
    fn from(result: usize) -> Self {
        Self::with(result, 0)
    }
}

impl From<u32> for Answer {
    fn from(result: u32) -> Self {
        Self {
            result: i64::from(result),
            extra: 0,
        }
    }
}

/// Why a request has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The answer is an error number.
    Errno(Errno),
    /// The answer is an error number, and on Linux the program would have been sent this signal first:
    /// `extra` holds it. Only for terminals that are in the foreground of somebody else.
    Signal(Errno, i32),
    /// It may take time: run it again on a worker.
    Defer,
    /// The answer comes when there is one.
    Later,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Refusal {
    /// The answer, if this is one.
    pub fn answer(self) -> Option<Answer> {
        let negative = |errno: Errno| -i64::from(errno.raw_os_error());
        match self {
            Self::Errno(errno) => Some(Answer {
                result: negative(errno),
                extra: 0,
            }),
            Self::Signal(errno, signal) => Some(Answer {
                result: negative(errno),
                extra: u64::try_from(signal).unwrap_or(0),
            }),
            Self::Defer | Self::Later => None,
        }
    }
}

/// Result of carrying out a request.
pub type Reply = Result<Answer, Refusal>;

/// Where a request runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the thread that serves the ring: must not take long.
    Ring,
    /// On a worker: may.
    Worker,
}

/// Buffers that are reused from request to request, so that common operations allocate nothing.
#[derive(Debug)]
pub struct Scratch {
    /// First path.
    pub path: Vec<u8>,
    /// Second path, or a name.
    pub other: Vec<u8>,
    /// Anything else.
    pub bytes: Vec<u8>,
}

impl Scratch {
    /// Empty, with room for paths.
    pub fn new() -> Self {
        let path = || Vec::with_capacity(cloak_abi::hostop::PATH_MAX + 1);
        Self {
            path: path(),
            other: path(),
            bytes: Vec::new(),
        }
    }
}

/// A request while it is carried out.
#[derive(Debug)]
pub struct Call<'a> {
    /// The request.
    pub request: Request,
    /// What all requests share.
    pub shared: &'a Shared,
    /// Where it runs.
    pub place: Place,
}

impl<'a> Call<'a> {
    /// The slot's buffer.
    pub fn buffer(&self) -> Buffer<'a> {
        self.shared.region.buffer(self.request.slot)
    }

    /// Argument `n`.
    pub fn arg(&self, n: usize) -> u64 {
        self.request.args[n]
    }

    /// Argument `n` as 32 bits: Linux takes the low half of the register.
    pub fn word(&self, n: usize) -> u32 {
        self.arg(n) as u32
    }

    /// Argument `n` as a signed int: Linux takes the low half of the register.
    pub fn int(&self, n: usize) -> i32 {
        self.arg(n) as i32
    }

    /// Argument `n` as a file offset.
    pub fn offset(&self, n: usize) -> Result<i64, Errno> {
        i64::try_from(self.arg(n)).map_err(|_| Errno::INVAL)
    }

    /// Argument `n` as a length within the buffer.
    pub fn len(&self, n: usize) -> Result<usize, Errno> {
        usize::try_from(self.arg(n))
            .ok()
            .filter(|len| *len <= MAX_IO)
            .ok_or(Errno::INVAL)
    }

    /// The first `args[n]` bytes of the buffer.
    pub fn data(&self, n: usize) -> Result<Buffer<'a>, Errno> {
        self.buffer().part(0, self.len(n)?)
    }

    /// The file of argument `n`.
    pub fn file(&self, n: usize) -> Result<Arc<Entry>, Errno> {
        self.shared.table.lookup(self.arg(n))
    }

    /// Continues on a worker only.
    pub fn may_take_long(&self) -> Result<(), Refusal> {
        match self.place {
            Place::Ring => Err(Refusal::Defer),
            Place::Worker => Ok(()),
        }
    }

    /// Continues on a worker only, if the file is on a file system that answers over a network or from
    /// another process.
    pub fn may_be_remote(&self, entry: &Entry) -> Result<(), Refusal> {
        if entry.remote {
            self.may_take_long()
        } else {
            Ok(())
        }
    }
}
