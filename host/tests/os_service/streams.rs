//! Inherited standard streams, terminals, signals, and the end of the monitor.
//!
//! Each test runs in a process of its own (this program with `__probe NAME`), which gives itself the
//! standard streams that it is about before it starts a service.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cloak_abi::hostop::HostOp;
use rustix::fs::{Mode, OFlags, fcntl_getfl};
use rustix::process::{Pid, Signal};

use crate::guest::{Guest, PATIENCE};
use crate::hostile::process;

pub const TESTS: &[(&str, fn())] = &[
    ("inherited_pipes_stay_blocking_and_hold_up_nobody", || {
        probe("pipes")
    }),
    ("inherited_sockets_stay_blocking_and_hold_up_nobody", || {
        probe("sockets")
    }),
    ("inherited_files_share_their_position", || probe("files")),
    ("a_terminal_is_read_and_set", || probe("terminal")),
    ("a_background_job_is_told_not_stopped", || probe("background")),
    ("signals_for_the_program_leave_the_service_alone", || {
        probe("signals")
    }),
    ("the_service_ends_with_the_monitor", monitor_dies),
];

const MARK: &str = "__probe";

/// Runs a probe if this process is one.
pub fn main_if_probe() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(MARK) {
        return None;
    }
    match arguments.next().as_deref() {
        Some("pipes") => pipes(),
        Some("sockets") => sockets(),
        Some("files") => files(),
        Some("terminal") => terminal(),
        Some("background") => background(),
        Some("signals") => signals(),
        Some("monitor") => monitor(),
        other => panic!("no probe {other:?}"),
    }
    Some(ExitCode::SUCCESS)
}

