//! Blocks of a directory: leaves with entries, and indices that lead to them by 9 bits of a name's hash each
//! (extendible hashing in levels). Block 0 is the root, of either kind.
//!
//! An entry's key is the name's hash (54 bits) and an ordinal (9 bits) that tells names of one hash apart. It stays
//! for as long as the name does and orders the listing, so it is what listings are resumed at.

use alloc::vec::Vec;

use sha2::{Digest as _, Sha256};

use crate::block::{BLOCK, Page, array};

/// Longest name.
pub const NAME_MAX: usize = 255;
/// Bits of a hash.
pub const HASH_BITS: u32 = 54;
/// Bits of an ordinal, and of a hash that one index consumes.
pub const LEVEL_BITS: u32 = 9;
/// Slots of an index.
pub const SLOTS: usize = 1 << LEVEL_BITS;
const HEADER: usize = 16;
const ENTRY: usize = 18;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Entries.
    Leaf,
    /// Leads on.
    Index,
    /// Not used; holds the next such block.
    Free,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Hash and ordinal.
    pub key: u64,
    /// Inode.
    pub ino: u64,
    /// Type bits of the inode's mode, shifted right by twelve.
    pub kind: u8,
    /// Name.
    pub name: &'a [u8],
}

/// A name's hash, already shifted to its place in a key. Never 0, so that no key is.
#[must_use]
pub fn hash(name_key: &[u8; 32], name: &[u8]) -> u64 {
    let digest = Sha256::new().chain_update(name_key).chain_update(name).finalize();
    let hash = u64::from_le_bytes(array(&digest[..8])) >> (64 - HASH_BITS);
    #[cfg(test)]
    let hash = hash & tests::mask();
    hash.max(1) << LEVEL_BITS
}

/// Which slot of an index at a depth.
#[must_use]
pub const fn slot(key: u64, depth: u32) -> usize {
    let shift = HASH_BITS - LEVEL_BITS * depth;
    (key >> shift) as usize & (SLOTS - 1)
}

/// What a block is, if it is of a directory.
#[must_use]
pub fn kind(page: &Page) -> Option<Kind> {
    match &page[..4] {
        b"leaf" if leaf_end(page).is_some() => Some(Kind::Leaf),
        b"indx" => Some(Kind::Index),
        b"free" => Some(Kind::Free),
        _ => None,
    }
}

fn leaf_end(page: &Page) -> Option<usize> {
    let end = usize::from(u16::from_le_bytes(array(&page[4..6])));
    (HEADER..=BLOCK).contains(&end).then_some(end)
}

/// Makes a leaf without entries.
pub fn start_leaf(page: &mut Page) {
    page.fill(0);
    page[..4].copy_from_slice(b"leaf");
    set_leaf_end(page, HEADER);
}

fn set_leaf_end(page: &mut Page, end: usize) {
    page[4..6].copy_from_slice(&(end as u16).to_le_bytes());
}

/// The entries of a leaf, in no order. Ends early at one that makes no sense.
pub fn entries(page: &Page) -> impl Iterator<Item = Entry<'_>> {
    let end = leaf_end(page).unwrap_or(HEADER);
    let mut at = HEADER;
    core::iter::from_fn(move || {
        let entry = entry_at(page, at, end)?;
        at += ENTRY + entry.name.len();
        Some(entry)
    })
}

fn entry_at(page: &Page, at: usize, end: usize) -> Option<Entry<'_>> {
    let head = page.get(at..at + ENTRY)?;
    let name_end = at + ENTRY + usize::from(head[17]);
    if name_end > end {
        return None;
    }
    Some(Entry {
        key: u64::from_le_bytes(array(&head[..8])),
        ino: u64::from_le_bytes(array(&head[8..16])),
        kind: head[16],
        name: &page[at + ENTRY..name_end],
    })
}

/// Adds an entry; says whether there was room.
#[must_use]
pub fn add(page: &mut Page, entry: &Entry<'_>) -> bool {
    let at = leaf_end(page).unwrap_or(BLOCK);
    let end = at + ENTRY + entry.name.len();
    if end > BLOCK {
        return false;
    }
    page[at..at + 8].copy_from_slice(&entry.key.to_le_bytes());
    page[at + 8..at + 16].copy_from_slice(&entry.ino.to_le_bytes());
    page[at + 16] = entry.kind;
    page[at + 17] = entry.name.len() as u8;
    page[at + ENTRY..end].copy_from_slice(entry.name);
    set_leaf_end(page, end);
    true
}

