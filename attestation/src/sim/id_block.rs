//! ID blocks, as an owner of guests signs them.

use p384::ecdsa::signature::Signer as _;
use p384::ecdsa::{Signature, SigningKey};
use p384::elliptic_curve::Generate as _;

use super::snp_report::put_signature;
use crate::bytes::Bytes48;
use crate::snp::{GuestPolicy, ID_AUTH_BYTES, ID_BLOCK_BYTES, IdAuth, IdBlock, ecdsa};

/// An owner with an ID key, and perhaps an author key.
pub struct IdSigner {
    id: SigningKey,
    author: Option<SigningKey>,
}

impl std::fmt::Debug for IdSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdSigner").finish_non_exhaustive()
    }
}

impl IdSigner {
    /// Fresh keys.
    #[must_use]
    pub fn new(author: bool) -> Self {
        Self {
            id: SigningKey::generate(),
            author: author.then(SigningKey::generate),
        }
    }

    /// A block for a guest that measures this, with this policy and SVN, and what vouches for it.
    #[must_use]
    pub fn sign(&self, measurement: Bytes48, policy: GuestPolicy, guest_svn: u32) -> (IdBlock, IdAuth) {
        let mut block = [0; ID_BLOCK_BYTES];
        block[..0x30].copy_from_slice(&measurement.0);
        block[0x30..0x40].copy_from_slice(b"a family of imag");
        block[0x40..0x50].copy_from_slice(b"an image of them");
        block[0x50] = 1;
        block[0x54..0x58].copy_from_slice(&guest_svn.to_le_bytes());
        block[0x58..].copy_from_slice(&policy.0.to_le_bytes());
        let mut auth = [0; ID_AUTH_BYTES];
        auth[0] = 1;
        put_key(&mut auth, 0x240, &self.id);
        let signature: Signature = self.id.sign(&block);
        put_signature(&mut auth, 0x40, &signature);
        if let Some(author) = &self.author {
            auth[4] = 1;
            put_key(&mut auth, 0x880, author);
            let signature: Signature = author.sign(&auth[0x240..0x644]);
            put_signature(&mut auth, 0x680, &signature);
        }
        (IdBlock::of(block), IdAuth::of(Box::new(auth)))
    }
}

/// Curve and coordinates.
fn put_key(auth: &mut [u8], at: usize, key: &SigningKey) {
    auth[at] = 2;
    let point = key.verifying_key().to_sec1_point(false);
    let (x, y) = point.as_bytes()[1..].split_at(48);
    ecdsa::put(auth, at + 4, [x, y]);
}
