//! What is wrong with a command line, a program or a machine gives an error that says so, and never a hang.
//!
//! Exit codes as shells have them: 127 for a program that is not there, 126 for one that cannot be run, and 125 for
//! what Cloak itself cannot do. Each message on standard error names what is wrong; standard output stays empty.

use cloak_tests::process::Running;
use cloak_tests::programs::{Linkage, built};
use cloak_tests::scratch::noise;
use cloak_tests::{Case, Launcher, Outcome, Scratch, needs};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

fn cloaked(case: &Case) -> Outcome {
    case.run(&Launcher::under_test())
}

/// The run fails with `code`, says one of `words`, and prints nothing on standard output.
fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    let said = outcome.error_text();
    assert_eq!(outcome.status.shell_code(), code, "{said}");
    assert!(
        outcome.stdout.is_empty(),
        "standard output is not Cloak's: {}",
        outcome.text()
    );
    assert!(
        words.iter().any(|word| said.to_lowercase().contains(word)),
        "expected one of {words:?} in: {said}"
    );
    assert!(!said.contains("panicked at"), "{said}");
}

fn hello() -> PathBuf {
    built("hello", Linkage::Static).expect("gcc builds static programs")
}

fn executable(scratch: &Scratch, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = scratch.write(name, bytes);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the owner may");
    path
}

#[test]
fn a_program_that_is_not_there() {
    if needs::kvm() {
        refused(
            &cloaked(&Case::new("/nowhere/at/all")),
            127,
            &["no such file", "not found"],
        );
        refused(
            &cloaked(&Case::new("no-such-program-on-any-path")),
            127,
            &["no such file", "not found"],
        );
    }
}

#[test]
fn a_directory_and_a_file_that_may_not_run() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    let plain = scratch.write("plain", fs::read(hello()).expect("it was built"));
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).expect("the owner may");
    refused(
        &cloaked(&Case::new("/etc")),
        126,
        &["directory", "permission denied"],
    );
    refused(
        &cloaked(&Case::new(plain).volume(scratch.path())),
        126,
        &["permission denied", "not executable"],
    );
}

#[test]
fn files_that_are_no_programs() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    let elf = fs::read(hello()).expect("it was built");
    let mut narrow = elf.clone();
    narrow[4] = 1; // EI_CLASS: 32 bits
    let mut foreign = elf.clone();
    foreign[18] = 0xb7; // e_machine: AArch64
    let mut object = elf.clone();
    object[16] = 1; // e_type: relocatable
    let files: [(&str, &[u8]); 8] = [
        ("empty", b""),
        ("text", b"just some words\n"),
        ("noise", &noise(100_000, 4)),
        ("magic-only", b"\x7fELF"),
        ("header-only", &elf[..64]),
        ("narrow", &narrow),
        ("foreign", &foreign),
        ("object", &object),
    ];
    for (name, bytes) in files {
        let program = executable(&scratch, name, bytes);
        let outcome = cloaked(&Case::new(program).volume(scratch.path()));
        refused(
            &outcome,
            126,
            &["elf", "exec format", "not a program", "executable"],
        );
    }
}

#[test]
fn an_interpreter_that_is_not_there() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    let mut elf = fs::read(built("hello", Linkage::Dynamic).expect("gcc builds it")).expect("it was built");
    let name = b"/lib64/ld-linux-x86-64.so.2";
    let at = elf
        .windows(name.len())
        .position(|window| window == name)
        .expect("it names its interpreter");
    elf[at + 1..at + 4].copy_from_slice(b"xyz");
    let program = executable(&scratch, "orphan", elf);
    let outcome = cloaked(&Case::new(program).volume(scratch.path()));
    let code = outcome.status.shell_code();
    assert!(code == 126 || code == 127, "{code}: {}", outcome.error_text());
    assert!(
        outcome.error_text().contains("ld-linux"),
        "{}",
        outcome.error_text()
    );
}

