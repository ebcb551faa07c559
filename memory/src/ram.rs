//! Private memory with userfaultfd beneath: the plaintext side that guest RAM is.
//!
//! [`PrivateRam`] watches memory that others use without knowing (a guest, through KVM). It can *park* pages: they
//! move, without a copy, to a place that nobody but the engine knows, so that the next touch is seen. That is how
//! the pager tells pages in use from others on every host: there is no accessed bit to read for memory that KVM
//! shadows, and write protection sees writes only.
//!
//! One of the crate's unsafe islands. Nothing here reads a page that is missing: that would fault, and wait for the
//! very thread that reads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::{MemoryError, Step};
use crate::page::{PAGE_SIZE, Page, PageBytes};
use crate::sides::{Access, Plaintext, Run};
use crate::uffd::{Fault, Use, Userfaultfd, Watch};

/// Where pages in a row lie in this process.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// The first page.
    pub first: Page,
    /// How many.
    pub pages: u64,
    /// Address of the first page's first byte.
    pub address: NonNull<u8>,
}

// SAFETY: an address is a number here; who follows it says why that is sound.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    fn holds(&self, page: Page) -> bool {
        page.number()
            .checked_sub(self.first.number())
            .is_some_and(|index| index < self.pages)
    }

    fn start(&self) -> u64 {
        self.address.as_ptr() as u64
    }
}

/// The page that an address of this process lies in.
pub(crate) fn page_at(segments: &[Segment], address: u64) -> Option<Page> {
    let of = |segment: &Segment| {
        let index = address.checked_sub(segment.start())? / PAGE_SIZE as u64;
        (index < segment.pages).then(|| Page::new(segment.first.number() + index))?
    };
    segments.iter().find_map(of)
}

/// Address and length of a run, which has to lie in one segment.
pub(crate) fn place(segments: &[Segment], run: Run) -> io::Result<(u64, u64)> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "not in watched memory");
    let last = Page::new(run.numbers().end - 1).ok_or_else(outside)?;
    let segment = segments.iter().find(|s| s.holds(run.first) && s.holds(last));
    let segment = segment.ok_or_else(outside)?;
    let offset = (run.first.number() - segment.first.number()) * PAGE_SIZE as u64;
    Ok((segment.start() + offset, run.count * PAGE_SIZE as u64))
}

/// Private memory whose faults are served by the engine.
#[derive(Debug)]
pub struct PrivateRam {
    segments: Vec<Segment>,
    /// Reserved addresses for parked pages, in the order of the page numbers.
    parking: Mapping,
    /// One bit for each page number.
    parked: Box<[AtomicU64]>,
    parked_count: AtomicU64,
    resident: AtomicU64,
    uffd: Userfaultfd,
}

impl PrivateRam {
    /// Watches memory that is `Zero` as a whole: nothing in it has been touched.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    ///
    /// # Safety
    /// Each segment is private anonymous memory, readable and writable, page-aligned, mapped until this value is
    /// gone, and no Rust reference into it exists meanwhile.
    pub unsafe fn watch(segments: Vec<Segment>) -> Result<Self, MemoryError> {
        let uffd = Userfaultfd::open(Use::Private)?;
        let end = segments
            .iter()
            .map(|s| s.first.number() + s.pages)
            .max()
            .unwrap_or(0);
        let parking = Mapping::reserve(end)?;
        let own = Self {
            segments,
            parking,
            parked: (0..end.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            parked_count: AtomicU64::new(0),
            resident: AtomicU64::new(0),
            uffd,
        };
        for segment in &own.segments {
            let len = segment.pages * PAGE_SIZE as u64;
            // Pages come and go one by one; a large one could be neither parked nor protected as such.
            // SAFETY: advice on the caller's memory.
            unsafe {
                madvise(
                    segment.address.as_ptr().cast(),
                    len as usize,
                    Advice::LinuxNoHugepage,
                )
            }
            .step("asking for small pages (madvise)")?;
            // SAFETY: as the caller promises.
            unsafe { own.uffd.register(segment.start(), len, Watch::MissingAndWrites) }
                .step("watching guest RAM (UFFDIO_REGISTER)")?;
        }
        // SAFETY: the reservation is ours and lives as long as the descriptor.
        unsafe {
            own.uffd
                .register(own.parking.start(), own.parking.len as u64, Watch::Missing)
        }
        .step("watching parked pages (UFFDIO_REGISTER)")?;
        Ok(own)
    }

    /// Pages whose plaintext exists, parked ones too.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.resident.load(Ordering::Acquire)
    }

