//! Attributes of inodes, and extended attributes.
//!
//! Extended attributes of an inode are one row of bytes: for each, the length of its name (1 byte), the length of its
//! value (2, little-endian, less 0), name, value.

use alloc::vec;
use alloc::vec::Vec;

use crate::block::{BLOCK, BlockId, Fork, array};
use crate::engine::Need;
use crate::error::VolumeError;
use crate::inode::{Ino, Inode, TYPE_MASK, Time};
use crate::store::Store;
use crate::volume::Volume;

/// Bytes of all extended attributes of an inode.
pub const ATTRIBUTES_MAX: usize = 65536;
/// Bytes of one value.
pub const VALUE_MAX: usize = 65535;
const HEAD: usize = 3;

/// What is known of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Number.
    pub ino: Ino,
    /// How often the number was given.
    pub generation: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Names; of a directory 2 and its subdirectories.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub device: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 4096 bytes that hold data.
    pub blocks: u64,
    /// Names in a directory.
    pub entries: u64,
    /// Last read, as far as the caller sets it: reading changes nothing.
    pub accessed: Time,
    /// Last change of content.
    pub modified: Time,
    /// Last change of anything.
    pub changed: Time,
    /// Creation.
    pub created: Time,
}

/// Attributes to be set; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttributes {
    /// Permissions, 12 bits.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last read.
    pub accessed: Option<Time>,
    /// Last change of content.
    pub modified: Option<Time>,
}

/// Whether an extended attribute may or must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMode {
    /// Either.
    Any,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

impl<S: Store> Volume<S> {
    /// Attributes of an inode.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub fn stat(&mut self, ino: Ino) -> Result<Stat, VolumeError> {
        let inode = self.engine.inode(ino)?;
        Ok(Stat {
            ino,
            generation: inode.generation,
            mode: inode.mode,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            device: inode.device,
            size: inode.size,
            blocks: inode.blocks,
            entries: inode.entries,
            accessed: inode.accessed,
            modified: inode.modified,
            changed: inode.changed,
            created: inode.created,
        })
    }

    /// Sets attributes of an inode. The size has [`Volume::truncate`].
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub fn set_attributes(&mut self, ino: Ino, set: &SetAttributes) -> Result<(), VolumeError> {
        self.engine.inode(ino)?;
        self.change(Need::Freeing, 0, |volume| {
            // Read here: a commit before the change has moved its trees.
            let mut inode = volume.engine.inode(ino)?;
            if let Some(permissions) = set.permissions {
                inode.mode = inode.mode & TYPE_MASK | permissions & 0o7777;
            }
            inode.uid = set.uid.unwrap_or(inode.uid);
            inode.gid = set.gid.unwrap_or(inode.gid);
            inode.accessed = set.accessed.unwrap_or(inode.accessed);
            inode.modified = set.modified.unwrap_or(inode.modified);
            inode.changed = (volume.clock)();
            volume.unsynced.insert(ino);
            volume.engine.put_inode(ino, &inode)
        })
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`VolumeError::NoAttribute`].
    pub fn attribute(&mut self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, VolumeError> {
        let row = self.attribute_row(ino)?;
        let found = Pairs(&row).find(|(have, _)| *have == name);
        found
            .map(|(_, value)| value.to_vec())
            .ok_or(VolumeError::NoAttribute)
    }

    /// The names of an inode's extended attributes.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub fn attributes(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>, VolumeError> {
        let row = self.attribute_row(ino)?;
        Ok(Pairs(&row).map(|(name, _)| name.to_vec()).collect())
    }

    /// Sets an extended attribute: name of 1 to 255 bytes, value of up to 65535.
    ///
    /// # Errors
    /// [`VolumeError::Exists`], [`VolumeError::NoAttribute`], [`VolumeError::AttributesTooLarge`].
    pub fn set_attribute(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
    ) -> Result<(), VolumeError> {
        let name_len = u8::try_from(name.len()).ok().filter(|&len| len > 0);
        let name_len = name_len.ok_or(VolumeError::NameTooLong)?;
        let value_len = u16::try_from(value.len()).map_err(|_| VolumeError::AttributesTooLarge)?;
        let row = self.attribute_row(ino)?;
        let exists = Pairs(&row).any(|(have, _)| have == name);
        match (exists, mode) {
            (true, SetMode::Create) => return Err(VolumeError::Exists),
            (false, SetMode::Replace) => return Err(VolumeError::NoAttribute),
            _ => {}
        }
        let mut new = without(&row, name);
        new.push(name_len);
        new.extend_from_slice(&value_len.to_le_bytes());
        new.extend_from_slice(name);
        new.extend_from_slice(value);
        self.put_attribute_row(ino, &new)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// [`VolumeError::NoAttribute`].
    pub fn remove_attribute(&mut self, ino: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let row = self.attribute_row(ino)?;
        let new = without(&row, name);
        if new.len() == row.len() {
            return Err(VolumeError::NoAttribute);
        }
        self.put_attribute_row(ino, &new)
    }

    fn attribute_row(&mut self, ino: Ino) -> Result<Vec<u8>, VolumeError> {
        let inode: Inode = self.engine.inode(ino)?;
        let mut row = vec![0; (inode.attribute_bytes as usize).min(ATTRIBUTES_MAX)];
        for (index, piece) in row.chunks_mut(BLOCK).enumerate() {
            let id = BlockId::new(ino.0, Fork::Attributes, 0, index as u64);
            if let Some(page) = self.engine.page(&id)? {
                piece.copy_from_slice(&page[..piece.len()]);
            }
        }
        Ok(row)
    }

    fn put_attribute_row(&mut self, ino: Ino, row: &[u8]) -> Result<(), VolumeError> {
        if row.len() > ATTRIBUTES_MAX {
            return Err(VolumeError::AttributesTooLarge);
        }
        let blocks = row.len().div_ceil(BLOCK) as u64;
        self.change(Need::Adding, blocks, |volume| {
            let engine = &mut volume.engine;
            engine.free_range(ino, Fork::Attributes, blocks, u64::MAX)?;
            for (index, piece) in row.chunks(BLOCK).enumerate() {
                let id = BlockId::new(ino.0, Fork::Attributes, 0, index as u64);
                let page = engine.page_to_overwrite(&id)?;
                page[..piece.len()].copy_from_slice(piece);
                page[piece.len()..].fill(0);
            }
            let mut inode = engine.inode(ino)?;
            inode.attribute_bytes = row.len() as u32;
            inode.changed = (volume.clock)();
            volume.unsynced.insert(ino);
            volume.engine.put_inode(ino, &inode)
        })
    }
}

fn without(row: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len());
    for (have, value) in Pairs(row).filter(|(have, _)| *have != name) {
        out.push(have.len() as u8);
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(have);
        out.extend_from_slice(value);
    }
    out
}

/// Names and values of a row. Ends at what makes no sense.
pub struct Pairs<'a>(pub &'a [u8]);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.get(..HEAD)?;
        let name_end = HEAD + usize::from(head[0]);
        let value_end = name_end + usize::from(u16::from_le_bytes(array(&head[1..])));
        let pair = (self.0.get(HEAD..name_end)?, self.0.get(name_end..value_end)?);
        self.0 = &self.0[value_end..];
        Some(pair)
    }
}
