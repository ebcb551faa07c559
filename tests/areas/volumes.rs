//! `cloak run --protected`: what a program keeps in a protected volume lasts, is seen by nobody on the OS side, and can't
//! be changed or set back unnoticed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cloak_tests::os_side::{children_of, count, memory_of};
use cloak_tests::process::Running;
use cloak_tests::programs::{Linkage, built};
use cloak_tests::{Case, Launcher, Scratch, needs};

const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
/// Made up of parts inside the guest, so that no command line holds it.
const MARKER: &[u8] = b"SECRET-OF-THE-VOLUME";
const WRITE_MARKER: &str =
    "i=0; while [ $i -lt 2000 ]; do printf '%s-OF-%s-%s.' SECRET THE VOLUME; i=$((i+1)); done";

/// A volume with its key and its anchor, in a folder of its own.
struct Volume {
    scratch: Scratch,
}

impl Volume {
    fn new() -> Self {
        let own = Self {
            scratch: Scratch::new(),
        };
        let made = own.command("create", &["--new-key-file"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        own
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn container(&self) -> PathBuf {
        self.file("container")
    }

    /// `cloak volume SUBCOMMAND CONTAINER --key … --anchor …`.
    fn command(&self, subcommand: &str, options: &[&str]) -> Output {
        Command::new(cloak())
            .args(["volume", subcommand])
            .arg(self.container())
            .arg("--key")
            .arg(self.file("key"))
            .arg("--anchor")
            .arg(self.file("anchor"))
            .args(options)
            .output()
            .expect("cloak starts")
    }

    fn is_good(&self) {
        let check = self.command("check", &[]);
        let text =
            String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success(), "{text}");
    }

    fn option(&self, more: &str) -> String {
        let path = |name: &str| self.file(name).display().to_string();
        format!("{}:/data:key={}{more}", path("container"), path("key"))
    }

    fn with(&self, program: impl Into<PathBuf>, more: &str) -> Case {
        Case::new(program)
            .memory("512M")
            .option("--protected")
            .option(&self.option(more))
            .patience(PATIENCE)
    }

    /// A shell in the volume, with its anchor.
    fn shell(&self, script: &str) -> Case {
        let anchor = format!(",anchor={}", self.file("anchor").display());
        self.with("/bin/busybox", &anchor)
            .args(["sh", "-c"])
            .arg(format!("cd /data; {script}"))
    }

    fn runs(&self, script: &str) -> String {
        let outcome = self.shell(script).run(&Launcher::under_test());
        assert_eq!(outcome.status.shell_code(), 0, "{}", outcome.error_text());
        outcome.text()
    }
}

fn cloak() -> PathBuf {
    match Launcher::under_test() {
        Launcher::Cloak(path) => path,
        Launcher::Native => unreachable!("the launcher under test is a binary"),
    }
}

fn busybox() -> bool {
    needs::cloaked_program("busybox").is_some()
}

#[test]
fn a_program_keeps_its_vector_registers_while_blocks_are_sealed_and_opened() {
    for linkage in [Linkage::Dynamic, Linkage::Static] {
        let Some(program) = built("vector_registers", linkage) else {
            continue;
        };
        let volume = Volume::new();
        let case = volume.with(program, "").memory("64M").arg("/data/file");
        let outcome = case.run(&Launcher::under_test());
        let (code, text) = (outcome.status.shell_code(), outcome.text());
        assert!(
            code == 0 && text.contains("ok zmm through a sync"),
            "{code}: {text}"
        );
        assert!(!text.contains("FAILED"), "{text}");
    }
}

#[test]
fn what_is_written_is_there_in_the_next_run() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    volume.runs("echo content > a; mkdir d; ln -s ../a d/link; ln a other; mknod pipe p; mv other d/moved");
    assert_eq!(
        volume.runs("cat d/link d/moved; rm a; ls d"),
        "content\ncontent\nlink\nmoved\n"
    );
    assert_eq!(
        volume.runs("cat d/moved; stat -c %h d/moved; ls"),
        "content\n1\nd\npipe\n"
    );
    volume.is_good();
}

/// Calls, mappings, names and attributes as on the host's own file system.
#[test]
fn files_behave_as_on_the_host() {
    let Some(python) = needs::cloaked_program("python3") else {
        return;
    };
    let script = include_str!("../data/volume_semantics.py");
    let scratch = Scratch::new();
    let native = Command::new(&python)
        .args(["-c", script])
        .current_dir(scratch.path())
        .output()
        .expect("python starts");
    assert!(
        native.status.success(),
        "{}",
        String::from_utf8_lossy(&native.stderr)
    );
    let volume = Volume::new();
    let cloaked = volume
        .with(&python, "")
        .option("--workdir")
        .option("/data")
        .args(["-c", script])
        .run(&Launcher::under_test());
    assert_eq!(cloaked.status.shell_code(), 0, "{}", cloaked.error_text());
    assert_eq!(cloaked.text(), String::from_utf8_lossy(&native.stdout));
}

/// Lets a program write the marker, and gives the memory of the OS service meanwhile.
fn observed(case: Case) -> Vec<u8> {
    let mut running: Running = case.start(&Launcher::under_test());
    assert!(
        running.prints("written", PATIENCE),
        "{}",
        String::from_utf8_lossy(&running.stderr_so_far())
    );
    let services = children_of(running.pid().as_raw_nonzero().get());
    assert_eq!(services.len(), 1, "one OS service");
    let memory = memory_of(services[0]);
    assert!(
        memory.len() > 16 << 20,
        "the shared region is in it: {} bytes",
        memory.len()
    );
    memory
}

#[test]
fn nothing_of_it_is_seen_on_the_os_side() {
    if !busybox() || !needs::root() {
        return;
    }
    let volume = Volume::new();
    let memory = observed(volume.shell(&format!(
        "({WRITE_MARKER}) > NAME-OF-A-FILE; sync; cat NAME-OF-A-FILE | wc -c; echo written; sleep 1000"
    )));
    let container = fs::read(volume.container()).expect("the container");
    let key = fs::read(volume.file("key")).expect("the key");
    for (what, bytes) in [("container", &container), ("service's memory", &memory)] {
        assert_eq!(count(bytes, MARKER), 0, "the marker is in the {what}");
        assert_eq!(count(bytes, &key), 0, "the key is in the {what}");
        assert_eq!(count(bytes, b"NAME-OF-A-FILE"), 0, "the name is in the {what}");
    }
    assert_eq!(volume.runs("wc -c < NAME-OF-A-FILE"), "42000\n");

    // The same on a shared volume, to show that this test finds what is there.
    let shared = Scratch::new();
    let folder = shared.path().display().to_string();
    let memory = observed(
        Case::new("/bin/busybox")
            .args(["sh", "-c"])
            .arg(format!(
                "cd {folder}; ({WRITE_MARKER}) > file; cat file | wc -c; echo written; sleep 1000"
            ))
            .volume(shared.path())
            .memory("512M"),
    );
    assert!(
        count(&memory, MARKER) > 0,
        "the service's memory holds a shared file"
    );
    assert_eq!(
        count(&fs::read(shared.join("file")).expect("the file"), MARKER),
        2000
    );
}

/// The host's root is shared read-only, but not the key on it, nor by way of a shared volume.
#[test]
fn the_key_file_is_not_given_to_the_os_side() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    // The guest's `/tmp` is its own, so a place that it sees on the host's root.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("key-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder of the build");
    let (key, beside) = (folder.join("key"), folder.join("beside"));
    fs::copy(volume.file("key"), &key).expect("room");
    fs::write(&beside, "beside").expect("room");
    let option = format!("{}:/data:key={}", volume.container().display(), key.display());
    let cat = |file: &Path| Case::new("/bin/busybox").arg("cat").arg(file);
    let with = |case: Case| {
        case.option("--protected")
            .option(&option)
            .run(&Launcher::under_test())
    };

