//! The superblock: the root of everything, twice in the container. A commit writes the slot that holds the older one.
//!
//! All of it fits into one sector of 512 bytes; the rest of its 4096 is zero. In clear stand what is needed before a
//! key is: mark, version, volume, key check, session, sequence, counter; they are additional data of the rest.

use sha2::{Digest as _, Sha256};

use crate::anchor::Mark;
use crate::block::{MAX_HEIGHT, POINTER, Pointer, array};
use crate::error::{Tampering, VolumeError};
use crate::keys::{KeyRing, SessionId, VolumeId, VolumeKey, Wide};

/// Bytes of a superblock that mean something.
pub const SUPERBLOCK: usize = 512;
/// Blocks before the first that can be allocated: the two slots.
pub const FIRST_BLOCK: u64 = 2;
/// The format described here.
pub const FORMAT: u32 = 1;
const MARK: &[u8; 8] = b"CLOAKVOL";
const CLEAR: usize = 96;
const SEALED: usize = SUPERBLOCK - CLEAR - 16;
/// Largest container: 2^60 bytes.
pub const MAX_BLOCKS: u64 = 1 << 48;

/// A tree of blocks: of the table of inodes, of an inode's content or attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeRoot {
    /// Points to the top.
    pub top: Pointer,
    /// Levels of nodes above the data; 0 if the top is the only block of data.
    pub height: u8,
}

impl TreeRoot {
    /// Nothing in it.
    pub const EMPTY: Self = Self {
        top: Pointer::HOLE,
        height: 0,
    };
}

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Which volume.
    pub volume: VolumeId,
    /// Commits since it was created, and the first is 1.
    pub counter: u64,
    /// Sessions since it was created.
    pub epoch: u32,
    /// SHA-256 of the superblock before this one.
    pub before: [u8; 32],
    /// The table of inodes.
    pub inodes: TreeRoot,
    /// Inodes that were ever used: all numbers are below it.
    pub inode_end: u64,
    /// Blocks of the container, slots included.
    pub blocks: u64,
    /// Blocks that the container may grow to.
    pub limit: u64,
    /// Key of the hash of names.
    pub name_key: [u8; 32],
}

/// What can be read without a key. None of it is to be believed before the rest is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clear {
    /// Which volume.
    pub volume: VolumeId,
    /// [`VolumeKey::check_value`].
    pub key_check: [u8; 16],
    /// Session that sealed it.
    pub session: SessionId,
    /// The session's sequence number for it.
    pub sequence: u64,
    /// Commit counter.
    pub counter: u64,
}

/// A superblock that was opened.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// What it says.
    pub root: Root,
    /// For the anchor, and for the next one's `before`.
    pub mark: Mark,
}

impl Clear {
    /// Parses what is in clear; `None` if it is no superblock of this format.
    #[must_use]
    pub fn parse(bytes: &[u8; SUPERBLOCK]) -> Option<Self> {
        if &bytes[..8] != MARK || u32::from_le_bytes(array(&bytes[8..12])) != FORMAT {
            return None;
        }
        Some(Self {
            volume: VolumeId(array(&bytes[16..32])),
            key_check: array(&bytes[32..48]),
            session: SessionId(array(&bytes[48..64])),
            sequence: u64::from_le_bytes(array(&bytes[64..72])),
            counter: u64::from_le_bytes(array(&bytes[72..80])),
        })
    }
}

/// Which slot a counter's superblock lies in.
#[must_use]
pub const fn slot_of(counter: u64) -> u64 {
    counter % 2
}

/// Opens the superblock of a slot; `None` if it has no mark or does not open.
#[must_use]
pub fn open(ring: &mut KeyRing, slot: u64, bytes: &[u8; SUPERBLOCK]) -> Option<Found> {
    let clear = Clear::parse(bytes)?;
    if slot_of(clear.counter) != slot {
        return None;
    }
    let (aad, sealed, tag) = (
        &bytes[..CLEAR],
        &bytes[CLEAR..CLEAR + SEALED],
        array(&bytes[CLEAR + SEALED..]),
    );
    let mut plain = [0; SEALED];
    if !ring.with(|ciphers| ciphers.open(&clear.session, clear.sequence, aad, sealed, &mut plain, &tag)) {
        return None;
    }
    let root = parse_sealed(&clear, &plain)?;
    Some(Found {
        root,
        mark: mark(&root, bytes),
    })
}

