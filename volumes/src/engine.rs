//! The block layer: blocks by logical name, copy-on-write, and commits.
//!
//! ```text
//!   touch (block and all its ancestors are dirty) ──▶ write_back: sealed, to free places; parents point there
//!                                                        │ all dirty blocks, children first
//!     flush ◀── superblock, the older slot ◀── flush ◀───┘
//!       └──▶ anchor ──▶ what the commit before pointed to is free
//! ```
//!
//! Nothing that the last durable superblock leads to is ever written over. What was written since ("fresh") is not
//! led to by it, and may be.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use hashbrown::HashSet;

use crate::anchor::{Anchor, Mark};
use crate::block::{BLOCK, BlockId, Page, Pointer, additional_data, is_node};
use crate::cache::Cache;
use crate::error::{Tampering, VolumeError};
use crate::keys::{Ciphers, Fresh, KeyRing, SEQUENCE_END, Sequence, SessionId};
use crate::space::Space;
use crate::store::{Store, StoreError};
use crate::superblock::{self, FIRST_BLOCK, Found, Root, TreeRoot, slot_of};
use crate::weakened::{Protection, without};

/// Bytes that go to the store in one write, and come from it in one read. What a request of the libos carries: larger ones
/// would be cut, and of these one is written while the next is sealed.
pub const RUN: usize = 32 * BLOCK;
/// Bytes that one call reads or writes at least where they go past the cache.
const PASSING: usize = 16 * BLOCK;
/// Blocks that only operations which free space may take.
const KEPT_FOR_FREEING: u64 = 32;
/// The container grows by at least this many blocks.
const GROWTH: u64 = 64;

/// What space is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// New names or content.
    Adding,
    /// Removal, which must work on a full volume.
    Freeing,
}

/// A dirty block and its new place.
struct Move {
    id: BlockId,
    tree: TreeRoot,
    /// Its tag is not known before it is sealed.
    to: Pointer,
}

/// A volume's blocks.
pub struct Engine<S> {
    pub(crate) store: S,
    pub(crate) ring: KeyRing,
    key_check: [u8; 16],
    /// As it will be committed.
    pub(crate) root: Root,
    /// As it is durable.
    durable: Root,
    mark: Mark,
    anchor: Box<dyn Anchor + Send>,
    anchor_owed: bool,
    random: [u8; 12],
    session: Option<(SessionId, Sequence)>,
    pub(crate) space: Space,
    pub(crate) cache: Cache,
    fresh: HashSet<u64>,
    pending: Vec<u64>,
    /// Room for [`RUN`] bytes that go to the store with one write, those that are there, and their place.
    staged: Vec<u8>,
    staged_len: usize,
    staged_at: u64,
    /// Of [`Self::write_back`], kept for the next one.
    moves: Vec<Move>,
    ids: Vec<BlockId>,
    /// Ciphertext of blocks that are read together.
    incoming: Vec<u8>,
    /// Of who looks for such blocks, kept for the next time.
    pub(crate) run: Vec<(BlockId, Pointer)>,
    writable: bool,
    poisoned: bool,
}

impl<S> core::fmt::Debug for Engine<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Engine({} at {})", self.root.volume, self.root.counter)
    }
}

/// What an engine is made of.
pub struct Parts<S> {
    /// The container.
    pub store: S,
    /// Keys.
    pub ring: KeyRing,
    /// In clear in each superblock.
    pub key_check: [u8; 16],
    /// The superblock that counts.
    pub found: Found,
    /// Anchor; has judged the superblock.
    pub anchor: Box<dyn Anchor + Send>,
    /// Whether the anchor is one behind.
    pub anchor_owed: bool,
    /// For this session's id.
    pub fresh: Fresh,
    /// Blocks kept in memory.
    pub cache_blocks: usize,
    /// Whether it may be changed.
    pub writable: bool,
}