    assert_eq!(with(cat(&beside)).text(), "beside");
    let refused = with(cat(&key));
    let shared = with(cat(&beside).volume(&folder));
    // Without a protected volume it is a file like others: it is the run that withholds it.
    let plain = cat(&key).run(&Launcher::under_test());
    let right = fs::read(&key).expect("the key");
    fs::remove_dir_all(&folder).expect("own folder");

    assert_eq!(refused.status.shell_code(), 1, "{}", refused.error_text());
    assert!(refused.stdout.is_empty(), "the key is read through the service");
    assert_eq!(shared.status.shell_code(), 125, "{}", shared.text());
    assert!(
        shared.error_text().contains("keep it elsewhere"),
        "{}",
        shared.error_text()
    );
    assert_eq!(plain.stdout, right);
}

fn flip(container: &Path, block: usize) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(container)
        .expect("the container");
    let at = (block * BLOCK + 100) as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 4], at).expect("inside");
}

const FILL: &str =
    "i=0; while [ $i -lt 4096 ]; do printf '%016d%016d%016d%016d' $i $i $i $i; i=$((i+1)); done > big";

#[test]
fn a_changed_block_is_an_error_and_never_wrong_data() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    volume.runs(FILL);
    let right = volume.runs("cat big");
    assert_eq!(right.len(), 4096 * 64);
    let good = fs::read(volume.container()).expect("the container");
    let blocks = good.len() / BLOCK;
    let (mut refused, mut failed, mut unharmed) = (0, 0, 0);
    for block in (2..blocks).step_by((blocks / 40).max(1)) {
        flip(&volume.container(), block);
        let outcome = volume.shell("cat big").run(&Launcher::under_test());
        let said = outcome.error_text();
        match outcome.status.shell_code() {
            0 => {
                assert!(outcome.text() == right, "wrong data after block {block}");
                unharmed += 1;
            }
            125 => {
                assert!(said.contains("tampered: "), "{said}");
                refused += 1;
            }
            _ => {
                assert!(
                    right.starts_with(&outcome.text()),
                    "wrong data after block {block}"
                );
                assert!(
                    said.contains("tampered: ") && said.contains(&format!("byte {}", block * BLOCK)),
                    "{said}"
                );
                assert!(said.contains("Input/output error"), "{said}");
                failed += 1;
            }
        }
        fs::write(volume.container(), &good).expect("the container");
    }
    // Most blocks are the file's; some are free, or nodes that are read when the volume is opened.
    assert!(
        failed > 10,
        "{failed} failed, {refused} refused, {unharmed} unharmed"
    );
}

