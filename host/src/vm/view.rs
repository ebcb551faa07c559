//! A context's OS view, and what a person may see of its pages.
//!
//! What needs descriptors and keys is made before the monitor's jail closes ([`prepare`]); nothing is watched and no table
//! exists until somebody looks for the first time. A program of which nobody looks at a page runs as if there were no view.
//! With a limit on plaintext the pager keeps the books already, and the OS side's file is the swap file.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cloak_abi::layout::PAGE;
use cloak_memory::open::{OpenRam, WriteServer};
use cloak_memory::page::ContextId;
use cloak_memory::ram::{PrivateRam, Segment};
use cloak_memory::uffd::{Use, Userfaultfd};
use cloak_memory::view::ViewServer;
use cloak_memory::{FileStore, Look, Memory, MemoryError, PAGE_SIZE, Page, PageBytes, PageKeys, Secret};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zeroize::Zeroizing;

use super::error::{Step, VmError};
use super::load::Placed;

/// Most mappings of one view that are served at a time.
const MAPPINGS: usize = 8;

/// Why a page can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There can't be a view on this host.
    #[error("there is no OS view here: {0}")]
    Missing(String),
    /// Not its page.
    #[error("{0:#x} is not the address of a page of this context: its memory is {1}")]
    Outside(u64, String),
    /// With a limit the view is a file.
    #[error("with --resident the OS view is the swap file: there is nothing to attach to")]
    Swapped,
    /// Enough is enough.
    #[error("the view is mapped {MAPPINGS} times already")]
    TooMany,
    /// The engine's.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Keys of a context's sealed pages: derived from `key`, which lasts, or drawn for this run, and new in each.
///
/// # Errors
/// When there is no randomness.
pub fn keys(key: Option<Box<Zeroizing<[u8; 32]>>>, context: ContextId) -> Result<PageKeys, VmError> {
    // From the kernel: the library's own generator takes 25 ms to begin.
    let mut random = File::open("/dev/urandom").step("opening /dev/urandom")?;
    let mut draw = || -> Result<Zeroizing<[u8; 32]>, VmError> {
        let mut bytes = Zeroizing::new([0; 32]);
        random.read_exact(&mut *bytes).step("reading /dev/urandom")?;
        Ok(bytes)
    };
    // Without a manifest a context has no lasting key: its memory ends with it.
    let key = match key {
        Some(key) => Secret::new(&key),
        None => Secret::new(&*draw()?),
    };
    // A lasting key has to give other page keys in each run.
    let salt = draw()?;
    Ok(PageKeys::derive(&key, context, &salt).map_err(MemoryError::from)?)
}

/// Where the parts of guest RAM `[start, end)` lie.
pub fn segment(memory: &GuestMemoryMmap, start: u64, end: u64) -> Option<Segment> {
    let bytes = end.checked_sub(start).filter(|&bytes| bytes > 0)?;
    let host = memory.get_host_address(GuestAddress(start)).ok()?;
    Some(Segment {
        first: Page::containing(start)?,
        pages: bytes / PAGE,
        address: NonNull::new(host)?,
    })
}

/// What was made before the jail closed.
#[derive(Debug)]
struct Parts {
    keys: PageKeys,
    uffd: Userfaultfd,
    store: FileStore,
}

#[derive(Debug)]
enum Source {
    Open {
        segments: Vec<Segment>,
        parts: Mutex<Option<Parts>>,
        begun: OnceLock<Begun>,
    },
    Paged(Arc<Memory<PrivateRam, FileStore>>),
    Missing(String),
}

/// The view of memory that is plaintext as a whole, once somebody has looked.
#[derive(Debug)]
struct Begun {
    memory: Arc<Memory<OpenRam, FileStore>>,
    _writes: WriteServer,
}

/// A context's view.
pub struct View {
    context: ContextId,
    source: Source,
    failed: Arc<dyn Fn(MemoryError) + Send + Sync>,
    frames: [[u64; 2]; 2],
    /// Below it lies the shim's own.
    first: u64,
    mappings: Mutex<usize>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// A mapping that is served while this exists.
#[derive(Debug)]
pub struct Mapped<'v> {
    view: &'v View,
    _server: ViewServer,
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        *self.view.mappings.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

impl View {
    /// The view of a context without a limit. What is missing on this host is told when somebody looks. `failed` is called
    /// when the context can't go on.
    pub fn new(
        memory: &GuestMemoryMmap,
        key: Option<Box<Zeroizing<[u8; 32]>>>,
        context: ContextId,
        placed: &Placed,
        failed: Arc<dyn Fn(MemoryError) + Send + Sync>,
    ) -> Self {
        let segments: Vec<Segment> = placed
            .frames
            .iter()
            .filter_map(|&[start, end]| segment(memory, start, end))
            .collect();
        let source = match prepare(key, context, &segments) {
            Ok(parts) => Source::Open {
                segments,
                parts: Mutex::new(Some(parts)),
                begun: OnceLock::new(),
            },
            Err(error) => Source::Missing(error.to_string()),
        };
        Self::of(source, context, placed, failed)
    }

    /// The view of a context whose plaintext is limited.
    pub fn paged(
        memory: Arc<Memory<PrivateRam, FileStore>>,
        context: ContextId,
        placed: &Placed,
        failed: Arc<dyn Fn(MemoryError) + Send + Sync>,
    ) -> Self {
        Self::of(Source::Paged(memory), context, placed, failed)
    }

