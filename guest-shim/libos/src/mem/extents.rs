//! Which frames are free: extents of 2 MiB, each with a bitmap.
//!
//! Never-used extents are behind a watermark and are zero (the host gives zero pages, or what is told of their first use
//! clears them); using them last keeps
//! the host's memory small. Each extent remembers which of its frames hold old content, so that a zero frame
//! costs clearing only where something was written.

use alloc::vec::Vec;

use cloak_abi::layout::{LARGE, PAGE};

/// Frames in an extent.
pub const FRAMES: usize = (LARGE / PAGE) as usize;

#[derive(Debug, Clone)]
struct Extent {
    gpa: u64,
    free: u32,
    /// Whether it is in the list of partly free ones, and in that of free ones: once each, as the lists' memory is
    /// never given back.
    in_partial: bool,
    in_empty: bool,
    used: [u64; FRAMES / 64],
    dirty: [u64; FRAMES / 64],
}

/// Frames given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First guest-physical address.
    pub gpa: u64,
    /// Whether any of them may hold old content.
    pub dirty: bool,
}

/// All frames of the context.
#[derive(Debug)]
pub struct Extents {
    /// Called with the address of an extent before its first use.
    first_use: fn(u64),
    /// Fresh ranges: `(next, end)`, multiples of [`LARGE`].
    fresh: Vec<(u64, u64)>,
    extents: Vec<Extent>,
    /// Indices into `extents`, by guest-physical address / LARGE.
    index: Vec<u32>,
    /// Extents that are wholly free.
    empty: Vec<u32>,
    /// Extents that are partly free; may hold stale entries.
    partial: Vec<u32>,
    used_frames: u64,
    total_frames: u64,
}

const NONE: u32 = u32::MAX;

fn bits(start: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = start + len;
    (start / 64..end.div_ceil(64)).map(move |word| {
        let first = start.max(word * 64) - word * 64;
        let last = end.min(word * 64 + 64) - word * 64;
        let mask = if last - first == 64 {
            !0
        } else {
            ((1u64 << (last - first)) - 1) << first
        };
        (word, mask)
    })
}

impl Extent {
    fn is_free(&self, start: usize, len: usize) -> bool {
        bits(start, len).all(|(w, m)| self.used[w] & m == 0)
    }

    fn find(&self, len: usize) -> Option<usize> {
        if self.free < len as u32 {
            return None;
        }
        let mut start = 0;
        while start + len <= FRAMES {
            let word = self.used[start / 64] >> (start % 64);
            if word & 1 != 0 {
                start += word.trailing_ones() as usize;
            } else if self.is_free(start, len) {
                return Some(start);
            } else {
                // Go on after the next used frame.
                start += (word.trailing_zeros() as usize).clamp(1, 64 - start % 64);
            }
        }
        None
    }

    fn take(&mut self, start: usize, len: usize) -> Run {
        let mut dirty = false;
        for (w, m) in bits(start, len) {
            self.used[w] |= m;
            dirty |= self.dirty[w] & m != 0;
            self.dirty[w] |= m;
        }
        self.free -= len as u32;
        Run {
            gpa: self.gpa + start as u64 * PAGE,
            dirty,
        }
    }
}

impl Extents {
    /// No frames yet. `first_use` is told of each extent before anything in it is given out.
    #[must_use]
    pub const fn new(first_use: fn(u64)) -> Self {
        Self {
            first_use,
            fresh: Vec::new(),
            extents: Vec::new(),
            index: Vec::new(),
            empty: Vec::new(),
            partial: Vec::new(),
            used_frames: 0,
            total_frames: 0,
        }
    }

    /// Adds a range of never-used frames. The part before the first large boundary is left out.
    pub fn add(&mut self, start: u64, end: u64) {
        let (start, end) = (start.next_multiple_of(LARGE), end & !(LARGE - 1));
        if start < end {
            self.fresh.push((start, end));
            self.total_frames += (end - start) / PAGE;
            let slots = (end / LARGE) as usize;
            if self.index.len() < slots {
                self.index.resize(slots, NONE);
            }
        }
    }

