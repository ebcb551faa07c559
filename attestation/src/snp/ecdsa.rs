//! ECDSA on P-384 as the firmware has it in reports and ID blocks: numbers are little-endian, in fields that have room for a longer
//! curve's.

use p384::ecdsa::Signature;

/// The only algorithm defined: ECDSA P-384 with SHA-384 (SNP ABI table 139).
pub const ECDSA_P384_SHA384: u32 = 1;
/// Bytes of a number's field.
pub const FIELD: usize = 72;
/// Bytes of a number.
const SCALAR: usize = 48;

/// Two numbers, one field after the other: a signature, or a point.
pub type Pair = [u8; 2 * FIELD];

/// The numbers, big-endian; `None` if one of them does not fit 48 bytes.
pub fn numbers(pair: &Pair) -> Option<[[u8; SCALAR]; 2]> {
    let (first, second) = pair.split_at(FIELD);
    Some([number(first)?, number(second)?])
}

/// The signature; `None` if a number does not fit 48 bytes, is zero or is not below the group's order.
pub fn signature(pair: &Pair) -> Option<Signature> {
    let [r, s] = numbers(pair)?;
    Signature::from_scalars(r, s).ok()
}

fn number(field: &[u8]) -> Option<[u8; SCALAR]> {
    let (low, high) = field.split_first_chunk::<SCALAR>()?;
    let mut number = *low;
    number.reverse();
    high.iter().all(|&byte| byte == 0).then_some(number)
}

/// Writes two big-endian numbers as a pair begins at `at`.
#[cfg(feature = "sim")]
pub fn put(bytes: &mut [u8], at: usize, numbers: [&[u8]; 2]) {
    for (field, number) in bytes[at..].chunks_exact_mut(FIELD).zip(numbers) {
        for (to, byte) in field.iter_mut().zip(number.iter().rev()) {
            *to = *byte;
        }
    }
}
