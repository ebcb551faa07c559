//! Evidence, measurement prediction, verification, policy and tokens.
//!
//! A verifier takes [`Evidence`] that a machine gave, a [`Policy`] that says
//! what is acceptable and an instant, and answers with [`VerifiedEvidence`] or with
//! every reason why not. It asks no server: what it needs to know travels with the evidence.
//!
//! ```text
//!  bytes ── evidence ──▶ Evidence ─┐
//!  TOML  ── policy   ──▶ Policy  ──┼─▶ Verifier::verify ──▶ VerifiedEvidence ──▶ token, key release
//!  clock, expected REPORT_DATA   ──┘          └──────────▶ Refused { reasons }
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`evidence`] | the envelope and the bare forms that other tools write |
//! | [`snp`], [`tdx`], [`software`] | one attester each: parsing, chain, checks |
//! | [`policy`] | what a relying party accepts |
//! | [`verifier`] | the one entry that puts them together |
//! | [`verdict`] | reasons, checks, and the token that only a verifier makes |
//! | [`measure`] | what a machine's measurement will be, before it runs |
#![forbid(unsafe_code)]

pub mod bytes;
#[cfg(feature = "cli")]
pub mod cli;
pub mod evidence;
pub mod measure;
pub mod policy;
#[cfg(feature = "ratls")]
pub mod ratls;
#[cfg(feature = "sim")]
pub mod sim;
pub mod snp;
pub mod software;
pub mod tdx;
pub mod time;
pub mod token;
pub mod verdict;
pub mod verifier;
pub mod x509;

pub use evidence::{Evidence, EvidenceKind};
pub use policy::Policy;
pub use verdict::{Reason, ReasonCode, Refused, VerifiedEvidence};
pub use verifier::{Request, Verifier};
