//! Image descriptions; small ones are measured too.
#![no_main]

use cloak_attestation::measure::Image;
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

const IMAGE: &str = r#"
version = 1
name = "shim"
release = "0.1.0"

[[region]]
gpa = 0x100000
kind = "normal"
file = "kernel.bin"

[[region]]
gpa = 0x200000
kind = "zero"
pages = 16

[snp.boot]
rip = 0x100000
"#;

fuzz_target!(init: plant(|| [IMAGE]), |text: &str| {
    if let Ok(image) = Image::from_toml(text, |_| Ok(vec![1; 5000])) {
        if image.regions.iter().map(|region| region.pages).sum::<u64>() < 64 {
            let _ = (image.snp_measurement(2), image.mrtd());
        }
    }
});
