//! The fs-verity digest of a file: SHA-256, blocks of 4096 bytes, no salt. The same that `fsverity digest` prints and
//! that the kernel computes for a file with verity on, so a measured file needs no second tree.
//!
//! Linux, Documentation/filesystems/fsverity.rst: blocks are hashed (the last one padded with zeros), hashes are packed
//! into blocks, and so on until one hash is left; the digest is that of a descriptor with this root and the length.

use alloc::vec::Vec;

use sha2::{Digest as _, Sha256};

/// Bytes of a block, of data and of hashes alike.
pub const BLOCK: usize = 4096;
/// Hashes in a block of them.
pub const HASHES_IN_BLOCK: usize = BLOCK / 32;

/// SHA-256 of a block.
pub type Hash = [u8; 32];

/// Hash of a block of data, padded with zeros if it is the last and shorter.
#[must_use]
pub fn hash_data(bytes: &[u8]) -> Hash {
    if bytes.len() == BLOCK {
        return Sha256::digest(bytes).into();
    }
    let mut block = [0; BLOCK];
    block[..bytes.len()].copy_from_slice(bytes);
    Sha256::digest(block).into()
}

/// Computes a digest in one pass, with memory for a block of each level; or the tree as well.
#[derive(Debug, Default)]
pub struct Builder {
    /// The unfinished block of each level, the data's hashes first.
    levels: Vec<Vec<Hash>>,
    /// All blocks of each level, if they are kept.
    kept: Option<Vec<Vec<u8>>>,
    length: u64,
}

impl Builder {
    /// One that keeps the tree.
    #[must_use]
    pub fn keeping() -> Self {
        Self {
            kept: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// Takes the next block of data: 4096 bytes, the last one perhaps fewer, and never none.
    pub fn block(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.push(0, hash_data(bytes));
    }

    fn push(&mut self, level: usize, hash: Hash) {
        if self.levels.len() == level {
            self.levels.push(Vec::with_capacity(HASHES_IN_BLOCK));
        }
        // A full block goes up only when another hash follows: a single block of hashes is the top.
        if self.levels[level].len() == HASHES_IN_BLOCK {
            self.close(level);
        }
        self.levels[level].push(hash);
    }

    fn close(&mut self, level: usize) {
        let hash = self.hash_level(level);
        self.levels[level].clear();
        self.push(level + 1, hash);
    }

    fn hash_level(&mut self, level: usize) -> Hash {
        let mut block = [0; BLOCK];
        for (to, hash) in block.chunks_exact_mut(32).zip(&self.levels[level]) {
            to.copy_from_slice(hash);
        }
        if let Some(kept) = &mut self.kept {
            if kept.len() == level {
                kept.push(Vec::new());
            }
            kept[level].extend_from_slice(&block);
        }
        Sha256::digest(block).into()
    }

    /// The digest, and the tree if it was kept: blocks of hashes, the top level first.
    #[must_use]
    pub fn finish(mut self) -> (Hash, Vec<u8>) {
        let mut level = 0;
        while level + 1 < self.levels.len() {
            self.close(level);
            level += 1;
        }
        let root = match self.levels.last().map(Vec::as_slice) {
            None => [0; 32],
            // One block of data: its hash is the root.
            Some([only]) if self.levels.len() == 1 => *only,
            Some(_) => self.hash_level(level),
        };
        let tree = self
            .kept
            .unwrap_or_default()
            .into_iter()
            .rev()
            .flatten()
            .collect();
        (descriptor_digest(self.length, &root), tree)
    }
}

/// Digest of `struct fsverity_descriptor`, 256 bytes: what a digest of a file is.
#[must_use]
pub fn descriptor_digest(length: u64, root: &Hash) -> Hash {
    let mut descriptor = [0; 256];
    // Version 1, SHA-256 (1), blocks of 2^12 bytes, no salt.
    descriptor[..4].copy_from_slice(&[1, 1, 12, 0]);
    descriptor[8..16].copy_from_slice(&length.to_le_bytes());
    descriptor[16..48].copy_from_slice(root);
    Sha256::digest(descriptor).into()
}

/// Where the levels of a tree lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// First block of each level in the tree, level 1 (hashes of data) first. None for files of one block.
    pub starts: Vec<u64>,
}

impl Shape {
    /// For a file of so many bytes.
    #[must_use]
    pub fn of(length: u64) -> Self {
        let mut sizes = Vec::new();
        let mut blocks = length.div_ceil(BLOCK as u64);
        while blocks > 1 {
            blocks = blocks.div_ceil(HASHES_IN_BLOCK as u64);
            sizes.push(blocks);
        }
        let mut at = 0;
        let mut starts: Vec<u64> = sizes
            .iter()
            .rev()
            .map(|size| {
                at += size;
                at - size
            })
            .collect();
        starts.reverse();
        Self { starts }
    }
}
