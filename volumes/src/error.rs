//! What can go wrong with a volume, by who is to blame: the caller, the OS side, or who changed the container.

use core::fmt;

use crate::anchor::AnchorError;
use crate::block::BlockId;
use crate::inode::Ino;
use crate::keys::VolumeId;
use crate::store::StoreError;

/// Why an operation did not happen. Nothing of it has then happened, unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The container is not what was written: changed, moved, replaced or from another time.
    #[error("tampered: {0}")]
    Tampered(Tampering),
    /// A block opened, so it is ours, and yet makes no sense: a fault of this program, or of its memory.
    #[error("inconsistent {block}: {what}")]
    Inconsistent {
        /// Where.
        block: BlockId,
        /// What makes no sense.
        what: &'static str,
    },
    /// There is no volume in it.
    #[error("no volume: neither superblock begins with a volume's mark (expected version 1 of the format)")]
    NoVolume,
    /// Another key.
    #[error("wrong key for volume {0}")]
    WrongKey(VolumeId),
    /// Another volume than was asked for.
    #[error("foreign volume: expected {expected}, found {found}")]
    Foreign {
        /// Which was asked for.
        expected: VolumeId,
        /// Which this is.
        found: VolumeId,
    },
    /// Older than the anchor says, or of another line of history.
    #[error(
        "rolled back: the container is at counter {found}{}, the anchor has seen {anchor}",
        if *.forked { " of another history" } else { "" }
    )]
    RolledBack {
        /// The container's.
        found: u64,
        /// The anchor's.
        anchor: u64,
        /// The counters would do, but the roots differ.
        forked: bool,
    },
    /// The anchor is older than a crash can explain, so it can't be relied upon.
    #[error("the anchor has seen {anchor}, the container is at {found}: the anchor itself was set back")]
    AnchorBehind {
        /// The container's.
        found: u64,
        /// The anchor's.
        anchor: u64,
    },
    /// The anchor fails.
    #[error("anchor: {0}")]
    Anchor(#[from] AnchorError),
    /// The store fails.
    #[error("{step}: {source}")]
    Store {
        /// What was tried.
        step: &'static str,
        /// What the store says.
        source: StoreError,
    },
    /// An earlier write failed, so what is durable is not known. Open the volume anew: it is at a committed state.
    #[error("an earlier write or flush failed; open the volume anew, it is at its last committed state")]
    Poisoned,
    /// Opened for reading.
    #[error("the volume is open for reading only")]
    ReadOnly,
    /// The session's sequence numbers are used up; a new session has new ones.
    #[error("this session's nonces are used up; open the volume anew")]
    Exhausted,
    /// 2^32 sessions.
    #[error("this volume was opened for writing 2^32 times; give it a new key (cloak volume rekey)")]
    EpochsExhausted,
    /// No room.
    #[error("no space left in the volume")]
    NoSpace,
    /// No such name, or no such inode.
    #[error("not found")]
    NotFound,
    /// The name is taken.
    #[error("exists")]
    Exists,
    /// Not a directory.
    #[error("inode {0} is not a directory")]
    NotDirectory(Ino),
    /// A directory, where something else is needed.
    #[error("inode {0} is a directory")]
    IsDirectory(Ino),
    /// Not empty.
    #[error("directory {0} is not empty")]
    NotEmpty(Ino),
    /// A directory would become its own ancestor.
    #[error("a directory can't be moved below itself")]
    Loop,
    /// Longer than 255 bytes.
    #[error("a name has at most 255 bytes")]
    NameTooLong,
    /// Something else that makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// Beyond the largest file.
    #[error("a file has at most 2^50 bytes")]
    FileTooLarge,
    /// 2^32 - 1 names.
    #[error("too many links to one inode")]
    TooManyLinks,
    /// Names whose hashes collide: 512 of them, or more than a block of the directory holds.
    #[error("the directory holds too many names of one hash")]
    DirectoryFull,
    /// An inode's extended attributes take too many bytes.
    #[error("extended attributes of one inode take at most 65536 bytes")]
    AttributesTooLarge,
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
}

/// What was found changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tampering {
    /// A block's bytes are not those that its parent's tag belongs to.
    Block {
        /// Which block.
        block: BlockId,
        /// Where it should lie: byte offset in the container.
        offset: u64,
    },
    /// A block's bytes are missing.
    Missing {
        /// Which block.
        block: BlockId,
        /// Where it should lie: byte offset in the container.
        offset: u64,
    },
    /// Both superblocks have a mark and neither opens.
    Superblocks,
    /// A block of a measured file.
    Measured {
        /// Level in the hash tree, 0 for the file's data.
        level: u8,
        /// Block within the level.
        index: u64,
    },
    /// The whole hash tree of a measured file does not lead to its digest.
    Digest,
}

impl fmt::Display for Tampering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { block, offset } => {
                write!(
                    f,
                    "{block} at byte {offset} of the container is not what was written there last"
                )
            }
            Self::Missing { block, offset } => {
                write!(f, "{block} at byte {offset} of the container is missing")
            }
            Self::Superblocks => f.write_str("superblocks at bytes 0 and 4096 don't open"),
            Self::Measured { level: 0, index } => {
                write!(
                    f,
                    "block {index} of the measured file (byte {}) has another hash",
                    index * 4096
                )
            }
            Self::Measured { level, index } => {
                write!(
                    f,
                    "block {index} of level {level} of the measured file's hash tree has another hash"
                )
            }
            Self::Digest => {
                f.write_str("the measured file's hash tree does not have the digest of the manifest")
            }
        }
    }
}

impl VolumeError {
    /// For `map_err` on a store's answers.
    pub(crate) fn store(step: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { step, source }
    }
}