#[test]
fn a_block_that_changes_during_the_run_is_an_error() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    volume.runs(FILL);
    let go = volume.file("go");
    fs::create_dir(&go).expect("scratch is writable");
    let flag = go.join("on").display().to_string();
    let case = volume
        .shell(&format!(
            "ls; echo ready; until [ -e {flag} ]; do usleep 10000; done; cat big > /dev/null && echo read; echo more > new || true"
        ))
        .volume(&go);
    let mut running = case.start(&Launcher::under_test());
    assert!(running.prints("ready", PATIENCE));
    let blocks = fs::metadata(volume.container()).expect("the container").len() as usize / BLOCK;
    (0..blocks).for_each(|block| flip(&volume.container(), block));
    fs::write(&flag, "").expect("scratch is writable");
    let outcome = running.finish(PATIENCE).expect("it ends");
    assert!(!outcome.text().contains("read\n"), "{}", outcome.text());
    assert!(
        outcome.error_text().contains("tampered: "),
        "{}",
        outcome.error_text()
    );
}

#[test]
fn the_whole_of_yesterday_is_refused_by_the_anchor() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    volume.runs("echo yesterday > day");
    let yesterday = fs::read(volume.container()).expect("the container");
    volume.runs("echo today > day");
    let today = fs::read(volume.container()).expect("the container");
    fs::write(volume.container(), &yesterday).expect("the container");
    let outcome = volume.shell("cat day").run(&Launcher::under_test());
    assert_eq!(outcome.status.shell_code(), 125, "{}", outcome.text());
    assert!(
        outcome.error_text().contains("rolled back"),
        "{}",
        outcome.error_text()
    );
    assert_eq!(outcome.text(), "");
    // Without the anchor nobody can tell: it is the anchor that does it.
    let blind = volume
        .with("/bin/busybox", "")
        .args(["cat", "/data/day"])
        .run(&Launcher::under_test());
    assert_eq!(blind.text(), "yesterday\n");
    fs::write(volume.container(), &today).expect("the container");
    assert_eq!(volume.runs("cat day"), "today\n");
}

