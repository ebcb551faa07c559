#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cloak_host::os::fuzz::address(bytes));
