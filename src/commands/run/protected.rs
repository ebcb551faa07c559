//! `--protected CONTAINER:GUEST:key=FILE…`: a protected volume, as a user names it.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cloak_host::run::{Anchor, Mark, Protected, VolumeKey};
use cloak_volumes::anchor::{self, AnchorError};
use cloak_volumes::files::HeldAnchor;
use cloak_volumes::keys::VolumeId;
use cloak_volumes::secret::{Secret, SecretError};

/// Where a key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KeySource {
    /// A file of 32 bytes that its owner alone reads.
    File(PathBuf),
    /// A descriptor of the caller's.
    Descriptor(u32),
    /// None: the ciphertext is shown.
    Nobody,
}

/// The option as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    container: PathBuf,
    guest: PathBuf,
    read_only: bool,
    key: KeySource,
    anchor: Option<PathBuf>,
    begin_anchor: bool,
}

/// Why a volume that was asked for can't be given to a guest.
#[derive(Debug, thiserror::Error)]
pub enum ProtectedError {
    /// Its key can't be had.
    #[error(transparent)]
    Key(#[from] SecretError),
    /// There is no such descriptor.
    #[error("key-fd={0}: there is no such descriptor")]
    Descriptor(u32),
    /// Its anchor can't be used.
    #[error("anchor {path}: {source}")]
    Anchor {
        /// The anchor's file.
        path: PathBuf,
        /// Why not.
        source: AnchorError,
    },
}

/// An anchor of a volume that a manifest names, as the option is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnchorAsked {
    guest: String,
    file: PathBuf,
    begin: bool,
}

/// The shape of `--anchor`.
pub const ANCHOR_SHAPE: &str = "GUEST=FILE[,begin-anchor]";

impl AnchorAsked {
    /// Parses the option.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shape = || format!("expected {ANCHOR_SHAPE}");
        let (guest, file) = text.split_once('=').ok_or_else(shape)?;
        let (file, begin) = match file.strip_suffix(",begin-anchor") {
            Some(file) => (file, true),
            None => (file, false),
        };
        if !guest.starts_with('/') || file.is_empty() {
            return Err(shape());
        }
        Ok(Self {
            guest: guest.to_owned(),
            file: file.into(),
            begin,
        })
    }

    /// The volume that it is for.
    #[must_use]
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Opens it: the volume's guest path and its anchor.
    ///
    /// # Errors
    /// [`ProtectedError::Anchor`].
    pub fn open(self) -> Result<(String, Box<dyn Anchor>), ProtectedError> {
        Ok((self.guest, open_anchor(self.file, self.begin)?))
    }
}

fn open_anchor(path: PathBuf, begin: bool) -> Result<Box<dyn Anchor>, ProtectedError> {
    let held = HeldAnchor::open(&path, begin);
    let held = held.map_err(|source| ProtectedError::Anchor { path, source })?;
    Ok(Box::new(Held(held)))
}

/// The shape of the option, for messages.
pub const SHAPE: &str = "CONTAINER:GUEST:key=FILE[,ro][,anchor=FILE[,begin-anchor]]|no-key";

impl Asked {
    /// Parses the option.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let (Some(container), Some(guest), Some(options)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("expected {SHAPE}"));
        };
        if container.is_empty() || !guest.starts_with('/') {
            return Err("CONTAINER must not be empty, and GUEST must be an absolute path".to_owned());
        }
        let (mut key, mut anchor, mut read_only, mut begin_anchor) = (None, None, false, false);
        for option in options.split(',') {
            match option.split_once('=') {
                Some(("key", file)) if !file.is_empty() && key.is_none() => {
                    key = Some(KeySource::File(file.into()));
                }
                Some(("key-fd", number)) if key.is_none() => {
                    let number = number.parse().map_err(|_| "key-fd is a number".to_owned())?;
                    key = Some(KeySource::Descriptor(number));
                }
                Some(("anchor", file)) if !file.is_empty() && anchor.is_none() => anchor = Some(file.into()),
                None if option == "no-key" && key.is_none() => key = Some(KeySource::Nobody),
                None if option == "ro" => read_only = true,
                None if option == "begin-anchor" => begin_anchor = true,
                _ => return Err(format!("{option:?}: expected {SHAPE}, or key-fd=N for the key")),
            }
        }
        if begin_anchor && anchor.is_none() {
            return Err("begin-anchor needs an anchor=FILE to begin".to_owned());
        }
        let key =
            key.ok_or("which key? key=FILE, key-fd=N for a descriptor, or no-key for the ciphertext")?;
        if key == KeySource::Nobody && anchor.is_some() {
            return Err("without the key there is nothing that an anchor could vouch for".to_owned());
        }
        Ok(Self {
            container: container.into(),
            guest: guest.into(),
            read_only: read_only || key == KeySource::Nobody,
            key,
            anchor,
            begin_anchor,
        })
    }

    /// Reads the key and opens the anchor. Neither can be done once the VM runs.
    ///
    /// # Errors
    /// [`ProtectedError`].
    pub fn open(self) -> Result<Protected, ProtectedError> {
        let key = self.key.read()?.map(Secret::into_bytes);
        let key = key.map_or(VolumeKey::Nobody, VolumeKey::Given);
        let key_file = match self.key {
            KeySource::File(path) => Some(path),
            KeySource::Descriptor(_) | KeySource::Nobody => None,
        };
        let withheld = key_file.into_iter().chain(self.anchor.clone()).collect();
        let anchor = self
            .anchor
            .map(|path| open_anchor(path, self.begin_anchor))
            .transpose()?;
        Ok(Protected {
            container: self.container,
            guest: self.guest,
            read_only: self.read_only,
            key,
            anchor,
            withheld,
        })
    }
}

