//! `tmpfs` against the host's own file system: the same random operations must give the same results.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::errno::{Errno, SysResult};
use crate::fs::fake::service;
use crate::fs::file::Stat;
use crate::fs::flags::*;
use crate::fs::node::New;
use crate::fs::tmpfs::{Tmpfs, memfd};
use crate::syscall::{Args, TABLE};
use crate::user::Buf;

fn call(number: usize, args: &[u64]) -> SysResult {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    (TABLE[number].as_ref().expect("a call").handler)(&Args(all))
}

fn guest(number: usize, path: &str, more: &[u64]) -> Result<u64, i32> {
    let path = CString::new(path).expect("no NUL");
    let mut args = vec![path.as_ptr() as u64];
    args.extend(more);
    call(number, &args).map_err(Errno::number)
}

fn host<T>(result: std::io::Result<T>) -> Result<u64, i32> {
    result.map(|_| 0).map_err(|e| e.raw_os_error().unwrap_or(0))
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn path(&mut self) -> String {
        let depth = self.below(3) + 1;
        (0..depth)
            .map(|_| format!("/{}", ["a", "b", "c"][self.below(3) as usize]))
            .collect()
    }
}

/// All that a tree shows: paths, kinds, link counts, sizes, contents.
fn tree(root: &Path, at: &Path, out: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(at)
        .expect("a directory")
        .flatten()
        .map(|e| e.path())
        .collect();
    names.sort();
    for path in names {
        let m = fs::symlink_metadata(&path).expect("there");
        let name = path.strip_prefix(root).expect("below").display().to_string();
        let size = if m.is_dir() { 0 } else { m.size() };
        out.push(format!("{name} {:o} {} {size}", m.mode() & S_IFMT, m.nlink()));
        if m.is_dir() {
            tree(root, &path, out);
        }
    }
}

fn guest_tree(root: &str, at: &str, out: &mut Vec<String>) {
    let path = CString::new(at).expect("no NUL");
    let fd = call(2, &[path.as_ptr() as u64, u64::from(O_DIRECTORY), 0]).expect("a directory");
    let mut names = Vec::new();
    loop {
        // A small buffer, so that listings go on in the middle.
        let mut bytes = [0u8; 56];
        let n = call(217, &[fd, bytes.as_mut_ptr() as u64, 56]).expect("a listing") as usize;
        if n == 0 {
            break;
        }
        let mut rest = &bytes[..n];
        while !rest.is_empty() {
            let entry = crate::fs::dirent::take(&mut rest).expect("a record");
            names.push(String::from_utf8(entry.name.to_vec()).expect("a text"));
        }
    }
    call(3, &[fd]).expect("open");
    names.sort();
    for name in names.into_iter().filter(|n| n != "." && n != "..") {
        let path = format!("{at}/{name}");
        let mut stat = Stat::default();
        guest(6, &path, &[&raw mut stat as u64]).expect("there");
        let size = if is_dir(stat.mode) { 0 } else { stat.size };
        let below = path.strip_prefix(&format!("{root}/")).expect("below");
        out.push(format!("{below} {:o} {} {size}", stat.mode & S_IFMT, stat.nlink));
        if is_dir(stat.mode) {
            guest_tree(root, &path, out);
        }
    }
}

fn rename2(from: &str, to: &str, flags: u32) -> Result<u64, i32> {
    let (from, to) = (
        CString::new(from).expect("no NUL"),
        CString::new(to).expect("no NUL"),
    );
    let here = AT_FDCWD as u64;
    call(
        316,
        &[
            here,
            from.as_ptr() as u64,
            here,
            to.as_ptr() as u64,
            u64::from(flags),
        ],
    )
    .map_err(Errno::number)
}

fn write_both(guest_path: &str, real: &Path, offset: u64, len: usize) -> [Result<u64, i32>; 2] {
    let bytes = vec![len as u8; len];
    let ours = guest(2, guest_path, &[u64::from(O_CREAT | O_WRONLY), 0o644]).map(|fd| {
        let n = call(18, &[fd, bytes.as_ptr() as u64, len as u64, offset]).expect("written");
        call(3, &[fd]).expect("open");
        n
    });
    let theirs = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(real);
    let theirs = theirs.map(|f| f.write_at(&bytes, offset).expect("written") as u64);
    [ours, theirs.map_err(|e| e.raw_os_error().unwrap_or(0))]
}

