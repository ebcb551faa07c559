//! Attestation results as signed tokens.
