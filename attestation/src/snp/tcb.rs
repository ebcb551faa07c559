//! TCB versions: the security version numbers of everything below the guest (SNP ABI §2.2).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Product;

/// A TCB_VERSION field as it stands in a report, before the product says how to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcb(pub [u8; 8]);

/// The components of a TCB version. In a policy, those not written are zero, which every TCB meets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TcbComponents {
    /// SVN of the FMC firmware; Turin only.
    pub fmc: u8,
    /// SVN of the PSP boot loader.
    pub boot_loader: u8,
    /// SVN of the PSP operating system.
    pub tee: u8,
    /// SVN of the SNP firmware.
    pub snp: u8,
    /// Lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl Tcb {
    /// The components, as `product` lays them out.
    pub fn components(self, product: Product) -> TcbComponents {
        let [a, b, c, d, _, _, g, h] = self.0;
        match product {
            Product::Milan | Product::Genoa => TcbComponents {
                fmc: 0,
                boot_loader: a,
                tee: b,
                snp: g,
                microcode: h,
            },
            Product::Turin => TcbComponents {
                fmc: a,
                boot_loader: b,
                tee: c,
                snp: d,
                microcode: h,
            },
        }
    }

    /// The reserved bytes, as `product` lays them out.
    pub fn reserved(self, product: Product) -> Vec<u8> {
        match product {
            Product::Milan | Product::Genoa => self.0[2..6].to_vec(),
            Product::Turin => self.0[4..7].to_vec(),
        }
    }
}

impl TcbComponents {
    /// The field, as `product` lays it out.
    pub fn encode(self, product: Product) -> Tcb {
        let Self {
            fmc,
            boot_loader,
            tee,
            snp,
            microcode,
        } = self;
        match product {
            Product::Milan | Product::Genoa => Tcb([boot_loader, tee, 0, 0, 0, 0, snp, microcode]),
            Product::Turin => Tcb([fmc, boot_loader, tee, snp, 0, 0, 0, microcode]),
        }
    }

    /// Whether every component is at least that of `minimum`.
    pub fn meets(&self, minimum: &Self) -> bool {
        self.fmc >= minimum.fmc
            && self.boot_loader >= minimum.boot_loader
            && self.tee >= minimum.tee
            && self.snp >= minimum.snp
            && self.microcode >= minimum.microcode
    }
}

impl fmt::Display for TcbComponents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fmc,
            boot_loader,
            tee,
            snp,
            microcode,
        } = self;
        write!(
            f,
            "fmc {fmc}, boot loader {boot_loader}, tee {tee}, snp {snp}, microcode {microcode}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_round_trip() {
        let components = TcbComponents {
            fmc: 1,
            boot_loader: 2,
            tee: 3,
            snp: 4,
            microcode: 5,
        };
        assert_eq!(components.encode(Product::Turin), Tcb([1, 2, 3, 4, 0, 0, 0, 5]));
        assert_eq!(
            components.encode(Product::Turin).components(Product::Turin),
            components
        );
        assert_eq!(components.encode(Product::Milan), Tcb([2, 3, 0, 0, 0, 0, 4, 5]));
    }

    #[test]
    fn meeting_a_minimum_is_per_component() {
        let tcb = TcbComponents {
            boot_loader: 3,
            snp: 8,
            ..Default::default()
        };
        assert!(tcb.meets(&TcbComponents {
            boot_loader: 3,
            ..Default::default()
        }));
        assert!(!tcb.meets(&TcbComponents {
            boot_loader: 2,
            tee: 1,
            ..Default::default()
        }));
    }
}
