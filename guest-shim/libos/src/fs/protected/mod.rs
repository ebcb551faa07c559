//! Protected volumes: file systems whose bytes the OS side keeps and can't read or change unnoticed.
//!
//! Sealing and checking is `cloak_volumes`'s, in this address space; the host carries the container's blocks. What
//! fails a check gives EIO and a line on standard error that says what and where; the program never has the bytes.
//!
//! | module | concept |
//! |---|---|
//! | this | a mounted volume, its lock |
//! | [`mod@open`] | from a record of the configuration to a mount |
//! | [`pending`] | volumes that wait for the root of their keys |
//! | [`store`], [`ahead`] | the container on the OS side |
//! | [`anchor`] | its last root, told to the monitor |
//! | [`node`], [`names`] | files and directories, and their names |
//! | [`content`] | what is in a file: by calls and by mappings |
//! | [`mod@file`] | open regular files |
//! | [`writeback`] | what is made durable without being asked for |
//! | [`ciphertext`] | what is seen of one without its key |
//! | [`errors`] | errors, and who is told |
//!
//! Locks: [`Protected::state`] parks, as what is done under it asks the host. Nothing is copied from or to the program
//! while it is held: that may fault, and the fault may need this very volume.

mod ahead;
mod anchor;
pub mod ciphertext;
mod content;
mod errors;
mod file;
mod names;
mod node;
pub mod open;
pub mod pending;
pub mod store;
#[cfg(test)]
mod tests;
pub mod writeback;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use cloak_volumes::{Ino, Volume, VolumeError};
use hashbrown::HashMap;
use spin::Mutex;

pub use open::{Record, mount};

#[cfg(test)]
pub(crate) use self::anchor::to_words as mark_words;

use self::node::Inode;
use self::store::Container;
use crate::errno::SysResult;
use crate::mem::pages::PageCache;
use crate::sched::Lock;

/// All that are mounted.
static MOUNTED: Mutex<Vec<Arc<Protected>>> = Mutex::new(Vec::new());

/// A mounted volume.
pub struct Protected {
    /// Where, for messages.
    path: Vec<u8>,
    device: u64,
    read_only: bool,
    state: Lock<State>,
    /// Inodes that nobody refers to any more, with their mapped pages: let go at the next occasion.
    gone: Mutex<Vec<(Ino, Option<Arc<PageCache>>)>>,
    /// Lines said about it.
    told: AtomicU32,
}

/// What the lock is around.
pub(super) struct State {
    volume: Volume<Container>,
    /// Inodes that somebody refers to.
    inodes: HashMap<Ino, Weak<Inode>>,
}

impl Protected {
    fn new(path: &[u8], device: u64, read_only: bool, volume: Volume<Container>) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_vec(),
            device,
            read_only,
            state: Lock::new(State {
                volume,
                inodes: HashMap::new(),
            }),
            gone: Mutex::new(Vec::new()),
            told: AtomicU32::new(0),
        })
    }

    /// Runs `work` with the volume; others wait meanwhile.
    fn with<R>(&self, work: impl FnOnce(&mut State) -> Result<R, VolumeError>) -> SysResult<R> {
        let (result, changed) = {
            let mut state = self.state.lock();
            self.let_go(&mut state);
            let result = work(&mut state);
            (result, state.volume.is_changed())
        };
        if changed {
            writeback::changed();
        }
        result.map_err(|error| self.explain(&error))
    }

    /// The inode of a number; there is one at a time, so that what is mapped or waits in it is shared by all.
    fn inode(self: &Arc<Self>, state: &mut State, ino: Ino) -> Result<Arc<Inode>, VolumeError> {
        if let Some(inode) = state.inodes.get(&ino).and_then(Weak::upgrade) {
            return Ok(inode);
        }
        let mode = state.volume.stat(ino)?.mode;
        // From here to its end it stays, also when it loses its names.
        state.volume.open_inode(ino)?;
        let inode = Inode::new(self.clone(), ino, mode);
        state.inodes.insert(ino, Arc::downgrade(&inode));
        Ok(inode)
    }

    /// An inode has no user any more. That may be found out where nothing may wait for this lock.
    fn forget(&self, ino: Ino, pages: Option<Arc<PageCache>>) {
        self.gone.lock().push((ino, pages));
        if let Some(mut state) = self.state.try_lock() {
            self.let_go(&mut state);
        }
    }

    fn let_go(&self, state: &mut State) {
        loop {
            let Some((ino, pages)) = self.gone.lock().pop() else {
                return;
            };
            let settled = match pages {
                Some(pages) => content::settle(&mut state.volume, ino, &pages, 0, u64::MAX),
                None => Ok(()),
            };
            let closed = settled.and(state.volume.close_inode(ino));
            if state
                .inodes
                .get(&ino)
                .is_some_and(|weak| weak.strong_count() == 0)
            {
                state.inodes.remove(&ino);
            }
            if let Err(error) = closed {
                // Nobody is left who could be given the error.
                self.explain(&error);
            }
        }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// EIO, ENOSPC.
    pub fn sync(&self) -> SysResult<()> {
        let mut open = Vec::new();
        self.with(|state| {
            open.extend(state.inodes.values().filter_map(Weak::upgrade));
            for inode in &open {
                inode.settle(state, 0, u64::MAX)?;
            }
            state.volume.sync_all()
        })
    }

    /// Whether some mapping may have written what the volume does not have yet.
    fn has_mapped_writes(&self) -> bool {
        let state = self.state.lock();
        let mut open = state.inodes.values().filter_map(Weak::upgrade);
        open.any(|inode| inode.pages().is_some_and(|pages| !pages.dirty().is_empty()))
    }

    /// What its usage is, in blocks and inodes.
    fn usage(&self) -> cloak_volumes::volume::Usage {
        self.state.lock().volume.usage()
    }
}

/// Makes everything in all protected volumes durable: at the end of the context, and `sync`.
///
/// # Errors
/// Of the first that failed; the others are tried all the same.
pub fn sync_all() -> SysResult<()> {
    let all = MOUNTED.lock().clone();
    let mut result = Ok(());
    // One that can't be written has nothing to write.
    for volume in all.iter().filter(|volume| !volume.read_only) {
        result = result.and(volume.sync());
    }
    result
}

/// Mounted volumes keep a device number of their own each.
/// Slots that hold what is read ahead, for tests that count all of them.
#[cfg(test)]
pub(crate) fn kept_slots() -> usize {
    ahead::kept_slots()
}

static DEVICES: AtomicU32 = AtomicU32::new(1);

fn new_device() -> u64 {
    // Major 0, apart from the minors of memory file systems, which count from 32.
    super::attributes::make_dev(0, 0x8_0000 + DEVICES.fetch_add(1, Ordering::Relaxed))
}
