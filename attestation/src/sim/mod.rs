//! Simulated signers.
