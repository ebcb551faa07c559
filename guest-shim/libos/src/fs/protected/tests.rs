//! Protected volumes on a service that tells the truth, and on one that lies.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cloak_abi::config::{self, Anchored};
use cloak_abi::hostop::{HostOp, ROOT_FD};
use cloak_volumes::volume::{NewVolume, Options};
use cloak_volumes::{Fresh, MemoryStore, NoAnchor, Store, Time, Volume, VolumeKey, weakened};

use super::store::Container;
use super::{MOUNTED, Record, anchor, mount, writeback};
use crate::errno::Errno;
use crate::fs::OpenFile;
use crate::fs::fake::{self, Service};
use crate::fs::file::{File, Mapping};
use crate::fs::flags::{O_RDWR, O_SYNC, S_IFDIR, S_IFREG};
use crate::fs::mount::Source;
use crate::fs::node::{New, Node};
use crate::user::Buf;

const KEY: [u8; 32] = [5; 32];
const BLOCK: usize = 4096;

/// The service, with a new volume in its container.
struct Setting {
    service: Service,
}

impl Setting {
    fn new() -> Self {
        let service = fake::service();
        crate::random::seed(b"tests of volumes");
        let own = Self { service };
        let options = Options {
            cache_bytes: 1 << 20,
            clock: Time::default,
            expected: None,
            anchor: Box::new(NoAnchor),
            fresh: Fresh([9; 32]),
            wide: cloak_volumes::own_registers,
        };
        let new = NewVolume {
            limit: 1 << 30,
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        let made = Volume::create(MemoryStore::default(), VolumeKey::from_bytes(&KEY), &new, options);
        let store = made.and_then(Volume::close).expect("memory");
        own.put(&store.0);
        own
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(self.service.root.join(fake::CONTAINER), bytes).expect("the container");
    }

    fn container(&self) -> Vec<u8> {
        fs::read(self.service.root.join(fake::CONTAINER)).expect("the container")
    }

    fn mount_with(&self, anchor: Option<Anchored>) -> Result<Arc<dyn Node>, String> {
        let record = Record::new(&config::Protected {
            index: 3,
            flags: 0,
            anchor,
            key: &KEY,
            path: b"/data",
        });
        // The smallest cache, so that reads go to the container.
        let mounted = mount(record.expect("a mount that can be"), 0)?;
        match mounted.source {
            Source::Node(root) => Ok(root),
            Source::Host(_) => panic!("a volume is a file system in the guest"),
        }
    }

    fn mount(&self) -> Arc<dyn Node> {
        self.mount_with(None).expect("a good volume")
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.service.honest();
        MOUNTED.lock().clear();
    }
}

fn create(root: &Arc<dyn Node>, name: &[u8]) -> Arc<dyn File> {
    let node = root
        .create(name, New::Node(S_IFREG, 0), 0o644)
        .expect("a new file");
    node.open(O_RDWR).expect("opens")
}

fn open(root: &Arc<dyn Node>, name: &[u8]) -> Arc<dyn File> {
    let node = root.lookup(name).expect("it is there");
    node.open(O_RDWR).expect("opens")
}

fn read(file: &Arc<dyn File>, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    let got = file.read_at(offset, &mut Buf::own_mut(&mut bytes))?;
    bytes.truncate(got);
    Ok(bytes)
}

fn write(file: &Arc<dyn File>, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
    file.write_at(offset, &mut Buf::own(bytes))
}

#[test]
fn what_was_synced_is_there_after_the_next_mount_and_the_rest_may_be() {
    let setting = Setting::new();
    let root = setting.mount();
    let file = create(&root, b"synced");
    assert_eq!(write(&file, 10, b"content"), Ok(7));
    file.sync(false).expect("durable");
    let synced = setting.container();
    let durable = root
        .create(b"o_sync", New::Node(S_IFREG, 0), 0o644)
        .and_then(|node| node.open(O_RDWR | O_SYNC))
        .expect("opens");
    assert_eq!(write(&durable, 0, b"at once"), Ok(7));
    let later = setting.container();
    create(&root, b"forgotten");
    for (container, names) in [(synced, 1), (later, 2)] {
        MOUNTED.lock().clear();
        setting.put(&container);
        let root = setting.mount();
        assert_eq!(
            read(&open(&root, b"synced"), 0, 100).expect("good bytes"),
            b"\0\0\0\0\0\0\0\0\0\0content"
        );
        let mut listed = Vec::new();
        root.entries(2, &mut |entry| {
            listed.push(entry.name.to_vec());
            true
        })
        .expect("a directory");
        assert_eq!(listed.len(), names, "{listed:?}");
    }
}

#[test]
fn a_file_without_names_stays_as_long_as_it_is_open_and_then_its_space_is_free() {
    let setting = Setting::new();
    let root = setting.mount();
    let before = root.statfs().bfree;
    let file = create(&root, b"file");
    write(&file, 0, &[7; 64 * BLOCK]).expect("room");
    root.remove(b"file", false).expect("removed");
    assert_eq!(root.lookup(b"file").err(), Some(Errno::ENOENT));
    assert_eq!(read(&file, 63 * BLOCK as u64, 3).expect("good bytes"), [7; 3]);
    drop(file);
    root.sync().expect("durable");
    assert!(root.statfs().bfree + 8 > before, "its blocks are free again");
}

#[test]
fn mappings_and_calls_see_each_other() {
    let setting = Setting::new();
    let root = setting.mount();
    let file = create(&root, b"mapped");
    write(&file, 0, &[1; 3 * BLOCK]).expect("room");
    let Ok(Mapping::Pages(pages)) = file.map(true) else {
        panic!("shared mappings have pages");
    };
    let frame = file.shared_page(&pages, 1).expect("inside");
    let mut seen = [0; 4];
    frame.buf(0, 4).take(&mut seen).expect("own memory");
    assert_eq!(seen, [1; 4]);
    // As a mapping writes: marked once, then unseen.
    pages.mark_dirty(1);
    frame.buf(8, 6).put(b"mapped").expect("own memory");
    assert_eq!(read(&file, BLOCK as u64 + 8, 6).expect("good bytes"), b"mapped");
    write(&file, BLOCK as u64 + 8, b"called").expect("room");
    let mut seen = [0; 6];
    frame.buf(8, 6).take(&mut seen).expect("own memory");
    assert_eq!(&seen, b"called");
    assert_eq!(file.shared_page(&pages, 3).err(), Some(Errno::ENXIO));
    // What a mapping wrote last is kept when the last user goes.
    frame.buf(0, 5).put(b"later").expect("own memory");
    drop((frame, pages, file));
    root.sync().expect("durable");
    assert_eq!(
        read(&open(&root, b"mapped"), BLOCK as u64, 14).expect("good bytes"),
        b"later\x01\x01\x01called"
    );
}

#[test]
fn the_monitor_learns_each_root_and_an_older_container_is_refused() {
    let setting = Setting::new();
    let begin = Anchored {
        number: 5,
        seen: None,
    };
    let root = setting.mount_with(Some(begin)).expect("it begins");
    create(&root, b"first");
    root.sync().expect("durable");
    let older = setting.container();
    create(&root, b"second");
    root.sync().expect("durable");
    drop(root);
    MOUNTED.lock().clear();
    let seen = anchor::TOLD.lock().get(&5).copied();
    let now = Anchored { number: 5, seen };
    let newer = setting.container();
    setting.put(&older);
    let refused = setting.mount_with(Some(now)).err().expect("it is older");
    assert!(refused.contains("rolled back"), "{refused}");
    setting.put(&newer);
    setting.mount_with(Some(now)).expect("it is the last one");
}

/// The names and first bytes of files in what the container holds now.
fn durable(setting: &Setting) -> Vec<(String, Vec<u8>)> {
    let options = Options {
        cache_bytes: 1 << 20,
        clock: Time::default,
        expected: None,
        anchor: Box::new(NoAnchor),
        fresh: Fresh([8; 32]),
        wide: cloak_volumes::own_registers,
    };
    let store = MemoryStore(setting.container());
    let opened = Volume::open_read_only(store, VolumeKey::from_bytes(&KEY), options);
    let mut volume = opened.expect("a volume at every moment");
    let root = volume.root();
    let names = volume.readdir(root, 0, 100).expect("a directory");
    let mut found = Vec::new();
    for entry in names {
        let mut bytes = vec![0; 16];
        let got = volume.read_at(entry.ino, 0, &mut bytes).expect("a file");
        bytes.truncate(got);
        found.push((String::from_utf8_lossy(&entry.name).into_owned(), bytes));
    }
    found
}

#[test]
fn what_nobody_syncs_is_written_back_when_it_is_due() {
    let setting = Setting::new();
    writeback::round(u64::MAX - 1);
    let root = setting.mount();
    assert_eq!(writeback::next(), u64::MAX, "nothing is due");
    let file = create(&root, b"called");
    write(&file, 0, b"by a call").expect("room");
    let due = writeback::next();
    assert!(
        due > crate::arch::ticks() && due < u64::MAX,
        "not at once, but some time"
    );
    writeback::round(due - 1);
    assert_eq!(durable(&setting), [], "not before it is due");
    writeback::round(due);
    let called = (String::from("called"), b"by a call".to_vec());
    assert_eq!(durable(&setting), std::slice::from_ref(&called));
    assert_eq!(writeback::next(), u64::MAX, "nothing is due any more");

    let Ok(Mapping::Pages(pages)) = file.map(true) else {
        panic!("shared mappings have pages");
    };
    let frame = file.shared_page(&pages, 0).expect("inside");
    pages.mark_dirty(0);
    frame.buf(0, 2).put(b"BY").expect("own memory");
    assert_eq!(durable(&setting), [called]);
    writeback::round(writeback::next());
    assert_eq!(durable(&setting)[0].1, b"BY a call");
    assert!(writeback::next() < u64::MAX, "a mapping may write at any time");
    drop((frame, pages, file));
    writeback::round(writeback::next());
    writeback::round(u64::MAX - 1);
    assert_eq!(writeback::next(), u64::MAX);
}

/// A cheap generator: the numbers need not be good, only many.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Lies about one answer in `odds`; counts them.
fn lie(setting: &Setting, seed: u64, odds: u64, told: &Arc<AtomicU64>) {
    let dice = Mutex::new((Dice(seed), vec![0u8; BLOCK]));
    let told = told.clone();
    setting.service.twist(move |op, result, extra, buffer| {
        let mut guard = dice.lock().unwrap_or_else(PoisonError::into_inner);
        let (dice, earlier) = &mut *guard;
        // Closing gives numbers free: a lie about that is another test's.
        if matches!(op, HostOp::Close | HostOp::Write) || dice.below(odds) != 0 {
            return;
        }
        told.fetch_add(1, Ordering::Relaxed);
        let bytes = buffer.len() as u64;
        match dice.below(9) {
            0 => *result = -i64::from([5, 28, 4, 11, 122][dice.below(5) as usize]),
            1 => *result = dice.below(1 << 20) as i64,
            2 => *result = i64::MIN + dice.below(3) as i64,
            3 => *result /= 2,
            4 => *extra = u64::MAX,
            5 => buffer[dice.below(bytes.min(BLOCK as u64)) as usize] ^= 1 << dice.below(8),
            6 => buffer[..BLOCK].fill(dice.below(256) as u8),
            // What another request brought.
            7 => buffer[..BLOCK].swap_with_slice(earlier),
            _ => {
                earlier.copy_from_slice(&buffer[..BLOCK]);
                *result = 0;
            }
        }
    });
}

/// Bytes of a file that differ everywhere.
fn model(len: usize) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect()
}

