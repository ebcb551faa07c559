//! Protected messages between guest and security processor (SNP ABI, section 8.26 and table 99).
//!
//! ```text
//! 0x00 authentication tag (32, of which 16 are used)   0x20 sequence number u64
//! 0x28 reserved                                        0x30 algorithm u8, header version u8, header size u16,
//! 0x34 type u8, version u8, payload size u16           0x38 reserved u32    0x3c key number u8
//! 0x60 payload, encrypted
//! ```
//! AES-256-GCM; the nonce is the sequence number, little-endian, padded to twelve bytes; bytes 0x30 to 0x60 are
//! authenticated with it. A request has an odd number n, its response n + 1, so no nonce meets a key twice as long as
//! nobody reuses a number. Both ends parse a copy.

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};

/// Bytes of a header.
pub const HEADER: usize = 0x60;
/// Most bytes of a message: it is a page.
pub const MOST: usize = 4096;

const AUTHENTICATED: std::ops::Range<usize> = 0x30..HEADER;
const AES_256_GCM: u8 = 1;
const HEADER_VERSION: u8 = 1;
const MESSAGE_VERSION: u8 = 1;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// MSG_KEY_REQ.
    KeyRequest = 3,
    /// MSG_KEY_RSP.
    KeyResponse = 4,
    /// MSG_REPORT_REQ.
    ReportRequest = 5,
    /// MSG_REPORT_RSP.
    ReportResponse = 6,
}

impl MessageType {
    fn of(number: u8) -> Option<Self> {
        let all = [
            Self::KeyRequest,
            Self::KeyResponse,
            Self::ReportRequest,
            Self::ReportResponse,
        ];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Shorter than its header, or than the header says, or longer than a page.
    #[error("its length is wrong")]
    Length,
    /// Another algorithm or version than the one there is.
    #[error("an algorithm or a version that is not known")]
    Version,
    /// A type that is not known.
    #[error("message type {0} is not known")]
    Type(u8),
    /// A reserved byte is not zero.
    #[error("a reserved byte is not zero")]
    Reserved,
    /// There are keys 0 to 3.
    #[error("key {0} does not exist")]
    Key(u8),
    /// Not sealed with this key and number, or changed since.
    #[error("it is not authentic")]
    NotAuthentic,
}

/// The clear part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sequence number.
    pub sequence: u64,
    /// What it is.
    pub kind: MessageType,
    /// Number of the key: the VMPL that owns it.
    pub key: u8,
}

/// A message as it came, with a header that makes sense.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The clear part.
    pub header: Header,
    clear: [u8; HEADER],
    payload: Vec<u8>,
}

fn word<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut word = [0; N];
    word.copy_from_slice(&bytes[at..at + N]);
    word
}

impl Sealed {
    /// Takes a message from the start of a page. What follows it in the page is not part of it.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let (clear, rest) = bytes.split_first_chunk::<HEADER>().ok_or(MessageError::Length)?;
        let size = usize::from(u16::from_le_bytes(word(clear, 0x36)));
        if clear[0x30] != AES_256_GCM
            || clear[0x31] != HEADER_VERSION
            || u16::from_le_bytes(word(clear, 0x32)) as usize != HEADER
            || clear[0x35] != MESSAGE_VERSION
        {
            return Err(MessageError::Version);
        }
        let kind = MessageType::of(clear[0x34]).ok_or(MessageError::Type(clear[0x34]))?;
        let reserved = [0x10..0x20, 0x28..0x30, 0x38..0x3c, 0x3d..HEADER];
        if reserved
            .into_iter()
            .any(|range| clear[range].iter().any(|&byte| byte != 0))
        {
            return Err(MessageError::Reserved);
        }
        let key = clear[0x3c];
        if key > 3 {
            return Err(MessageError::Key(key));
        }
        if size > MOST - HEADER {
            return Err(MessageError::Length);
        }
        Ok(Self {
            header: Header {
                sequence: u64::from_le_bytes(word(clear, 0x20)),
                kind,
                key,
            },
            clear: *clear,
            payload: rest.get(..size).ok_or(MessageError::Length)?.to_vec(),
        })
    }

    /// The payload, if the message is authentic under `key`.
    ///
    /// # Errors
    /// [`MessageError::NotAuthentic`].
    pub fn open(mut self, key: &[u8; 32]) -> Result<Vec<u8>, MessageError> {
        let cipher = Aes256Gcm::new(key.into());
        let tag = Tag::from(word::<16>(&self.clear, 0));
        let opened = cipher.decrypt_in_place_detached(
            &nonce(self.header.sequence),
            &self.clear[AUTHENTICATED],
            &mut self.payload,
            &tag,
        );
        opened.map_err(|_| MessageError::NotAuthentic)?;
        Ok(self.payload)
    }
}

fn nonce(sequence: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&sequence.to_le_bytes());
    nonce.into()
}

/// A message with `payload`. The caller never gives one sequence number twice.
///
/// # Errors
/// [`MessageError::Length`]: it does not fit a page; [`MessageError::Key`].
pub fn seal(header: Header, key: &[u8; 32], payload: &[u8]) -> Result<Vec<u8>, MessageError> {
    if payload.len() > MOST - HEADER {
        return Err(MessageError::Length);
    }
    if header.key > 3 {
        return Err(MessageError::Key(header.key));
    }
    let mut bytes = vec![0; HEADER];
    bytes[0x20..0x28].copy_from_slice(&header.sequence.to_le_bytes());
    bytes[0x30..0x32].copy_from_slice(&[AES_256_GCM, HEADER_VERSION]);
    bytes[0x32..0x34].copy_from_slice(&(HEADER as u16).to_le_bytes());
    bytes[0x34..0x36].copy_from_slice(&[header.kind as u8, MESSAGE_VERSION]);
    bytes[0x36..0x38].copy_from_slice(&(payload.len() as u16).to_le_bytes());
    bytes[0x3c] = header.key;
    let mut sealed = payload.to_vec();
    let tag = Aes256Gcm::new(key.into())
        .encrypt_in_place_detached(&nonce(header.sequence), &bytes[AUTHENTICATED], &mut sealed)
        .map_err(|_| MessageError::Length)?;
    bytes[..16].copy_from_slice(&tag);
    bytes.extend_from_slice(&sealed);
    Ok(bytes)
}
