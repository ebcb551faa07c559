//! Any bytes as `/etc/ld.so.cache`.
#![no_main]

use cloak_manifest::cache::LoaderCache;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = LoaderCache::parse(bytes).find("libc.so.6");
});
