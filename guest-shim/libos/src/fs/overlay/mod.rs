//! `overlay`: a tree of the host as it is, and in guest memory what the program made of it.
//!
//! | module | concept |
//! |---|---|
//! | this | the file system and its nodes |
//! | [`lower`] | the lower layer: a host mount, which is only read |
//! | [`names`] | entries of directories: making, removing, linking, renaming |
//! | [`copy_up`] | a file's own copy, from its first change on |
//! | [`listing`] | directories with the entries of both layers |
//! | [`node`] | the node's interface |
//! | [`paths`] | where paths led, for a moment |
//!
//! The upper layer is not a tree of its own. Each node knows where it lies in the lower layer, if it does, and has an
//! inode of a [`Tmpfs`] once it was changed. A directory's table of entries says what differs from the lower one: nodes
//! that are there, whiteouts; and caches what doesn't. What differs is *pinned*, with all directories above it; the rest
//! may be forgotten at any time.
//!
//! ```text
//! directory ── "a" ── node, pinned: inode of the tmpfs
//!           ── "b" ── whiteout
//!           ── "c" ── node: cached, until the host is asked again
//!           ── any other name: the lower layer's, if it lies there (else the directory is opaque)
//! ```
//!
//! A node keeps its place in the lower layer when it moves, so a rename copies no content, not even of directories
//! (the overlay of Linux gives EXDEV there by default). `stat` says device and number of the lower file, before and after the
//! copy: like that they agree with `getdents`, with what is open and with locks. As on Linux, who has a file open
//! for reading goes on reading what it was before the copy, and other hard links of the lower layer keep the old content.
//!
//! Nothing is ever written to the host: the mount is read-only there, too.
//!
//! Locks: [`Overlay::tree`] while entries change, tables of entries inside of it; neither is held across a request.

mod copy_up;
mod listing;
mod lower;
mod names;
mod node;
pub mod paths;
#[cfg(test)]
mod tests;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashMap;
use spin::{Mutex, Once};

use self::lower::Lower;
use super::fd::PositionLock;
use super::file::Stat;
use super::flags::{S_IFMT, is_dir};
use super::mount::Dir;
use super::node::Node;
use super::read_cache::believed_until;
use super::tmpfs::{Inode, Tmpfs};
use crate::arch;
use crate::errno::{Errno, SysResult};

/// First number of files that are not of the lower layer. No file system of Linux gets that far by counting.
const OWN_NUMBERS: u64 = 1 << 56;
/// Most entries cached of the lower layer; beyond that all are forgotten.
const CACHED_MAX: usize = 16384;

/// Whether there is any.
static EXIST: AtomicBool = AtomicBool::new(false);

/// Whether there is any overlay.
#[must_use]
pub fn exist() -> bool {
    EXIST.load(Ordering::Relaxed)
}

/// A file system.
pub struct Overlay {
    upper: Arc<Tmpfs>,
    /// Device number of the lower layer's root, which all files say that they are on.
    device: u64,
    next: AtomicU64,
    /// Held while entries change.
    tree: Mutex<()>,
    /// Entries cached of the lower layer, about.
    cached: AtomicUsize,
    root: Once<Arc<OverlayNode>>,
}

/// What the host said of a file of the lower layer.
#[derive(Debug, Clone, Copy)]
struct Known {
    stat: Stat,
    /// Until when that is believed, ticks.
    until: u64,
}

/// Where an entry is: the directory and the name.
type Home = Option<(Weak<OverlayNode>, Vec<u8>)>;

/// A file or directory.
pub struct OverlayNode {
    this: Weak<OverlayNode>,
    fs: Arc<Overlay>,
    /// Its place in the lower layer. A directory without one is opaque.
    lower: Option<Lower>,
    known: Mutex<Known>,
    /// Its attributes, and content unless it is a directory, once they are its own.
    upper: Once<Arc<Inode>>,
    /// Held while it is copied.
    copying: PositionLock,
    home: Mutex<Home>,
    /// It, or something below it, differs from the lower layer: the entry must not be forgotten.
    pinned: AtomicBool,
    /// Its last name was taken away.
    removed: AtomicBool,
    entries: Mutex<HashMap<Vec<u8>, Entry>>,
    /// Where it leads, if it is a symbolic link of the lower layer.
    target: Once<Vec<u8>>,
}

/// What a directory's table says of a name.
enum Entry {
    /// It is there. `covers`: the lower layer has, or may have, the name, too.
    Node { node: Arc<OverlayNode>, covers: bool },
    /// It is not there, whatever the lower layer has.
    Whiteout,
    /// The lower layer does not have it: so the host said, to be believed until then (ticks).
    Absent(u64),
}

impl Overlay {
    /// The host's directory `lower` with changes in memory, at most `limit` bytes.
    ///
    /// # Errors
    /// What the host reports of the directory.
    pub fn new(lower: Dir, limit: u64) -> SysResult<Arc<Self>> {
        let lower = Lower::root(lower);
        let stat = lower.attributes()?;
        if !is_dir(stat.mode) {
            return Err(Errno::ENOTDIR);
        }
        let fs = Arc::new(Self {
            upper: Tmpfs::new(limit, 0o755),
            device: stat.dev,
            next: AtomicU64::new(OWN_NUMBERS),
            tree: Mutex::new(()),
            cached: AtomicUsize::new(0),
            root: Once::new(),
        });
        let root = OverlayNode::of_lower(&fs, lower, stat, None);
        root.pinned.store(true, Ordering::Release);
        fs.root.call_once(|| root);
        EXIST.store(true, Ordering::Relaxed);
        Ok(fs)
    }

