//! RAM behind a reverse map table: which host page is a guest's, at which guest-physical address, and whether the guest has
//! accepted it there (AMD64 Architecture Programmer's Manual, volume 2, section 15.36).
//!
//! ```text
//!               assign                  validate (guest), launch
//!   Hypervisor ────────▶ Guest-Invalid ─────────────────────────▶ Guest-Valid
//!        ▲                  │    ▲         rescind (guest)           │   │
//!        └── release ───────┘    └───────────────────────────────────┘   │
//!        └── release, assign anew: validation is lost ───────────────────┘
//! ```
//! The hypervisor's nested tables ([`Memory::map`]) say which host page a guest-physical address leads to, and may lie at
//! any time. The RMP makes the lie show: an access to a page that is not the guest's, not at this address, or not accepted
//! by the guest faults. A guest that accepts each address once thus reads what it wrote last, or nothing.

use std::collections::HashMap;

use crate::cipher::Xex;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// A page's content.
pub type PageBytes = [u8; PAGE];

/// Number of a page of the guest's address space: guest-physical address / 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gfn(pub u64);

/// Number of a page of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hfn(pub u64);

/// Why an access or an instruction did not take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The hypervisor maps nothing there.
    #[error("nothing is mapped there")]
    NotMapped,
    /// A private access to a page that is the hypervisor's.
    #[error("the page is the hypervisor's")]
    NotAssigned,
    /// The page is the guest's at another address.
    #[error("the page belongs to another address")]
    OtherAddress,
    /// The guest has not accepted the page.
    #[error("the page has not been validated")]
    NotValidated,
    /// A shared or host access to a page of the guest's.
    #[error("the page is a guest's")]
    Assigned,
    /// The page is the firmware's while the guest is launched.
    #[error("the page can't be changed")]
    Immutable,
}

/// Whether PVALIDATE changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// It did.
    Changed,
    /// The page was in that state before (CF = 1). To a guest that accepts each address once this is an attack.
    Unchanged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    gfn: Gfn,
    validated: bool,
    immutable: bool,
}

/// What the security processor and the hypervisor's part of KVM need of RAM behind an RMP. Pages are a guest's by their own
/// numbers.
pub trait Ram {
    /// Hypervisor: these pages are the guest's. Those that were not are not accepted.
    ///
    /// # Errors
    /// [`Fault::Immutable`].
    fn make_private(&mut self, pages: std::ops::Range<u64>) -> Result<(), Fault>;
    /// Hypervisor: these pages are its own.
    ///
    /// # Errors
    /// [`Fault::Immutable`].
    fn make_shared(&mut self, pages: std::ops::Range<u64>) -> Result<(), Fault>;
    /// Hypervisor: clears those of the pages that are its own.
    fn discard(&mut self, pages: std::ops::Range<u64>);
    /// Whether a page is the guest's.
    fn is_private(&self, gfn: Gfn) -> bool;
    /// Firmware, at launch: whether [`Ram::launch`] could fill it.
    ///
    /// # Errors
    /// [`Fault`].
    fn launchable(&self, gfn: Gfn) -> Result<(), Fault>;
    /// Firmware, at launch: fills a page that is the guest's and that it has not got yet.
    ///
    /// # Errors
    /// [`Fault::Immutable`]: it has been launched before; others as for an access.
    fn launch(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault>;
}

/// Distance from a guest page's number to its host page's, so that mixing them up shows.
const HOST_PAGES: u64 = 1 << 30;

impl Ram for Memory {
    fn make_private(&mut self, pages: std::ops::Range<u64>) -> Result<(), Fault> {
        for page in pages {
            if !self.is_private(Gfn(page)) {
                self.map(Gfn(page), Hfn(page + HOST_PAGES));
                self.assign(Hfn(page + HOST_PAGES), Gfn(page))?;
            }
        }
        Ok(())
    }

    fn make_shared(&mut self, pages: std::ops::Range<u64>) -> Result<(), Fault> {
        for page in pages {
            if self.is_private(Gfn(page)) {
                self.release(Hfn(page + HOST_PAGES))?;
                self.map(Gfn(page), Hfn(page + HOST_PAGES));
            }
        }
        Ok(())
    }

    fn discard(&mut self, pages: std::ops::Range<u64>) {
        for page in pages {
            // What is the guest's stays; the host can't clear it.
            let _ = self.host_write(Hfn(page + HOST_PAGES), &[0; PAGE]);
        }
    }

    fn is_private(&self, gfn: Gfn) -> bool {
        self.rmp
            .get(&Hfn(gfn.0 + HOST_PAGES))
            .is_some_and(|entry| entry.gfn == gfn)
    }

    fn launchable(&self, gfn: Gfn) -> Result<(), Fault> {
        match self.accepted(gfn) {
            Err(Fault::NotValidated) => Ok(()),
            Err(fault) => Err(fault),
            Ok(_) => Err(Fault::Immutable),
        }
    }

