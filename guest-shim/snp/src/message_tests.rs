use std::collections::HashMap;

use super::*;
use proptest::prelude::*;

const KEY: [u8; 32] = [7; 32];

/// A processor that answers with what it was sent, reversed, and a hypervisor between.
struct Peer<F> {
    expected: u64,
    /// By number: what was sealed under it.
    sent: HashMap<u64, Vec<u8>>,
    hypervisor: F,
}

/// What the hypervisor is given: which sending it is, and the answer that is on its way.
type Answer = Vec<u8>;

impl<F: FnMut(usize, &mut Answer) -> Delivery> Peer<F> {
    fn new(hypervisor: F) -> Self {
        Self {
            expected: 1,
            sent: HashMap::new(),
            hypervisor,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

impl<F: FnMut(usize, &mut Answer) -> Delivery> Carrier for Peer<F> {
    fn send(&mut self, message: &[u8], answer: &mut [u8; LARGEST]) -> Delivery {
        let number = word(message, 0x20);
        // The one thing that must never be: another message under the same number.
        if let Some(before) = self.sent.insert(number, message.to_vec()) {
            assert_eq!(before, message, "number {number} was used for two messages");
        }
        let mut bytes = respond(message, self.expected).unwrap_or_default();
        let delivery = (self.hypervisor)(self.sent.len(), &mut bytes);
        if delivery == Delivery::Answered {
            self.expected = number + 2;
        }
        let len = bytes.len().min(LARGEST);
        answer[..len].copy_from_slice(&bytes[..len]);
        delivery
    }
}

fn respond(message: &[u8], expected: u64) -> Option<Answer> {
    let cipher = Aes256Gcm::new((&KEY).into());
    let number = word(message, 0x20);
    if number != expected {
        return None;
    }
    let mut payload = message[HEADER..].to_vec();
    let tag = Tag::from(*message.first_chunk::<16>().expect("a header"));
    let opened =
        cipher.decrypt_in_place_detached(&nonce(number), &message[AUTHENTICATED], &mut payload, &tag);
    opened.expect("authentic");
    payload.reverse();
    let mut response = vec![0; HEADER];
    let head = Head {
        level: Level::Reports,
        sequence: number + 1,
        kind: message[0x34] + 1,
    };
    assert_eq!(message[0x3c], Level::Reports as u8, "the key that it is under");
    head.write(&mut response, payload.len());
    let tag = cipher.encrypt_in_place_detached(&nonce(number + 1), &response[AUTHENTICATED], &mut payload);
    response[..16].copy_from_slice(&tag.expect("short"));
    response.extend(payload);
    Some(response)
}

fn ask(channel: &mut Channel, payload: &[u8], peer: &mut impl Carrier) -> Result<Vec<u8>, MessageError> {
    let mut answer = [0; LARGEST];
    let len = channel.request(Kind::Report, payload, &mut answer, peer)?;
    Ok(answer[HEADER..HEADER + len].to_vec())
}

fn channel() -> Channel {
    Channel::open(Level::Reports, Key::new(KEY))
}

#[test]
fn requests_are_answered_in_turn() {
    let (mut channel, mut peer) = (channel(), Peer::new(|_, _| Delivery::Answered));
    for n in 0..5u8 {
        assert_eq!(ask(&mut channel, &[n, 9], &mut peer), Ok(vec![9, n]));
    }
    let mut numbers: Vec<_> = peer.sent.keys().copied().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 3, 5, 7, 9]);
}

#[test]
fn a_busy_hypervisor_gets_the_same_message_again() {
    let mut left = 3;
    let mut peer = Peer::new(|_, _| {
        left -= 1;
        if left > 0 {
            Delivery::Busy
        } else {
            Delivery::Answered
        }
    });
    assert_eq!(ask(&mut channel(), b"ab", &mut peer), Ok(b"ba".to_vec()));
    assert_eq!(peer.sent.len(), 1);
    let (mut channel, mut peer) = (channel(), Peer::new(|_, _| Delivery::Busy));
    assert_eq!(
        ask(&mut channel, b"ab", &mut peer),
        Err(MessageError::Undelivered)
    );
    assert_eq!(ask(&mut channel, b"cd", &mut peer), Err(MessageError::Closed));
}

/// Dropped, repeated, reordered: whatever is no answer to this very message closes the channel, and nothing more is sealed.
#[test]
fn what_is_not_the_answer_closes_the_channel() {
    // Dropped.
    let (mut one, mut peer) = (channel(), Peer::new(|_, _| Delivery::Failed));
    assert_eq!(ask(&mut one, b"ab", &mut peer), Err(MessageError::Undelivered));
    assert_eq!(ask(&mut one, b"ab", &mut peer), Err(MessageError::Closed));
    assert_eq!(peer.sent.len(), 1);
    // Repeated: the first answer to the second request.
    let mut first = None;
    let (mut two, mut peer) = (
        channel(),
        Peer::new(|_, answer: &mut Answer| {
            *answer = first.get_or_insert_with(|| answer.clone()).clone();
            Delivery::Answered
        }),
    );
    assert_eq!(ask(&mut two, b"ab", &mut peer), Ok(b"ba".to_vec()));
    assert_eq!(ask(&mut two, b"cd", &mut peer), Err(MessageError::NotTheAnswer));
    assert_eq!(ask(&mut two, b"cd", &mut peer), Err(MessageError::Closed));
    // Relabelled as the answer to the second.
    let mut first = None;
    let (mut three, mut peer) = (
        channel(),
        Peer::new(|_, answer: &mut Answer| {
            let number = word(answer, 0x20).to_le_bytes();
            *answer = first.get_or_insert_with(|| answer.clone()).clone();
            answer[0x20..0x28].copy_from_slice(&number);
            Delivery::Answered
        }),
    );
    assert_eq!(ask(&mut three, b"ab", &mut peer), Ok(b"ba".to_vec()));
    assert_eq!(ask(&mut three, b"cd", &mut peer), Err(MessageError::NotTheAnswer));
    // The request itself, sent back.
    let (mut four, mut peer) = (channel(), Echo);
    assert_eq!(ask(&mut four, b"ab", &mut peer), Err(MessageError::NotTheAnswer));
}

struct Echo;

impl Carrier for Echo {
    fn send(&mut self, message: &[u8], answer: &mut [u8; LARGEST]) -> Delivery {
        answer[..message.len()].copy_from_slice(message);
        Delivery::Answered
    }
}

#[test]
fn numbers_that_run_out_end_it() {
    let mut channel = Channel {
        level: Level::Reports,
        key: Some(Key::new(KEY)),
        next: u64::MAX,
    };
    let mut peer = Peer::new(|_, _| Delivery::Answered);
    assert_eq!(ask(&mut channel, b"ab", &mut peer), Err(MessageError::Closed));
    assert!(peer.sent.is_empty());
    assert_eq!(
        ask(&mut Channel::closed(), b"ab", &mut peer),
        Err(MessageError::Closed)
    );
}

#[test]
fn what_is_too_long_is_not_sent() {
    let (mut channel, mut peer) = (channel(), Peer::new(|_, _| Delivery::Answered));
    let long = [0; PAYLOAD + 1];
    assert_eq!(ask(&mut channel, &long, &mut peer), Err(MessageError::Length));
    assert_eq!(
        ask(&mut channel, &long[1..], &mut peer).map(|b| b.len()),
        Ok(PAYLOAD)
    );
}

proptest! {
    #[test]
    fn a_changed_answer_is_refused(at in 0usize..HEADER + 20, bit in 0u8..8) {
        let mut peer = Peer::new(|_, answer: &mut Answer| {
            answer[at] ^= 1 << bit;
            Delivery::Answered
        });
        prop_assert_eq!(ask(&mut channel(), &[3; 20], &mut peer), Err(MessageError::NotTheAnswer));
    }

    #[test]
    fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..LARGEST)) {
        let mut peer = Peer::new(|_, answer: &mut Answer| {
            answer.clone_from(&noise);
            Delivery::Answered
        });
        prop_assert_eq!(ask(&mut channel(), &[3; 20], &mut peer), Err(MessageError::NotTheAnswer));
    }
}
