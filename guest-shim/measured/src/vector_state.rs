//! Which vector state the guest turns on: what programs get, in a combination that XCR0 takes.

/// x87, SSE, AVX, three parts of AVX-512, PKRU: what programs get. Tiles need a permission of their own.
pub const OFFERED: u64 = 0x2e7;
const X87_SSE: u64 = 3;
const AVX: u64 = 4;
const AVX512: u64 = 0xe0;

/// Of what a processor `has` (CPUID leaf 0xd: EDX, EAX) what is turned on. `None`: no processor is without the rest.
#[must_use]
pub const fn choose(has: u64) -> Option<u64> {
    if has & X87_SSE != X87_SSE {
        return None;
    }
    let wanted = has & OFFERED;
    // The three parts come together, on top of AVX.
    if wanted & AVX512 != AVX512 || wanted & AVX == 0 {
        Some(wanted & !AVX512)
    } else {
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_part_is_none() {
        for (has, wanted) in [
            (0x2e7, Some(0x2e7)),
            (0x6_02e7, Some(0x2e7)),
            (7, Some(7)),
            (0x67, Some(7)),
            (0xe3, Some(3)),
            (0, None),
            (1, None),
            (6, None),
        ] {
            assert_eq!(choose(has), wanted, "{has:#x}");
        }
    }
}
