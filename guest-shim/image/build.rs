//! Builds the kernel and the libos for their bare targets and leaves them where `lib.rs` includes them.
//!
//! The result depends on the sources, the lock file and the pinned toolchain only: paths are remapped, one
//! codegen unit, no debug information, no build id. `tests/reproducible.rs` builds in another folder and compares.

mod recipe;

use std::env;
use std::path::PathBuf;

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here
        .join("../..")
        .canonicalize()
        .expect("the workspace is two levels up");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for folder in [
        "abi",
        "guest-shim/kernel",
        "guest-shim/libos",
        "guest-shim/pagetables",
        "guest-shim/snp",
        "guest-shim/measured",
        "guest-shim/tdx",
        "guest-shim/image/build.rs",
        "guest-shim/image/recipe.rs",
        "volumes/Cargo.toml",
        "volumes/src",
        "Cargo.lock",
        "Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
    }
    for part in &recipe::PARTS {
        let built = recipe::build(&root, &out.join("target"), part);
        std::fs::copy(&built, out.join(part.package))
            .unwrap_or_else(|e| panic!("copying {}: {e}", built.display()));
    }
}
