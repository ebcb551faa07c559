//! Private memory of a domain: which host page is the domain's (the module's physical page table, PAMT), and what the secure
//! EPT says of each of the domain's addresses (TDX module ABI 1.5, "Secure EPT Entry State").
//!
//! ```text
//!            add (before the end of the launch)
//!   Free ──────────────────────────────────────▶ Mapped ◀──────────┐
//!    ▲ └────── aug (after it) ──▶ Pending ─accept (guest)─▶│        │ unblock, relocate
//!    │                              │ block                │ block  │ (after track)
//!    │                              ▼                      ▼        │
//!    └───── remove (after track) ── Blocked, was pending / Blocked ─┘
//! ```
//! All of it is the module's, on the host's order: unlike on SNP the host can't make an address lead to another page of the
//! domain. What it can do is take pages away, write to them past the module, and read the memory bus.

use std::collections::{HashMap, HashSet};

use super::module::ModuleError;
use crate::cipher::Xex;
use crate::memory::{Gfn, Hfn, PAGE, PageBytes};

/// Why a guest's access did not take place. Each is an exit to the host, or the domain's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing is there. The host is told, and may add a page, which is pending then.
    #[error("nothing is mapped there")]
    NotMapped,
    /// The guest has not accepted the page. With SEPT_VE_DISABLE it stops here.
    #[error("the page has not been accepted")]
    Pending,
    /// The host has blocked the page.
    #[error("the page is blocked")]
    Blocked,
    /// Somebody wrote to the page past the processor's key. The domain ends with a machine check.
    #[error("the page's owner bit is gone: somebody else wrote to it")]
    Poisoned,
}

/// Whether TDG.MEM.PAGE.ACCEPT changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It did: the page is zero now.
    Accepted,
    /// TDX_PAGE_ALREADY_ACCEPTED. To a guest that accepts each address once this is an attack, or a mistake of its own.
    Already,
}

/// Private memory of a domain, as the module and KVM work on it.
pub trait SecureEpt {
    /// TDH.MEM.PAGE.ADD: a page with content, accepted.
    ///
    /// # Errors
    /// [`ModuleError::EntryState`], [`ModuleError::PageMetadata`].
    fn add(&mut self, gfn: Gfn, page: Hfn, bytes: &PageBytes) -> Result<(), ModuleError>;
    /// TDH.MEM.PAGE.AUG: a page that the guest has to accept.
    ///
    /// # Errors
    /// As above.
    fn aug(&mut self, gfn: Gfn, page: Hfn) -> Result<(), ModuleError>;
    /// The page goes back to the host: blocked, tracked, removed.
    ///
    /// # Errors
    /// [`ModuleError`].
    fn zap(&mut self, gfn: Gfn) -> Result<(), ModuleError>;
    /// Which host page is behind an address.
    fn page_of(&self, gfn: Gfn) -> Option<Hfn>;
    /// Host: lets `gfn` with the shared bit lead to `page`.
    fn share(&mut self, gfn: Gfn, page: Hfn);
    /// Host: lets it lead nowhere.
    fn unshare(&mut self, gfn: Gfn);
    /// Host: writes a page.
    fn host_write(&mut self, page: Hfn, bytes: &PageBytes);
    /// Guest: accepts a small page.
    ///
    /// # Errors
    /// [`Fault`].
    fn accept(&mut self, gfn: Gfn) -> Result<Acceptance, Fault>;
    /// Guest: accepts a large page. `None`: the host backs it by small ones.
    ///
    /// # Errors
    /// [`Fault`].
    fn accept_large(&mut self, gfn: Gfn) -> Result<Option<Acceptance>, Fault>;
    /// The module, for the guest: reads a private page.
    ///
    /// # Errors
    /// [`Fault`].
    fn read(&self, gfn: Gfn) -> Result<PageBytes, Fault>;
    /// The module, for the guest: writes a private page.
    ///
    /// # Errors
    /// [`Fault`].
    fn write(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    page: Hfn,
    accepted: bool,
    /// The epoch in which it was blocked.
    blocked: Option<u64>,
}

/// The machine's RAM, with one domain.
pub struct Memory {
    secure: HashMap<Gfn, Entry>,
    /// Pages of the domain. A page has one owner, and of a domain's pages each is at one address.
    owned: HashSet<Hfn>,
    poisoned: HashSet<Hfn>,
    /// What addresses with the shared bit lead to: the host's own tables.
    shared: HashMap<Gfn, Hfn>,
    /// As a reader of the memory bus sees it. What was never written is zero.
    raw: HashMap<Hfn, Box<PageBytes>>,
    epoch: u64,
    cipher: Xex,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("pages", &self.secure.len())
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// RAM whose domain has this key (data, then tweak).
    #[must_use]
    pub fn new(key: &[u8; 64]) -> Self {
        Self {
            secure: HashMap::new(),
            owned: HashSet::new(),
            poisoned: HashSet::new(),
            shared: HashMap::new(),
            raw: HashMap::new(),
            epoch: 0,
            cipher: Xex::new(key),
        }
    }

