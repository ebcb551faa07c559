//! Processes: what the threads of a program share.

use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use crate::fs::{FsContext, FdTable};

/// User and group identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective, saved, file-system user.
    pub uid: [u32; 4],
    /// Real, effective, saved, file-system group.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Open descriptors.
    pub files: Arc<FdTable>,
    /// Working directory, root and file-creation mask.
    pub fs: Arc<FsContext>,
    /// Identity.
    pub credentials: Mutex<Credentials>,
}

impl Process {
    /// The process of the thread that runs this.
    #[must_use]
    pub fn current() -> Arc<Self> {
        crate::sched::current().process.clone()
    }

    /// A process for tests.
    #[cfg(not(feature = "bare"))]
    #[must_use]
    pub fn for_tests() -> Arc<Self> {
        Arc::new(Self {
            pid: 1,
            files: Arc::new(FdTable::new(1024, 4096)),
            fs: Arc::new(FsContext::default()),
            credentials: Mutex::new(Credentials::default()),
        })
    }
}
