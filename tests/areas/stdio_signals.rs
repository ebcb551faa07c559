//! Standard streams, exit codes, signals and the terminal pass through `cloak run` as with the program alone.

use cloak_tests::outcome::forget_notice;
use cloak_tests::process::{Running, by_deaf_caller};
use cloak_tests::scratch::noise;
use cloak_tests::{Case, Launcher, Status, needs};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

fn perl(script: &str) -> Option<Case> {
    needs::cloaked_program("perl").map(|path| Case::new(path).args(["-e", &format!("$| = 1; {script}")]))
}

#[test]
fn megabytes_through_the_streams() {
    let Some(cat) = needs::cloaked_program("cat") else {
        return;
    };
    let bytes = noise(16 << 20, 9);
    let outcome = Case::new(cat).stdin(bytes.clone()).succeeds_as_native();
    assert!(outcome.stdout == bytes);
}

#[test]
fn both_outputs_and_the_exit_code() {
    let Some(case) = perl("print 'out'; print STDERR 'err'; exit 77") else {
        return;
    };
    let outcome = case.run(&Launcher::under_test());
    assert_eq!(
        (outcome.text().as_str(), outcome.error_text().as_str()),
        ("out", "err")
    );
    assert_eq!(outcome.status, Status::Exit(77));
}

#[test]
fn death_by_each_signal() {
    for number in [1, 2, 3, 6, 9, 11, 13, 14, 15] {
        let Some(case) = perl(&format!(
            "$SIG{{PIPE}} = 'DEFAULT'; kill {number}, $$; sleep 100; exit 0"
        )) else {
            return;
        };
        let outcome = case.same_as_native();
        assert_eq!(outcome.status.shell_code(), 128 + number);
    }
}

/// Starts a program that prints `ready` and then waits, sends it a signal from outside, and compares what follows.
fn signalled_from_outside(script: &str, signal: Signal) {
    let Some(case) = perl(script) else { return };
    let session = |launcher: &Launcher| {
        let mut running = case.start(launcher);
        assert!(
            running.prints("ready", PATIENCE),
            "{}",
            String::from_utf8_lossy(&running.stderr_so_far())
        );
        kill_process(running.pid(), signal).expect("it runs");
        let outcome = running.finish(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        (outcome.text(), outcome.status.shell_code())
    };
    assert_eq!(session(&Launcher::under_test()), session(&Launcher::Native));
}

#[test]
fn a_handled_signal_from_outside() {
    for (name, signal) in [
        ("INT", Signal::INT),
        ("TERM", Signal::TERM),
        ("HUP", Signal::HUP),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("WINCH", Signal::WINCH),
        ("QUIT", Signal::QUIT),
        ("TTIN", Signal::TTIN),
        ("TTOU", Signal::TTOU),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
    ] {
        let script = format!(
            "$SIG{{{name}}} = sub {{ print \"got {name}\\n\"; exit 5 }}; print \"ready\\n\"; sleep 1 while 1"
        );
        signalled_from_outside(&script, signal);
    }
}

#[test]
fn an_unhandled_signal_from_outside() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::USR1, Signal::QUIT] {
        signalled_from_outside("print \"ready\\n\"; sleep 1 while 1", signal);
    }
}