#[test]
fn random_operations_do_what_the_hosts_file_system_does() {
    let _service = service();
    for seed in 0..12 {
        let mut random = Random(seed);
        let ours = format!("/tmp/model{seed}");
        let theirs: PathBuf = std::env::temp_dir().join(format!("cloak-model-{}-{seed}", std::process::id()));
        fs::create_dir(&theirs).expect("made");
        guest(83, &ours, &[0o755]).expect("made");
        for step in 0..250 {
            let (one, two) = (random.path(), random.path());
            let (g1, g2) = (format!("{ours}{one}"), format!("{ours}{two}"));
            let (h1, h2) = (theirs.join(&one[1..]), theirs.join(&two[1..]));
            let second = CString::new(g2.clone()).expect("no NUL");
            let [got, expected] = match random.below(9) {
                0 | 1 => [guest(83, &g1, &[0o755]), host(fs::create_dir(&h1))],
                2 => [guest(84, &g1, &[]), host(fs::remove_dir(&h1))],
                3 => [guest(87, &g1, &[]), host(fs::remove_file(&h1))],
                4 | 5 => [rename2(&g1, &g2, 0), host(fs::rename(&h1, &h2))],
                6 => [
                    guest(86, &g1, &[second.as_ptr() as u64]),
                    host(fs::hard_link(&h1, &h2)),
                ],
                7 => {
                    let target = CString::new("c").expect("no NUL");
                    let made = CString::new(g1.clone()).expect("no NUL");
                    let ours =
                        call(88, &[target.as_ptr() as u64, made.as_ptr() as u64]).map_err(Errno::number);
                    [ours, host(std::os::unix::fs::symlink("c", &h1))]
                }
                _ => {
                    let (offset, len) = (random.below(9000), random.below(5000) as usize + 1);
                    write_both(&g1, &h1, offset, len)
                }
            };
            assert_eq!(got, expected, "seed {seed} step {step}: {one} {two}");
        }
        let (mut mine, mut real) = (Vec::new(), Vec::new());
        guest_tree(&ours, &ours, &mut mine);
        tree(&theirs, &theirs, &mut real);
        // Link counts of directories differ between the host's file systems (overlay, btrfs: 1).
        let strip = |lines: Vec<String>| -> Vec<String> {
            let fix = |l: String| {
                if l.contains(" 40000 ") {
                    l.split(' ').take(2).collect()
                } else {
                    l
                }
            };
            lines.into_iter().map(fix).collect()
        };
        assert_eq!(strip(mine), strip(real), "seed {seed}");
        fs::remove_dir_all(&theirs).expect("removed");
    }
}

#[test]
fn exchanging_and_not_replacing() {
    let _service = service();
    for (name, size) in [("/tmp/xa", 1), ("/tmp/xb", 2)] {
        let fd = guest(2, name, &[u64::from(O_CREAT | O_WRONLY), 0o644]).expect("made");
        call(77, &[fd, size]).expect("sized");
        call(3, &[fd]).expect("open");
    }
    assert_eq!(rename2("/tmp/xa", "/tmp/xb", RENAME_NOREPLACE), Err(17));
    assert_eq!(rename2("/tmp/xa", "/tmp/none", RENAME_EXCHANGE), Err(2));
    assert_eq!(rename2("/tmp/xa", "/tmp/xb", RENAME_EXCHANGE), Ok(0));
    let mut stat = Stat::default();
    guest(4, "/tmp/xa", &[&raw mut stat as u64]).expect("there");
    assert_eq!(stat.size, 2);
}

#[test]
fn the_limit_gives_enospc_and_removing_gives_the_room_back() {
    let fs = Tmpfs::new(64 << 10, 0o755);
    let root = fs.root();
    let free = root.statfs().bfree;
    let node = root.create(b"f", New::Node(S_IFREG, 0), 0o644).expect("made");
    let file = node.open(O_RDWR).expect("opened");
    let data = vec![1u8; 100 << 10];
    let wrote = file.write_at(0, &mut Buf::own(&data)).expect("what fits");
    assert!((40 << 10..64 << 10).contains(&wrote), "{wrote}");
    assert_eq!(
        file.write_at(wrote as u64, &mut Buf::own(&data)),
        Err(Errno::ENOSPC)
    );
    assert_eq!(
        file.write_at(0, &mut Buf::own(b"over")),
        Ok(4),
        "what is there can be written again"
    );
    root.remove(b"f", false).expect("removed");
    let mut back = [0; 4];
    assert_eq!(
        file.read_at(0, &mut Buf::own_mut(&mut back)),
        Ok(4),
        "open files live on"
    );
    assert_eq!(&back, b"over");
    drop(file);
    assert_eq!(root.statfs().bfree, free);
}

