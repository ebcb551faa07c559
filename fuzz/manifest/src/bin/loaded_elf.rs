//! Any bytes as a program or library.
#![no_main]

use cloak_fuzz_seeds::{machine, plant};
use cloak_manifest::elf::Requests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(|| machine("/bin/true")), |bytes: &[u8]| {
    let _ = Requests::parse(bytes);
});
