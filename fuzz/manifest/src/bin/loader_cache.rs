//! Any bytes as `/etc/ld.so.cache`.
#![no_main]

use cloak_fuzz_seeds::{machine, plant};
use cloak_manifest::cache::LoaderCache;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(|| machine("/etc/ld.so.cache")), |bytes: &[u8]| {
    let _ = LoaderCache::parse(bytes).find("libc.so.6");
});