/// Each changed image ends: with an error, by a signal, or as if nothing were wrong. Only its headers are changed, so
/// that a mutant that loops for ever does so natively too, which then excuses it.
#[test]
fn corrupted_headers_never_hang() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    let elf = fs::read(hello()).expect("it was built");
    let dice = noise(4 * 60, 12);
    for (round, roll) in dice.chunks(4).enumerate() {
        let mut mutant = elf.clone();
        for (at, value) in [(roll[0], roll[1]), (roll[2], roll[3])] {
            // The header and the first four program headers.
            mutant[usize::from(at) % (64 + 4 * 56)] = value;
        }
        if round % 4 == 0 {
            mutant.truncate(64 + usize::from(roll[0]) * elf.len() / 300);
        }
        let case = Case::new(executable(&scratch, "mutant", mutant))
            .volume(scratch.path())
            .memory("256M");
        let end = case
            .start(&Launcher::under_test())
            .finish(Duration::from_secs(30));
        match end {
            Ok(outcome) => assert!(
                !outcome.error_text().contains("panicked at"),
                "{}",
                outcome.error_text()
            ),
            Err(error) => {
                let native = case.start(&Launcher::Native).finish(Duration::from_secs(5));
                assert!(
                    native.is_err(),
                    "mutant {round} {roll:?} hangs cloaked only: {error}"
                );
            }
        }
    }
    Case::new(hello()).succeeds_as_native();
}

#[test]
fn sizes_that_cannot_be() {
    if !needs::kvm() {
        return;
    }
    for size in ["0", "1K", "4096", "-1", "lots", "99999999T"] {
        refused(&cloaked(&Case::new(hello()).memory(size)), 125, &["memory"]);
    }
    for count in [0, 100_000] {
        refused(&cloaked(&Case::new(hello()).cpus(count)), 125, &["cpu"]);
    }
}

#[test]
fn options_that_are_none() {
    if !needs::kvm() {
        return;
    }
    for option in [
        "--no-such-option",
        "--volume=/only-one-side",
        "--env==no-name",
        "--platform=abacus",
    ] {
        refused(
            &cloaked(&Case::new(hello()).option(option)),
            125,
            &["option", "argument", "value", "expected"],
        );
    }
    let absent = Case::new(hello()).option("--volume=/no/such/folder:/x");
    refused(&cloaked(&absent), 125, &["no such file", "not found"]);
}

/// Runs the launcher in a mount name space of its own after `prepare`, or as another user.
fn in_changed_world(prepare: &str, prefix: &[&str]) -> Outcome {
    let scratch = Scratch::new();
    // Copied, so that a user without rights to this folder can run it too.
    let Launcher::Cloak(binary) = Launcher::under_test() else {
        unreachable!("the launcher under test is Cloak")
    };
    let copy = |from: &Path, name: &str| executable(&scratch, name, fs::read(from).expect("it is there"));
    let (binary, program) = (copy(&binary, "cloak"), copy(&hello(), "hello"));
    let inner = Launcher::Cloak(binary).command(&Case::new(program).volume(scratch.path()));
    let mut command = Command::new("/usr/bin/unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            &format!("set -e; {prepare} exec \"$@\""),
            "sh",
        ])
        .args(prefix);
    command.arg(inner.get_program()).args(inner.get_args());
    let outcome = Running::start(command, Vec::new()).and_then(|running| running.finish(PATIENCE));
    outcome.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn no_kvm_device() {
    if !needs::root() || !needs::kvm() {
        return;
    }
    // A /dev without it.
    let prepare = "d=$(mktemp -d); mount -t tmpfs tmpfs $d; for n in null zero full random urandom tty; do touch $d/$n; \
        mount --bind /dev/$n $d/$n; done; mkdir $d/shm $d/pts; mount --move $d /dev; rmdir $d;";
    refused(&in_changed_world(prepare, &[]), 125, &["/dev/kvm"]);
}

#[test]
fn a_kvm_device_that_is_not_kvm() {
    if needs::root() && needs::kvm() {
        refused(
            &in_changed_world("mount --bind /dev/null /dev/kvm;", &[]),
            125,
            &["/dev/kvm"],
        );
    }
}

#[test]
fn no_permission_on_the_kvm_device() {
    if !needs::root() || !needs::kvm() {
        return;
    }
    let other_user = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    // In the private name space a copy of the device with no rights for others, whatever this machine's has.
    let prepare = "f=$(mktemp -d); mount -t tmpfs tmpfs $f; mknod -m 600 $f/kvm c 10 232; mount --bind $f/kvm /dev/kvm; umount -l $f; rmdir $f;";
    refused(&in_changed_world(prepare, &other_user), 125, &["permission"]);
}
