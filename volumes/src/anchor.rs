//! The rollback anchor: what a trusted party saw last of a volume. Without one, a whole container can be replaced
//! by an older copy of itself, and nothing inside the container can tell.
//!
//! The anchor is advanced after a root is durable and before the sync that asked for it returns. So a crash leaves
//! it at the root or one before; roots are chained by their digests, so one before is exactly one before.

use alloc::boxed::Box;

use crate::error::VolumeError;
use crate::keys::VolumeId;

/// A root of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which volume.
    pub volume: VolumeId,
    /// Its commit counter.
    pub counter: u64,
    /// SHA-256 of the superblock.
    pub root: [u8; 32],
}

/// Why an anchor can't be asked or advanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// It holds nothing of this volume. That is not taken for a first use: deleting it would be a rollback.
    #[error("it has never seen this volume (is the anchor lost? see docs/volumes.md)")]
    Unknown,
    /// It can't be read or written.
    #[error("it can't be read or written (error {0})")]
    Unavailable(i32),
    /// What it holds is no mark.
    #[error("what it holds is damaged")]
    Damaged,
}

/// A trusted party's memory of a volume.
pub trait Anchor {
    /// What it saw last; `None` if this anchor remembers nothing on purpose ([`NoAnchor`]).
    ///
    /// # Errors
    /// [`AnchorError`].
    fn last(&mut self) -> Result<Option<Mark>, AnchorError>;
    /// Remembers a mark, durably, before it returns.
    ///
    /// # Errors
    /// [`AnchorError`].
    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError>;
}

/// No anchor: a rollback of the whole volume goes unnoticed.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAnchor;

impl Anchor for NoAnchor {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        Ok(None)
    }
    fn advance(&mut self, _: &Mark) -> Result<(), AnchorError> {
        Ok(())
    }
}

impl<A: Anchor + ?Sized> Anchor for Box<A> {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        (**self).last()
    }
    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        (**self).advance(mark)
    }
}

/// Judges a root that was found against what an anchor saw.
///
/// # Errors
/// [`VolumeError::RolledBack`], [`VolumeError::AnchorBehind`], [`VolumeError::Foreign`].
pub fn judge(seen: &Mark, found: &Mark, before_found: &[u8; 32]) -> Result<(), VolumeError> {
    if seen.volume != found.volume {
        return Err(VolumeError::Foreign {
            expected: seen.volume,
            found: found.volume,
        });
    }
    let rolled_back = |forked| VolumeError::RolledBack {
        found: found.counter,
        anchor: seen.counter,
        forked,
    };
    match found.counter.checked_sub(seen.counter) {
        None => Err(rolled_back(false)),
        Some(0) if found.root == seen.root => Ok(()),
        Some(1) if *before_found == seen.root => Ok(()),
        Some(0 | 1) => Err(rolled_back(true)),
        Some(_) => Err(VolumeError::AnchorBehind {
            found: found.counter,
            anchor: seen.counter,
        }),
    }
}
