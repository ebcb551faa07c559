//! Keys of a volume and the numbers that go into nonces.
//!
//! ```text
//!   volume key ──HKDF(salt: session id; info: volume id, chunk)──▶ block key      session id = epoch ‖ 12 random bytes
//!                                                                     │           sequence   = 0, 1, 2, … in the session
//!                         nonce = sequence (8) ‖ 0 (4) ───────────────┴──▶ AES-256-GCM      chunk = sequence / 2^32
//! ```
//!
//! A nonce never comes twice under a key: each opening of a volume for writing starts a session with a key of its
//! own, and within a session every block that is sealed takes the next sequence number, of whatever kind it is. The
//! session's id is random, so it is new also when the OS side gives an older container back; its epoch grows with
//! each session that became durable, so it is new also where randomness fails.

use alloc::boxed::Box;
use core::fmt;

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit};
use hashbrown::HashMap;
use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::error::VolumeError;
use crate::weakened::{Protection, without};

/// Sequence numbers of a session: below this. After 2^56 blocks (nine years at 250 million a second) writing is
/// refused until the volume is opened anew.
pub const SEQUENCE_END: u64 = 1 << 56;
/// The last numbers are kept for what was accepted already, so that it can still be committed.
pub const SEQUENCE_RESERVE: u64 = 1 << 40;
/// Blocks under one block key: at most 2^32 of 2^8 cipher blocks each.
const CHUNK_BITS: u32 = 32;
const _: () = assert!(
    SEQUENCE_END >> CHUNK_BITS <= 1 << 32,
    "a chunk's number fits the four bytes that go into its key"
);
/// Expanded block keys that are kept: a volume that was opened often has many.
const KEPT: usize = 64;

/// What a volume's keys follow from, 32 bytes. Cleared when dropped, never printed.
pub struct VolumeKey(Box<Zeroizing<[u8; 32]>>);

impl VolumeKey {
    /// Takes the key.
    #[must_use]
    pub fn new(bytes: Box<Zeroizing<[u8; 32]>>) -> Self {
        Self(bytes)
    }

    /// For tests and for who holds the bytes anyway.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(Box::new(Zeroizing::new(*bytes)))
    }

    /// Tells a wrong key from damage: 16 bytes that follow from key and volume, in clear in the superblock.
    #[must_use]
    pub fn check_value(&self, volume: &VolumeId) -> [u8; 16] {
        let mut out = [0; 16];
        self.expand(&[], &[b"cloak volume key check v1", &volume.0], &mut out);
        out
    }

    fn block_key(&self, volume: &VolumeId, session: &SessionId, chunk: u32) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        let info: [&[u8]; 3] = [b"cloak volume blocks v1", &volume.0, &chunk.to_le_bytes()];
        self.expand(&session.0, &info, out.as_mut_slice());
        out
    }

    fn expand(&self, salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
        Hkdf::<Sha256>::new(Some(salt), self.0.as_slice())
            .expand_multi_info(info, out)
            .expect("32 bytes are less than 255 hashes, HKDF's only limit");
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

/// 32 random bytes, new for each opening. Whoever opens draws them: the core has no source of its own.
pub struct Fresh(pub [u8; 32]);

impl Fresh {
    /// Bytes for one use. What one use makes public tells nothing of another's.
    #[must_use]
    pub fn part(&self, label: &str) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.0)
            .chain_update(label)
            .finalize()
            .into()
    }
}

impl fmt::Debug for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fresh(..)")
    }
}

/// Names a volume for good. Random, set when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Names a session: epoch, little-endian, and twelve random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// The session of an epoch.
    #[must_use]
    pub fn new(epoch: u32, random: [u8; 12]) -> Self {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&epoch.to_le_bytes());
        id[4..].copy_from_slice(&random);
        Self(id)
    }
}

/// The sequence numbers of a session, each given once.
#[derive(Debug)]
pub struct Sequence {
    next: u64,
    end: u64,
}

impl Sequence {
    /// All numbers below `end`.
    #[must_use]
    pub const fn new(end: u64) -> Self {
        Self { next: 0, end }
    }

    /// The next number.
    ///
    /// # Errors
    /// [`VolumeError::Exhausted`] at the end, and from then on always.
    pub fn take(&mut self) -> Result<u64, VolumeError> {
        if self.next >= self.end {
            return Err(VolumeError::Exhausted);
        }
        let number = self.next;
        self.next += 1;
        Ok(number)
    }

    /// Whether new work may still be accepted.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.end - self.next > SEQUENCE_RESERVE
    }
}

/// Nonce of a sequence number: the number, and four zeros.
#[must_use]
pub fn nonce(sequence: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&sequence.to_le_bytes());
    nonce
}

/// Runs work that uses vector registers of every width the processor has. In an environment that leaves their upper halves
/// to somebody else it keeps what is in them and brings it back.
pub type Wide = fn(&mut dyn FnMut());

/// For who has the registers to itself, as every program of an operating system has.
pub fn own_registers(work: &mut dyn FnMut()) {
    work();
}

/// What `work` gives, done within `wide`.
///
/// # Panics
/// When `wide` does not run what it is given.
pub fn within<R>(wide: Wide, work: impl FnOnce() -> R) -> R {
    let (mut work, mut result) = (Some(work), None);
    wide(&mut || result = work.take().map(|work| work()));
    result.expect("`Wide` runs what it is given")
}

