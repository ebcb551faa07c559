//! JWT results.
#![no_main]

use cloak_attestation::time::Timestamp;
use cloak_attestation::token::Ear;
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::SigningKey;

fuzz_target!(|token: &str| {
    let key = SigningKey::from_slice(&[5; 32]).expect("a scalar");
    assert!(Ear::from_jwt(token, key.verifying_key(), Timestamp(1)).is_err());
});
