//! Sets in sets: no circle, and no deeper than Linux allows, so that waking and looking end.

use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::Epoll;
use crate::errno::{Errno, SysResult};
use crate::fs::OpenFile;

/// Sets below or above one another beside the one itself (`EP_MAX_NESTS`).
const DEPTH_MAX: usize = 4;

/// One change at a time: two that are harmless alone may close a circle together.
static CHANGING: Mutex<()> = Mutex::new(());

/// What the walk held on to. It may turn out to be the last owner of something, whose end may park: so it
/// goes after the lock.
#[derive(Default)]
struct Kept {
    sets: Vec<Arc<Epoll>>,
    files: Vec<Arc<OpenFile>>,
}

/// Notes that `outer` is going to watch `inner`.
///
/// # Errors
/// EINVAL for a set in itself, ELOOP for a circle or too many levels.
pub(super) fn link(outer: &Epoll, inner: &Epoll) -> SysResult<()> {
    if core::ptr::eq(outer, inner) {
        return Err(Errno::EINVAL);
    }
    let guard = CHANGING.lock();
    let mut kept = Kept::default();
    let above = levels_above(outer, inner, &mut kept);
    let below = levels_below(inner, &mut kept, 0);
    let fits = above.is_some_and(|above| above + below < DEPTH_MAX);
    if fits {
        inner.parents.lock().push(outer.this.clone());
    }
    drop(guard);
    drop(kept);
    if fits { Ok(()) } else { Err(Errno::ELOOP) }
}

/// Takes the note back.
pub(super) fn unlink(outer: &Epoll, inner: &Epoll) {
    let mut parents = inner.parents.lock();
    if let Some(at) = parents.iter().position(|p| core::ptr::eq(p.as_ptr(), outer)) {
        parents.swap_remove(at);
    }
}

fn parents(of: &Epoll) -> Vec<Arc<Epoll>> {
    of.parents
        .lock()
        .iter()
        .filter_map(alloc::sync::Weak::upgrade)
        .collect()
}

/// How many levels of sets watch `of`. None: `inner` is one of them.
fn levels_above(of: &Epoll, inner: &Epoll, kept: &mut Kept) -> Option<usize> {
    let mut deepest = 0;
    for parent in parents(of) {
        let above = if core::ptr::eq(&*parent, inner) {
            None
        } else {
            levels_above(&parent, inner, kept)
        };
        kept.sets.push(parent);
        deepest = deepest.max(1 + above?);
    }
    Some(deepest)
}

/// How many levels of sets `of` watches. The walk is bounded: what is linked was within the limit.
fn levels_below(of: &Epoll, kept: &mut Kept, level: usize) -> usize {
    let children: Vec<_> = of.items.lock().values().filter_map(|item| item.file()).collect();
    let mut deepest = 0;
    for open in children {
        if let Some(child) = open
            .file
            .as_any()
            .downcast_ref::<Epoll>()
            .filter(|_| level <= DEPTH_MAX)
        {
            deepest = deepest.max(1 + levels_below(child, kept, level + 1));
        }
        kept.files.push(open);
    }
    deepest
}
