//! Evidence of every form; an envelope that parses is written again and means the same.
#![no_main]

use cloak_attestation::Evidence;
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(cloak_fuzz_attestation::evidence), |bytes: &[u8]| {
    if let Ok(evidence) = Evidence::read(bytes, Default::default()) {
        assert_eq!(Evidence::from_cbor(&evidence.to_cbor()).as_ref(), Ok(&evidence));
    }
});