#[test]
fn lies_give_errors_and_never_wrong_bytes() {
    let setting = Setting::new();
    let root = setting.mount();
    let right = model(1024 * BLOCK);
    let file = create(&root, b"file");
    assert_eq!(write(&file, 0, &right), Ok(right.len()));
    root.create(b"directory", New::Node(S_IFDIR, 0), 0o755)
        .expect("room");
    root.sync().expect("durable");
    let told = Arc::new(AtomicU64::new(0));
    lie(&setting, 0x5eed, 3, &told);
    let mut dice = Dice(77);
    let (mut failed, mut good) = (0, 0);
    for _ in 0..6000 {
        let offset = dice.below(right.len() as u64);
        let len = 1 + dice.below(200_000) as usize;
        let expected = &right[offset as usize..][..len.min(right.len() - offset as usize)];
        match read(&file, offset, len) {
            // Fewer, where a later step failed.
            Ok(bytes) => {
                assert!(
                    expected.starts_with(&bytes) && !bytes.is_empty(),
                    "wrong bytes at {offset}"
                );
                good += 1;
            }
            Err(errno) => {
                assert!(matches!(errno, Errno::EIO | Errno::ENOSPC), "{}", errno.name());
                failed += 1;
            }
        }
    }
    let lies = told.load(Ordering::Relaxed);
    assert!(
        lies > 2000 && failed > 1000 && good > 100,
        "{lies} lies, {failed} failed, {good} good"
    );
    setting.service.honest();
    assert!(
        read(&file, 0, right.len()).expect("good bytes") == right,
        "the truth is read again"
    );
}

