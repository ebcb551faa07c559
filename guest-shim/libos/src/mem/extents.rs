//! Which frames are free: extents of 2 MiB, each with a bitmap.
//!
//! Never-used extents are behind a watermark and are zero (the host gives zero pages, or what is told of their first use
//! clears them); using them last keeps
//! the host's memory small. Each extent remembers which of its frames hold old content, so that a zero frame
//! costs clearing only where something was written.
//!
//! Programs leave some extents to the libos ([`Extents::reserve`]), whose own needs can't be refused. Whole ones, as what it
//! needs has to lie in one piece: of any number of frames that programs leave here and there it could make little. What it
//! takes of these no program shares with it. Before that both take from the same extents, so that few are begun.

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
    /// One of those that programs leave: it is the libos's alone until it is wholly free again.
    reserved: bool,
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

/// Who takes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    /// A program, or the libos for what a program may be refused.
    Program,
    /// The libos, for its heap and for page tables.
    Libos,
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
    /// Extents that are partly free, and those of them that are the libos's alone; may hold stale entries.
    partial: [Vec<u32>; 2],
    /// How many are wholly free, used before or not.
    wholes: u64,
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
            partial: [const { Vec::new() }; 2],
            wholes: 0,
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
            self.wholes += (end - start) / LARGE;
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

    /// How many extents programs leave: one in 32, at least one and at most 16 MiB.
    fn reserve(&self) -> u64 {
        (self.total_frames / FRAMES as u64 / 32).clamp(1, 8)
    }

    /// Whether the libos has used more than half of what programs leave it.
    #[must_use]
    pub fn are_scarce(&self) -> bool {
        let reserved = self.partial[1].iter().map(|id| self.extents[*id as usize].free);
        let left = self.wholes * FRAMES as u64 + reserved.map(u64::from).sum::<u64>();
        left < self.reserve() * FRAMES as u64 / 2
    }

    /// Takes `len` contiguous frames (at least one).
    pub fn take(&mut self, len: usize, taker: Taker) -> Option<Run> {
        debug_assert!(len > 0);
        if len < FRAMES {
            let reserved = (taker == Taker::Libos).then(|| self.take_of(1, len)).flatten();
            if let Some(run) = reserved.or_else(|| self.take_of(0, len)) {
                return Some(run);
            }
        }
        let count = len.div_ceil(FRAMES);
        if taker == Taker::Program && self.wholes < count as u64 + self.reserve() {
            return None;
        }
        if len > FRAMES {
            return self.take_long(len, taker);
        }
        let id = self.whole()?;
        Some(self.begin(id, len, taker))
    }

    /// Of an extent of `partial[list]`. Newest first: its neighbours are warm.
    fn take_of(&mut self, list: usize, len: usize) -> Option<Run> {
        for i in (0..self.partial[list].len()).rev() {
            let id = self.partial[list][i];
            let extent = &mut self.extents[id as usize];
            if extent.free == 0 || extent.free as usize == FRAMES {
                extent.in_partial = false;
                self.partial[list].swap_remove(i);
                continue;
            }
            if let Some(start) = extent.find(len) {
                self.used_frames += len as u64;
                return Some(extent.take(start, len));
            }
        }
        None
    }

    /// Takes the first `len` frames of a wholly free extent.
    fn begin(&mut self, id: u32, len: usize, taker: Taker) -> Run {
        let reserved = taker == Taker::Libos && self.wholes <= self.reserve();
        if reserved {
            self.unlist(id);
        }
        self.wholes -= 1;
        self.used_frames += len as u64;
        let extent = &mut self.extents[id as usize];
        extent.reserved = reserved;
        let run = extent.take(0, len);
        self.list_partial(id);
        run
    }

    /// More than an extent: neighbours that are wholly free, the last perhaps in part. Rare, so it may look at all.
    fn take_long(&mut self, len: usize, taker: Taker) -> Option<Run> {
        let count = len.div_ceil(FRAMES);
        let first = self.neighbours(count).or_else(|| self.fresh_ones(count))?;
        let mut dirty = false;
        let mut left = len;
        for slot in first..first + count {
            let here = left.min(FRAMES);
            dirty |= self.begin(self.index[slot], here, taker).dirty;
            left -= here;
        }
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
            reserved: false,
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
            self.partial[usize::from(extent.reserved)].push(id);
        }
    }

    /// Takes an extent off the lists of partly free ones, as it changes from one to the other.
    fn unlist(&mut self, id: u32) {
        let extent = &mut self.extents[id as usize];
        if core::mem::take(&mut extent.in_partial) {
            self.partial[usize::from(extent.reserved)].retain(|other| *other != id);
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
            if extent.free as usize == FRAMES {
                self.wholes += 1;
                if !core::mem::replace(&mut extent.in_empty, true) {
                    self.empty.push(id);
                }
                if self.extents[id as usize].reserved {
                    self.unlist(id);
                    self.extents[id as usize].reserved = false;
                }
            } else {
                self.list_partial(id);
            }
            self.used_frames -= here as u64;
            gpa += here as u64 * PAGE;
            left -= here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Taker::{Libos, Program};
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
                let (taker, before) = ([Program, Libos][random(2) as usize], extents.wholes);
                if let Some(run) = extents.take(len, taker) {
                    for i in 0..len as u64 {
                        assert!(owned.insert(run.gpa + i * PAGE), "twice");
                        let extent = extents.index[((run.gpa + i * PAGE) / LARGE) as usize];
                        let reserved = extents.extents[extent as usize].reserved;
                        assert!(taker == Libos || !reserved, "a program's in what is reserved");
                    }
                    let left = extents.wholes == before || extents.wholes >= extents.reserve();
                    assert!(taker == Libos || left, "a program began what it has to leave");
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
        let listed = extents.partial[0].len() + extents.partial[1].len();
        assert!(listed <= extents.extents.len(), "listed once");
        assert!(extents.empty.len() <= extents.extents.len(), "listed once");
        for (gpa, len) in held {
            extents.give(gpa, len);
        }
        assert_eq!((extents.usage().0, extents.wholes), (0, 8));
        let programs: Vec<_> = std::iter::from_fn(|| extents.take(1, Program)).collect();
        assert_eq!(
            programs.len(),
            7 * FRAMES,
            "nothing is reserved any more but the last"
        );
        let all: Vec<_> = std::iter::from_fn(|| extents.take(FRAMES, Libos)).collect();
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn programs_that_take_all_leave_the_libos_whole_extents() {
        let mut extents = Extents::new(|_| {});
        extents.add(0, 64 * LARGE);
        let mut programs: Vec<_> = std::iter::from_fn(|| extents.take(1, Program)).collect();
        assert_eq!(programs.len(), 62 * FRAMES);
        assert!(!extents.are_scarce());
        // Every other one comes back: no two lie beside each other.
        let mut odd = 0..programs.len();
        programs.retain(|run| {
            let kept = odd.next().is_some_and(|i| i % 2 == 0);
            if !kept {
                extents.give(run.gpa, 1);
            }
            kept
        });
        let libos: Vec<_> = std::iter::from_fn(|| extents.take(2, Libos)).collect();
        assert_eq!(libos.len(), FRAMES);
        assert!(extents.are_scarce());
        assert!(extents.take(2, Program).is_none());
        for run in &libos {
            extents.give(run.gpa, 2);
            let others = extents.take(2, Program);
            assert!(others.is_none(), "what the libos gives back is still its own");
        }
        assert!(!extents.are_scarce());
        for run in programs.drain(..) {
            extents.give(run.gpa, 1);
        }
        let programs: Vec<_> = std::iter::from_fn(|| extents.take(2, Program)).collect();
        assert_eq!(programs.len(), 62 * FRAMES / 2);
    }

    #[test]
    fn more_than_an_extent_comes_in_one_piece_from_used_neighbours_first() {
        let mut extents = Extents::new(|_| {});
        extents.add(0, 8 * LARGE);
        let long = extents.take(2 * FRAMES + 1, Libos).expect("fresh");
        assert_eq!(long, Run { gpa: 0, dirty: false });
        let small = extents.take(1, Libos).expect("the rest of the third");
        assert_eq!(small.gpa, 2 * LARGE + 4096);
        assert!(extents.take(6 * FRAMES, Libos).is_none(), "five are left");
        extents.give(long.gpa, 2 * FRAMES + 1);
        let again = extents.take(2 * FRAMES, Libos).expect("the first two");
        assert_eq!(again, Run { gpa: 0, dirty: true });
        let fresh = extents.take(5 * FRAMES, Libos).expect("the last five");
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
        let a = extents.take(2, Libos).expect("free");
        assert!(!a.dirty);
        extents.give(a.gpa, 2);
        assert!(extents.take(1, Libos).expect("free").dirty);
        let rest = extents.take(3, Libos).expect("free");
        assert!(rest.dirty, "overlaps the second frame of the first run");
        assert!(!extents.take(4, Libos).expect("free").dirty);
    }
}
