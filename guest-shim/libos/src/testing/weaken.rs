//! Protections of the libos that a test may take away in its process, to show that the test would notice.
//!
//! Only unit tests have this; the libos that runs in a VM is compiled without.

/// Environment variable that names the one protection to take away.
pub const VARIABLE: &str = "CLOAK_HOSTILE_WEAKEN";

/// Something that stands between an answer of the OS side and the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// A length is at most what was asked for.
    Length,
    /// An error number is one.
    ErrorNumber,
    /// A descriptor is not one that is held already.
    Adoption,
    /// An answer answers the request that was made.
    Sequence,
    /// Attributes are such as a Linux gives.
    Attributes,
    /// A position in a directory is one that a seek can give.
    Position,
    /// A block of a measured file is what the manifest's digest stands for.
    Measured,
    /// A block of a measured file is used as it was compared, and not fetched once more.
    Once,
    /// A block of a protected volume has the tag that it was sealed with.
    Sealed,
    /// A protected volume is not older than its anchor says.
    Anchored,
}

impl Protection {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Length,
        Self::ErrorNumber,
        Self::Adoption,
        Self::Sequence,
        Self::Attributes,
        Self::Position,
        Self::Measured,
        Self::Once,
        Self::Sealed,
        Self::Anchored,
    ];
}

/// Whether this protection is taken away in this process.
pub fn without(protection: Protection) -> bool {
    static TAKEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var(VARIABLE).ok());
    TAKEN
        .as_deref()
        .is_some_and(|taken| taken == format!("{protection:?}"))
}
