//! A buffer that the host fills with the input: it is a quote of the report that was asked for, or an error.
#![no_main]

use cloak_fuzz_seeds::plant;
use cloak_tdx::quote::{self, BUFFER, HEADER, Progress, REPORT};

/// A report that a real quote of the input would have to be of.
fn report(quote: &[u8], body: usize) -> Option<[u8; REPORT]> {
    let mut report = [0; REPORT];
    report[128..192].copy_from_slice(quote.get(body + 520..body + 584)?);
    report[512..912].copy_from_slice(quote.get(body + 120..body + 520)?);
    Some(report)
}

libfuzzer_sys::fuzz_target!(init: plant(|| [4u16, 5].map(|version| {
    let mut seed = vec![0; HEADER + 48 + 6 + 584];
    seed[16..20].copy_from_slice(&1024u32.to_le_bytes());
    seed[20..24].copy_from_slice(&638u32.to_le_bytes());
    seed[24..26].copy_from_slice(&version.to_le_bytes());
    seed[28] = 0x81;
    seed[72] = 3;
    seed
})), |input: &[u8]| {
    let Some((header, rest)) = input.split_first_chunk::<HEADER>() else { return };
    let mut words = [0; HEADER / 8];
    for (word, part) in words.iter_mut().zip(header.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*part);
    }
    if let Ok(Progress::Done(len)) = quote::progress(words) {
        assert!(len > 0 && len <= BUFFER - HEADER);
    }
    assert!(quote::check(rest, &[0xa5; REPORT]).is_err(), "nobody has asked for it");
    for body in [48, 54] {
        if let Some(report) = report(rest, body)
            && quote::check(rest, &report).is_ok()
        {
            assert_eq!(rest[4], 0x81);
        }
    }
});