impl KeySource {
    fn read(&self) -> Result<Option<Secret>, ProtectedError> {
        match self {
            Self::File(path) => Ok(Some(Secret::open(path)?)),
            Self::Nobody => Ok(None),
            Self::Descriptor(number) => {
                // Opened anew: a number alone can't be owned without `unsafe`.
                let opened = File::open(format!("/proc/self/fd/{number}"));
                let fd = opened.map_err(|_| ProtectedError::Descriptor(*number))?;
                Ok(Some(Secret::read(OwnedFd::from(fd), Path::new("from key-fd"))?))
            }
        }
    }
}

/// An anchor file, as the monitor knows it.
struct Held(HeldAnchor);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn words(mark: &anchor::Mark) -> Mark {
    let mut bytes = [0; 56];
    bytes[..16].copy_from_slice(&mark.volume.0);
    bytes[16..24].copy_from_slice(&mark.counter.to_le_bytes());
    bytes[24..].copy_from_slice(&mark.root);
    let mut words = Mark::default();
    for (to, from) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *to = u64::from_le_bytes(*from);
    }
    words
}

fn mark(words: &Mark) -> anchor::Mark {
    let mut bytes = [0; 56];
    for (to, from) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *to = from.to_le_bytes();
    }
    let (mut volume, mut root) = ([0; 16], [0; 32]);
    volume.copy_from_slice(&bytes[..16]);
    root.copy_from_slice(&bytes[24..]);
    anchor::Mark {
        volume: VolumeId(volume),
        counter: words[2],
        root,
    }
}

impl Anchor for Held {
    fn seen(&self) -> Option<Mark> {
        self.0.seen().as_ref().map(words)
    }

    fn advance(&mut self, new: &Mark) -> Result<(), i32> {
        /// `EIO`.
        const IO: i32 = 5;
        anchor::Anchor::advance(&mut self.0, &mark(new)).map_err(|error| match error {
            AnchorError::Unavailable(errno) if errno > 0 => errno,
            _ => IO,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protected_volume_names_its_key() {
        let plain = Asked::parse("/a.vol:/data:key=/k").unwrap();
        assert_eq!(
            plain,
            Asked {
                container: "/a.vol".into(),
                guest: "/data".into(),
                read_only: false,
                key: KeySource::File("/k".into()),
                anchor: None,
                begin_anchor: false,
            }
        );
        let all = Asked::parse("a:/d:ro,key-fd=3,anchor=/n,begin-anchor").unwrap();
        assert!(all.read_only && all.begin_anchor);
        assert_eq!(all.key, KeySource::Descriptor(3));
        let view = Asked::parse("/a.vol:/data:no-key").unwrap();
        assert!(view.read_only && view.key == KeySource::Nobody);
        for bad in [
            "/a.vol",
            "/a.vol:/data",
            "/a.vol:/data:ro",
            "/a.vol:data:key=/k",
            ":/data:key=/k",
            "/a.vol:/data:key=",
            "/a.vol:/data:key=/k,key=/l",
            "/a.vol:/data:key=/k,rw",
            "/a.vol:/data:key=/k,begin-anchor",
            "/a.vol:/data:key-fd=x",
            "/a.vol:/data:no-key,key=/k",
            "/a.vol:/data:key=/k,no-key",
            "/a.vol:/data:no-key,anchor=/a",
        ] {
            assert!(Asked::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn marks_are_the_same_on_both_sides() {
        let there = anchor::Mark {
            volume: VolumeId(std::array::from_fn(|i| i as u8)),
            counter: 0x0102_0304_0506_0708,
            root: std::array::from_fn(|i| 100 + i as u8),
        };
        assert_eq!(mark(&words(&there)), there);
        assert_eq!(words(&there)[2], there.counter);
    }
}
