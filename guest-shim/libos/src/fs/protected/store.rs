//! The container: a file of the OS side that is read and written by requests. What comes from there is believed in
//! nothing: the volume checks every byte, and a length or an error only says that something is missing.

use cloak_abi::hostop::HostOp;
use cloak_volumes::{Store, StoreError};

use crate::errno::{Errno, SysResult};
use crate::fs::hostfd::HostFd;
use crate::fs::hostops;
use crate::host::{Answer, CAPACITY, Request};

/// `LOCK_SH | LOCK_NB` and `LOCK_EX | LOCK_NB`.
const LOCK_SHARED: u64 = 1 | 4;
const LOCK_ALONE: u64 = 2 | 4;

/// An open container.
#[derive(Debug)]
pub struct Container {
    fd: HostFd,
    writable: bool,
}

impl Container {
    /// Opens the container that is host mount `root`. Who writes has it alone, as far as the OS side is honest; if it
    /// is not, two writers find each other's blocks and stop.
    ///
    /// # Errors
    /// What the OS side says; EWOULDBLOCK (EAGAIN) when it is in use.
    pub fn open(root: u64, writable: bool) -> SysResult<Self> {
        let flags = if writable { crate::fs::flags::O_RDWR } else { 0 };
        let fd = open(root, flags)?;
        let lock = if writable { LOCK_ALONE } else { LOCK_SHARED };
        hostops::plain(HostOp::Flock, &fd, lock, 0, 0)?;
        Ok(Self { fd, writable })
    }

    /// Opens it for a look from outside, whoever has it in use.
    ///
    /// # Errors
    /// What the OS side says.
    pub fn look(root: u64) -> SysResult<Self> {
        Ok(Self {
            fd: open(root, 0)?,
            writable: false,
        })
    }

    /// Whether there is not a byte in it.
    ///
    /// # Errors
    /// What the OS side says.
    pub fn is_empty(&mut self) -> Result<bool, StoreError> {
        Ok(Store::len(self)? == 0)
    }

    /// Requests until `len` bytes are through; each is given what is left and where.
    fn all(
        &self,
        len: usize,
        end: u64,
        mut step: impl FnMut(&mut Request, usize, usize) -> Answer,
        mut done_with: impl FnMut(&Request, usize, usize),
    ) -> Result<(), StoreError> {
        let mut request = Request::new();
        let mut done = 0;
        while done < len {
            let want = (len - done).min(CAPACITY);
            let got = step(&mut request, done, want).len(want).map_err(refused)?;
            if got == 0 {
                return Err(StoreError::End { end });
            }
            done_with(&request, done, got);
            done += got;
        }
        Ok(())
    }

    fn may_write(&self) -> Result<(), StoreError> {
        if self.writable {
            Ok(())
        } else {
            Err(StoreError::ReadOnly)
        }
    }
}

/// The file that is host mount `root` itself.
fn open(root: u64, flags: u32) -> SysResult<HostFd> {
    let itself = hostops::At {
        dir: root,
        path: b"",
        how: 0,
    };
    Ok(hostops::open(itself, flags, 0)?.0)
}

fn refused(errno: Errno) -> StoreError {
    /// `EDQUOT`.
    const QUOTA: i32 = 122;
    match errno {
        Errno::ENOSPC | Errno::EFBIG => StoreError::Full,
        other if other.number() == QUOTA => StoreError::Full,
        other => StoreError::Refused(other.number()),
    }
}

impl Store for Container {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let end = offset.saturating_add(out.len() as u64);
        let fd = self.fd.number();
        self.all(
            out.len(),
            end,
            |request, done, want| {
                let at = offset.saturating_add(done as u64);
                request.call(HostOp::PRead, [fd, want as u64, at, 0, 0, 0])
            },
            |request, done, got| request.get(0, &mut out[done..done + got]),
        )
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.may_write()?;
        let end = offset.saturating_add(bytes.len() as u64);
        let fd = self.fd.number();
        self.all(
            bytes.len(),
            end,
            |request, done, want| {
                request.put(0, &bytes[done..done + want]);
                let at = offset.saturating_add(done as u64);
                request.call(HostOp::PWrite, [fd, want as u64, at, 0, 0, 0])
            },
            |_, _, _| {},
        )
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        // fdatasync: the length is flushed with it.
        hostops::plain(HostOp::Sync, &self.fd, 1, 0, 0).map_err(refused)
    }

    fn len(&mut self) -> Result<u64, StoreError> {
        let stat = hostops::fstat(&self.fd).map_err(refused)?;
        u64::try_from(stat.size).map_err(|_| StoreError::Refused(Errno::EIO.number()))
    }

    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        self.may_write()?;
        hostops::plain(HostOp::Truncate, &self.fd, len, 0, 0).map_err(refused)
    }
}
