//! Digests of a manifest, and the identity of a context: what runs, and nothing about where or when.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha384};

use crate::model::Manifest;
use crate::text::ManifestError;

/// A digest, written as lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest<const N: usize>(pub [u8; N]);

/// A text that is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest has {0} lower-case hexadecimal digits")]
pub struct NotADigest(usize);

impl<const N: usize> fmt::Display for Digest<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Digest<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl<const N: usize> FromStr for Digest<N> {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut bytes = [0; N];
        // One spelling only, as texts are compared and digests of texts taken.
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NotADigest(2 * N));
        }
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotADigest(2 * N))?;
        Ok(Self(bytes))
    }
}

impl<const N: usize> Serialize for Digest<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Digest<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl<const N: usize> JsonSchema for Digest<N> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Digest{N}").into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": format!("^[0-9a-f]{{{}}}$", 2 * N) })
    }
}

/// Digests of a manifest's canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestDigests {
    /// What HOST_DATA holds on SNP, and the statement of software evidence.
    pub sha256: Digest<32>,
    /// What MRCONFIGID holds on TDX.
    pub sha384: Digest<48>,
}

impl Manifest {
    /// Digests of the canonical form.
    ///
    /// # Errors
    /// [`ManifestError::Write`].
    pub fn digests(&self) -> Result<ManifestDigests, ManifestError> {
        let canonical = self.canonical()?;
        Ok(ManifestDigests {
            sha256: Digest(Sha256::digest(&canonical).into()),
            sha384: Digest(Sha384::digest(&canonical).into()),
        })
    }
}

/// What a context is: its shim and its manifest, both whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(Digest<48>);

impl Identity {
    /// SHA-384 of `"cloak identity v1"`, the shim's SHA-384 and the manifest's SHA-384. Everything is of fixed length,
    /// so no two inputs give one text.
    #[must_use]
    pub fn of(shim: &Digest<48>, manifest: &ManifestDigests) -> Self {
        let hash = Sha384::new()
            .chain_update(b"cloak identity v1")
            .chain_update(shim.0)
            .chain_update(manifest.sha384.0);
        Self(Digest(hash.finalize().into()))
    }

    #[cfg(test)]
    pub(crate) const fn from_bytes(bytes: [u8; 48]) -> Self {
        Self(Digest(bytes))
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 48] {
        &self.0.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
