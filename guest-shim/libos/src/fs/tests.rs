//! Files end to end: system calls against the fake service, honest and hostile.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::dirent;
use super::fake::{SERVED, Service, service};
use super::file::Stat;
use super::flags::*;
use crate::errno::{Errno, SysResult};
use crate::syscall::{Args, TABLE};
use cloak_abi::hostop::HostOp;
use spin::Mutex;

/// Makes a system call.
pub(super) fn call(number: usize, args: &[u64]) -> SysResult {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let entry = TABLE[number].as_ref().expect("a call");
    (entry.handler)(&Args(all))
}

pub(super) fn path(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

pub(super) fn open(text: &str, flags: u32) -> SysResult {
    call(2, &[path(text).as_ptr() as u64, u64::from(flags), 0o644])
}

pub(super) fn close(fd: u64) {
    call(3, &[fd]).expect("open");
}

pub(super) fn read(fd: u64, len: usize) -> SysResult<Vec<u8>> {
    let mut bytes = vec![0; len];
    let n = call(0, &[fd, bytes.as_mut_ptr() as u64, len as u64])?;
    bytes.truncate(n as usize);
    Ok(bytes)
}

pub(super) fn write(fd: u64, bytes: &[u8]) -> SysResult {
    call(1, &[fd, bytes.as_ptr() as u64, bytes.len() as u64])
}

pub(super) fn on_path(number: usize, text: &str, more: &[u64]) -> SysResult {
    let text = path(text);
    let mut args = vec![text.as_ptr() as u64];
    args.extend(more);
    call(number, &args)
}

pub(super) fn stat(text: &str) -> SysResult<Stat> {
    let mut stat = Stat::default();
    on_path(4, text, &[&raw mut stat as u64])?;
    Ok(stat)
}

pub(super) fn names(fd: u64) -> Vec<String> {
    let mut out = Vec::new();
    loop {
        let mut bytes = vec![0u8; 200];
        let n = call(217, &[fd, bytes.as_mut_ptr() as u64, 200]).expect("a listing");
        if n == 0 {
            out.sort();
            return out;
        }
        let mut rest = &bytes[..n as usize];
        while !rest.is_empty() {
            out.push(String::from_utf8_lossy(dirent::take(&mut rest).expect("a record").name).into_owned());
        }
    }
}

#[test]
fn a_file_of_the_host_costs_the_requests_that_it_must() {
    let host = service();
    let dir = host.directory("requests");
    fs::write(host.root.join("requests/f"), b"hello world").expect("written");
    // A close waits for nobody: those of the test before may still come in, so the least of some rounds counts.
    let round = || {
        let before = SERVED.load(Ordering::Relaxed);
        let fd = open(&format!("{dir}/f"), 0).expect("opened");
        assert_eq!(read(fd, 5).expect("read"), b"hello");
        assert_eq!(read(fd, 100).expect("read"), b" world");
        assert_eq!(read(fd, 100).expect("read"), b"");
        let mut byte = [0u8];
        assert_eq!(call(17, &[fd, byte.as_mut_ptr() as u64, 1, 4]), Ok(1));
        assert_eq!(byte[0], b'o');
        assert_eq!(call(8, &[fd, 6, 0]), Ok(6));
        assert_eq!(read(fd, 2).expect("read"), b"wo");
        close(fd);
        SERVED.load(Ordering::Relaxed) - before
    };
    let least = (0..5).map(|_| round()).min();
    assert_eq!(least, Some(7), "open, 5 reads, close");
}

#[test]
fn the_length_of_a_file_on_an_exclusive_volume_is_asked_for_once() {
    let host = service();
    fs::write(host.root.join("volume/database"), [1; 100]).expect("written");
    let end = |fd| call(8, &[fd, 0, 2]);
    let fd = open("/mnt/own/database", O_RDWR).expect("opened");
    // By another name, and a mount that the host may write, too: it changes the same file.
    let other = open("/mnt/volume/database", O_WRONLY).expect("opened");
    let counts = counted(&host);
    assert_eq!((end(fd), end(fd)), (Ok(100), Ok(100)));
    assert_eq!(write(fd, b"more"), Ok(4));
    assert_eq!(end(fd), Ok(104));
    assert_eq!(call(18, &[other, b"x".as_ptr() as u64, 1, 200]), Ok(1));
    assert_eq!(end(fd), Ok(201));
    assert_eq!(call(77, &[other, 7]), Ok(0));
    assert_eq!(end(fd), Ok(7));
    let asked = [HostOp::FStat, HostOp::PWrite, HostOp::PWrite, HostOp::Truncate];
    assert_eq!(*counts.lock(), asked);
    let emptied = open("/mnt/volume/database", O_WRONLY | O_TRUNC).expect("opened");
    assert_eq!(end(fd), Ok(0));
    // Elsewhere it is asked for each time, as the host may have written.
    fs::write(host.root.join("volume/database"), [1; 30]).expect("written");
    assert_eq!(end(other), Ok(30));
    [fd, other, emptied].into_iter().for_each(close);
}

#[test]
fn a_file_on_a_read_only_mount_is_opened_and_read_once_in_a_second() {
    let host = service();
    fs::write(host.root.join("library/f"), vec![7; 100_000]).expect("written");
    let counts = counted(&host);
    for _ in 0..3 {
        let fd = open("/mnt/library/f", 0).expect("opened");
        for _ in 0..10 {
            assert_eq!(read(fd, 10_000).expect("read"), [7; 10_000]);
        }
        assert_eq!(read(fd, 10), Ok(Vec::new()));
        let mut stat = Stat::default();
        call(5, &[fd, &raw mut stat as u64]).expect("open");
        assert_eq!(stat.size, 100_000);
        close(fd);
    }
    assert_eq!(*counts.lock(), [HostOp::Open, HostOp::PRead, HostOp::PRead]);
    fs::write(host.root.join("library/f"), vec![8; 100_001]).expect("written");
    thread::sleep(Duration::from_millis(1100));
    let fd = open("/mnt/library/f", 0).expect("opened");
    assert_eq!(
        read(fd, 1).expect("read"),
        [8],
        "an open a second later sees what changed"
    );
    close(fd);
}

/// The operations that are served from now on, closes left out: nobody waits for them.
fn counted(host: &Service) -> Arc<Mutex<Vec<HostOp>>> {
    let counts = Arc::new(Mutex::new(Vec::new()));
    let seen = counts.clone();
    host.twist(move |op, _, _, _| {
        if op != HostOp::Close {
            seen.lock().push(op);
        }
    });
    counts
}

#[test]
fn an_open_file_of_a_read_only_mount_has_its_locks_for_itself() {
    let host = service();
    fs::write(host.root.join("library/locked"), b"content").expect("written");
    let counts = counted(&host);
    let first = open("/mnt/library/locked", 0).expect("opened");
    let second = open("/mnt/library/locked", 0).expect("opened");
    assert_eq!(call(73, &[second, 1]), Ok(0), "flock, shared");
    close(second);
    let third = open("/mnt/library/locked", 0).expect("opened");
    let expected = [HostOp::Open, HostOp::Open, HostOp::Flock, HostOp::Open];
    assert_eq!(
        *counts.lock(),
        expected,
        "none is shared with one that has a lock"
    );
    close(third);
    close(first);
}

#[test]
fn large_reads_and_writes_go_in_parts() {
    let host = service();
    let dir = host.directory("large");
    let data: Vec<u8> = (0..1_000_003u32).map(|i| (i * 7 % 251) as u8).collect();
    let fd = open(&format!("{dir}/f"), O_CREAT | O_RDWR).expect("made");
    assert_eq!(write(fd, &data), Ok(data.len() as u64));
    assert_eq!(call(8, &[fd, 0, 0]), Ok(0));
    assert_eq!(read(fd, 2_000_000).expect("read"), data);
    close(fd);
    assert_eq!(fs::read(host.root.join("large/f")).expect("there"), data);
}

#[test]
fn appending_and_truncating() {
    let host = service();
    let name = format!("{}/f", host.directory("append"));
    let fd = open(&name, O_CREAT | O_WRONLY | O_APPEND).expect("made");
    assert_eq!((write(fd, b"one"), write(fd, b"two")), (Ok(3), Ok(3)));
    assert_eq!(call(8, &[fd, 0, 1]), Ok(6));
    close(fd);
    assert_eq!(on_path(76, &name, &[4]), Ok(0));
    assert_eq!(stat(&name).expect("there").size, 4);
    assert_eq!(on_path(76, &name, &[u64::MAX]), Err(Errno::EINVAL));
}

#[test]
fn links_lead_across_mounts() {
    let host = service();
    host.directory("links");
    let at = |name: &str| host.root.join("links").join(name);
    symlink("/tmp", at("to-tmp")).expect("made");
    symlink("loop", at("loop")).expect("made");
    fs::create_dir(at("border")).expect("made");
    fs::create_dir(at("border/in")).expect("made");
    fs::write(at("border/in/f"), b"far").expect("written");
    symlink("/links/border/in/f", at("border/abs")).expect("made");
    let fd = open("/links/border/in/f", 0).expect("walked across the border");
    assert_eq!(read(fd, 9).expect("read"), b"far");
    close(fd);
    let fd = open("/links/border/abs", 0).expect("walked to the link's target");
    assert_eq!(read(fd, 9).expect("read"), b"far");
    close(fd);
    assert_eq!(stat("/links/border/in/../in/f").expect("there").size, 3);
    assert_eq!(open("/links/loop", 0), Err(Errno::ELOOP));
    assert_eq!(open("/links/border/abs", O_NOFOLLOW), Err(Errno::ELOOP));
    assert_eq!(open("/links/border/in/f/x", 0), Err(Errno::ENOTDIR));
    assert_eq!(open("/links/border/in/none", 0), Err(Errno::ENOENT));
    assert_eq!(on_path(80, "/links/border/in", &[]), Ok(0));
    assert_eq!(stat("f").expect("relative").size, 3);
    assert_eq!(stat("../abs").expect("relative").size, 3);
    let mut cwd = [0u8; 64];
    let len = call(79, &[cwd.as_mut_ptr() as u64, 64]).expect("fits") as usize;
    assert_eq!(&cwd[..len], b"/links/border/in\0");
    assert_eq!(on_path(80, "/", &[]), Ok(0));
}

#[test]
fn a_volume_is_walked_and_its_links_are_the_guests() {
    let host = service();
    let volume = host.root.join("volume");
    let _ = fs::remove_dir_all(volume.join("deep"));
    fs::create_dir_all(volume.join("deep/er")).expect("made");
    fs::write(volume.join("top"), b"t").expect("written");
    fs::write(volume.join("deep/er/f"), b"ff").expect("written");
    let _ = fs::remove_file(volume.join("out"));
    symlink("/mnt/volume/deep/er/f", volume.join("out")).expect("made");
    assert_eq!(stat("/mnt/volume/top").expect("there").size, 1);
    assert_eq!(stat("/mnt/volume/deep/er/f").expect("there").size, 2);
    assert_eq!(stat("/mnt/volume/out").expect("followed").size, 2);
    assert_eq!(on_path(83, "/mnt/volume/deep/new", &[0o755]), Ok(0));
    assert!(volume.join("deep/new").is_dir());
    assert_eq!(on_path(84, "/mnt/volume/deep/new/", &[]), Ok(0));
    assert_eq!(on_path(90, "/mnt/volume/deep/er/f", &[0o600]), Ok(0));
    assert_eq!(stat("/mnt/volume/deep/er/f").expect("there").mode & 0o777, 0o600);
}

#[test]
fn names_on_the_host() {
    let host = service();
    host.directory("names");
    assert_eq!(on_path(83, "/names/d", &[0o755]), Ok(0));
    assert_eq!(on_path(83, "/names/d", &[0o755]), Err(Errno::EEXIST));
    close(open("/names/d/f", O_CREAT | O_WRONLY).expect("made"));
    assert_eq!(
        open("/names/d/f", O_CREAT | O_EXCL | O_WRONLY),
        Err(Errno::EEXIST)
    );
    assert_eq!(on_path(84, "/names/d", &[]), Err(Errno::ENOTEMPTY));
    let new = path("/names/g");
    assert_eq!(on_path(82, "/names/d/f", &[new.as_ptr() as u64]), Ok(0));
    assert_eq!(stat("/names/d/f").map(|s| s.size), Err(Errno::ENOENT));
    let there = path("/tmp/g");
    assert_eq!(
        on_path(82, "/names/g", &[there.as_ptr() as u64]),
        Err(Errno::EXDEV)
    );
    let fd = open("/names", O_DIRECTORY).expect("opened");
    assert_eq!(names(fd), ["d", "g"]);
    assert_eq!(names(fd), [""; 0]);
    assert_eq!(call(8, &[fd, 0, 0]), Ok(0));
    assert_eq!(names(fd), ["d", "g"]);
    close(fd);
    assert_eq!(open("/names/g", O_DIRECTORY), Err(Errno::ENOTDIR));
    assert_eq!(open("/names/g/", 0), Err(Errno::ENOTDIR));
    assert_eq!(on_path(87, "/names/g", &[]), Ok(0));
    assert_eq!(on_path(84, "/names/d/.", &[]), Err(Errno::EINVAL));
}

#[test]
fn descriptors() {
    let host = service();
    let name = format!("{}/f", host.directory("descriptors"));
    let fd = open(&name, O_CREAT | O_RDWR | O_CLOEXEC).expect("made");
    assert_eq!(call(72, &[fd, 1, 0]), Ok(1));
    let other = call(72, &[fd, 0, 50]).expect("duplicated");
    assert!(other >= 50);
    assert_eq!(call(72, &[other, 1, 0]), Ok(0));
    assert_eq!(call(33, &[fd, 70]), Ok(70));
    assert_eq!(call(292, &[fd, fd, 0]), Err(Errno::EINVAL));
    assert_eq!(call(33, &[99, 99]), Err(Errno::EBADF));
    assert_eq!(call(72, &[fd, 4, u64::from(O_NONBLOCK)]), Ok(0));
    assert_eq!(
        call(72, &[70, 3, 0]),
        Ok(u64::from(O_RDWR | O_NONBLOCK | O_LARGEFILE))
    );
    assert_eq!(write(fd, b"abc"), Ok(3));
    assert_eq!(call(8, &[70, 0, 1]), Ok(3), "one position for all");
    assert_eq!(call(436, &[fd, 4000, 0]), Ok(0));
    assert_eq!(read(70, 1), Err(Errno::EBADF));
    assert_eq!(call(3, &[fd]), Err(Errno::EBADF));
}

#[test]
fn devices() {
    let _host = service();
    let fd = open("/dev/zero", O_RDWR).expect("opened");
    assert_eq!(read(fd, 5).expect("read"), [0; 5]);
    close(fd);
    let fd = open("/dev/null", O_RDWR).expect("opened");
    assert_eq!((read(fd, 5).expect("read").len(), write(fd, b"xy")), (0, Ok(2)));
    close(fd);
    let fd = open("/dev/full", O_RDWR).expect("opened");
    assert_eq!(write(fd, b"xy"), Err(Errno::ENOSPC));
    close(fd);
    assert_eq!(stat("/dev/null").expect("there").rdev, 0x103);
}

#[test]
fn a_fifo_joins_those_who_open_it() {
    let _host = service();
    on_path(133, "/tmp/fifo", &[u64::from(S_IFIFO | 0o640), 0]).expect("made");
    let node = stat("/tmp/fifo").expect("there");
    assert_eq!(node.mode & S_IFMT, S_IFIFO);
    assert_eq!(open("/tmp/fifo", O_WRONLY | O_NONBLOCK), Err(Errno::ENXIO));
    let reader = open("/tmp/fifo", O_NONBLOCK).expect("a reader need not wait");
    let writer = open("/tmp/fifo", O_WRONLY).expect("there is a reader");
    assert_eq!(write(writer, b"through"), Ok(7));
    assert_eq!(read(reader, 20).expect("read"), b"through");
    let mut shown = Stat::default();
    call(5, &[reader, &raw mut shown as u64]).expect("open");
    assert_eq!(
        (shown.ino, shown.dev, shown.mode),
        (node.ino, node.dev, node.mode)
    );
    close(writer);
    assert_eq!(read(reader, 20).expect("the end"), b"");
    close(reader);
    on_path(87, "/tmp/fifo", &[]).expect("removed");
}

#[test]
fn splice_takes_from_a_pipe_what_it_can_write() {
    let _host = service();
    let mut ends = [0i32; 2];
    call(22, &[ends.as_mut_ptr() as u64]).expect("a pipe");
    let [reader, writer] = ends.map(|end| end as u64);
    assert_eq!(write(writer, b"0123456789"), Ok(10));
    let file = open("/tmp/spliced", O_RDWR | O_CREAT).expect("opened");
    let mut offset = 3u64;
    assert_eq!(call(275, &[reader, 0, file, &raw mut offset as u64, 6, 0]), Ok(6));
    assert_eq!(offset, 9);
    assert_eq!(read(file, 20).expect("read"), *b"\x00\x00\x00012345");
    let full = open("/dev/full", O_WRONLY).expect("opened");
    assert_eq!(call(275, &[reader, 0, full, 0, 6, 0]), Err(Errno::ENOSPC));
    assert_eq!(
        call(275, &[reader, &raw mut offset as u64, file, 0, 6, 0]),
        Err(Errno::ESPIPE)
    );
    assert_eq!(read(reader, 20).expect("it is still there"), b"6789");
    assert_eq!(call(275, &[reader, 0, file, 0, 6, 2]), Err(Errno::EAGAIN));
    for fd in [reader, writer, file, full] {
        close(fd);
    }
    on_path(87, "/tmp/spliced", &[]).expect("removed");
}

#[test]
fn hostile_answers_give_eio_and_harm_nothing() {
    let host = service();
    let name = format!("{}/f", host.directory("hostile"));
    let fd = open(&name, O_CREAT | O_RDWR).expect("made");
    assert_eq!(write(fd, b"0123456789"), Ok(10));
    let lies: [i64; 6] = [11, i64::MAX, i64::MIN, -4096, 1 << 32, BUFFER_PLUS];
    for lie in lies {
        host.twist(move |op, result, _, _| {
            if matches!(op, HostOp::PRead | HostOp::PWrite) {
                *result = lie;
            }
        });
        let mut guarded = [0xaau8; 64];
        let got = call(17, &[fd, guarded.as_mut_ptr() as u64, 10, 0]);
        assert_eq!(got, Err(Errno::EIO), "a length of {lie}");
        assert!(guarded.iter().all(|&b| b == 0xaa));
        assert_eq!(call(18, &[fd, guarded.as_ptr() as u64, 10, 0]), Err(Errno::EIO));
    }
    for lie in [0, 1, 2, fd_of(fd), i64::from(u32::MAX), 0x4000_0000, i64::MAX] {
        host.twist(move |op, result, _, _| {
            if op == HostOp::Open {
                *result = lie;
            }
        });
        assert_eq!(open(&name, 0), Err(Errno::EIO), "descriptor {lie}");
    }
    host.twist(|op, _, extra, buffer| match op {
        HostOp::Open => *extra = u64::from(S_IFDIR),
        HostOp::FStat => buffer[48..56].copy_from_slice(&i64::MIN.to_ne_bytes()),
        HostOp::StatX => buffer[28..30].copy_from_slice(&[0, 0]),
        _ => {}
    });
    assert_eq!(open(&name, 0), Err(Errno::EIO));
    let mut stat_buffer = Stat::default();
    assert_eq!(call(5, &[fd, &raw mut stat_buffer as u64]), Err(Errno::EIO));
    assert_eq!(stat(&name).map(|s| s.size), Err(Errno::EIO));
    host.honest();
    let mut bytes = [0u8; 10];
    assert_eq!(call(17, &[fd, bytes.as_mut_ptr() as u64, 10, 0]), Ok(10));
    assert_eq!(
        bytes, [0xaa; 10],
        "what was really written while the host lied about it"
    );
    close(fd);
}

const BUFFER_PLUS: i64 = cloak_abi::ring::BUFFER as i64 + 1;

fn fd_of(fd: u64) -> i64 {
    super::fd::get(fd as i32)
        .expect("open")
        .file
        .host_fd()
        .map_or(0, i64::from)
}

#[test]
fn arbitrary_answers_never_panic() {
    let host = service();
    host.directory("noise");
    fs::write(host.root.join("noise/f"), b"x").expect("written");
    let mut seed = 1u64;
    host.twist(move |op, result, extra, buffer| {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        // Descriptors that are never closed would use up the host's.
        if op == HostOp::Close || next() % 3 == 0 {
            return;
        }
        let noise = next();
        *result = match noise % 5 {
            0 => noise as i64,
            1 => (noise % 300) as i64,
            2 => -((noise % 200) as i64),
            _ => *result,
        };
        *extra ^= noise % 7;
        buffer[..(noise % 400) as usize].fill_with(|| next() as u8);
    });
    for _ in 0..3000 {
        if let Ok(fd) = open("/noise/f", 0) {
            let _ = read(fd, 10);
            let mut s = Stat::default();
            let _ = call(5, &[fd, &raw mut s as u64]);
            let _ = call(3, &[fd]);
        }
        if let Ok(fd) = open("/noise", O_DIRECTORY) {
            let mut bytes = [0u8; 256];
            let _ = call(217, &[fd, bytes.as_mut_ptr() as u64, 256]);
            let _ = call(3, &[fd]);
        }
        let _ = stat("/noise/../noise/f");
        let mut link = [0u8; 100];
        let _ = on_path(89, "/noise/f", &[link.as_mut_ptr() as u64, 100]);
        let _ = on_path(80, "/noise", &[]);
    }
    host.honest();
    on_path(80, "/", &[]).expect("back");
}

#[test]
fn shared_mappings_agree_with_reads_and_writes() {
    use super::file::Mapping;
    let host = service();
    let name = format!("{}/f", host.directory("shared"));
    fs::write(host.root.join("shared/f"), vec![b'a'; 10_000]).expect("written");
    let fd = open(&name, O_RDWR).expect("opened");
    let open_file = super::fd::get(fd as i32).expect("open");
    let Ok(Mapping::Pages(pages)) = open_file.file.map(true) else {
        panic!("pages")
    };
    let frame = open_file.file.shared_page(&pages, 1).expect("filled");
    assert_eq!(frame.buf(10, 3).put(b"map"), Ok(3));
    pages.mark_dirty(1);
    let mut bytes = [0u8; 5];
    assert_eq!(call(17, &[fd, bytes.as_mut_ptr() as u64, 5, 4105]), Ok(5));
    assert_eq!(&bytes, b"amapa");
    assert_eq!(call(18, &[fd, b"write".as_ptr() as u64, 5, 4100]), Ok(5));
    let mut part = [0; 9];
    assert_eq!(frame.buf(4, 9).take(&mut part), Ok(9));
    assert_eq!(&part, b"writeamap");
    open_file
        .file
        .sync_pages(&pages, 0, u64::MAX)
        .expect("written back");
    let content = fs::read(host.root.join("shared/f")).expect("there");
    assert_eq!(content.len(), 10_000);
    assert_eq!(&content[4098..4114], b"aawriteamapaaaaa".as_slice());
    assert_eq!(open_file.file.shared_page(&pages, 3).map(drop), Err(Errno::ENXIO));
    drop(open_file);
    close(fd);
}
