//! The libos's heap: size classes on runs of frames.
//!
//! Small blocks come from per-class free lists, each with a lock of its own; larger ones are runs of frames.
//! The frame allocator itself allocates a little (its extents), from a static arena while its lock is held. Frames of
//! small blocks are kept, so [`usage`] tells what is in use from what is kept.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cloak_abi::layout::PAGE;
use spin::Mutex;

use super::frames;

/// Block sizes. Alignment equals size up to 1024 (each slab starts on a page).
const CLASSES: [usize; 14] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
/// Frames that a class takes at a time, if there are so many beside each other.
const SLAB: usize = 4;
/// Bytes from which the frame allocator's own books are made.
const ARENA: usize = 8 << 20;

/// No memory was left, at least once: what a panic after it is about.
pub static EXHAUSTED: AtomicBool = AtomicBool::new(false);

/// Blocks of one size.
struct Class {
    /// List of the free ones.
    free: *mut u8,
    /// How many are in use.
    used: usize,
    /// How many frames they are made from.
    frames: usize,
}
// SAFETY: a list of free blocks that only its lock's holder touches.
unsafe impl Send for Class {}

const NOTHING: Class = Class {
    free: ptr::null_mut(),
    used: 0,
    frames: 0,
};
static LISTS: [Mutex<Class>; CLASSES.len()] = [const { Mutex::new(NOTHING) }; CLASSES.len()];
/// Frames of blocks that are larger.
static LARGE_FRAMES: AtomicUsize = AtomicUsize::new(0);

/// What the heap holds, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// In small blocks that are in use.
    pub small: usize,
    /// In frames that small blocks are made from.
    pub slabs: usize,
    /// In frames of larger blocks.
    pub large: usize,
}

/// What is in use now.
#[must_use]
pub fn usage() -> Usage {
    let mut usage = Usage {
        large: LARGE_FRAMES.load(Ordering::Relaxed) * PAGE as usize,
        ..Usage::default()
    };
    for (size, class) in CLASSES.iter().zip(&LISTS) {
        let class = class.lock();
        usage.small += class.used * size;
        usage.slabs += class.frames * PAGE as usize;
    }
    usage
}

#[repr(C, align(4096))]
struct Arena(core::cell::UnsafeCell<[u8; ARENA]>);
// SAFETY: handed out in disjoint parts by `ARENA_NEXT`.
unsafe impl Sync for Arena {}
static ARENA_BYTES: Arena = Arena(core::cell::UnsafeCell::new([0; ARENA]));
static ARENA_NEXT: AtomicUsize = AtomicUsize::new(0);

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

fn class(layout: Layout) -> Option<usize> {
    let need = layout.size().max(layout.align());
    CLASSES
        .iter()
        .position(|&size| size >= need && size % layout.align() == 0)
}

// SAFETY: blocks are disjoint (free lists and runs), of the size and alignment asked for.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if frames::is_busy() {
            return from_arena(layout.size().next_multiple_of(PAGE as usize));
        }
        let block = match class(layout) {
            Some(class) => small(class),
            None => large(layout),
        };
        if block.is_null() {
            EXHAUSTED.store(true, Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if in_arena(block) {
            return; // the frame allocator's books only grow
        }
        match class(layout) {
            Some(class) => {
                let mut list = LISTS[class].lock();
                // SAFETY: the block is free now and at least 16 bytes.
                unsafe { *block.cast::<*mut u8>() = list.free };
                list.free = block;
                list.used -= 1;
            }
            None => {
                let pages = layout.size().div_ceil(PAGE as usize);
                LARGE_FRAMES.fetch_sub(pages, Ordering::Relaxed);
                frames::give_run(block as u64 - cloak_abi::layout::LIBOS_PHYS_VA, pages);
            }
        }
    }
}

fn in_arena(block: *mut u8) -> bool {
    let start = ARENA_BYTES.0.get() as usize;
    (start..start + ARENA).contains(&(block as usize))
}

fn small(class: usize) -> *mut u8 {
    let mut list = LISTS[class].lock();
    if list.free.is_null() {
        let size = CLASSES[class];
        let whole = pages(SLAB).map(|slab| (slab, SLAB));
        let Some((slab, count)) = whole.or_else(|| Some((pages(1)?, 1))) else {
            return ptr::null_mut();
        };
        list.frames += count;
        for i in (0..count * PAGE as usize / size).rev() {
            // SAFETY: inside the fresh slab.
            unsafe {
                let block = slab.add(i * size);
                *block.cast::<*mut u8>() = list.free;
                list.free = block;
            }
        }
    }
    let block = list.free;
    list.used += 1;
    // SAFETY: a free block holds the next one's address.
    list.free = unsafe { *block.cast::<*mut u8>() };
    block
}

fn large(layout: Layout) -> *mut u8 {
    let count = layout.size().div_ceil(PAGE as usize);
    if layout.align() > PAGE as usize {
        return ptr::null_mut();
    }
    let Some(block) = pages(count) else {
        return ptr::null_mut();
    };
    LARGE_FRAMES.fetch_add(count, Ordering::Relaxed);
    block
}

/// Contiguous pages.
fn pages(count: usize) -> Option<*mut u8> {
    frames::take_own_run(count).map(|gpa| frames::window(gpa) as *mut u8)
}

fn from_arena(bytes: usize) -> *mut u8 {
    let at = ARENA_NEXT.fetch_add(bytes, Ordering::Relaxed);
    if at + bytes > ARENA {
        return ptr::null_mut();
    }
    // SAFETY: a part of the arena that nobody else got.
    unsafe { ARENA_BYTES.0.get().cast::<u8>().add(at) }
}
