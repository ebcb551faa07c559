//! The harness itself: launchers that are wrong on purpose must be caught, and one that is right must pass.

use cloak_tests::programs::built_stand_in;
use cloak_tests::{Case, Launcher, Status};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

fn greeting() -> Case {
    Case::new("/bin/sh")
        .args(["-c", "echo hello; echo \"$GREETING\"; exit 3"])
        .env("GREETING", "a b")
}

/// What the harness says about `case` under a stand-in; `None` when it is content.
fn complaint(stand_in: &str, case: &Case) -> Option<String> {
    let launcher = Launcher::Cloak(built_stand_in(stand_in));
    let result = catch_unwind(AssertUnwindSafe(|| case.same_under(&launcher)));
    result
        .err()
        .map(|payload| payload.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn a_right_launcher_passes() {
    assert_eq!(complaint("plain", &greeting()), None);
}

#[test]
fn a_wrong_byte_is_caught() {
    let said = complaint("corrupt", &greeting()).expect("an extra byte on stdout is a difference");
    assert!(said.contains("standard output differs"), "{said}");
}

#[test]
fn a_wrong_exit_code_is_caught() {
    let said = complaint("wrong-exit", &greeting()).expect("4 is not 3");
    assert!(
        said.contains("native:  exit code 3; cloaked: exit code 4"),
        "{said}"
    );
}

#[test]
fn a_killed_launcher_is_caught() {
    let said = complaint("silent-death", &greeting()).expect("no output is a difference");
    assert!(said.contains("death by signal 9"), "{said}");
}

#[test]
fn a_hang_is_caught() {
    let said = complaint("hang", &greeting().patience(Duration::from_secs(2))).expect("it never ends");
    assert!(said.contains("still ran after 2 s and was killed"), "{said}");
}

#[test]
fn the_stand_in_without_processes_refuses_them_and_runs_threads() {
    let launcher = Launcher::Cloak(built_stand_in("no-fork"));
    let forks = Case::new("/usr/bin/perl").args(["-e", "print defined(fork) ? 'forked' : $! + 0"]);
    assert_eq!(forks.run(&launcher).text(), "38", "fork gives ENOSYS");
    let program = cloak_tests::programs::built("threads64", cloak_tests::programs::Linkage::Dynamic);
    let threads = Case::new(program.expect("gcc builds it")).run(&launcher);
    assert_eq!(threads.status, Status::Exit(0), "{}", threads.text());
}
