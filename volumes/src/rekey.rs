//! A new key for a volume: everything is sealed anew, into another container, which then takes the old one's place.
//! So there is no moment at which a crash leaves half of each, and the old key opens nothing of the new container.
//!
//! The volume stays the same one: its id, its inodes and its history. The new container's first root is the
//! successor of the old one's last, which an anchor accepts.

use crate::block::{BLOCK, BlockId, Fork, Pointer};
use crate::engine::Need;
use crate::error::VolumeError;
use crate::inode::{INODES_IN_BLOCK, Ino, Inode};
use crate::keys::VolumeKey;
use crate::store::Store;
use crate::superblock::{Root, TreeRoot};
use crate::tree::span;
use crate::volume::{Options, Volume};

/// Copies a volume, as it is durable, into an empty container under another key. `options.anchor` must be
/// [`crate::NoAnchor`] while the old container is still the one that counts; `progress` gets the number of inodes.
///
/// The old volume is opened with [`Volume::open_read_only`], or has nothing to be synced.
///
/// # Errors
/// [`VolumeError`]; the new container is then of no use, the old one is as it was.
pub fn rekey<S: Store, T: Store>(
    old: &mut Volume<S>,
    mut into: T,
    key: VolumeKey,
    options: Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Volume<T>, VolumeError> {
    if old.engine.is_changed() {
        return Err(VolumeError::Invalid(
            "sync before a new key: what is durable is copied",
        ));
    }
    let blocks = 64;
    let emptied = into.set_len(0).and_then(|()| into.set_len(blocks * BLOCK as u64));
    emptied.map_err(VolumeError::store("making the new container"))?;
    let root = Root {
        epoch: 0,
        inodes: TreeRoot::EMPTY,
        inode_end: 1,
        blocks,
        ..old.engine.root
    };
    let mut new = Volume::start(into, key, root, old.engine.mark().root, options);
    new.engine.root.inode_end = old.engine.root.inode_end;
    for ino in (1..old.engine.root.inode_end).map(Ino) {
        if ino.0 % INODES_IN_BLOCK == 0 {
            progress(ino.0);
        }
        let inode = old.engine.inode_slot(ino)?;
        if inode == Inode::FREE {
            continue;
        }
        copy(old, &mut new, ino, &inode)?;
    }
    new.sync_all()?;
    Ok(new)
}

fn copy<S: Store, T: Store>(
    old: &mut Volume<S>,
    new: &mut Volume<T>,
    ino: Ino,
    inode: &Inode,
) -> Result<(), VolumeError> {
    new.change(Need::Adding, 1, |new| {
        let empty = Inode {
            data: TreeRoot::EMPTY,
            attributes: TreeRoot::EMPTY,
            blocks: 0,
            ..*inode
        };
        new.engine.put_inode(ino, &empty)
    })?;
    for fork in [Fork::Data, Fork::Attributes] {
        let tree = inode.tree(fork);
        let top = BlockId::new(ino.0, fork, tree.height, 0);
        copy_below(old, new, &top, &tree.top)?;
    }
    Ok(())
}

fn copy_below<S: Store, T: Store>(
    old: &mut Volume<S>,
    new: &mut Volume<T>,
    id: &BlockId,
    pointer: &Pointer,
) -> Result<(), VolumeError> {
    if pointer.is_hole() {
        return Ok(());
    }
    if id.level == 0 {
        let page = old.engine.page(id)?;
        let page = page.expect("a pointer that is no hole leads to a block");
        return new.change(Need::Adding, 1, |new| {
            *new.engine.page_to_overwrite(id)? = *page;
            Ok(())
        });
    }
    for slot in 0..span(1) {
        let child = BlockId {
            level: id.level - 1,
            index: id.index * span(1) + slot,
            ..*id
        };
        let below = old.engine.pointer(&child)?;
        copy_below(old, new, &child, &below)?;
    }
    Ok(())
}