/// One write to the container fails while a file is made durable; then the service is honest again. Whether the next sync
/// says that all is durable, and what the next mount finds.
fn after_a_failed_write() -> (bool, Result<Vec<u8>, Errno>) {
    let setting = Setting::new();
    let root = setting.mount();
    let file = create(&root, b"file");
    assert_eq!(write(&file, 0, &[1; 64 * BLOCK]), Ok(64 * BLOCK));
    root.sync().expect("durable");
    assert_eq!(write(&file, 0, &[2; 64 * BLOCK]), Ok(64 * BLOCK));
    let failed = Arc::new(AtomicU64::new(0));
    let count = failed.clone();
    setting.service.twist(move |op, result, _, _| {
        // The host's disk has failed: nothing was written.
        if op == HostOp::Sync {
            *result = -i64::from(Errno::EIO.number());
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(file.sync(false), Err(Errno::EIO));
    assert!(failed.load(Ordering::Relaxed) > 0);
    setting.service.honest();
    // What a disk loses whose flush has failed: the pages are clean and gone.
    let blocks = setting.container();
    let superblocks = blocks[..2 * BLOCK].to_vec();
    setting.put(&[superblocks, vec![0; blocks.len() - 2 * BLOCK]].concat());
    let again = file.sync(false).is_ok();
    drop((file, root));
    MOUNTED.lock().clear();
    if !again {
        setting.put(&blocks);
    }
    let root = setting.mount_with(None).map_err(|_| Errno::EIO);
    let found = root.and_then(|root| read(&open(&root, b"file"), 0, 64 * BLOCK));
    (again, found)
}

#[test]
fn after_a_failed_flush_nothing_is_called_durable_any_more() {
    let (again, found) = after_a_failed_write();
    assert!(!again, "nobody knows what is durable");
    assert_eq!(found.expect("the commit before"), [1; 64 * BLOCK]);
    let (again, found) = weakened::with(weakened::Protection::Poison, after_a_failed_write);
    assert!(
        again && found != Ok(vec![2; 64 * BLOCK]),
        "without the refusal a sync is lost"
    );
}

/// Writes are not waited for one by one, so one may fail when its call has long returned: the next sync says so.
#[test]
fn a_write_that_fails_behind_its_call_fails_the_sync_and_every_one_after_it() {
    let setting = Setting::new();
    let root = setting.mount();
    let file = create(&root, b"file");
    assert_eq!(write(&file, 0, &[1; 64 * BLOCK]), Ok(64 * BLOCK));
    root.sync().expect("durable");
    let failed = Arc::new(AtomicU64::new(0));
    let count = failed.clone();
    setting.service.twist(move |op, result, _, _| {
        if op == HostOp::PWrite && count.fetch_add(1, Ordering::Relaxed) == 0 {
            *result = -i64::from(Errno::EIO.number());
        }
    });
    // More than is kept dirty, so that some of it goes out before anybody syncs.
    let begun = write(&file, 0, &[2; 1024 * BLOCK]);
    assert!(failed.load(Ordering::Relaxed) > 0, "{begun:?}");
    assert_eq!(file.sync(false), Err(Errno::EIO));
    setting.service.honest();
    assert_eq!(file.sync(false), Err(Errno::EIO), "nothing is durable any more");
    drop((file, root));
    MOUNTED.lock().clear();
    let root = setting.mount();
    let found = read(&open(&root, b"file"), 0, 2000 * BLOCK);
    assert!(found == Ok(vec![1; 64 * BLOCK]), "the commit before");
}

#[test]
fn lies_about_writes_leave_a_state_that_was_committed() {
    let setting = Setting::new();
    let content = |version: u64| version.to_le_bytes().repeat(2 * BLOCK);
    {
        let root = setting.mount();
        let file = create(&root, b"file");
        write(&file, 0, &content(0)).expect("room");
        root.sync().expect("durable");
    }
    MOUNTED.lock().clear();
    let told = Arc::new(AtomicU64::new(0));
    let (mut durable, mut version, mut poisoned) = (0, 0, 0);
    for round in 1..300 {
        let root = setting.mount();
        let file = open(&root, b"file");
        lie(&setting, round, 20, &told);
        for _ in 0..20 {
            let next = version + 1;
            let wrote = write(&file, 0, &content(next));
            if wrote.is_ok() {
                version = next;
            }
            if wrote == Ok(content(next).len()) && file.sync(false).is_ok() {
                durable = next;
            } else if wrote.is_err() {
                poisoned += 1;
                break;
            }
        }
        setting.service.honest();
        drop((file, root));
        MOUNTED.lock().clear();
        let root = setting.mount();
        let bytes = read(&open(&root, b"file"), 0, 100 * BLOCK).expect("the truth");
        let found = u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
        assert!(bytes == content(found), "a mixture");
        assert!(
            (durable..=version + 1).contains(&found),
            "{durable} is durable, {version} was written, {found} is there"
        );
        (durable, version) = (found, version.max(found));
        drop(root);
        MOUNTED.lock().clear();
    }
    assert!(
        poisoned > 20 && durable > 100,
        "{poisoned} times poisoned, {durable} versions"
    );
}

#[test]
fn positions_and_appends_are_those_of_the_open_file() {
    let setting = Setting::new();
    let root = setting.mount();
    let file = create(&root, b"log");
    let first = OpenFile::new(
        file.clone(),
        O_RDWR | crate::fs::flags::O_APPEND,
        b"/data/log".to_vec(),
    );
    let second = OpenFile::new(file.clone(), O_RDWR, b"/data/log".to_vec());
    assert_eq!(first.file.write(&first, &mut Buf::own(b"one ")), Ok(4));
    assert_eq!(first.file.write(&first, &mut Buf::own(b"two ")), Ok(4));
    assert_eq!(second.file.write(&second, &mut Buf::own(b"ONE")), Ok(3));
    assert_eq!(first.file.write(&first, &mut Buf::own(b"three")), Ok(5));
    assert_eq!(read(&file, 0, 100).expect("good bytes"), b"ONE two three");
}

#[test]
fn what_is_read_in_a_row_is_asked_for_ahead_and_what_changed_meanwhile_is_read_anew() {
    const PIECE: usize = 64 << 10;
    let setting = Setting::new();
    let bytes = model(16 * PIECE);
    setting.put(&bytes);
    let mut container = Container::open(u64::from(ROOT_FD) + 3, true).expect("nobody has it");
    let read = |container: &mut Container, at: usize, len: usize| {
        let mut out = vec![0; len];
        container.read_at(at as u64, &mut out).map(|()| out)
    };
    let before = fake::SERVED.load(Ordering::Relaxed);
    for (at, piece) in (0..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
        assert_eq!(read(&mut container, at, PIECE).as_deref(), Ok(piece));
        // Nodes, which lie elsewhere, do not end a row.
        if at >= 2 * PIECE {
            assert_eq!(read(&mut container, 8, 16).as_deref(), Ok(&bytes[8..24]));
        }
    }
    let served = fake::SERVED.load(Ordering::Relaxed) - before;
    assert!(served <= 14 + 11, "{served} requests");

    // A row that goes on is asked for further ahead than what is used next.
    let before = fake::SERVED.load(Ordering::Relaxed);
    let requests = || fake::SERVED.load(Ordering::Relaxed) - before;
    for at in [0, PIECE, 2 * PIECE] {
        read(&mut container, at, PIECE).expect("there");
    }
    let since = std::time::Instant::now();
    while requests() < 4 {
        assert!(since.elapsed().as_secs() < 20, "{} requests", requests());
        std::thread::yield_now();
    }

    let in_a_row = |container: &mut Container| {
        read(container, 0, BLOCK).expect("there");
        read(container, BLOCK, BLOCK).expect("there");
    };
    in_a_row(&mut container);
    container.write_at(3 * BLOCK as u64, &[9; BLOCK]).expect("room");
    let mut out = [0; 2 * BLOCK];
    container.read_at(2 * BLOCK as u64, &mut out).expect("there");
    assert_eq!(out[..BLOCK], bytes[2 * BLOCK..3 * BLOCK]);
    assert_eq!(out[BLOCK..], [9; BLOCK]);
    assert!(container.forget(), "some of it was used");
    in_a_row(&mut container);
    assert!(!container.forget(), "nothing of it was used");
    in_a_row(&mut container);
    container.read_at(2 * BLOCK as u64, &mut out).expect("there");
    assert!(container.forget(), "somebody found these bytes to be wrong");
    setting.put(&[5; 4 * BLOCK]);
    container.read_at(2 * BLOCK as u64, &mut out).expect("there");
    assert_eq!(out, [5; 2 * BLOCK], "what is there by now");
    assert!(!container.forget(), "asked for when it was needed");
    in_a_row(&mut container);
    container.set_len(2 * BLOCK as u64).expect("shorter");
    assert!(
        container.read_at(2 * BLOCK as u64, &mut out).is_err(),
        "it was cut"
    );
}