fn command(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .args([MARK, name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn probe(name: &str) {
    let output = command(name).stderr(Stdio::piped()).output().expect("starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn guest() -> Guest {
    Guest::new(std::path::Path::new("/tmp"))
}

fn is_blocking(fd: impl AsFd) -> bool {
    !fcntl_getfl(fd).expect("flags").contains(OFlags::NONBLOCK)
}

fn pipes() {
    let (read, feed) = rustix::pipe::pipe().expect("pipe");
    let (drain, write) = rustix::pipe::pipe().expect("pipe");
    rustix::stdio::dup2_stdin(&read).expect("stdin");
    rustix::stdio::dup2_stdout(&write).expect("stdout");
    let mut guest = guest();
    guest.call(HostOp::Watch, &[0, 1], &[]).ok();
    assert_eq!(guest.call(HostOp::Read, &[0, 10], &[]).err(), libc::EAGAIN);
    rustix::io::write(&feed, b"line\n").expect("write");
    guest.event_with(1, libc::EPOLLIN as u32);
    let (answer, out) = guest.call_out(HostOp::Read, &[0, 10], &[], 5);
    assert_eq!((answer.ok(), &out[..]), (5, &b"line\n"[..]));
    let block = vec![7u8; 100_000];
    let mut sent = 0;
    loop {
        match guest.call(HostOp::Write, &[1, block.len() as u64], &block).result {
            n if n > 0 => sent += n as usize,
            e => break assert_eq!(e, -i64::from(libc::EAGAIN)),
        }
    }
    assert_eq!(sent, 65536);
    assert!(is_blocking(&read) && is_blocking(&write));
    let mut out = vec![0; 100_000];
    assert!(rustix::io::read(&drain, &mut out).expect("read") > 0);
    drop(feed);
    assert_eq!(guest.call(HostOp::Read, &[0, 10], &[]).ok(), 0, "end of file");
}

fn sockets() {
    let (one, other) = std::os::unix::net::UnixStream::pair().expect("pair");
    rustix::stdio::dup2_stdin(&one).expect("stdin");
    rustix::stdio::dup2_stdout(&one).expect("stdout");
    let mut guest = guest();
    assert_eq!(guest.call(HostOp::Read, &[0, 10], &[]).err(), libc::EAGAIN);
    assert_eq!(
        guest.call(HostOp::RecvMsg, &[0, 0, 0, 0, 10], &[]).err(),
        libc::EAGAIN
    );
    (&other).write_all(b"abc").expect("write");
    assert_eq!(guest.call(HostOp::Read, &[0, 10], &[]).ok(), 3);
    let block = vec![7u8; 128 << 10];
    while guest.call(HostOp::Write, &[1, block.len() as u64], &block).result > 0 {}
    assert_eq!(guest.call(HostOp::Write, &[1, 1], b"x").err(), libc::EAGAIN);
    assert!(is_blocking(&one));
}

fn files() {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(b"0123456789").expect("write");
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(2)).expect("seek");
    rustix::stdio::dup2_stdin(&file).expect("stdin");
    rustix::stdio::dup2_stdout(&file).expect("stdout");
    let mut guest = guest();
    let (answer, out) = guest.call_out(HostOp::Read, &[0, 3], &[], 3);
    assert_eq!((answer.ok(), &out[..]), (3, &b"234"[..]));
    assert_eq!(rustix::fs::tell(&file), Ok(5), "the position is shared");
    guest.call(HostOp::Write, &[1, 2], b"ab").ok();
    let mut rest = String::new();
    file.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "789");
    assert_eq!(guest.call(HostOp::Watch, &[0, 1], &[]).err(), libc::EPERM);
}

/// Becomes the leader of a session with a new terminal as its own, on the standard streams. Result: the
/// master side.
fn take_terminal() -> OwnedFd {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    // The terminal hangs up when the probe lets go of the master side at its end.
    crate::ignore(libc::SIGHUP);
    rustix::process::setsid().expect("setsid: a probe leads no group");
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("openpt");
    grantpt(&master).expect("grantpt");
    unlockpt(&master).expect("unlockpt");
    let name = ptsname(&master, Vec::new()).expect("ptsname");
    let slave = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("slave");
    rustix::process::ioctl_tiocsctty(&slave).expect("controlling terminal");
    rustix::stdio::dup2_stdin(&slave).expect("stdin");
    rustix::stdio::dup2_stdout(&slave).expect("stdout");
    master
}

const TCGETS: u64 = 0x5401;
const TCSETS: u64 = 0x5402;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCGPGRP: u64 = 0x540f;
const TIOCSPGRP: u64 = 0x5410;

fn terminal() {
    let master = take_terminal();
    let mut guest = guest();
    guest.call(HostOp::Watch, &[0, 1], &[]).ok();
    assert_eq!(guest.call(HostOp::Read, &[0, 10], &[]).err(), libc::EAGAIN);
    rustix::io::write(&master, b"typed\n").expect("write");
    guest.event_with(1, libc::EPOLLIN as u32);
    let (answer, out) = guest.call_out(HostOp::Read, &[0, 100], &[], 6);
    assert_eq!((answer.ok(), &out[..]), (6, &b"typed\n"[..]));
    assert!(
        is_blocking(rustix::stdio::stdin()),
        "the shared open file stays as it is"
    );
    guest.call(HostOp::Write, &[1, 4], b"text").ok();
    let size: [u8; 8] = [25, 0, 80, 0, 0, 0, 0, 0];
    guest.call(HostOp::Ioctl, &[1, TIOCSWINSZ, 8, 0], &size).ok();
    let (answer, out) = guest.call_out(HostOp::Ioctl, &[0, TIOCGWINSZ, 0, 8], &[], 8);
    answer.ok();
    assert_eq!(out, size);
    let (answer, settings) = guest.call_out(HostOp::Ioctl, &[0, TCGETS, 0, 36], &[], 36);
    answer.ok();
    for request in [TCSETS, TCSETS + 1, TCSETS + 2] {
        guest.call(HostOp::Ioctl, &[0, request, 36, 0], &settings).ok();
    }
    let own = guest.call(HostOp::Ioctl, &[0, TIOCGPGRP, 0, 4], &[]);
    assert_eq!((own.ok(), own.extra), (0, 1));
    assert_eq!(
        guest.call(HostOp::Ioctl, &[0, 0x5412, 1, 0], b"x").err(),
        libc::ENOTTY,
        "TIOCSTI"
    );
    assert_eq!(
        guest.call(HostOp::Ioctl, &[0, TCSETS, 35, 0], &settings).err(),
        libc::EINVAL
    );
    let file = guest.open(0, ".", libc::O_RDONLY, 0).ok();
    assert_eq!(
        guest.call(HostOp::Ioctl, &[file, TCGETS, 0, 36], &[]).err(),
        libc::ENOTTY
    );
}

fn background() {
    let _master = take_terminal();
    // This process plays the monitor: it must not be stopped by what it asks for itself.
    for signal in [libc::SIGTTOU, libc::SIGTTIN] {
        crate::ignore(signal);
    }
    let mut guest = guest();
    let (_, settings) = guest.call_out(HostOp::Ioctl, &[0, TCGETS, 0, 36], &[], 36);
    let mut other = Command::new("sleep")
        .arg("30")
        .process_group(0)
        .spawn()
        .expect("sleep");
    let group = Pid::from_raw(i32::try_from(other.id()).expect("small")).expect("a group");
    rustix::termios::tcsetpgrp(rustix::stdio::stdin(), group).expect("gives the terminal away");
    let read = guest.call(HostOp::Read, &[0, 10], &[]);
    assert_eq!((read.err(), read.extra), (libc::EIO, libc::SIGTTIN as u64));
    let set = guest.call(HostOp::Ioctl, &[0, TCSETS, 36, 0, 0], &settings);
    assert_eq!((set.err(), set.extra), (libc::EIO, libc::SIGTTOU as u64));
    guest.call(HostOp::Write, &[1, 1], b"x").ok();
    let mut stopping = settings.clone();
    stopping[13] |= 1; // TOSTOP in c_lflag
    guest.call(HostOp::Ioctl, &[0, TCSETS, 36, 0, 1], &stopping).ok();
    let write = guest.call(HostOp::Write, &[1, 1], b"x");
    assert_eq!((write.err(), write.extra), (libc::EIO, libc::SIGTTOU as u64));
    guest.call(HostOp::Write, &[1, 1, 1], b"x").ok();
    let theirs = guest.call(HostOp::Ioctl, &[0, TIOCGPGRP, 0, 4], &[]);
    assert_eq!((theirs.ok(), theirs.extra), (0, 0));
    assert_eq!(
        guest.call(HostOp::Ioctl, &[0, TIOCSPGRP, 4, 0, 0], &[0; 4]).extra,
        libc::SIGTTOU as u64
    );
    guest.call(HostOp::Ioctl, &[0, TIOCSPGRP, 4, 0, 1], &[0; 4]).ok();
    assert_eq!(guest.call(HostOp::Ioctl, &[0, TIOCGPGRP, 0, 4], &[]).extra, 1);
    other.kill().expect("kill");
    other.wait().expect("wait");
}

fn signals() {
    // A group of its own, so that the signals below reach the probe and its service only.
    rustix::process::setpgid(None, None).expect("setpgid");
    let sent = [
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::HUP,
        Signal::TSTP,
        Signal::TTIN,
        Signal::TTOU,
        Signal::WINCH,
        Signal::PIPE,
    ];
    sent.iter().for_each(|signal| crate::ignore(signal.as_raw()));
    // At once, while the service is still starting, and again.
    let mut guest = guest();
    for _ in 0..20 {
        for signal in sent {
            rustix::process::kill_current_process_group(signal).expect("kill");
        }
        guest.call(HostOp::Nop, &[], &[]).ok();
    }
    // The program's own job control stops the group, and the answer comes after it goes on.
    let status = std::fs::read_to_string(format!("/proc/{}/status", process(&guest).as_raw_nonzero()));
    let status = status.expect("status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("there");
        line.trim().trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(u64::from_str_radix(&field("SigBlk"), 16), Ok(0));
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Umask"), "0000");
    let tstp = guest.call(HostOp::Stop, &[libc::SIGTSTP as u64], &[]);
    tstp.ok();
}

/// Starts a service, says its process number, and dies without a word.
fn monitor() {
    let mut guest = guest();
    guest.call(HostOp::Nop, &[], &[]).ok();
    println!("{}", process(&guest).as_raw_nonzero());
    std::io::stdout().flush().expect("flush");
    rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).expect("kill");
    std::thread::sleep(Duration::from_secs(10));
}

fn monitor_dies() {
    let output = command("monitor").output().expect("starts");
    let pid: i32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("a process number");
    let start = Instant::now();
    while is_running(pid) {
        assert!(start.elapsed() < PATIENCE, "the service outlives its monitor");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Not gone, and not a zombie that waits for whoever inherited it.
fn is_running(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !stat.contains(") Z ")
}
