//! A protected volume: made, opened, made durable. What is in it: [`crate::names`], [`crate::data`],
//! [`crate::attributes`].
//!
//! Nothing locks here: every operation takes `&mut self`, reads too, as they fill the cache. A caller with several
//! threads puts a lock around it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use hashbrown::{HashMap, HashSet};

use crate::anchor::{Anchor, Mark, judge};
use crate::block::{BLOCK, BlockId, Fork, Pointer, array};
use crate::engine::{Engine, Need, Parts};
use crate::error::VolumeError;
use crate::inode::{DIRECTORY, Ino, Inode, Time};
use crate::keys::{Fresh, KeyRing, VolumeId, VolumeKey, Wide};
use crate::store::{Store, StoreError};
use crate::superblock::{self, Found, MAX_BLOCKS, Root, SUPERBLOCK, TreeRoot};
use crate::walk::{Visitor, Walk};
use crate::weakened::{Protection, without};

/// How a volume is opened.
pub struct Options {
    /// Bytes of decrypted blocks that are kept in memory. At least 256 KiB are.
    pub cache_bytes: usize,
    /// The time that goes into inodes.
    pub clock: fn() -> Time,
    /// The volume that is expected; `None` for any that the key opens.
    pub expected: Option<VolumeId>,
    /// What a trusted party saw last of it.
    pub anchor: Box<dyn Anchor + Send>,
    /// Random bytes, new for this opening.
    pub fresh: Fresh,
    /// Whose the wide vector registers are.
    pub wide: Wide,
}

/// What a volume is made with.
#[derive(Debug, Clone, Copy)]
pub struct NewVolume {
    /// The container grows up to so many bytes.
    pub limit: u64,
    /// Permissions of the root directory.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// An open volume.
#[derive(Debug)]
pub struct Volume<S> {
    pub(crate) engine: Engine<S>,
    pub(crate) clock: fn() -> Time,
    /// How often an inode is open.
    pub(crate) opened: HashMap<Ino, u32>,
    /// Inode numbers below the end that are free.
    pub(crate) free_inodes: Vec<u64>,
    /// Inodes that changed since the last commit that was asked for.
    pub(crate) unsynced: HashSet<Ino>,
}

/// What a volume has room for, in blocks of 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Blocks that it may have at most.
    pub limit: u64,
    /// Blocks that are free, or may be had.
    pub free: u64,
    /// Inodes that were ever used.
    pub inodes: u64,
    /// Of these, free ones.
    pub free_inodes: u64,
}

impl<S: Store> Volume<S> {
    /// Makes a volume. What was in the container is gone.
    ///
    /// # Errors
    /// [`VolumeError`]; there is then no volume.
    pub fn create(
        mut store: S,
        key: VolumeKey,
        new: &NewVolume,
        options: Options,
    ) -> Result<Self, VolumeError> {
        let blocks = 64;
        let limit = (new.limit / BLOCK as u64).min(MAX_BLOCKS);
        if limit < 2 * blocks {
            return Err(VolumeError::Invalid("a volume has at least 512 KiB"));
        }
        let emptied = store
            .set_len(0)
            .and_then(|()| store.set_len(blocks * BLOCK as u64));
        emptied.map_err(VolumeError::store("making the container"))?;
        let volume = VolumeId(array(&options.fresh.part("cloak volume id")[..16]));
        let root = Root {
            volume,
            counter: 0,
            epoch: 0,
            before: [0; 32],
            inodes: TreeRoot::EMPTY,
            inode_end: 1,
            blocks,
            limit,
            name_key: options.fresh.part("cloak volume names"),
        };
        let mut own = Self::start(store, key, root, [0; 32], options);
        own.change(Need::Adding, 8, |volume| {
            let root = volume.new_inode(DIRECTORY | new.mode & 0o7777, new.uid, new.gid)?;
            let ino = volume.take_inode();
            debug_assert!(ino == Ino::ROOT, "the first inode is the root");
            let parent = Ino::ROOT.0;
            volume.engine.put_inode(
                ino,
                &Inode {
                    parent,
                    links: 2,
                    ..root
                },
            )
        })?;
        own.sync_all()?;
        Ok(own)
    }

    /// A volume at a root that is nowhere yet; the first commit writes it.
    pub(crate) fn start(store: S, key: VolumeKey, root: Root, before: [u8; 32], options: Options) -> Self {
        let mark = Mark {
            volume: root.volume,
            counter: root.counter,
            root: before,
        };
        let parts = Parts {
            key_check: key.check_value(&root.volume),
            ring: KeyRing::new(key, root.volume, options.wide),
            store,
            found: Found { root, mark },
            anchor: options.anchor,
            anchor_owed: false,
            fresh: options.fresh,
            cache_blocks: options.cache_bytes / BLOCK,
            writable: true,
        };
        let mut own = Self::of(Engine::new(parts), options.clock);
        own.engine.begin_first_session();
        own
    }

