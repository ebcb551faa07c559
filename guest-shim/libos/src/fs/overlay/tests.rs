//! Overlays by system calls, over a directory of the fake service.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cloak_abi::hostop::HostOp;

use super::paths;
use crate::errno::{Errno, SysResult};
use crate::fs::fake::{LOWER, Service, service};
use crate::fs::flags::*;
use crate::fs::tests::{call, close, names, on_path, open, path, read, stat, write};

const HERE: &str = "/mnt/overlay";

/// A fresh folder of the lower layer, with its path in the overlay.
fn folder(service: &Service, name: &str) -> (PathBuf, String) {
    let host = service.root.join(LOWER).join(name);
    let _ = fs::remove_dir_all(&host);
    fs::create_dir(&host).expect("a folder");
    paths::changed();
    (host, format!("{HERE}/{name}"))
}

fn at(folder: &str, name: &str) -> String {
    format!("{folder}/{name}")
}

fn content(path: &str) -> SysResult<Vec<u8>> {
    let fd = open(path, 0)?;
    let bytes = read(fd, 1 << 16);
    close(fd);
    bytes
}

fn put(path: &str, bytes: &[u8]) -> SysResult<()> {
    let fd = open(path, O_WRONLY | O_CREAT | O_TRUNC)?;
    let result = write(fd, bytes);
    close(fd);
    result.map(drop)
}

