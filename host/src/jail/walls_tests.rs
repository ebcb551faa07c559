//! Namespaces and limits by themselves, each attack also without; and a service that was replaced by a program that makes every
//! call it may.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::calls::{self, Allowed, COMMON, When};
use super::files::{Granted, Rules};
use super::namespaces::{self, Network, Owners, Walls};
use super::tests::{End, SECRET, SECRET_PLACE, child};
use super::{limits, privileges};

/// Says so where the host allows no namespaces.
fn allowed() -> bool {
    let allowed = namespaces::allowed();
    if !allowed {
        crate::skipped::skip("the host allows no namespaces to this user");
    }
    allowed
}

fn opened(path: &Path) -> std::os::fd::OwnedFd {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).expect("opens")
}

fn opens(dir: impl AsFd, path: &str, flags: OFlags) -> Result<(), Errno> {
    rustix::fs::openat(dir, path, flags | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

/// What of the host is reached by paths, with namespaces alone: no Landlock, no filter of calls. A letter for each attack that worked.
fn reached(walls: bool) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let (mine, shown) = (folder.path().join("mine"), folder.path().join("shown"));
    for made in [&mine, &shown] {
        fs::create_dir(made).expect("a folder");
        fs::write(made.join("given"), b"content").expect("a file");
    }
    let outside = folder.path().join("outside");
    fs::write(&outside, b"secret").expect("a file");
    let victim = std::process::id();
    let answer = mine.join("answer");
    let end = child(|| {
        let roots = [(&mine, false), (&shown, true)].map(|(path, read_only)| {
            let root = opened(path);
            if walls {
                let severed = namespaces::severed(root.as_fd(), read_only);
                severed.ok().flatten().unwrap_or(root)
            } else {
                root
            }
        });
        if walls {
            let entered = namespaces::enter(Network::Host, Owners::Matter).ok() == Some(Walls::Own);
            // Who may trace sees other processes in any `/proc`.
            if !entered || privileges::drop_capabilities(&privileges::KEPT).is_err() {
                return 99;
            }
        }
        let mut worked = String::new();
        let mut attack = |letter: char, success: bool| {
            if success {
                worked.push(letter);
            }
        };
        attack('o', fs::read(&outside).is_ok());
        attack('u', opens(&roots[0], "../outside", OFlags::RDONLY).is_ok());
        let again = format!("/proc/self/fd/{}/../outside", roots[0].as_raw_fd());
        attack('p', fs::read(again).is_ok());
        attack('w', opens(&roots[1], "given", OFlags::RDWR).is_ok());
        attack('e', File::open(format!("/proc/{victim}/environ")).is_ok());
        attack('m', File::open(format!("/proc/{victim}/mem")).is_ok());
        // What was given still works, by its descriptor and by way of /proc.
        let given = opens(&roots[1], "given", OFlags::RDONLY).is_ok();
        let anew = File::create(format!("/proc/self/fd/{}/answer", roots[0].as_raw_fd()));
        let told = anew.and_then(|mut file| std::io::Write::write_all(&mut file, worked.as_bytes()));
        i32::from(!given || told.is_err())
    });
    assert_eq!(end, End::Code(0));
    fs::read_to_string(&answer).expect("the child's answer")
}

#[test]
fn in_namespaces_of_its_own_a_service_finds_nothing_of_the_host_by_any_path() {
    if !allowed() {
        return;
    }
    assert_eq!(reached(false), "oupwem", "without them all attacks work");
    assert_eq!(reached(true), "", "attacks that worked inside");
}

/// Writes below a read-only root are refused by the mount, whoever asks and whatever the root is.
#[test]
fn a_tree_below_a_severed_root_is_read_only_throughout() {
    if !allowed() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("deep")).expect("a folder");
    let root = opened(folder.path());
    let make = |root: BorrowedFd<'_>| rustix::fs::mkdirat(root, "deep/made", Mode::RWXU);
    let severed = namespaces::severed(root.as_fd(), true)
        .expect("it can be")
        .expect("allowed");
    assert_eq!(make(severed.as_fd()), Err(Errno::ROFS));
    let writable = namespaces::severed(root.as_fd(), false)
        .expect("it can be")
        .expect("allowed");
    assert_eq!(make(writable.as_fd()), Ok(()));
}