    /// Its root directory.
    ///
    /// # Panics
    /// Never: it is there from the start.
    #[must_use]
    pub fn root(&self) -> Arc<dyn Node> {
        self.root.get().expect("set by new").clone()
    }

    fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts an entry that is cached; forgets those there are when they become too many.
    fn count_cached(&self) {
        if self.cached.fetch_add(1, Ordering::Relaxed) >= CACHED_MAX {
            self.forget();
        }
    }

    /// Forgets what is cached of the lower layer. What is in use stays.
    fn forget(&self) {
        self.cached.store(0, Ordering::Relaxed);
        paths::changed();
        let mut directories: Vec<Arc<OverlayNode>> = self.root.get().cloned().into_iter().collect();
        while let Some(directory) = directories.pop() {
            let mut gone = Vec::new();
            {
                let mut entries = directory.entries.lock();
                entries.retain(|_, entry| match entry {
                    Entry::Absent(_) => false,
                    Entry::Whiteout => true,
                    Entry::Node { node, .. } => {
                        let stays = node.is_pinned() || Arc::strong_count(node) > 1;
                        if stays {
                            node.known.lock().until = 0;
                            directories.push(node.clone());
                        } else {
                            gone.push(node.clone());
                        }
                        stays
                    }
                });
            }
            drop(gone); // closing a descriptor may park: not under the lock
        }
    }
}

impl OverlayNode {
    /// Of the lower layer, with these attributes.
    fn of_lower(fs: &Arc<Overlay>, lower: Lower, stat: Stat, home: Home) -> Arc<Self> {
        let until = believed_until();
        Self::with(fs, Some(lower), Known { stat, until }, Once::new(), home)
    }

    /// Of this inode alone.
    fn of_upper(fs: &Arc<Overlay>, inode: Arc<Inode>, home: Home) -> SysResult<Arc<Self>> {
        let stat = inode.stat()?;
        let node = Self::with(
            fs,
            None,
            Known {
                stat,
                until: u64::MAX,
            },
            Once::initialized(inode),
            home,
        );
        node.pinned.store(true, Ordering::Release);
        Ok(node)
    }

    fn with(
        fs: &Arc<Overlay>,
        lower: Option<Lower>,
        known: Known,
        upper: Once<Arc<Inode>>,
        home: Home,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            fs: fs.clone(),
            lower,
            known: Mutex::new(known),
            upper,
            copying: PositionLock::default(),
            home: Mutex::new(home),
            pinned: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            entries: Mutex::new(HashMap::new()),
            target: Once::new(),
        })
    }

    /// The node of this file system behind `node`.
    fn of_node(node: &Arc<dyn Node>) -> SysResult<&Self> {
        node.as_any().downcast_ref::<Self>().ok_or(Errno::EXDEV)
    }

    fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Acquire)
    }

    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Type bits of its mode. They never change.
    fn kind(&self) -> u32 {
        self.known.lock().stat.mode & S_IFMT
    }

    fn is_directory(&self) -> bool {
        is_dir(self.kind())
    }

    /// Whether the entry that has it needs no look at the host. Directories are looked at when they are asked about
    /// themselves: what is looked up in them goes to the host by its whole path anyway.
    fn is_settled(&self) -> bool {
        self.is_pinned() || {
            let known = self.known.lock();
            is_dir(known.stat.mode) || arch::ticks() < known.until
        }
    }

    /// Whether these attributes are of the same file of the lower layer.
    fn is_same(&self, stat: &Stat) -> bool {
        let known = self.known.lock();
        (known.stat.dev, known.stat.ino, known.stat.mode & S_IFMT) == (stat.dev, stat.ino, stat.mode & S_IFMT)
    }

    /// Takes over what the host said, unless it is of before what is known.
    fn learn(&self, stat: Stat, until: u64) {
        let mut known = self.known.lock();
        if until >= known.until {
            *known = Known { stat, until };
        }
    }

    /// Attributes in the lower layer, as of a moment ago.
    ///
    /// ESTALE when the host has something of another kind there by now.
    fn lower_stat(&self) -> SysResult<Stat> {
        let known = *self.known.lock();
        let Some(lower) = self.lower.as_ref().filter(|_| arch::ticks() >= known.until) else {
            return Ok(known.stat);
        };
        let until = believed_until();
        match lower.attributes() {
            Ok(stat) if stat.mode & S_IFMT == known.stat.mode & S_IFMT => {
                // Its number stays, once somebody may know it by that.
                let stat = if self.is_pinned() {
                    Stat {
                        dev: known.stat.dev,
                        ino: known.stat.ino,
                        ..stat
                    }
                } else {
                    stat
                };
                self.learn(stat, until);
                Ok(stat)
            }
            // Somebody has it open that the host has removed since.
            Err(Errno::ENOENT) if self.is_removed() => Ok(known.stat),
            Ok(_) | Err(Errno::ENOENT | Errno::ESTALE) => Err(self.fs.stale()),
            Err(e) => Err(e),
        }
    }

    /// Pins its entry, and those of the directories above.
    fn pin(&self) {
        let mut node = self.this.upgrade();
        while let Some(this) = node {
            if this.pinned.swap(true, Ordering::AcqRel) {
                return;
            }
            let home = this.home.lock().clone();
            let Some((directory, name)) = home.and_then(|(d, name)| Some((d.upgrade()?, name))) else {
                return;
            };
            directory.entries.lock().entry(name).or_insert(Entry::Node {
                node: this,
                covers: true,
            });
            node = Some(directory);
        }
    }
}

impl Overlay {
    /// What was cached is not what the host has any more: the look-up is to be done again, from the host.
    fn stale(&self) -> Errno {
        self.forget();
        Errno::ESTALE
    }
}
