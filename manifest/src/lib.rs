//! The manifest: what to run, in what, and what it may see. Its digest is part of a context's identity, and from
//! the identity follow the context's keys.
//!
//! ```text
//!   cloak.toml ──parse──▶ Manifest ──canonical──▶ bytes ──SHA-256, SHA-384──▶ HOST_DATA, MRCONFIGID
//!                                                            │
//!                                       shim's SHA-384 ──────┴──▶ Identity ──HKDF(root key)──▶ keys
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`model`] | the manifest's fields |
//! | [`text`] | parsing, checking, the canonical form |
//! | [`verity`] | fs-verity digests of files |
//! | [`identity`], [`keys`] | what a context is, and its keys |
//! | [`loads`], [`elf`], [`cache`] | which files a program loads |
//! | `cli` | `cloak manifest` |
#![forbid(unsafe_code)]

pub mod cache;
#[cfg(feature = "cli")]
pub mod cli;
pub mod elf;
pub mod identity;
pub mod keys;
pub mod loads;
pub mod model;
pub mod text;
pub mod verity;

pub use identity::{Digest, Identity, ManifestDigests};
pub use keys::{Purpose, RootKey};
pub use model::Manifest;
pub use text::ManifestError;
