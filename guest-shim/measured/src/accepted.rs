//! Which blocks of memory the guest has accepted. Each once, because on that stands the integrity of its memory: a
//! hypervisor that puts another page at an address can do so only as one that is not accepted, and an access to it faults. A
//! guest that accepted it again would read what the hypervisor chose, or lose what it wrote.

use cloak_abi::layout::{LARGE, MAX_RAM};

/// Blocks of 2 MiB that there can be, with the hole.
const BLOCKS: usize = (MAX_RAM / LARGE) as usize + 512;

/// Which blocks of memory the guest has accepted, or was launched with.
#[derive(Debug)]
pub struct Accepted {
    blocks: [u64; BLOCKS / 64],
}

impl Default for Accepted {
    fn default() -> Self {
        Self::new()
    }
}

impl Accepted {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            blocks: [0; BLOCKS / 64],
        }
    }

    /// Marks the block at `gpa`, a multiple of 2 MiB: whether it was not marked before.
    pub fn mark(&mut self, gpa: u64) -> bool {
        let block = (gpa / LARGE) as usize;
        let Some(word) = self.blocks.get_mut(block / 64) else {
            return false;
        };
        let bit = 1 << (block % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_marked_once_and_none_beyond_memory() {
        let mut accepted = Accepted::new();
        for gpa in [
            0,
            LARGE,
            63 * LARGE,
            64 * LARGE,
            MAX_RAM,
            MAX_RAM + (1 << 30) - LARGE,
        ] {
            assert!(accepted.mark(gpa) && !accepted.mark(gpa), "{gpa:#x}");
        }
        assert!(!accepted.mark(MAX_RAM + (1 << 30)) && !accepted.mark(!(LARGE - 1)));
    }
}
