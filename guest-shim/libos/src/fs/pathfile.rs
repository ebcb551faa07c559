//! Files opened with `O_PATH`: a place, not its content.

use alloc::sync::Arc;
use core::any::Any;

use super::OpenFile;
use super::file::{File, Stat};
use super::hostfd::HostFd;
use super::hostops;
use super::node::Node;
use crate::errno::{Errno, SysResult};
use crate::user::Buf;

/// The place.
pub enum PathFile {
    /// On the host.
    Host(HostFd),
    /// In the guest.
    Node(Arc<dyn Node>),
}

impl File for PathFile {
    fn read(&self, _file: &OpenFile, _to: &mut Buf) -> SysResult<usize> {
        Err(Errno::EBADF)
    }

    fn write(&self, _file: &OpenFile, _from: &mut Buf) -> SysResult<usize> {
        Err(Errno::EBADF)
    }

    fn stat(&self) -> SysResult<Stat> {
        match self {
            Self::Host(fd) => hostops::fstat(fd),
            Self::Node(node) => node.stat(),
        }
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        match self {
            Self::Host(_) => None,
            Self::Node(node) => Some(node),
        }
    }

    fn host_fd(&self) -> Option<u32> {
        match self {
            Self::Host(fd) => u32::try_from(fd.number()).ok(),
            Self::Node(_) => None,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
