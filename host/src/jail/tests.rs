//! Each jail from inside: every call is tried, and what a taken-over OS service would try.
//!
//! A jail can't be left again, so each trial is a child process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::calls::{self, Allowed, COMMON, Party, When};
use super::files::{DEVICES, Granted, Rules, WITHHELD};
use super::{limits, privileges};

/// How a child ended.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum End {
    /// With this code.
    Code(i32),
    /// By the filter.
    Killed,
    /// By another signal.
    Signal(i32),
}

/// Runs `body` in a child; it must not return to the test harness, so it gives an exit code.
pub(super) fn child(body: impl FnOnce() -> i32) -> End {
    // SAFETY: the child only makes system calls and small allocations, and leaves by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child and variable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    End::of(status)
}

impl End {
    /// What waiting has told.
    pub(super) fn of(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            return Self::Code(libc::WEXITSTATUS(status));
        }
        match libc::WTERMSIG(status) {
            libc::SIGSYS => Self::Killed,
            signal => Self::Signal(signal),
        }
    }
}

/// Makes call `number` with these arguments inside `party`'s filter.
fn made_inside(party: &Party, number: i64, args: [u64; 6]) -> End {
    child(|| {
        if calls::close(party).is_err() {
            return 99;
        }
        // SAFETY: arguments that no call can do anything with: pointers to nowhere, descriptors that are not open.
        let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
        let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if result < 0 && error == libc::ENOSYS {
            38
        } else {
            0
        }
    })
}

const NOWHERE: u64 = u64::MAX;

/// Arguments that the condition accepts, and others.
fn arguments(when: When) -> ([u64; 6], Option<[u64; 6]>) {
    let mut good = [NOWHERE; 6];
    let mut bad = good;
    // What the child's own number will be is not known here; a violation is any other.
    let (at, accepted, refused) = match when {
        When::Always => return (good, None),
        When::OneOf(at, values) => (at, u64::from(values[0]), 77),
        When::Without(at, bits) => (at, 0, bits),
        When::With(at, _) => (at, NOWHERE, 0),
        When::Masked(at, _, value) => (at, value, 0x5401),
        When::Own(at) => (at, 0, 1),
    };
    good[usize::from(at)] = accepted;
    bad[usize::from(at)] = refused;
    (good, Some(bad))
}

/// `uretprobe` and `uprobe`: recent kernels serve them before any filter, and refuse whoever does not come from their
/// own trampoline.
const UPROBES: [i64; 2] = [335, 336];

/// Numbers of x86-64 system calls: the highest one known today, and room.
const LAST: i64 = 480;

fn every_call(party: &Party) {
    let mut allowed: BTreeMap<i64, Vec<When>> = BTreeMap::new();
    for one in COMMON.iter().chain(party.own) {
        allowed.entry(one.number).or_default().push(one.when);
    }
    allowed.retain(|number, _| !party.without.contains(number));
    for number in 0..=LAST {
        if party.refused.iter().any(|r| r.number == number) {
            let end = made_inside(party, number, [NOWHERE; 6]);
            assert!(matches!(end, End::Code(_)), "call {number}: {end:?}");
            continue;
        }
        let Some(conditions) = allowed.get(&number) else {
            if UPROBES.contains(&number) {
                continue;
            }
            assert_eq!(
                made_inside(party, number, [NOWHERE; 6]),
                End::Killed,
                "call {number}"
            );
            continue;
        };
        for &when in conditions {
            let (good, bad) = arguments(when);
            // Returning to a signal frame that is not there ends the child by itself.
            if !matches!(when, When::Own(_)) && number != libc::SYS_rt_sigreturn {
                let end = made_inside(party, number, good);
                assert!(
                    matches!(end, End::Code(c) if c != 99),
                    "call {number} {when:?}: {end:?}"
                );
            }
            if let Some(bad) = bad {
                assert_eq!(
                    made_inside(party, number, bad),
                    End::Killed,
                    "call {number} {when:?}"
                );
            }
        }
    }
}

#[test]
fn the_os_service_makes_the_calls_of_its_table_and_no_other() {
    every_call(&calls::SERVICE);
}

#[test]
fn without_network_the_os_service_makes_no_socket() {
    every_call(&calls::OFFLINE);
}

#[test]
fn the_monitor_makes_the_calls_of_its_table_and_no_other() {
    every_call(&calls::VM);
}

