//! The ID block of an SNP guest: what its owner says that it is, signed, and checked by the firmware when the launch ends (SNP
//! ABI, section 8.18, tables 75 and 76).

use p384::ecdsa::VerifyingKey;
use p384::ecdsa::signature::Verifier as _;
use sha2::{Digest as _, Sha384};

use super::{GuestPolicy, ecdsa};
use crate::bytes::{Bytes, Bytes48};

/// Bytes of the block.
pub const ID_BLOCK_BYTES: usize = 96;
/// Bytes of what vouches for it.
pub const ID_AUTH_BYTES: usize = 4096;
/// The curve of a key, the only one that there is.
const P384: u32 = 2;
/// Where the parts of [`IdAuth`] are: two algorithms, signature and key of the block, signature and key of the author.
const ALGORITHMS: [usize; 2] = [0x000, 0x004];
const BLOCK_SIGNATURE: usize = 0x040;
const ID_KEY: usize = 0x240;
const ID_KEY_SIGNATURE: usize = 0x680;
const AUTHOR_KEY: usize = 0x880;
/// Bytes of a key: its curve, then its point.
const KEY_BYTES: usize = 0x404;

/// What is wrong with an ID block. The firmware's own names are in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdBlockError {
    /// Another length.
    #[error("{what} has {found} bytes; it is a structure of {expected}")]
    Length {
        /// Which of the two.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What it has to be.
        expected: usize,
    },
    /// A version that nobody has defined.
    #[error("the ID block is of version {0}; there is version 1")]
    Version(u32),
    /// An algorithm or a curve that nobody has defined.
    #[error("{0} is not of ECDSA P-384 with SHA-384")]
    Algorithm(&'static str),
    /// A signature.
    #[error("the signature of {0} is not that of its key (BAD_SIGNATURE)")]
    Signature(&'static str),
    /// Another image.
    #[error(
        "the ID block is of a guest that measures {expected}; this one measures {found} (BAD_MEASUREMENT)"
    )]
    Measurement {
        /// What it says.
        expected: Bytes48,
        /// What it is.
        found: Bytes48,
    },
    /// Another policy.
    #[error("the ID block is of a guest with policy {:#x}; this one has {:#x} (POLICY_FAILURE)", expected.0, found.0)]
    Policy {
        /// What it says.
        expected: GuestPolicy,
        /// What it is.
        found: GuestPolicy,
    },
}

/// The block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdBlock {
    raw: [u8; ID_BLOCK_BYTES],
}

impl IdBlock {
    /// Reads one.
    ///
    /// # Errors
    /// [`IdBlockError`]: its length, its version.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let raw = sized(bytes, "the ID block")?;
        let block = Self { raw };
        match block.word(0x50) {
            1 => Ok(block),
            version => Err(IdBlockError::Version(version)),
        }
    }

    #[cfg(feature = "sim")]
    pub(crate) const fn of(raw: [u8; ID_BLOCK_BYTES]) -> Self {
        Self { raw }
    }

    /// As the firmware takes it.
    #[must_use]
    pub const fn raw(&self) -> &[u8; ID_BLOCK_BYTES] {
        &self.raw
    }

    /// The launch digest that the guest has to have.
    #[must_use]
    pub fn measurement(&self) -> Bytes48 {
        Bytes(self.part(0))
    }

    /// FAMILY_ID, for reports.
    #[must_use]
    pub fn family_id(&self) -> Bytes<16> {
        Bytes(self.part(0x30))
    }

    /// IMAGE_ID, for reports.
    #[must_use]
    pub fn image_id(&self) -> Bytes<16> {
        Bytes(self.part(0x40))
    }

    /// GUEST_SVN, for reports.
    #[must_use]
    pub fn guest_svn(&self) -> u32 {
        self.word(0x54)
    }

    /// The policy that the guest has to have.
    #[must_use]
    pub fn policy(&self) -> GuestPolicy {
        GuestPolicy(u64::from_le_bytes(self.part(0x58)))
    }

    /// Holds it against a guest.
    ///
    /// # Errors
    /// [`IdBlockError`]: another measurement, another policy.
    pub fn agree(&self, measurement: Bytes48, policy: GuestPolicy) -> Result<(), IdBlockError> {
        if self.measurement() != measurement {
            return Err(IdBlockError::Measurement {
                expected: self.measurement(),
                found: measurement,
            });
        }
        if self.policy() != policy {
            return Err(IdBlockError::Policy {
                expected: self.policy(),
                found: policy,
            });
        }
        Ok(())
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.part(at))
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        part(&self.raw, at)
    }
}

/// Who vouches for a block: the ID key, and perhaps the author key for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdAuth {
    raw: Box<[u8; ID_AUTH_BYTES]>,
}