/// The keys of all sessions.
pub struct KeyRing {
    ciphers: Ciphers,
    wide: Wide,
}

impl KeyRing {
    /// Keys of a volume.
    #[must_use]
    pub fn new(key: VolumeKey, volume: VolumeId, wide: Wide) -> Self {
        let ciphers = Ciphers {
            key,
            volume,
            known: HashMap::new(),
        };
        Self { ciphers, wide }
    }

    /// Seals and opens. Several blocks at once are better than one after the other: what [`Wide`] costs comes once.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut Ciphers) -> R) -> R {
        let Self { ciphers, wide } = self;
        within(*wide, || work(ciphers))
    }
}

/// Seals and opens, to be had by [`KeyRing::with`].
pub struct Ciphers {
    key: VolumeKey,
    volume: VolumeId,
    known: HashMap<(SessionId, u32), Box<Aes256Gcm>>,
}

impl Ciphers {
    /// Encrypts into `to`, which is as long, and gives the tag. `bytes` and `to` must be memory that nobody else writes.
    pub fn seal(
        &mut self,
        session: &SessionId,
        sequence: u64,
        aad: &[u8],
        bytes: &[u8],
        to: &mut [u8],
    ) -> [u8; 16] {
        let cipher = self.cipher(session, sequence);
        let both = InOutBuf::new(bytes, to).expect("both are as long");
        let tag = cipher.encrypt_inout_detached(&nonce(sequence).into(), aad, both);
        tag.expect("a block is shorter than GCM's limit of 64 GiB").into()
    }

    /// Checks, and only then decrypts into `to`, which is as long. Says whether the bytes were as sealed; if not, `to` is
    /// cleared. `bytes` and `to` must be memory that nobody else writes: `bytes` is read twice.
    #[must_use]
    pub fn open(
        &mut self,
        session: &SessionId,
        sequence: u64,
        aad: &[u8],
        bytes: &[u8],
        to: &mut [u8],
        tag: &[u8; 16],
    ) -> bool {
        let cipher = self.cipher(session, sequence);
        let both = InOutBuf::new(bytes, &mut *to).expect("both are as long");
        if without(Protection::Seal) {
            // Counter mode: encrypting once more decrypts, and nobody looks at the tag.
            let _ = cipher.encrypt_inout_detached(&nonce(sequence).into(), aad, both);
            return true;
        }
        let opened = cipher.decrypt_inout_detached(&nonce(sequence).into(), aad, both, &(*tag).into());
        if opened.is_err() {
            to.fill(0);
        }
        opened.is_ok()
    }

    fn cipher(&mut self, session: &SessionId, sequence: u64) -> &Aes256Gcm {
        let chunk = u32::try_from(sequence >> CHUNK_BITS).unwrap_or(u32::MAX);
        if self.known.len() >= KEPT && !self.known.contains_key(&(*session, chunk)) {
            self.known.clear();
        }
        let (key, volume) = (&self.key, &self.volume);
        self.known.entry((*session, chunk)).or_insert_with(|| {
            let bytes = key.block_key(volume, session, chunk);
            Box::new(Aes256Gcm::new((&*bytes).into()))
        })
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({}, ..)", self.ciphers.volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_counter_gives_each_number_once_and_then_never_again() {
        for end in 0..200 {
            let mut sequence = Sequence::new(end);
            let mut seen = BTreeSet::new();
            for _ in 0..end {
                assert!(seen.insert(nonce(sequence.take().unwrap())));
            }
            for _ in 0..3 {
                assert_eq!(sequence.take(), Err(VolumeError::Exhausted));
            }
        }
    }

    #[test]
    fn the_end_of_the_real_counter_is_refused_and_never_wraps() {
        let mut sequence = Sequence {
            next: SEQUENCE_END - 2,
            end: SEQUENCE_END,
        };
        assert!(!sequence.has_room());
        assert_eq!(sequence.take(), Ok(SEQUENCE_END - 2));
        assert_eq!(sequence.take(), Ok(SEQUENCE_END - 1));
        assert_eq!(sequence.take(), Err(VolumeError::Exhausted));
    }

    #[test]
    fn a_nonce_holds_the_whole_sequence_number() {
        for sequence in [0, 1, u64::from(u32::MAX), 1 << 32, SEQUENCE_END - 1] {
            let nonce = nonce(sequence);
            assert_eq!(u64::from_le_bytes(nonce[..8].try_into().unwrap()), sequence);
        }
    }

    #[test]
    fn each_volume_session_and_chunk_has_its_own_key() {
        let mut seen = BTreeSet::new();
        for key in [[1; 32], [2; 32]] {
            let key = VolumeKey::from_bytes(&key);
            for volume in [VolumeId([1; 16]), VolumeId([2; 16])] {
                for session in [
                    SessionId::new(1, [1; 12]),
                    SessionId::new(2, [1; 12]),
                    SessionId::new(1, [2; 12]),
                ] {
                    for chunk in 0..3 {
                        seen.insert(*key.block_key(&volume, &session, chunk));
                    }
                }
            }
        }
        assert_eq!(seen.len(), 2 * 2 * 3 * 3);
    }
}
