//! The shared memory segments of the context.
//!
//! Each segment has two open files, one for attaching to read and write and one for attaching to read only. A mapping
//! holds one of them, so the number of attachments (`shm_nattch`) is the number of holders. A segment that was removed
//! is held by its mappings alone: the last one that goes takes its memory along.

use alloc::sync::{Arc, Weak};
use core::any::Any;

use cloak_abi::layout::PAGE;
use spin::Mutex;

use super::table::{About, Caller, Object, PRIVATE, READ, Table, WRITE};
use crate::errno::{Errno, SysResult};
use crate::fs::file::{Mapping, Stat};
use crate::fs::{File, OpenFile};
use crate::mem::pages::PageCache;

/// `SHM_DEST`, in the mode of a segment that goes with its last attachment.
pub const REMOVED: u32 = 0o1000;
/// Most segments (`SHMMNI`).
pub const MOST: usize = 4096;
/// Most bytes of one (`SHMMAX`): what a mapping can reach. Frames are the real limit.
pub const LARGEST: u64 = 1 << 46;

/// The memory of a segment, as a file.
#[derive(Debug)]
pub struct SegmentFile {
    id: i32,
    size: u64,
    pages: Arc<PageCache>,
}

impl SegmentFile {
    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl File for SegmentFile {
    fn stat(&self) -> SysResult<Stat> {
        Ok(Stat {
            ino: self.id as u64,
            nlink: 0,
            mode: crate::fs::flags::S_IFREG | 0o600,
            size: self.size as i64,
            blksize: PAGE as i64,
            ..Stat::default()
        })
    }

    fn map(&self, shared: bool) -> SysResult<Mapping> {
        let _ = shared;
        Ok(Mapping::Pages(self.pages.clone()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What is known of a segment (`struct shmid_ds`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Its key ([`PRIVATE`] once it was removed), number, owner and rights, and [`REMOVED`].
    pub about: About,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970 of the last attachment, detachment and change; 0: never.
    pub times: [i64; 3],
    /// Process that made it, and that attached or detached last; 0: none.
    pub processes: [i32; 2],
    /// Attachments.
    pub attached: u64,
}

/// A segment.
#[derive(Debug)]
pub struct Segment {
    known: Description,
    /// For reading and writing, for reading.
    files: [Weak<OpenFile>; 2],
    /// Holds them until it is removed.
    kept: Option<[Arc<OpenFile>; 2]>,
}

impl Object for Segment {
    fn about(&self) -> &About {
        &self.known.about
    }
}

impl Segment {
    fn new(about: About, size: u64, caller: &Caller<'_>) -> Self {
        let pages = Arc::new(PageCache::default());
        pages.set_size(size.next_multiple_of(PAGE));
        let file: Arc<dyn File> = Arc::new(SegmentFile {
            id: about.id,
            size,
            pages,
        });
        let kept = [2, 0].map(|access| open(file.clone(), access, about.key));
        Self {
            known: Description {
                about,
                size,
                times: [0, 0, caller.now],
                processes: [caller.pid, 0],
                attached: 0,
            },
            files: kept.each_ref().map(Arc::downgrade),
            kept: Some(kept),
        }
    }

    fn attached(&self) -> u64 {
        let holders: usize = self.files.iter().map(Weak::strong_count).sum();
        (holders - self.kept.as_ref().map_or(0, |kept| kept.len())) as u64
    }

    /// Removed, and nobody is attached any more.
    fn has_gone(&self) -> bool {
        self.kept.is_none() && self.attached() == 0
    }

    fn describe(&self) -> Description {
        Description {
            attached: self.attached(),
            ..self.known
        }
    }

    fn file(&mut self, read_only: bool) -> SysResult<Arc<OpenFile>> {
        let wanted = usize::from(read_only);
        if let Some(open) = self.files[wanted].upgrade() {
            return Ok(open);
        }
        // Removed, and attached in the other way only.
        let other = self.files[1 - wanted].upgrade().ok_or(Errno::EINVAL)?;
        let access = if read_only { 0 } else { 2 };
        let fresh = open(other.file.clone(), access, self.known.about.key);
        self.files[wanted] = Arc::downgrade(&fresh);
        Ok(fresh)
    }
}

fn open(file: Arc<dyn File>, access: u32, key: i32) -> Arc<OpenFile> {
    let name = alloc::format!("/SYSV{key:08x} (deleted)");
    OpenFile::new(file, access, name.into_bytes())
}

/// All segments.
#[derive(Debug, Default)]
pub struct Segments(Table<Segment>);

/// The segments of the context.
pub static SEGMENTS: Mutex<Segments> = Mutex::new(Segments(Table::new()));

impl Segments {
    /// `shmget`.
    ///
    /// # Errors
    /// As shmget(2): ENOENT, EEXIST, EACCES, EINVAL, ENOSPC.
    pub fn find_or_make(&mut self, key: i32, size: u64, flags: u32, caller: &Caller<'_>) -> SysResult<i32> {
        self.table().find_or_make(
            (key, flags, MOST),
            caller,
            |segment| {
                if size > segment.known.size {
                    Err(Errno::EINVAL)
                } else {
                    Ok(())
                }
            },
            |about| {
                if size == 0 || size > LARGEST {
                    Err(Errno::EINVAL)
                } else {
                    Ok(Segment::new(about, size, caller))
                }
            },
        )
    }

    /// Those that are still there.
    pub fn table(&mut self) -> &mut Table<Segment> {
        self.0.retain(|segment| !segment.has_gone());
        &mut self.0
    }

    /// What `shmat` maps; its holder is attached.
    ///
    /// # Errors
    /// EINVAL, EACCES.
    pub fn attach(&mut self, id: i32, read_only: bool, caller: &Caller<'_>) -> SysResult<Arc<OpenFile>> {
        let want = if read_only { READ } else { READ | WRITE };
        let segment = self.table().find_for(id, want, caller.who)?;
        let file = segment.file(read_only)?;
        segment.known.times[0] = caller.now;
        segment.known.processes[1] = caller.pid;
        Ok(file)
    }

    /// Somebody detached.
    pub fn detached(&mut self, file: &SegmentFile, caller: &Caller<'_>) {
        if let Ok(segment) = self.0.find(file.id) {
            segment.known.times[1] = caller.now;
            segment.known.processes[1] = caller.pid;
        }
        self.table();
    }

    /// `IPC_STAT`; with `any` whatever its rights are (`SHM_STAT_ANY`).
    ///
    /// # Errors
    /// EINVAL, EACCES.
    pub fn describe(&mut self, id: i32, any: bool, caller: &Caller<'_>) -> SysResult<Description> {
        let want = if any { 0 } else { READ };
        let segment = self.table().find_for(id, want, caller.who)?;
        Ok(segment.describe())
    }

    /// All that there are, in order of their numbers.
    pub fn all(&mut self) -> impl Iterator<Item = Description> {
        self.table().all().map(Segment::describe)
    }

    /// `IPC_SET`.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn change(&mut self, id: i32, owner: (u32, u32), mode: u32, caller: &Caller<'_>) -> SysResult<()> {
        let segment = self.table().find_owned(id, caller.who)?;
        segment.known.about.change(owner, mode);
        segment.known.times[2] = caller.now;
        Ok(())
    }

    /// `IPC_RMID`: gone at once, or with its last attachment.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn remove(&mut self, id: i32, caller: &Caller<'_>) -> SysResult<()> {
        let segment = self.table().find_owned(id, caller.who)?;
        segment.kept = None;
        segment.known.about.key = PRIVATE;
        segment.known.about.mode |= REMOVED;
        self.table();
        Ok(())
    }

    /// Whether the caller may lock it (`SHM_LOCK`), which changes nothing: guest memory is not swapped by the guest.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn may_lock(&mut self, id: i32, caller: &Caller<'_>) -> SysResult<()> {
        self.table().find_owned(id, caller.who).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::testing::{by, user};
    use super::super::table::{CREATE, EXCLUSIVE};
    use super::*;
    use crate::process::Credentials;

    #[test]
    fn keys_find_what_was_made_under_them() {
        let (mut all, me) = (Segments::default(), user(1));
        assert_eq!(all.find_or_make(5, 10, 0o600, &by(&me)), Err(Errno::ENOENT));
        let id = all.find_or_make(5, 10, CREATE | 0o600, &by(&me)).expect("made");
        assert_eq!(all.find_or_make(5, 10, 0o600, &by(&me)), Ok(id));
        assert_eq!(all.find_or_make(5, 11, 0o600, &by(&me)), Err(Errno::EINVAL));
        assert_eq!(
            all.find_or_make(5, 10, CREATE | EXCLUSIVE | 0o600, &by(&me)),
            Err(Errno::EEXIST)
        );
        assert_eq!(
            all.find_or_make(6, 0, CREATE | 0o600, &by(&me)),
            Err(Errno::EINVAL)
        );
        let private = all.find_or_make(PRIVATE, 10, 0o600, &by(&me)).expect("made");
        assert!(private != id && all.find_or_make(PRIVATE, 10, 0o600, &by(&me)) != Ok(private));
    }

    #[test]
    fn attachments_are_counted_by_their_holders() {
        let (mut all, me) = (Segments::default(), user(1));
        let id = all.find_or_make(5, 10, CREATE | 0o600, &by(&me)).expect("made");
        let count = |all: &mut Segments| all.describe(id, false, &by(&me)).map(|d| d.attached);
        assert_eq!(count(&mut all), Ok(0));
        let first = all.attach(id, false, &by(&me)).expect("attached");
        let (second, copy) = (all.attach(id, true, &by(&me)).expect("attached"), first.clone());
        assert_eq!(count(&mut all), Ok(3));
        assert!(first.writable() && !second.writable());
        drop((first, copy));
        assert_eq!(count(&mut all), Ok(1));
    }

    #[test]
    fn a_removed_segment_goes_with_its_last_attachment() {
        let (mut all, me) = (Segments::default(), user(1));
        let id = all.find_or_make(5, 10, CREATE | 0o600, &by(&me)).expect("made");
        let held = all.attach(id, true, &by(&me)).expect("attached");
        all.remove(id, &by(&me)).expect("removed");
        let about = all.describe(id, false, &by(&me)).expect("still there");
        assert_eq!((about.about.key, about.about.mode), (PRIVATE, 0o600 | REMOVED));
        // Its key is free, and it can still be attached by its number, in either way.
        assert_eq!(all.find_or_make(5, 10, 0, &by(&me)), Err(Errno::ENOENT));
        let again = all.attach(id, false, &by(&me)).expect("attached");
        assert!(again.writable() && Arc::ptr_eq(&again.file, &held.file));
        drop((again, held));
        assert_eq!(all.describe(id, false, &by(&me)), Err(Errno::EINVAL));
        let other = all.find_or_make(5, 10, CREATE, &by(&me)).expect("made");
        all.remove(other, &by(&me)).expect("removed");
        assert_eq!(all.all().count(), 0);
    }

    #[test]
    fn rights_are_the_owners_to_give() {
        let (mut all, me, other, root) = (Segments::default(), user(1), user(2), user(0));
        let id = all.find_or_make(5, 10, CREATE | 0o640, &by(&me)).expect("made");
        assert_eq!(all.find_or_make(5, 10, 0o600, &by(&other)), Err(Errno::EACCES));
        assert!(all.attach(id, true, &by(&other)).is_err());
        assert!(all.attach(id, false, &by(&root)).is_ok());
        let member = Credentials {
            groups: alloc::vec![1],
            ..user(3)
        };
        assert!(all.attach(id, true, &by(&member)).is_ok());
        assert!(all.attach(id, false, &by(&member)).is_err());
        assert_eq!(all.remove(id, &by(&other)), Err(Errno::EPERM));
        assert_eq!(all.change(id, (2, 2), 0o600, &by(&me)), Ok(()));
        // The creator stays one who may.
        assert!(all.attach(id, false, &by(&other)).is_ok() && all.remove(id, &by(&me)).is_ok());
    }
}
