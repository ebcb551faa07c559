//! Quotes.
#![no_main]

use cloak_attestation::tdx::Quote;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Quote::parse(bytes);
});