/// The VM is killed while it writes: what was said to be durable is there, and the volume is whole.
#[test]
fn a_killed_vm_loses_nothing_that_was_synced() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    let mut kept = 0;
    for round in 0..6 {
        let script = format!(
            "i={kept}; while :; do i=$((i+1)); dd if=/dev/urandom of=noise bs=4k count=$((i % 50)) 2> /dev/null; \
             echo $i | dd of=f$((i % 7)) conv=fsync 2> /dev/null && echo done $i; done"
        );
        let mut running = volume.shell(&script).start(&Launcher::under_test());
        assert!(
            running.prints(&format!("done {}\n", kept + 5), PATIENCE),
            "{}",
            String::from_utf8_lossy(&running.stderr_so_far())
        );
        sleep(Duration::from_millis(7 * round));
        let group = running.pid();
        rustix::process::kill_process(group, rustix::process::Signal::KILL).expect("it runs");
        let outcome = running.finish(PATIENCE).expect("it ends");
        let text = outcome.text();
        // The last line may be cut: only whole ones were said.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let last = whole.lines().last().and_then(|line| line.strip_prefix("done "));
        kept = last.and_then(|n| n.parse::<u64>().ok()).expect("what it said");
        wait_for_service_to_end(&volume);
        volume.is_good();
        let found = volume.runs("cat f0 f1 f2 f3 f4 f5 f6 2> /dev/null | sort -n | tail -1");
        let found: u64 = found.trim().parse().expect("a number");
        assert!(found >= kept, "{kept} was synced, {found} is there");
        kept = found;
    }
}

/// As on Linux's own file systems: nobody syncs, and after some seconds it is durable all the same.
#[test]
fn what_nobody_syncs_is_durable_after_a_while_and_survives_a_kill() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    let script = "mkdir d; echo kept > d/quiet; echo written; exec sleep 100000";
    let mut running = volume.shell(script).start(&Launcher::under_test());
    assert!(running.prints("written\n", PATIENCE), "it wrote");
    // The container is the run's; what is durable is in a copy as well, whatever is written meanwhile.
    let copy = volume.file("copy");
    let written_back = || {
        fs::copy(volume.container(), &copy).expect("it is there");
        let mut list = Command::new(cloak());
        list.args(["volume", "ls", "--recursive", "--key"])
            .arg(volume.file("key"));
        let listed = list.arg(&copy).output().expect("cloak starts");
        String::from_utf8_lossy(&listed.stdout).contains("d/quiet")
    };
    let deadline = Instant::now() + PATIENCE;
    while !written_back() {
        assert!(Instant::now() < deadline, "nothing is written back");
        sleep(Duration::from_millis(200));
    }
    rustix::process::kill_process(running.pid(), rustix::process::Signal::KILL).expect("it runs");
    running.finish(PATIENCE).expect("it ends");
    wait_for_service_to_end(&volume);
    volume.is_good();
    assert_eq!(volume.runs("cat d/quiet"), "kept\n");
}

