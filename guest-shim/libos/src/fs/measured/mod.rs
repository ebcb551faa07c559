//! Measured files: what the manifest says is in them is what the program gets, whatever the OS side has.
//!
//! Names come from the manifest and from nowhere else: a measured volume is a tree that is made at boot of the paths that
//! are listed, so the OS side can't add, hide, rename or redirect anything. Only contents come from there. The first
//! time that a file is looked at or opened all of it is read once and its fs-verity digest compared; its tree's lowest level
//! stays in memory, and from then on each block of 4096 bytes is compared with that before a byte of it is given out.
//! What was compared is kept by the caches that other files of the host have ([`super::read_cache`],
//! `mem::file_frames`); what they let go is compared again.
//!
//! | module | concept |
//! |---|---|
//! | this | from records of the configuration to mounts |
//! | [`content`] | one file: its bytes, compared |
//! | [`node`] | files, folders and links as the look-up knows them |
//! | [`mod@file`] | open files |

mod content;
mod file;
mod node;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::config::mount_flags;
use cloak_abi::hostop::{MAX_MOUNTS, ROOT_FD};

use self::content::Content;
use self::node::{FileNode, Folder, SymbolicLink};
use super::init::MountRecord;
use super::mount::{self, Mount};
use super::node::Node;
use super::path;

/// Type of a measured volume in `/proc/mounts`.
pub const KIND: &str = "cloakmeasured";

/// What the manifest measures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// fs-verity digests and guest paths of files.
    pub files: Vec<([u8; 32], Vec<u8>)>,
    /// Guest paths and targets of symbolic links.
    pub links: Vec<(Vec<u8>, Vec<u8>)>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Numbers of files and folders; all have the same device, so that each has its own.
fn next_inode() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn device() -> u64 {
    super::attributes::make_dev(0, 0x9_0000)
}

/// Has the cache let go of a file, so that the next read is compared again.
#[cfg(test)]
pub(crate) fn forget_cached(stat: &super::file::Stat) {
    super::read_cache::changed((stat.dev, stat.ino));
}

/// A part of a tree that is not finished.
enum Draft {
    Folder(BTreeMap<Vec<u8>, Draft>),
    Leaf(Arc<dyn Node>),
}

impl Draft {
    /// Puts something at a path, or a folder, and folders above it. Gives false where a file or link is in the way.
    fn put(&mut self, names: &[Vec<u8>], leaf: Option<Arc<dyn Node>>) -> bool {
        let (Self::Folder(children), [name, rest @ ..]) = (self, names) else {
            return leaf.is_none() && names.is_empty();
        };
        match leaf {
            Some(leaf) if rest.is_empty() => children.insert(name.clone(), Self::Leaf(leaf)).is_none(),
            leaf => children
                .entry(name.clone())
                .or_insert_with(|| Self::Folder(BTreeMap::new()))
                .put(rest, leaf),
        }
    }

    fn finish(self) -> Arc<dyn Node> {
        match self {
            Self::Leaf(node) => node,
            Self::Folder(children) => {
                let finished = children.into_iter().map(|(name, draft)| (name, draft.finish()));
                Arc::new(Folder::new(finished.collect()))
            }
        }
    }
}

/// The part of a path below a mount.
fn below(mount: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    let rest = path::below(mount, path).unwrap_or_default();
    path::components(rest).map(<[u8]>::to_vec).collect()
}

/// Mounts for what is measured: each measured volume, and each file that is listed on a shared one. `folders`: paths that have
/// to be there for what is mounted on them.
///
/// # Errors
/// A line for the user about a file that lies where nothing can be measured.
pub fn mounts(records: &[MountRecord], listed: &Listed, folders: &[&[u8]]) -> Result<Vec<Mount>, String> {
    let mut trees: BTreeMap<Vec<u8>, Draft> = BTreeMap::new();
    for record in records.iter().filter(|r| r.flags & mount_flags::MEASURED != 0) {
        trees.insert(record.path.clone(), Draft::Folder(BTreeMap::new()));
    }
    let mut mounts = Vec::new();
    let holder = |path: &[u8]| {
        let covering = records.iter().filter(|r| path::below(&r.path, path).is_some());
        covering.max_by_key(|r| r.path.len())
    };
    let nowhere = |path: &[u8]| {
        let name = String::from_utf8_lossy(path);
        format!("{name} is measured, but lies in no measured or shared volume, or below another file")
    };
    for (digest, path) in &listed.files {
        let record = holder(path)
            .filter(|r| r.flags & mount_flags::MEMORY == 0 && r.index < MAX_MOUNTS)
            .ok_or_else(|| nowhere(path))?;
        let names = below(&record.path, path);
        let content = Content::new(
            u64::from(ROOT_FD + record.index),
            names.join(&b'/'),
            path,
            *digest,
        );
        let node: Arc<dyn Node> = FileNode::new(content);
        match trees.get_mut(&record.path) {
            Some(tree) => {
                if !tree.put(&names, Some(node)) {
                    return Err(nowhere(path));
                }
            }
            None => mounts.push(Mount::node(KIND, path, node, true)),
        }
    }
    for (path, target) in &listed.links {
        let tree = holder(path).and_then(|record| Some((&record.path, trees.get_mut(&record.path)?)));
        let (mount, tree) = tree.ok_or_else(|| nowhere(path))?;
        let link: Arc<dyn Node> = Arc::new(SymbolicLink::new(target.clone()));
        if !tree.put(&below(mount, path), Some(link)) {
            return Err(nowhere(path));
        }
    }
    if !mounts.is_empty() {
        // The host must not follow links past these.
        mount::walk_names();
    }
    for folder in folders {
        // A mount's own root is a folder of the tree that it lies in.
        let around = trees
            .iter_mut()
            .filter(|(mount, _)| mount.len() < folder.len() && path::below(mount, folder).is_some());
        if let Some((mount, tree)) = around.max_by_key(|(mount, _)| mount.len()) {
            tree.put(&below(mount, folder), None);
        }
    }
    mounts.extend(
        trees
            .into_iter()
            .map(|(path, tree)| Mount::node(KIND, &path, tree.finish(), true)),
    );
    Ok(mounts)
}
