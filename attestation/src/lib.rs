//! Evidence, measurement prediction, verification, policy and tokens.
#![forbid(unsafe_code)]
