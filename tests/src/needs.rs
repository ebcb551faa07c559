//! What a test needs of the machine. What is missing makes the test skip: it says so, and the summary counts it.
//!
//! libtest knows no "skipped", so each skip adds a line to the file that `CLOAK_TEST_SKIPS` names; `make test` counts
//! those lines, takes them off the passed ones, and prints them at the end.

use std::env;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

/// Notes that the running test cannot run here, and why.
pub fn skip(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let binary = env::current_exe()
        .ok()
        .and_then(|path| path.file_stem().map(|name| name.to_owned()));
    let area = binary
        .as_deref()
        .and_then(|name| name.to_str())
        .and_then(|name| name.rsplit_once('-'));
    let line = format!("{}::{test}: {reason}\n", area.map_or("tests", |(name, _)| name));
    eprint!("SKIPPED {line}");
    if let Some(path) = env::var_os("CLOAK_TEST_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the summary file is writable");
    }
}

/// Whether `/dev/kvm` can be used; skips when there is none.
///
/// # Panics
/// When there is one that cannot be opened as root: a machine with KVM must not pass by skipping.
pub fn kvm() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) if Path::new("/dev/kvm").exists() && root_user() => {
            panic!("/dev/kvm is there but cannot be opened: {error}")
        }
        Err(error) => {
            skip(&format!("/dev/kvm: {error}"));
            false
        }
    }
}

/// Whether the areas run on plain KVM, and not on the platform of `CLOAK_TEST_PLATFORM`: for what is there only.
pub fn plain() -> bool {
    let other = other_platform();
    if let Some(platform) = &other {
        skip(&format!("not there on {}", platform.display()));
    }
    other.is_none()
}

/// The platform of `CLOAK_TEST_PLATFORM`, if that is not plain KVM.
pub fn other_platform() -> Option<OsString> {
    env::var_os("CLOAK_TEST_PLATFORM").filter(|platform| platform != "plain")
}

/// Whether the test runs as root; skips when it does not.
pub fn root() -> bool {
    if !root_user() {
        skip("only root can set this test up");
    }
    root_user()
}

/// The path of a program that the test runs cloaked (and KVM to do so); skips when either is missing.
pub fn cloaked_program(name: &str) -> Option<PathBuf> {
    if !kvm() {
        return None;
    }
    host_program(name)
}

/// The path of a program that the test runs on the host; skips when it is missing.
pub fn host_program(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        skip(&format!(
            "{name} is not installed (scripts/install-test-packages)"
        ));
    }
    found
}

/// Debian's own folders only: what else lies on `PATH` may be a wrapper that forks.
fn find(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    folders
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

fn root_user() -> bool {
    rustix::process::geteuid().is_root()
}