    fn launch(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault> {
        if self.validate(gfn, true)? == Validation::Unchanged {
            return Err(Fault::Immutable);
        }
        self.private_write(gfn, bytes)
    }
}

/// The machine's RAM, with one guest.
pub struct Memory {
    nested: HashMap<Gfn, Hfn>,
    rmp: HashMap<Hfn, Entry>,
    /// As a reader of the memory bus sees it. What was never written is zero.
    raw: HashMap<Hfn, Box<PageBytes>>,
    cipher: Xex,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("assigned", &self.rmp.len())
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// RAM whose guest has this key (data, then tweak).
    #[must_use]
    pub fn new(key: &[u8; 64]) -> Self {
        Self {
            nested: HashMap::new(),
            rmp: HashMap::new(),
            raw: HashMap::new(),
            cipher: Xex::new(key),
        }
    }

    /// Hypervisor: lets `gfn` lead to `page`.
    pub fn map(&mut self, gfn: Gfn, page: Hfn) {
        self.nested.insert(gfn, page);
    }

    /// Hypervisor: lets `gfn` lead nowhere.
    pub fn unmap(&mut self, gfn: Gfn) {
        self.nested.remove(&gfn);
    }

    /// Hypervisor, RMPUPDATE: gives `page` to the guest at `gfn`. Whatever it was before, it is not validated after.
    ///
    /// # Errors
    /// [`Fault::Immutable`].
    pub fn assign(&mut self, page: Hfn, gfn: Gfn) -> Result<(), Fault> {
        self.changeable(page)?;
        let entry = Entry {
            gfn,
            validated: false,
            immutable: false,
        };
        self.rmp.insert(page, entry);
        Ok(())
    }

    /// Hypervisor, RMPUPDATE: takes `page` back.
    ///
    /// # Errors
    /// [`Fault::Immutable`].
    pub fn release(&mut self, page: Hfn) -> Result<(), Fault> {
        self.changeable(page)?;
        self.rmp.remove(&page);
        Ok(())
    }

    fn changeable(&self, page: Hfn) -> Result<(), Fault> {
        match self.rmp.get(&page) {
            Some(entry) if entry.immutable => Err(Fault::Immutable),
            _ => Ok(()),
        }
    }

    /// Hypervisor: reads a page. Of a guest's it sees ciphertext.
    #[must_use]
    pub fn host_read(&self, page: Hfn) -> PageBytes {
        self.raw.get(&page).map_or([0; PAGE], |bytes| **bytes)
    }

    /// Hypervisor: writes a page.
    ///
    /// # Errors
    /// [`Fault::Assigned`]: it is a guest's.
    pub fn host_write(&mut self, page: Hfn, bytes: &PageBytes) -> Result<(), Fault> {
        if self.rmp.contains_key(&page) {
            return Err(Fault::Assigned);
        }
        self.raw.insert(page, Box::new(*bytes));
        Ok(())
    }

    /// Guest, PVALIDATE: accepts the page at `gfn`, or takes that back.
    ///
    /// # Errors
    /// [`Fault`]: the page there is not the guest's at this address.
    pub fn validate(&mut self, gfn: Gfn, validated: bool) -> Result<Validation, Fault> {
        let page = self.owned(gfn)?;
        let entry = self.rmp.get_mut(&page).ok_or(Fault::NotAssigned)?;
        if entry.validated == validated {
            return Ok(Validation::Unchanged);
        }
        entry.validated = validated;
        Ok(Validation::Changed)
    }

    /// Guest, C-bit set: reads a page.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn private_read(&self, gfn: Gfn) -> Result<PageBytes, Fault> {
        let page = self.accepted(gfn)?;
        let mut bytes = self.host_read(page);
        self.cipher.open(page, &mut bytes);
        Ok(bytes)
    }

    /// Guest, C-bit set: writes a page.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn private_write(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault> {
        let page = self.accepted(gfn)?;
        let mut raw = Box::new(*bytes);
        self.cipher.seal(page, &mut raw);
        self.raw.insert(page, raw);
        Ok(())
    }

    /// Guest, C-bit clear: reads a page that the hypervisor reads, too.
    ///
    /// # Errors
    /// [`Fault::NotMapped`]; [`Fault::Assigned`]: it is private.
    pub fn shared_read(&self, gfn: Gfn) -> Result<PageBytes, Fault> {
        let page = *self.nested.get(&gfn).ok_or(Fault::NotMapped)?;
        if self.rmp.contains_key(&page) {
            return Err(Fault::Assigned);
        }
        Ok(self.host_read(page))
    }

    fn owned(&self, gfn: Gfn) -> Result<Hfn, Fault> {
        let page = *self.nested.get(&gfn).ok_or(Fault::NotMapped)?;
        match self.rmp.get(&page) {
            None => Err(Fault::NotAssigned),
            Some(entry) if entry.gfn != gfn => Err(Fault::OtherAddress),
            Some(_) => Ok(page),
        }
    }

    fn accepted(&self, gfn: Gfn) -> Result<Hfn, Fault> {
        let page = self.owned(gfn)?;
        match self.rmp.get(&page) {
            Some(entry) if entry.validated => Ok(page),
            _ => Err(Fault::NotValidated),
        }
    }
}
