//! The guest policy: what the launcher allowed the host and the firmware to do with the guest (SNP ABI §4.3).

use std::fmt;

use serde::{Serialize, Serializer};

/// The 64-bit POLICY field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPolicy(pub u64);

/// Bit 17 must be one and bits 63:26 zero.
const MUST_BE_ONE: u64 = 1 << 17;
const MUST_BE_ZERO: u64 = u64::MAX << 26;

impl GuestPolicy {
    /// Least firmware ABI that the guest accepts, major and minor.
    pub fn minimum_abi(self) -> (u8, u8) {
        ((self.0 >> 8) as u8, self.0 as u8)
    }

    /// Whether the host may run siblings on the same core.
    pub fn allows_smt(self) -> bool {
        self.bit(16)
    }

    /// Whether a migration agent may be associated, which can export the guest.
    pub fn allows_migration_agent(self) -> bool {
        self.bit(18)
    }

    /// Whether the host may decrypt the guest's memory.
    pub fn allows_debug(self) -> bool {
        self.bit(19)
    }

    /// Whether the guest runs on one socket only.
    pub fn requires_single_socket(self) -> bool {
        self.bit(20)
    }

    /// Whether CXL devices and memory may be populated.
    pub fn allows_cxl(self) -> bool {
        self.bit(21)
    }

    /// Whether memory encryption must be AES-256-XTS.
    pub fn requires_aes_256_xts(self) -> bool {
        self.bit(22)
    }

    /// Whether running average power limit reporting must be off.
    pub fn requires_rapl_off(self) -> bool {
        self.bit(23)
    }

    /// Whether ciphertext must be hidden from the host.
    pub fn requires_ciphertext_hiding(self) -> bool {
        self.bit(24)
    }

    /// Whether the host may not move or swap pages.
    pub fn disables_page_swap(self) -> bool {
        self.bit(25)
    }

    /// Whether the reserved bits are as the specification demands.
    pub fn reserved_bits_hold(self) -> bool {
        self.bit(17) && self.0 & MUST_BE_ZERO == 0
    }

    /// The value with the reserved bits put right.
    pub fn with_reserved_bits(self) -> Self {
        Self(self.0 & !MUST_BE_ZERO | MUST_BE_ONE)
    }

    fn bit(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }
}

impl fmt::Display for GuestPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for GuestPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
