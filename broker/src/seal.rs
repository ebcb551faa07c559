//! Secrets at rest: AES-256-GCM under a key that is derived from the root key for one version of one secret.
//!
//! What a sealed secret is bound to: its path, its version and its release policy. So whoever writes to the database
//! can neither give one secret another's place nor loosen a policy; the secret then doesn't open. Putting an old row
//! back as a whole is not noticed here, as nothing outside the database counts versions.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::path::ResourcePath;
use crate::random::{NoRandomness, random};

const SALT_BYTES: usize = 32;
const CONTEXT: &[u8] = b"cloak kbs secret 1\0";

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error("{0}: others than its owner can read the root key; chmod 600 it")]
    Exposed(PathBuf),
    /// Not a root key.
    #[error("{0}: a root key is 64 hexadecimal digits")]
    Malformed(PathBuf),
    /// Sealed with another key, or not what was sealed.
    #[error("{0} does not open: the root key is another one, or its row was changed")]
    Open(ResourcePath),
    /// More than the cipher takes.
    #[error("too large to seal")]
    Size,
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// A sealed secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

/// Seals and opens.
pub struct Sealer {
    root: hkdf::Prk,
    check: [u8; 32],
}

impl Sealer {
    /// From the bytes of a root key.
    pub fn new(root: &[u8; 32]) -> Self {
        let check = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, root),
            b"cloak kbs root key check 1",
        );
        let mut bytes = [0; 32];
        bytes.copy_from_slice(check.as_ref());
        Self {
            root: hkdf::Salt::new(hkdf::HKDF_SHA256, b"cloak kbs root key 1").extract(root),
            check: bytes,
        }
    }

    /// Reads a root key that only its owner can read.
    ///
    /// # Errors
    /// [`SealError`] if there is none, or others can read it.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        let file = |source| SealError::File {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(file)?.mode() & 0o077 != 0 {
            return Err(SealError::Exposed(path.to_owned()));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(file)?);
        let mut root = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), &mut root[..])
            .map_err(|_| SealError::Malformed(path.to_owned()))?;
        Ok(Self::new(&root))
    }

    /// Says which root key this is without telling it, so that a database can be matched with its key.
    pub fn check_value(&self) -> &[u8; 32] {
        &self.check
    }

    /// Seals `secret` as `version` of `path` with `policy`.
    ///
    /// # Errors
    /// [`SealError`] without random bytes.
    pub fn seal(
        &self,
        path: &ResourcePath,
        version: u64,
        policy: Option<&str>,
        secret: &[u8],
    ) -> Result<Sealed, SealError> {
        let salt = random::<SALT_BYTES>()?;
        let mut sealed = salt.to_vec();
        let mut body = secret.to_vec();
        self.key(&salt, path)?
            .seal_in_place_append_tag(nonce(), binding(path, version, policy), &mut body)
            .map_err(|_| SealError::Size)?;
        sealed.append(&mut body);
        Ok(Sealed(sealed))
    }

    /// Opens what [`Sealer::seal`] made for the same path, version and policy.
    ///
    /// # Errors
    /// [`SealError::Open`] for anything else.
    pub fn open(
        &self,
        path: &ResourcePath,
        version: u64,
        policy: Option<&str>,
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let wrong = || SealError::Open(path.clone());
        let (salt, body) = sealed.0.split_at_checked(SALT_BYTES).ok_or_else(wrong)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .key(salt, path)?
            .open_in_place(nonce(), binding(path, version, policy), &mut body)
            .map_err(|_| wrong())?
            .len();
        body.truncate(length);
        Ok(body)
    }

    fn key(&self, salt: &[u8], path: &ResourcePath) -> Result<LessSafeKey, SealError> {
        let info = [CONTEXT, path.as_str().as_bytes(), b"\0", salt];
        let mut key = Zeroizing::new([0; 32]);
        self.root
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key[..]))
            .and_then(|()| UnboundKey::new(&AES_256_GCM, &key[..]))
            .map(LessSafeKey::new)
            .map_err(|_| SealError::Size)
    }
}

/// Each key is used once, as its salt is fresh, so the nonce needs not change.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn binding(path: &ResourcePath, version: u64, policy: Option<&str>) -> Aad<[u8; 32]> {
    let digest = Sha256::new_with_prefix(CONTEXT)
        .chain_update(path.as_str())
        .chain_update([0])
        .chain_update(version.to_be_bytes())
        .chain_update([u8::from(policy.is_some())])
        .chain_update(policy.unwrap_or_default())
        .finalize();
    Aad::from(digest.into())
}

/// Writes a new file that only its owner can read, and its folder's entry, to the disk.
///
/// # Errors
/// [`SealError::File`], also if there is such a file.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), SealError> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(contents)?;
        file.sync_all()?;
        match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| SealError::File {
        path: path.to_owned(),
        source,
    })
}

/// Makes a root key in a new file.
///
/// # Errors
/// [`SealError`] if there is such a file, or no random bytes.
pub fn create_root_key(path: &Path) -> Result<(), SealError> {
    let key = Zeroizing::new(random::<32>()?);
    let text = Zeroizing::new(format!("{}\n", hex::encode(&key[..])));
    write_private(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_where_it_belongs() {
        let sealer = Sealer::new(&[7; 32]);
        let path: ResourcePath = "a/b/c".parse().unwrap();
        let other: ResourcePath = "a/b/d".parse().unwrap();
        let sealed = sealer.seal(&path, 3, Some("p"), b"secret").unwrap();
        assert_eq!(&sealer.open(&path, 3, Some("p"), &sealed).unwrap()[..], b"secret");
        assert!(sealer.open(&other, 3, Some("p"), &sealed).is_err());
        assert!(sealer.open(&path, 4, Some("p"), &sealed).is_err());
        assert!(sealer.open(&path, 3, Some("q"), &sealed).is_err());
        assert!(sealer.open(&path, 3, None, &sealed).is_err());
        assert!(Sealer::new(&[8; 32]).open(&path, 3, Some("p"), &sealed).is_err());
        for index in 0..sealed.0.len() {
            let mut changed = sealed.clone();
            changed.0[index] ^= 1;
            assert!(
                sealer.open(&path, 3, Some("p"), &changed).is_err(),
                "byte {index}"
            );
        }
        assert!(sealer.open(&path, 3, Some("p"), &Sealed(vec![0; 5])).is_err());
    }

    #[test]
    fn a_root_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        create_root_key(&path).unwrap();
        assert!(Sealer::load(&path).is_ok());
        assert!(create_root_key(&path).is_err(), "a key is not written over");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Sealer::load(&path), Err(SealError::Exposed(_))));
    }
}
