//! Files, directories, names and attributes.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use cloak_abi::hostop::{HostOp, ROOT_FD, resolve};
use tempfile::TempDir;

use crate::guest::{Answer, Guest, Setup};
use cloak_host::os::Access;

pub const TESTS: &[(&str, fn())] = &[
    ("open_gives_the_status_too", open_status),
    ("reads_and_writes_at_offsets_and_positions", reads_and_writes),
    ("paths_stay_in_the_mount", paths_stay),
    ("one_component_is_one_component", one_component),
    ("names_are_made_moved_and_removed", names),
    ("links_do_not_lead_out", links),
    ("attributes_are_read_and_changed", attributes),
    ("extended_attributes_round_trip", xattrs),
    ("directories_are_listed_and_listed_again", directories),
    ("locks_sizes_seeks_and_syncs", locks_sizes),
    ("ranges_are_copied_and_sent", ranges),
    ("a_read_only_mount_stays_as_it_is", read_only),
    ("the_hosts_procfs_is_refused", procfs),
    ("descriptors_are_reused_and_roots_are_not_closed", descriptors),
];

const ROOT: u64 = ROOT_FD as u64;
const CREATE: i32 = libc::O_CREAT | libc::O_RDWR;

fn setup() -> (TempDir, Guest) {
    let directory = tempfile::tempdir().expect("tempdir");
    let guest = Guest::new(directory.path());
    (directory, guest)
}

/// An operation with one path: arguments and where its length goes.
fn path_call(guest: &mut Guest, op: HostOp, mut args: [u64; 6], len_arg: usize, path: &str) -> Answer {
    args[len_arg] = path.len() as u64;
    guest.call(op, &args, path.as_bytes())
}

fn two_paths(guest: &mut Guest, op: HostOp, old: &str, new: &str, flags: u64) -> Answer {
    let args = [ROOT, old.len() as u64, ROOT, new.len() as u64, flags];
    guest.call(op, &args, [old, new].concat().as_bytes())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn write_file(directory: &Path, name: &str, content: &[u8]) {
    std::fs::write(directory.join(name), content).expect("write");
}

fn open_status() {
    let (directory, mut guest) = setup();
    write_file(directory.path(), "f", b"12345");
    let path = b"f";
    let (answer, stat) = guest.call_out(HostOp::Open, &[ROOT, 0, 0, 1, 0], path, 144);
    let metadata = std::fs::metadata(directory.path().join("f")).expect("stat");
    assert_eq!(answer.extra, u64::from(metadata.mode()));
    assert_eq!(word(&stat, 24), metadata.mode());
    assert_eq!(word(&stat, 48), 5);
    let fd = answer.ok();
    let (again, same) = guest.call_out(HostOp::FStat, &[fd], &[], 144);
    again.ok();
    assert_eq!(stat, same);
    let (answer, statfs) = guest.call_out(HostOp::StatFs, &[fd], &[], 120);
    answer.ok();
    assert!(word(&statfs, 8) > 0, "block size");
    assert_eq!(guest.open(0, "missing", 0, 0).err(), libc::ENOENT);
    assert_eq!(guest.open(0, "f/x", 0, 0).err(), libc::ENOTDIR);
    assert_eq!(guest.open(7, "f", 0, 0).err(), libc::EBADF);
}

fn reads_and_writes() {
    let (directory, mut guest) = setup();
    let fd = guest.open(0, "data", CREATE, 0o640).ok();
    let mode = std::fs::metadata(directory.path().join("data"))
        .expect("stat")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640, "no mask of the service's own");
    assert_eq!(guest.call(HostOp::Write, &[fd, 6], b"hello ").ok(), 6);
    assert_eq!(guest.call(HostOp::Write, &[fd, 5], b"world").ok(), 5);
    let (answer, out) = guest.call_out(HostOp::PRead, &[fd, 100, 6], &[], 5);
    assert_eq!((answer.ok(), &out[..]), (5, &b"world"[..]));
    assert_eq!(
        guest.call(HostOp::PRead, &[fd, 10, 11], &[]).ok(),
        0,
        "end of file"
    );
    assert_eq!(guest.call(HostOp::PWrite, &[fd, 4, 3], b"XXXX").ok(), 4);
    assert_eq!(guest.call(HostOp::Seek, &[fd, 0, 0], &[]).ok(), 0);
    let (answer, out) = guest.call_out(HostOp::Read, &[fd, 100], &[], 11);
    assert_eq!((answer.ok(), &out[..]), (11, &b"helXXXXorld"[..]));
    assert_eq!(guest.call(HostOp::Read, &[fd, 100], &[]).ok(), 0);
    let big = vec![7u8; 128 << 10];
    assert_eq!(
        guest.call(HostOp::PWrite, &[fd, big.len() as u64, 0], &big).ok(),
        big.len() as u64
    );
    let (answer, out) = guest.call_out(HostOp::PRead, &[fd, big.len() as u64, 0], &[], big.len());
    assert_eq!(answer.ok(), big.len() as u64);
    assert_eq!(out, big);
    assert_eq!(
        guest
            .call(HostOp::PRead, &[fd, big.len() as u64 + 1, 0], &[])
            .err(),
        libc::EINVAL
    );
    assert_eq!(
        guest.call(HostOp::PRead, &[fd, 1, u64::MAX], &[]).err(),
        libc::EINVAL
    );
    let appended = guest.open(0, "data", libc::O_WRONLY | libc::O_APPEND, 0).ok();
    guest.call(HostOp::Write, &[appended, 1], b"!").ok();
    assert_eq!(
        std::fs::metadata(directory.path().join("data"))
            .expect("stat")
            .len(),
        (128 << 10) + 1
    );
    let synchronous = guest.open(0, "sync", CREATE | libc::O_SYNC, 0o600).ok();
    assert_eq!(guest.call(HostOp::PWrite, &[synchronous, 3, 0], b"abc").ok(), 3);
}

