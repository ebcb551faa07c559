//! Blocks and what names them: a logical name ([`BlockId`]), a place with a version and a tag ([`Pointer`]), and the
//! additional data that ties the two together.

use alloc::boxed::Box;
use core::fmt;
use core::hash::{Hash, Hasher};

use crate::keys::{SessionId, VolumeId};

/// Bytes of a block, of plaintext and of ciphertext alike.
pub const BLOCK: usize = 4096;
/// Bytes of a pointer.
pub const POINTER: usize = 48;
/// Pointers in a node.
pub const FANOUT: u64 = 85;
/// The first bytes of a node: its mark and level.
const NODE_HEADER: usize = 16;
/// Levels of a tree above its data: 85^6 blocks are more than 2^50 bytes.
pub const MAX_HEIGHT: u8 = 6;

const _: () = assert!(
    NODE_HEADER + POINTER * FANOUT as usize == BLOCK,
    "a node fills its block; fan-out and pointers change together"
);

/// A block's bytes.
pub type Page = [u8; BLOCK];

/// A page of zeros, without a page on the stack.
#[must_use]
pub fn zero_page() -> Box<Page> {
    let page: Box<[u8]> = alloc::vec![0; BLOCK].into_boxed_slice();
    page.try_into().expect("as long as a page")
}

/// Which of an inode's trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// Content of a file, entries of a directory, target of a link.
    Data,
    /// Extended attributes.
    Attributes,
}

/// A block's logical name. The order is the order of flushing: a block comes before its parent, and the table of
/// inodes after everything that changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId {
    /// It belongs to the table of inodes, which has no inode itself.
    pub table: bool,
    /// 0 for data, above that nodes of pointers.
    pub level: u8,
    /// The inode, 0 for the table of inodes.
    pub ino: u64,
    /// Which tree of the inode.
    pub fork: Fork,
    /// Number within the level: data block, or data block divided by 85 to the power of the level.
    pub index: u64,
}

impl BlockId {
    /// A block of an inode's tree; inode 0 is the table.
    #[must_use]
    pub const fn new(ino: u64, fork: Fork, level: u8, index: u64) -> Self {
        Self {
            table: ino == 0,
            level,
            ino,
            fork,
            index,
        }
    }

    /// The node that points to it, if it is not the top of its tree.
    #[must_use]
    pub const fn parent(&self) -> Self {
        Self {
            level: self.level + 1,
            index: self.index / FANOUT,
            ..*self
        }
    }

    /// Which of its parent's pointers.
    #[must_use]
    pub const fn slot(&self) -> usize {
        (self.index % FANOUT) as usize
    }
}

impl Hash for BlockId {
    /// Two words instead of five: it is hashed several times for each block that is read or written.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.ino ^ u64::from(self.level) << 56);
        state.write_u64(self.index ^ (self.fork as u64) << 63);
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.table, self.level) {
            (true, 0) => write!(f, "block {} of the inode table", self.index)?,
            (true, level) => write!(f, "node {} of level {level} of the inode table", self.index)?,
            (false, 0) => write!(f, "block {} of inode {}", self.index, self.ino)?,
            (false, level) => write!(f, "node {} of level {level} of inode {}", self.index, self.ino)?,
        }
        if self.fork == Fork::Attributes {
            f.write_str(" (extended attributes)")?;
        }
        Ok(())
    }
}

/// Where a block lies, which version it is, and its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Block number in the container; 0 for a hole.
    pub address: u64,
    /// Session that sealed it.
    pub session: SessionId,
    /// The session's sequence number for it.
    pub sequence: u64,
    /// GCM's tag.
    pub tag: [u8; 16],
}

impl Pointer {
    /// Nothing there: reads as zeros.
    pub const HOLE: Self = Self {
        address: 0,
        session: SessionId([0; 16]),
        sequence: 0,
        tag: [0; 16],
    };

    /// Whether nothing is there.
    #[must_use]
    pub const fn is_hole(&self) -> bool {
        self.address == 0
    }

    /// Byte offset in the container.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.address * BLOCK as u64
    }

    /// Reads a pointer's 48 bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; POINTER]) -> Self {
        Self {
            address: u64::from_le_bytes(array(&bytes[..8])),
            session: SessionId(array(&bytes[8..24])),
            sequence: u64::from_le_bytes(array(&bytes[24..32])),
            tag: array(&bytes[32..48]),
        }
    }

    /// Writes 48 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; POINTER] {
        let mut bytes = [0; POINTER];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.session.0);
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..].copy_from_slice(&self.tag);
        bytes
    }
}

/// Copies a slice that is known to be as long.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// A node's pointer.
#[must_use]
pub fn pointer_in(node: &Page, slot: usize) -> Pointer {
    let at = NODE_HEADER + slot * POINTER;
    Pointer::parse(&array(&node[at..at + POINTER]))
}

/// Changes a node's pointer.
pub fn set_pointer_in(node: &mut Page, slot: usize, pointer: &Pointer) {
    let at = NODE_HEADER + slot * POINTER;
    node[at..at + POINTER].copy_from_slice(&pointer.encode());
}

/// Makes a page of zeros an empty node.
pub fn start_node(node: &mut Page, level: u8) {
    node[..4].copy_from_slice(b"node");
    node[4] = level;
}

/// Whether a page is a node of this level.
#[must_use]
pub fn is_node(node: &Page, level: u8) -> bool {
    &node[..4] == b"node" && node[4] == level && node[5..NODE_HEADER] == [0; NODE_HEADER - 5]
}

/// Bytes of additional data.
pub const AAD: usize = 64;

/// What a block is sealed with besides its bytes: volume, logical name, place and version.
#[must_use]
pub fn additional_data(volume: &VolumeId, id: &BlockId, address: u64, sequence: u64) -> [u8; AAD] {
    let mut aad = [0; AAD];
    aad[..8].copy_from_slice(b"cloakvb1");
    aad[8..24].copy_from_slice(&volume.0);
    aad[24..32].copy_from_slice(&id.ino.to_le_bytes());
    aad[32..40].copy_from_slice(&id.index.to_le_bytes());
    aad[40] = id.level;
    aad[41] = id.fork as u8;
    aad[48..56].copy_from_slice(&address.to_le_bytes());
    aad[56..].copy_from_slice(&sequence.to_le_bytes());
    aad
}
