//! Quotes.
#![no_main]

use cloak_attestation::tdx::Quote;
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(cloak_fuzz_attestation::quotes), |bytes: &[u8]| {
    let _ = Quote::parse(bytes);
});