impl<S: Store> Engine<S> {
    /// An engine that knows nothing yet of which blocks are in use.
    pub fn new(parts: Parts<S>) -> Self {
        let Found { root, mark } = parts.found;
        Self {
            store: parts.store,
            ring: parts.ring,
            key_check: parts.key_check,
            root,
            durable: root,
            mark,
            anchor: parts.anchor,
            anchor_owed: parts.anchor_owed,
            random: crate::block::array(&parts.fresh.part("cloak volume session")[..12]),
            session: None,
            space: Space::new(root.blocks),
            cache: Cache::new(parts.cache_blocks),
            fresh: HashSet::new(),
            pending: Vec::new(),
            staged: Vec::new(),
            staged_len: 0,
            staged_at: 0,
            moves: Vec::new(),
            ids: Vec::new(),
            incoming: Vec::new(),
            run: Vec::new(),
            writable: parts.writable,
            poisoned: false,
        }
    }

    /// The last durable root.
    pub const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Whether something is not durable yet.
    pub fn is_changed(&self) -> bool {
        self.cache.dirty() > 0
            || !self.fresh.is_empty()
            || !self.pending.is_empty()
            || self.root != self.durable
    }

    /// Before a change: may it be, and is there room for `blocks` more blocks of data and what leads to them?
    ///
    /// # Errors
    /// [`VolumeError::ReadOnly`], [`VolumeError::Poisoned`], [`VolumeError::NoSpace`], [`VolumeError::Exhausted`].
    pub fn begin(&mut self, need: Need, blocks: u64) -> Result<(), VolumeError> {
        self.may_write()?;
        if self
            .session
            .as_ref()
            .is_some_and(|(_, sequence)| !sequence.has_room())
        {
            return Err(VolumeError::Exhausted);
        }
        if self.cache.dirty() > self.cache.dirty_limit() {
            let low = self.cache.dirty_limit() / 2;
            while self.cache.dirty() > low && self.write_back()? {}
            self.emit()?;
        } else if self.cache.dirty_data() > self.cache.dirty_data_limit() {
            // Data comes first in the order of flushing.
            let low = self.cache.dirty_data_limit() / 2;
            while self.cache.dirty_data() > low && self.write_back()? {}
            self.emit()?;
        }
        let room = match need {
            Need::Adding => 16 + KEPT_FOR_FREEING,
            Need::Freeing => 16,
        };
        let needed = |cache: &Cache| cache.dirty() as u64 + blocks + blocks / 64 + room;
        if self.grow_to(needed(&self.cache)) {
            return Ok(());
        }
        // What the last commit still holds is given free by the next one.
        if !self.pending.is_empty() {
            self.commit()?;
        }
        if self.grow_to(needed(&self.cache)) {
            Ok(())
        } else {
            Err(VolumeError::NoSpace)
        }
    }

    /// Whether `free` blocks are free, or could be made.
    fn grow_to(&mut self, free: u64) -> bool {
        if self.space.free() >= free {
            return true;
        }
        let blocks = self.space.blocks();
        let step = (free - self.space.free()).max((blocks / 8).clamp(GROWTH, 1 << 14));
        let grown = (blocks + step).min(self.root.limit);
        if self.space.free() + grown.saturating_sub(blocks) < free {
            return false;
        }
        if self.store.set_len(grown * BLOCK as u64).is_err() {
            return false;
        }
        self.space.grow(grown);
        self.root.blocks = grown;
        true
    }

    /// Whether changes are accepted.
    pub(crate) fn may_write(&self) -> Result<(), VolumeError> {
        if !self.writable {
            return Err(VolumeError::ReadOnly);
        }
        if self.poisoned && !without(Protection::Poison) {
            Err(VolumeError::Poisoned)
        } else {
            Ok(())
        }
    }