fn listed(path: &str) -> Vec<String> {
    let fd = open(path, O_DIRECTORY).expect("a directory");
    let mut names = names(fd);
    close(fd);
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

fn two(number: usize, from: &str, to: &str) -> SysResult {
    call(number, &[path(from).as_ptr() as u64, path(to).as_ptr() as u64])
}

fn rename(from: &str, to: &str) -> SysResult {
    two(82, from, to)
}

fn mkdir(path: &str) -> SysResult {
    on_path(83, path, &[0o755])
}

fn rmdir(path: &str) -> SysResult {
    on_path(84, path, &[])
}

fn unlink(path: &str) -> SysResult {
    on_path(87, path, &[])
}

/// Fails the test when a request comes that may change something on the host.
fn watch(service: &Service) -> Arc<AtomicBool> {
    let changed = Arc::new(AtomicBool::new(false));
    let seen = changed.clone();
    service.twist(move |op, _, _, _| {
        let reads = matches!(
            op,
            HostOp::Open
                | HostOp::Close
                | HostOp::PRead
                | HostOp::FStat
                | HostOp::StatX
                | HostOp::GetDents
                | HostOp::ReadLink
                | HostOp::ListXattr
                | HostOp::GetXattr
        );
        if !reads {
            seen.store(true, Ordering::Relaxed);
        }
    });
    changed
}

#[test]
fn a_warm_file_of_the_lower_layer_needs_no_request() {
    let service = service();
    let (host, here) = folder(&service, "warm");
    fs::create_dir_all(host.join("a/b")).expect("folders");
    fs::write(host.join("a/b/file"), b"content").expect("a file");
    let file = at(&here, "a/b/file");
    assert_eq!(content(&file), Ok(b"content".to_vec()));
    // Nobody waits for a close, so it may come at any time.
    let served = Arc::new(AtomicUsize::new(0));
    let seen = served.clone();
    service.twist(move |op, _, _, _| {
        seen.fetch_add(usize::from(op != HostOp::Close), Ordering::Relaxed);
    });
    for _ in 0..3 {
        let fd = open(&file, 0).expect("opened");
        assert_eq!(read(fd, 100), Ok(b"content".to_vec()));
        assert_eq!(read(fd, 100), Ok(Vec::new()), "the end");
        close(fd);
    }
    assert_eq!(served.load(Ordering::Relaxed), 0);
    for _ in 0..3 {
        assert_eq!(listed(&at(&here, "a")), ["b"]);
    }
    assert_eq!(
        served.swap(0, Ordering::Relaxed),
        3,
        "it is opened, listed, and at its end"
    );
    assert!(stat(&file).is_ok() && on_path(21, &file, &[4]).is_ok());
    assert_eq!(stat(&at(&here, "a/none")), Err(Errno::ENOENT));
    assert_eq!(stat(&at(&here, "a/none")), Err(Errno::ENOENT));
    assert_eq!(
        served.load(Ordering::Relaxed),
        1,
        "one look for what is not there"
    );
}

#[test]
fn a_change_copies_up_and_keeps_the_number() {
    let service = service();
    let (host, here) = folder(&service, "copied");
    fs::write(host.join("file"), vec![7; 200_000]).expect("a file");
    fs::set_permissions(host.join("file"), fs::Permissions::from_mode(0o640)).expect("a mode");
    let changed = watch(&service);
    let file = at(&here, "file");
    let before = stat(&file).expect("there");
    let old = open(&file, 0).expect("to read");
    let fd = open(&file, O_RDWR).expect("to write");
    assert_eq!(call(18, &[fd, b"xy".as_ptr() as u64, 2, 100_000]), Ok(2));
    close(fd);
    let after = stat(&file).expect("there");
    assert_eq!(
        (after.dev, after.ino, after.mode),
        (before.dev, before.ino, before.mode)
    );
    assert_eq!(after.size, 200_000);
    let all = content(&file).expect("content");
    assert_eq!((all[0], all.len()), (7, 1 << 16));
    // Who had it open for reading reads what it was, as on Linux.
    assert_eq!(read(old, 2), Ok(vec![7, 7]));
    close(old);
    assert_eq!(on_path(90, &file, &[0o600]), Ok(0));
    assert_eq!(stat(&file).map(|s| s.mode), Ok(S_IFREG | 0o600));
    assert_eq!(put(&file, b"new"), Ok(()));
    assert_eq!(content(&file), Ok(b"new".to_vec()));
    let fd = open(&here, O_DIRECTORY).expect("a directory");
    close(fd);
    assert_eq!(fs::read(host.join("file")).expect("the host's"), vec![7; 200_000]);
    assert!(!changed.load(Ordering::Relaxed));
}

#[test]
fn names_come_and_go_without_the_host() {
    let service = service();
    let (host, here) = folder(&service, "names");
    fs::create_dir_all(host.join("dir/sub")).expect("folders");
    for name in ["one", "two", "dir/inner", "dir/sub/deep"] {
        fs::write(host.join(name), name).expect("a file");
    }
    symlink("dir/sub", host.join("link")).expect("a link");
    let changed = watch(&service);
    assert_eq!(content(&at(&here, "link/deep")), Ok(b"dir/sub/deep".to_vec()));
    // A whiteout, and what covers it.
    assert_eq!(unlink(&at(&here, "one")), Ok(0));
    assert_eq!(stat(&at(&here, "one")), Err(Errno::ENOENT));
    assert_eq!(listed(&here), ["dir", "link", "two"]);
    assert_eq!(mkdir(&at(&here, "one")), Ok(0));
    assert_eq!(listed(&at(&here, "one")), [""; 0]);
    assert_eq!(
        (rmdir(&at(&here, "one")), unlink(&at(&here, "one"))),
        (Ok(0), Err(Errno::ENOENT))
    );
    // A directory that is made anew is empty.
    assert_eq!(rmdir(&at(&here, "dir")), Err(Errno::ENOTEMPTY));
    assert_eq!(unlink(&at(&here, "dir/inner")), Ok(0));
    assert_eq!(unlink(&at(&here, "link/deep")), Ok(0));
    assert_eq!(rmdir(&at(&here, "dir/sub")), Ok(0));
    assert_eq!(
        stat(&at(&here, "link")).map(drop),
        Err(Errno::ENOENT),
        "it leads nowhere"
    );
    assert_eq!(rmdir(&at(&here, "dir")), Ok(0));
    assert_eq!(mkdir(&at(&here, "dir")), Ok(0));
    assert_eq!(listed(&at(&here, "dir")), [""; 0]);
    assert_eq!(put(&at(&here, "dir/inner"), b"own"), Ok(()));
    assert_eq!(content(&at(&here, "dir/inner")), Ok(b"own".to_vec()));
    // Moves and links.
    assert_eq!(rename(&at(&here, "two"), &at(&here, "dir/three")), Ok(0));
    assert_eq!(content(&at(&here, "dir/three")), Ok(b"two".to_vec()));
    assert_eq!(two(86, &at(&here, "dir/three"), &at(&here, "two")), Ok(0));
    let names = ["two", "dir/three"].map(|name| stat(&at(&here, name)).expect("there"));
    assert_eq!((names[0].ino, names[0].nlink), (names[1].ino, 2));
    assert_eq!(rename(&at(&here, "dir"), &at(&here, "dir/x")), Err(Errno::EINVAL));
    assert_eq!(listed(&here), ["dir", "link", "two"]);
    assert!(host.join("one").exists() && host.join("dir/sub/deep").exists());
    assert!(!changed.load(Ordering::Relaxed));
}

#[test]
fn a_directory_of_the_lower_layer_moves_with_what_is_in_it() {
    let service = service();
    let (host, here) = folder(&service, "moved");
    fs::create_dir_all(host.join("from/in")).expect("folders");
    fs::write(host.join("from/in/file"), b"still").expect("a file");
    assert_eq!(rename(&at(&here, "from"), &at(&here, "to")), Ok(0));
    assert_eq!(listed(&here), ["to"]);
    assert_eq!(content(&at(&here, "to/in/file")), Ok(b"still".to_vec()));
    assert_eq!(mkdir(&at(&here, "from")), Ok(0));
    assert_eq!(listed(&at(&here, "from")), [""; 0]);
    assert_eq!(rename(&at(&here, "to"), &at(&here, "from")), Ok(0));
    assert_eq!(content(&at(&here, "from/in/file")), Ok(b"still".to_vec()));
    assert!(host.join("from/in/file").exists());
}

#[test]
fn what_the_host_changes_is_seen_and_never_a_surprise() {
    let service = service();
    let (host, here) = folder(&service, "host");
    fs::create_dir(host.join("dir")).expect("a folder");
    fs::write(host.join("dir/file"), b"old").expect("a file");
    let file = at(&here, "dir/file");
    assert_eq!(content(&file), Ok(b"old".to_vec()));
    fs::rename(host.join("dir"), host.join("else")).expect("a move");
    symlink("else", host.join("dir")).expect("a link");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(content(&file), Ok(b"old".to_vec()), "through the link");
    fs::remove_file(host.join("else/file")).expect("gone");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(content(&file), Err(Errno::ENOENT));
    fs::create_dir(host.join("else/file")).expect("a folder");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(content(&file), Err(Errno::EISDIR));
}

#[test]
fn another_file_system_of_the_host_is_walked_into() {
    let service = service();
    let (host, here) = folder(&service, "mounted");
    fs::create_dir_all(host.join("border/in")).expect("folders");
    fs::write(host.join("border/in/file"), b"beyond").expect("a file");
    assert_eq!(content(&at(&here, "border/in/file")), Ok(b"beyond".to_vec()));
    assert_eq!(put(&at(&here, "border/in/more"), b"own"), Ok(()));
    assert_eq!(listed(&at(&here, "border/in")), ["file", "more"]);
    assert_eq!(
        fs::read_dir(host.join("border/in")).expect("the host's").count(),
        1
    );
}

/// A tree as texts: paths with what is there.
fn tree_on_host(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").flatten() {
            let name = entry
                .path()
                .strip_prefix(root)
                .expect("below")
                .display()
                .to_string();
            if entry.path().is_dir() {
                todo.push(entry.path());
                all.insert(name, "directory".into());
            } else {
                let text = fs::read(entry.path()).expect("a file");
                all.insert(name, String::from_utf8_lossy(&text).into_owned());
            }
        }
    }
    all
}