#[test]
fn without_network_not_even_the_hosts_loopback_is_there() {
    if !allowed() {
        return;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    let reaches = |network| {
        child(|| {
            if namespaces::enter(network, Owners::Matter).ok() != Some(Walls::Own) {
                return 99;
            }
            i32::from(TcpStream::connect(address).is_err())
        })
    };
    assert_eq!(reaches(Network::Host), End::Code(0));
    assert_eq!(reaches(Network::Empty), End::Code(1));
}

/// A user without any right has them for containers, by a user namespace, where the host lets users have one.
#[test]
fn who_has_no_rights_gets_walls_where_no_owners_are_seen() {
    let nobody = privileges::Identity {
        uid: 65_534,
        gid: 65_534,
        groups: Vec::new(),
    };
    let entered = |owners| {
        child(|| {
            // SAFETY: no arguments.
            let is_root = unsafe { libc::geteuid() } == 0;
            let became = !is_root || privileges::become_user(&nobody).is_ok();
            if !became || privileges::drop_capabilities(&[]).is_err() {
                return 99;
            }
            match namespaces::enter(Network::Host, owners) {
                Ok(Walls::Own) => i32::from(fs::read_dir("/").map_or(0, Iterator::count) != 1),
                Ok(Walls::Hosts) => 50,
                Err(_) => 99,
            }
        })
    };
    assert_eq!(
        entered(Owners::Matter),
        End::Code(50),
        "the rest of the jail stands"
    );
    match entered(Owners::DoNotMatter) {
        End::Code(50) => crate::skipped::skip("the host allows no user namespaces"),
        end => assert_eq!(end, End::Code(0)),
    }
}

#[test]
fn limits_are_set_and_hold() {
    let allocates = |limited: bool| {
        child(|| {
            if limited && limits::set(limits::SERVICE).is_err() {
                return 99;
            }
            let len = 12 << 30;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping, wherever there is room.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, -1, 0) };
            i32::from(at == libc::MAP_FAILED)
        })
    };
    assert_eq!(allocates(false), End::Code(0));
    assert_eq!(allocates(true), End::Code(1));
    let end = child(|| {
        let set = limits::set(limits::SERVICE).and_then(|()| limits::set(limits::MONITOR));
        let holds = limits::SERVICE.iter().all(|&(resource, _, most, _)| {
            let now = rustix::process::getrlimit(resource);
            now.maximum.is_some_and(|limit| limit <= most)
        });
        i32::from(set.is_err() || !holds)
    });
    assert_eq!(end, End::Code(0));
}

/// A generator (splitmix64).
struct Dice(u64);

impl Dice {
    fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.any() % of.len() as u64) as usize]
    }
}

/// Calls that end a trial at once or leave it waiting, and reach nobody else.
const IDLE: [i64; 14] = [
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_restart_syscall,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
];
/// Calls that a trial makes.
const CALLS: usize = 60;
const TRIALS: u64 = 400;
/// A trial that takes longer waits for something.
const PATIENCE: Duration = Duration::from_millis(400);
/// Code of a trial that reached what it must not.
const BREACH: i32 = 77;

/// What a replaced service goes for.
struct Aims {
    mine: PathBuf,
    shown: PathBuf,
    outside: PathBuf,
    victim: u64,
    place: u64,
    /// A descriptor of the victim's. Not its standard input, which may be a device whose mode and owner would stay changed.
    open: i32,
}

const SECRET_TEXT: &[u8] = b"what lies outside of all volumes";