fn paths_stay() {
    let (outer, _) = setup();
    std::fs::create_dir(outer.path().join("in")).expect("mkdir");
    write_file(outer.path(), "secret", b"s");
    let inner = outer.path().join("in");
    std::os::unix::fs::symlink("../secret", inner.join("up")).expect("symlink");
    std::os::unix::fs::symlink("/secret", inner.join("absolute")).expect("symlink");
    std::os::unix::fs::symlink("/etc/passwd", inner.join("passwd")).expect("symlink");
    let mut guest = Guest::new(&inner);
    for path in [
        "../secret",
        "up",
        "absolute",
        "/../secret",
        "passwd",
        "./../../../../etc/passwd",
    ] {
        assert_eq!(guest.open(0, path, 0, 0).err(), libc::ENOENT, "{path}");
        for (op, args) in [
            (HostOp::ChMod, [ROOT, 0o777, 0, 0, 0, 0]),
            (HostOp::ChOwn, [ROOT, 1, 1, 0, 0, 0]),
            (HostOp::StatX, [ROOT, 0, 0x7ff, 0, 0, 0]),
            (HostOp::Access, [ROOT, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(
                path_call(&mut guest, op, args, 3, path).err(),
                libc::ENOENT,
                "{op:?} {path}"
            );
        }
    }
    write_file(&inner, "secret", b"mine");
    assert!(
        guest.open(0, "absolute", 0, 0).result >= 0,
        "a link is relative to the mount"
    );
    // `..` of the root is the root.
    assert_eq!(
        path_call(&mut guest, HostOp::MkDir, [ROOT, 0o755, 0, 0, 0, 0], 3, "../made").ok(),
        0
    );
    assert!(inner.join("made").is_dir());
    for bad in ["", "nul\0inside"] {
        assert!(guest.open(0, bad, 0, 0).result < 0);
    }
    assert_eq!(guest.open(0, &"a/".repeat(2048), 0, 0).err(), libc::ENAMETOOLONG);
}

fn component(guest: &mut Guest, dir: u64, name: &str, flags: i32) -> Answer {
    let args = [dir, flags as u64, 0, name.len() as u64, resolve::COMPONENT];
    guest.call(HostOp::Open, &args, name.as_bytes())
}

fn one_component() {
    let (directory, mut guest) = setup();
    write_file(directory.path(), "f", b"x");
    std::os::unix::fs::symlink("f", directory.path().join("l")).expect("symlink");
    component(&mut guest, ROOT, "f", 0).ok();
    assert_eq!(component(&mut guest, ROOT, "l", 0).err(), libc::ELOOP);
    let link = component(&mut guest, ROOT, "l", libc::O_PATH | libc::O_NOFOLLOW);
    assert_eq!(link.extra as u32 & libc::S_IFMT, libc::S_IFLNK);
    let (answer, out) = guest.call_out(HostOp::ReadLink, &[link.ok(), 0, 0, 0, 1], &[], 1);
    assert_eq!((answer.ok(), &out[..]), (1, &b"f"[..]));
    assert_eq!(component(&mut guest, ROOT, "..", 0).err(), libc::EINVAL);
    assert_eq!(component(&mut guest, ROOT, "a/b", 0).err(), libc::EINVAL);
    component(&mut guest, ROOT, ".", libc::O_DIRECTORY).ok();
    for (name, flags, expected) in [
        ("f", 0, 0),
        ("l", 0, -libc::ELOOP),
        ("l", libc::AT_SYMLINK_NOFOLLOW, 0),
        ("..", 0, -libc::EINVAL),
    ] {
        let args = [
            ROOT,
            flags as u64,
            u64::from(libc::STATX_BASIC_STATS),
            name.len() as u64,
            1,
        ];
        assert_eq!(
            guest.call(HostOp::StatX, &args, name.as_bytes()).result,
            i64::from(expected),
            "{name}"
        );
        let args = [ROOT, 4, flags as u64, name.len() as u64, 1];
        assert_eq!(
            guest.call(HostOp::Access, &args, name.as_bytes()).result,
            i64::from(expected),
            "{name}"
        );
    }
    assert_eq!(
        guest.call(HostOp::Open, &[ROOT, 0, 0, 1, 2], b"f").err(),
        libc::EINVAL,
        "unknown bits"
    );
}

fn names() {
    let (directory, mut guest) = setup();
    let at = |name: &str| directory.path().join(name);
    path_call(&mut guest, HostOp::MkDir, [ROOT, 0o751, 0, 0, 0, 0], 3, "d").ok();
    assert_eq!(std::fs::metadata(at("d")).expect("made").mode() & 0o777, 0o751);
    path_call(&mut guest, HostOp::MkDir, [ROOT, 0o755, 0, 0, 0, 0], 3, "d/e/").ok();
    path_call(
        &mut guest,
        HostOp::MkNod,
        [ROOT, u64::from(libc::S_IFIFO | 0o600), 0, 0, 0, 0],
        3,
        "d/fifo",
    )
    .ok();
    let device = [ROOT, u64::from(libc::S_IFCHR | 0o600), 0x103, 0, 0, 0];
    assert_eq!(
        path_call(&mut guest, HostOp::MkNod, device, 3, "null").err(),
        libc::EPERM
    );
    write_file(directory.path(), "a", b"a");
    two_paths(&mut guest, HostOp::Rename, "a", "d/b", 0).ok();
    assert!(at("d/b").exists() && !at("a").exists());
    two_paths(&mut guest, HostOp::Link, "d/b", "c", 0).ok();
    assert_eq!(std::fs::metadata(at("c")).expect("linked").nlink(), 2);
    let excl = u64::from(libc::RENAME_NOREPLACE);
    assert_eq!(
        two_paths(&mut guest, HostOp::Rename, "c", "d", excl).err(),
        libc::EEXIST
    );
    assert_eq!(
        two_paths(&mut guest, HostOp::Rename, "c", "x", 1 << 9).err(),
        libc::EINVAL
    );
    let target = "anything at all";
    let input = [target, "d/s"].concat();
    guest
        .call(
            HostOp::SymLink,
            &[ROOT, target.len() as u64, 0, 3],
            input.as_bytes(),
        )
        .ok();
    let (answer, out) = guest.call_out(HostOp::ReadLink, &[ROOT, 3, 0, 0, 0], b"d/s", target.len());
    assert_eq!(
        (answer.ok() as usize, out),
        (target.len(), target.as_bytes().to_vec())
    );
    assert_eq!(
        guest.call(HostOp::ReadLink, &[ROOT, 1, 0, 0, 0], b"c").err(),
        libc::EINVAL
    );
    assert_eq!(
        path_call(&mut guest, HostOp::Unlink, [ROOT, 0, 0, 0, 0, 0], 3, "d").err(),
        libc::EISDIR
    );
    for name in ["d/b", "d/s", "d/fifo", "c"] {
        path_call(&mut guest, HostOp::Unlink, [ROOT, 0, 0, 0, 0, 0], 3, name).ok();
    }
    let remove_dir = libc::AT_REMOVEDIR as u64;
    for name in ["d/e", "d"] {
        path_call(
            &mut guest,
            HostOp::Unlink,
            [ROOT, remove_dir, 0, 0, 0, 0],
            3,
            name,
        )
        .ok();
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 0);
    for name in ["/", "//", ".."] {
        let answer = path_call(
            &mut guest,
            HostOp::Unlink,
            [ROOT, remove_dir, 0, 0, 0, 0],
            3,
            name,
        );
        assert!(answer.result < 0, "{name}");
    }
}

fn links() {
    let (outer, _) = setup();
    let inner = outer.path().join("in");
    std::fs::create_dir(&inner).expect("mkdir");
    write_file(outer.path(), "secret", b"s");
    std::os::unix::fs::symlink("../secret", inner.join("up")).expect("symlink");
    let mut guest = Guest::new(&inner);
    let follow = libc::AT_SYMLINK_FOLLOW as u64;
    assert_eq!(
        two_paths(&mut guest, HostOp::Link, "up", "stolen", follow).err(),
        libc::ENOENT
    );
    assert_eq!(
        two_paths(&mut guest, HostOp::Link, "../secret", "stolen", 0).err(),
        libc::ENOENT
    );
    // The link itself may be linked.
    two_paths(&mut guest, HostOp::Link, "up", "up2", 0).ok();
    assert!(
        std::fs::symlink_metadata(inner.join("up2"))
            .expect("there")
            .is_symlink()
    );
    // A file without a name gets one by its descriptor.
    let fd = guest.open(0, ".", libc::O_TMPFILE | libc::O_RDWR, 0o600).ok();
    guest.call(HostOp::Link, &[fd, 0, ROOT, 5, 0], b"named").ok();
    assert!(inner.join("named").is_file());
}

fn attributes() {
    let (directory, mut guest) = setup();
    write_file(directory.path(), "f", b"x");
    std::os::unix::fs::symlink("f", directory.path().join("l")).expect("symlink");
    let metadata = || std::fs::metadata(directory.path().join("f")).expect("stat");
    path_call(&mut guest, HostOp::ChMod, [ROOT, 0o4751, 0, 0, 0, 0], 3, "l").ok();
    assert_eq!(metadata().mode() & 0o7777, 0o4751);
    let fd = guest.open(0, "f", libc::O_RDONLY, 0).ok();
    guest.call(HostOp::ChMod, &[fd, 0o600, 0, 0], &[]).ok();
    assert_eq!(metadata().mode() & 0o7777, 0o600);
    let place = guest.open(0, "f", libc::O_PATH, 0).ok();
    guest.call(HostOp::ChMod, &[place, 0o640, 0, 0], &[]).ok();
    assert_eq!(metadata().mode() & 0o7777, 0o640);
    let keep = u64::from(u32::MAX);
    let nofollow = libc::AT_SYMLINK_NOFOLLOW as u64;
    path_call(
        &mut guest,
        HostOp::ChOwn,
        [ROOT, keep, keep, 0, nofollow, 0],
        3,
        "l",
    )
    .ok();
    guest
        .call(HostOp::ChOwn, &[fd, u64::from(metadata().uid()), keep, 0, 0], &[])
        .ok();
    let mut times = Vec::new();
    for value in [11i64, 12, 13, 14] {
        times.extend_from_slice(&value.to_ne_bytes());
    }
    guest.call(HostOp::UTimes, &[fd, 0, 0, 0], &times).ok();
    assert_eq!(
        (metadata().atime(), metadata().mtime(), metadata().mtime_nsec()),
        (11, 13, 14)
    );
    times[0] = 99;
    guest.call(HostOp::UTimes, &[place, 0, 0, 0], &times).ok();
    assert_eq!(metadata().atime(), 99);
    times.push(b'l');
    times[0] = 55;
    guest.call(HostOp::UTimes, &[ROOT, 0, 0, 1], &times).ok();
    assert_eq!(metadata().atime(), 55);
    let mask = u64::from(libc::STATX_BASIC_STATS);
    for (args, path) in [
        ([ROOT, 0, mask, 1, 0], "l"),
        ([fd, 0, mask, 0, 0], ""),
        ([place, 0, mask, 0, 0], ""),
    ] {
        let (answer, statx) = guest.call_out(HostOp::StatX, &args, path.as_bytes(), 256);
        answer.ok();
        assert_eq!(word(&statx, 28) & 0xffff, metadata().mode());
    }
    let (answer, statx) = guest.call_out(HostOp::StatX, &[ROOT, nofollow, mask, 1, 0], b"l", 256);
    answer.ok();
    assert_eq!(word(&statx, 28) & libc::S_IFMT, libc::S_IFLNK);
    guest.call(HostOp::Access, &[ROOT, 4, 0, 1, 0], b"l").ok();
    guest.call(HostOp::Access, &[fd, 6, 0, 0, 0], &[]).ok();
    assert_eq!(
        guest.call(HostOp::Access, &[ROOT, 1, 0, 1, 0], b"l").err(),
        libc::EACCES
    );
    assert_eq!(
        guest.call(HostOp::Access, &[ROOT, 0, 0, 4, 0], b"none").err(),
        libc::ENOENT
    );
}

fn xattrs() {
    let (directory, mut guest) = setup();
    write_file(directory.path(), "f", b"x");
    let name = "user.cloak";
    let (n, f) = (name.len() as u64, 1);
    let set = guest.call(
        HostOp::SetXattr,
        &[ROOT, n, 5, f, 0, 0],
        [name, "f", "value"].concat().as_bytes(),
    );
    if set.result == -i64::from(libc::EOPNOTSUPP) {
        eprintln!("skipped: {} has no user attributes", directory.path().display());
        return;
    }
    set.ok();
    let create = libc::XATTR_CREATE as u64;
    let again = [name, "f", "value"].concat();
    assert_eq!(
        guest
            .call(HostOp::SetXattr, &[ROOT, n, 5, f, 0, create], again.as_bytes())
            .err(),
        libc::EEXIST
    );
    let path = [name, "f"].concat();
    let (answer, value) = guest.call_out(HostOp::GetXattr, &[ROOT, n, 100, f, 0], path.as_bytes(), 5);
    assert_eq!((answer.ok(), &value[..]), (5, &b"value"[..]));
    assert_eq!(
        guest
            .call(HostOp::GetXattr, &[ROOT, n, 0, f, 0], path.as_bytes())
            .ok(),
        5,
        "asks the size"
    );
    assert_eq!(
        guest
            .call(HostOp::GetXattr, &[ROOT, n, 2, f, 0], path.as_bytes())
            .err(),
        libc::ERANGE
    );
    let fd = guest.open(0, "f", libc::O_RDONLY, 0).ok();
    let (answer, names) = guest.call_out(HostOp::ListXattr, &[fd, 0, 1000, 0, 0], &[], 1000);
    let len = answer.ok() as usize;
    assert!(
        names[..len]
            .split(|b| *b == 0)
            .any(|entry| entry == name.as_bytes())
    );
    guest
        .call(HostOp::RemoveXattr, &[ROOT, n, 0, f, 0], path.as_bytes())
        .ok();
    assert_eq!(
        guest
            .call(HostOp::GetXattr, &[fd, n, 100, 0, 0], name.as_bytes())
            .err(),
        libc::ENODATA
    );
}

fn directories() {
    let (directory, mut guest) = setup();
    for n in 0..500 {
        write_file(directory.path(), &format!("file-{n}"), b"");
    }
    let fd = guest.open(0, ".", libc::O_RDONLY | libc::O_DIRECTORY, 0).ok();
    for restart in [0, 1] {
        let mut seen = 0;
        let mut again = restart;
        loop {
            let (answer, records) = guest.call_out(HostOp::GetDents, &[fd, 4096, again], &[], 4096);
            again = 0;
            let len = answer.ok() as usize;
            if len == 0 {
                break;
            }
            let mut at = 0;
            while at < len {
                at += usize::from(u16::from_ne_bytes([records[at + 16], records[at + 17]]));
                seen += 1;
            }
        }
        assert_eq!(seen, 502);
    }
    assert_eq!(
        guest.call(HostOp::GetDents, &[ROOT, 4096, 0], &[]).err(),
        libc::EBADF,
        "roots are places"
    );
}

fn locks_sizes() {
    let (directory, mut guest) = setup();
    let one = guest.open(0, "f", CREATE, 0o600).ok();
    let two = guest.open(0, "f", CREATE, 0o600).ok();
    guest.call(HostOp::Truncate, &[one, 10_000], &[]).ok();
    assert_eq!(
        guest.call(HostOp::Truncate, &[one, u64::MAX], &[]).err(),
        libc::EINVAL
    );
    guest.call(HostOp::Allocate, &[one, 0, 10_000, 10_000], &[]).ok();
    assert_eq!(
        std::fs::metadata(directory.path().join("f")).expect("stat").len(),
        20_000
    );
    assert_eq!(
        guest
            .call(HostOp::Seek, &[one, 5, libc::SEEK_END as u64], &[])
            .ok(),
        20_005
    );
    assert_eq!(
        guest
            .call(HostOp::Seek, &[one, (-5i64) as u64, libc::SEEK_CUR as u64], &[])
            .ok(),
        20_000
    );
    assert_eq!(guest.call(HostOp::Seek, &[one, 0, 77], &[]).err(), libc::EINVAL);
    for kind in 0..3 {
        guest.call(HostOp::Sync, &[one, kind], &[]).ok();
    }
    guest.call(HostOp::Sync, &[one, 3, 0, 4096], &[]).ok();
    assert_eq!(
        guest.call(HostOp::Sync, &[one, 3, 0, u64::MAX], &[]).err(),
        libc::EINVAL
    );
    assert_eq!(guest.call(HostOp::Sync, &[one, 4], &[]).err(), libc::EINVAL);
    guest.call(HostOp::Flock, &[one, libc::LOCK_EX as u64], &[]).ok();
    assert_eq!(
        guest.call(HostOp::Flock, &[two, libc::LOCK_EX as u64], &[]).err(),
        libc::EAGAIN
    );
    guest.call(HostOp::Flock, &[one, libc::LOCK_UN as u64], &[]).ok();
    let copy = guest.call(HostOp::Dup, &[one], &[]).ok();
    let mut lock = [0u8; 32];
    lock[0] = libc::F_WRLCK as u8;
    lock[16] = 100;
    guest.call(HostOp::Lock, &[one, 1], &lock).ok();
    guest.call(HostOp::Lock, &[copy, 1], &lock).ok();
    assert_eq!(guest.call(HostOp::Lock, &[two, 1], &lock).err(), libc::EAGAIN);
    let (answer, out) = guest.call_out(HostOp::Lock, &[two, 0], &lock, 32);
    answer.ok();
    assert_eq!((out[0], out[16]), (libc::F_WRLCK as u8, 100));
}

fn ranges() {
    let (directory, mut guest) = setup();
    let content: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
    write_file(directory.path(), "from", &content);
    let from = guest.open(0, "from", libc::O_RDONLY, 0).ok();
    let to = guest.open(0, "to", CREATE, 0o600).ok();
    assert_eq!(
        guest
            .call(HostOp::CopyRange, &[from, 1000, to, 0, 49_000, 0], &[])
            .ok(),
        49_000
    );
    assert_eq!(
        std::fs::read(directory.path().join("to")).expect("read"),
        content[1000..]
    );
    let pair = guest.call(
        HostOp::SocketPair,
        &[libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0],
        &[],
    );
    assert_eq!(
        guest
            .call(HostOp::CopyRange, &[from, 10, pair.ok(), 0, 100, 0], &[])
            .ok(),
        100
    );
    let (answer, out) = guest.call_out(HostOp::Read, &[pair.extra, 1000], &[], 100);
    assert_eq!((answer.ok(), &out[..]), (100, &content[10..110]));
    // With the position of the file.
    guest
        .call(HostOp::CopyRange, &[from, 0, pair.ok(), 0, 7, 3], &[])
        .ok();
    assert_eq!(guest.call(HostOp::Seek, &[from, 0, 1], &[]).ok(), 7);
}

fn read_only() {
    let directory = tempfile::tempdir().expect("tempdir");
    write_file(directory.path(), "f", b"x");
    std::fs::create_dir(directory.path().join("d")).expect("mkdir");
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .expect("fifo");
    let mounts = vec![
        (directory.path(), Access::ReadOnly),
        (directory.path(), Access::ReadWrite),
    ];
    let mut guest = Guest::with(Setup {
        mounts,
        ..Setup::new()
    });
    let writing = [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, CREATE, libc::O_CREAT];
    for flags in writing {
        assert_eq!(guest.open(0, "f", flags, 0o600).err(), libc::EROFS, "{flags:#x}");
        if flags & libc::O_CREAT != 0 {
            assert_eq!(
                guest.open(0, "new", flags, 0o600).err(),
                libc::EROFS,
                "{flags:#x}"
            );
        }
    }
    assert_eq!(
        guest.open(0, ".", libc::O_TMPFILE | libc::O_RDWR, 0o600).err(),
        libc::EROFS
    );
    assert_eq!(
        guest.open(0, "f", CREATE | libc::O_EXCL, 0o600).err(),
        libc::EEXIST
    );
    guest.open(0, "fifo", libc::O_RDWR | libc::O_CREAT, 0o600).ok();
    let fd = guest.open(0, "f", libc::O_RDONLY, 0).ok();
    let dir = guest.open(0, "d", libc::O_RDONLY, 0).ok();
    for (op, args, input) in [
        (HostOp::MkDir, [ROOT, 0o755, 0, 1, 0, 0], "n"),
        (HostOp::MkDir, [dir, 0o755, 0, 1, 0, 0], "n"),
        (HostOp::Unlink, [ROOT, 0, 0, 1, 0, 0], "f"),
        (HostOp::Rename, [ROOT, 1, ROOT, 1, 0, 0], "fg"),
        (HostOp::Rename, [ROOT, 1, ROOT + 1, 1, 0, 0], "fg"),
        (HostOp::Link, [ROOT, 1, ROOT + 1, 1, 0, 0], "fg"),
        (HostOp::SymLink, [ROOT, 1, 0, 1, 0, 0], "ab"),
        (HostOp::MkNod, [ROOT, 0o600, 0, 1, 0, 0], "n"),
        (HostOp::ChMod, [fd, 0o777, 0, 0, 0, 0], ""),
        (HostOp::ChMod, [ROOT, 0o777, 0, 1, 0, 0], "f"),
        (HostOp::ChOwn, [fd, 1, 1, 0, 0, 0], ""),
        (HostOp::UTimes, [fd, 0, 0, 0, 0, 0], ""),
        (HostOp::SetXattr, [fd, 6, 1, 0, 0, 0], "user.ab"),
        (HostOp::RemoveXattr, [fd, 6, 0, 0, 0, 0], "user.a"),
        (HostOp::Access, [ROOT, 2, 0, 1, 0, 0], "f"),
    ] {
        assert_eq!(
            guest.call(op, &args, input.as_bytes()).err(),
            libc::EROFS,
            "{op:?}"
        );
    }
    // What Linux finds out before it comes to the mount.
    for (op, args, input, errno) in [
        (HostOp::Unlink, [ROOT, 0, 0, 6, 0, 0], "none/n", libc::ENOENT),
        (HostOp::Unlink, [ROOT, 0, 0, 3, 0, 0], "f/n", libc::ENOTDIR),
        (HostOp::Rename, [ROOT, 6, ROOT, 1, 0, 0], "none/ng", libc::ENOENT),
        (HostOp::MkDir, [ROOT, 0o755, 0, 1, 0, 0], "d", libc::EEXIST),
        (HostOp::MkDir, [ROOT, 0o755, 0, 6, 0, 0], "none/n", libc::ENOENT),
        (HostOp::SymLink, [ROOT, 1, 0, 1, 0, 0], "af", libc::EEXIST),
        (HostOp::MkNod, [ROOT, 0o600, 0, 4, 0, 0], "fifo", libc::EEXIST),
        (HostOp::ChMod, [ROOT, 0o777, 0, 4, 0, 0], "none", libc::ENOENT),
        (HostOp::ChOwn, [ROOT, 1, 1, 4, 0, 0], "none", libc::ENOENT),
    ] {
        assert_eq!(
            guest.call(op, &args, input.as_bytes()).err(),
            errno,
            "{op:?} {input}"
        );
    }
    assert!(guest.call(HostOp::Truncate, &[fd, 0], &[]).result < 0);
    assert_eq!(std::fs::read(directory.path().join("f")).expect("read"), b"x");
    guest.open(1, "f", libc::O_RDWR, 0).ok();
}

fn procfs() {
    let mut guest = Guest::new(Path::new("/"));
    assert_eq!(guest.open(0, "proc/self/maps", 0, 0).err(), libc::EXDEV);
    assert_eq!(component(&mut guest, ROOT, "proc", 0).err(), libc::EACCES);
    assert_eq!(
        component(&mut guest, ROOT, "proc", libc::O_PATH).err(),
        libc::EACCES
    );
    component(&mut guest, ROOT, "etc", 0).ok();
}

fn descriptors() {
    let (_directory, mut guest) = setup();
    let one = guest.open(0, "a", CREATE, 0o600).ok();
    assert!(one > 2, "standard streams are taken");
    guest.call(HostOp::Close, &[one], &[]).ok();
    assert_eq!(guest.call(HostOp::Close, &[one], &[]).err(), libc::EBADF);
    assert_eq!(guest.call(HostOp::FStat, &[one], &[]).err(), libc::EBADF);
    assert_eq!(guest.open(0, "b", CREATE, 0o600).ok(), one);
    assert_eq!(guest.call(HostOp::Close, &[ROOT], &[]).err(), libc::EBADF);
    for fd in [u64::MAX, 1 << 32, ROOT + 1, ROOT + 64, ROOT - 1] {
        assert_eq!(guest.call(HostOp::FStat, &[fd], &[]).err(), libc::EBADF);
    }
}
