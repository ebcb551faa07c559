//! Byte strings of a fixed length that people read and write in hexadecimal: digests, chip identities, nonces.
//!
//! A policy, a report printed as JSON and a token all show the same value the same way, lower-case and unprefixed.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `N` bytes, written as `2 * N` hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// A SHA-256 digest, or a 32-byte field of a report.
pub type Bytes32 = Bytes<32>;
/// A SHA-384 digest, or a 48-byte field of a report.
pub type Bytes48 = Bytes<48>;
/// A 64-byte field of a report: REPORT_DATA, CHIP_ID.
pub type Bytes64 = Bytes<64>;

/// Why a text is not a byte string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// The number of digits does not fit.
    #[error("expected {expected} hexadecimal digits, found {found} characters")]
    Length {
        /// Digits wanted.
        expected: usize,
        /// Characters found.
        found: usize,
    },
    /// Something other than a hexadecimal digit.
    #[error("not hexadecimal")]
    Digit,
}

impl<const N: usize> Bytes<N> {
    /// All bytes zero.
    pub const ZERO: Self = Self([0; N]);

    /// The bytes as a slice.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Whether every byte is zero, which the hardware uses for "not given".
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }
}

impl<const N: usize> From<[u8; N]> for Bytes<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> fmt::Display for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> FromStr for Bytes<N> {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        if text.len() != 2 * N {
            return Err(BytesError::Length {
                expected: 2 * N,
                found: text.len(),
            });
        }
        let mut bytes = [0; N];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BytesError::Digit)?;
        Ok(Self(bytes))
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<const N: usize> JsonSchema for Bytes<N> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Bytes{N}").into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": format!("^[0-9A-Fa-f]{{{}}}$", 2 * N) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let bytes = Bytes([0, 0x7f, 0xff]);
        assert_eq!(bytes.to_string(), "007fff");
        assert_eq!("007FFF".parse(), Ok(bytes));
    }

    #[test]
    fn a_wrong_length_says_both_lengths() {
        let error = "00ff".parse::<Bytes<3>>().unwrap_err();
        assert_eq!(
            error,
            BytesError::Length {
                expected: 6,
                found: 4
            }
        );
    }
}
