//! What a verifier answers: a token that says what was proved, or every reason why nothing was.
//!
//! Verification is a list of [`Check`]s, all of which run; none is skipped because an earlier one failed, save those
//! whose input does not exist. The failed ones are the [`Reason`]s of a [`Refused`]. [`VerifiedEvidence`] has no
//! public constructor, so code that takes one cannot run before a verifier said yes.

mod appraisal;
mod code;
mod verified;

pub(crate) use appraisal::Appraisal;
pub use appraisal::{Check, Reason, Refused};
pub use code::ReasonCode;
pub(crate) use verified::Proof;
pub use verified::{Claims, Pins, VerifiedEvidence};
