//! Where a path leads.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;
use crate::fs::flags::is_dir;
use crate::fs::hostops::At;
use crate::fs::mount::Dir;
use crate::fs::node::Node;

/// What to do about a symbolic link at the end of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Follow it.
    Follow,
    /// It is what is meant, unless a slash follows.
    Itself,
    /// The name is meant: it is made, removed or moved.
    Name,
}

/// Where a path leads on the host.
#[derive(Debug)]
pub struct HostPlace {
    /// The directory to start from.
    pub dir: Dir,
    /// Relative path in it, `.` for itself.
    pub name: Vec<u8>,
    /// `abi::hostop::resolve` bits.
    pub how: u64,
    /// Absolute path in the guest.
    pub path: Vec<u8>,
    /// Writes give EROFS.
    pub read_only: bool,
    /// Only a directory will do. (A path that goes whole says so by its slash.)
    pub must_be_directory: bool,
}

impl HostPlace {
    /// For a request.
    #[must_use]
    pub fn at(&self) -> At<'_> {
        At {
            dir: self.dir.number(),
            path: &self.name,
            how: self.how,
        }
    }
}

/// Where a path leads in the guest.
#[derive(Clone)]
pub struct NodePlace {
    /// The directory of the last component, unless that is a mount's root.
    pub parent: Option<Arc<dyn Node>>,
    /// The last component.
    pub name: Vec<u8>,
    /// What is there, if something is.
    pub node: Option<Arc<dyn Node>>,
    /// Set when the path ended with a link to something open.
    pub open: Option<Arc<OpenFile>>,
    /// Absolute path in the guest.
    pub path: Vec<u8>,
    /// Writes give EROFS.
    pub read_only: bool,
    /// Only a directory will do.
    pub must_be_directory: bool,
}

impl NodePlace {
    /// What is there.
    ///
    /// # Errors
    /// ENOENT; ENOTDIR.
    pub fn node(&self) -> SysResult<&Arc<dyn Node>> {
        let node = self.node.as_ref().ok_or(Errno::ENOENT)?;
        if self.must_be_directory && !is_dir(node.stat()?.mode) {
            return Err(Errno::ENOTDIR);
        }
        Ok(node)
    }

    /// The directory, for changes of its entries.
    ///
    /// # Errors
    /// EBUSY for a mount's root; EROFS.
    pub fn parent(&self) -> SysResult<&Arc<dyn Node>> {
        let parent = self.parent.as_ref().ok_or(Errno::EBUSY)?;
        if self.read_only {
            Err(Errno::EROFS)
        } else {
            Ok(parent)
        }
    }
}

/// Where a path leads.
pub enum Place {
    /// On the host.
    Host(HostPlace),
    /// In the guest.
    Node(NodePlace),
}

/// What an operation on the host does about a link that it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// It obeys the resolve bits.
    Reported,
    /// It follows it.
    Followed,
}
