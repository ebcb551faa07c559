//! Tests that can't run on this machine say so where `make test` counts them.

use std::io::Write;

/// Notes that the running test skips, and why.
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("cloak_host::{test}: {reason}\n");
    eprint!("SKIPPED {line}");
    if let Some(path) = std::env::var_os("CLOAK_TEST_SKIPS") {
        let file = std::fs::File::options().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the summary file is writable");
    }
}
