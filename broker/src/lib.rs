//! The key broker: it keeps secrets sealed and releases one only to a guest that proves what it is.
//!
//! The protocol is Trustee's (KBS attestation protocol 0.4), so that clients of Confidential Containers work against
//! it. Evidence is judged in this process by [`cloak_attestation`]; no other service is asked.
//!
//! ```text
//!  guest                         broker
//!    POST /auth       ────────▶  nonce, session
//!    POST /attest     ────────▶  evidence judged by the attestation policy ──▶ audit log ──▶ token
//!    GET  /resource   ────────▶  the same evidence judged by the secret's own policy ──▶ audit log ──▶ JWE
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`protocol`] | bodies on the wire, and what REPORT_DATA is the digest of |
//! | [`jwe`] | secrets encrypted to a guest's key |
//! | [`session`] | challenges and attested sessions, in memory, bounded |
//! | [`seal`], [`store`] | secrets at rest, in SQLite or PostgreSQL |
//! | [`audit`] | the hash-chained log of decisions, written before a decision is answered |
//! | [`server`] | the HTTP interface |
//! | [`client`], [`attester`] | the guest's side |
//! | [`cli`] | `cloak kbs` |
#![forbid(unsafe_code)]

pub mod attester;
pub mod audit;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
pub mod config;
pub mod jwe;
pub mod path;
pub mod protocol;
pub mod random;
#[cfg(feature = "server")]
pub mod seal;
#[cfg(feature = "server")]
pub mod server;
pub mod session;
#[cfg(feature = "server")]
pub mod store;
mod tls;

pub use client::{Client, ClientError};
pub use config::Config;
pub use path::ResourcePath;
