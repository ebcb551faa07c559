//! Whatever parses as evidence is judged without a panic, and accepted by no strict policy.
#![no_main]

use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Request, Verifier};
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(cloak_fuzz_attestation::evidence), |bytes: &[u8]| {
    if let Ok(evidence) = Evidence::read(bytes, Default::default()) {
        let policy = Policy { require_reference: true, ..Policy::default() };
        let verdict = Verifier::new(policy).verify(&evidence, &Request::at(Timestamp(1_750_400_000)));
        let refused = verdict.expect_err("no reference value, no acceptance");
        assert!(!refused.reasons.is_empty());
    }
});
