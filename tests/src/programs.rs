//! The purpose-made programs of `tests/programs`, built once per test binary.

use crate::launcher::workspace_root;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// glibc, loaded by the program's ELF interpreter.
    Dynamic,
    /// glibc, at a fixed address.
    Static,
    /// glibc, relocating itself.
    StaticPie,
    /// musl, static.
    Musl,
}

impl Linkage {
    fn folder(self) -> &'static str {
        match self {
            Linkage::Dynamic => "dynamic",
            Linkage::Static => "static",
            Linkage::StaticPie => "static-pie",
            Linkage::Musl => "musl",
        }
    }
}

/// The path of a program; `None` when this machine has not what builds that variant.
///
/// # Panics
/// When the build fails.
pub fn built(name: &str, linkage: Linkage) -> Option<PathBuf> {
    Some(out().join(linkage.folder()).join(name)).filter(|path| path.is_file())
}

/// The path of a launcher of `tests/stand-ins`, for the harness's own tests.
///
/// # Panics
/// When the build fails.
pub fn built_stand_in(name: &str) -> PathBuf {
    out().join("stand-ins").join(name)
}

fn out() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    let out = workspace_root().join("target/test-programs");
    std::fs::create_dir_all(&out).expect("target is writable");
    // Several test binaries may want to build at the same time.
    let lock = std::fs::File::create(out.join(".lock")).expect("target is writable");
    lock.lock().expect("files can be locked");
    let source = workspace_root().join("tests/programs");
    let made = Command::new("make")
        .arg("--silent")
        .arg("-C")
        .arg(&source)
        .arg(format!("OUT={}", out.display()))
        .env_remove("MAKEFLAGS")
        .output()
        .unwrap_or_else(|error| panic!("cannot run make in {}: {error}", source.display()));
    assert!(
        made.status.success(),
        "the test programs do not build:\n{}{}",
        String::from_utf8_lossy(&made.stdout),
        String::from_utf8_lossy(&made.stderr)
    );
    out
}
