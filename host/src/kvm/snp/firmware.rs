//! What the security processor's error codes mean (SNP firmware ABI, status codes; the kernel's `psp-sev.h`).

use std::fmt;

/// A status other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirmwareError(pub u32);

/// A parameter is not what it should be; for a page of CPUID values: the firmware has a better one.
pub const INVALID_PARAM: u32 = 0x16;

/// Code, name in `psp-sev.h` after `SEV_RET_`, meaning.
pub(super) const CODES: &[(u32, &str, &str)] = &[
    (
        0x01,
        "INVALID_PLATFORM_STATE",
        "the platform is in a state that forbids it",
    ),
    (
        0x02,
        "INVALID_GUEST_STATE",
        "the guest is in a state that forbids it",
    ),
    (0x03, "INAVLID_CONFIG", "the platform's configuration is invalid"),
    (0x04, "INVALID_LEN", "a buffer is too small"),
    (0x05, "ALREADY_OWNED", "the platform has an owner already"),
    (0x06, "INVALID_CERTIFICATE", "a certificate is invalid"),
    (
        0x07,
        "POLICY_FAILURE",
        "the guest's policy forbids it on this machine",
    ),
    (0x08, "INACTIVE", "the guest is inactive"),
    (0x09, "INVALID_ADDRESS", "an address is invalid"),
    (0x0a, "BAD_SIGNATURE", "a signature is invalid"),
    (0x0b, "BAD_MEASUREMENT", "the measurement is not the expected one"),
    (0x0c, "ASID_OWNED", "the address space is another guest's"),
    (0x0d, "INVALID_ASID", "the address space number is invalid"),
    (0x0e, "WBINVD_REQUIRED", "caches must be written back first"),
    (0x0f, "DFFLUSH_REQUIRED", "the data fabric must be flushed first"),
    (0x10, "INVALID_GUEST", "there is no such guest"),
    (0x11, "INVALID_COMMAND", "the firmware does not know the command"),
    (0x12, "ACTIVE", "the guest is active"),
    (
        0x13,
        "HWSEV_RET_PLATFORM",
        "a hardware condition; it is safe to go on",
    ),
    (
        0x14,
        "HWSEV_RET_UNSAFE",
        "a hardware condition; it is not safe to go on",
    ),
    (0x15, "UNSUPPORTED", "the feature is not supported"),
    (0x16, "INVALID_PARAM", "a parameter is invalid"),
    (0x17, "RESOURCE_LIMIT", "the firmware has run out of a resource"),
    (
        0x18,
        "SECURE_DATA_INVALID",
        "stored data failed its integrity check",
    ),
    (0x19, "INVALID_PAGE_SIZE", "a page has the wrong size in the RMP"),
    (
        0x1a,
        "INVALID_PAGE_STATE",
        "a page has the wrong state in the RMP",
    ),
    (0x1b, "INVALID_MDATA_ENTRY", "a metadata entry is invalid"),
    (0x1c, "INVALID_PAGE_OWNER", "a page belongs to someone else"),
    (0x1d, "AEAD_OFLOW", "a sequence number has run out"),
    (0x1f, "EXIT_RING_BUFFER", "ring buffer mode was left"),
    (0x20, "RMP_INIT_REQUIRED", "the RMP is not initialised"),
    (
        0x21,
        "BAD_SVN",
        "the security version is older than what is committed",
    ),
    (0x22, "BAD_VERSION", "the version is older than what is committed"),
    (0x23, "SHUTDOWN_REQUIRED", "the platform must be shut down first"),
    (0x24, "UPDATE_FAILED", "the firmware update failed"),
    (0x25, "RESTORE_REQUIRED", "the firmware must be restored first"),
    (
        0x26,
        "RMP_INITIALIZATION_FAILED",
        "the RMP could not be initialised",
    ),
    (0x27, "INVALID_KEY", "a key is invalid"),
    (
        0x28,
        "SHUTDOWN_INCOMPLETE",
        "the platform is still being shut down",
    ),
];

impl FirmwareError {
    /// What to try about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self.0 {
            0x01 | 0x20 | 0x26 => {
                "enable SEV-SNP and the RMP's coverage of all memory in the BIOS, and boot the kernel with them; see `cloak doctor`"
            }
            0x07 => {
                "compare the policy with the machine: SMT, firmware version, single socket, ciphertext hiding"
            }
            0x0a => "make the ID block for this measurement and sign it again",
            0x0b => {
                "the ID block names another measurement: compare it with `cloak measure --platform snp --cpus N`"
            }
            0x0d | 0x0c | 0x17 => {
                "too many SNP guests: end one, or give SNP a larger share of the ASIDs in the BIOS"
            }
            0x0e | 0x0f => "start it again; the kernel flushes before the next use",
            0x11 | 0x15 => "the firmware is too old for SNP or for what the policy asks: update it",
            0x21..=0x25 => "finish the firmware update: see the kernel's log for `ccp`",
            _ => "see the kernel's log for `kvm_amd` and `ccp`",
        }
    }
}

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CODES.iter().find(|(code, ..)| *code == self.0) {
            Some((code, name, meaning)) => write!(f, "firmware status {code:#x}, {name}: {meaning}"),
            None => write!(f, "firmware status {:#x}, which Cloak does not know", self.0),
        }
    }
}
