//! AES-256-GCM over one page.
//!
//! | part | bytes |
//! |---|---|
//! | key | HKDF-SHA-256 of the context's page secret, one for each 2^32 versions ([`PageKeys`]) |
//! | nonce, 12 bytes | guest-physical page number (5, little-endian), version (7, little-endian) |
//! | additional data, 32 bytes | `"cloakpg1"`, context (8), guest-physical address (8), version (8), little-endian |
//! | ciphertext | 4096 bytes |
//! | tag | 16 bytes |
//!
//! Page numbers are below 2^40 and versions below 2^56, so the nonce holds both whole: two sealings have one nonce
//! only if they have the same page and version, and a version is drawn once ([`crate::version`]). A key sees at
//! most 2^32 pages, 2^40 cipher blocks, which keeps an attacker's advantage below 2^-48 (the birthday bound of a
//! 128-bit block cipher; NIST SP 800-38D, section 8.3, allows 2^32 invocations).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{OnceLock, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use zeroize::Zeroizing;

use crate::page::{ContextId, Page, PageBytes, Version};

/// Bytes of a tag.
pub const TAG_SIZE: usize = 16;

/// An authentication tag.
pub type Tag = [u8; TAG_SIZE];

/// A 256-bit secret. Cleared when dropped, never printed. Boxed, as a move would leave a copy behind.
pub struct Secret(Box<Zeroizing<[u8; 32]>>);

impl Secret {
    /// Takes the bytes; the caller clears its own copy.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        let mut own = Self::empty();
        own.0.copy_from_slice(bytes);
        own
    }

    /// Thirty-two bytes of the library's generator, which the kernel seeds.
    ///
    /// # Errors
    /// [`CipherError::Library`] when the generator has none.
    pub fn random() -> Result<Self, CipherError> {
        let mut own = Self::empty();
        rand::fill(own.0.as_mut_slice()).map_err(|_| CipherError::Library("drawing a random key"))?;
        Ok(own)
    }

    fn empty() -> Self {
        Self(Box::new(Zeroizing::new([0; 32])))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What the cipher can't do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The tag does not fit the ciphertext, the page, the version, the context or the key.
    #[error("the tag does not verify")]
    Tag,
    /// The library refused a call that can't fail.
    #[error("the cryptographic library failed while {0}")]
    Library(&'static str),
}

/// What a page is sealed as. Everything in it is authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label {
    /// Whose page.
    pub context: ContextId,
    /// Where.
    pub page: Page,
    /// Which sealing.
    pub version: Version,
}

impl Label {
    /// The nonce: injective in page and version.
    #[must_use]
    pub fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..5].copy_from_slice(&self.page.number().to_le_bytes()[..5]);
        nonce[5..].copy_from_slice(&self.version.number().to_le_bytes()[..7]);
        nonce
    }

    /// The additional data.
    #[must_use]
    pub fn additional_data(&self) -> [u8; 32] {
        let mut data = *b"cloakpg1........................";
        data[8..16].copy_from_slice(&self.context.0.to_le_bytes());
        data[16..24].copy_from_slice(&self.page.gpa().to_le_bytes());
        data[24..].copy_from_slice(&self.version.number().to_le_bytes());
        data
    }

    const fn generation(&self) -> u32 {
        (self.version.number() >> 32) as u32
    }
}

/// The keys of one context's pages. Derived from a page secret, one for each 2^32 versions, so that no key ever
/// seals more than 2^32 pages; older ones are derived again when an old page comes back.
pub struct PageKeys {
    context: ContextId,
    secret: Secret,
    /// The first that was asked for, which is the only one until 2^32 pages were sealed: found without a lock.
    first: OnceLock<(u32, LessSafeKey)>,
    generations: RwLock<BTreeMap<u32, LessSafeKey>>,
}

/// Keys kept ready. More than a few are in use only after 2^34 sealings.
const KEYS_READY: usize = 8;

