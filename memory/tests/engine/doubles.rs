//! Plaintext memory that refuses every mistake, and an OS side that can do anything to what it holds.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use cloak_memory::{Access, PAGE_SIZE, Page, PageBytes, Plaintext, Run, Store, StoreError};

pub fn page(number: u64) -> Page {
    Page::new(number).expect("a small number")
}

/// Pages that have plaintext, and those of them that are frozen.
#[derive(Debug, Default)]
pub struct Ram {
    pages: Mutex<HashMap<Page, PageBytes>>,
    frozen: Mutex<HashSet<Page>>,
}

impl Ram {
    pub fn peek(&self, page: Page) -> Option<PageBytes> {
        self.pages.lock().unwrap().get(&page).copied()
    }

    /// What a program does: an ordinary write. Whether it went through; a frozen page stops it.
    pub fn poke(&self, page: Page, bytes: PageBytes) -> bool {
        if self.frozen.lock().unwrap().contains(&page) {
            return false;
        }
        self.pages
            .lock()
            .unwrap()
            .insert(page, bytes)
            .expect("the page is there");
        true
    }

    fn each(
        &self,
        run: Run,
        mut work: impl FnMut(&mut HashMap<Page, PageBytes>, Page) -> bool,
    ) -> io::Result<()> {
        let mut pages = self.pages.lock().unwrap();
        let good = run.pages().all(|p| work(&mut pages, p));
        good.then_some(())
            .ok_or_else(|| io::Error::other("the engine asked for what can't be"))
    }
}

impl Plaintext for Ram {
    fn freeze(&self, run: Run) -> io::Result<()> {
        self.frozen.lock().unwrap().extend(run.pages());
        self.each(run, |pages, p| pages.contains_key(&p))
    }

    fn thaw(&self, run: Run) -> io::Result<()> {
        self.frozen
            .lock()
            .unwrap()
            .retain(|p| !run.numbers().contains(&p.number()));
        self.each(run, |pages, p| pages.contains_key(&p))
    }

    fn read(&self, page: Page, out: &mut PageBytes) -> io::Result<()> {
        let frozen = self.frozen.lock().unwrap().contains(&page);
        self.each(Run::one(page), |pages, p| {
            *out = pages[&p];
            frozen
        })
    }

    fn install(&self, first: Page, bytes: &[PageBytes], access: Access) -> io::Result<()> {
        let run = Run {
            first,
            count: bytes.len() as u64,
        };
        let mut frozen = self.frozen.lock().unwrap();
        match access {
            Access::Frozen => frozen.extend(run.pages()),
            Access::Free => frozen.retain(|p| !run.numbers().contains(&p.number())),
        }
        let mut bytes = bytes.iter();
        self.each(run, |pages, p| pages.insert(p, *bytes.next().unwrap()).is_none())
    }

    fn release(&self, run: Run) -> io::Result<()> {
        self.frozen
            .lock()
            .unwrap()
            .retain(|p| !run.numbers().contains(&p.number()));
        self.each(run, |pages, p| pages.remove(&p).is_some())
    }
}

/// The OS side: each page as a row of bytes of any length.
#[derive(Debug, Default, Clone)]
pub struct Hostile {
    held: Arc<Mutex<HashMap<Page, Vec<u8>>>>,
}

impl Hostile {
    pub fn held(&self) -> MutexGuard<'_, HashMap<Page, Vec<u8>>> {
        self.held.lock().unwrap()
    }
}

impl Store for Hostile {
    fn put(&self, first: Page, ciphertext: &[PageBytes]) -> Result<(), StoreError> {
        let pages = (first.number()..).filter_map(Page::new);
        self.held()
            .extend(pages.zip(ciphertext.iter().map(|c| c.to_vec())));
        Ok(())
    }

    fn fetch(&self, first: Page, out: &mut [PageBytes]) -> Result<(), StoreError> {
        for (page, out) in (first.number()..).filter_map(Page::new).zip(out) {
            let held = self.held();
            let bytes = held.get(&page).map_or(&[][..], Vec::as_slice);
            *out = bytes.try_into().map_err(|_| StoreError::Length {
                expected: PAGE_SIZE as u64,
                found: bytes.len() as u64,
            })?;
        }
        Ok(())
    }

    fn forget(&self, run: Run) -> Result<(), StoreError> {
        run.pages().for_each(|p| drop(self.held().remove(&p)));
        Ok(())
    }
}
