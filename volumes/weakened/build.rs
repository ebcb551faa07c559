//! Switches on what `volumes/src/weakened.rs` has for tests.

fn main() {
    println!("cargo::rustc-cfg=weakened");
    println!("cargo::rerun-if-changed=build.rs");
}