/// The service ends a moment after the monitor, and holds the container until then.
fn wait_for_service_to_end(volume: &Volume) {
    let deadline = Instant::now() + PATIENCE;
    while !volume.command("ls", &[]).status.success() {
        assert!(Instant::now() < deadline, "the container stays in use");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn sqlite_with_wal() {
    let Some(sqlite) = needs::cloaked_program("sqlite3") else {
        return;
    };
    let volume = Volume::new();
    let run = |script: &str| {
        let outcome = volume
            .with(&sqlite, "")
            .arg("/data/t.db")
            .arg(script)
            .run(&Launcher::under_test());
        assert_eq!(outcome.status.shell_code(), 0, "{}", outcome.error_text());
        outcome.text()
    };
    let first = run(
        "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO t SELECT i, hex(i*7919) FROM n;
        CREATE INDEX by_value ON t(v); BEGIN; UPDATE t SET v = v || 'x' WHERE id % 3 = 0; COMMIT;
        SELECT count(*), sum(length(v)) FROM t; PRAGMA integrity_check;",
    );
    let second = run("SELECT count(*), sum(length(v)) FROM t; PRAGMA integrity_check;");
    assert_eq!(first, format!("wal\n{second}"));
    assert!(second.ends_with("ok\n"), "{second}");
}

const SQLITE_ROWS: &str = "
import sqlite3, sys
link = sqlite3.connect('/data/t.db', isolation_level=None)
link.execute('PRAGMA journal_mode=' + sys.argv[1])
# As much as FULL, and a rollback journal's removal, which commits, is synced as well.
link.execute('PRAGMA synchronous=EXTRA')
link.execute('CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v TEXT)')
n = link.execute('SELECT coalesce(max(id), 0) FROM t').fetchone()[0]
print('found', n, link.execute('PRAGMA integrity_check').fetchone()[0], flush=True)
while len(sys.argv) < 3:
    n += 1
    link.execute('INSERT INTO t VALUES(?, ?)', (n, 'v' * (n * 37 % 5000)))
    print('done', n, flush=True)
";

/// Rows of SQLite that were committed survive a kill of the VM, and one of the OS service under it. (Longer, and with
/// PostgreSQL: `tests/suites/volumes`.)
#[test]
fn committed_rows_survive_kills_of_the_vm_and_of_the_service() {
    let Some(python) = needs::cloaked_program("python3") else {
        return;
    };
    let volume = Volume::new();
    let anchor = format!(",anchor={}", volume.file("anchor").display());
    let sqlite = |arguments: &[&str]| {
        volume
            .with(&python, &anchor)
            .args(["-c", SQLITE_ROWS])
            .args(arguments)
    };
    let mut kept = 0;
    for (round, mode) in ["WAL", "DELETE", "WAL", "DELETE"].into_iter().enumerate() {
        let mut running = sqlite(&[mode]).start(&Launcher::under_test());
        assert!(
            running.prints(&format!("done {}\n", kept + 10), PATIENCE),
            "{}",
            String::from_utf8_lossy(&running.stderr_so_far())
        );
        let monitor = running.pid();
        let services = children_of(monitor.as_raw_nonzero().get());
        assert_eq!(services.len(), 1, "one OS service");
        let service = rustix::process::Pid::from_raw(services[0]).expect("a number");
        let victim = if round < 2 { service } else { monitor };
        rustix::process::kill_process(victim, rustix::process::Signal::KILL).expect("it runs");
        let text = running.finish(PATIENCE).expect("it ends").text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let last = whole.lines().last().and_then(|line| line.strip_prefix("done "));
        kept = last.and_then(|n| n.parse::<u64>().ok()).expect("what it said");
        wait_for_service_to_end(&volume);
        volume.is_good();
        let outcome = sqlite(&[mode, "look"]).run(&Launcher::under_test());
        let text = outcome.text();
        let found = text
            .strip_prefix("found ")
            .and_then(|rest| rest.strip_suffix(" ok\n"));
        let found = found.and_then(|n| n.parse::<u64>().ok());
        let found = found.unwrap_or_else(|| panic!("{text}{}", outcome.error_text()));
        assert!(found >= kept, "{kept} was committed, {found} is there");
        kept = found;
    }
}

/// Without the key the program sees what the OS side sees: places for names, ciphertext for bytes, and nothing to be changed.
#[test]
fn without_its_key_a_volume_is_opaque_names_and_bytes() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    volume.runs(&format!(
        "({WRITE_MARKER}) > NAME-OF-A-FILE; dd if=/dev/zero of=zeros bs=1M count=3 2> /dev/null"
    ));
    let container = fs::read(volume.container()).expect("the container");
    let option = format!("{}:/data:no-key", volume.container().display());
    let keyless = |script: &str| {
        let case = Case::new("/bin/busybox")
            .memory("512M")
            .args(["sh", "-c", script]);
        let outcome = case
            .option("--protected")
            .option(&option)
            .run(&Launcher::under_test());
        (outcome.stdout.clone(), outcome.text(), outcome.error_text())
    };
    let (bytes, _, said) = keyless("cd /data; cat superblock-0 superblock-1 blocks-*");
    assert!(
        bytes == container,
        "all of the container and nothing else: {said}"
    );
    assert_eq!(count(&bytes, MARKER) + count(&bytes, b"NAME-OF-A-FILE"), 0);
    let (_, names, _) = keyless("ls /data");
    let from_outside = Command::new(cloak())
        .args(["volume", "ls"])
        .arg(volume.container())
        .output()
        .expect("cloak starts");
    let from_outside = String::from_utf8_lossy(&from_outside.stdout).into_owned();
    assert!(names.lines().count() > 4, "{names}");
    assert!(
        names.lines().all(|name| from_outside.contains(name)),
        "{names} is not what cloak volume ls shows: {from_outside}"
    );
    let (_, out, said) = keyless(
        "cd /data; echo x > new; echo x > superblock-0; rm blocks-*2; mkdir d; chmod 600 superblock-1; tail -c 5 superblock-1 | wc -c",
    );
    assert_eq!(out, "5\n");
    assert_eq!(said.matches("Read-only file system").count(), 5, "{said}");
    assert!(fs::read(volume.container()).expect("the container") == container);
    // Also while the one who has the key writes.
    let writes = "date > day; sync; echo ready; while :; do date > day; sync; done";
    let mut running = volume.shell(writes).start(&Launcher::under_test());
    assert!(running.prints("ready", PATIENCE));
    let (bytes, _, said) = keyless("cat /data/superblock-0");
    assert_eq!(&bytes[..8], b"CLOAKVOL", "{said}");
    drop(running);
    wait_for_service_to_end(&volume);
    // What the key shows instead, so that this could fail.
    assert_eq!(volume.runs("ls; wc -c < NAME-OF-A-FILE").lines().count(), 4);
}

#[test]
fn git_commits_and_fsck() {
    let Some(git) = needs::cloaked_program("git") else {
        return;
    };
    let volume = Volume::new();
    let run = |script: &str| {
        let outcome = volume
            .with("/bin/sh", "")
            .option("--workdir")
            .option("/data")
            .env("HOME", "/data")
            .env("GIT", git.to_str().expect("a plain path"))
            .args(["-c", script])
            .run(&Launcher::under_test());
        assert_eq!(outcome.status.shell_code(), 0, "{}", outcome.error_text());
        outcome.text()
    };
    run(
        "$GIT init -q r && cd r && $GIT config user.email a@example.org && $GIT config user.name n &&
        for i in 1 2 3 4 5 6 7 8 9 10; do echo $i > f$i; $GIT add f$i; $GIT commit -qm c$i || exit 1; done",
    );
    let second = run(
        "cd r && $GIT fsck --strict && $GIT gc -q && $GIT fsck && $GIT log --oneline | wc -l && $GIT status -s",
    );
    assert_eq!(second.trim(), "10");
}

#[test]
fn a_read_only_volume_is_not_written() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    volume.runs("echo content > a");
    let before = fs::read(volume.container()).expect("the container");
    let outcome = volume
        .with("/bin/busybox", ",ro")
        .args([
            "sh",
            "-c",
            "cat /data/a; echo more > /data/b; rm /data/a; touch /data/a; cat /data/a",
        ])
        .run(&Launcher::under_test());
    assert_eq!(outcome.text(), "content\ncontent\n");
    assert_eq!(
        outcome.error_text().matches("Read-only file system").count(),
        3,
        "{}",
        outcome.error_text()
    );
    assert!(fs::read(volume.container()).expect("the container") == before);
}

