//! What a domain is given of what the machine offers: ATTRIBUTES, XFAM, CPUID.
//!
//! ATTRIBUTES and XFAM are in every report, so they are what the shim needs and no more: a machine that offers more makes no
//! other domain. CPUID is in none; the shim trusts it no further than the module virtualises it.

use super::abi::CpuidEntry;
use super::calls::Offered;
use super::error::{Step, TdxError};

/// ATTRIBUTES: the host may look into the domain. Never for a domain that keeps secrets.
pub const DEBUG: u64 = 1;
/// ATTRIBUTES: a page that the domain has not accepted stops it, rather than raise an exception in it. Without it the host
/// could make a page of the shim vanish and choose the moment at which its handler runs.
pub const SEPT_VE_DISABLE: u64 = 1 << 28;
/// XFAM that every domain has: x87 and SSE.
const BASE: u64 = 0b11;
/// XFAM that one has where the machine does: AVX, AVX-512 (three parts), PKRU. As on plain KVM no AMX.
const WANTED: u64 = BASE | AVX | AVX_512 | 1 << 9;
const AVX: u64 = 1 << 2;
const AVX_512: u64 = 0xe0;
/// Bit of CPUID leaf 1, ECX.
const X2APIC: u32 = 1 << 21;
/// CPUID leaf whose EAX has the width of guest-physical addresses in bits 23:16.
const ADDRESSES: u32 = 0x8000_0008;
/// Width of guest-physical addresses: with 48 bits the bit that makes one shared is 47.
const WIDTH: u32 = 48;
/// Guest-physical address bit that makes a page shared.
pub const SHARED_BIT: u64 = 1 << (WIDTH - 1);

/// What `KVM_TDX_INIT_VM` is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// The leaves that may be chosen, as chosen.
    pub cpuid: Vec<CpuidEntry>,
    /// Calls beyond the base that the monitor answers: R11 of `GetTdVmCallInfo`.
    pub calls: u64,
}

impl Config {
    /// Chooses from what is offered; `supported` is what KVM supports of CPUID.
    ///
    /// # Errors
    /// [`TdxError::Lacking`]: ATTRIBUTES that were asked for, or state that every domain has; [`TdxError::Request`]: no
    /// leaf for the width of addresses.
    pub fn choose(offered: &Offered, supported: &[CpuidEntry], attributes: u64) -> Result<Self, TdxError> {
        lacking("ATTRIBUTES", attributes & !offered.fixed.supported_attrs)?;
        lacking("XFAM", BASE & !offered.fixed.supported_xfam)?;
        let cpuid: Vec<_> = offered.cpuid.iter().map(|leaf| chosen(leaf, supported)).collect();
        // KVM takes the width from this leaf.
        if !cpuid.iter().any(|leaf| leaf.function == ADDRESSES) {
            return Err(TdxError::Request {
                step: Step::Capabilities,
                problem: "the width of guest-physical addresses can't be chosen (CPUID 0x80000008)",
            });
        }
        Ok(Self {
            attributes,
            xfam: usable(WANTED & offered.fixed.supported_xfam),
            cpuid,
            calls: crate::tdvmcall::OFFERED_CALLS & offered.fixed.user_tdvmcallinfo_1_r11,
        })
    }
}

fn lacking(what: &'static str, bits: u64) -> Result<(), TdxError> {
    let step = Step::Capabilities;
    if bits == 0 {
        Ok(())
    } else {
        Err(TdxError::Lacking { step, what, bits })
    }
}

/// Drops what the processor would refuse: half of AVX-512, or AVX-512 without AVX.
fn usable(xfam: u64) -> u64 {
    if xfam & (AVX | AVX_512) == AVX | AVX_512 {
        xfam
    } else {
        xfam & !AVX_512
    }
}

fn same(a: &CpuidEntry, b: &CpuidEntry) -> bool {
    a.function == b.function
        && (a.index == b.index || a.flags & kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0)
}

/// Of a leaf whose set bits may be chosen: those that KVM supports.
fn chosen(may: &CpuidEntry, supported: &[CpuidEntry]) -> CpuidEntry {
    let has = supported
        .iter()
        .find(|leaf| same(may, leaf))
        .copied()
        .unwrap_or_default();
    let mut leaf = CpuidEntry {
        eax: may.eax & has.eax,
        ebx: may.ebx & has.ebx,
        ecx: may.ecx & has.ecx,
        edx: may.edx & has.edx,
        ..*may
    };
    if leaf.function == ADDRESSES {
        leaf.eax = leaf.eax & !0x00ff_0000 | WIDTH << 16;
    }
    leaf
}

