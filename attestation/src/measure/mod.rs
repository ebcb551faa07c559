//! Measurement prediction.