    fn of(engine: Engine<S>, clock: fn() -> Time) -> Self {
        Self {
            engine,
            clock,
            opened: HashMap::new(),
            free_inodes: Vec::new(),
            unsynced: HashSet::new(),
        }
    }

    /// Opens a volume. Reads all nodes and inodes, and checks them, to learn which blocks are free; removes what was
    /// unlinked but open when it was last in use.
    ///
    /// # Errors
    /// [`VolumeError`]: what is wrong with the container, the key or the anchor.
    pub fn open(store: S, key: VolumeKey, options: Options) -> Result<Self, VolumeError> {
        let mut own = Self::open_unscanned(store, key, options, true)?;
        let orphans = own.scan()?;
        for ino in orphans {
            own.change(Need::Freeing, 0, |volume| volume.remove_inode(ino))?;
        }
        Ok(own)
    }

    /// Opens a volume for reading: nothing is written to the container or to the anchor, and nothing is read but
    /// the superblocks.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn open_read_only(store: S, key: VolumeKey, options: Options) -> Result<Self, VolumeError> {
        Self::open_unscanned(store, key, options, false)
    }

    fn open_unscanned(
        mut store: S,
        key: VolumeKey,
        mut options: Options,
        writable: bool,
    ) -> Result<Self, VolumeError> {
        let slots = read_slots(&mut store)?;
        let (ring, key_check, found) = superblock::newest(key, options.expected, slots, options.wide)?;
        let seen = options.anchor.last()?;
        if let Some(seen) = seen.as_ref().filter(|_| !without(Protection::Anchor)) {
            judge(seen, &found.mark, &found.root.before)?;
        }
        let parts = Parts {
            store,
            ring,
            key_check,
            anchor_owed: seen.is_some_and(|seen| seen != found.mark),
            found,
            anchor: options.anchor,
            fresh: options.fresh,
            cache_blocks: options.cache_bytes / BLOCK,
            writable,
        };
        Ok(Self::of(Engine::new(parts), options.clock))
    }

    /// Learns which blocks and inodes are in use; gives the inodes without names.
    fn scan(&mut self) -> Result<Vec<Ino>, VolumeError> {
        let Engine {
            store,
            ring,
            root,
            space,
            ..
        } = &mut self.engine;
        let mut found = InUse {
            take: |block| space.take(block),
            orphans: Vec::new(),
            free: &mut self.free_inodes,
        };
        Walk { store, ring, root }.all(&mut found)?;
        let orphans = found.orphans;
        // Lower numbers are given first.
        self.free_inodes.reverse();
        Ok(orphans)
    }

    /// The root directory.
    #[must_use]
    pub const fn root(&self) -> Ino {
        Ino::ROOT
    }

    /// Which volume this is.
    #[must_use]
    pub const fn id(&self) -> VolumeId {
        self.engine.root.volume
    }

    /// The root that is durable.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        *self.engine.mark()
    }

    /// What there is room for.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let root = &self.engine.root;
        let coming = self.engine.cache.dirty() as u64;
        Usage {
            limit: root.limit,
            free: (self.engine.space.free() + root.limit - root.blocks.min(root.limit))
                .saturating_sub(coming),
            inodes: root.inode_end - 1,
            free_inodes: self.free_inodes.len() as u64,
        }
    }

    /// Whether there is something that a commit would make durable, and may.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.engine.is_changed() && self.engine.may_write().is_ok()
    }

    /// Returns when everything that was done is durable, and the anchor knows.
    ///
    /// # Errors
    /// [`VolumeError::Store`], after which only reading is possible; [`VolumeError::Anchor`].
    pub fn sync_all(&mut self) -> Result<(), VolumeError> {
        self.engine.commit()?;
        self.unsynced.clear();
        Ok(())
    }

    /// Returns when everything that was done to an inode is durable, with all that was done before. One commit
    /// serves all: if another sync has come first there is nothing left to do.
    ///
    /// # Errors
    /// As [`Volume::sync_all`].
    pub fn sync(&mut self, ino: Ino) -> Result<(), VolumeError> {
        self.engine.inode(ino)?;
        if self.unsynced.contains(&ino) {
            self.sync_all()?;
        }
        Ok(())
    }

    /// Makes everything durable and gives the container back. Files that are still open and have no name are
    /// removed when the volume is opened next.
    ///
    /// # Errors
    /// As [`Volume::sync_all`].
    pub fn close(mut self) -> Result<S, VolumeError> {
        if self.engine.is_changed() {
            self.sync_all()?;
        }
        Ok(self.engine.into_store())
    }

    /// Gives the container back as it is. What was not synced is lost.
    pub fn abandon(self) -> S {
        self.engine.into_store()
    }

    /// Runs a change that needs so many blocks of data. A change that fails half-way poisons the volume: its last
    /// committed state is whole, what is in memory may not be.
    pub(crate) fn change<R>(
        &mut self,
        need: Need,
        blocks: u64,
        change: impl FnOnce(&mut Self) -> Result<R, VolumeError>,
    ) -> Result<R, VolumeError> {
        self.engine.begin(need, blocks)?;
        let result = change(self);
        if let Err(
            VolumeError::Tampered(_)
            | VolumeError::Inconsistent { .. }
            | VolumeError::Store { .. }
            | VolumeError::NoSpace
            | VolumeError::Exhausted,
        ) = &result
        {
            self.engine.poison();
        }
        result
    }

    /// An inode that is not in the table yet.
    pub(crate) fn new_inode(&mut self, mode: u32, uid: u32, gid: u32) -> Result<Inode, VolumeError> {
        let now = (self.clock)();
        let number = self
            .free_inodes
            .last()
            .copied()
            .unwrap_or(self.engine.root.inode_end);
        let generation = self.engine.inode_slot(Ino(number))?.generation.wrapping_add(1);
        Ok(Inode {
            mode,
            uid,
            gid,
            generation,
            links: 1,
            accessed: now,
            modified: now,
            changed: now,
            created: now,
            ..Inode::FREE
        })
    }

    /// The number that [`Volume::new_inode`] looked at.
    pub(crate) fn take_inode(&mut self) -> Ino {
        Ino(self.free_inodes.pop().unwrap_or_else(|| {
            self.engine.root.inode_end += 1;
            self.engine.root.inode_end - 1
        }))
    }

    /// Frees an inode and all that is in it.
    pub(crate) fn remove_inode(&mut self, ino: Ino) -> Result<(), VolumeError> {
        self.engine.free_range(ino, Fork::Data, 0, u64::MAX)?;
        self.engine.free_range(ino, Fork::Attributes, 0, u64::MAX)?;
        let generation = self.engine.inode_slot(ino)?.generation;
        self.engine.put_inode(
            ino,
            &Inode {
                generation,
                ..Inode::FREE
            },
        )?;
        self.free_inodes.push(ino.0);
        self.unsynced.remove(&ino);
        Ok(())
    }
}