/// What KVM is told of a vCPU's CPUID, of which it answers the leaves that the module doesn't. TDX needs x2APIC.
#[must_use]
pub fn for_vcpu(supported: &[CpuidEntry], index: u32) -> Vec<CpuidEntry> {
    let mut own = supported.to_vec();
    for leaf in &mut own {
        crate::kvm::set_apic_id(leaf, index);
        match leaf.function {
            1 => leaf.ecx |= X2APIC,
            ADDRESSES => leaf.eax = leaf.eax & !0x00ff_0000 | WIDTH << 16,
            _ => {}
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
        let [eax, ebx, ecx, edx] = registers;
        CpuidEntry {
            function,
            index,
            flags: u32::from(function == 7 || function == 0xd),
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn offered() -> Offered {
        let mut offered = Offered {
            cpuid: vec![
                leaf(1, 0, [0, 0, 0xffff_ffff, 0]),
                leaf(7, 1, [0xf, 0, 0, 0]),
                leaf(ADDRESSES, 0, [0x00ff_0000, 0, 0, 0]),
            ],
            ..Default::default()
        };
        offered.fixed.supported_attrs = SEPT_VE_DISABLE | DEBUG;
        offered.fixed.supported_xfam = 0x602e7;
        offered
    }

    #[test]
    fn a_domain_has_what_both_offer() {
        let supported = [
            leaf(7, 0, [1; 4]),
            leaf(7, 1, [0x3, 9, 9, 9]),
            leaf(1, 0, [5, 5, 0x0120_0000, 5]),
        ];
        let config = Config::choose(&offered(), &supported, SEPT_VE_DISABLE).expect("offered");
        assert_eq!((config.attributes, config.xfam), (1 << 28, 0x2e7), "no AMX");
        let registers: Vec<_> = config
            .cpuid
            .iter()
            .map(|l| [l.eax, l.ebx, l.ecx, l.edx])
            .collect();
        assert_eq!(
            registers,
            [[0, 0, 0x0120_0000, 0], [3, 0, 0, 0], [0x0030_0000, 0, 0, 0]]
        );
        assert_eq!(config.calls, 0, "the kernel lets the monitor offer nothing");
    }

    #[test]
    fn half_of_avx512_is_none() {
        for (machine, domain) in [(0x3, 0x3), (0x7, 0x7), (0x67, 0x7), (0xe3, 0x3), (0x2e7, 0x2e7)] {
            let mut offered = offered();
            offered.fixed.supported_xfam = machine;
            assert_eq!(
                Config::choose(&offered, &[], 0).expect("offered").xfam,
                domain,
                "{machine:#x}"
            );
        }
    }

    #[test]
    fn what_a_domain_has_to_have_is_asked_for_by_name() {
        let mut without = offered();
        without.fixed.supported_attrs = DEBUG;
        let text = Config::choose(&without, &[], SEPT_VE_DISABLE)
            .expect_err("lacking")
            .to_string();
        assert!(text.contains("ATTRIBUTES (0x10000000)"), "{text}");
        let mut without = offered();
        without.fixed.supported_xfam = 1;
        assert!(Config::choose(&without, &[], 0).is_err());
        let mut without = offered();
        without.cpuid.truncate(2);
        assert!(Config::choose(&without, &[], 0).is_err());
    }

    #[test]
    fn a_vcpu_has_x2apic_and_its_own_number() {
        let own = for_vcpu(
            &[
                leaf(1, 0, [0; 4]),
                leaf(0xb, 1, [0; 4]),
                leaf(ADDRESSES, 0, [0x0027_3034, 0, 0, 0]),
            ],
            7,
        );
        assert_eq!((own[0].ebx >> 24, own[0].ecx, own[1].edx), (7, X2APIC, 7));
        assert_eq!(own[2].eax, 0x0030_3034);
    }

    proptest! {
        /// Nothing is set that either of them does not offer, but for the width of addresses.
        #[test]
        fn nothing_is_chosen_that_is_not_offered(
            attrs: u64, xfam: u64, may in prop::array::uniform4(any::<u32>()), has in prop::array::uniform4(any::<u32>()), ask: u64,
        ) {
            let mut offered = offered();
            offered.fixed.supported_attrs = attrs;
            offered.fixed.supported_xfam = xfam;
            offered.cpuid[1] = leaf(7, 1, may);
            if let Ok(config) = Config::choose(&offered, &[leaf(7, 1, has)], ask) {
                prop_assert_eq!(config.attributes, ask);
                prop_assert!(config.attributes & !attrs == 0 && config.xfam & !xfam == 0 && config.xfam & 3 == 3);
                prop_assert!(config.xfam & 0xe0 == 0 || config.xfam & 0xe4 == 0xe4);
                let found = config.cpuid[1];
                for (found, (may, has)) in [found.eax, found.ebx, found.ecx, found.edx].iter().zip(may.iter().zip(has)) {
                    prop_assert_eq!(*found, may & has);
                }
            }
        }
    }
}