impl IdAuth {
    /// Reads one.
    ///
    /// # Errors
    /// [`IdBlockError::Length`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let raw = Box::new(sized(bytes, "what vouches for the ID block")?);
        Ok(Self { raw })
    }

    #[cfg(feature = "sim")]
    pub(crate) const fn of(raw: Box<[u8; ID_AUTH_BYTES]>) -> Self {
        Self { raw }
    }

    /// As the firmware takes it.
    #[must_use]
    pub const fn raw(&self) -> &[u8; ID_AUTH_BYTES] {
        &self.raw
    }

    /// Whether there is an author key.
    #[must_use]
    pub fn has_author(&self) -> bool {
        self.algorithm(1) != 0
    }

    /// ID_KEY_DIGEST of reports.
    #[must_use]
    pub fn id_key_digest(&self) -> Bytes48 {
        self.digest(ID_KEY)
    }

    /// AUTHOR_KEY_DIGEST of reports.
    #[must_use]
    pub fn author_key_digest(&self) -> Option<Bytes48> {
        self.has_author().then(|| self.digest(AUTHOR_KEY))
    }

    /// Checks the signature of the block by the ID key; with an author key that of the ID key, too.
    ///
    /// # Errors
    /// [`IdBlockError`]: which of them.
    pub fn verify(&self, block: &IdBlock) -> Result<(), IdBlockError> {
        self.signed(0, "the ID block", ID_KEY, block.raw(), BLOCK_SIGNATURE)?;
        if self.has_author() {
            let key = &self.raw[ID_KEY..ID_KEY + KEY_BYTES];
            self.signed(1, "the ID key", AUTHOR_KEY, key, ID_KEY_SIGNATURE)?;
        }
        Ok(())
    }

    fn algorithm(&self, which: usize) -> u32 {
        u32::from_le_bytes(part(&*self.raw, ALGORITHMS[which]))
    }

    fn digest(&self, key: usize) -> Bytes48 {
        Bytes(Sha384::digest(&self.raw[key..key + KEY_BYTES]).into())
    }

    fn signed(
        &self,
        which: usize,
        what: &'static str,
        key: usize,
        message: &[u8],
        signature: usize,
    ) -> Result<(), IdBlockError> {
        let curve = u32::from_le_bytes(part(&*self.raw, key));
        if self.algorithm(which) != ecdsa::ECDSA_P384_SHA384 || curve != P384 {
            return Err(IdBlockError::Algorithm(what));
        }
        let key = ecdsa::numbers(&part(&*self.raw, key + 4)).and_then(|[x, y]| {
            let point = [&[4], &x[..], &y[..]].concat();
            VerifyingKey::from_sec1_bytes(&point).ok()
        });
        let signature = ecdsa::signature(&part(&*self.raw, signature));
        let holds = key.zip(signature);
        holds
            .and_then(|(key, signature)| key.verify(message, &signature).ok())
            .ok_or(IdBlockError::Signature(what))
    }
}

fn sized<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], IdBlockError> {
    bytes.try_into().map_err(|_| IdBlockError::Length {
        what,
        found: bytes.len(),
        expected: N,
    })
}

/// Some bytes of a structure that is longer.
fn part<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| raw[at + index])
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::sim::IdSigner;

    fn signed(author: bool) -> (IdBlock, IdAuth) {
        IdSigner::new(author).sign(Bytes([7; 48]), GuestPolicy(0x30000), 3)
    }

    #[test]
    fn a_block_says_what_was_signed() {
        let (block, auth) = signed(true);
        assert_eq!(block.measurement(), Bytes([7; 48]));
        assert_eq!((block.policy(), block.guest_svn()), (GuestPolicy(0x30000), 3));
        assert_eq!(block.family_id(), Bytes(*b"a family of imag"));
        assert_eq!(block.image_id(), Bytes(*b"an image of them"));
        auth.verify(&block).expect("signed");
        assert!(auth.has_author() && auth.author_key_digest() != Some(auth.id_key_digest()));
        let (block, auth) = signed(false);
        auth.verify(&block).expect("signed");
        assert_eq!(auth.author_key_digest(), None);
    }

    #[test]
    fn a_change_anywhere_that_is_signed_or_signs_is_noticed() {
        let (block, auth) = signed(true);
        for at in 0..ID_BLOCK_BYTES {
            let mut raw = *block.raw();
            raw[at] ^= 1;
            let verified = IdBlock::parse(&raw).and_then(|block| auth.verify(&block));
            assert!(verified.is_err(), "byte {at:#x} of the block");
        }
        for at in [
            0x000, 0x004, 0x040, 0x06f, 0x070, 0x088, 0x0b7, 0x0cf, 0x240, 0x244, 0x273, 0x274, 0x28c, 0x643,
            0x680, 0x6c8, 0x880, 0x884, 0x8cc,
        ] {
            let mut raw = *auth.raw();
            raw[at] ^= 2;
            let changed = IdAuth::parse(&raw).expect("its length");
            assert!(changed.verify(&block).is_err(), "byte {at:#x} of what vouches");
        }
        let (_, other) = IdSigner::new(false).sign(block.measurement(), block.policy(), 4);
        assert_eq!(other.verify(&block), Err(IdBlockError::Signature("the ID block")));
        // Another owner may sign the same: it is the key's digest in reports that tells them apart.
        let (_, other) = signed(true);
        other.verify(&block).expect("signed");
        assert_ne!(other.id_key_digest(), auth.id_key_digest());
    }

    #[test]
    fn what_is_no_block_says_why() {
        let (block, auth) = signed(false);
        assert!(matches!(
            IdBlock::parse(&block.raw()[1..]),
            Err(IdBlockError::Length { found: 95, .. })
        ));
        assert!(matches!(
            IdAuth::parse(&auth.raw()[..4000]),
            Err(IdBlockError::Length { expected: 4096, .. })
        ));
        let mut raw = *block.raw();
        raw[0x50] = 2;
        assert_eq!(IdBlock::parse(&raw), Err(IdBlockError::Version(2)));
        let other = block
            .agree(Bytes([8; 48]), GuestPolicy(0x30000))
            .expect_err("another");
        assert!(other.to_string().contains(&"08".repeat(48)), "{other}");
        let other = block
            .agree(Bytes([7; 48]), GuestPolicy(0xb0000))
            .expect_err("another");
        assert!(other.to_string().contains("0xb0000"), "{other}");
    }
}