    /// Frames in use and in all.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        (self.used_frames, self.total_frames)
    }

    /// Takes `len` contiguous frames (at least one).
    pub fn take(&mut self, len: usize) -> Option<Run> {
        debug_assert!(len > 0);
        if len > FRAMES {
            return self.take_long(len);
        }
        if len < FRAMES {
            // Newest first: its neighbours are warm.
            for i in (0..self.partial.len()).rev() {
                let id = self.partial[i];
                let extent = &mut self.extents[id as usize];
                if extent.free == 0 || extent.free as usize == FRAMES {
                    extent.in_partial = false;
                    self.partial.swap_remove(i);
                    continue;
                }
                if let Some(start) = extent.find(len) {
                    self.used_frames += len as u64;
                    return Some(extent.take(start, len));
                }
            }
        }
        let id = self.whole()?;
        self.used_frames += len as u64;
        let run = self.extents[id as usize].take(0, len);
        self.list_partial(id);
        Some(run)
    }

    /// More than an extent: neighbours that are wholly free, the last perhaps in part. Rare, so it may look at all.
    fn take_long(&mut self, len: usize) -> Option<Run> {
        let count = len.div_ceil(FRAMES);
        let first = self.neighbours(count).or_else(|| self.fresh_ones(count))?;
        let mut dirty = false;
        let mut left = len;
        for slot in first..first + count {
            let id = self.index[slot];
            let here = left.min(FRAMES);
            dirty |= self.extents[id as usize].take(0, here).dirty;
            self.list_partial(id);
            left -= here;
        }
        self.used_frames += len as u64;
        Some(Run {
            gpa: first as u64 * LARGE,
            dirty,
        })
    }

    /// `count` wholly free extents beside each other that were used before; the first one's place in the index.
    fn neighbours(&self, count: usize) -> Option<usize> {
        let is_free = |id: u32| id != NONE && self.extents[id as usize].free as usize == FRAMES;
        let mut found = 0;
        for (slot, &id) in self.index.iter().enumerate() {
            found = if is_free(id) { found + 1 } else { 0 };
            if found == count {
                return Some(slot + 1 - count);
            }
        }
        None
    }

    /// `count` fresh extents beside each other.
    fn fresh_ones(&mut self, count: usize) -> Option<usize> {
        let range = self
            .fresh
            .iter()
            .position(|(next, end)| (end - next) / LARGE >= count as u64)?;
        let first = (self.fresh[range].0 / LARGE) as usize;
        for _ in 0..count {
            self.begin_extent(range);
        }
        Some(first)
    }

    /// The next extent of a fresh range is in use from now on.
    fn begin_extent(&mut self, range: usize) -> u32 {
        let gpa = self.fresh[range].0;
        self.fresh[range].0 += LARGE;
        (self.first_use)(gpa);
        let id = self.extents.len() as u32;
        let zero = [0; FRAMES / 64];
        self.extents.push(Extent {
            gpa,
            free: FRAMES as u32,
            in_partial: false,
            in_empty: false,
            used: zero,
            dirty: zero,
        });
        self.index[(gpa / LARGE) as usize] = id;
        id
    }

    /// A wholly free extent: a used one that became free, else a fresh one.
    fn whole(&mut self) -> Option<u32> {
        while let Some(id) = self.empty.pop() {
            let extent = &mut self.extents[id as usize];
            extent.in_empty = false;
            if extent.free as usize == FRAMES {
                return Some(id);
            }
        }
        let range = self.fresh.iter().position(|(next, end)| next < end)?;
        Some(self.begin_extent(range))
    }

    fn list_partial(&mut self, id: u32) {
        let extent = &mut self.extents[id as usize];
        if extent.free > 0 && !extent.in_partial {
            extent.in_partial = true;
            self.partial.push(id);
        }
    }

    /// Gives `len` contiguous frames back, which may cross extents.
    ///
    /// # Panics
    /// When they were not taken: the libos's own books are wrong.
    pub fn give(&mut self, gpa: u64, len: usize) {
        let (mut gpa, mut left) = (gpa, len);
        while left > 0 {
            let start = ((gpa % LARGE) / PAGE) as usize;
            let here = left.min(FRAMES - start);
            let id = self.index[(gpa / LARGE) as usize];
            let extent = &mut self.extents[id as usize];
            for (w, m) in bits(start, here) {
                assert!(extent.used[w] & m == m, "frame given back twice");
                extent.used[w] &= !m;
            }
            extent.free += here as u32;
            if extent.free as usize != FRAMES {
                self.list_partial(id);
            } else if !extent.in_empty {
                extent.in_empty = true;
                self.empty.push(id);
            }
            self.used_frames -= here as u64;
            gpa += here as u64 * PAGE;
            left -= here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frame_is_given_out_twice_and_all_come_back() {
        let mut extents = Extents::new(|_| {});
        extents.add(LARGE + 5, 10 * LARGE);
        let mut held: Vec<(u64, usize)> = Vec::new();
        let mut seed = 12345u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut owned = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            if random(2) == 0 {
                let len = match random(20) {
                    0 => FRAMES,
                    1 => FRAMES + random(3 * FRAMES as u64) as usize,
                    _ => 1 + random(40) as usize,
                };
                if let Some(run) = extents.take(len) {
                    for i in 0..len as u64 {
                        assert!(owned.insert(run.gpa + i * PAGE), "twice");
                    }
                    held.push((run.gpa, len));
                }
            } else if !held.is_empty() {
                let (gpa, len) = held.swap_remove(random(held.len() as u64) as usize);
                extents.give(gpa, len);
                for i in 0..len as u64 {
                    assert!(owned.remove(&(gpa + i * PAGE)));
                }
            }
        }
        assert!(extents.partial.len() <= extents.extents.len(), "listed once");
        assert!(extents.empty.len() <= extents.extents.len(), "listed once");
        for (gpa, len) in held {
            extents.give(gpa, len);
        }
        assert_eq!(extents.usage().0, 0);
        let all: Vec<_> = std::iter::from_fn(|| extents.take(FRAMES)).collect();
        assert_eq!(all.len(), 8);
    }

    #[test]
    fn more_than_an_extent_comes_in_one_piece_from_used_neighbours_first() {
        let mut extents = Extents::new(|_| {});
        extents.add(0, 8 * LARGE);
        let long = extents.take(2 * FRAMES + 1).expect("fresh");
        assert_eq!(long, Run { gpa: 0, dirty: false });
        let small = extents.take(1).expect("the rest of the third");
        assert_eq!(small.gpa, 2 * LARGE + 4096);
        assert!(extents.take(6 * FRAMES).is_none(), "five are left");
        extents.give(long.gpa, 2 * FRAMES + 1);
        let again = extents.take(2 * FRAMES).expect("the first two");
        assert_eq!(again, Run { gpa: 0, dirty: true });
        let fresh = extents.take(5 * FRAMES).expect("the last five");
        assert_eq!(
            fresh,
            Run {
                gpa: 3 * LARGE,
                dirty: false
            }
        );
        assert_eq!(extents.usage(), (7 * FRAMES as u64 + 1, 8 * FRAMES as u64));
    }

    #[test]
    fn only_used_frames_are_dirty() {
        let mut extents = Extents::new(|_| {});
        extents.add(0, LARGE);
        let a = extents.take(2).expect("free");
        assert!(!a.dirty);
        extents.give(a.gpa, 2);
        assert!(extents.take(1).expect("free").dirty);
        let rest = extents.take(3).expect("free");
        assert!(rest.dirty, "overlaps the second frame of the first run");
        assert!(!extents.take(4).expect("free").dirty);
    }
}