/// Removes the entry of a key; says whether the leaf is empty now.
pub fn remove(page: &mut Page, key: u64) -> bool {
    let end = leaf_end(page).unwrap_or(HEADER);
    let mut at = HEADER;
    while let Some((found, len)) = entry_at(page, at, end).map(|e| (e.key, ENTRY + e.name.len())) {
        if found == key {
            page.copy_within(at + len..end, at);
            // No name stays behind the end.
            page[end - len..end].fill(0);
            set_leaf_end(page, end - len);
            return end - len == HEADER;
        }
        at += len;
    }
    end == HEADER
}

/// Changes where the entry of a key leads.
pub fn replace(page: &mut Page, key: u64, ino: u64, kind: u8) {
    let end = leaf_end(page).unwrap_or(HEADER);
    let mut at = HEADER;
    while let Some((found, len)) = entry_at(page, at, end).map(|e| (e.key, ENTRY + e.name.len())) {
        if found == key {
            page[at + 8..at + 16].copy_from_slice(&ino.to_le_bytes());
            page[at + 16] = kind;
            return;
        }
        at += len;
    }
}

/// Moves the entries whose slot at a depth is `from` or above to another leaf.
pub fn split(page: &mut Page, other: &mut Page, depth: u32, from: usize) {
    let old = *page;
    start_leaf(page);
    start_leaf(other);
    for entry in entries(&old) {
        let to = if slot(entry.key, depth) < from {
            &mut *page
        } else {
            &mut *other
        };
        let fits = add(to, &entry);
        debug_assert!(fits, "half of a block fits into a block");
    }
}

/// The ordinal for a new name of a hash: the lowest that no entry has.
#[must_use]
pub fn free_ordinal(page: &Page, hash: u64) -> Option<u64> {
    let mut taken: Vec<u64> = entries(page)
        .filter(|e| e.key >> LEVEL_BITS == hash >> LEVEL_BITS)
        .map(|e| e.key)
        .collect();
    taken.sort_unstable();
    let key = (hash..).zip(&taken).find(|(want, have)| want != *have);
    let key = key.map_or(hash + taken.len() as u64, |(want, _)| want);
    (key >> LEVEL_BITS == hash >> LEVEL_BITS).then_some(key)
}

/// Makes an index all of whose slots lead to one block.
pub fn start_index(page: &mut Page, child: u32) {
    page.fill(0);
    page[..4].copy_from_slice(b"indx");
    set_children(page, 0..SLOTS, child);
}

/// Where a slot leads; 0 for nowhere.
#[must_use]
pub fn child(page: &Page, slot: usize) -> u32 {
    u32::from_le_bytes(array(&page[HEADER + 4 * slot..HEADER + 4 * slot + 4]))
}

/// Changes where slots lead.
pub fn set_children(page: &mut Page, slots: core::ops::Range<usize>, child: u32) {
    for slot in slots {
        page[HEADER + 4 * slot..HEADER + 4 * slot + 4].copy_from_slice(&child.to_le_bytes());
    }
}

/// The slots around one that lead to the same block; of those that lead nowhere, a run that a leaf can have: as
/// long as a power of two, and at a multiple of it.
#[must_use]
pub fn run(page: &Page, slot: usize) -> core::ops::Range<usize> {
    let same = |s: usize| child(page, s) == child(page, slot);
    let (mut len, mut start) = (1, slot);
    while len < SLOTS {
        let wider = slot / (2 * len) * (2 * len);
        if !(wider..wider + 2 * len).all(same) {
            break;
        }
        (len, start) = (2 * len, wider);
    }
    start..start + len
}

/// Makes a free block that names the next.
pub fn start_free(page: &mut Page, next: u32) {
    page.fill(0);
    page[..4].copy_from_slice(b"free");
    page[4..8].copy_from_slice(&next.to_le_bytes());
}

/// The next free block.
#[must_use]
pub fn next_free(page: &Page) -> u32 {
    u32::from_le_bytes(array(&page[4..8]))
}

/// Lets names collide that don't.
#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    std::thread_local!(static MASK: Cell<u64> = const { Cell::new(u64::MAX) });

    pub fn mask() -> u64 {
        MASK.get()
    }

    /// Lets few hashes be, so that they collide.
    pub fn with_mask<R>(mask: u64, f: impl FnOnce() -> R) -> R {
        MASK.set(mask);
        let result = f();
        MASK.set(u64::MAX);
        result
    }
}