    /// TDH.MEM.PAGE.ADD: a page with content, accepted. Whether the launch is over is for the caller to know.
    ///
    /// # Errors
    /// [`ModuleError::EntryState`]: there is a page; [`ModuleError::PageMetadata`]: the host page is the domain's already.
    pub(super) fn add(&mut self, gfn: Gfn, page: Hfn, bytes: &PageBytes) -> Result<(), ModuleError> {
        self.insert(gfn, page, true)?;
        self.put(page, bytes);
        Ok(())
    }

    /// TDH.MEM.PAGE.AUG: a page that the guest has to accept.
    ///
    /// # Errors
    /// As [`Memory::add`].
    pub(super) fn aug(&mut self, gfn: Gfn, page: Hfn) -> Result<(), ModuleError> {
        self.insert(gfn, page, false)
    }

    fn insert(&mut self, gfn: Gfn, page: Hfn, accepted: bool) -> Result<(), ModuleError> {
        if self.secure.contains_key(&gfn) {
            return Err(ModuleError::EntryState);
        }
        if !self.owned.insert(page) {
            return Err(ModuleError::PageMetadata);
        }
        self.poisoned.remove(&page);
        let entry = Entry {
            page,
            accepted,
            blocked: None,
        };
        self.secure.insert(gfn, entry);
        Ok(())
    }

    /// TDH.MEM.RANGE.BLOCK: the guest's next access faults.
    ///
    /// # Errors
    /// [`ModuleError::EntryState`]: no page, or blocked before.
    pub fn block(&mut self, gfn: Gfn) -> Result<(), ModuleError> {
        let epoch = self.epoch;
        match self.secure.get_mut(&gfn) {
            Some(entry) if entry.blocked.is_none() => {
                entry.blocked = Some(epoch);
                Ok(())
            }
            _ => Err(ModuleError::EntryState),
        }
    }

    /// TDH.MEM.TRACK: no vCPU has translations of before any more.
    pub fn track(&mut self) {
        self.epoch += 1;
    }

    /// TDH.MEM.RANGE.UNBLOCK.
    ///
    /// # Errors
    /// [`ModuleError::NotBlocked`], [`ModuleError::NotTracked`].
    pub fn unblock(&mut self, gfn: Gfn) -> Result<(), ModuleError> {
        self.tracked(gfn)?;
        if let Some(entry) = self.secure.get_mut(&gfn) {
            entry.blocked = None;
        }
        Ok(())
    }

    /// TDH.MEM.PAGE.REMOVE: the page is the host's again. Its content is lost to the guest.
    ///
    /// # Errors
    /// As [`Memory::unblock`].
    pub fn remove(&mut self, gfn: Gfn) -> Result<(), ModuleError> {
        let entry = self.tracked(gfn)?;
        self.secure.remove(&gfn);
        self.owned.remove(&entry.page);
        Ok(())
    }

    /// TDH.MEM.PAGE.RELOCATE: the module moves a page, content and state, and unblocks it.
    ///
    /// # Errors
    /// As [`Memory::unblock`]; [`ModuleError::PageMetadata`]: the new page is the domain's already.
    pub fn relocate(&mut self, gfn: Gfn, to: Hfn) -> Result<(), ModuleError> {
        let entry = self.tracked(gfn)?;
        if self.owned.contains(&to) {
            return Err(ModuleError::PageMetadata);
        }
        // What was written to past the key stays unreadable.
        if self.poisoned.remove(&entry.page) {
            self.poisoned.insert(to);
        } else {
            let bytes = self.opened(entry.page);
            self.poisoned.remove(&to);
            self.put(to, &bytes);
        }
        self.owned.remove(&entry.page);
        self.owned.insert(to);
        let moved = Entry {
            page: to,
            blocked: None,
            ..entry
        };
        self.secure.insert(gfn, moved);
        Ok(())
    }

    /// The entry of a page that is blocked, and that no vCPU can have a translation of.
    fn tracked(&self, gfn: Gfn) -> Result<Entry, ModuleError> {
        let entry = self.secure.get(&gfn).ok_or(ModuleError::WalkFailed)?;
        match entry.blocked {
            None => Err(ModuleError::NotBlocked),
            Some(epoch) if epoch == self.epoch => Err(ModuleError::NotTracked),
            Some(_) => Ok(*entry),
        }
    }

    /// Host: lets `gfn` with the shared bit lead to `page`.
    pub fn share(&mut self, gfn: Gfn, page: Hfn) {
        self.shared.insert(gfn, page);
    }

    /// Host: lets it lead nowhere.
    pub fn unshare(&mut self, gfn: Gfn) {
        self.shared.remove(&gfn);
    }

    /// Host: reads a page. Of a domain's it gets zeros, not even ciphertext.
    #[must_use]
    pub fn host_read(&self, page: Hfn) -> PageBytes {
        if self.owned.contains(&page) {
            return [0; PAGE];
        }
        self.bus(page)
    }

