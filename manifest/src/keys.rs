//! Keys of a context: from a root key by HKDF, with the identity in the info. Another shim, another manifest:
//! other keys, and what was sealed stays sealed.
//!
//! On plain KVM the root is a file that only its owner can read; on SNP and TDX it comes from the platform or is
//! released after attestation.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha384;
use zeroize::Zeroizing;

use crate::identity::Identity;

const ROOT_BYTES: usize = 32;

/// What a key is for. Each purpose has its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Pages of memory; salted again for each boot.
    Memory,
    /// A protected volume, by its guest path.
    Volume(&'a str),
    /// Checkpoints.
    Checkpoint,
}

impl Purpose<'_> {
    const fn parts(&self) -> (&'static [u8], &str) {
        match self {
            Self::Memory => (b"memory", ""),
            Self::Volume(guest) => (b"volume", guest),
            Self::Checkpoint => (b"checkpoint", ""),
        }
    }
}

/// What a root key can't be read from or written to.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refuses.
    #[error("root key {path}: {step}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Others could read or replace it.
    #[error("root key {path}: mode {mode:04o} lets others in; it must be 0600 or 0400 (chmod 600)")]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another user could change it.
    #[error("root key {path}: it belongs to user {owner}, not to the one who runs this")]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Not a plain file.
    #[error("root key {path}: it is not a regular file")]
    Kind {
        /// Which file.
        path: PathBuf,
    },
    /// Not a key.
    #[error("root key {path}: it does not have exactly {ROOT_BYTES} bytes")]
    Length {
        /// Which file.
        path: PathBuf,
    },
}

/// A root key. Cleared when dropped, never printed.
pub struct RootKey(Box<Zeroizing<[u8; ROOT_BYTES]>>);

impl RootKey {
    /// Makes a new key file, readable by its owner only. An existing file is never written to.
    ///
    /// # Errors
    /// [`KeyError::File`], also when there is one already.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let step = |step| {
            move |source: io::Error| KeyError::File {
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
    /// [`KeyError`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let failed = |step| {
            move |source: rustix::io::Errno| KeyError::File {
                path: path.to_owned(),
                step,
                source: source.into(),
            }
        };
        let fd = openat(CWD, path, flags, Mode::empty()).map_err(failed("opening it"))?;
        let status = fstat(&fd).map_err(failed("looking at it"))?;
        let path_of = || path.to_owned();
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(KeyError::Kind { path: path_of() });
        }
        let mode = status.st_mode & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode {
                path: path_of(),
                mode,
            });
        }
        let us = rustix::process::geteuid().as_raw();
        if status.st_uid != us && status.st_uid != 0 {
            return Err(KeyError::Owner {
                path: path_of(),
                owner: status.st_uid,
            });
        }
        Self::read(fd, path)
    }

    /// Reads a key from a descriptor that the caller was given: a pipe, a memfd. `name` is for messages.
    ///
    /// # Errors
    /// [`KeyError::File`], [`KeyError::Length`].
    pub fn read(fd: OwnedFd, name: &Path) -> Result<Self, KeyError> {
        let mut own = Self(Box::new(Zeroizing::new([0; ROOT_BYTES])));
        let mut file = File::from(fd);
        let mut beyond = [0];
        let whole = file
            .read_exact(own.0.as_mut_slice())
            .and_then(|()| file.read(&mut beyond));
        match whole {
            Ok(0) => Ok(own),
            Ok(_) => Err(KeyError::Length {
                path: name.to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(KeyError::Length {
                path: name.to_owned(),
            }),
            Err(source) => Err(KeyError::File {
                path: name.to_owned(),
                step: "reading it",
                source,
            }),
        }
    }

    /// The key of a context for a purpose: HKDF-SHA-384 (RFC 5869) without salt; info is `"cloak key v1"`, the
    /// identity, the purpose's kind and its detail, both preceded by their length in eight bytes.
    #[must_use]
    pub fn derive(&self, identity: &Identity, purpose: Purpose<'_>) -> Box<Zeroizing<[u8; 32]>> {
        let (kind, detail) = purpose.parts();
        let info: [&[u8]; 6] = [
            b"cloak key v1",
            identity.as_bytes(),
            &(kind.len() as u64).to_le_bytes(),
            kind,
            &(detail.len() as u64).to_le_bytes(),
            detail.as_bytes(),
        ];
        let mut key = Box::new(Zeroizing::new([0; 32]));
        Hkdf::<Sha384>::new(None, self.0.as_slice())
            .expand_multi_info(&info, key.as_mut_slice())
            .expect("32 bytes are less than 255 hashes, HKDF's only limit");
        key
    }

    fn random() -> io::Result<Self> {
        let mut own = Self(Box::new(Zeroizing::new([0; ROOT_BYTES])));
        // Up to 256 bytes come whole, once the generator is seeded.
        let got = getrandom(own.0.as_mut_slice(), GetRandomFlags::empty())?;
        if got == ROOT_BYTES {
            Ok(own)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Digest, ManifestDigests};
    use std::collections::BTreeSet;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn identity(shim: u8, manifest: u8) -> Identity {
        let digests = ManifestDigests {
            sha256: Digest([manifest; 32]),
            sha384: Digest([manifest; 48]),
        };
        Identity::of(&Digest([shim; 48]), &digests)
    }

    #[test]
    fn each_identity_and_purpose_has_its_own_key() {
        let root = RootKey(Box::new(Zeroizing::new([7; 32])));
        let other = RootKey(Box::new(Zeroizing::new([8; 32])));
        let identities = [identity(1, 1), identity(1, 2), identity(2, 1)];
        let purposes = [
            Purpose::Memory,
            Purpose::Checkpoint,
            Purpose::Volume("/"),
            Purpose::Volume("/data"),
            Purpose::Volume(""),
        ];
        let mut seen = BTreeSet::new();
        for root in [&root, &other] {
            for identity in &identities {
                seen.extend(purposes.map(|p| **root.derive(identity, p)));
            }
        }
        assert_eq!(seen.len(), 2 * 3 * 5);
        assert_eq!(
            root.derive(&identities[0], Purpose::Memory),
            root.derive(&identities[0], Purpose::Memory)
        );
    }

    #[test]
    fn a_key_file_is_made_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let made = RootKey::create(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(RootKey::open(&path).unwrap().0, made.0);
        assert!(matches!(RootKey::create(&path), Err(KeyError::File { .. })));
        assert_eq!(RootKey::open(&path).unwrap().0, made.0, "the refusal changed it");
    }

    #[test]
    fn wider_modes_links_and_other_lengths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        RootKey::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o601, 0o644, 0o777] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(RootKey::open(&path), Err(KeyError::Mode { .. })),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        RootKey::open(&path).unwrap();
        symlink(&path, folder.path().join("link")).unwrap();
        assert!(matches!(
            RootKey::open(&folder.path().join("link")),
            Err(KeyError::File { .. })
        ));
        assert!(matches!(
            RootKey::create(&folder.path().join("link")),
            Err(KeyError::File { .. })
        ));
        assert!(matches!(
            RootKey::open(Path::new("/")),
            Err(KeyError::Kind { .. } | KeyError::File { .. })
        ));
        for length in [0, 31, 33, 4096] {
            let odd = folder.path().join(format!("odd{length}"));
            std::fs::write(&odd, vec![1; length]).unwrap();
            std::fs::set_permissions(&odd, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(
                matches!(RootKey::open(&odd), Err(KeyError::Length { .. })),
                "{length}"
            );
        }
    }
}
