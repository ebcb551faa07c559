//! TD attributes (TDX ABI, table "ATTRIBUTES").

use std::fmt;

use serde::{Serialize, Serializer};

/// The 64-bit ATTRIBUTES field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdAttributes(pub u64);

/// Bits that no revision defines: 3:1, 15:7, 26:23, 61:32.
const RESERVED: u64 = 0xe | 0xff80 | (0xf << 23) | (((1 << 30) - 1) << 32);
/// HGS+, performance and platform monitoring profiling by the host.
const PROFILING: u64 = 0x70;

impl TdAttributes {
    /// Whether the host may read and change the domain (bit 0).
    pub fn debug(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the host may profile the domain (bits 6:4).
    pub fn profiling(self) -> bool {
        self.0 & PROFILING != 0
    }

    /// Whether service domains have extended binding (SERVTD_EXT, bit 17).
    pub fn service_td_extended(self) -> bool {
        self.0 & (1 << 17) != 0
    }

    /// Whether page removal raises no exception that the host could time (SEPT_VE_DISABLE, bit 28).
    pub fn sept_ve_disable(self) -> bool {
        self.0 & (1 << 28) != 0
    }

    /// Whether a migration domain may export this one (MIGRATABLE, bit 29).
    pub fn migratable(self) -> bool {
        self.0 & (1 << 29) != 0
    }

    /// Whether every reserved bit is zero.
    pub fn reserved_bits_hold(self) -> bool {
        self.0 & RESERVED == 0
    }
}

impl fmt::Display for TdAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for TdAttributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_bits_are_those_that_dcap_qvl_knows() {
        for bit in 0..64 {
            let theirs = dcap_qvl::quote::TDAttributes::parse((1u64 << bit).to_le_bytes()).unwrap();
            let ours = TdAttributes(1 << bit);
            assert_eq!(theirs.reserved == 0, ours.reserved_bits_hold(), "bit {bit}");
        }
    }
}
