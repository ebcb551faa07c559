//! The fs-verity digest of a file: SHA-256, blocks of 4096 bytes, no salt. The same that `fsverity digest` prints and
//! that the kernel computes for a file with verity on, so a measured file needs no second tree.
//!
//! Linux, Documentation/filesystems/fsverity.rst: blocks are hashed (the last one padded with zeros), hashes are packed
//! into blocks, and so on until one hash is left; the digest is that of a descriptor with this root and the length.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::identity::Digest;

/// Bytes of a block, of data and of hashes alike.
pub const BLOCK: usize = 4096;

const HASHES_IN_BLOCK: usize = BLOCK / 32;

type Hash = [u8; 32];

/// Computes the digest of what a reader gives, in one pass and with memory for a block of each level.
///
/// # Errors
/// What the reader says.
pub fn digest(mut reader: impl Read) -> io::Result<Digest<32>> {
    let mut tree = Tree::default();
    let mut block = [0; BLOCK];
    loop {
        let filled = fill(&mut reader, &mut block)?;
        if filled > 0 {
            block[filled..].fill(0);
            tree.length += filled as u64;
            tree.push(0, Sha256::digest(block).into());
        }
        if filled < BLOCK {
            return Ok(tree.finish());
        }
    }
}

fn fill(reader: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The unfinished block of each level, the data's hashes first.
#[derive(Debug, Default)]
struct Tree {
    levels: Vec<Vec<Hash>>,
    length: u64,
}

impl Tree {
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
        let hash = hash_block(&self.levels[level]);
        self.levels[level].clear();
        self.push(level + 1, hash);
    }

    fn finish(mut self) -> Digest<32> {
        let mut level = 0;
        while level + 1 < self.levels.len() {
            self.close(level);
            level += 1;
        }
        let root = match self.levels.last().map(Vec::as_slice) {
            None => [0; 32],
            // One block of data: its hash is the root.
            Some([only]) if self.levels.len() == 1 => *only,
            Some(hashes) => hash_block(hashes),
        };
        descriptor_digest(self.length, &root)
    }
}

fn hash_block(hashes: &[Hash]) -> Hash {
    let padding = [0; 32];
    let missing = HASHES_IN_BLOCK - hashes.len();
    let mut sha = Sha256::new();
    hashes
        .iter()
        .chain(std::iter::repeat_n(&padding, missing))
        .for_each(|h| sha.update(h));
    sha.finalize().into()
}

/// `struct fsverity_descriptor`, 256 bytes.
fn descriptor_digest(length: u64, root: &Hash) -> Digest<32> {
    let mut descriptor = [0; 256];
    // Version 1, SHA-256 (1), blocks of 2^12 bytes, no salt.
    descriptor[..4].copy_from_slice(&[1, 1, 12, 0]);
    descriptor[8..16].copy_from_slice(&length.to_le_bytes());
    descriptor[16..48].copy_from_slice(root);
    Digest(Sha256::digest(descriptor).into())
}
