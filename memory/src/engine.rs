//! The engine: seals pages, drops plaintext, brings pages back, knows what changed.
//!
//! [`Memory`] belongs to one context. It holds the keys and the [`PageTable`], and stands between [`Plaintext`]
//! memory and a [`Store`] on the OS side. All methods can be called from several threads; a block of 64 pages is
//! locked while one of its pages changes state, and the state is recorded last, after everything that it promises.
//!
//! Who uses it: reclamation (*seal*, *drop*, *bring back*), checkpoints and migration (*mark*, *seal*, *changed
//! since*), the OS view (*seal*), the pager ([`crate::pager`]), which serves the program's faults.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use zeroize::Zeroizing;

use crate::cipher::{CipherError, Label, PageKeys, Tag};
use crate::error::{MemoryError, Tampering};
use crate::page::{ContextId, PAGE_SIZE, Page, PageBytes, Version};
use crate::sides::{Access, Plaintext, Run, Store, StoreError};
use crate::state::{Action, Event, PageState, step};
use crate::table::{BlockGuard, PageTable};
use crate::version::VersionCounter;

/// Pages handled between two calls of the store: 128 KiB, which stays in the processor's caches.
pub(crate) const BATCH: usize = 32;

/// Pages for which another thread pays.
const PAGES_PER_THREAD: usize = 256;

/// Stands for a moment at which everything was known ([`Memory::mark`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

/// A page seen from both sides.
pub struct Look {
    /// Its state before.
    pub before: PageState,
    /// The version that it is sealed as now.
    pub version: Version,
    /// Tag of that sealing.
    pub tag: Tag,
    /// What the context sees: one page.
    pub plaintext: Zeroizing<Vec<PageBytes>>,
    /// What the OS side sees.
    pub ciphertext: Box<PageBytes>,
}

/// A context's memory.
#[derive(Debug)]
pub struct Memory<P, S> {
    keys: PageKeys,
    versions: VersionCounter,
    table: PageTable,
    marks: AtomicU64,
    plaintext: P,
    store: S,
}

impl<P: Plaintext, S: Store> Memory<P, S> {
    /// All `pages` are `Zero`. The keys must be new: their versions start at one.
    #[must_use]
    pub fn new(keys: PageKeys, pages: u64, plaintext: P, store: S) -> Self {
        Self {
            keys,
            versions: VersionCounter::new(),
            table: PageTable::new(pages),
            marks: AtomicU64::new(0),
            plaintext,
            store,
        }
    }

    /// All `pages` are `Plain`: a program has used them without this engine until now. As for [`Memory::new`] the keys must
    /// be new.
    #[must_use]
    pub fn in_use(keys: PageKeys, pages: u64, plaintext: P, store: S) -> Self {
        Self {
            table: PageTable::beginning(pages, PageState::Plain),
            ..Self::new(keys, 0, plaintext, store)
        }
    }

    /// Whose memory this is.
    #[must_use]
    pub const fn context(&self) -> ContextId {
        self.keys.context()
    }

    /// What is known of the pages.
    #[must_use]
    pub const fn table(&self) -> &PageTable {
        &self.table
    }

    /// The plaintext side.
    #[must_use]
    pub const fn plaintext(&self) -> &P {
        &self.plaintext
    }

    /// The OS side.
    #[must_use]
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// A page's state now.
    ///
    /// # Errors
    /// [`MemoryError::Outside`].
    pub fn state(&self, page: Page) -> Result<PageState, MemoryError> {
        Ok(self.lock(page)?.state(page))
    }

    /// *Seal these pages*: afterwards the OS side holds a ciphertext of each that is as new as the page.
    ///
    /// # Errors
    /// The first failure; pages before it are sealed.
    pub fn seal(&self, pages: &[Page]) -> Result<(), MemoryError> {
        self.by_block(pages, |block, part| self.seal_in(block, part))
    }

