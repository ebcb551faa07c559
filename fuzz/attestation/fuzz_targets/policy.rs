//! Policies; one that parses is written again and means the same.
#![no_main]

use cloak_attestation::Policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(policy) = Policy::from_toml(text) {
        if let Ok(written) = policy.to_toml() {
            assert_eq!(Policy::from_toml(&written).expect("what was written").digest(), policy.digest());
        }
    }
});
