//! Sealed messages to the security processor and back, through the hypervisor's hands (SNP ABI, section 8.26 and table 99).
//!
//! ```text
//! 0x00 authentication tag (32, of which 16 are used)   0x20 sequence number u64
//! 0x28 reserved                                        0x30 algorithm u8, header version u8, header size u16,
//! 0x34 type u8, version u8, payload size u16           0x38 reserved u32    0x3c key number u8
//! 0x60 payload, encrypted
//! ```
//! AES-256-GCM; the nonce is the sequence number, so a number that meets the key twice, with another message, gives both
//! away. Therefore a number is spent when a message is made, whatever becomes of it; a message may be *sent* again, as it
//! is. And as nobody can tell whether a message that was not answered reached the processor, a channel that did not get
//! the right answer is closed for good.

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};

use crate::secrets::Key;
use crate::weakened::{Protection, without};

/// Bytes of a header.
pub const HEADER: usize = 0x60;
/// Most bytes of a payload that the shim sends or takes: a response with a report.
pub const PAYLOAD: usize = 32 + 1184;
/// Bytes of the largest message, in whole words.
pub const LARGEST: usize = HEADER + PAYLOAD;

const AUTHENTICATED: core::ops::Range<usize> = 0x30..HEADER;
const AES_256_GCM: u8 = 1;
const HEADER_VERSION: u8 = 1;
const MESSAGE_VERSION: u8 = 1;
/// Most times that a message is sent while the hypervisor says that it is busy.
const TRIES: u32 = 64;

/// What a request is; its response has the next number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// MSG_KEY_REQ.
    Key = 3,
    /// MSG_REPORT_REQ.
    Report = 5,
}

/// The privilege level that a message is of: its key's number in the secrets page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Keys: the most privileged one.
    Keys = 0,
    /// Reports: the next one.
    Reports = 1,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// There is an answer.
    Answered,
    /// It was not delivered: the hypervisor is busy.
    Busy,
    /// It was refused, or nobody knows.
    Failed,
}

/// Why there is no payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageError {
    /// The channel was closed before.
    Closed,
    /// The message was not delivered.
    Undelivered,
    /// The answer is none to this message.
    NotTheAnswer,
    /// Longer than messages are.
    Length,
}

/// Whoever carries messages.
pub trait Carrier {
    /// Sends `message`; on [`Delivery::Answered`] the answer's first bytes are in `answer`.
    fn send(&mut self, message: &[u8], answer: &mut [u8; LARGEST]) -> Delivery;
}

/// The guest's end, under one key.
#[derive(Debug)]
pub struct Channel {
    key: Option<Key>,
    level: Level,
    /// The next request's: odd. Nothing was sealed under it yet.
    next: u64,
}

impl Channel {
    /// No key yet.
    #[must_use]
    pub const fn closed() -> Self {
        Self {
            key: None,
            level: Level::Reports,
            next: 1,
        }
    }

    /// Under a key that nobody has used yet.
    #[must_use]
    pub const fn open(level: Level, key: Key) -> Self {
        Self {
            key: Some(key),
            level,
            next: 1,
        }
    }

    /// Sends a request; gives the length of the response's payload, which is at [`HEADER`] in `answer`.
    ///
    /// # Errors
    /// [`MessageError`]; all but [`MessageError::Length`] close the channel.
    pub fn request(
        &mut self,
        kind: Kind,
        payload: &[u8],
        answer: &mut [u8; LARGEST],
        carrier: &mut impl Carrier,
    ) -> Result<usize, MessageError> {
        if payload.len() > PAYLOAD {
            return Err(MessageError::Length);
        }
        // Closed until the answer is there.
        let key = self.key.take().ok_or(MessageError::Closed)?;
        let sequence = self.next;
        self.next = sequence.checked_add(2).ok_or(MessageError::Closed)?;
        let cipher = Aes256Gcm::new((&*key).into());
        let mut message = [0; LARGEST];
        let head = Head {
            level: self.level,
            sequence,
            kind: kind as u8,
        };
        let message = seal(&cipher, head, payload, &mut message);
        let delivered = deliver(message, answer, carrier);
        if delivered.is_err() && without(Protection::Closed) {
            (self.key, self.next) = (Some(key), sequence);
            return Err(MessageError::Undelivered);
        }
        delivered?;
        let len = open(&cipher, head.answer(), answer)?;
        self.key = Some(key);
        Ok(len)
    }
}