    /// Host: writes a page. Nothing holds it back; if the page is a domain's, the domain notices when it reads.
    pub fn host_write(&mut self, page: Hfn, bytes: &PageBytes) {
        if self.owned.contains(&page) {
            self.poisoned.insert(page);
        }
        self.raw.insert(page, Box::new(*bytes));
    }

    /// What a reader of the memory bus sees: ciphertext of a domain's page.
    #[must_use]
    pub fn bus(&self, page: Hfn) -> PageBytes {
        self.raw.get(&page).map_or([0; PAGE], |bytes| **bytes)
    }

    /// Which host page is behind an address: known to the host, which gave it.
    #[must_use]
    pub fn page_of(&self, gfn: Gfn) -> Option<Hfn> {
        self.secure.get(&gfn).map(|entry| entry.page)
    }

    /// Guest, TDG.MEM.PAGE.ACCEPT: takes a pending page, which is cleared.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn accept(&mut self, gfn: Gfn) -> Result<Acceptance, Fault> {
        let entry = self.secure.get_mut(&gfn).ok_or(Fault::NotMapped)?;
        if entry.blocked.is_some() {
            return Err(Fault::Blocked);
        }
        if entry.accepted {
            return Ok(Acceptance::Already);
        }
        entry.accepted = true;
        let page = entry.page;
        self.poisoned.remove(&page);
        self.put(page, &[0; PAGE]);
        Ok(Acceptance::Accepted)
    }

    /// Guest: reads a private page.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read(&self, gfn: Gfn) -> Result<PageBytes, Fault> {
        let page = self.mapped(gfn)?;
        if self.poisoned.contains(&page) {
            return Err(Fault::Poisoned);
        }
        Ok(self.opened(page))
    }

    /// Guest: writes a private page, all of it, which makes it the guest's whoever wrote to it before.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn write(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault> {
        let page = self.mapped(gfn)?;
        self.poisoned.remove(&page);
        self.put(page, bytes);
        Ok(())
    }

    /// Guest, shared bit set: reads what the host's tables lead to.
    ///
    /// # Errors
    /// [`Fault::NotMapped`].
    pub fn shared_read(&self, gfn: Gfn) -> Result<PageBytes, Fault> {
        let page = self.shared.get(&gfn).ok_or(Fault::NotMapped)?;
        Ok(self.host_read(*page))
    }

    /// Guest, shared bit set: writes there.
    ///
    /// # Errors
    /// [`Fault::NotMapped`].
    pub fn shared_write(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault> {
        let page = *self.shared.get(&gfn).ok_or(Fault::NotMapped)?;
        self.host_write(page, bytes);
        Ok(())
    }

    fn mapped(&self, gfn: Gfn) -> Result<Hfn, Fault> {
        let entry = self.secure.get(&gfn).ok_or(Fault::NotMapped)?;
        match (entry.blocked, entry.accepted) {
            (Some(_), _) => Err(Fault::Blocked),
            (None, false) => Err(Fault::Pending),
            (None, true) => Ok(entry.page),
        }
    }

    fn put(&mut self, page: Hfn, bytes: &PageBytes) {
        let mut raw = Box::new(*bytes);
        self.cipher.seal(page, &mut raw);
        self.raw.insert(page, raw);
    }

    fn opened(&self, page: Hfn) -> PageBytes {
        let mut bytes = self.bus(page);
        self.cipher.open(page, &mut bytes);
        bytes
    }
}

impl SecureEpt for Memory {
    fn add(&mut self, gfn: Gfn, page: Hfn, bytes: &PageBytes) -> Result<(), ModuleError> {
        Memory::add(self, gfn, page, bytes)
    }

    fn aug(&mut self, gfn: Gfn, page: Hfn) -> Result<(), ModuleError> {
        Memory::aug(self, gfn, page)
    }

    fn zap(&mut self, gfn: Gfn) -> Result<(), ModuleError> {
        if Memory::page_of(self, gfn).is_none() {
            return Ok(());
        }
        self.block(gfn)?;
        self.track();
        self.remove(gfn)
    }

    fn page_of(&self, gfn: Gfn) -> Option<Hfn> {
        Memory::page_of(self, gfn)
    }

    fn share(&mut self, gfn: Gfn, page: Hfn) {
        Memory::share(self, gfn, page);
    }

    fn unshare(&mut self, gfn: Gfn) {
        Memory::unshare(self, gfn);
    }

    fn host_write(&mut self, page: Hfn, bytes: &PageBytes) {
        Memory::host_write(self, page, bytes);
    }

    fn accept(&mut self, gfn: Gfn) -> Result<Acceptance, Fault> {
        Memory::accept(self, gfn)
    }

    /// KVM gives pages of 4 KiB, as of Linux 7.3.
    fn accept_large(&mut self, _: Gfn) -> Result<Option<Acceptance>, Fault> {
        Ok(None)
    }

    fn read(&self, gfn: Gfn) -> Result<PageBytes, Fault> {
        Memory::read(self, gfn)
    }

    fn write(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault> {
        Memory::write(self, gfn, bytes)
    }
}
