//! Measured files on a service that tells the truth, and on one that lies.

use std::fs;
use std::sync::Arc;

use cloak_abi::hostop::HostOp;
use cloak_volumes::verity::{BLOCK, Builder};

use super::content::tests_weaken;
use super::{Listed, mounts};
use crate::errno::Errno;
use crate::fs::fake::{self, Service};
use crate::fs::file::{File, Mapping};
use crate::fs::flags::{O_RDWR, S_IFDIR, S_IFLNK, S_IFMT};
use crate::fs::init::MountRecord;
use crate::fs::mount::Source;
use crate::fs::node::{Link, Node};
use crate::fs::read_cache;
use crate::user::Buf;

/// Longer than a block of the cache, and with a short last block.
const LENGTH: usize = 70 * BLOCK + 123;

fn bytes(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect()
}

fn digest(content: &[u8]) -> [u8; 32] {
    let mut builder = Builder::default();
    content.chunks(BLOCK).for_each(|block| builder.block(block));
    builder.finish().0
}

/// The service with a folder of its own, whose files are measured at `/m`.
struct Setting {
    service: Service,
    folder: String,
}

impl Setting {
    fn new(name: &str) -> Self {
        let service = fake::service();
        let folder = service.directory(name);
        tests_weaken::set(false);
        Self { service, folder }
    }

    fn on_host(&self, name: &str) -> std::path::PathBuf {
        self.service
            .root
            .join(self.folder.trim_start_matches('/'))
            .join(name)
    }

    fn put(&self, name: &str, content: &[u8]) {
        fs::write(self.on_host(name), content).expect("a file");
    }

    /// The tree of these files, which are below the folder on the host and in the guest alike.
    fn tree(&self, files: &[(&str, [u8; 32])], links: &[(&str, &str)]) -> Arc<dyn Node> {
        let path = |name: &str| format!("{}/{name}", self.folder).into_bytes();
        let record = MountRecord {
            index: 0,
            flags: cloak_abi::config::mount_flags::MEASURED,
            path: b"/".to_vec(),
        };
        let listed = Listed {
            files: files.iter().map(|(name, digest)| (*digest, path(name))).collect(),
            links: links
                .iter()
                .map(|(name, target)| (path(name), target.as_bytes().to_vec()))
                .collect(),
        };
        let mut made = mounts(&[record], &listed, &[b"/proc"]).expect("a tree");
        let Source::Node(root) = made.remove(0).source else {
            panic!("a tree is a file system in the guest");
        };
        assert_eq!(
            root.lookup(b"proc")
                .and_then(|n| n.stat())
                .map(|s| s.mode & S_IFMT),
            Ok(S_IFDIR)
        );
        root.lookup(self.folder.trim_start_matches('/').as_bytes())
            .expect("the folder")
    }

    fn file(&self, content: &[u8]) -> Result<Arc<dyn File>, Errno> {
        self.tree(&[("file", digest(content))], &[])
            .lookup(b"file")?
            .open(0)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        tests_weaken::set(false);
        self.service.honest();
    }
}

fn read(file: &Arc<dyn File>, offset: usize, len: usize) -> Result<Vec<u8>, Errno> {
    let mut out = vec![0; len];
    let mut done = 0;
    while done < len {
        let mut to = Buf::own_mut(&mut out[done..]);
        match file.read_at((offset + done) as u64, &mut to) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    out.truncate(done);
    Ok(out)
}

/// Has the caches let go of everything.
fn forget(file: &Arc<dyn File>) {
    let stat = file.stat().expect("known");
    read_cache::changed((stat.dev, stat.ino));
}

#[test]
fn reads_and_mappings_give_what_was_measured() {
    let setting = Setting::new("measured-reads");
    for length in [0, 1, BLOCK, BLOCK + 1, 128 * BLOCK, LENGTH] {
        let content = bytes(length);
        setting.put("file", &content);
        let file = setting.file(&content).expect("the right file");
        assert_eq!(file.stat().map(|s| s.size), Ok(length as i64));
        assert_eq!(
            read(&file, 0, length + 10).unwrap_or_default(),
            content,
            "{length}"
        );
        assert_eq!(
            read(&file, length / 2, 5000).unwrap_or_default(),
            content[length / 2..(length / 2 + 5000).min(length)]
        );
        let Ok(Mapping::Pages(pages)) = file.map(true) else {
            panic!("shared mappings have pages");
        };
        for page in 0..length.div_ceil(BLOCK) {
            let frame = file.shared_page(&pages, page as u64).expect("inside");
            let mut seen = vec![0; BLOCK.min(length - page * BLOCK)];
            frame.buf(0, seen.len()).take(&mut seen).expect("own memory");
            assert_eq!(seen, content[page * BLOCK..][..seen.len()]);
        }
        assert_eq!(
            file.shared_page(&pages, length.div_ceil(BLOCK) as u64).err(),
            Some(Errno::ENXIO)
        );
    }
}

#[test]
fn names_are_those_of_the_list() {
    let setting = Setting::new("measured-names");
    let content = bytes(100);
    setting.put("file", &content);
    setting.put("other", &content);
    std::os::unix::fs::symlink("other", setting.on_host("link")).expect("a link");
    let folder = setting.tree(
        &[("file", digest(&content)), ("sub/gone", digest(b"gone"))],
        &[("link", "file")],
    );
    assert_eq!(folder.lookup(b"other").err(), Some(Errno::ENOENT));
    let link = folder.lookup(b"link").expect("listed");
    assert_eq!(link.stat().map(|s| s.mode & S_IFMT), Ok(S_IFLNK));
    assert!(matches!(link.read_link(), Ok(Link::Path(target)) if target == b"file"));
    // What is listed and not there is an error when it is looked at.
    let gone = folder
        .lookup(b"sub")
        .and_then(|sub| sub.lookup(b"gone"))
        .expect("listed");
    assert_eq!(gone.stat().err(), Some(Errno::ENOENT));
    let mut names = Vec::new();
    folder
        .entries(0, &mut |entry| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        })
        .expect("a folder");
    assert_eq!(names, [".", "..", "file", "link", "sub"]);
    assert_eq!(
        folder.lookup(b"file").and_then(|f| f.open(O_RDWR)).err(),
        Some(Errno::EROFS)
    );
}

