//! Any bytes as a manifest: no panic, and one canonical form that is read back as the same.
#![no_main]

use cloak_fuzz_seeds::{own_folder, plant};
use cloak_manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(|| own_folder("manifest/tests")), |bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let canonical = manifest.canonical().expect("a checked manifest can be written");
        let again = Manifest::parse(canonical.as_bytes()).expect("the canonical form is a manifest");
        assert_eq!(again, manifest);
        assert_eq!(again.canonical().expect("written once, written twice"), canonical);
    }
});