    /// Makes everything durable. Does nothing if everything is.
    ///
    /// # Errors
    /// [`VolumeError::Store`]; after one of a write or flush all changes are refused ([`VolumeError::Poisoned`]).
    /// [`VolumeError::Anchor`]: durable, but the anchor does not know; it is told with the next commit.
    pub fn commit(&mut self) -> Result<(), VolumeError> {
        self.may_write()?;
        if self.is_changed() {
            while self.write_back()? {}
            self.emit()?;
            self.durably("flushing blocks", Store::flush)?;
            let (session, sequence) = self.sequence()?;
            self.write_superblock(self.root, session, sequence)?;
            for address in mem::take(&mut self.pending) {
                self.space.release(address);
            }
            self.fresh.clear();
        }
        self.tell_anchor()
    }

    fn tell_anchor(&mut self) -> Result<(), VolumeError> {
        if self.anchor_owed {
            self.anchor.advance(&self.mark)?;
            self.anchor_owed = false;
        }
        Ok(())
    }

    /// Writes `root` as the next superblock and flushes.
    fn write_superblock(&mut self, root: Root, session: SessionId, sequence: u64) -> Result<(), VolumeError> {
        // A root that the anchor never heard of must not get a second successor that it never heard of.
        self.tell_anchor()?;
        let root = Root {
            counter: root.counter + 1,
            before: self.mark.root,
            ..root
        };
        let (bytes, mark) = superblock::seal(&mut self.ring, &self.key_check, &session, sequence, &root);
        let offset = slot_of(root.counter) * BLOCK as u64;
        self.durably("writing a superblock", |store| store.write_at(offset, &bytes))?;
        self.durably("flushing a superblock", Store::flush)?;
        self.root.counter = root.counter;
        self.root.before = root.before;
        self.root.epoch = root.epoch;
        self.durable = root;
        self.mark = mark;
        self.anchor_owed = true;
        Ok(())
    }

    /// A change of the store, after whose failure nothing is known.
    fn durably(
        &mut self,
        step: &'static str,
        change: impl FnOnce(&mut S) -> Result<(), StoreError>,
    ) -> Result<(), VolumeError> {
        change(&mut self.store).map_err(|source| {
            self.poisoned = true;
            VolumeError::Store { step, source }
        })
    }

    /// The next number of this session; begins it if there is none.
    fn sequence(&mut self) -> Result<(SessionId, u64), VolumeError> {
        if self.session.is_none() {
            self.begin_session()?;
        }
        let (id, sequence) = self.session.as_mut().expect("it was begun above");
        Ok((*id, sequence.take()?))
    }

    /// Makes a larger epoch durable before anything is sealed with it.
    fn begin_session(&mut self) -> Result<(), VolumeError> {
        let epoch = self
            .durable
            .epoch
            .checked_add(1)
            .ok_or(VolumeError::EpochsExhausted)?;
        let id = SessionId::new(epoch, self.random);
        let mut sequence = Sequence::new(SEQUENCE_END);
        let first = sequence.take()?;
        self.write_superblock(
            Root {
                epoch,
                ..self.durable
            },
            id,
            first,
        )?;
        self.session = Some((id, sequence));
        Ok(())
    }

    /// Seals the first dirty blocks to their new places and tells their parents. Says whether there was one.
    pub fn write_back(&mut self) -> Result<bool, VolumeError> {
        let mut moves = mem::take(&mut self.moves);
        let planned = self.plan(&mut moves);
        let mut done = Ok(());
        let mut rest = &moves[..];
        while let (Ok(()), false) = (&done, rest.is_empty()) {
            let (run, more) = rest.split_at(self.room_in_stage(rest)?);
            done = self.seal_run(run);
            rest = more;
        }
        let any = !moves.is_empty();
        moves.clear();
        self.moves = moves;
        done.and(planned).map(|()| any)
    }

    /// Finds places for the first dirty blocks, as many as go to the store with one write. All are of one level, so none of
    /// them points to another.
    fn plan(&mut self, moves: &mut Vec<Move>) -> Result<(), VolumeError> {
        let mut dirty = mem::take(&mut self.ids);
        self.cache.first_dirty(RUN / BLOCK, &mut dirty);
        let result = dirty.iter().try_for_each(|id| {
            moves.push(self.plan_one(id)?);
            Ok(())
        });
        self.ids = dirty;
        result
    }