#[test]
fn the_courier_makes_the_calls_of_its_table_and_no_other() {
    every_call(&calls::COURIER);
}

#[test]
fn a_thread_starts_and_ends_inside() {
    for party in [&calls::SERVICE, &calls::VM, &calls::COURIER] {
        let end = child(|| match calls::close(party) {
            Ok(()) => std::thread::spawn(|| 5).join().unwrap_or(98),
            Err(_) => 99,
        });
        assert_eq!(end, End::Code(5));
    }
}

/// What somebody who has taken over the OS service would try, by its letter in the answer.
fn attacks(outside: &Path, read_only: &Path, victim: i32, secret: u64) -> String {
    let mut worked = String::new();
    let mut attack = |name: char, success: bool| {
        if success {
            worked.push(name);
        }
    };
    attack('o', std::fs::read(outside).is_ok());
    attack('c', std::fs::write(outside.with_extension("made"), b"x").is_ok());
    attack('w', std::fs::write(read_only.join("given"), b"x").is_ok());
    attack(
        'd',
        File::open("/dev/mem").is_ok() || File::open("/dev/kmsg").is_ok(),
    );
    let memory = File::open(format!("/proc/{victim}/mem"));
    let stolen = memory.and_then(|file| {
        let mut word = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, secret)?;
        Ok(u64::from_le_bytes(word))
    });
    attack('m', stolen.is_ok_and(|word| word == SECRET));
    attack('e', File::open(format!("/proc/{victim}/environ")).is_ok());
    worked
}

pub(super) static SECRET_PLACE: u64 = SECRET;
pub(super) const SECRET: u64 = 0x7e57_5ec2_e75e_c2e7;

fn tried(jailed: bool) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let (mine, shown) = (folder.path().join("mine"), folder.path().join("shown"));
    for made in [&mine, &shown] {
        std::fs::create_dir(made).expect("a folder");
        std::fs::write(made.join("given"), b"content").expect("a file");
    }
    let outside = folder.path().join("outside");
    std::fs::write(&outside, b"secret").expect("a file");
    let answer = folder.path().join("mine/answer");
    let victim = std::process::id() as i32;
    let end = child(|| {
        if jailed {
            let open = |path: &Path| File::open(path).expect("opens");
            let (first, second) = (open(&mine), open(&shown));
            let granted = [(&first, false), (&second, true)].map(|(file, read_only)| Granted {
                file: file.as_fd(),
                read_only,
            });
            let closed = Rules::new(&granted, &[])
                .and_then(|rules| {
                    privileges::no_new_privileges()?;
                    privileges::drop_capabilities(&privileges::KEPT)?;
                    rules.close()
                })
                .and_then(|()| calls::close(&calls::SERVICE));
            if closed.is_err() {
                return 99;
            }
        }
        let worked = attacks(&outside, &shown, victim, &raw const SECRET_PLACE as u64);
        // What is granted works.
        let reads = std::fs::read(shown.join("given")).is_ok_and(|read| !read.is_empty());
        let writes = std::fs::write(&answer, worked).is_ok();
        i32::from(!(reads && writes))
    });
    assert_eq!(end, End::Code(0));
    std::fs::read_to_string(&answer).expect("the child's answer")
}

#[test]
fn a_taken_over_service_reaches_nothing_outside_its_volumes() {
    let open = tried(false);
    assert!(
        open.starts_with("ocw") && open.contains('m') && open.contains('e'),
        "without the jail these attacks work, or they prove nothing: {open}"
    );
    assert_eq!(tried(true), "", "attacks that worked inside the jail");
}

#[test]
fn of_a_host_root_a_withheld_file_is_not_given_and_its_neighbours_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().canonicalize().expect("a folder");
    std::fs::create_dir(folder.join("deep")).expect("a folder");
    let (key, beside, below) = (
        folder.join("key"),
        folder.join("beside"),
        folder.join("deep/below"),
    );
    for file in [&key, &beside, &below] {
        std::fs::write(file, b"content").expect("a file");
    }
    let withheld = [key.clone()];
    let end = child(|| {
        let root = File::open("/").expect("opens");
        let granted = [Granted {
            file: root.as_fd(),
            read_only: true,
        }];
        let closed = Rules::new(&granted, &withheld).and_then(|rules| {
            privileges::no_new_privileges()?;
            rules.close()
        });
        if closed.is_err() {
            return 99;
        }
        let reads = |path: &Path| std::fs::read(path).is_ok();
        i32::from(reads(&key)) | i32::from(!reads(&beside)) << 1 | i32::from(!reads(&below)) << 2
    });
    assert_eq!(
        end,
        End::Code(0),
        "1: the key is read, 2 and 4: its neighbours are not"
    );
}

