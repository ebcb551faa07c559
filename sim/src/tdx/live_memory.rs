//! A domain's memory over a VM's RAM: what the domain has not accepted can't be touched by anybody, itself included.
//!
//! What [`super::sept`] models beyond that is not here: pages are not encrypted, and each address has one host page.

use std::collections::HashMap;

use cloak_abi::kcall::PTE_P;
use cloak_abi::layout::{LARGE, LAUNCH_TABLES, LAUNCH_TABLES_GPA};
use cloak_host::kvm::tdx::config::SHARED_BIT;
use cloak_host::platform::GuestRam;

use super::hostile::Hostile;
use super::module::ModuleError;
use super::sept::{Acceptance, Fault, SecureEpt};
use crate::memory::{Gfn, Hfn, PAGE, PageBytes};

const ABSENT: u8 = 0;
const PENDING: u8 = 1;
const MAPPED: u8 = 2;

/// Pages of a large page.
const SMALL: u64 = LARGE / PAGE as u64;

/// The memory.
#[derive(Debug, Default)]
pub struct LiveMemory {
    /// The VM's.
    pub ram: Option<GuestRam>,
    /// A state for each page, by its number; beyond it there are none.
    states: Vec<u8>,
    /// The image's page tables as they are measured: in RAM they are without the bit of shared memory, which an ordinary VM does
    /// not have.
    tables: HashMap<Gfn, Box<PageBytes>>,
    /// What the hypervisor does to pages.
    pub hostile: Option<Hostile>,
    /// The byte of the shim that it changes.
    pub changed: Option<u64>,
}

impl LiveMemory {
    /// No pages yet, in the hands of a hypervisor.
    pub fn new(hostile: Option<Hostile>) -> Self {
        Self {
            hostile,
            ..Self::default()
        }
    }

    fn state(&self, gfn: Gfn) -> u8 {
        self.states.get(gfn.0 as usize).copied().unwrap_or(ABSENT)
    }

    fn set(&mut self, gfns: std::ops::Range<u64>, state: u8) {
        let (start, end) = (gfns.start as usize, gfns.end as usize);
        if self.states.len() < end {
            self.states.resize(end, ABSENT);
        }
        self.states[start..end].fill(state);
    }

    fn open(&self, gfns: std::ops::Range<u64>, open: bool) -> Result<&GuestRam, Fault> {
        let ram = self.ram.as_ref().ok_or(Fault::NotMapped)?;
        let (gpa, len) = (gfns.start * PAGE as u64, (gfns.end - gfns.start) * PAGE as u64);
        ram.set_access(gpa, len, open).map_err(|_| Fault::NotMapped)?;
        Ok(ram)
    }

    /// Whether all pages are there, pending or accepted alike.
    fn all(&self, gfns: std::ops::Range<u64>, state: u8) -> bool {
        gfns.into_iter().all(|gfn| self.state(Gfn(gfn)) == state)
    }

    /// What the guest accepts is zero.
    fn take(&mut self, gfns: std::ops::Range<u64>) -> Result<(), Fault> {
        self.set(gfns.clone(), MAPPED);
        let ram = self.open(gfns.clone(), true)?;
        for gfn in gfns {
            ram.write(gfn * PAGE as u64, &[0; PAGE])
                .map_err(|_| Fault::NotMapped)?;
        }
        Ok(())
    }

    /// The hypervisor lets pages be the domain's before it accepts them.
    pub fn accept_before(&mut self, gfns: std::ops::Range<u64>) {
        self.set(gfns, MAPPED);
    }
}