    /// Looks at a page from both sides at one moment: it is sealed, if it is not, and what the OS side then has is
    /// verified.
    ///
    /// # Errors
    /// As [`Memory::seal`], and [`MemoryError::Integrity`].
    pub fn look(&self, page: Page) -> Result<Look, MemoryError> {
        let mut block = self.lock(page)?;
        let before = block.state(page);
        self.seal_in(&mut block, &[page])?;
        let mut ciphertext = [[0; PAGE_SIZE]];
        self.store
            .fetch(page, &mut ciphertext)
            .map_err(|source| MemoryError::Store {
                step: "fetching",
                page,
                source,
            })?;
        let opened = self.verified(&block, Run::one(page))?;
        Ok(Look {
            before,
            version: block.version(page),
            tag: block.tag(page),
            plaintext: Zeroizing::new(opened.0.clone()),
            ciphertext: Box::new(ciphertext[0]),
        })
    }

    /// The first page that `wanted` accepts, of those whose plaintext is there. What it is shown may be changing.
    pub fn search(&self, mut wanted: impl FnMut(Page, &PageBytes) -> bool) -> Option<Page> {
        let mut buffer = Buffer::new(1);
        self.table.used().find_map(|block| {
            pages_in(&block).find(|&page| {
                let read =
                    block.state(page).has_plaintext() && self.plaintext.read(page, &mut buffer.0[0]).is_ok();
                read && wanted(page, &buffer.0[0])
            })
        })
    }

    /// As [`Memory::seal`], with the help of up to `threads` threads.
    ///
    /// # Errors
    /// A failure of one of the threads; the others' pages may be sealed.
    pub fn seal_with(&self, threads: usize, pages: &[Page]) -> Result<(), MemoryError> {
        self.spread(threads, pages, |part| self.seal(part))
    }

    /// *Drop the plaintext of these*: each must have a sealed copy, or never have been touched.
    ///
    /// # Errors
    /// [`MemoryError::Refused`] for a page whose plaintext is its only copy.
    pub fn drop_plaintext(&self, pages: &[Page]) -> Result<(), MemoryError> {
        self.by_block(pages, |block, part| self.drop_in(block, part))
    }

    /// *Bring these back*: verified, and frozen, so that they stay as good as their sealed copies until written.
    ///
    /// # Errors
    /// [`MemoryError::Integrity`] when the OS side gives anything but what it was given. No byte of a batch in
    /// which one page fails is installed.
    pub fn bring_back(&self, pages: &[Page]) -> Result<(), MemoryError> {
        self.by_block(pages, |block, part| self.open_in(block, part, Access::Frozen))
    }

    /// As [`Memory::bring_back`], with the help of up to `threads` threads.
    ///
    /// # Errors
    /// A failure of one of the threads.
    pub fn bring_back_with(&self, threads: usize, pages: &[Page]) -> Result<(), MemoryError> {
        self.spread(threads, pages, |part| self.bring_back(part))
    }

    /// Gives zeros to pages that were never touched.
    ///
    /// # Errors
    /// [`MemoryError::Plaintext`].
    pub fn fill(&self, pages: &[Page]) -> Result<(), MemoryError> {
        self.by_block(pages, |block, part| self.fill_in(block, part))
    }

    /// A program is about to change a page that was frozen: its sealed copy is stale from now on.
    ///
    /// # Errors
    /// [`MemoryError::Refused`] for a page without plaintext.
    pub fn written(&self, page: Page) -> Result<(), MemoryError> {
        let mut block = self.lock(page)?;
        if block.state(page) == PageState::Zero {
            return self.fill_in(&mut block, &[page]);
        }
        self.written_in(&mut block, Run::one(page))
    }

    /// The contents are no longer needed: they read as zeros from now on.
    ///
    /// # Errors
    /// [`MemoryError::Plaintext`], [`MemoryError::Store`].
    pub fn discard(&self, pages: &[Page]) -> Result<(), MemoryError> {
        self.by_block(pages, |block, part| {
            part.iter().try_for_each(|&page| self.discard_in(block, page))
        })
    }

