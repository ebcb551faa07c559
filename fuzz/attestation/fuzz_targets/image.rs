//! Image descriptions; small ones are measured too.
#![no_main]

use cloak_attestation::measure::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(image) = Image::from_toml(text, |_| Ok(vec![1; 5000])) {
        if image.regions.iter().map(|region| region.pages).sum::<u64>() < 64 {
            let _ = (image.snp_measurement(2), image.mrtd());
        }
    }
});
