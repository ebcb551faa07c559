//! Names: looking up, making, removing, linking, renaming, listing.

use alloc::vec::Vec;

use crate::data::write_blocks;
use crate::dir::{DirEntry, Place};
use crate::dirblock::NAME_MAX;
use crate::engine::Need;
use crate::error::VolumeError;
use crate::inode::{DIRECTORY, Ino, Inode, SYMLINK, TYPE_MASK};
use crate::store::Store;
use crate::volume::Volume;

/// Longest target of a symbolic link, in bytes.
pub const TARGET_MAX: usize = 4095;
/// Blocks that an operation on names may write in a directory: a leaf, its halves, an index, at every level.
const NAME_BLOCKS: u64 = 10;

/// A new inode.
#[derive(Debug, Clone, Copy)]
pub struct NewInode {
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for devices.
    pub device: u64,
}

/// What renaming does with a target that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It is replaced.
    Replace,
    /// It is an error.
    Keep,
    /// The two change places; it has to exist.
    Exchange,
}

const fn entry_kind(mode: u32) -> u8 {
    ((mode & TYPE_MASK) >> 12) as u8
}

impl<S: Store> Volume<S> {
    /// The inode of a name. `.` and `..` are the caller's; see [`Volume::parent`].
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::NotDirectory`].
    pub fn lookup(&mut self, dir: Ino, name: &[u8]) -> Result<Ino, VolumeError> {
        Ok(self.place(dir, name)?.ok_or(VolumeError::NotFound)?.ino)
    }

    /// The directory that holds a directory; the root's is itself.
    ///
    /// # Errors
    /// [`VolumeError::NotDirectory`].
    pub fn parent(&mut self, dir: Ino) -> Result<Ino, VolumeError> {
        Ok(Ino(self.directory(dir)?.parent))
    }

    /// Makes a file, device, pipe or socket.
    ///
    /// # Errors
    /// [`VolumeError::Exists`] and the like.
    pub fn create_file(&mut self, dir: Ino, name: &[u8], new: &NewInode) -> Result<Ino, VolumeError> {
        if matches!(new.mode & TYPE_MASK, DIRECTORY | SYMLINK | 0) {
            return Err(VolumeError::Invalid(
                "directories and links have their own operations",
            ));
        }
        self.add(dir, name, new, |_, _| Ok(()))
    }

    /// Makes a directory; type bits of the mode are ignored.
    ///
    /// # Errors
    /// [`VolumeError::Exists`] and the like.
    pub fn mkdir(&mut self, dir: Ino, name: &[u8], new: &NewInode) -> Result<Ino, VolumeError> {
        let mode = DIRECTORY | new.mode & 0o7777;
        self.add(dir, name, &NewInode { mode, ..*new }, |_, _| Ok(()))
    }

    /// Makes a symbolic link to `target`, 1 to 4095 bytes.
    ///
    /// # Errors
    /// [`VolumeError::Exists`] and the like.
    pub fn symlink(
        &mut self,
        dir: Ino,
        name: &[u8],
        target: &[u8],
        new: &NewInode,
    ) -> Result<Ino, VolumeError> {
        if target.is_empty() || target.len() > TARGET_MAX {
            return Err(VolumeError::Invalid("a link's target has 1 to 4095 bytes"));
        }
        let mode = SYMLINK | 0o777;
        self.add(dir, name, &NewInode { mode, ..*new }, |volume, ino| {
            write_blocks(&mut volume.engine, ino, 0, target)?;
            let mut inode = volume.engine.inode(ino)?;
            inode.size = target.len() as u64;
            volume.engine.put_inode(ino, &inode)
        })
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`VolumeError::Invalid`] if it is none.
    pub fn readlink(&mut self, ino: Ino) -> Result<Vec<u8>, VolumeError> {
        let inode = self.engine.inode(ino)?;
        if inode.kind() != SYMLINK {
            return Err(VolumeError::Invalid("not a symbolic link"));
        }
        let mut target = alloc::vec![0; (inode.size as usize).min(TARGET_MAX)];
        self.read_content(ino, &inode, 0, &mut target)?;
        Ok(target)
    }

    /// One more name for an inode that is no directory.
    ///
    /// # Errors
    /// [`VolumeError::Exists`], [`VolumeError::IsDirectory`], [`VolumeError::TooManyLinks`].
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.absent(dir, name)?;
        let inode = self.engine.inode(ino)?;
        if inode.is_directory() {
            return Err(VolumeError::IsDirectory(ino));
        }
        let links = inode.links.checked_add(1).ok_or(VolumeError::TooManyLinks)?;
        self.change(Need::Adding, NAME_BLOCKS, |volume| {
            // Read again: a commit before the change has moved its trees.
            let mut inode = volume.engine.inode(ino)?;
            inode.links = links;
            inode.changed = (volume.clock)();
            volume.engine.dir_add(dir, name, ino, entry_kind(inode.mode))?;
            volume.engine.put_inode(ino, &inode)?;
            volume.unsynced.insert(ino);
            volume.dir_changed(dir, 0)
        })
    }

    /// Removes a name of what is no directory. The content goes with the last name and the last open file.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::IsDirectory`].
    pub fn unlink(&mut self, dir: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let place = self.place(dir, name)?.ok_or(VolumeError::NotFound)?;
        if self.engine.inode(place.ino)?.is_directory() {
            return Err(VolumeError::IsDirectory(place.ino));
        }
        self.change(Need::Freeing, 0, |volume| {
            volume.engine.dir_remove(dir, &place)?;
            volume.dir_changed(dir, 0)?;
            volume.drop_name(place.ino)
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::NotDirectory`], [`VolumeError::NotEmpty`].
    pub fn rmdir(&mut self, dir: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let place = self.place(dir, name)?.ok_or(VolumeError::NotFound)?;
        if self.directory(place.ino)?.entries > 0 {
            return Err(VolumeError::NotEmpty(place.ino));
        }
        self.change(Need::Freeing, 0, |volume| {
            volume.engine.dir_remove(dir, &place)?;
            volume.dir_changed(dir, -1)?;
            volume.drop_name(place.ino)
        })
    }

    /// Moves a name; at every moment, and after a crash, `to` is there if it was before.
    ///
    /// # Errors
    /// As `renameat2` says.
    pub fn rename(
        &mut self,
        from_dir: Ino,
        from: &[u8],
        to_dir: Ino,
        to: &[u8],
        target: Target,
    ) -> Result<(), VolumeError> {
        let source = self.place(from_dir, from)?.ok_or(VolumeError::NotFound)?;
        let existing = self.place(to_dir, to)?;
        let moved = self.engine.inode(source.ino)?;
        if existing.is_none() {
            check_name(to)?;
        }
        match (&existing, target) {
            (Some(_), Target::Keep) => return Err(VolumeError::Exists),
            (None, Target::Exchange) => return Err(VolumeError::NotFound),
            (Some(place), _) if place.ino == source.ino => return Ok(()),
            (Some(place), Target::Replace) => self.may_replace(&moved, source.ino, place.ino)?,
            (Some(place), Target::Exchange) => {
                if self.engine.inode(place.ino)?.is_directory() {
                    self.not_below(from_dir, place.ino)?;
                }
            }
            (None, _) => {}
        }
        if moved.is_directory() {
            self.not_below(to_dir, source.ino)?;
        }
        self.change(Need::Adding, 2 * NAME_BLOCKS, |volume| match (existing, target) {
            (Some(other), Target::Exchange) => volume.exchange(from_dir, &source, to_dir, &other),
            (other, _) => volume.move_name(from_dir, from, &source, to_dir, to, other),
        })
    }

    /// Up to `most` names after a cookie, 0 for the beginning. A name that is there all the while is given once,
    /// whatever else comes and goes. Without `.` and `..`.
    ///
    /// # Errors
    /// [`VolumeError::NotDirectory`].
    pub fn readdir(&mut self, dir: Ino, after: u64, most: usize) -> Result<Vec<DirEntry>, VolumeError> {
        self.directory(dir)?;
        self.engine.dir_list(dir, after, most)
    }

    fn directory(&mut self, dir: Ino) -> Result<Inode, VolumeError> {
        let inode = self.engine.inode(dir)?;
        if inode.is_directory() {
            Ok(inode)
        } else {
            Err(VolumeError::NotDirectory(dir))
        }
    }

    fn place(&mut self, dir: Ino, name: &[u8]) -> Result<Option<Place>, VolumeError> {
        self.directory(dir)?;
        check_name(name)?;
        self.engine.dir_find(dir, name)
    }

    fn absent(&mut self, dir: Ino, name: &[u8]) -> Result<(), VolumeError> {
        if self.place(dir, name)?.is_some() {
            return Err(VolumeError::Exists);
        }
        // A directory that was removed while open takes no names.
        if self.engine.inode(dir)?.links == 0 {
            Err(VolumeError::NotFound)
        } else {
            Ok(())
        }
    }

    fn add(
        &mut self,
        dir: Ino,
        name: &[u8],
        new: &NewInode,
        fill: impl FnOnce(&mut Self, Ino) -> Result<(), VolumeError>,
    ) -> Result<Ino, VolumeError> {
        self.absent(dir, name)?;
        self.change(Need::Adding, NAME_BLOCKS + 2, |volume| {
            let mut inode = volume.new_inode(new.mode, new.uid, new.gid)?;
            inode.device = new.device;
            let is_directory = inode.is_directory();
            if is_directory {
                (inode.links, inode.parent) = (2, dir.0);
            }
            let ino = volume.take_inode();
            if let Err(error) = volume.engine.dir_add(dir, name, ino, entry_kind(new.mode)) {
                volume.free_inodes.push(ino.0);
                return Err(error);
            }
            volume.engine.put_inode(ino, &inode)?;
            volume.unsynced.insert(ino);
            volume.dir_changed(dir, i64::from(is_directory))?;
            fill(volume, ino)?;
            Ok(ino)
        })
    }

    /// A directory's names changed, and its subdirectories by so many.
    fn dir_changed(&mut self, dir: Ino, subdirectories: i64) -> Result<(), VolumeError> {
        let mut inode = self.engine.inode(dir)?;
        inode.modified = (self.clock)();
        inode.changed = inode.modified;
        inode.links = u32::try_from(i64::from(inode.links) + subdirectories).unwrap_or(2);
        self.unsynced.insert(dir);
        self.engine.put_inode(dir, &inode)
    }

    /// A name of an inode is gone; a directory has one name.
    fn drop_name(&mut self, ino: Ino) -> Result<(), VolumeError> {
        let mut inode = self.engine.inode(ino)?;
        inode.links = if inode.is_directory() {
            0
        } else {
            inode.links.saturating_sub(1)
        };
        inode.changed = (self.clock)();
        self.unsynced.insert(ino);
        self.engine.put_inode(ino, &inode)?;
        if inode.links == 0 && !self.opened.contains_key(&ino) {
            self.remove_inode(ino)?;
        }
        Ok(())
    }

    fn may_replace(&mut self, moved: &Inode, moved_ino: Ino, other: Ino) -> Result<(), VolumeError> {
        let inode = self.engine.inode(other)?;
        match (moved.is_directory(), inode.is_directory()) {
            (true, false) => Err(VolumeError::NotDirectory(other)),
            (false, true) => Err(VolumeError::IsDirectory(other)),
            (true, true) if inode.entries > 0 => Err(VolumeError::NotEmpty(other)),
            _ if moved_ino == other => Ok(()),
            _ => Ok(()),
        }
    }

    /// A directory is not `ancestor` and not below it.
    fn not_below(&mut self, dir: Ino, ancestor: Ino) -> Result<(), VolumeError> {
        let mut at = dir;
        while at != Ino::ROOT {
            if at == ancestor {
                return Err(VolumeError::Loop);
            }
            at = Ino(self.engine.inode(at)?.parent);
        }
        if ancestor == Ino::ROOT {
            Err(VolumeError::Loop)
        } else {
            Ok(())
        }
    }

    fn move_name(
        &mut self,
        from_dir: Ino,
        from: &[u8],
        source: &Place,
        to_dir: Ino,
        to: &[u8],
        existing: Option<Place>,
    ) -> Result<(), VolumeError> {
        let is_directory = self.engine.inode(source.ino)?.is_directory();
        match &existing {
            Some(place) => self.engine.dir_replace(to_dir, place, source.ino, source.kind)?,
            None => self.engine.dir_add(to_dir, to, source.ino, source.kind)?,
        }
        // Adding may have moved the old name's entry to another block.
        let old = self
            .engine
            .dir_find(from_dir, from)?
            .ok_or(VolumeError::NotFound)?;
        self.engine.dir_remove(from_dir, &old)?;
        let came = i64::from(is_directory) - i64::from(is_directory && existing.is_some());
        self.dir_changed(from_dir, -i64::from(is_directory))?;
        self.dir_changed(to_dir, came)?;
        self.moved(source.ino, to_dir)?;
        match existing {
            Some(place) => self.drop_name(place.ino),
            None => Ok(()),
        }
    }

    fn exchange(&mut self, from_dir: Ino, from: &Place, to_dir: Ino, to: &Place) -> Result<(), VolumeError> {
        self.engine.dir_replace(from_dir, from, to.ino, to.kind)?;
        self.engine.dir_replace(to_dir, to, from.ino, from.kind)?;
        let directory = i64::from(entry_kind(DIRECTORY));
        let is_directory = |place: &Place| i64::from(i64::from(place.kind) == directory);
        let more_in_from = is_directory(to) - is_directory(from);
        self.dir_changed(from_dir, more_in_from)?;
        self.dir_changed(to_dir, -more_in_from)?;
        self.moved(from.ino, to_dir)?;
        self.moved(to.ino, from_dir)
    }

    fn moved(&mut self, ino: Ino, to: Ino) -> Result<(), VolumeError> {
        let mut inode = self.engine.inode(ino)?;
        inode.changed = (self.clock)();
        if inode.is_directory() {
            inode.parent = to.0;
        }
        self.unsynced.insert(ino);
        self.engine.put_inode(ino, &inode)
    }
}

fn check_name(name: &[u8]) -> Result<(), VolumeError> {
    if name.len() > NAME_MAX {
        return Err(VolumeError::NameTooLong);
    }
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(VolumeError::Invalid(
            "a name is not empty, `.` or `..`, and has no slash and no zero byte",
        ));
    }
    Ok(())
}
