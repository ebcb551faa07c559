//! Directories of the host.

use alloc::vec;
use core::any::Any;

use cloak_abi::hostop::HostOp;

use super::file::{File, Stat};
use super::flags::{SEEK_CUR, SEEK_SET};
use super::hostfd::HostFd;
use super::{OpenFile, dirent, hostops};
use crate::errno::{Errno, SysResult};
use crate::host::{CAPACITY, Request};
use crate::user::Buf;

/// An open directory. The position of its open file is the host's cookie of the next entry.
#[derive(Debug)]
pub struct HostDir {
    fd: HostFd,
}

impl HostDir {
    /// A directory that was opened.
    #[must_use]
    pub const fn new(fd: HostFd) -> Self {
        Self { fd }
    }
}

impl File for HostDir {
    fn read(&self, _file: &OpenFile, _to: &mut Buf) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn read_at(&self, _offset: u64, _to: &mut Buf) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn stat(&self) -> SysResult<Stat> {
        hostops::fstat(&self.fd)
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        file.position.with(|position| {
            let to = match whence {
                SEEK_SET => offset,
                SEEK_CUR if offset == 0 => return Ok(*position),
                _ => return Err(Errno::EINVAL),
            };
            let to = u64::try_from(to).map_err(|_| Errno::EINVAL)?;
            let args = [self.fd.number(), to, u64::from(SEEK_SET), 0, 0, 0];
            crate::host::call(HostOp::Seek, args)?;
            *position = to;
            Ok(to)
        })
    }

    fn read_dir(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            let room = to.len().min(CAPACITY);
            let mut request = Request::new();
            let args = [self.fd.number(), room as u64, 0, 0, 0, 0];
            let mut records = vec![0; request.call(HostOp::GetDents, args).len(room)?];
            request.get(0, &mut records);
            let mut rest = &records[..];
            while !rest.is_empty() {
                *position = dirent::take(&mut rest)?.next;
            }
            dirent::give(&records, to)
        })
    }

    fn sync(&self, data_only: bool) -> SysResult<()> {
        hostops::plain(HostOp::Sync, &self.fd, u64::from(data_only), 0, 0)
    }

    fn host_fd(&self) -> Option<u32> {
        u32::try_from(self.fd.number()).ok()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