#[test]
fn what_the_caller_ignores_and_blocks_the_program_does() {
    let Some(case) = perl(
        "open my $status, '<', '/proc/self/status'; print grep { /^Sig(Blk|Ign)/ } <$status>; \
         $SIG{QUIT} = sub { exit 5 }; print \"ready\\n\"; sleep 1 while 1",
    ) else {
        return;
    };
    let session = |launcher: &Launcher| {
        let command = by_deaf_caller(&launcher.command(&case));
        let mut running = Running::start(command, Vec::new()).expect("perl can be started");
        assert!(
            running.prints("ready", PATIENCE),
            "{}",
            String::from_utf8_lossy(&running.stderr_so_far())
        );
        for signal in [Signal::HUP, Signal::USR1, Signal::QUIT] {
            kill_process(running.pid(), signal).expect("it runs");
        }
        let outcome = running.finish(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        (outcome.text(), outcome.status.shell_code())
    };
    let native = session(&Launcher::Native);
    assert_eq!(native.1, 5, "{}", native.0);
    let wanted = if needs::other_platform().is_some() {
        // A measured machine takes no word of the host's for it. SIGFPE is perl's own doing.
        let neither = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000080\nready\n";
        (neither.to_owned(), 128 + 1)
    } else {
        native
    };
    assert_eq!(session(&Launcher::under_test()), wanted);
}

#[test]
fn a_signal_reaches_a_loop_without_calls() {
    signalled_from_outside("print \"ready\\n\"; 1 while 1", Signal::TERM);
}

#[test]
fn a_reader_that_leaves_gives_sigpipe() {
    let Some(case) =
        perl("$SIG{PIPE} = 'DEFAULT'; print 'x' x 100000 for 1 .. 1000; print STDERR 'wrote all'")
    else {
        return;
    };
    let status = |launcher: &Launcher| {
        let mut command = launcher.command(&case);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut first = [0; 10];
        child
            .stdout
            .take()
            .expect("piped")
            .read_exact(&mut first)
            .expect("it writes");
        Status::from(child.wait().expect("it ends")).shell_code()
    };
    assert_eq!(
        (status(&Launcher::Native), status(&Launcher::under_test())),
        (141, 141)
    );
}

/// A service manager ignores SIGPIPE; what it starts is told by EPIPE.
#[test]
fn a_reader_that_leaves_gives_epipe_where_the_caller_ignores_sigpipe() {
    if !needs::plain() {
        return;
    }
    let Some(case) = perl(
        "print \"ready\\n\"; select undef, undef, undef, 0.01 while print \"more\\n\"; print STDERR \"$!\"; exit 6",
    ) else {
        return;
    };
    let session = |launcher: &Launcher| {
        let mut command = by_deaf_caller(&launcher.command(&case));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("perl can be started");
        let mut line = [0; 6];
        let mut output = child.stdout.take().expect("a pipe");
        output.read_exact(&mut line).expect("ready");
        drop(output);
        let outcome = child.wait_with_output().expect("it ends");
        (
            outcome.status.code(),
            String::from_utf8_lossy(&outcome.stderr).into_owned(),
        )
    };
    let native = session(&Launcher::Native);
    assert_eq!(native, (Some(6), "Broken pipe".to_owned()));
    assert_eq!(session(&Launcher::under_test()), native);
}

#[test]
fn closed_standard_streams() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        if !needs::kvm() {
            return;
        }
        let exit_code = |launcher: &Launcher| {
            let program = Case::new("/usr/bin/perl").args(["-e", "print STDOUT 'x'; exit 3"]);
            let inner = launcher.command(&program);
            let words = std::iter::once(inner.get_program())
                .chain(inner.get_args())
                .map(|word| word.to_owned());
            let mut command = Command::new("/bin/sh");
            command
                .arg("-c")
                .arg(format!("exec \"$@\" {closed}"))
                .arg("sh")
                .args(words);
            let outcome = Running::start(command, Vec::new()).and_then(|running| running.finish(PATIENCE));
            outcome
                .unwrap_or_else(|error| panic!("{error}"))
                .status
                .shell_code()
        };
        assert_eq!(
            exit_code(&Launcher::under_test()),
            exit_code(&Launcher::Native),
            "{closed}"
        );
    }
}

/// A program on a terminal of its own: what it says of it, and what it reads from it.
struct Terminal {
    master: File,
    child: std::process::Child,
    seen: Vec<u8>,
}

