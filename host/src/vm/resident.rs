//! At most so much plaintext: puts the pager beneath guest RAM.
//!
//! What the loader put in place stays out of it: KVM reads page tables, descriptor tables and the vCPUs' stacks by
//! itself, some of them where it can't wait. It is a few MiB, and counts in addition to the limit.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cloak_abi::layout::{LARGE, PAGE};
use cloak_memory::page::ContextId;
use cloak_memory::pager::{Counters, Pager};
use cloak_memory::ram::{PrivateRam, Segment};
use cloak_memory::{FileStore, Memory, MemoryError};
use vm_memory::GuestMemoryMmap;
use zeroize::Zeroizing;

use super::error::VmError;
use super::load::Placed;
use super::view::{keys, segment};

/// A limit on plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// Most plaintext, bytes.
    pub bytes: u64,
    /// Where sealed pages go.
    pub swap: PathBuf,
}

/// What a pager did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Paging {
    faults: u64,
    filled: u64,
    brought_back: u64,
    second_chances: u64,
    evicted: u64,
    most_resident: u64,
}

impl Paging {
    /// A snapshot.
    #[must_use]
    pub fn of(counters: &Counters) -> Self {
        Self {
            faults: counters.faults.load(Ordering::Relaxed),
            filled: counters.filled.load(Ordering::Relaxed),
            brought_back: counters.brought_back.load(Ordering::Relaxed),
            second_chances: counters.second_chances.load(Ordering::Relaxed),
            evicted: counters.evicted.load(Ordering::Relaxed),
            most_resident: counters.most_resident.load(Ordering::Relaxed),
        }
    }

    /// Names and counts.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, u64); 6] {
        [
            ("faults of guest RAM", self.faults),
            ("  pages first touched", self.filled),
            ("  pages brought back", self.brought_back),
            ("  second chances", self.second_chances),
            ("pages sealed away", self.evicted),
            ("most plaintext (pages)", self.most_resident),
        ]
    }
}

/// Starts the pager for a context's frames beyond what was loaded. Nothing may have touched them yet.
///
/// # Errors
/// [`VmError::Memory`].
pub(super) fn start(
    limit: &Resident,
    key: Option<Box<Zeroizing<[u8; 32]>>>,
    memory: &GuestMemoryMmap,
    context: ContextId,
    placed: &Placed,
    failed: impl FnOnce(MemoryError) + Send + 'static,
) -> Result<(Pager, Arc<Memory<PrivateRam, FileStore>>), VmError> {
    // The host may have backed what was loaded by large pages, so that a piece beyond it is there already.
    let first = placed.free_frames.next_multiple_of(LARGE);
    let segments: Vec<Segment> = placed
        .frames
        .iter()
        .filter_map(|&[start, end]| segment(memory, start.max(first), end))
        .collect();
    let pages = segments
        .iter()
        .map(|s| s.first.number() + s.pages)
        .max()
        .unwrap_or(0);
    let store = FileStore::swap(&limit.swap, pages)?;
    let keys = keys(key, context)?;
    // SAFETY: guest RAM is private anonymous memory that stays mapped while the process lives; the monitor reads and
    // writes it through raw copies only, and after loading not at all.
    let ram = unsafe { PrivateRam::watch(segments) }?;
    let memory = Arc::new(Memory::new(keys, pages, ram, store));
    let pager = Pager::start(memory.clone(), Some(limit.bytes / PAGE), failed)?;
    Ok((pager, memory))
}
