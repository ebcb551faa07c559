//! Who a process is.

use alloc::vec::Vec;

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
