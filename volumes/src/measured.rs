//! A measured file: read-only, and every block checked against the file's fs-verity digest before a byte of it is
//! given out. The tree of hashes is made on opening and kept in memory, or read from the OS side and checked too.

use alloc::boxed::Box;
use alloc::vec;

use hashbrown::HashMap;
use sha2::{Digest as _, Sha256};

use crate::block::{Page, array, zero_page};
use crate::error::{Tampering, VolumeError};
use crate::store::{MemoryStore, Store, StoreError};
use crate::verity::{BLOCK, Builder, HASHES_IN_BLOCK, Hash, Shape, descriptor_digest, hash_data};
use crate::weakened::{Protection, without};

/// Blocks that one read takes from the store.
const RUN: usize = 16;
/// Checked blocks of hashes that are kept: 4 MiB, which cover 512 MiB of a file.
const KEPT: usize = 1024;

/// A file with a known digest.
#[derive(Debug)]
pub struct Measured<S, T = MemoryStore> {
    file: S,
    tree: T,
    length: u64,
    shape: Shape,
    root: Hash,
    checked: HashMap<(u8, u64), Box<Page>>,
}

impl<S: Store> Measured<S> {
    /// Reads the whole file once and keeps its tree, 1/127 of its size, in memory.
    ///
    /// # Errors
    /// [`Tampering::Digest`] if it is another file; [`VolumeError::Store`].
    pub fn build(mut file: S, digest: &Hash) -> Result<Self, VolumeError> {
        let length = file
            .len()
            .map_err(VolumeError::store("asking for a file's length"))?;
        let mut builder = Builder::keeping();
        let mut buffer = vec![0; RUN * BLOCK];
        let mut at = 0;
        while at < length {
            let len = (length - at).min(buffer.len() as u64) as usize;
            read(&mut file, at, &mut buffer[..len], 0)?;
            buffer[..len].chunks(BLOCK).for_each(|block| builder.block(block));
            at += len as u64;
        }
        let (found, tree) = builder.finish();
        if found != *digest {
            return Err(VolumeError::Tampered(Tampering::Digest));
        }
        Self::with_tree(file, MemoryStore(tree), length, digest)
    }
}

impl<S: Store, T: Store> Measured<S, T> {
    /// Takes the tree from a store: blocks of hashes, the top level first, as `fsverity digest --out-merkle-tree`
    /// writes them. Reads the top block only.
    ///
    /// # Errors
    /// [`Tampering::Digest`] if length and tree don't lead to the digest; [`VolumeError::Store`].
    pub fn with_tree(mut file: S, mut tree: T, length: u64, digest: &Hash) -> Result<Self, VolumeError> {
        let shape = Shape::of(length);
        let mut page = zero_page();
        let root = match (length, shape.starts.len()) {
            (0, _) => [0; 32],
            (_, 0) => {
                let page = &mut page[..length as usize];
                read(&mut file, 0, page, 0)?;
                hash_data(page)
            }
            _ => {
                read(&mut tree, 0, page.as_mut_slice(), shape.starts.len() as u8)?;
                Sha256::digest(page.as_slice()).into()
            }
        };
        if descriptor_digest(length, &root) != *digest {
            return Err(VolumeError::Tampered(Tampering::Digest));
        }
        Ok(Self {
            file,
            tree,
            length,
            shape,
            root,
            checked: HashMap::new(),
        })
    }

    /// Bytes of the file.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Reads from a byte on; gives the number of bytes, which is smaller only at the end. `out` must be memory that
    /// nobody else sees or writes: bytes are checked where they lie.
    ///
    /// # Errors
    /// [`VolumeError::Tampered`] names the block; `out` is then zeros.
    pub fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<usize, VolumeError> {
        let len = self.length.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut buffer = vec![0; RUN * BLOCK];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let first = at / BLOCK as u64;
            let within = (at % BLOCK as u64) as usize;
            let wanted = (within + len - done).next_multiple_of(BLOCK).min(buffer.len());
            let start = first * BLOCK as u64;
            let there = (self.length - start).min(wanted as u64) as usize;
            if let Err(error) = self.checked_blocks(first, &mut buffer[..there]) {
                out.fill(0);
                return Err(error);
            }
            let piece = (there - within).min(len - done);
            out[done..done + piece].copy_from_slice(&buffer[within..within + piece]);
            done += piece;
        }
        Ok(len)
    }

    /// Reads blocks from `first` on and checks each.
    fn checked_blocks(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), VolumeError> {
        read(&mut self.file, first * BLOCK as u64, buffer, 0)?;
        for (index, block) in (first..).zip(buffer.chunks(BLOCK)) {
            self.expect(0, index, &hash_data(block))?;
        }
        Ok(())
    }

    /// Compares a block's hash with the one that the level above holds for it.
    fn expect(&mut self, level: u8, index: u64, hash: &Hash) -> Result<(), VolumeError> {
        let expected = if usize::from(level) == self.shape.starts.len() {
            self.root
        } else {
            let slot = (index % HASHES_IN_BLOCK as u64) as usize * 32;
            array(&self.hashes(level + 1, index / HASHES_IN_BLOCK as u64)?[slot..slot + 32])
        };
        if expected == *hash || without(Protection::Seal) {
            return Ok(());
        }
        Err(VolumeError::Tampered(Tampering::Measured { level, index }))
    }

    /// A block of hashes, checked.
    fn hashes(&mut self, level: u8, index: u64) -> Result<&Page, VolumeError> {
        if !self.checked.contains_key(&(level, index)) {
            let mut page = zero_page();
            let block = self.shape.starts[usize::from(level) - 1] + index;
            read(&mut self.tree, block * BLOCK as u64, page.as_mut_slice(), level)?;
            self.expect(level, index, &Sha256::digest(page.as_slice()).into())?;
            if self.checked.len() >= KEPT {
                self.checked.clear();
            }
            self.checked.insert((level, index), page);
        }
        Ok(&self.checked[&(level, index)])
    }
}

fn read<S: Store>(store: &mut S, offset: u64, out: &mut [u8], level: u8) -> Result<(), VolumeError> {
    store.read_at(offset, out).map_err(|error| match error {
        StoreError::End { .. } => VolumeError::Tampered(Tampering::Measured {
            level,
            index: offset / BLOCK as u64,
        }),
        source => VolumeError::Store {
            step: "reading a measured file",
            source,
        },
    })
}