/// Reads both slots; one that can't be read counts as empty.
pub(crate) fn read_slots<S: Store>(store: &mut S) -> Result<[Option<[u8; SUPERBLOCK]>; 2], VolumeError> {
    let mut slots = [None; 2];
    for (slot, out) in slots.iter_mut().enumerate() {
        let mut bytes = [0; SUPERBLOCK];
        match store.read_at((slot * BLOCK) as u64, &mut bytes) {
            Ok(()) => *out = Some(bytes),
            Err(StoreError::End { .. }) => {}
            Err(source) => return Err(VolumeError::store("reading a superblock")(source)),
        }
    }
    Ok(slots)
}

/// For opening: everything has to be good.
struct InUse<'a, F> {
    take: F,
    orphans: Vec<Ino>,
    free: &'a mut Vec<u64>,
}

impl<F: FnMut(u64) -> bool> Visitor for InUse<'_, F> {
    fn block(&mut self, id: &BlockId, pointer: &Pointer) -> Result<bool, VolumeError> {
        if (self.take)(pointer.address) {
            return Ok(true);
        }
        Err(VolumeError::Inconsistent {
            block: *id,
            what: "another block lies in its place",
        })
    }
    fn failed(&mut self, _: &BlockId, error: VolumeError) -> Result<(), VolumeError> {
        Err(error)
    }
    fn reads_data(&self) -> bool {
        false
    }
    fn inode(&mut self, ino: Ino, inode: &Inode) -> Result<(), VolumeError> {
        if inode.links == 0 {
            self.orphans.push(ino);
        }
        Ok(())
    }
    fn inode_done(&mut self, _: Ino, _: &Inode) -> Result<(), VolumeError> {
        Ok(())
    }
    fn free_inode(&mut self, ino: Ino) {
        self.free.push(ino.0);
    }
}
