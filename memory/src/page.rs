//! Numbers that name a page, a version and a context. Newtypes, so that none is taken for another, and so that
//! every value that exists fits the nonce ([`crate::cipher`]).

use std::fmt;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// A guest-physical page number: address divided by 4096. Below 2^40, as x86-64 has at most 52 address bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page(u64);

impl Page {
    /// One more than the largest page number.
    pub const END: u64 = 1 << 40;

    /// The page with this number; none when the number is beyond what x86-64 can address.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::END {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The page that a guest-physical address lies in.
    #[must_use]
    pub const fn containing(gpa: u64) -> Option<Self> {
        Self::new(gpa / PAGE_SIZE as u64)
    }

    /// The page number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The guest-physical address of the page's first byte; also its offset in a view or a swap file.
    #[must_use]
    pub const fn gpa(self) -> u64 {
        self.0 * PAGE_SIZE as u64
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.gpa())
    }
}

/// Which sealing of a context's pages this is. One counter for the whole context, so no two sealings share one.
/// Below 2^56; zero means never sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// Never sealed.
    pub const NONE: Self = Self(0);
    /// One more than the largest version.
    pub const END: u64 = 1 << 56;

    /// The version with this number; none when it is too large.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::END {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}", self.0)
    }
}

/// A context's number in its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub u64);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "context {}", self.0)
    }
}