fn tree_here(root: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(directory) = todo.pop() {
        for name in listed(&format!("{root}{directory}")) {
            let below = format!("{directory}/{name}");
            let full = format!("{root}{below}");
            let is_directory = is_dir(stat(&full).expect("listed").mode);
            let text = if is_directory {
                todo.push(below.clone());
                "directory".into()
            } else {
                String::from_utf8_lossy(&content(&full).expect("a file")).into_owned()
            };
            all.insert(below[1..].to_string(), text);
        }
    }
    all
}

/// One operation, on a directory of the host by std or in the overlay by calls: the same errors, or none.
fn std_result(result: std::io::Result<()>) -> Result<(), i32> {
    result.map_err(|e| e.raw_os_error().unwrap_or(-1))
}

fn call_result(result: SysResult<()>) -> Result<(), i32> {
    result.map_err(Errno::number)
}

#[test]
fn random_changes_do_the_same_as_on_a_tree_of_its_own() {
    let service = service();
    let (lower, here) = folder(&service, "random");
    let model = service.root.join("model");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let _ = fs::remove_dir_all(&model);
    let names = [
        "a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b", "b/a/a", "c",
    ];
    for root in [&lower, &model] {
        fs::create_dir_all(root.join("a/a")).expect("folders");
        fs::create_dir_all(root.join("b/a")).expect("folders");
        for file in ["a/b", "a/a/a", "b/b", "c"] {
            fs::write(root.join(file), file).expect("a file");
        }
    }
    let before = tree_on_host(&lower);
    let changed = watch(&service);
    for step in 0..3000 {
        let (one, two_) = (names[next(names.len())], names[next(names.len())]);
        let (host_one, host_two) = (model.join(one), model.join(two_));
        let (here_one, here_two) = (at(&here, one), at(&here, two_));
        let text = format!("text {step}");
        let (expected, found) = match next(7) {
            0 => (
                std_result(fs::create_dir(&host_one)),
                call_result(mkdir(&here_one).map(drop)),
            ),
            1 => (
                std_result(fs::remove_dir(&host_one)),
                call_result(rmdir(&here_one).map(drop)),
            ),
            2 => (
                std_result(fs::remove_file(&host_one)),
                call_result(unlink(&here_one).map(drop)),
            ),
            3 => (
                std_result(fs::rename(&host_one, &host_two)),
                call_result(rename(&here_one, &here_two).map(drop)),
            ),
            4 => (
                std_result(fs::hard_link(&host_one, &host_two)),
                call_result(two(86, &here_one, &here_two).map(drop)),
            ),
            5 => (
                std_result(fs::write(&host_one, &text)),
                call_result(put(&here_one, text.as_bytes())),
            ),
            _ => (
                std_result(fs::read(&host_one).map(drop)),
                call_result(content(&here_one).map(drop)),
            ),
        };
        // Removing a directory as a file, or the other way: which of two errors comes first differs among file systems.
        assert_eq!(
            expected.is_ok(),
            found.is_ok(),
            "step {step}: {one} {two_}: {expected:?} {found:?}"
        );
        if step % 100 == 0 {
            assert_eq!(tree_on_host(&model), tree_here(&here), "after step {step}");
        }
    }
    assert_eq!(tree_on_host(&model), tree_here(&here));
    assert_eq!(tree_on_host(&lower), before, "the host's tree");
    assert!(!changed.load(Ordering::Relaxed));
}
