//! The HTTP interface: Trustee's protocol, the administrator's verbs, health, metrics and the OpenAPI document.

mod admin;
mod attest;
mod credentials;
mod error;
mod limits;
mod metrics;
mod release;
mod router;
mod run;
mod state;
mod verifiers;

pub use router::OPENAPI;
pub use run::{Running, ServeError, start};
