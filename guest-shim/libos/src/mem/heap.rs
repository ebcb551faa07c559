//! The libos's heap: size classes on runs of frames.
//!
//! Small blocks come from per-class free lists, each with a lock of its own; larger ones are runs of frames.
//! The frame allocator itself allocates a little (its extents), from a static arena while its lock is held.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cloak_abi::layout::PAGE;
use spin::Mutex;

use super::extents::FRAMES;
use super::frames;

/// Block sizes. Alignment equals size up to 1024 (each slab starts on a page).
const CLASSES: [usize; 14] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
/// Frames that a class takes at a time.
const SLAB: usize = 4;
/// Bytes from which the frame allocator's own books are made.
const ARENA: usize = 8 << 20;

/// No memory was left, at least once: what a panic after it is about.
pub static EXHAUSTED: AtomicBool = AtomicBool::new(false);

struct Free(*mut u8);
// SAFETY: a list of free blocks that only its lock's holder touches.
unsafe impl Send for Free {}

static LISTS: [Mutex<Free>; CLASSES.len()] = [const { Mutex::new(Free(ptr::null_mut())) }; CLASSES.len()];

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
                unsafe { *block.cast::<*mut u8>() = list.0 };
                list.0 = block;
            }
            None => {
                let pages = layout.size().div_ceil(PAGE as usize);
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
    if list.0.is_null() {
        let size = CLASSES[class];
        let Some(slab) = pages(SLAB) else {
            return ptr::null_mut();
        };
        for i in (0..SLAB * PAGE as usize / size).rev() {
            // SAFETY: inside the fresh slab.
            unsafe {
                let block = slab.add(i * size);
                *block.cast::<*mut u8>() = list.0;
                list.0 = block;
            }
        }
    }
    let block = list.0;
    // SAFETY: a free block holds the next one's address.
    list.0 = unsafe { *block.cast::<*mut u8>() };
    block
}

fn large(layout: Layout) -> *mut u8 {
    let count = layout.size().div_ceil(PAGE as usize);
    if layout.align() > PAGE as usize {
        return ptr::null_mut();
    }
    pages(count).unwrap_or(ptr::null_mut())
}

/// Contiguous pages; more than the frames give in one piece comes from the arena.
fn pages(count: usize) -> Option<*mut u8> {
    if count <= FRAMES {
        return frames::take_run_dirty(count)
            .ok()
            .map(|gpa| frames::window(gpa) as *mut u8);
    }
    let block = from_arena(count * PAGE as usize);
    (!block.is_null()).then_some(block)
}

fn from_arena(bytes: usize) -> *mut u8 {
    let at = ARENA_NEXT.fetch_add(bytes, Ordering::Relaxed);
    if at + bytes > ARENA {
        return ptr::null_mut();
    }
    // SAFETY: a part of the arena that nobody else got.
    unsafe { ARENA_BYTES.0.get().cast::<u8>().add(at) }
}