    /// Remembers this moment, and freezes every page so that a change will be seen. Older marks are void.
    ///
    /// # Errors
    /// [`MemoryError::Plaintext`].
    pub fn mark(&self) -> Result<Mark, MemoryError> {
        let mark = Mark(self.marks.fetch_add(1, Ordering::AcqRel) + 1);
        for mut block in self.table.used() {
            block.clear_changed();
            // Few blocks hold a page that isn't frozen, when marks follow each other.
            if block.any(PageState::Plain) {
                let plain: Vec<Page> = pages_in(&block)
                    .filter(|&p| block.state(p) == PageState::Plain)
                    .collect();
                Run::group(&plain).try_for_each(|run| self.freeze(run))?;
            }
        }
        Ok(mark)
    }

    /// *What changed since*: every page that may hold other bytes than at the mark, in ascending order.
    ///
    /// # Errors
    /// [`MemoryError::OldMark`] when a newer mark was set.
    pub fn changed_since(&self, mark: Mark) -> Result<Vec<Page>, MemoryError> {
        if self.marks.load(Ordering::Acquire) != mark.0 {
            return Err(MemoryError::OldMark);
        }
        let changed =
            |block: BlockGuard<'_>| pages_in(&block).filter(|&p| block.changed(p)).collect::<Vec<_>>();
        Ok(self.table.used().flat_map(changed).collect())
    }

