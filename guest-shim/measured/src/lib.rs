//! What a guest whose launch is measured does at its start, whichever hardware measured it.
//!
//! | module | concept |
//! |---|---|
//! | [`start`] | the host's parameters, checked, and how memory is divided by them |
//! | [`vector_state`] | which of it is turned on |
//! | [`accepted`] | which memory the guest has made its own, each address once |
//! | [`protections!`] | what stands between hypervisor and guest, by name, for tests that take it away |
//!
//! How it is made the guest's own is the hardware's: `cloak_snp`, `cloak_tdx`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod accepted;
mod protections;
pub mod start;
pub mod vector_state;