    fn plan_one(&mut self, id: &BlockId) -> Result<Move, VolumeError> {
        let (session, sequence) = self.sequence()?;
        let tree = self.tree(id)?;
        let old = self.pointer_in_tree(id, &tree)?.address;
        let address = if self.fresh.contains(&old) {
            old
        } else {
            let address = self.space.allocate().ok_or(VolumeError::NoSpace)?;
            self.fresh.insert(address);
            if old != Pointer::HOLE.address {
                self.pending.push(old);
            }
            address
        };
        Ok(Move {
            id: *id,
            tree,
            to: Pointer {
                address,
                session,
                sequence,
                tag: [0; 16],
            },
        })
    }

    /// How many of `moves` go behind what is staged, which is emitted where the first one does not.
    fn room_in_stage(&mut self, moves: &[Move]) -> Result<usize, VolumeError> {
        let Some(first) = moves.first() else {
            return Ok(0);
        };
        let next = self.staged_at + (self.staged_len / BLOCK) as u64;
        if self.staged_len == RUN || (self.staged_len > 0 && first.to.address != next) {
            self.emit()?;
        }
        if self.staged_len == 0 {
            self.staged_at = first.to.address;
        }
        let fits = (first.to.address..)
            .zip(moves)
            .take((RUN - self.staged_len) / BLOCK);
        Ok(fits.take_while(|(place, to)| *place == to.to.address).count())
    }

    /// Seals blocks behind others that go to the store with one write.
    fn seal_run(&mut self, moves: &[Move]) -> Result<(), VolumeError> {
        self.staged.resize(RUN, 0);
        let Self {
            ring,
            cache,
            staged,
            root,
            ..
        } = self;
        let to = &mut staged[self.staged_len..];
        let mut tags = [[0; 16]; RUN / BLOCK];
        ring.with(|ciphers| {
            for ((Move { id, to: pointer, .. }, sealed), tag) in
                moves.iter().zip(to.chunks_exact_mut(BLOCK)).zip(&mut tags)
            {
                let page = cache.get(id).expect("what is dirty is in the cache");
                let aad = additional_data(&root.volume, id, pointer.address, pointer.sequence);
                *tag = ciphers.seal(&pointer.session, pointer.sequence, &aad, page, sealed);
            }
        });
        self.staged_len += moves.len() * BLOCK;
        for (Move { id, tree, to }, tag) in moves.iter().zip(tags) {
            self.set_pointer(id, *tree, &Pointer { tag, ..*to })?;
            self.cache.clean(id);
        }
        Ok(())
    }

    /// Writes what is staged.
    pub fn emit(&mut self) -> Result<(), VolumeError> {
        if self.staged_len == 0 {
            return Ok(());
        }
        let staged = mem::take(&mut self.staged);
        let (offset, len) = (self.staged_at * BLOCK as u64, mem::take(&mut self.staged_len));
        let result = self.durably("writing blocks", |store| store.write_at(offset, &staged[..len]));
        self.staged = staged;
        result
    }

    /// A block is no longer needed. Its place is free now, or after the next commit if the last one led to it.
    pub fn free(&mut self, address: u64) {
        if self.fresh.remove(&address) {
            self.space.release(address);
        } else {
            self.pending.push(address);
        }
    }

    /// Whether many bytes of a file go past the cache: it can't hold the file, so what is read or written in a row would be
    /// gone when its turn comes again, and what others need with it.
    pub const fn passes(&self, size: u64, offset: u64, len: usize) -> bool {
        size > self.cache.bytes() && len >= PASSING && offset.is_multiple_of(BLOCK as u64)
    }

    /// Brings a block into the cache.
    pub fn load(&mut self, id: &BlockId, pointer: &Pointer) -> Result<(), VolumeError> {
        self.load_run(&[(*id, *pointer)])
    }

    /// Brings blocks that lie beside each other into the cache, with one read.
    pub fn load_run(&mut self, blocks: &[(BlockId, Pointer)]) -> Result<(), VolumeError> {
        self.bring(blocks, None)
    }