    pub(crate) fn lock(&self, page: Page) -> Result<BlockGuard<'_>, MemoryError> {
        self.table.lock(page).ok_or(MemoryError::Outside {
            page,
            end: self.table.pages() * PAGE_SIZE as u64,
        })
    }

    /// Works on pages block by block, each locked once for its neighbours in the list.
    fn by_block(
        &self,
        pages: &[Page],
        mut work: impl FnMut(&mut BlockGuard<'_>, &[Page]) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let block_of = |page: &Page| page.number() / crate::table::BLOCK_PAGES;
        for part in pages.chunk_by(|a, b| block_of(a) == block_of(b)) {
            let mut block = self.lock(part[0])?;
            for chunk in part.chunks(BATCH) {
                // A page beyond the end shares a block with pages before it.
                if let Some(&page) = chunk.iter().find(|&&p| !block.holds(p)) {
                    drop(block);
                    return self.lock(page).map(drop);
                }
                work(&mut block, &ascending(chunk))?;
            }
        }
        Ok(())
    }

    fn spread(
        &self,
        threads: usize,
        pages: &[Page],
        work: impl Fn(&[Page]) -> Result<(), MemoryError> + Sync,
    ) -> Result<(), MemoryError> {
        let parts = threads.clamp(1, (pages.len() / PAGES_PER_THREAD).max(1));
        if parts == 1 {
            return work(pages);
        }
        let work = &work;
        thread::scope(|scope| {
            let running: Vec<_> = pages
                .chunks(pages.len().div_ceil(parts))
                .map(|part| scope.spawn(move || work(part)))
                .collect();
            running.into_iter().try_for_each(|t| match t.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    pub(crate) fn seal_in(&self, block: &mut BlockGuard<'_>, pages: &[Page]) -> Result<(), MemoryError> {
        let mut todo = Vec::with_capacity(pages.len());
        for &page in pages {
            let (next, action) = self.step(block, page, Event::Seal)?;
            if action != Action::None {
                todo.push((page, next, action));
            }
        }
        for part in todo.chunk_by(|a, b| a.0.number() + 1 == b.0.number()) {
            self.seal_run(block, part)?;
        }
        Ok(())
    }

    fn seal_run(
        &self,
        block: &mut BlockGuard<'_>,
        run: &[(Page, PageState, Action)],
    ) -> Result<(), MemoryError> {
        let versions = self.versions.draw(run.len() as u64)?;
        let mut buffer = Buffer::new(run.len());
        let mut tags = Vec::with_capacity(run.len());
        let first = run[0].0;
        for plain in run.chunk_by(|a, b| a.2 == b.2) {
            if plain[0].2 == Action::SealPlaintext {
                self.freeze(Run {
                    first: plain[0].0,
                    count: plain.len() as u64,
                })?;
            }
        }
        for ((&(page, _, action), bytes), number) in run.iter().zip(&mut buffer.0).zip(versions) {
            if action == Action::SealPlaintext {
                let read = self.plaintext.read(page, bytes);
                read.map_err(|source| MemoryError::Plaintext {
                    step: "reading",
                    page,
                    source,
                })?;
            }
            let version = Version::new(number).ok_or(crate::version::Exhausted)?;
            let tag = self.keys.seal(&self.label(page, version), bytes)?;
            tags.push((version, tag));
        }
        let put = self.store.put(first, &buffer.0);
        put.map_err(|source| MemoryError::Store {
            step: "putting the ciphertext of",
            page: first,
            source,
        })?;
        for (&(page, next, _), (version, tag)) in run.iter().zip(tags) {
            block.set_sealed(page, next, version, tag);
        }
        Ok(())
    }

    pub(crate) fn drop_in(&self, block: &mut BlockGuard<'_>, pages: &[Page]) -> Result<(), MemoryError> {
        let mut gone = Vec::with_capacity(pages.len());
        for &page in pages {
            if self.step(block, page, Event::Drop)?.1 == Action::DropPlaintext {
                gone.push(page);
            }
        }
        for run in Run::group(&gone) {
            self.release(run)?;
            run.pages().for_each(|p| block.set_state(p, PageState::Sealed));
        }
        Ok(())
    }

    /// With [`Access::Free`] the pages are about to be written, so they come back as `Plain` at once.
    pub(crate) fn open_in(
        &self,
        block: &mut BlockGuard<'_>,
        pages: &[Page],
        access: Access,
    ) -> Result<(), MemoryError> {
        let sealed: Vec<Page> = pages
            .iter()
            .copied()
            .filter(|&p| block.state(p) == PageState::Sealed)
            .collect();
        for run in Run::group(&sealed) {
            let bytes = self.verified(block, run)?;
            self.install(run.first, &bytes.0, access)?;
            for page in run.pages() {
                block.set_state(page, PageState::Clean);
                if access == Access::Free {
                    self.stale_in(block, page)?;
                }
            }
        }
        Ok(())
    }

    /// Fetches and opens; only what has verified comes out.
    fn verified(&self, block: &BlockGuard<'_>, run: Run) -> Result<Buffer, MemoryError> {
        let mut fetched = vec![[0; PAGE_SIZE]; run.count as usize];
        self.store
            .fetch(run.first, &mut fetched)
            .map_err(|source| match source {
                StoreError::Length { expected, found } => self.integrity(
                    run.first,
                    block.version(run.first),
                    Tampering::Length { expected, found },
                ),
                source @ StoreError::Io(_) => MemoryError::Store {
                    step: "fetching",
                    page: run.first,
                    source,
                },
            })?;
        let mut opened = Buffer::new(fetched.len());
        for ((page, ciphertext), bytes) in run.pages().zip(&fetched).zip(&mut opened.0) {
            let version = block.version(page);
            let tag = block.tag(page);
            match self
                .keys
                .open(&self.label(page, version), ciphertext, &tag, bytes)
            {
                Ok(()) => {}
                Err(CipherError::Tag) => return Err(self.integrity(page, version, Tampering::Bytes)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(opened)
    }

    pub(crate) fn fill_in(&self, block: &mut BlockGuard<'_>, pages: &[Page]) -> Result<(), MemoryError> {
        let untouched: Vec<Page> = pages
            .iter()
            .copied()
            .filter(|&p| block.state(p) == PageState::Zero)
            .collect();
        for run in Run::group(&untouched) {
            self.install(run.first, &ZEROS[..run.count as usize], Access::Free)?;
            for page in run.pages() {
                block.set_state(page, PageState::Plain);
                block.set_changed(page);
            }
        }
        Ok(())
    }

    /// Pages that have plaintext may be written from now on.
    pub(crate) fn written_in(&self, block: &mut BlockGuard<'_>, run: Run) -> Result<(), MemoryError> {
        run.pages().try_for_each(|page| self.stale_in(block, page))?;
        self.plaintext.thaw(run).map_err(|source| MemoryError::Plaintext {
            step: "thawing",
            page: run.first,
            source,
        })
    }

    /// The page is `Plain` and changed, its sealed copy no longer counts; whether it is frozen is the caller's.
    pub(crate) fn stale_in(&self, block: &mut BlockGuard<'_>, page: Page) -> Result<(), MemoryError> {
        let (next, action) = self.step(block, page, Event::Write)?;
        if action == Action::ForgetSealed {
            self.forget(page)?;
        }
        block.set_state(page, next);
        block.set_changed(page);
        Ok(())
    }

    fn discard_in(&self, block: &mut BlockGuard<'_>, page: Page) -> Result<(), MemoryError> {
        let (next, action) = self.step(block, page, Event::Discard)?;
        if matches!(action, Action::DropPlaintext | Action::ForgetBoth) {
            self.release(Run::one(page))?;
        }
        if matches!(action, Action::ForgetSealed | Action::ForgetBoth) {
            self.forget(page)?;
        }
        if action != Action::None {
            block.set_changed(page);
        }
        block.set_state(page, next);
        Ok(())
    }

    fn step(
        &self,
        block: &BlockGuard<'_>,
        page: Page,
        event: Event,
    ) -> Result<(PageState, Action), MemoryError> {
        step(block.state(page), event).map_err(|refusal| MemoryError::Refused { page, refusal })
    }

    const fn label(&self, page: Page, version: Version) -> Label {
        Label {
            context: self.keys.context(),
            page,
            version,
        }
    }

    const fn integrity(&self, page: Page, version: Version, what: Tampering) -> MemoryError {
        MemoryError::Integrity {
            context: self.keys.context(),
            page,
            version,
            what,
        }
    }

    fn freeze(&self, run: Run) -> Result<(), MemoryError> {
        self.plaintext
            .freeze(run)
            .map_err(|source| MemoryError::Plaintext {
                step: "freezing",
                page: run.first,
                source,
            })
    }

    fn install(&self, first: Page, bytes: &[PageBytes], access: Access) -> Result<(), MemoryError> {
        self.plaintext
            .install(first, bytes, access)
            .map_err(|source| MemoryError::Plaintext {
                step: "installing",
                page: first,
                source,
            })
    }

    fn release(&self, run: Run) -> Result<(), MemoryError> {
        self.plaintext
            .release(run)
            .map_err(|source| MemoryError::Plaintext {
                step: "dropping the plaintext of",
                page: run.first,
                source,
            })
    }

    fn forget(&self, page: Page) -> Result<(), MemoryError> {
        self.store
            .forget(Run::one(page))
            .map_err(|source| MemoryError::Store {
                step: "forgetting the ciphertext of",
                page,
                source,
            })
    }
}

fn pages_in(block: &BlockGuard<'_>) -> impl Iterator<Item = Page> + use<> {
    block.range().filter_map(Page::new)
}

/// In order and each once, so that runs are long and no page is worked on twice.
fn ascending(pages: &[Page]) -> Cow<'_, [Page]> {
    if pages.is_sorted_by(|a, b| a < b) {
        return Cow::Borrowed(pages);
    }
    let mut own = pages.to_vec();
    own.sort_unstable();
    own.dedup();
    Cow::Owned(own)
}

static ZEROS: [PageBytes; BATCH] = [[0; PAGE_SIZE]; BATCH];

/// Pages of plaintext in passing; cleared when dropped.
struct Buffer(Vec<PageBytes>);

impl Buffer {
    fn new(pages: usize) -> Self {
        Self(vec![[0; PAGE_SIZE]; pages])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        for page in &mut self.0 {
            page.fill(0);
        }
        // The compiler may not leave the stores out, as it can't know what this does with the bytes. (`zeroize`
        // stores byte by byte, which costs more than the cipher.)
        std::hint::black_box(&mut self.0);
    }
}
