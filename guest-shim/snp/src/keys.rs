//! The root of the context's keys: derived by the security processor from the chip's secret, the guest's policy and the launch
//! measurement, and then here from HOST_DATA, which says what manifest the guest was launched for.
//!
//! The processor can't mix HOST_DATA in (SNP ABI, table 18), and another manifest's guest has the same measurement. So the
//! kernel does, by what a report says, before it gives the key out; and that nobody else in a guest can ask for the key
//! beneath it is what [`Level`] is for. The firmware's version is not mixed in: keys outlive its updates.

use hkdf::Hkdf;
use sha2::Sha384;
use zeroize::{Zeroize, Zeroizing};

use crate::message::{Carrier, Channel, HEADER, Kind, LARGEST, Level, MessageError};

/// Bytes of MSG_KEY_RSP: status, 28 reserved, the key.
const RESPONSE: usize = 64;
/// Bytes of MSG_KEY_REQ: key to derive from, reserved, fields, VMPL, guest's version, TCB.
const REQUEST: usize = 32;
/// Fields that are mixed in: the guest's policy, the measurement.
const FIELDS: u64 = 1 | 8;

/// A root key.
pub type Root = Zeroizing<[u8; 32]>;

/// Asks for the key of this chip, policy and measurement, and makes the root of it and `host_data`. The channel is one of
/// [`Level::Keys`], and is gone after it.
///
/// # Errors
/// [`MessageError`]; [`MessageError::NotTheAnswer`] too when the processor refused.
pub fn root(
    mut channel: Channel,
    host_data: &[u8; 32],
    carrier: &mut impl Carrier,
) -> Result<Root, MessageError> {
    let mut request = [0; REQUEST];
    request[8..16].copy_from_slice(&FIELDS.to_le_bytes());
    request[16..20].copy_from_slice(&u32::from(Level::Keys as u8).to_le_bytes());
    let mut answer = [0; LARGEST];
    let asked = channel.request(Kind::Key, &request, &mut answer, carrier);
    let (head, key) = answer[HEADER..HEADER + RESPONSE].split_at_mut(RESPONSE - 32);
    let good = asked == Ok(RESPONSE) && head[..4] == [0; 4];
    let root = derive(key, host_data);
    key.zeroize();
    asked?;
    if good {
        Ok(root)
    } else {
        Err(MessageError::NotTheAnswer)
    }
}

/// HKDF-SHA-384 without salt.
fn derive(key: &[u8], host_data: &[u8; 32]) -> Root {
    let mut root = Root::default();
    let info: [&[u8]; 2] = [b"cloak snp root v1", host_data];
    let expanded = Hkdf::<Sha384>::new(None, key).expand_multi_info(&info, root.as_mut_slice());
    debug_assert!(
        expanded.is_ok(),
        "32 bytes are less than 255 hashes, HKDF's only limit"
    );
    root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Delivery;
    use crate::secrets::Key;

    struct Nobody;

    impl Carrier for Nobody {
        fn send(&mut self, message: &[u8], _: &mut [u8; LARGEST]) -> Delivery {
            assert_eq!(message.len(), HEADER + REQUEST);
            assert_eq!(message[0x34], Kind::Key as u8);
            assert_eq!(message[0x3c], Level::Keys as u8);
            Delivery::Failed
        }
    }

    #[test]
    fn without_an_answer_there_is_no_key() {
        let channel = Channel::open(Level::Keys, Key::new([1; 32]));
        let asked = root(channel, &[2; 32], &mut Nobody);
        assert_eq!(asked.err(), Some(MessageError::Undelivered));
    }

    #[test]
    fn each_manifest_has_its_own_root() {
        let root = derive(&[7; 32], &[1; 32]);
        assert_eq!(root, derive(&[7; 32], &[1; 32]));
        assert_ne!(root, derive(&[7; 32], &[2; 32]));
        assert_ne!(root, derive(&[8; 32], &[1; 32]));
    }
}