impl PageKeys {
    /// Keys for one boot, restore or clone of a context: from its lasting key and a salt that is new each time. Two
    /// contexts of a VM have different keys even if someone gave them one lasting key: nonces name no context.
    ///
    /// # Errors
    /// [`CipherError::Library`].
    pub fn derive(context_key: &Secret, context: ContextId, salt: &[u8; 32]) -> Result<Self, CipherError> {
        let secret = expand(
            context_key,
            salt,
            b"cloak page secret v1",
            &context.0.to_le_bytes(),
        )?;
        Ok(Self {
            context,
            secret,
            first: OnceLock::new(),
            generations: RwLock::default(),
        })
    }

    /// Whose keys these are.
    #[must_use]
    pub const fn context(&self) -> ContextId {
        self.context
    }

    /// Seals in place; gives the tag.
    ///
    /// # Errors
    /// [`CipherError::Library`].
    pub fn seal(&self, label: &Label, page: &mut PageBytes) -> Result<Tag, CipherError> {
        let nonce = Nonce::assume_unique_for_key(label.nonce());
        let aad = Aad::from(label.additional_data());
        let sealed = self.with_key(label.generation(), |key| {
            key.seal_in_place_separate_tag(nonce, aad, page)
        })?;
        let tag = sealed.map_err(|_| CipherError::Library("sealing a page"))?;
        tag.as_ref()
            .try_into()
            .map_err(|_| CipherError::Library("sealing a page"))
    }

    /// Verifies and opens. On failure `plaintext` holds zeros.
    ///
    /// # Errors
    /// [`CipherError::Tag`] when anything differs from what was sealed.
    pub fn open(
        &self,
        label: &Label,
        ciphertext: &PageBytes,
        tag: &Tag,
        plaintext: &mut PageBytes,
    ) -> Result<(), CipherError> {
        let nonce = Nonce::assume_unique_for_key(label.nonce());
        let aad = Aad::from(label.additional_data());
        let opened = self.with_key(label.generation(), |key| {
            key.open_separate_gather(nonce, aad, ciphertext, tag, plaintext)
        })?;
        opened.map_err(|_| {
            // The library decrypts while it verifies; nothing of it may stay.
            plaintext.fill(0);
            CipherError::Tag
        })
    }

    /// All but the first key work under the lock, which is taken for reading: a count of users for each would cost as much again.
    fn with_key<R>(&self, generation: u32, work: impl FnOnce(&LessSafeKey) -> R) -> Result<R, CipherError> {
        let (first, key) = match self.first.get() {
            Some(first) => first,
            None => {
                let made = (generation, self.key(generation)?);
                self.first.get_or_init(|| made)
            }
        };
        if *first == generation {
            return Ok(work(key));
        }
        let ready = self.generations.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = ready.get(&generation) {
            return Ok(work(key));
        }
        drop(ready);
        let key = self.key(generation)?;
        let result = work(&key);
        let mut ready = self.generations.write().unwrap_or_else(PoisonError::into_inner);
        if ready.len() >= KEYS_READY {
            ready.pop_first();
        }
        ready.insert(generation, key);
        Ok(result)
    }

    fn key(&self, generation: u32) -> Result<LessSafeKey, CipherError> {
        let bytes = expand(&self.secret, &[], b"cloak page key v1", &generation.to_le_bytes())?;
        let key = UnboundKey::new(&AES_256_GCM, bytes.0.as_slice());
        key.map(LessSafeKey::new)
            .map_err(|_| CipherError::Library("making a page key"))
    }
}

impl fmt::Debug for PageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKeys(..)")
    }
}