/// Cloak's own failures: nothing runs, and what is said names the reason.
#[test]
fn what_can_not_be_mounted_is_refused_before_the_program_runs() {
    if !busybox() {
        return;
    }
    let volume = Volume::new();
    let refused = |case: Case, expected: &str| {
        let outcome = case.args(["echo", "ran"]).run(&Launcher::under_test());
        assert_eq!(outcome.status.shell_code(), 125, "{}", outcome.text());
        assert!(
            outcome.error_text().contains(expected),
            "{expected}: {}",
            outcome.error_text()
        );
        assert_eq!(outcome.text(), "");
    };
    let of = |option: String| Case::new("/bin/busybox").option("--protected").option(&option);
    let path = |name: &str| volume.file(name).display().to_string();
    fs::write(volume.file("other"), [7; 32]).expect("scratch is writable");
    fs::write(volume.file("nothing"), vec![0; 1 << 20]).expect("scratch is writable");
    let mode = |name: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(volume.file(name), fs::Permissions::from_mode(mode)).expect("own file");
    };
    refused(
        of(format!("{}:/data:key={}", path("container"), path("other"))),
        "lets others in",
    );
    mode("other", 0o600);
    refused(
        of(format!("{}:/data:key={}", path("container"), path("other"))),
        "wrong key",
    );
    refused(
        of(format!("{}:/data:key={}", path("container"), path("missing"))),
        "missing",
    );
    refused(
        of(format!("{}:/data:key={}", path("missing"), path("key"))),
        "missing",
    );
    refused(
        of(format!("{}:/data:key={}", path("nothing"), path("key"))),
        "no volume",
    );
    refused(
        of(format!(
            "{}:/data:key={}",
            volume.scratch.path().display(),
            path("key")
        )),
        "regular file",
    );
    refused(
        of(volume.option(&format!(",anchor={}", path("lost")))),
        "never seen this volume",
    );
    refused(
        of(format!("{}:/data", path("container"))),
        "expected CONTAINER:GUEST:key=FILE",
    );

    let mut first = volume
        .shell("echo ready; sleep 1000")
        .start(&Launcher::under_test());
    assert!(first.prints("ready", PATIENCE));
    refused(
        volume.with("/bin/busybox", ""),
        "another program has the container open",
    );
}
