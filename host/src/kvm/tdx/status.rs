//! What the TDX module's completion statuses mean (TDX module ABI, "Interface Function Completion Status").
//!
//! Bits 63:32 name the status: 63 an error, 62 one that repeating does not mend, 61 one that the domain does not survive.
//! Bits 31:0 say more, mostly which operand.

use std::fmt;

/// A status other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuleStatus(pub u64);

/// Bits 63:32, name in the module's specification after `TDX_`, meaning, what to try.
const STATUSES: &[(u32, &str, &str, &str)] = &[
    (0x6000_0002, "NON_RECOVERABLE_TD", "the domain is broken", LOG),
    (0x8000_0003, "INTERRUPTED_RESUMABLE", "an interrupt came", AGAIN),
    (0x8000_0004, "INTERRUPTED_RESTARTABLE", "an interrupt came", AGAIN),
    (
        0xc000_0100,
        "OPERAND_INVALID",
        "the module does not take a value",
        VALUE,
    ),
    (
        0xc000_0101,
        "OPERAND_ADDR_RANGE_ERROR",
        "an address is outside TDX memory",
        MEMORY,
    ),
    (
        0x8000_0200,
        "OPERAND_BUSY",
        "another call holds the operand",
        AGAIN,
    ),
    (0x8000_0202, "SYS_BUSY", "the module is busy", AGAIN),
    (
        0x8000_0203,
        "RND_NO_ENTROPY",
        "the processor is out of random numbers",
        AGAIN,
    ),
    (
        0x8000_0204,
        "OPERAND_BUSY_HOST_PRIORITY",
        "another call holds the operand",
        AGAIN,
    ),
    (
        0xc000_0300,
        "PAGE_METADATA_INCORRECT",
        "the page is in use for something else",
        LOG,
    ),
    (0xc000_0303, "PAGE_NOT_FREE", "the page is in use already", LOG),
    (
        0xc000_0505,
        "SYS_NOT_READY",
        "the module is not initialised",
        LOAD,
    ),
    (0xc000_0506, "SYS_SHUTDOWN", "the module has been shut down", LOAD),
    (0xe000_0604, "TD_FATAL", "the domain is broken", LOG),
    (
        0xc000_0606,
        "TDCS_NOT_ALLOCATED",
        "the domain has no control structure",
        LOG,
    ),
    (
        0xc000_0607,
        "LIFECYCLE_STATE_INCORRECT",
        "the domain is in another stage of its life",
        ORDER,
    ),
    (
        0xc000_0608,
        "OP_STATE_INCORRECT",
        "the domain is in another state",
        ORDER,
    ),
    (0xc000_0609, "NO_VCPUS", "the domain has no vCPU", ORDER),
    (
        0xc000_0621,
        "X2APIC_ID_NOT_UNIQUE",
        "two vCPUs have one number",
        LOG,
    ),
    (
        0xc000_0700,
        "VCPU_STATE_INCORRECT",
        "the vCPU is in another state",
        ORDER,
    ),
    (
        0xc000_0705,
        "MAX_VCPUS_EXCEEDED",
        "more vCPUs than the domain was made for",
        VCPUS,
    ),
    (
        0x8000_0800,
        "KEY_GENERATION_FAILED",
        "no key could be made",
        AGAIN,
    ),
    (
        0x8000_0810,
        "TD_KEYS_NOT_CONFIGURED",
        "the domain's key is not in place",
        LOG,
    ),
    (
        0xc000_0811,
        "KEY_STATE_INCORRECT",
        "the domain's key is in another state",
        LOG,
    ),
    (0xc000_0820, "HKID_NOT_FREE", "the key number is in use", KEYS),
    (
        0xc000_0900,
        "INCORRECT_CPUID_VALUE",
        "a CPUID value is not one the module takes",
        VALUE,
    ),
    (
        0xc000_0902,
        "INCONSISTENT_CPUID_FIELD",
        "two CPUID values contradict each other",
        VALUE,
    ),
    (0xc000_0b00, "EPT_WALK_FAILED", "nothing is mapped there", LOG),
    (
        0xc000_0b02,
        "EPT_ENTRY_NOT_FREE",
        "there is a page already",
        OVERLAP,
    ),
    (
        0xc000_0b0d,
        "EPT_ENTRY_STATE_INCORRECT",
        "the page is in another state",
        OVERLAP,
    ),
    // The kernel's own, for a call that did not reach the module.
    (0x8000_ff00, "SEAMCALL", "the module could not be called", LOAD),
];

const AGAIN: &str = "start it again";
const LOG: &str = "see the kernel's log for `tdx`";
const VALUE: &str = "compare ATTRIBUTES, XFAM and CPUID with the machine's; update the TDX module";
const MEMORY: &str = "the kernel has to give all memory to TDX: boot without memory that is added later";
const LOAD: &str = "load the TDX module: enable TDX in the BIOS, and see the kernel's log for `virt/tdx`";
const ORDER: &str = "the kernel may not be one that Cloak knows; see its log for `tdx`";
const VCPUS: &str = "take at most as many vCPUs as the host has logical processors";
const KEYS: &str = "too many domains: end one, or give TDX more key numbers in the BIOS";
const OVERLAP: &str = "two regions of the image overlap";

/// Names of operands (bits 31:0) that a launch can be wrong in.
const OPERANDS: &[(u32, &str)] = &[
    (64, "ATTRIBUTES"),
    (65, "XFAM"),
    (66, "execution controls"),
    (67, "EPTP controls"),
    (68, "number of vCPUs"),
    (69, "CPUID configuration"),
    (70, "TSC frequency"),
];

impl ModuleStatus {
    fn known(self) -> Option<&'static (u32, &'static str, &'static str, &'static str)> {
        let class = (self.0 >> 32) as u32;
        STATUSES.iter().find(|(number, ..)| *number == class)
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn passes(self) -> bool {
        self.0 >> 62 == 0b10 && self.known().is_some_and(|(.., advice)| *advice == AGAIN)
    }

    /// What to try about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        self.known().map_or(LOG, |(.., advice)| advice)
    }
}

impl fmt::Display for ModuleStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TDX module status {:#018x}", self.0)?;
        match self.known() {
            Some((_, name, meaning, _)) => write!(f, ", {name}: {meaning}")?,
            None => write!(f, ", which is not one that Cloak knows")?,
        }
        let operand = OPERANDS.iter().find(|(number, _)| *number == self.0 as u32);
        operand.map_or(Ok(()), |(_, name)| write!(f, " ({name})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_it_is_about_and_what_to_try() {
        let text = ModuleStatus(0xc000_0100_0000_0041).to_string();
        assert!(
            text.contains("OPERAND_INVALID") && text.ends_with("(XFAM)"),
            "{text}"
        );
        assert!(
            ModuleStatus(0xc000_0705_0000_0000)
                .advice()
                .contains("logical processors")
        );
        assert!(
            ModuleStatus(0xc000_0f99_0000_0000)
                .to_string()
                .contains("not one that Cloak knows")
        );
    }

    #[test]
    fn what_passes_is_an_error_that_repeating_mends() {
        for (class, name, ..) in STATUSES {
            let status = ModuleStatus(u64::from(*class) << 32);
            if status.passes() {
                assert!(class >> 30 == 0b10, "{name}");
            }
        }
        assert!(ModuleStatus(0x8000_0200_0000_0001).passes());
        assert!(!ModuleStatus(0xc000_0100_0000_0000).passes());
        assert!(!ModuleStatus(0x8000_ff00_ffff_0000).passes());
    }
}
