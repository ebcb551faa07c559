//! What the engine can't do, and who is to blame.

use std::io;

use crate::cipher::CipherError;
use crate::page::{ContextId, Page, Version};
use crate::sides::StoreError;
use crate::state::Refusal;
use crate::version::Exhausted;

/// How the OS side's copy of a page differs from what was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Tampering {
    /// Other bytes, another page's, another context's or an older version's.
    #[error(
        "its ciphertext is not what was sealed as this version (changed, moved, replayed, or another context's)"
    )]
    Bytes,
    /// More or fewer bytes.
    #[error("the store holds {found} bytes instead of {expected}")]
    Length {
        /// Bytes put there.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
}

/// Why the engine refuses.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The caller's: no such page.
    #[error("{page} is outside of this context's memory, which ends at {end:#x}")]
    Outside {
        /// Which.
        page: Page,
        /// First guest-physical address beyond.
        end: u64,
    },
    /// The caller's: the page's state does not allow it.
    #[error("{page}: {refusal}")]
    Refused {
        /// Which.
        page: Page,
        /// Why.
        refusal: Refusal,
    },
    /// The caller's: a newer mark has been set.
    #[error("what changed is known since the last mark only, and this is an older one")]
    OldMark,
    /// The OS side's: the page is not what it was given to keep. The context must not go on.
    #[error("integrity of memory: {context}, {page}, {version}: {what}")]
    Integrity {
        /// Whose page.
        context: ContextId,
        /// Which.
        page: Page,
        /// The version that was expected.
        version: Version,
        /// What is wrong.
        what: Tampering,
    },
    /// The OS side's: it does not keep or give pages.
    #[error("{step} {page}: {source}")]
    Store {
        /// What was tried.
        step: &'static str,
        /// Which page, or the first of several.
        page: Page,
        /// Why not.
        source: StoreError,
    },
    /// The host kernel's: plaintext memory can't be handled.
    #[error("{step} {page}: {source}")]
    Plaintext {
        /// What was tried.
        step: &'static str,
        /// Which page, or the first of several.
        page: Page,
        /// Why not.
        source: io::Error,
    },
    /// The host kernel's: something that is not about one page.
    #[error("{step}: {source}")]
    Os {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No version is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The cryptographic library's.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// The user's: fewer pages may stay than are needed at once.
    #[error("{asked} pages of plaintext are too few: at least {least} are needed")]
    LimitTooSmall {
        /// Pages asked for.
        asked: u64,
        /// Least possible.
        least: u64,
    },
}

/// Names the step when the system refuses.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, MemoryError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, MemoryError> {
        self.map_err(|source| MemoryError::Os {
            step,
            source: source.into(),
        })
    }
}
