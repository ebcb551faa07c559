//! The processor generations that AMD issues SNP endorsement keys for.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A generation, which has its own root key and TCB layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Product {
    /// Every product with a pinned root.
    pub const ALL: [Product; 3] = [Product::Milan, Product::Genoa, Product::Turin];

    /// The name in certificates: common names end with it and the product extension starts with it.
    pub fn name(self) -> &'static str {
        match self {
            Product::Milan => "Milan",
            Product::Genoa => "Genoa",
            Product::Turin => "Turin",
        }
    }

    /// The product that CPUID's combined family and model mean (VCEK §3.1; Siena and Bergamo use Genoa's root).
    pub fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Product::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Product::Genoa),
            (0x1a, 0x00..=0x1f) => Some(Product::Turin),
            _ => None,
        }
    }

    /// The product that a certificate's extension names, such as `Milan-B0` or `Turin`.
    pub fn from_certificate_name(name: &str) -> Option<Self> {
        let stem = name.split_once('-').map_or(name, |(stem, _stepping)| stem);
        Product::ALL.into_iter().find(|product| product.name() == stem)
    }

    /// Bytes of CHIP_ID that identify the chip; the rest are zero. Turin shortened it to eight.
    pub fn hwid_bytes(self) -> usize {
        match self {
            Product::Milan | Product::Genoa => 64,
            Product::Turin => 8,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_cpuid_lead_to_the_same_products() {
        assert_eq!(Product::from_certificate_name("Milan-B0"), Some(Product::Milan));
        assert_eq!(Product::from_certificate_name("Turin"), Some(Product::Turin));
        assert_eq!(Product::from_certificate_name("Milanese"), None);
        assert_eq!(Product::from_cpuid(0x19, 1), Some(Product::Milan));
        assert_eq!(Product::from_cpuid(0x19, 0xa0), Some(Product::Genoa));
        assert_eq!(Product::from_cpuid(0x1a, 2), Some(Product::Turin));
        assert_eq!(Product::from_cpuid(0x1a, 0x20), None);
    }
}
