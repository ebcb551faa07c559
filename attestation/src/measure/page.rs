//! A page of guest memory as a launch command adds it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;

/// A guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Gpa(pub u64);

impl Gpa {
    /// Whether it is the start of a page.
    pub fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_BYTES as u64)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a page is to the firmware (SNP ABI §8.17, PAGE_TYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PageKind {
    /// Content that is measured.
    Normal,
    /// All zero. SNP measures that it is, without hashing it; TDX measures the zeros.
    Zero,
    /// Present, with content that the host chose and nobody vouches for.
    Unmeasured,
    /// SNP: keys and counters that the firmware writes. Not part of a TDX domain.
    Secrets,
    /// SNP: CPUID values that the firmware checks. Not part of a TDX domain.
    Cpuid,
}

/// One page.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Where.
    pub gpa: Gpa,
    /// What.
    pub kind: PageKind,
    /// Content, for a normal page; all zero past its end.
    pub contents: &'a [u8],
}

impl Page<'_> {
    /// The content padded to a page. Bytes past one page do not belong to it.
    pub(super) fn padded(&self) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        let length = self.contents.len().min(PAGE_BYTES);
        bytes[..length].copy_from_slice(&self.contents[..length]);
        bytes
    }
}
