//! Where the libos tells the monitor the last root of a protected volume, so that the OS side can't give an older
//! one back unnoticed.
//!
//! One page of private RAM, behind the configuration: the OS side sees nothing of it. The libos writes the mark of
//! slot n, makes [`crate::vcpu::MonitorCall::Anchor`] with n, and finds the result in the slot when its vCPU goes on.
//! One vCPU at a time uses a slot: the libos's lock around the volume sees to that.

use core::sync::atomic::{AtomicI64, AtomicU64};

use crate::layout::PAGE;

/// Words of a mark: volume (2), commit counter (1), SHA-256 of the superblock (4), bytes in little-endian order.
pub const MARK_WORDS: usize = 7;
/// Most anchored volumes.
pub const ANCHORS: usize = 64;

/// One volume's place.
#[derive(Debug)]
#[repr(C)]
pub struct AnchorSlot {
    /// Written by the libos before the call. Copied once by the monitor.
    pub mark: [AtomicU64; MARK_WORDS],
    /// Written by the monitor: 0 when the mark is durable, else a negative error number.
    pub result: AtomicI64,
}

/// The page.
#[derive(Debug)]
#[repr(C)]
pub struct AnchorPage {
    /// By number of the anchor.
    pub slots: [AnchorSlot; ANCHORS],
}

/// Guest-physical address of the page.
#[must_use]
pub const fn page_at(config_gpa: u64, config_len: u64) -> u64 {
    (config_gpa + config_len).next_multiple_of(PAGE)
}

crate::tripwire!(size_of::<AnchorSlot>() == 64, "AnchorSlot");
crate::tripwire!(size_of::<AnchorPage>() == PAGE as usize, "AnchorPage");