impl Terminal {
    fn open(case: &Case, launcher: &Launcher) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master)
            .and_then(|()| unlockpt(&master))
            .expect("a pseudo-terminal");
        let name = ptsname(&master, Vec::new())
            .expect("it has a name")
            .into_string()
            .expect("its name is ASCII");
        let size = Winsize {
            ws_row: 33,
            ws_col: 111,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("it has a size");
        let side = || {
            File::options()
                .read(true)
                .write(true)
                .open(&name)
                .expect("the other side opens")
        };
        // `setsid --ctty` makes it the controlling terminal, which needs code between fork and exec otherwise.
        let inner = launcher.command(case);
        let mut command = Command::new("/usr/bin/setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .env_clear();
        command.envs(
            inner
                .get_envs()
                .filter_map(|(key, value)| value.map(|value| (key.to_owned(), value.to_owned()))),
        );
        let child = command
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .process_group(0)
            .spawn()
            .expect("setsid runs");
        Terminal {
            master: File::from(master),
            child,
            seen: Vec::new(),
        }
    }

    fn type_in(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("the terminal takes it");
    }

    /// Reads until `text` has come; a program that ends instead fails the test.
    fn expect(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            match self.master.read(&mut buffer) {
                Ok(count @ 1..) => self.seen.extend_from_slice(&buffer[..count]),
                _ => panic!(
                    "the program ended before it printed {text:?}: {}",
                    String::from_utf8_lossy(&self.seen)
                ),
            }
        }
    }

    fn finish(mut self) -> (String, i32) {
        let mut rest = Vec::new();
        // A terminal whose other side is closed ends with EIO.
        let _ = self.master.read_to_end(&mut rest);
        self.seen.extend(rest);
        forget_notice(&mut self.seen);
        let status = Status::from(self.child.wait().expect("it ends")).shell_code();
        (String::from_utf8_lossy(&self.seen).into_owned(), status)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

const TERMINAL_SCRIPT: &str = "use POSIX; print join(',', map { -t $_ ? 'tty' : 'no' } *STDIN, *STDOUT, *STDERR), qq(\\n);
    require 'sys/ioctl.ph' if 0; my $size = ''; ioctl(STDOUT, 0x5413, $size) or die; print join('x', (unpack 'S2', $size)), qq(\\n);
    $SIG{WINCH} = sub { ioctl(STDOUT, 0x5413, $size); print 'now ', join('x', (unpack 'S2', $size)), qq(\\n) };
    $SIG{INT} = sub { print qq(interrupted\\n) };
    print qq(ready\\n); while (1) { my $line = <STDIN>; next if !defined $line && $!{EINTR}; last unless defined $line;
    chomp $line; print qq(line <$line>\\n) } print qq(end of input\\n); exit 4";

#[test]
fn a_terminal_passes_through() {
    let Some(case) = perl(TERMINAL_SCRIPT) else { return };
    let session = |launcher: &Launcher| {
        let mut terminal = Terminal::open(&case, launcher);
        terminal.expect("ready\r\n");
        terminal.type_in("typed words\n");
        terminal.expect("line <typed words>");
        let size = Winsize {
            ws_row: 44,
            ws_col: 99,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal.master, size).expect("it has a size");
        terminal.expect("now 44x99");
        terminal.type_in("\x03");
        terminal.expect("interrupted");
        terminal.type_in("\x04");
        terminal.finish()
    };
    let native = session(&Launcher::Native);
    assert_eq!(native.1, 4, "{}", native.0);
    assert!(native.0.contains("tty,tty,tty\r\n33x111"), "{}", native.0);
    assert_eq!(session(&Launcher::under_test()), native);
}

/// An interactive shell on the terminal: its job is stopped from the keyboard, comes back, and is interrupted.
#[test]
fn job_control_on_the_terminal() {
    let Some(bash) = needs::cloaked_program("bash") else {
        return;
    };
    // Each prompt has another number: what is typed before the shell reads may be thrown away with a job's input.
    let case = Case::new(bash)
        .args(["--norc", "--noprofile", "--noediting", "-i"])
        .env("PS1", "at-\\#>");
    for launcher in [Launcher::Native, Launcher::under_test()] {
        let mut terminal = Terminal::open(&case, &launcher);
        terminal.expect("at-1>");
        let steps = [
            // What is expected is never what was typed: that comes back as the echo.
            ("echo here-$((1+2)); sed -u s/x/yy/\n", "here-3"),
            ("axb\n", "ayyb"),
            ("\x1a", "at-2>"),
            ("jobs\n", "at-3>"),
            ("fg\n", "\r\nsed -u"),
            ("cxd\n", "cyyd"),
            ("\x03", "at-4>"),
            ("echo code-$?\n", "code-130"),
        ];
        for (typed, expected) in steps {
            terminal.type_in(typed);
            terminal.expect(expected);
        }
        terminal.type_in("exit 7\n");
        let (text, code) = terminal.finish();
        assert_eq!(code, 7, "{text}");
        assert!(
            text.contains("Stopped") && !text.contains("no job control"),
            "{text}"
        );
    }
}
