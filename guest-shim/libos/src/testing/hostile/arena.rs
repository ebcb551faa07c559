//! Memory of the program for one call, watched: what the call may not write stays as it was.

use crate::errno::SysResult;

/// Bytes between two regions.
const GAP: usize = 64;
/// Bytes of all regions of a call.
const SIZE: usize = 1 << 20;
const CANARY: u8 = 0xc5;

struct Region {
    at: usize,
    len: usize,
    /// Takes part of what the result counts.
    counted: bool,
    writable: bool,
}

/// The memory.
pub struct Arena {
    bytes: Vec<u8>,
    before: Vec<u8>,
    used: usize,
    regions: Vec<Region>,
}

impl Arena {
    /// Memory without regions.
    pub fn new() -> Self {
        Self {
            bytes: vec![CANARY; SIZE],
            before: Vec::with_capacity(SIZE),
            used: GAP,
            regions: Vec::new(),
        }
    }

    /// Forgets all regions.
    pub fn clear(&mut self) {
        self.bytes[..self.used + GAP].fill(CANARY);
        self.used = GAP;
        self.regions.clear();
    }

    fn region(&mut self, len: usize, counted: bool, writable: bool) -> usize {
        let at = self.used;
        self.used = (at + len + GAP).next_multiple_of(16);
        assert!(self.used + GAP <= SIZE, "room for a call's memory");
        self.regions.push(Region {
            at,
            len,
            counted,
            writable,
        });
        at
    }

    fn address(&self, at: usize) -> u64 {
        self.bytes.as_ptr() as u64 + at as u64
    }

    /// Something that the call reads.
    pub fn input(&mut self, bytes: &[u8]) -> u64 {
        let at = self.region(bytes.len(), false, false);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.address(at)
    }

    /// Something that the call may read and write, all of it.
    pub fn changeable(&mut self, bytes: &[u8]) -> u64 {
        let at = self.region(bytes.len(), false, true);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.address(at)
    }

    /// A buffer of which the call may write as many bytes as its result says, after those of earlier ones.
    pub fn counted(&mut self, len: usize) -> u64 {
        let at = self.region(len, true, false);
        self.address(at)
    }

    /// The first bytes of the region at `address`.
    pub fn bytes_at<const N: usize>(&self, address: u64) -> [u8; N] {
        let at = (address - self.bytes.as_ptr() as u64) as usize;
        self.bytes[at..at + N].try_into().expect("as long")
    }

    /// To be called right before the call.
    pub fn seal(&mut self) {
        self.before.clear();
        self.before.extend_from_slice(&self.bytes[..self.used + GAP]);
    }

    /// What the call wrote where it may not: the offset in the memory. `result` counts bytes if `counts`; else all
    /// of the counted regions may be written.
    pub fn trespass(&self, result: SysResult, counts: bool) -> Option<usize> {
        let mut left = match result {
            _ if !counts => usize::MAX,
            Ok(n) => n as usize,
            Err(_) => 0,
        };
        let mut clean = 0;
        for region in &self.regions {
            let may = if region.counted {
                let may = region.len.min(left);
                left -= may;
                may
            } else if region.writable {
                region.len
            } else {
                0
            };
            if may > 0 {
                if self.bytes[clean..region.at] != self.before[clean..region.at] {
                    return Some(clean);
                }
                clean = region.at + may;
            }
        }
        (self.bytes[clean..self.used + GAP] != self.before[clean..]).then_some(clean)
    }
}