impl SecureEpt for LiveMemory {
    fn add(&mut self, gfn: Gfn, _: Hfn, bytes: &PageBytes) -> Result<(), ModuleError> {
        if self.state(gfn) != ABSENT {
            return Err(ModuleError::EntryState);
        }
        let gpa = gfn.0 * PAGE as u64;
        let mut page = *bytes;
        if let Some(hostile) = self.hostile {
            hostile.change(gpa, &mut page);
        }
        if let Some(at) = self.changed.filter(|at| (gpa..gpa + PAGE as u64).contains(at)) {
            page[(at - gpa) as usize] ^= 1;
        }
        if (LAUNCH_TABLES_GPA..LAUNCH_TABLES_GPA + LAUNCH_TABLES * PAGE as u64).contains(&gpa) {
            self.tables.insert(gfn, Box::new(page));
            page.as_chunks_mut::<8>()
                .0
                .iter_mut()
                .for_each(without_shared_bit);
        }
        self.set(gfn.0..gfn.0 + 1, MAPPED);
        let ram = self
            .open(gfn.0..gfn.0 + 1, true)
            .map_err(|_| ModuleError::PageMetadata)?;
        ram.write(gpa, &page).map_err(|_| ModuleError::PageMetadata)
    }

    fn aug(&mut self, gfn: Gfn, _: Hfn) -> Result<(), ModuleError> {
        if self.state(gfn) != ABSENT {
            return Err(ModuleError::EntryState);
        }
        self.set(gfn.0..gfn.0 + 1, PENDING);
        Ok(())
    }

    fn zap(&mut self, gfn: Gfn) -> Result<(), ModuleError> {
        if self.state(gfn) == ABSENT {
            return Ok(());
        }
        self.set(gfn.0..gfn.0 + 1, ABSENT);
        self.open(gfn.0..gfn.0 + 1, false)
            .map(drop)
            .map_err(|_| ModuleError::PageMetadata)
    }

    fn page_of(&self, gfn: Gfn) -> Option<Hfn> {
        (self.state(gfn) != ABSENT).then_some(Hfn(gfn.0))
    }

    fn share(&mut self, _: Gfn, _: Hfn) {}

    fn unshare(&mut self, _: Gfn) {}

    fn host_write(&mut self, _: Hfn, _: &PageBytes) {}

    fn accept(&mut self, gfn: Gfn) -> Result<Acceptance, Fault> {
        match self.state(gfn) {
            PENDING => self.take(gfn.0..gfn.0 + 1).map(|()| Acceptance::Accepted),
            MAPPED => Ok(Acceptance::Already),
            _ => Err(Fault::NotMapped),
        }
    }

    fn accept_large(&mut self, gfn: Gfn) -> Result<Option<Acceptance>, Fault> {
        let gfns = gfn.0..gfn.0 + SMALL;
        if gfns.clone().any(|gfn| self.state(Gfn(gfn)) == ABSENT) {
            return Err(Fault::NotMapped);
        }
        if self.hostile == Some(Hostile::SmallPages) {
            return Ok(None);
        }
        if self.all(gfns.clone(), MAPPED) {
            return Ok(Some(Acceptance::Already));
        }
        if !self.all(gfns.clone(), PENDING) {
            return Ok(None);
        }
        self.take(gfns).map(|()| Some(Acceptance::Accepted))
    }

    fn read(&self, gfn: Gfn) -> Result<PageBytes, Fault> {
        if let Some(page) = self.tables.get(&gfn) {
            return Ok(**page);
        }
        let mut page = [0; PAGE];
        let ram = self.mapped(gfn)?;
        ram.read(gfn.0 * PAGE as u64, &mut page)
            .map_err(|_| Fault::NotMapped)?;
        Ok(page)
    }

    fn write(&mut self, gfn: Gfn, bytes: &PageBytes) -> Result<(), Fault> {
        let ram = self.mapped(gfn)?;
        ram.write(gfn.0 * PAGE as u64, bytes)
            .map_err(|_| Fault::NotMapped)
    }
}

impl LiveMemory {
    fn mapped(&self, gfn: Gfn) -> Result<&GuestRam, Fault> {
        match self.state(gfn) {
            MAPPED => self.ram.as_ref().ok_or(Fault::NotMapped),
            PENDING => Err(Fault::Pending),
            _ => Err(Fault::NotMapped),
        }
    }
}

fn without_shared_bit(entry: &mut [u8; 8]) {
    let word = u64::from_le_bytes(*entry);
    if word & PTE_P != 0 {
        *entry = (word & !SHARED_BIT).to_le_bytes();
    }
}
