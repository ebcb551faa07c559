//! Inodes: 256 bytes each, sixteen to a block of the table.

use core::fmt;

use crate::block::{BlockId, Fork, MAX_HEIGHT, POINTER, Page, Pointer, array};
use crate::superblock::TreeRoot;

/// Bytes of an inode.
pub const INODE: usize = 256;
/// Inodes in a block.
pub const INODES_IN_BLOCK: u64 = 16;

/// Type bits of a mode, as Linux has them.
pub const TYPE_MASK: u32 = 0o170_000;
/// A directory.
pub const DIRECTORY: u32 = 0o040_000;
/// A regular file.
pub const REGULAR: u32 = 0o100_000;
/// A symbolic link.
pub const SYMLINK: u32 = 0o120_000;
/// A named pipe.
pub const FIFO: u32 = 0o010_000;
/// A socket.
pub const SOCKET: u32 = 0o140_000;
/// A character device.
pub const CHARACTER: u32 = 0o020_000;
/// A block device.
pub const BLOCK_DEVICE: u32 = 0o060_000;

/// An inode's number, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);

    /// The block of the table that holds it.
    #[must_use]
    pub(crate) const fn block(self) -> BlockId {
        BlockId::new(0, Fork::Data, 0, self.0 / INODES_IN_BLOCK)
    }

    const fn offset(self) -> usize {
        (self.0 % INODES_IN_BLOCK) as usize * INODE
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in time: seconds since 1970 and nanoseconds below 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

/// An inode as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Type and permissions; 0 if the inode is free.
    pub mode: u32,
    /// Names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content.
    pub size: u64,
    /// Device number of a device.
    pub device: u64,
    /// How often the number was given.
    pub generation: u32,
    /// Directory that holds a directory.
    pub parent: u64,
    /// Blocks of data in both trees.
    pub blocks: u64,
    /// Last read, as far as the caller keeps it.
    pub accessed: Time,
    /// Last change of content.
    pub modified: Time,
    /// Last change of anything.
    pub changed: Time,
    /// Creation.
    pub created: Time,
    /// Content.
    pub data: TreeRoot,
    /// Extended attributes.
    pub attributes: TreeRoot,
    /// Bytes of extended attributes.
    pub attribute_bytes: u32,
    /// First free block of a directory, 0 for none.
    pub free_block: u32,
    /// Names in a directory.
    pub entries: u64,
}

impl Inode {
    /// An inode that is not used.
    pub const FREE: Self = Self {
        mode: 0,
        links: 0,
        uid: 0,
        gid: 0,
        size: 0,
        device: 0,
        generation: 0,
        parent: 0,
        blocks: 0,
        accessed: Time {
            seconds: 0,
            nanoseconds: 0,
        },
        modified: Time {
            seconds: 0,
            nanoseconds: 0,
        },
        changed: Time {
            seconds: 0,
            nanoseconds: 0,
        },
        created: Time {
            seconds: 0,
            nanoseconds: 0,
        },
        data: TreeRoot::EMPTY,
        attributes: TreeRoot::EMPTY,
        attribute_bytes: 0,
        free_block: 0,
        entries: 0,
    };

    /// Type bits.
    #[must_use]
    pub const fn kind(&self) -> u32 {
        self.mode & TYPE_MASK
    }

    /// Whether it is a directory.
    #[must_use]
    pub const fn is_directory(&self) -> bool {
        self.kind() == DIRECTORY
    }

    /// A tree of it.
    #[must_use]
    pub const fn tree(&self, fork: Fork) -> TreeRoot {
        match fork {
            Fork::Data => self.data,
            Fork::Attributes => self.attributes,
        }
    }

    /// Changes a tree of it.
    pub const fn set_tree(&mut self, fork: Fork, tree: TreeRoot) {
        match fork {
            Fork::Data => self.data = tree,
            Fork::Attributes => self.attributes = tree,
        }
    }

    /// Parses 256 bytes; `None` if a height is none.
    #[must_use]
    pub fn parse(b: &[u8; INODE]) -> Option<Self> {
        let n4 = |at: usize| u32::from_le_bytes(array(&b[at..at + 4]));
        let n8 = |at: usize| u64::from_le_bytes(array(&b[at..at + 8]));
        let time = |at: usize, nanoseconds: usize| Time {
            seconds: i64::from_le_bytes(array(&b[at..at + 8])),
            nanoseconds: n4(nanoseconds),
        };
        let tree = |height: usize, at: usize| TreeRoot {
            height: b[height],
            top: Pointer::parse(&array(&b[at..at + POINTER])),
        };
        let inode = Self {
            mode: n4(0),
            links: n4(4),
            uid: n4(8),
            gid: n4(12),
            size: n8(16),
            device: n8(24),
            generation: n4(32),
            parent: n8(40),
            blocks: n8(48),
            accessed: time(56, 88),
            modified: time(64, 92),
            changed: time(72, 96),
            created: time(80, 100),
            data: tree(36, 104),
            attributes: tree(37, 152),
            attribute_bytes: n4(200),
            free_block: n4(204),
            entries: n8(208),
        };
        (b[36] <= MAX_HEIGHT && b[37] <= MAX_HEIGHT).then_some(inode)
    }

    /// Writes 256 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; INODE] {
        let mut b = [0; INODE];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.mode.to_le_bytes());
        put(4, &self.links.to_le_bytes());
        put(8, &self.uid.to_le_bytes());
        put(12, &self.gid.to_le_bytes());
        put(16, &self.size.to_le_bytes());
        put(24, &self.device.to_le_bytes());
        put(32, &self.generation.to_le_bytes());
        put(36, &[self.data.height, self.attributes.height]);
        put(40, &self.parent.to_le_bytes());
        put(48, &self.blocks.to_le_bytes());
        for (i, time) in [self.accessed, self.modified, self.changed, self.created]
            .iter()
            .enumerate()
        {
            put(56 + 8 * i, &time.seconds.to_le_bytes());
            put(88 + 4 * i, &time.nanoseconds.to_le_bytes());
        }
        put(104, &self.data.top.encode());
        put(152, &self.attributes.top.encode());
        put(200, &self.attribute_bytes.to_le_bytes());
        put(204, &self.free_block.to_le_bytes());
        put(208, &self.entries.to_le_bytes());
        b
    }

    /// Reads it from its block.
    #[must_use]
    pub(crate) fn in_block(page: &Page, ino: Ino) -> Option<Self> {
        Self::parse(&array(&page[ino.offset()..ino.offset() + INODE]))
    }

    /// Reads one of its trees only: every block that is looked up asks for it.
    #[must_use]
    pub(crate) fn tree_in_block(page: &Page, ino: Ino, fork: Fork) -> Option<TreeRoot> {
        let inode = &page[ino.offset()..ino.offset() + INODE];
        let (height, top) = match fork {
            Fork::Data => (inode[36], 104),
            Fork::Attributes => (inode[37], 152),
        };
        (height <= MAX_HEIGHT).then(|| TreeRoot {
            height,
            top: Pointer::parse(&array(&inode[top..top + POINTER])),
        })
    }

    /// Writes it into its block.
    pub(crate) fn put_in_block(&self, page: &mut Page, ino: Ino) {
        page[ino.offset()..ino.offset() + INODE].copy_from_slice(&self.encode());
    }
}