    /// None, and why.
    pub fn none(
        why: &str,
        context: ContextId,
        placed: &Placed,
        failed: Arc<dyn Fn(MemoryError) + Send + Sync>,
    ) -> Self {
        Self::of(Source::Missing(why.to_owned()), context, placed, failed)
    }

    fn of(
        source: Source,
        context: ContextId,
        placed: &Placed,
        failed: Arc<dyn Fn(MemoryError) + Send + Sync>,
    ) -> Self {
        Self {
            context,
            source,
            failed,
            frames: placed.frames,
            first: placed.free_frames,
            mappings: Mutex::new(0),
        }
    }

    /// Number of the context.
    pub fn context(&self) -> ContextId {
        self.context
    }

    /// Begins to keep the books, if nobody has looked before.
    fn begun(&self) -> Result<&Arc<Memory<OpenRam, FileStore>>, ViewError> {
        let (segments, parts, begun) = match &self.source {
            Source::Open {
                segments,
                parts,
                begun,
            } => (segments, parts, begun),
            Source::Paged(_) => return Err(ViewError::Swapped),
            Source::Missing(why) => return Err(ViewError::Missing(why.clone())),
        };
        let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Parts { keys, uffd, store }) = parts.take() {
            let pages = store.pages();
            // SAFETY: guest RAM is private anonymous memory that stays mapped while the process lives; the monitor reads
            // and writes it through raw copies and atomics only.
            let ram = unsafe { OpenRam::watch(segments.clone(), uffd) }?;
            let memory = Arc::new(Memory::in_use(keys, pages, ram, store));
            let failed = self.failed.clone();
            let writes = WriteServer::start(memory.clone(), move |error| failed(error))?;
            // Set once, under the lock.
            let _ = begun.set(Begun {
                memory,
                _writes: writes,
            });
        }
        begun.get().map(|begun| &begun.memory).ok_or_else(|| {
            ViewError::Missing("it could not be begun; the first who looked was told why".to_owned())
        })
    }

    /// A page from both sides.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn look(&self, gpa: u64) -> Result<(Page, Look), ViewError> {
        let own = |&[start, end]: &[u64; 2]| (start..end).contains(&gpa);
        let outside = || {
            let parts = self.frames.iter().filter(|[start, end]| start < end);
            let text: Vec<String> = parts
                .map(|[start, end]| format!("{start:#x}..{end:#x}"))
                .collect();
            ViewError::Outside(gpa, text.join(" and "))
        };
        let page = Page::containing(gpa)
            .filter(|_| self.frames.iter().any(own))
            .ok_or_else(outside)?;
        match &self.source {
            Source::Paged(memory) if !memory.plaintext().watches(page) => Err(outside()),
            Source::Paged(memory) => Ok((page, memory.look(page)?)),
            _ => Ok((page, self.begun()?.look(page)?)),
        }
    }

    /// The file of the view, its pages, and whether it is sealed at a touch.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn file(&self) -> Result<(OwnedFd, u64, bool), ViewError> {
        if let Source::Paged(memory) = &self.source {
            return Ok((memory.store().share()?, memory.store().pages(), false));
        }
        let store = self.begun()?.store();
        Ok((store.share()?, store.pages(), true))
    }

    /// Serves a mapping of that file, in the process that the userfaultfd comes from.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn attach(&self, uffd: OwnedFd, base: u64) -> Result<Mapped<'_>, ViewError> {
        let memory = self.begun()?.clone();
        let uffd = Userfaultfd::from_peer(uffd).map_err(|source| MemoryError::Os {
            step: "taking the caller's userfaultfd",
            source,
        })?;
        let failed = self.failed.clone();
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        if *mappings >= MAPPINGS {
            return Err(ViewError::TooMany);
        }
        let server = ViewServer::start(memory, uffd, base, move |error| failed(error))?;
        *mappings += 1;
        Ok(Mapped {
            view: self,
            _server: server,
        })
    }

    /// The first page that `wanted` accepts, of those that the shim hands out and whose plaintext is there. What it is
    /// shown may be changing.
    ///
    /// # Errors
    /// [`ViewError::Missing`].
    pub fn find(&self, mut wanted: impl FnMut(&PageBytes) -> bool) -> Result<Option<u64>, ViewError> {
        Ok(match &self.source {
            Source::Paged(memory) => memory.search(|_, bytes| wanted(bytes)).map(Page::gpa),
            Source::Open { segments, .. } => {
                let mut bytes = Zeroizing::new([0; PAGE_SIZE]);
                segments.iter().find_map(|segment| {
                    let begin = (self.first / PAGE).saturating_sub(segment.first.number());
                    (begin..segment.pages).find_map(|index| {
                        let from = segment.address.as_ptr() as u64 + index * PAGE;
                        // SAFETY: inside guest RAM, which is never unmapped. The guest may write it meanwhile: what is
                        // copied is then some of either.
                        unsafe {
                            std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), PAGE_SIZE);
                        }
                        wanted(&bytes).then_some((segment.first.number() + index) * PAGE)
                    })
                })
            }
            Source::Missing(why) => return Err(ViewError::Missing(why.clone())),
        })
    }
}

/// What has to be there before the jail closes.
fn prepare(
    key: Option<Box<Zeroizing<[u8; 32]>>>,
    context: ContextId,
    segments: &[Segment],
) -> Result<Parts, VmError> {
    let end = segments.iter().map(|s| s.first.number() + s.pages).max();
    Ok(Parts {
        uffd: Userfaultfd::open(Use::Writes)?,
        store: FileStore::view(end.unwrap_or(0))?,
        keys: keys(key, context)?,
    })
}
