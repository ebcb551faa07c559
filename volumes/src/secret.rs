//! Secrets of 32 bytes in files that only their owner reads, or from a descriptor: root keys and volume keys.

use alloc::boxed::Box;
use core::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;

/// Why a key file can't be read or made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The system refuses.
    #[error("key {path}: {step}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Others could read or replace it.
    #[error("key {path}: mode {mode:04o} lets others in; it must be 0600 or 0400 (chmod 600)")]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another user could change it.
    #[error("key {path}: it belongs to user {owner}, not to the one who runs this")]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Not a plain file.
    #[error("key {path}: it is not a regular file")]
    Kind {
        /// Which file.
        path: PathBuf,
    },
    /// Not a key.
    #[error("key {path}: it does not have exactly {SECRET_BYTES} bytes")]
    Length {
        /// Which file.
        path: PathBuf,
    },
}

/// A secret. Cleared when dropped, never printed.
pub struct Secret(Box<Zeroizing<[u8; SECRET_BYTES]>>);

impl Secret {
    /// Makes a new key file, readable by its owner only. An existing file is never written to.
    ///
    /// # Errors
    /// [`SecretError::File`], also when there is one already.
    pub fn create(path: &Path) -> Result<Self, SecretError> {
        let step = |step| {
            move |source: io::Error| SecretError::File {
                path: path.to_owned(),
                step,
                source,
            }
        };
        let own = Self::random().map_err(step("drawing a random key"))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| step("creating it (an existing one is not overwritten)")(e.into()))?;
        let mut file = File::from(fd);
        let written = file.write_all(own.0.as_slice()).and_then(|()| file.sync_all());
        written.map_err(step("writing it"))?;
        Ok(own)
    }

    /// Reads a key file, which nobody else may read or change.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let failed = |step| {
            move |source: rustix::io::Errno| SecretError::File {
                path: path.to_owned(),
                step,
                source: source.into(),
            }
        };
        let fd = openat(CWD, path, flags, Mode::empty()).map_err(failed("opening it"))?;
        let status = fstat(&fd).map_err(failed("looking at it"))?;
        let path_of = || path.to_owned();
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(SecretError::Kind { path: path_of() });
        }
        let mode = status.st_mode & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Mode {
                path: path_of(),
                mode,
            });
        }
        let us = rustix::process::geteuid().as_raw();
        if status.st_uid != us && status.st_uid != 0 {
            return Err(SecretError::Owner {
                path: path_of(),
                owner: status.st_uid,
            });
        }
        Self::read(fd, path)
    }

    /// Reads a key from a descriptor that the caller was given: a pipe, a memfd. `name` is for messages.
    ///
    /// # Errors
    /// [`SecretError::File`], [`SecretError::Length`].
    pub fn read(fd: OwnedFd, name: &Path) -> Result<Self, SecretError> {
        let mut own = Self(Box::new(Zeroizing::new([0; SECRET_BYTES])));
        let mut file = File::from(fd);
        let mut beyond = [0];
        let whole = file
            .read_exact(own.0.as_mut_slice())
            .and_then(|()| file.read(&mut beyond));
        match whole {
            Ok(0) => Ok(own),
            Ok(_) => Err(SecretError::Length {
                path: name.to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(SecretError::Length {
                path: name.to_owned(),
            }),
            Err(source) => Err(SecretError::File {
                path: name.to_owned(),
                step: "reading it",
                source,
            }),
        }
    }

    /// The bytes, for who derives keys from them.
    #[must_use]
    pub fn into_bytes(self) -> Box<Zeroizing<[u8; SECRET_BYTES]>> {
        self.0
    }

    /// Takes one that was derived elsewhere.
    #[must_use]
    pub fn from_bytes(bytes: Box<Zeroizing<[u8; SECRET_BYTES]>>) -> Self {
        Self(bytes)
    }

    /// Draws a new one, which is in no file.
    ///
    /// # Errors
    /// What the system's generator says.
    pub fn random() -> io::Result<Self> {
        let mut own = Self(Box::new(Zeroizing::new([0; SECRET_BYTES])));
        // Up to 256 bytes come whole, once the generator is seeded.
        let got = getrandom(own.0.as_mut_slice(), GetRandomFlags::empty())?;
        if got == SECRET_BYTES {
            Ok(own)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_key_file_is_made_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let made = Secret::create(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(Secret::open(&path).unwrap().0, made.0);
        assert!(matches!(Secret::create(&path), Err(SecretError::File { .. })));
        assert_eq!(Secret::open(&path).unwrap().0, made.0, "the refusal changed it");
    }

    #[test]
    fn wider_modes_links_and_other_lengths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        Secret::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o601, 0o644, 0o777] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(Secret::open(&path), Err(SecretError::Mode { .. })),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        Secret::open(&path).unwrap();
        symlink(&path, folder.path().join("link")).unwrap();
        assert!(matches!(
            Secret::open(&folder.path().join("link")),
            Err(SecretError::File { .. })
        ));
        assert!(matches!(
            Secret::create(&folder.path().join("link")),
            Err(SecretError::File { .. })
        ));
        assert!(matches!(
            Secret::open(Path::new("/")),
            Err(SecretError::Kind { .. } | SecretError::File { .. })
        ));
        for length in [0, 31, 33, 4096] {
            let odd = folder.path().join(format!("odd{length}"));
            std::fs::write(&odd, vec![1; length]).unwrap();
            std::fs::set_permissions(&odd, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(
                matches!(Secret::open(&odd), Err(SecretError::Length { .. })),
                "{length}"
            );
        }
    }
}