#[test]
fn seals_hold() {
    const ADD: u32 = 1033;
    let fs = Tmpfs::new(1 << 20, 0o755);
    let open = memfd(&fs, b"x", 0o777, true).expect("made");
    let file = &open.file;
    assert_eq!(file.write_at(0, &mut Buf::own(b"12345")), Ok(5));
    assert_eq!(file.fcntl(&open, ADD, 2 | 4), Ok(0));
    assert_eq!(
        (file.truncate(3), file.truncate(9)),
        (Err(Errno::EPERM), Err(Errno::EPERM))
    );
    assert_eq!(file.write_at(3, &mut Buf::own(b"abcdef")), Ok(2));
    assert_eq!(file.write_at(5, &mut Buf::own(b"abcdef")), Err(Errno::EPERM));
    assert_eq!(file.fcntl(&open, ADD, 8 | 1), Ok(0));
    assert_eq!(file.write_at(0, &mut Buf::own(b"a")), Err(Errno::EPERM));
    assert_eq!(file.fcntl(&open, ADD, 2), Err(Errno::EPERM));
    assert_eq!(file.fcntl(&open, 1034, 0), Ok(15));
}

#[test]
fn attributes_of_the_user_are_kept() {
    let _service = service();
    let fd = guest(2, "/tmp/xattr", &[u64::from(O_CREAT | O_WRONLY), 0o644]).expect("made");
    let name = c"user.colour".as_ptr() as u64;
    assert_eq!(call(190, &[fd, name, b"blue".as_ptr() as u64, 4, 0]), Ok(0));
    assert_eq!(
        call(190, &[fd, name, b"blue".as_ptr() as u64, 4, 1]),
        Err(Errno::EEXIST)
    );
    let mut value = [0u8; 4];
    assert_eq!(
        call(193, &[fd, name, value.as_mut_ptr() as u64, 3]),
        Err(Errno::ERANGE)
    );
    assert_eq!(call(193, &[fd, name, value.as_mut_ptr() as u64, 4]), Ok(4));
    assert_eq!(&value, b"blue");
    assert_eq!(call(196, &[fd, 0, 0]), Ok(12));
    assert_eq!(call(199, &[fd, name]), Ok(0));
    assert_eq!(call(193, &[fd, name, 0, 0]), Err(Errno::ENODATA));
}

#[test]
fn what_threads_free_at_once_is_counted_once() {
    const PUNCH_KEEP: u32 = 3;
    let limit = 1 << 20;
    let fs = Tmpfs::new(limit, 0o755);
    let left = fs.left();
    let open = memfd(&fs, b"x", 0o777, true).expect("made");
    let threads: Vec<_> = (0..3)
        .map(|n| {
            let open = open.clone();
            std::thread::spawn(move || {
                for round in 0..2000u64 {
                    let file = &open.file;
                    let _ = file.write_at((round + n) % 8 * 4096, &mut Buf::own(&[1; 8192]));
                    assert_eq!(file.allocate(PUNCH_KEEP, 0, 1 << 16), Ok(()));
                    let _ = file.truncate(round % 5 * 3000);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("no panic"));
    assert_eq!(open.file.truncate(0), Ok(()));
    drop(open);
    assert_eq!(fs.left(), left);
}

#[test]
fn room_for_more_than_there_is_is_refused_at_once() {
    let fs = Tmpfs::new(1 << 20, 0o755);
    let open = memfd(&fs, b"x", 0o777, true).expect("made");
    let file = &open.file;
    assert_eq!(file.allocate(0, 0, 1 << 62), Err(Errno::ENOSPC));
    assert_eq!(file.allocate(0, (1 << 62) + 5, 100), Ok(()));
    assert_eq!(file.truncate(0), Ok(()));
    let before = fs.left();
    let node = file.node().expect("a node");
    node.set_xattr(b"user.a", &[1; 1000], 0).expect("kept");
    assert!(fs.left() < before);
    drop(open);
    assert!(fs.left() > before, "the attributes went with the file");
}
