//! Collateral, up to its dates.
#![no_main]

use cloak_attestation::evidence::{Attestation, TdxEvidence};
use cloak_attestation::tdx::parse_collateral;
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Policy, Request, Verifier};
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(cloak_fuzz_attestation::collateral), |bytes: &[u8]| {
    if let Ok(collateral) = parse_collateral(bytes) {
        let collateral = Some(Box::new(collateral));
        let evidence = Attestation::Tdx(TdxEvidence { collateral, ..Default::default() }).into();
        let verdict = Verifier::new(Policy::default()).verify(&evidence, &Request::at(Timestamp(1_750_400_000)));
        assert!(verdict.is_err());
    }
});