    /// Pages that are parked.
    #[must_use]
    pub fn parked(&self) -> u64 {
        self.parked_count.load(Ordering::Acquire)
    }

    /// Whether a page is parked.
    #[must_use]
    pub fn is_parked(&self, page: Page) -> bool {
        self.parked_word(page)
            .is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// The page that an address of this process lies in.
    #[must_use]
    pub fn page_at(&self, address: u64) -> Option<Page> {
        page_at(&self.segments, address)
    }

    /// Whether a page is in the watched memory.
    #[must_use]
    pub fn watches(&self, page: Page) -> bool {
        self.segments.iter().any(|s| s.holds(page))
    }

    /// Faults that wait.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn faults(&self, out: &mut Vec<Fault>) -> io::Result<()> {
        self.uffd.faults(out)
    }

    /// Lets those who wait for a page try again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake(&self, page: Page) -> io::Result<()> {
        let (at, len) = self.place(Run::one(page))?;
        self.uffd.wake(at, len)
    }

    /// Moves pages that have plaintext out of sight. Called with their block locked. Gives how many were moved, all of them
    /// unless there is an error.
    ///
    /// # Errors
    /// What the kernel says; the page that it is about, and those after it, stay in their places.
    pub fn park(&self, run: Run) -> (u64, io::Result<()>) {
        let (at, len) = match self.place(run) {
            Ok(place) => place,
            Err(error) => return (0, Err(error)),
        };
        // SAFETY: both are ours; pages in guest RAM are read through raw addresses only.
        let (moved, result) = unsafe { self.uffd.relocate(self.parking_place(run.first), at, len) };
        let moved = moved / PAGE_SIZE as u64;
        run.pages()
            .take(moved as usize)
            .for_each(|page| self.set_parked(page, true));
        (moved, result)
    }

    /// Moves parked pages back and wakes who waits for them. Called with their block locked.
    ///
    /// # Errors
    /// What the kernel says; pages may then be on either side, and nothing is to be done with them any more.
    pub fn unpark(&self, run: Run, access: Access) -> io::Result<()> {
        let (at, len) = self.place(run)?;
        match access {
            // SAFETY: as for `park`.
            Access::Free => unsafe { self.uffd.relocate(at, self.parking_place(run.first), len) }.1?,
            Access::Frozen => {
                // Moved they would be writable for a moment, and a write in that moment would go unseen.
                for (index, page) in (0..).zip(run.pages()) {
                    let mut bytes = [0; PAGE_SIZE];
                    self.read(page, &mut bytes)?;
                    // SAFETY: the place is in a registered segment.
                    let copied = unsafe { self.uffd.copy(at + index * PAGE_SIZE as u64, &bytes, true) };
                    bytes.fill(0);
                    std::hint::black_box(&mut bytes);
                    copied?;
                }
                self.parking.drop_pages(self.parking_place(run.first), len)?;
            }
        }
        run.pages().for_each(|page| self.set_parked(page, false));
        Ok(())
    }

    fn parked_word(&self, page: Page) -> Option<(&AtomicU64, u64)> {
        let word = self.parked.get((page.number() / 64) as usize)?;
        Some((word, 1 << (page.number() % 64)))
    }

    fn set_parked(&self, page: Page, parked: bool) {
        let Some((word, bit)) = self.parked_word(page) else {
            return;
        };
        if parked {
            word.fetch_or(bit, Ordering::AcqRel);
            self.parked_count.fetch_add(1, Ordering::AcqRel);
        } else {
            word.fetch_and(!bit, Ordering::AcqRel);
            self.parked_count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn parking_place(&self, page: Page) -> u64 {
        self.parking.start() + page.gpa()
    }

    /// Address and length of a run, which has to lie in one segment.
    fn place(&self, run: Run) -> io::Result<(u64, u64)> {
        place(&self.segments, run)
    }

    /// Splits a run where parked pages begin and end.
    fn parts(&self, run: Run) -> impl Iterator<Item = (Run, bool)> {
        let pages: Vec<Page> = run.pages().collect();
        let parts: Vec<_> = pages
            .chunk_by(|&a, &b| self.is_parked(a) == self.is_parked(b))
            .map(|chunk| {
                let part = Run {
                    first: chunk[0],
                    count: chunk.len() as u64,
                };
                (part, self.is_parked(chunk[0]))
            })
            .collect();
        parts.into_iter()
    }
}

impl Plaintext for PrivateRam {
    fn freeze(&self, run: Run) -> io::Result<()> {
        // What is parked can't be written.
        for (part, _) in self.parts(run).filter(|(_, parked)| !parked) {
            let (at, len) = self.place(part)?;
            self.uffd.protect(at, len, true)?;
        }
        Ok(())
    }

    fn thaw(&self, run: Run) -> io::Result<()> {
        for (part, _) in self.parts(run).filter(|(_, parked)| !parked) {
            let (at, len) = self.place(part)?;
            self.uffd.protect(at, len, false)?;
        }
        Ok(())
    }

    fn read(&self, page: Page, out: &mut PageBytes) -> io::Result<()> {
        let at = if self.is_parked(page) {
            self.parking_place(page)
        } else {
            self.place(Run::one(page))?.0
        };
        // SAFETY: the page has plaintext, so it is mapped there; it is frozen or parked, so nobody writes it.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, out.as_mut_ptr(), PAGE_SIZE) };
        Ok(())
    }

    fn install(&self, first: Page, bytes: &[PageBytes], access: Access) -> io::Result<()> {
        let run = Run {
            first,
            count: bytes.len() as u64,
        };
        let (at, _) = self.place(run)?;
        // Counted before: the limit holds at every moment.
        self.resident.fetch_add(run.count, Ordering::AcqRel);
        // SAFETY: the place is in a registered segment.
        let copied = unsafe { self.uffd.copy(at, bytes.as_flattened(), access == Access::Frozen) };
        if copied.is_err() {
            self.resident.fetch_sub(run.count, Ordering::AcqRel);
        }
        copied
    }

    fn release(&self, run: Run) -> io::Result<()> {
        for (part, parked) in self.parts(run) {
            if parked {
                self.parking
                    .drop_pages(self.parking_place(part.first), part.count * PAGE_SIZE as u64)?;
                part.pages().for_each(|p| self.set_parked(p, false));
            } else {
                let (at, len) = self.place(part)?;
                // SAFETY: the segment is the caller's of `watch`; the next touch faults and is served.
                unsafe { madvise(at as *mut _, len as usize, Advice::LinuxDontNeed) }?;
            }
            self.resident.fetch_sub(part.count, Ordering::AcqRel);
        }
        Ok(())
    }
}

impl AsFd for PrivateRam {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

/// Private anonymous memory of our own.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; access to what is there is the business of who follows the address.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves addresses for that many pages; memory comes as it is touched. Core dumps leave it out.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn reserve(pages: u64) -> Result<Self, MemoryError> {
        let len = (pages.max(1) as usize) * PAGE_SIZE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let raw = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }
        .step("reserving addresses (mmap)")?;
        // SAFETY: advice on the mapping just made.
        unsafe { madvise(raw, len, Advice::LinuxDontDump) }.step("keeping memory out of core dumps")?;
        // SAFETY: as above. A page that a child shares can't be moved (EBUSY), and a child needs none of them.
        unsafe { madvise(raw, len, Advice::LinuxDontFork) }.step("keeping memory out of children")?;
        // SAFETY: as above.
        unsafe { madvise(raw, len, Advice::LinuxNoHugepage) }.step("asking for small pages (madvise)")?;
        let address = NonNull::new(raw.cast()).ok_or(MemoryError::Os {
            step: "reserving addresses (mmap)",
            source: io::ErrorKind::OutOfMemory.into(),
        })?;
        Ok(Self { address, len })
    }

    /// The address of the first byte.
    #[must_use]
    pub const fn address(&self) -> NonNull<u8> {
        self.address
    }

    fn start(&self) -> u64 {
        self.address.as_ptr() as u64
    }

    fn drop_pages(&self, at: u64, len: u64) -> io::Result<()> {
        // SAFETY: callers give places inside; nobody holds references into parked pages.
        Ok(unsafe { madvise(at as *mut _, len as usize, Advice::LinuxDontNeed) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `reserve`, unmapped once. A failure leaves the addresses reserved, which harms nothing.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.len) };
    }
}
