//! What all three kinds of object share: a key to find them by, a number, an owner and rights
//! (`struct kern_ipc_perm`).

use alloc::collections::BTreeMap;

use crate::errno::{Errno, SysResult};
use crate::process::Credentials;

/// `IPC_PRIVATE`: a key that nobody else finds.
pub const PRIVATE: i32 = 0;
/// `IPC_CREAT`.
pub const CREATE: u32 = 0o1000;
/// `IPC_EXCL`.
pub const EXCLUSIVE: u32 = 0o2000;
/// `IPC_NOWAIT`.
pub const NO_WAIT: u32 = 0o4000;

/// Permission to read.
pub const READ: u32 = 0o4;
/// Permission to write, or to change.
pub const WRITE: u32 = 0o2;

/// Who asks, and when.
#[derive(Debug)]
pub struct Caller<'c> {
    /// Identity.
    pub who: &'c Credentials,
    /// Process number.
    pub pid: i32,
    /// Seconds since 1970.
    pub now: i64,
}

/// What is known of any object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// Its key; [`PRIVATE`]: none.
    pub key: i32,
    /// Number.
    pub id: i32,
    /// Owner: user, group.
    pub owner: (u32, u32),
    /// Creator: user, group.
    pub creator: (u32, u32),
    /// Permission bits, and a segment's `SHM_DEST`.
    pub mode: u32,
}

impl About {
    /// Whether `who` has these rights (`ipcperms`).
    ///
    /// # Errors
    /// EACCES.
    pub fn permit(&self, who: &Credentials, want: u32) -> SysResult<()> {
        let (uid, gid) = (who.uid[1], who.gid[1]);
        let granted = if uid == self.owner.0 || uid == self.creator.0 {
            self.mode >> 6
        } else if [self.owner.1, self.creator.1]
            .iter()
            .any(|g| gid == *g || who.groups.contains(g))
        {
            self.mode >> 3
        } else {
            self.mode
        };
        if uid == 0 || want & !granted & 7 == 0 {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }

    /// Whether `who` may change or remove it.
    ///
    /// # Errors
    /// EPERM.
    pub fn permit_owner(&self, who: &Credentials) -> SysResult<()> {
        if [0, self.owner.0, self.creator.0].contains(&who.uid[1]) {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }

    /// `IPC_SET`: another owner, other permission bits.
    pub fn change(&mut self, owner: (u32, u32), mode: u32) {
        self.owner = owner;
        self.mode = self.mode & !0o777 | mode & 0o777;
    }
}

/// Something that a table keeps.
pub trait Object {
    /// What is known of it.
    fn about(&self) -> &About;
}

/// The objects of one kind.
#[derive(Debug)]
pub struct Table<T> {
    by_id: BTreeMap<i32, T>,
    last: i32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Table<T> {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            by_id: BTreeMap::new(),
            last: 0,
        }
    }

    /// A number that was not used for a long time.
    fn fresh(&mut self) -> i32 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(0);
            if !self.by_id.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

impl<T: Object> Table<T> {
    /// `shmget`, `semget`, `msgget`: the object of this key, if it `fits`, or a new one, if there are fewer than `most`.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EACCES, ENOSPC, and those of `fits` and `make`.
    pub fn find_or_make(
        &mut self,
        (key, flags, most): (i32, u32, usize),
        caller: &Caller<'_>,
        fits: impl FnOnce(&T) -> SysResult<()>,
        make: impl FnOnce(About) -> SysResult<T>,
    ) -> SysResult<i32> {
        let found = self.all().find(|o| key != PRIVATE && o.about().key == key);
        if let Some(object) = found {
            if flags & (CREATE | EXCLUSIVE) == CREATE | EXCLUSIVE {
                return Err(Errno::EEXIST);
            }
            fits(object)?;
            let about = object.about();
            // What is asked for in any of the three places.
            about.permit(caller.who, (flags >> 6 | flags >> 3 | flags) & 7)?;
            return Ok(about.id);
        }
        if key != PRIVATE && flags & CREATE == 0 {
            return Err(Errno::ENOENT);
        }
        let owner = (caller.who.uid[1], caller.who.gid[1]);
        let about = |id| About {
            key,
            id,
            owner,
            creator: owner,
            mode: flags & 0o777,
        };
        if self.by_id.len() >= most {
            return Err(Errno::ENOSPC);
        }
        let id = self.fresh();
        self.by_id.insert(id, make(about(id))?);
        Ok(id)
    }

    /// The object of this number.
    ///
    /// # Errors
    /// EINVAL.
    pub fn find(&mut self, id: i32) -> SysResult<&mut T> {
        self.by_id.get_mut(&id).ok_or(Errno::EINVAL)
    }

    /// The same, for somebody who needs these rights.
    ///
    /// # Errors
    /// EINVAL, EACCES.
    pub fn find_for(&mut self, id: i32, want: u32, who: &Credentials) -> SysResult<&mut T> {
        let object = self.find(id)?;
        object.about().permit(who, want)?;
        Ok(object)
    }

    /// The same, for its owner.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn find_owned(&mut self, id: i32, who: &Credentials) -> SysResult<&mut T> {
        let object = self.find(id)?;
        object.about().permit_owner(who)?;
        Ok(object)
    }

    /// Takes it out, for its owner.
    ///
    /// # Errors
    /// EINVAL, EPERM.
    pub fn remove(&mut self, id: i32, who: &Credentials) -> SysResult<T> {
        self.find_owned(id, who)?;
        self.by_id.remove(&id).ok_or(Errno::EINVAL)
    }

    /// Keeps those for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.by_id.retain(|_, object| keep(object));
    }

    /// All, in order of their numbers.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.by_id.values()
    }

    /// The same, to change them.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.by_id.values_mut()
    }

    /// Number of the object at this place (`SHM_STAT` and its like count in order of numbers).
    ///
    /// # Errors
    /// EINVAL.
    pub fn at(&self, place: i32) -> SysResult<i32> {
        let place = usize::try_from(place).map_err(|_| Errno::EINVAL)?;
        let object = self.all().nth(place).ok_or(Errno::EINVAL)?;
        Ok(object.about().id)
    }

    /// Highest place that is used.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.by_id.len().saturating_sub(1) as u64
    }
}

#[cfg(test)]
pub mod testing {
    //! Callers for tests.

    use super::{Caller, Credentials};

    /// Somebody.
    #[must_use]
    pub fn user(uid: u32) -> Credentials {
        Credentials {
            uid: [uid; 4],
            gid: [uid; 4],
            groups: alloc::vec![],
        }
    }

    /// A call of theirs, from process 7 at second 100.
    #[must_use]
    pub fn by(who: &Credentials) -> Caller<'_> {
        Caller {
            who,
            pid: 7,
            now: 100,
        }
    }
}
