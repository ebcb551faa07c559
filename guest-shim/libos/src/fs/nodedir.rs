//! Open directories of the file systems in the guest.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::file::{File, Stat};
use super::flags::{SEEK_CUR, SEEK_SET};
use super::hostfile::seek_from;
use super::node::Node;
use super::{OpenFile, dirent};
use crate::errno::{Errno, SysResult};
use crate::user::Buf;

/// Most bytes of records made for one call.
const RECORDS_MAX: usize = 64 << 10;

/// An open directory; the position of its open file is that of the next entry.
pub struct NodeDir(pub Arc<dyn Node>);

impl File for NodeDir {
    fn read(&self, _file: &OpenFile, _to: &mut Buf) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn read_at(&self, _offset: u64, _to: &mut Buf) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn stat(&self) -> SysResult<Stat> {
        self.0.stat()
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        file.position.with(|position| {
            *position = match whence {
                SEEK_SET => seek_from(0, offset)?,
                SEEK_CUR => seek_from(*position, offset)?,
                _ => return Err(Errno::EINVAL),
            };
            Ok(*position)
        })
    }

    fn read_dir(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            let room = to.len().min(RECORDS_MAX);
            let mut records = Vec::new();
            let mut next = *position;
            let mut full = false;
            self.0.entries(*position, &mut |entry| {
                full = !dirent::put(&mut records, room, entry);
                if !full {
                    next = entry.next;
                }
                !full
            })?;
            if full && records.is_empty() {
                return Err(Errno::EINVAL);
            }
            let given = dirent::give(&records, to)?;
            *position = next;
            Ok(given)
        })
    }

    fn sync(&self, _data_only: bool) -> SysResult<()> {
        self.0.sync()
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