fn deliver(
    message: &[u8],
    answer: &mut [u8; LARGEST],
    carrier: &mut impl Carrier,
) -> Result<(), MessageError> {
    for _ in 0..TRIES {
        match carrier.send(message, answer) {
            Delivery::Answered => return Ok(()),
            // The same bytes again: no number meets another message.
            Delivery::Busy => {}
            Delivery::Failed => break,
        }
    }
    Err(MessageError::Undelivered)
}

fn nonce(sequence: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&sequence.to_le_bytes());
    nonce.into()
}

/// What a header says.
#[derive(Debug, Clone, Copy)]
struct Head {
    level: Level,
    sequence: u64,
    kind: u8,
}

impl Head {
    /// Of the answer.
    const fn answer(self) -> Self {
        Self {
            level: self.level,
            sequence: self.sequence + 1,
            kind: self.kind + 1,
        }
    }

    /// All but the tag.
    fn write(&self, header: &mut [u8], len: usize) {
        let [h0, h1] = (HEADER as u16).to_le_bytes();
        let [l0, l1] = (len as u16).to_le_bytes();
        header[0x20..0x28].copy_from_slice(&self.sequence.to_le_bytes());
        let description = [
            AES_256_GCM,
            HEADER_VERSION,
            h0,
            h1,
            self.kind,
            MESSAGE_VERSION,
            l0,
            l1,
        ];
        header[0x30..0x38].copy_from_slice(&description);
        header[0x3c] = self.level as u8;
    }
}

fn seal<'a>(cipher: &Aes256Gcm, head: Head, payload: &[u8], message: &'a mut [u8; LARGEST]) -> &'a [u8] {
    let end = HEADER + payload.len();
    head.write(message, payload.len());
    message[HEADER..end].copy_from_slice(payload);
    let (header, rest) = message.split_at_mut(HEADER);
    let sealed = &mut rest[..end - HEADER];
    // It fails for lengths beyond 2^36 only; a message without its tag is then refused by who gets it.
    if let Ok(tag) = cipher.encrypt_in_place_detached(&nonce(head.sequence), &header[AUTHENTICATED], sealed) {
        header[..16].copy_from_slice(&tag);
    } else {
        sealed.fill(0);
    }
    &message[..end]
}

/// An answer under the level of reports, as the processor makes it.
#[cfg(test)]
pub fn answer_of_tests(key: &[u8; 32], sequence: u64, kind: Kind, payload: &[u8]) -> [u8; LARGEST] {
    let mut answer = [0; LARGEST];
    let head = Head {
        level: Level::Reports,
        sequence,
        kind: kind as u8 + 1,
    };
    seal(&Aes256Gcm::new(key.into()), head, payload, &mut answer);
    answer
}

/// Opens an answer where it lies. It has one form only: every byte of its header is known beforehand, but for the tag and
/// the length.
fn open(cipher: &Aes256Gcm, mut head: Head, answer: &mut [u8; LARGEST]) -> Result<usize, MessageError> {
    let (header, rest) = answer.split_at_mut(HEADER);
    let len = usize::from(u16::from_le_bytes([header[0x36], header[0x37]]));
    let mut wanted = [0; HEADER];
    wanted[..16].copy_from_slice(&header[..16]);
    if without(Protection::Number) {
        let mut number = [0; 8];
        number.copy_from_slice(&header[0x20..0x28]);
        head.sequence = u64::from_le_bytes(number);
    }
    head.write(&mut wanted, len);
    let payload = rest.get_mut(..len).ok_or(MessageError::NotTheAnswer)?;
    let mut tag = Tag::default();
    tag.copy_from_slice(&wanted[..16]);
    if *header != wanted {
        return Err(MessageError::NotTheAnswer);
    }
    if without(Protection::Tag) {
        // The key stream is the same in both directions.
        let opened = cipher.encrypt_in_place_detached(&nonce(head.sequence), &wanted[AUTHENTICATED], payload);
        return opened.map(|_| len).map_err(|_| MessageError::NotTheAnswer);
    }
    cipher
        .decrypt_in_place_detached(&nonce(head.sequence), &wanted[AUTHENTICATED], payload, &tag)
        .map_err(|_| MessageError::NotTheAnswer)?;
    Ok(len)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