#[test]
fn other_processes_cannot_be_touched_by_calls() {
    let victim = std::process::id() as u64;
    for (number, args) in [
        (libc::SYS_ptrace, [16, victim, 0, 0, 0, 0]),
        (libc::SYS_process_vm_readv, [victim, 0, 0, 0, 0, 0]),
        (libc::SYS_process_vm_writev, [victim, 0, 0, 0, 0, 0]),
        (libc::SYS_kill, [victim, 0, 0, 0, 0, 0]),
        (libc::SYS_tgkill, [victim, victim, 0, 0, 0, 0]),
        (libc::SYS_pidfd_open, [victim, 0, 0, 0, 0, 0]),
        (libc::SYS_execve, [0; 6]),
        (libc::SYS_setns, [0; 6]),
        (libc::SYS_mount, [0; 6]),
        (libc::SYS_bpf, [0; 6]),
        (libc::SYS_io_uring_setup, [0; 6]),
        (libc::SYS_userfaultfd, [0; 6]),
        (libc::SYS_open_by_handle_at, [0; 6]),
    ] {
        assert_eq!(
            made_inside(&calls::SERVICE, number, args),
            End::Killed,
            "call {number}"
        );
    }
}

/// The tables of `docs/jail.md`.
fn tables() -> String {
    let mut text = String::new();
    let row = |text: &mut String, one: &Allowed| {
        let note = if one.words.is_empty() { "any" } else { one.words };
        // Writing to a string can't fail.
        let _ = writeln!(text, "| `{}` | {note} |", one.name);
    };
    let titled = [
        ("Calls that all make", COMMON),
        ("Calls of the OS service", calls::SERVICE.own),
        ("Calls of the monitor, once the VM has started", calls::VM.own),
        (
            "Calls of the process that fetches quotes (TDX)",
            calls::COURIER.own,
        ),
    ];
    for (title, calls) in titled {
        let _ = writeln!(text, "\n### {title}\n\n| call | arguments |\n|---|---|");
        calls.iter().for_each(|one| row(&mut text, one));
    }
    let _ = writeln!(
        text,
        "\n### Calls that get an error\n\n| call | whose | error | why it is made |\n|---|---|---|---|"
    );
    for (whose, party) in [
        ("OS service", &calls::SERVICE),
        ("monitor", &calls::VM),
        ("courier", &calls::COURIER),
    ] {
        for refused in party.refused {
            let error = if refused.errno == libc::ENOSYS {
                "ENOSYS"
            } else {
                "EACCES"
            };
            let _ = writeln!(
                text,
                "| `{}` | {whose} | {error} | {} |",
                refused.name, refused.words
            );
        }
    }
    let _ = writeln!(
        text,
        "\n### Limits\n\n| limit | whose | most | so that |\n|---|---|---|---|"
    );
    for (whose, limits) in [("OS service", limits::SERVICE), ("monitor", limits::MONITOR)] {
        for (_, name, most, why) in limits {
            let _ = writeln!(text, "| `{name}` | {whose} | {most} | {why} |");
        }
    }
    let kept: Vec<&str> = privileges::KEPT.iter().map(|(_, name)| *name).collect();
    let _ = writeln!(
        text,
        "\nCapabilities that the OS service keeps, if it had them: {}. The monitor keeps none.\n\nOf a host root that is \
         shared read-only, withheld: {}; of its `dev`, given: {}.",
        kept.join(", "),
        WITHHELD.join(", "),
        DEVICES.join(", ")
    );
    text
}

/// `CLOAK_WRITE_DOCS=1 cargo test -p cloak-host jail` writes the page anew.
#[test]
fn the_document_shows_the_tables() {
    const MARK: &str = "<!-- tables -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/jail.md");
    let page = std::fs::read_to_string(&path).expect("docs/jail.md");
    let (head, old) = page.split_once(MARK).expect("a mark before the tables");
    if std::env::var_os("CLOAK_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{MARK}{}", tables())).expect("docs/jail.md");
        return;
    }
    assert!(
        old == tables(),
        "docs/jail.md is stale: CLOAK_WRITE_DOCS=1 cargo test -p cloak-host jail"
    );
}