/// One trial: enters the jail, then makes calls with arguments that lead out.
fn trial(aims: &Aims, jailed: bool, seed: u64) -> i32 {
    // Signals to the own group are in the table, and are to hit nobody else.
    // SAFETY: no arguments; and descriptors of the test's that nothing in this child uses any more.
    unsafe {
        libc::setsid();
        // Not `/dev/null`: a trial may change modes and owners of what it has open, and root's would last.
        let streams = libc::memfd_create(c"streams".as_ptr(), 0);
        for stream in 0..3 {
            libc::dup2(streams, stream);
        }
        libc::close_range(3, u32::MAX, 0);
    }
    // Names without a folder are to lead from the volume too, and not into the sources.
    if std::env::set_current_dir(&aims.mine).is_err() {
        return 99;
    }
    let roots = [(&aims.mine, false), (&aims.shown, true)].map(|(path, read_only)| {
        let root = opened(path);
        let severed = namespaces::severed(root.as_fd(), read_only).ok().flatten();
        (severed.filter(|_| jailed).unwrap_or(root), read_only)
    });
    if jailed {
        let granted = roots.each_ref().map(|(root, read_only)| Granted {
            file: root.as_fd(),
            read_only: *read_only,
        });
        let closed = Rules::new(&granted, &[]).and_then(|rules| {
            privileges::no_new_privileges()?;
            limits::set(limits::SERVICE)?;
            namespaces::enter(Network::Host, Owners::Matter)?;
            privileges::drop_capabilities(&privileges::KEPT)?;
            rules.close()?;
            calls::close(&calls::SERVICE)
        });
        if closed.is_err() {
            return 99;
        }
    }
    let (victim, outside) = (aims.victim, aims.outside.display().to_string());
    let own = roots[0].0.as_raw_fd();
    let paths: Vec<Vec<u8>> = [
        outside.clone(),
        "../outside".to_owned(),
        "link".to_owned(),
        "given".to_owned(),
        format!("/proc/self/fd/{own}/../outside"),
        format!("/proc/{victim}/mem"),
        format!("/proc/{victim}/environ"),
        format!("/proc/{victim}/fd/{}", aims.open),
        format!("/proc/self/../{victim}/mem"),
        String::new(),
    ]
    .into_iter()
    .map(|path| path.into_bytes().into_iter().chain([0]).collect())
    .collect();
    let mut buffer = vec![0u8; 16 << 10];
    let mut dice = Dice(seed);
    let numbers: Vec<&Allowed> = COMMON
        .iter()
        .chain(calls::SERVICE.own)
        .filter(|one| !IDLE.contains(&one.number))
        .collect();
    for _ in 0..CALLS {
        let one = dice.pick(&numbers);
        let mut args = [0u64; 6];
        for arg in &mut args {
            *arg = match dice.any() % 12 {
                0..3 => dice.pick(&paths.iter().map(|p| p.as_ptr() as u64).collect::<Vec<_>>()),
                3..5 => own as u64 + dice.any() % 3,
                5 => dice.any() % 24,
                6 => libc::AT_FDCWD as u64,
                7..9 => buffer.as_mut_ptr() as u64,
                9 => victim,
                10 => aims.place,
                _ => dice.pick(&[0, 1, 2, 8, 64, 4096, 0o100, 0o1000, 0x1000]),
            };
        }
        obey(one.when, &mut args);
        // SAFETY: it may do anything to this process, which is the point; the parent looks at what it did to others.
        let result =
            unsafe { libc::syscall(one.number, args[0], args[1], args[2], args[3], args[4], args[5]) };
        if result > 2 && gives_descriptor(one.number) && leads_out(result as i32, aims) {
            return BREACH;
        }
        if buffer.windows(SECRET_TEXT.len()).any(|w| w == SECRET_TEXT) {
            return BREACH;
        }
    }
    0
}

