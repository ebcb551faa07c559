//! Sealed pages in the format of `cloak_memory` (docs/cloaking.md), made inside: AES-256-GCM over 4096 bytes, the nonce from
//! address and version, both and the context in the additional data.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use cloak_abi::layout::PAGE;
use cloak_volumes::keys::within;

use crate::arch;

/// Page numbers are below it, as there.
pub const PAGES_END: u64 = 1 << 40;
/// So are versions.
pub const VERSIONS_END: u64 = 1 << 56;

/// What a page is sealed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Whose.
    pub context: u64,
    /// Number of the page: its place in the file.
    pub page: u64,
    /// Which sealing.
    pub version: u64,
}

impl Label {
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..5].copy_from_slice(&self.page.to_le_bytes()[..5]);
        nonce[5..].copy_from_slice(&self.version.to_le_bytes()[..7]);
        nonce
    }

    fn additional_data(&self) -> [u8; 32] {
        let mut data = *b"cloakpg1........................";
        data[8..16].copy_from_slice(&self.context.to_le_bytes());
        data[16..24].copy_from_slice(&(self.page * PAGE).to_le_bytes());
        data[24..].copy_from_slice(&self.version.to_le_bytes());
        data
    }
}

/// Keys of a context's pages for one boot.
pub struct PageKeys {
    secret: Zeroizing<[u8; 32]>,
    /// Of the first 2^32 versions.
    first: Aes256Gcm,
}

impl core::fmt::Debug for PageKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PageKeys(..)")
    }
}

impl PageKeys {
    /// From the context's key, and a salt that is new for each boot.
    #[must_use]
    pub fn derive(key: &[u8; 32], context: u64, salt: &[u8; 32]) -> Self {
        let secret = expand(key, salt, b"cloak page secret v1", &context.to_le_bytes());
        let first = wide(|| cipher(&secret, 0));
        Self { secret, first }
    }

    /// Seals in place; gives the tag.
    pub fn seal(&self, label: &Label, page: &mut [u8]) -> [u8; 16] {
        let sealed = self.with(label.version, |cipher| {
            let nonce = Nonce::from(label.nonce());
            cipher.encrypt_inout_detached(&nonce, &label.additional_data(), (&mut *page).into())
        });
        // It fails for lengths beyond 2^36 only; a tag that is none never opens.
        sealed.map_or([0; 16], Into::into)
    }

    /// Opens in place. On failure the page is cleared.
    pub fn open(&self, label: &Label, tag: &[u8; 16], page: &mut [u8]) -> bool {
        let opened = self.with(label.version, |cipher| {
            let (nonce, tag) = (Nonce::from(label.nonce()), Tag::from(*tag));
            cipher.decrypt_inout_detached(&nonce, &label.additional_data(), (&mut *page).into(), &tag)
        });
        if opened.is_err() {
            page.fill(0);
        }
        opened.is_ok()
    }

    /// A key sees at most 2^32 pages.
    fn with<R>(&self, version: u64, work: impl FnOnce(&Aes256Gcm) -> R) -> R {
        wide(|| match (version >> 32) as u32 {
            0 => work(&self.first),
            generation => work(&cipher(&self.secret, generation)),
        })
    }
}

/// The cipher takes all registers that there are.
fn wide<R>(work: impl FnOnce() -> R) -> R {
    within(arch::with_wide_registers, work)
}

fn cipher(secret: &[u8; 32], generation: u32) -> Aes256Gcm {
    let key = expand(secret, &[], b"cloak page key v1", &generation.to_le_bytes());
    Aes256Gcm::new((&*key).into())
}

/// HKDF-SHA-256.
fn expand(key: &[u8], salt: &[u8], purpose: &[u8], detail: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    let expanded = Hkdf::<Sha256>::new(Some(salt), key).expand_multi_info(&[purpose, detail], &mut *out);
    debug_assert!(
        expanded.is_ok(),
        "32 bytes are less than 255 hashes, HKDF's only limit"
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(context: u64, page: u64, version: u64) -> Label {
        Label {
            context,
            page,
            version,
        }
    }

    fn keys(byte: u8) -> PageKeys {
        PageKeys::derive(&[byte; 32], 1, &[1; 32])
    }

    /// The same bytes as in `cloak_memory::cipher`, which another implementation gave.
    #[test]
    fn the_format_is_that_of_the_monitors_pager() {
        let mut page = [0x5a; 4096];
        let tag = keys(7).seal(&label(1, 2, 3), &mut page);
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(String::new(), |text, b| text + &format!("{b:02x}"))
        };
        assert_eq!(hex(&page[..8]), "f92c7e67bfd2d24d");
        assert_eq!(hex(&tag), "948feba2d00e989a719fbd4edea20863");
    }

    #[test]
    fn only_what_was_sealed_as_this_opens() {
        for version in [1, 5 << 32 | 1] {
            let own = label(1, 2, version);
            let mut sealed = [7; 4096];
            let tag = keys(1).seal(&own, &mut sealed);
            let opens = |keys: &PageKeys, label: &Label, change: usize| {
                let mut page = sealed;
                page[change / 8 % 4096] ^= u8::from(change > 0) << (change % 8);
                let good = keys.open(label, &tag, &mut page);
                assert_eq!(page, if good { [7; 4096] } else { [0; 4096] });
                good
            };
            assert!(opens(&keys(1), &own, 0));
            assert!(!opens(&keys(2), &own, 0));
            for other in [
                label(2, 2, version),
                label(1, 3, version),
                label(1, 2, version + 1),
            ] {
                assert!(!opens(&keys(1), &other, 0), "{other:?}");
            }
            assert!((1..32768).step_by(1009).all(|bit| !opens(&keys(1), &own, bit)));
        }
    }
}
