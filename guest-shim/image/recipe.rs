//! How the shim's programs are built: the one place for their flags, so that `build.rs` and the test of
//! reproducibility (`tests/reproducible.rs`) can't drift apart.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of the two programs of the shim.
pub struct Part {
    /// Package, and name of the program.
    pub package: &'static str,
    folder: &'static str,
    target: &'static str,
    script: &'static str,
    flags: &'static [&'static str],
}

/// Both programs.
pub const PARTS: [Part; 2] = [
    Part {
        package: "cloak-kernel",
        folder: "kernel",
        target: "x86_64-unknown-none",
        script: "kernel.ld",
        // No vector registers at CPL 0: the ciphers' portable forms.
        flags: &[
            "-Crelocation-model=static",
            "-Ccode-model=kernel",
            "--cfg=aes_force_soft",
            "--cfg=polyval_force_soft",
        ],
    },
    Part {
        package: "cloak-libos",
        folder: "libos",
        target: "x86_64-unknown-linux-gnu",
        script: "libos.ld",
        // Position-independent code because the image lies above 2 GiB; linked at a fixed address all the
        // same. Baseline instructions: legacy SSE leaves the upper halves of vector registers alone.
        flags: &[
            "-Crelocation-model=pic",
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-no-pie",
            "-Clink-arg=-static",
            "-Clink-arg=-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096,-z,norelro",
            "-Cdefault-linker-libraries=no",
            "-Cforce-frame-pointers=yes",
        ],
    },
];

/// Builds `part` of the tree at `root` in `target_dir`; gives the program's file.
pub fn build(root: &Path, target_dir: &Path, part: &Part) -> PathBuf {
    let script = root.join("guest-shim").join(part.folder).join(part.script);
    let link = match part.target {
        "x86_64-unknown-none" => format!("-Clink-arg=-T{}", script.display()),
        _ => format!("-Clink-arg=-Wl,-T,{}", script.display()),
    };
    let home = env::var("CARGO_HOME")
        .or_else(|_| env::var("HOME").map(|h| format!("{h}/.cargo")))
        .unwrap_or_default();
    let mut flags: Vec<String> = part.flags.iter().map(|&f| f.to_owned()).collect();
    flags.extend([
        link,
        "-Cno-redzone=yes".to_owned(),
        format!("--remap-path-prefix={}=/cloak", root.display()),
        format!("--remap-path-prefix={home}=/cargo"),
        format!("--remap-path-prefix={}=/build", target_dir.display()),
    ]);
    let status = Command::new(env::var("CARGO").expect("cargo sets it"))
        .current_dir(root)
        .args([
            "build",
            "--package",
            part.package,
            "--features",
            "bare",
            "--profile",
            "shim",
        ])
        .args(["--target", part.target, "--bin", part.package, "--locked"])
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_PROFILE_RELEASE_DEBUG")
        .status()
        .unwrap_or_else(|e| panic!("starting cargo for {}: {e}", part.package));
    assert!(
        status.success(),
        "building {} for {} failed ({status})",
        part.package,
        part.target
    );
    target_dir.join(part.target).join("shim").join(part.package)
}