    /// The same past the cache, to where the caller wants them.
    pub fn pass_run(&mut self, blocks: &[(BlockId, Pointer)], to: &mut [Page]) -> Result<(), VolumeError> {
        self.bring(blocks, Some(to))
    }

    fn bring(
        &mut self,
        blocks: &[(BlockId, Pointer)],
        mut to: Option<&mut [Page]>,
    ) -> Result<(), VolumeError> {
        self.emit()?;
        match self.read_run(blocks, to.as_deref_mut()) {
            // What is on the OS side by now may be as it was written.
            Err(VolumeError::Tampered(_)) if self.store.forget() => self.read_run(blocks, to),
            result => result,
        }
    }

    fn read_run(
        &mut self,
        blocks: &[(BlockId, Pointer)],
        mut to: Option<&mut [Page]>,
    ) -> Result<(), VolumeError> {
        let Some((first_id, first)) = blocks.first() else {
            return Ok(());
        };
        let offset = self.place(first_id, first)?;
        let len = blocks.len() * BLOCK;
        if self.incoming.len() < len {
            self.incoming.resize(len, 0);
        }
        let Self {
            store,
            ring,
            cache,
            incoming,
            root,
            ..
        } = self;
        store
            .read_at(offset, &mut incoming[..len])
            .map_err(|error| unreadable(first_id, offset, error))?;
        ring.with(|ciphers| {
            let mut each = blocks.iter().zip(incoming.chunks_exact(BLOCK)).enumerate();
            each.try_for_each(|(at, ((id, pointer), sealed))| match &mut to {
                Some(pages) => unseal(ciphers, root, id, pointer, sealed, &mut pages[at]),
                None => {
                    let page = cache.insert(*id);
                    unseal(ciphers, root, id, pointer, sealed, page).inspect_err(|_| cache.remove(id))
                }
            })
        })
    }

    /// Byte offset of a block.
    pub fn place(&self, id: &BlockId, pointer: &Pointer) -> Result<u64, VolumeError> {
        if pointer.address < FIRST_BLOCK || pointer.address >= self.root.blocks {
            return Err(VolumeError::Inconsistent {
                block: *id,
                what: "its pointer leads out of the volume",
            });
        }
        Ok(pointer.offset())
    }

    /// Begins the first session of a new container, without a superblock for it: the first one that the container
    /// gets is that of its first commit, and until then it is no volume.
    pub fn begin_first_session(&mut self) {
        self.root.epoch = 1;
        self.session = Some((SessionId::new(1, self.random), Sequence::new(SEQUENCE_END)));
    }

    /// From now on changes are refused.
    pub const fn poison(&mut self) {
        self.poisoned = true;
    }

    /// Gives the store back, as the last commit left it.
    pub fn into_store(self) -> S {
        self.store
    }
}

/// Checks and decrypts a block.
pub fn unseal(
    ciphers: &mut Ciphers,
    root: &Root,
    id: &BlockId,
    pointer: &Pointer,
    sealed: &[u8],
    page: &mut Page,
) -> Result<(), VolumeError> {
    let aad = additional_data(&root.volume, id, pointer.address, pointer.sequence);
    if !ciphers.open(
        &pointer.session,
        pointer.sequence,
        &aad,
        sealed,
        page,
        &pointer.tag,
    ) {
        return Err(VolumeError::Tampered(Tampering::Block {
            block: *id,
            offset: pointer.offset(),
        }));
    }
    if id.level > 0 && !is_node(page, id.level) {
        return Err(VolumeError::Inconsistent {
            block: *id,
            what: "it is no node of its level",
        });
    }
    Ok(())
}

/// A container that ends too early was cut; any other failure is the store's.
pub fn unreadable(id: &BlockId, offset: u64, error: StoreError) -> VolumeError {
    match error {
        StoreError::End { .. } => VolumeError::Tampered(Tampering::Missing { block: *id, offset }),
        source => VolumeError::Store {
            step: "reading a block",
            source,
        },
    }
}
