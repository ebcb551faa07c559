//! Pseudo-terminals inside, as natively.

use cloak_tests::{Case, Launcher, needs};

fn shell(script: &str) -> Case {
    Case::new("/bin/sh").args(["-c", script]).env("TERM", "xterm")
}

#[test]
fn pythons_tests_of_terminals_pass() {
    if needs::cloaked_program("/usr/bin/python3").is_none() {
        return;
    }
    let script = "python3 -m unittest -q test.test_pty test.test_openpty 2>&1 >/dev/null | tail -n 1";
    let outcome = shell(script).run(&Launcher::under_test());
    assert_eq!(outcome.text(), "OK\n", "{}", outcome.error_text());
}

#[test]
fn script_runs_a_program_on_a_terminal() {
    if needs::cloaked_program("/usr/bin/script").is_none() {
        return;
    }
    let outcome = shell("script -qec 'test -t 0 && test -t 1 && exit 7' /dev/null; echo $?")
        .run(&Launcher::under_test());
    assert_eq!(outcome.text(), "7\n", "{}", outcome.error_text());
}

#[test]
fn tmux_shows_what_a_shell_prints() {
    if needs::cloaked_program("/usr/bin/tmux").is_none() {
        return;
    }
    let script = "tmux -L t new-session -d -x 80 -y 24 sh; sleep 1; tmux -L t send-keys 'echo $((6*7))x' Enter; sleep 1; \
                  tmux -L t capture-pane -p | grep '^42x$'; tmux -L t kill-server";
    let outcome = shell(script).run(&Launcher::under_test());
    assert_eq!(outcome.text(), "42x\n", "{}", outcome.error_text());
}

/// The scripts of the suite `terminals` that take no long: keys from the host, and what the screen shows.
#[test]
fn keys_do_under_cloak_what_they_do_natively() {
    if needs::cloaked_program("/bin/bash").is_none() || needs::host_program("tmux").is_none() {
        return;
    }
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/suites/terminals/suite");
    let Launcher::Cloak(binary) = Launcher::under_test() else {
        return;
    };
    let output = std::process::Command::new(suite)
        .env("CLOAK_BIN", binary)
        .env("TERMINALS", "group bash vi")
        .output()
        .expect("bash runs the suite");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("ok group") && told.contains("ok bash"), "{told}");
    assert!(!told.contains("FAILED"), "{told}");
}
