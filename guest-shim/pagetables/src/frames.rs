//! Frames: which are a context's, and the pool from which page tables are made.

use cloak_abi::boot::ContextBlock;
use cloak_abi::kcall::KcallError;
use cloak_abi::layout::{MAX_SEGMENTS, PAGE};

/// Guest-physical memory as the kernel reaches it. Addresses are multiples of eight, inside RAM.
pub trait Memory {
    /// Reads one word.
    fn read(&self, gpa: u64) -> u64;
    /// Writes one word.
    fn write(&mut self, gpa: u64, value: u64);
    /// Writes `count` words from `gpa` on: `first`, `first + step`, `first + 2 * step`...
    fn fill(&mut self, gpa: u64, first: u64, step: u64, count: u64);
}

/// The frames that a context may map: half-open guest-physical ranges.
#[derive(Debug, Clone, Copy)]
pub struct Owned {
    ranges: [(u64, u64); 2 + MAX_SEGMENTS],
}

impl Owned {
    /// A context that owns these ranges (an empty one is `(0, 0)`).
    #[must_use]
    pub const fn new(first: (u64, u64), second: (u64, u64)) -> Self {
        let mut ranges = [(0, 0); 2 + MAX_SEGMENTS];
        (ranges[0], ranges[1]) = (first, second);
        Self { ranges }
    }

    /// What a context may map of its frames: none of its page tables. And the segments that it shares.
    #[must_use]
    pub fn of(context: &ContextBlock) -> Self {
        let [[_, end], [start, last]] = context.frames;
        let mut own = Self::new((context.table_pool_end, end), (start, last));
        for (range, [start, end]) in own.ranges[2..].iter_mut().zip(context.segments) {
            *range = (start, end);
        }
        own
    }

    /// Whether all of `[gpa, gpa + len)` is the context's.
    #[must_use]
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        let Some(end) = gpa.checked_add(len) else {
            return false;
        };
        self.ranges
            .iter()
            .any(|&(first, last)| gpa >= first && end <= last)
    }
}

/// Page-table frames: a bump pointer over fresh (zero) frames, and lists of returned ones.
///
/// A frame that is given back rests until [`Pool::settle`]: a CPU may still know it as the table that it was, and
/// would take the entries of the table that it becomes for something else. A last-level table whose entries are
/// read as those of a directory is a page table that a program has written.
#[derive(Debug)]
pub struct Pool {
    next: u64,
    end: u64,
    /// Head of the frames that can be used again, linked through their first word; 0 is none.
    returned: u64,
    /// Head and tail of the frames that rest.
    resting: Option<(u64, u64)>,
}

impl Pool {
    /// A pool over `[next, end)`, all zero.
    #[must_use]
    pub const fn new(next: u64, end: u64) -> Self {
        Self {
            next,
            end,
            returned: 0,
            resting: None,
        }
    }

    /// A zero frame. Fresh frames go first: clearing a returned one costs a loop of 512 words.
    ///
    /// # Errors
    /// [`KcallError::Tables`] when none is left, but for those that rest.
    pub fn take(&mut self, memory: &mut impl Memory) -> Result<u64, KcallError> {
        if self.next < self.end {
            let frame = self.next;
            self.next += PAGE;
            return Ok(frame);
        }
        let frame = self.returned;
        if frame == 0 {
            return Err(KcallError::Tables);
        }
        self.returned = memory.read(frame);
        memory.fill(frame, 0, 0, 512);
        Ok(frame)
    }

    /// Gives a frame back. Its content does not matter.
    pub fn give(&mut self, memory: &mut impl Memory, frame: u64) {
        let (head, tail) = self.resting.unwrap_or((0, frame));
        memory.write(frame, head);
        self.resting = Some((frame, tail));
    }

    /// Frames that are no tables now. Walks the lists of those that were.
    #[must_use]
    pub fn free(&self, memory: &impl Memory) -> u64 {
        let mut count = (self.end - self.next) / PAGE;
        for head in [self.returned, self.resting.map_or(0, |(head, _)| head)] {
            let mut frame = head;
            while frame != 0 {
                count += 1;
                frame = memory.read(frame);
            }
        }
        count
    }

    /// Whether frames rest.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        self.resting.is_some()
    }

    /// No CPU knows frames that were given back as tables any more: they can be used again.
    pub fn settle(&mut self, memory: &mut impl Memory) {
        if let Some((head, tail)) = self.resting.take() {
            memory.write(tail, self.returned);
            self.returned = head;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// RAM of a test: words from guest-physical 0 up.
    pub(crate) struct Ram(pub Vec<u64>);

    impl Memory for Ram {
        fn read(&self, gpa: u64) -> u64 {
            self.0[usize::try_from(gpa / 8).expect("small")]
        }
        fn write(&mut self, gpa: u64, value: u64) {
            self.0[usize::try_from(gpa / 8).expect("small")] = value;
        }
        fn fill(&mut self, gpa: u64, first: u64, step: u64, count: u64) {
            for i in 0..count {
                self.write(gpa + 8 * i, first.wrapping_add(step.wrapping_mul(i)));
            }
        }
    }

    #[test]
    fn the_pool_gives_each_frame_once_and_clears_returned_ones() {
        let mut ram = Ram(vec![0; 4096]);
        let mut pool = Pool::new(PAGE, 3 * PAGE);
        let a = pool.take(&mut ram).expect("fresh");
        let b = pool.take(&mut ram).expect("fresh");
        assert_ne!(a, b);
        assert_eq!(pool.take(&mut ram), Err(KcallError::Tables));
        ram.write(a + 80, 7);
        pool.give(&mut ram, a);
        pool.give(&mut ram, b);
        assert_eq!(pool.take(&mut ram), Err(KcallError::Tables), "they rest");
        assert!(pool.is_resting());
        pool.settle(&mut ram);
        assert!(!pool.is_resting());
        let mut again = [(); 2].map(|()| pool.take(&mut ram).expect("settled"));
        again.sort_unstable();
        assert_eq!(again, [a, b]);
        assert!((0..512).all(|i| ram.read(a + 8 * i) == 0));
        assert_eq!(pool.take(&mut ram), Err(KcallError::Tables));
    }

    #[test]
    fn frames_that_settle_join_those_that_did_before() {
        let mut ram = Ram(vec![0; 4096]);
        let mut pool = Pool::new(PAGE, 5 * PAGE);
        let frames = [(); 4].map(|()| pool.take(&mut ram).expect("fresh"));
        for part in frames.chunks(2) {
            part.iter().for_each(|&frame| pool.give(&mut ram, frame));
            pool.settle(&mut ram);
        }
        let mut again = [(); 4].map(|()| pool.take(&mut ram).expect("settled"));
        again.sort_unstable();
        assert_eq!(again, frames);
    }

    #[test]
    fn ownership_covers_whole_ranges_only() {
        let owned = Owned::new((0x1000, 0x3000), (0x8000, 0x9000));
        assert!(owned.contains(0x1000, 0x2000));
        assert!(!owned.contains(0x2000, 0x2000));
        assert!(!owned.contains(0x0, 0x1000));
        assert!(owned.contains(0x8000, 0x1000));
        assert!(!owned.contains(u64::MAX - 0xfff, 0x2000));
    }
}
