//! How a program is started: by itself, or by `cloak run`.

use crate::{Case, needs};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One way of starting a program.
#[derive(Clone, Debug)]
pub enum Launcher {
    /// The program itself.
    Native,
    /// This binary, called as `BINARY run [options] -- PROGRAM ARGS`.
    Cloak(PathBuf),
}

impl Launcher {
    /// The launcher under test: `CLOAK_BIN`, or the release build of this workspace.
    pub fn under_test() -> Self {
        let binary = env::var_os("CLOAK_BIN").map(PathBuf::from).map_or_else(
            || workspace_root().join("target/release/cloak"),
            from_workspace_root,
        );
        assert!(
            binary.is_file(),
            "the launcher {} is not there: run `make build`, or name another one in CLOAK_BIN",
            binary.display()
        );
        Launcher::Cloak(binary)
    }

    /// How many times as long a run may take as it may natively before it counts as hung. On a simulated machine every way out
    /// of the guest is an exception and calls of its kernel, whose instructions may be interpreted.
    pub fn slowness(&self) -> u32 {
        match self {
            Launcher::Cloak(_) if needs::other_platform().is_some() => 4,
            _ => 1,
        }
    }

    /// The command that runs `case` this way, without its standard streams.
    ///
    /// The environment is emptied first, so that both ways give the program exactly what the case says, whether or not
    /// a launcher hands its own environment on.
    pub fn command(&self, case: &Case) -> Command {
        let mut command = match self {
            Launcher::Native => native(case),
            Launcher::Cloak(binary) => cloaked(binary, case),
        };
        if let Some(folder) = case.workdir() {
            command.current_dir(folder);
        }
        command
    }
}

fn native(case: &Case) -> Command {
    let mut command = Command::new(case.program());
    command
        .args(case.arguments())
        .env_clear()
        .envs(case.environment());
    command
}

fn cloaked(binary: &Path, case: &Case) -> Command {
    let mut command = Command::new(binary);
    command.env_clear().env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    command
        .arg("run")
        .arg("--cpus")
        .arg(case.processors().to_string());
    // Every area can be run on another kind of machine: CLOAK_TEST_PLATFORM=sim-snp.
    if let Some(platform) = env::var_os("CLOAK_TEST_PLATFORM") {
        command.arg("--platform").arg(platform);
    }
    if let Some(size) = case.memory_size() {
        command.arg("--memory").arg(size);
    }
    for (key, value) in case.environment() {
        command.arg("--env").arg(format!("{key}={value}"));
    }
    if let Some(folder) = case.workdir() {
        command.arg("--workdir").arg(folder);
    }
    for folder in case.volumes() {
        // The same path on both sides, so that a native run and a cloaked run name files alike.
        command.arg("--volume").arg(format!("{0}:{0}", folder.display()));
    }
    command
        .args(case.options())
        .arg("--")
        .arg(case.program())
        .args(case.arguments());
    command
}

/// The folder of the workspace's `Cargo.toml`.
pub fn workspace_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the tests crate lies in the workspace")
        .to_path_buf()
}

/// Test binaries run in their own package's folder; a path on a user's command line is relative to the workspace.
fn from_workspace_root(path: PathBuf) -> PathBuf {
    if path.is_absolute() {
        path
    } else {
        workspace_root().join(path)
    }
}