/// HKDF-SHA-256 (RFC 5869), 32 bytes.
fn expand(key: &Secret, salt: &[u8], purpose: &[u8], detail: &[u8]) -> Result<Secret, CipherError> {
    let failed = |_| CipherError::Library("deriving a key");
    let mut own = Secret::empty();
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(key.0.as_slice())
        .expand(&[purpose, detail], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(own.0.as_mut_slice()))
        .map_err(failed)?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn keys(byte: u8) -> PageKeys {
        PageKeys::derive(&Secret::new(&[byte; 32]), ContextId(1), &[1; 32]).unwrap()
    }

    fn label(context: u64, page: u64, version: u64) -> Label {
        Label {
            context: ContextId(context),
            page: Page::new(page).unwrap(),
            version: Version::new(version).unwrap(),
        }
    }

    proptest! {
        /// Page and version can be read back from the nonce, so no two pairs share one.
        #[test]
        fn a_nonce_names_page_and_version(page in 0..Page::END, version in 0..Version::END) {
            let nonce = label(0, page, version).nonce();
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
            prop_assert_eq!(number(&nonce[..5]), page);
            prop_assert_eq!(number(&nonce[5..]), version);
        }

        #[test]
        fn what_is_sealed_opens(byte: u8, page in 0..Page::END, version in 1..Version::END) {
            let (keys, label) = (keys(byte), label(3, page, version));
            let mut bytes = [byte; 4096];
            let tag = keys.seal(&label, &mut bytes).unwrap();
            prop_assert_ne!(bytes, [byte; 4096]);
            let mut out = [0; 4096];
            keys.open(&label, &bytes, &tag, &mut out).unwrap();
            prop_assert_eq!(out, [byte; 4096]);
        }
    }

    /// The expected bytes come from another implementation, written from RFC 5869, FIPS 197 and NIST SP 800-38D: our
    /// two ends agreeing with each other would prove little.
    #[test]
    fn the_format_does_not_drift() {
        let mut bytes = [0x5a; 4096];
        let tag = keys(7).seal(&label(1, 2, 3), &mut bytes).unwrap();
        assert_eq!(label(1, 2, 3).nonce(), [2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&label(1, 2, 3).additional_data()[..8], b"cloakpg1");
        assert_eq!(hex(&bytes[..8]), GOLDEN_START);
        assert_eq!(hex(&tag), GOLDEN_TAG);
    }

    const GOLDEN_START: &str = "f92c7e67bfd2d24d";
    const GOLDEN_TAG: &str = "948feba2d00e989a719fbd4edea20863";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn each_generation_has_its_own_key() {
        let keys = keys(1);
        let mut seen = HashSet::new();
        // Twice, so that keys that were put aside are derived again.
        for generation in (0..20).chain(0..20) {
            let label = label(0, 0, generation << 32 | 1);
            let mut bytes = [0; 4096];
            let tag = keys.seal(&label, &mut bytes).unwrap();
            seen.insert(bytes.to_vec());
            let mut out = [1; 4096];
            keys.open(&label, &bytes, &tag, &mut out).unwrap();
            assert_eq!(out, [0; 4096]);
        }
        assert_eq!(seen.len(), 20);
        assert!(keys.generations.read().unwrap().len() <= KEYS_READY);
    }

    #[test]
    fn another_salt_gives_other_keys() {
        let secret = Secret::new(&[9; 32]);
        let seal = |salt: u8| {
            let mut bytes = [0; 4096];
            PageKeys::derive(&secret, ContextId(0), &[salt; 32])
                .unwrap()
                .seal(&label(0, 0, 1), &mut bytes)
                .unwrap();
            bytes
        };
        assert_ne!(seal(1), seal(2));
        assert_eq!(seal(1), seal(1));
    }

    #[test]
    fn a_failed_opening_leaves_nothing() {
        let keys = keys(1);
        let mut bytes = [0x41; 4096];
        let tag = keys.seal(&label(0, 0, 1), &mut bytes).unwrap();
        bytes[4095] ^= 1;
        let mut out = [7; 4096];
        assert_eq!(
            keys.open(&label(0, 0, 1), &bytes, &tag, &mut out),
            Err(CipherError::Tag)
        );
        assert_eq!(out, [0; 4096]);
    }
}
