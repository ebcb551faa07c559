//! Memory encryption: AES in XEX mode with the machine address as tweak, as a memory controller does it. The same plaintext
//! looks different in every page, and ciphertext moved to another page is noise there.

use aes::Aes256;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};

use crate::memory::{Hfn, PAGE, PageBytes};

/// The keys of one guest.
pub(crate) struct Xex {
    data: Aes256,
    tweak: Aes256,
}

impl Xex {
    /// For data, then for the tweak.
    pub(crate) fn new(key: &[u8; 64]) -> Self {
        let (data, tweak) = key.split_at(32);
        Self {
            data: Aes256::new(data.into()),
            tweak: Aes256::new(tweak.into()),
        }
    }

    /// On the way to the page.
    pub(crate) fn seal(&self, page: Hfn, bytes: &mut PageBytes) {
        self.apply(page, bytes, |block| self.data.encrypt_block(block.into()));
    }

    /// On the way from the page.
    pub(crate) fn open(&self, page: Hfn, bytes: &mut PageBytes) {
        self.apply(page, bytes, |block| self.data.decrypt_block(block.into()));
    }

    fn apply(&self, page: Hfn, bytes: &mut PageBytes, cipher: impl Fn(&mut [u8; 16])) {
        for (index, block) in bytes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let mut tweak = [0; 16];
            let address = page.0.wrapping_mul(PAGE as u64).wrapping_add(16 * index as u64);
            tweak[..8].copy_from_slice(&address.to_le_bytes());
            self.tweak.encrypt_block((&mut tweak).into());
            let mix = |block: &mut [u8; 16]| block.iter_mut().zip(tweak).for_each(|(byte, t)| *byte ^= t);
            mix(block);
            cipher(block);
            mix(block);
        }
    }
}
