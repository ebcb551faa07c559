//! What the program is told when a volume fails, and what its user is told.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use cloak_volumes::{StoreError, VolumeError};

use super::Protected;
use crate::errno::Errno;

/// Lines about one volume: a program that goes on after EIO does not fill the terminal.
const LINES: u32 = 16;

/// The error number that Linux's own file systems give for it.
pub const fn errno_of(error: &VolumeError) -> Errno {
    match error {
        VolumeError::ReadOnly => Errno::EROFS,
        VolumeError::NoSpace
        | VolumeError::DirectoryFull
        | VolumeError::AttributesTooLarge
        | VolumeError::Store {
            source: StoreError::Full,
            ..
        } => Errno::ENOSPC,
        VolumeError::NotFound => Errno::ENOENT,
        VolumeError::Exists => Errno::EEXIST,
        VolumeError::NotDirectory(_) => Errno::ENOTDIR,
        VolumeError::IsDirectory(_) => Errno::EISDIR,
        VolumeError::NotEmpty(_) => Errno::ENOTEMPTY,
        VolumeError::Loop | VolumeError::Invalid(_) => Errno::EINVAL,
        VolumeError::NameTooLong => Errno::ENAMETOOLONG,
        VolumeError::FileTooLarge => Errno::EFBIG,
        VolumeError::TooManyLinks => Errno::EMLINK,
        VolumeError::NoAttribute => Errno::ENODATA,
        VolumeError::Tampered(_)
        | VolumeError::Inconsistent { .. }
        | VolumeError::NoVolume
        | VolumeError::WrongKey(_)
        | VolumeError::Foreign { .. }
        | VolumeError::RolledBack { .. }
        | VolumeError::AnchorBehind { .. }
        | VolumeError::Anchor(_)
        | VolumeError::Store { .. }
        | VolumeError::Poisoned
        | VolumeError::Exhausted
        | VolumeError::EpochsExhausted => Errno::EIO,
    }
}

impl Protected {
    /// The error number; what is nobody's inside is told on standard error.
    pub(super) fn explain(&self, error: &VolumeError) -> Errno {
        let errno = errno_of(error);
        let serious = errno == Errno::EIO || matches!(error, VolumeError::Store { .. });
        if serious {
            let before = self.told.fetch_add(1, Ordering::Relaxed);
            if before < LINES {
                let more = if before + 1 == LINES {
                    " (no more is said of this volume)"
                } else {
                    ""
                };
                let path = String::from_utf8_lossy(&self.path);
                crate::host::tell(&format!("cloak: {path}: {error}{more}\n"));
            }
        }
        errno
    }
}