/// Seals a root under a session.
pub fn seal(
    ring: &mut KeyRing,
    key_check: &[u8; 16],
    session: &SessionId,
    sequence: u64,
    root: &Root,
) -> ([u8; SUPERBLOCK], Mark) {
    let mut bytes = [0; SUPERBLOCK];
    bytes[..8].copy_from_slice(MARK);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..32].copy_from_slice(&root.volume.0);
    bytes[32..48].copy_from_slice(key_check);
    bytes[48..64].copy_from_slice(&session.0);
    bytes[64..72].copy_from_slice(&sequence.to_le_bytes());
    bytes[72..80].copy_from_slice(&root.counter.to_le_bytes());
    let (aad, rest) = bytes.split_at_mut(CLEAR);
    let (sealed, tag) = rest.split_at_mut(SEALED);
    let plain = encode_sealed(root);
    tag.copy_from_slice(&ring.with(|ciphers| ciphers.seal(session, sequence, aad, &plain, sealed)));
    (bytes, mark(root, &bytes))
}

/// The newest of two slots that opens.
///
/// # Errors
/// [`VolumeError::NoVolume`], [`VolumeError::Foreign`], [`VolumeError::WrongKey`], [`Tampering::Superblocks`].
pub fn newest(
    key: VolumeKey,
    expected: Option<VolumeId>,
    slots: [Option<[u8; SUPERBLOCK]>; 2],
    wide: Wide,
) -> Result<(KeyRing, [u8; 16], Found), VolumeError> {
    let clears = slots.map(|slot| slot.as_ref().and_then(Clear::parse));
    let first = clears.iter().flatten().next().ok_or(VolumeError::NoVolume)?;
    let volume = match expected {
        Some(expected) if clears.iter().flatten().all(|c| c.volume != expected) => {
            return Err(VolumeError::Foreign {
                expected,
                found: first.volume,
            });
        }
        Some(expected) => expected,
        // One slot may be torn or changed: the one whose check value fits is believed first.
        None => {
            clears
                .iter()
                .flatten()
                .find(|c| c.key_check == key.check_value(&c.volume))
                .unwrap_or(first)
                .volume
        }
    };
    let key_check = key.check_value(&volume);
    let of_volume = |c: &&Clear| c.volume == volume;
    if clears
        .iter()
        .flatten()
        .filter(of_volume)
        .all(|c| c.key_check != key_check)
    {
        return Err(VolumeError::WrongKey(volume));
    }
    let mut ring = KeyRing::new(key, volume, wide);
    let mut best: Option<Found> = None;
    for (slot, bytes) in slots.iter().enumerate() {
        let found = bytes
            .as_ref()
            .and_then(|bytes| open(&mut ring, slot as u64, bytes));
        if let Some(found) = found.filter(|f| f.root.volume == volume)
            && best.is_none_or(|best| best.root.counter < found.root.counter)
        {
            best = Some(found);
        }
    }
    let found = best.ok_or(VolumeError::Tampered(Tampering::Superblocks))?;
    Ok((ring, key_check, found))
}

fn mark(root: &Root, bytes: &[u8; SUPERBLOCK]) -> Mark {
    Mark {
        volume: root.volume,
        counter: root.counter,
        root: Sha256::digest(bytes).into(),
    }
}

fn encode_sealed(root: &Root) -> [u8; SEALED] {
    let mut out = [0; SEALED];
    out[..32].copy_from_slice(&root.before);
    out[32..64].copy_from_slice(&root.name_key);
    out[64..64 + POINTER].copy_from_slice(&root.inodes.top.encode());
    out[112] = root.inodes.height;
    out[116..120].copy_from_slice(&root.epoch.to_le_bytes());
    out[120..128].copy_from_slice(&root.inode_end.to_le_bytes());
    out[128..136].copy_from_slice(&root.blocks.to_le_bytes());
    out[136..144].copy_from_slice(&root.limit.to_le_bytes());
    out
}

fn parse_sealed(clear: &Clear, bytes: &[u8; SEALED]) -> Option<Root> {
    let number = |at: usize| u64::from_le_bytes(array(&bytes[at..at + 8]));
    let root = Root {
        volume: clear.volume,
        counter: clear.counter,
        epoch: u32::from_le_bytes(array(&bytes[116..120])),
        before: array(&bytes[..32]),
        name_key: array(&bytes[32..64]),
        inodes: TreeRoot {
            top: Pointer::parse(&array(&bytes[64..64 + POINTER])),
            height: bytes[112],
        },
        inode_end: number(120),
        blocks: number(128),
        limit: number(136),
    };
    let good = root.inodes.height <= MAX_HEIGHT
        && root.blocks >= FIRST_BLOCK
        && root.blocks <= MAX_BLOCKS
        && root.limit <= MAX_BLOCKS
        && root.inodes.top.address < root.blocks;
    good.then_some(root)
}