#[test]
fn another_file_is_refused_when_it_is_opened() {
    let setting = Setting::new("measured-other");
    let content = bytes(LENGTH);
    let mut changed = content.clone();
    changed[LENGTH / 3] ^= 1;
    let longer = [content.as_slice(), &[0]].concat();
    for other in [
        &changed[..],
        &content[..LENGTH - 1],
        &content[..LENGTH - BLOCK],
        &longer[..],
        b"",
    ] {
        setting.put("file", other);
        assert_eq!(setting.file(&content).err(), Some(Errno::EIO), "{}", other.len());
        tests_weaken::set(true);
        let weak = setting.file(&content).expect("nobody compares");
        assert_eq!(
            read(&weak, 0, LENGTH + 10).unwrap_or_default(),
            *other,
            "the attack works without"
        );
        tests_weaken::set(false);
    }
}

/// Also after it was opened, block by block, and the good blocks beside it are given.
#[test]
fn a_file_that_changes_while_it_is_open_gives_no_wrong_byte() {
    let setting = Setting::new("measured-meanwhile");
    let content = bytes(LENGTH);
    setting.put("file", &content);
    let file = setting.file(&content).expect("the right file");
    let bad = 20;
    let mut changed = content.clone();
    changed[bad * BLOCK + 7] ^= 0x80;
    setting.put("file", &changed);
    // What was compared before is kept.
    assert_eq!(read(&file, 0, LENGTH).unwrap_or_default(), content);
    let file = || {
        let file = setting.file(&content);
        file.expect("still known")
    };
    assert!(
        setting.file(&content).is_err(),
        "to a new look it is another file"
    );
    setting.put("file", &content);
    let opened = file();
    setting.put("file", &changed);
    forget(&opened);
    let opened = {
        let again = opened.node().expect("a node").clone().open(0);
        again.expect("known already")
    };
    for block in 0..LENGTH.div_ceil(BLOCK) {
        let end = ((block + 1) * BLOCK).min(LENGTH);
        let got = read(&opened, block * BLOCK, end - block * BLOCK);
        if block == bad {
            assert_eq!(got, Err(Errno::EIO));
        } else {
            assert_eq!(
                got.unwrap_or_default(),
                content[block * BLOCK..end],
                "block {block}"
            );
        }
    }
    assert_eq!(
        read(&opened, 0, LENGTH).unwrap_or_default(),
        content[..bad * BLOCK]
    );
    let Ok(Mapping::Pages(pages)) = opened.map(true) else {
        panic!("shared mappings have pages");
    };
    assert_eq!(opened.shared_page(&pages, bad as u64).err(), Some(Errno::EIO));
    assert!(opened.shared_page(&pages, bad as u64 + 1).is_ok());
    // Cut short.
    setting.put("file", &content[..30 * BLOCK]);
    forget(&opened);
    let opened = opened
        .node()
        .expect("a node")
        .clone()
        .open(0)
        .expect("known already");
    assert_eq!(read(&opened, 40 * BLOCK, 10), Err(Errno::EIO));
    // The same without comparing.
    setting.put("file", &changed);
    forget(&opened);
    tests_weaken::set(true);
    let weak = opened
        .node()
        .expect("a node")
        .clone()
        .open(0)
        .expect("known already");
    assert_eq!(
        read(&weak, 0, LENGTH).unwrap_or_default(),
        changed,
        "the attack works without"
    );
}

/// Every answer that carries bytes is changed, in one bit, at some time or other.
#[test]
fn a_service_that_flips_bits_gives_errors_and_never_wrong_bytes() {
    let setting = Setting::new("measured-flips");
    let content = bytes(LENGTH);
    setting.put("file", &content);
    let run = || {
        let mut wrong = 0;
        let mut errors = 0;
        for at in (0..LENGTH).step_by(1009) {
            let file = setting.file(&content).expect("honest while it is opened");
            forget(&file);
            let file = file
                .node()
                .expect("a node")
                .clone()
                .open(0)
                .expect("known already");
            setting.service.twist(move |op, result, _, buffer| {
                if op == HostOp::PRead && *result > 0 {
                    buffer[at % *result as usize] ^= 1 << (at % 8);
                }
            });
            match read(&file, 0, LENGTH) {
                Ok(got) if content.starts_with(&got) => errors += usize::from(got.len() < LENGTH),
                Ok(_) => wrong += 1,
                Err(errno) => {
                    assert_eq!(errno, Errno::EIO);
                    errors += 1;
                }
            }
            setting.service.honest();
        }
        (wrong, errors)
    };
    let tried = LENGTH.div_ceil(1009);
    assert_eq!(run(), (0, tried));
    tests_weaken::set(true);
    assert_eq!(run(), (tried, 0), "without comparing each one shows");
}