/// Makes an argument one that the filter accepts: a violation ends the trial, and shows nothing.
fn obey(when: When, args: &mut [u64; 6]) {
    match when {
        When::Always => {}
        When::OneOf(at, values) => args[usize::from(at)] = u64::from(values[0]),
        When::Without(at, bits) => args[usize::from(at)] &= !bits,
        When::With(at, bits) => args[usize::from(at)] |= bits,
        When::Masked(at, mask, value) => {
            args[usize::from(at)] = args[usize::from(at)] & !mask | value;
        }
        When::Own(at) => args[usize::from(at)] = u64::from(std::process::id()),
    }
}

fn gives_descriptor(number: i64) -> bool {
    [libc::SYS_open, libc::SYS_openat, libc::SYS_openat2].contains(&number)
}

/// Whether a descriptor that was given out is the file outside, or something of another process's.
fn leads_out(fd: i32, aims: &Aims) -> bool {
    // SAFETY: a number that the kernel has just given out; borrowed for one question.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut word = [0; 8];
    if rustix::io::pread(fd, &mut word, aims.place).is_ok_and(|n| n == 8)
        && u64::from_le_bytes(word) == SECRET
    {
        return true;
    }
    let mut text = [0; SECRET_TEXT.len()];
    rustix::io::pread(fd, &mut text, 0).is_ok() && text == SECRET_TEXT
}

/// Trials that reached something, and whether anything outside has changed.
fn campaign(jailed: bool) -> (u64, bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let opens = tempfile::tempfile().expect("a file");
    let root = folder.path();
    let aims = Aims {
        mine: root.join("mine"),
        shown: root.join("shown"),
        outside: root.join("outside"),
        victim: u64::from(std::process::id()),
        place: &raw const SECRET_PLACE as u64,
        open: opens.as_raw_fd(),
    };
    let prepare = || {
        for made in [&aims.mine, &aims.shown] {
            let _ = fs::remove_dir_all(made);
            fs::create_dir(made).expect("a folder");
            fs::write(made.join("given"), b"content").expect("a file");
            std::os::unix::fs::symlink(&aims.outside, made.join("link")).expect("a link");
        }
        fs::write(&aims.outside, SECRET_TEXT).expect("a file");
    };
    let (mut breaches, mut changed) = (0, false);
    for seed in 0..TRIALS {
        prepare();
        let before = fs::metadata(&aims.outside).expect("it is there");
        let end = bounded(|| trial(&aims, jailed, seed));
        assert_ne!(end, End::Code(99), "the jail closes");
        breaches += u64::from(end == End::Code(BREACH));
        changed |= fs::read(&aims.outside).ok().as_deref() != Some(SECRET_TEXT)
            || fs::metadata(&aims.outside).is_ok_and(|now| !same(&before, &now))
            || fs::read_dir(root).expect("a folder").count() != 3
            || fs::read(aims.shown.join("given")).ok().as_deref() != Some(b"content");
        // SAFETY: our own static.
        changed |= unsafe { (&raw const SECRET_PLACE).read_volatile() } != SECRET;
        if changed || breaches > 3 {
            // Without the jail: enough is seen.
            break;
        }
    }
    (breaches, changed)
}

fn same(before: &fs::Metadata, now: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let key = |m: &fs::Metadata| {
        (
            m.mode(),
            m.uid(),
            m.gid(),
            m.ino(),
            m.nlink(),
            m.len(),
            m.mtime_nsec(),
        )
    };
    key(before) == key(now)
}

/// [`child`], ended when it waits.
fn bounded(body: impl FnOnce() -> i32) -> End {
    // SAFETY: as in `child`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let since = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: our own child and variable.
        let ended = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if ended == pid {
            return End::of(status);
        }
        if since.elapsed() > PATIENCE {
            // SAFETY: our own child, not waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The service replaced by a program that makes every call its filter allows.
#[test]
fn a_replaced_service_that_makes_every_call_it_may_reaches_nothing() {
    let (breaches, changed) = campaign(false);
    assert!(
        breaches > 0 || changed,
        "without the jail the campaign reaches something, or it proves nothing"
    );
    assert_eq!(campaign(true), (0, false), "trials that reached something");
}
