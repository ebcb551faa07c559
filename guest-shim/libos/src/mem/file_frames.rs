//! Frames of files that don't change from inside, kept for the next process that maps them.
//!
//! A program and its libraries are mapped by every process that runs them. Their pages are read from the host once;
//! each process maps the same frames without write permission and copies what it writes, as after `fork`. Only what
//! comes after the first program is kept: a context with one process has nobody to share with.
//!
//! A file is known by its identity, size and times, so a changed one is another.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cloak_abi::layout::PAGE;
use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use super::frames;

/// The part of guest memory that may be used: one frame in so many.
const SHARE: u64 = 8;

/// Device, inode, size, modification and change time.
pub type Version = [u64; 7];

/// Whether the context has had more than one program.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Frames kept.
static KEPT: AtomicU64 = AtomicU64::new(0);
/// Frames by page number, for each file.
static FILES: Lazy<Mutex<HashMap<Version, BTreeMap<u64, u64>>>> = Lazy::new(|| Mutex::new(HashMap::new()));

/// There is another process, or another program in one.
pub fn begin() {
    WANTED.store(true, Ordering::Relaxed);
}

/// Whether frames are kept.
pub fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// How many are kept.
pub fn kept() -> u64 {
    KEPT.load(Ordering::Relaxed)
}

/// The frames of those pages in `[first, end)` that are kept, by page; the caller becomes another owner of them.
pub fn share(version: &Version, first: u64, end: u64) -> Vec<(u64, u64)> {
    let files = FILES.lock();
    let Some(pages) = files.get(version) else {
        return Vec::new();
    };
    let kept: Vec<(u64, u64)> = pages.range(first..end).map(|(&page, &gpa)| (page, gpa)).collect();
    kept.iter().for_each(|&(_, gpa)| frames::share_run(gpa, 1));
    kept
}

/// Keeps contiguous frames with pages from `page` on, which stay the caller's, too.
pub fn keep(version: &Version, page: u64, gpa: u64, count: u64) {
    if KEPT.load(Ordering::Relaxed) + count > frames::usage().1 / SHARE {
        drop_all();
    }
    let mut files = FILES.lock();
    let pages = files.entry(*version).or_default();
    for i in 0..count {
        // Two processes may have read it at the same time.
        pages.entry(page + i).or_insert_with(|| {
            frames::share_run(gpa + i * PAGE, 1);
            KEPT.fetch_add(1, Ordering::Relaxed);
            gpa + i * PAGE
        });
    }
}

/// Lets all frames go. Whoever maps them keeps them.
pub fn drop_all() {
    let files = core::mem::take(&mut *FILES.lock());
    for gpa in files.values().flat_map(BTreeMap::values) {
        frames::release_run(*gpa, 1);
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}
