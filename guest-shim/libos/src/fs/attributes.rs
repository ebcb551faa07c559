//! File attributes in the shapes of `stat`, `statx` and `statfs`, and the checks on those from the host.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::file::Stat;
use super::flags::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};
use crate::errno::{Errno, SysResult};
#[cfg(test)]
use crate::testing::weaken::{Protection, without};

/// `STATX_BASIC_STATS`.
pub const STATX_BASIC: u32 = 0x7ff;
/// `STATX_BTIME`.
pub const STATX_BTIME: u32 = 0x800;

/// `struct statx_timestamp`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timestamp {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: u32,
    /// Zero.
    pub reserved: i32,
}

/// `struct statx`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Statx {
    pub mask: u32,
    pub blksize: u32,
    pub attributes: u64,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub mode: u16,
    pub pad: u16,
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub attributes_mask: u64,
    pub atime: Timestamp,
    pub btime: Timestamp,
    pub ctime: Timestamp,
    pub mtime: Timestamp,
    pub rdev_major: u32,
    pub rdev_minor: u32,
    pub dev_major: u32,
    pub dev_minor: u32,
    pub mnt_id: u64,
    pub dio: [u32; 2],
    pub spare: [u64; 12],
}

const _: () = assert!(
    size_of::<Stat>() == 144 && size_of::<Statx>() == 256,
    "Linux's x86-64 layout"
);

/// `struct statfs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct StatFs {
    pub kind: i64,
    pub bsize: i64,
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub fsid: [i32; 2],
    pub namelen: i64,
    pub frsize: i64,
    pub flags: i64,
    pub spare: [i64; 4],
}

const _: () = assert!(size_of::<StatFs>() == 120, "Linux's x86-64 layout");

/// `makedev` of glibc and the kernel's 64-bit `stat`.
#[must_use]
pub const fn make_dev(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

/// Major and minor of a device number.
#[must_use]
pub const fn split_dev(dev: u64) -> (u32, u32) {
    (
        (dev >> 8 & 0xfff | dev >> 32 & !0xfff) as u32,
        (dev & 0xff | dev >> 12 & !0xff) as u32,
    )
}

fn is_kind(mode: u32) -> bool {
    matches!(
        mode & S_IFMT,
        S_IFREG | S_IFDIR | S_IFLNK | S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK
    )
}

/// Checks attributes from the host.
///
/// # Errors
/// EIO when no Linux would give them.
pub fn check(stat: Stat) -> SysResult<Stat> {
    let nanoseconds = [stat.atime[1], stat.mtime[1], stat.ctime[1]]
        .iter()
        .all(|n| (0..1_000_000_000).contains(n));
    let sane = is_kind(stat.mode)
        && stat.mode >> 16 == 0
        && stat.size >= 0
        && stat.blocks >= 0
        && (0..=1 << 30).contains(&stat.blksize)
        && nanoseconds;
    #[cfg(test)]
    let sane = sane || without(Protection::Attributes);
    if sane {
        Ok(Stat {
            pad: 0,
            unused: [0; 3],
            ..stat
        })
    } else {
        Err(Errno::EIO)
    }
}

/// Checks extended attributes from the host.
///
/// # Errors
/// EIO when no Linux would give them.
pub fn check_statx(x: Statx) -> SysResult<Statx> {
    check(stat_of(&x))?;
    Ok(Statx {
        pad: 0,
        spare: [0; 12],
        ..x
    })
}

const fn seconds(t: Timestamp) -> [i64; 2] {
    [t.sec, t.nsec as i64]
}

const fn timestamp(t: [i64; 2]) -> Timestamp {
    Timestamp {
        sec: t[0],
        nsec: t[1] as u32,
        reserved: 0,
    }
}

/// The part of `statx` that `stat` has. Sizes beyond `i64` become negative, which [`check`] refuses.
#[must_use]
pub fn stat_of(x: &Statx) -> Stat {
    Stat {
        dev: make_dev(x.dev_major, x.dev_minor),
        ino: x.ino,
        nlink: u64::from(x.nlink),
        mode: u32::from(x.mode),
        uid: x.uid,
        gid: x.gid,
        rdev: make_dev(x.rdev_major, x.rdev_minor),
        size: x.size as i64,
        blksize: i64::from(x.blksize),
        blocks: x.blocks as i64,
        atime: seconds(x.atime),
        mtime: seconds(x.mtime),
        ctime: seconds(x.ctime),
        ..Stat::default()
    }
}

/// `statx` from `stat`, for files that have no more to say.
#[must_use]
pub fn statx_of(stat: &Stat) -> Statx {
    let (dev_major, dev_minor) = split_dev(stat.dev);
    let (rdev_major, rdev_minor) = split_dev(stat.rdev);
    Statx {
        mask: STATX_BASIC,
        blksize: stat.blksize as u32,
        nlink: u32::try_from(stat.nlink).unwrap_or(u32::MAX),
        uid: stat.uid,
        gid: stat.gid,
        mode: stat.mode as u16,
        ino: stat.ino,
        size: stat.size as u64,
        blocks: stat.blocks as u64,
        atime: timestamp(stat.atime),
        ctime: timestamp(stat.ctime),
        mtime: timestamp(stat.mtime),
        rdev_major,
        rdev_minor,
        dev_major,
        dev_minor,
        ..Statx::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [
            (0, 0),
            (1, 3),
            (259, 70000),
            (0xfff, 0xfffff),
            (0x1234_5678, 0x9abc_def0),
        ] {
            assert_eq!(split_dev(make_dev(major, minor)), (major, minor));
        }
    }

    #[test]
    fn absurd_attributes_are_lies() {
        let good = Stat {
            mode: S_IFREG | 0o644,
            blksize: 4096,
            ..Stat::default()
        };
        assert_eq!(check(good), Ok(good));
        for bad in [
            Stat { size: -1, ..good },
            Stat { mode: 0, ..good },
            Stat {
                mode: 0o170_644,
                ..good
            },
            Stat {
                mode: good.mode | 1 << 20,
                ..good
            },
            Stat { blksize: -5, ..good },
            Stat { blocks: -1, ..good },
            Stat {
                mtime: [0, 1_000_000_000],
                ..good
            },
        ] {
            assert_eq!(check(bad), Err(Errno::EIO));
        }
    }

    #[test]
    fn statx_and_stat_say_the_same() {
        let stat = Stat {
            mode: S_IFREG | 0o600,
            size: 7,
            dev: make_dev(8, 1),
            ino: 9,
            nlink: 1,
            ..Stat::default()
        };
        assert_eq!(stat_of(&statx_of(&stat)), stat);
    }
}
