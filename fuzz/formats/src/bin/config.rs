//! The configuration that the monitor leaves for the libos: records or an error, and always an end.
#![no_main]

use cloak_abi::config::{Records, number};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut records = 0;
    for record in Records::new(bytes) {
        records += 1;
        let Ok((tag, value)) = record else { continue };
        let _ = number(tag, value, value.len() / 8);
    }
    // A record takes eight bytes at least; an error ends the sequence.
    assert!(records <= bytes.len() / 8 + 1);
});
