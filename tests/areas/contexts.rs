//! `cloak pod`: several contexts in one VM see nothing of each other, and end each by itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cloak_tests::os_side::children_of;
use cloak_tests::process::Running;
use cloak_tests::programs::{Linkage, built};
use cloak_tests::{Case, Launcher, Outcome, Scratch, Status, needs};

const PATIENCE: Duration = Duration::from_secs(120);
/// The halves of what the victim keeps; only it puts them together.
const MARKER: (&str, &str) = ("THE-VICTIMS-OWN-SEC", "RET-WORDS");

fn cloak(arguments: &[&str]) -> Command {
    let Launcher::Cloak(cloak) = Launcher::under_test() else {
        panic!("the launcher under test is cloak");
    };
    let mut command = Command::new(cloak);
    command.args(arguments);
    command
}

struct Pod {
    scratch: Scratch,
    text: String,
}

impl Pod {
    fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            text: "version = 1\n".to_owned(),
        }
    }

    /// One more context; `more` are further fields.
    fn context(mut self, name: &str, command: &[&str], more: &str) -> Self {
        let command = format!("{command:?}");
        self.text +=
            &format!("[[context]]\nname = \"{name}\"\nmemory = \"256M\"\n{more}\ncommand = {command}\n");
        self
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = cloak(&["pod", subcommand]);
        command.arg(self.scratch.write("pod.toml", &self.text));
        command
    }

    fn start(&self) -> Running {
        Running::start(self.command("run"), Vec::new()).expect("cloak starts")
    }

    fn run(&self) -> Outcome {
        self.start().finish(PATIENCE).expect("the pod ends")
    }
}

#[track_caller]
fn has_line(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no line {line:?} in:\n{text}");
}

#[test]
fn contexts_run_beside_each_other_and_end_each_by_itself() {
    if !needs::kvm() {
        return;
    }
    let outcome = Pod::new()
        .context(
            "first",
            &[
                "/bin/sh",
                "-c",
                "uname -n; cat; for i in 1 2 3; do /bin/echo round $i; done",
            ],
            "",
        )
        .context(
            "second",
            &["/bin/sh", "-c", "echo $GREETING; exit 7"],
            "environment = [\"GREETING=good day\"]\ncpus = 2",
        )
        .context("third", &["/bin/sh", "-c", "kill -9 $$"], "")
        .context("fourth", &["/no-such-program"], "")
        .run();
    let (out, errors) = (outcome.text(), outcome.error_text());
    for line in ["first", "round 3", "good day"] {
        has_line(&out, line);
    }
    for line in [
        "cloak: context first: exited with 0",
        "cloak: context second: exited with 7",
        "cloak: context third: ended by signal 9",
        "cloak: context fourth: /no-such-program: no such file; is it on a mounted volume? (ENOENT)",
    ] {
        has_line(&errors, line);
    }
    assert_eq!(outcome.status.shell_code(), 7, "that of the first that failed");
}

#[test]
fn a_pod_file_that_can_not_be_is_refused() {
    let refused = |text: &str, why: &str| {
        let mut pod = Pod::new();
        pod.text = text.to_owned();
        let told = pod.command("check").output().expect("cloak starts");
        let errors = String::from_utf8_lossy(&told.stderr).into_owned();
        assert_eq!(told.status.code(), Some(125), "{errors}");
        assert!(errors.contains(why), "no {why:?} in:\n{errors}");
    };
    refused("version = 2\ncontext = []", "this program knows 1");
    refused("version = 1", "missing field `context`");
    refused(
        "version = 1\n[[context]]\nname = \"a\"\ncommand = []",
        "empty command",
    );
    refused(
        "version = 1\n[[context]]\nname = \"a\"\ncommand = [\"x\"]\nshare = 1",
        "unknown field `share`",
    );
    refused("version = 1\n[[context]]\ncommand = [\"x\"]", "needs a name");
    refused(
        "version = 1\n[[context]]\nname = \"a\"\ncommand = [\"x\"]\nroot_key = \"k\"",
        "go with a manifest",
    );
    let twice = "[[context]]\nname = \"a\"\ncommand = [\"x\"]\n".repeat(2);
    refused(&format!("version = 1\n{twice}"), "two contexts have the name a");
}

/// The victim: a secret in its memory, in a file, behind a socket, until the attackers have ended.
const VICTIM: &str = r#"
import socket, sys, time, os
secret = (sys.argv[1] + sys.argv[2]).encode()
kept = bytearray(secret * 100000)
open("/tmp/secret", "wb").write(secret)
open("/vault/secret", "wb").write(secret)
s = socket.socket(socket.AF_UNIX)
s.bind("\0victim")
s.listen()
open("/shared/ready", "w").close()
for _ in range(1200):
    if os.path.exists("/shared/done"):
        break
    time.sleep(0.1)
else:
    sys.exit(2)
s.settimeout(0)
try:
    s.accept()
    sys.exit(3)
except BlockingIOError:
    pass
assert kept == secret * 100000 and open("/tmp/secret", "rb").read() == secret
assert open("/vault/secret", "rb").read() == secret
print("the victim is whole", flush=True)
"#;

/// What Linux itself offers: names, sockets, processes, files.
const NOSY: &str = r#"
import socket, sys, os, time
while not os.path.exists("/shared/ready"):
    time.sleep(0.05)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect("\0victim")
    print("WORKED connect")
except ConnectionRefusedError:
    print("refused connect")
print("WORKED file" if os.path.exists("/tmp/secret") else "refused file")
print("WORKED volume" if os.path.exists("/vault") or open("/shared/vault", "rb").read().find((sys.argv[1] + sys.argv[2]).encode()) >= 0 else "refused volume")
pids = [p for p in os.listdir("/proc") if p.isdigit()]
print("refused processes" if pids == [str(os.getpid())] else "WORKED processes")
found = [n for n in os.listdir("/dev/shm")]
print("WORKED shared memory" if found else "refused shared memory")
try:
    for pid in range(2, 50):
        if pid != os.getpid():
            os.kill(pid, 9)
            print("WORKED kill")
except ProcessLookupError:
    print("refused kill")
"#;

#[test]
fn a_context_that_has_taken_its_libos_over_reaches_nothing_of_another() {
    if !needs::kvm() {
        return;
    }
    let Some(hostile) = built("hostile_context", Linkage::Static) else {
        return;
    };
    let hostile = hostile.display().to_string();
    let pod = Pod::new();
    let shared = format!("volumes = [\"{}:/shared\"]", pod.scratch.path().display());
    // The container is the OS side's, and here another context's OS service has it as well: opaque bytes.
    let (vault, key) = (pod.scratch.join("vault"), Scratch::new());
    let key_file = key.join("vault.key");
    let made = cloak(&["volume", "create", "--new-key-file", "--key"])
        .args([&key_file, &vault])
        .output()
        .expect("cloak starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let protected = format!(
        "protected = [\"{}:/vault:key={}\"]",
        vault.display(),
        key_file.display()
    );
    let attack = format!(
        "while [ ! -e /shared/ready ]; do sleep 0.1; done; {hostile} {} {}; code=$?; : >/shared/done; exit $code",
        MARKER.0, MARKER.1
    );
    let outcome = pod
        .context("before", &["/bin/sh", "-c", "exit 0"], "")
        .context(
            "hostile",
            &["/bin/sh", "-c", &attack],
            &format!("cpus = 2\n{shared}"),
        )
        .context(
            "victim",
            &["/usr/bin/python3", "-c", VICTIM, MARKER.0, MARKER.1],
            &format!("{shared}\n{protected}"),
        )
        .context(
            "nosy",
            &["/usr/bin/python3", "-c", NOSY, MARKER.0, MARKER.1],
            &shared,
        )
        .run();
    let (out, errors) = (outcome.text(), outcome.error_text());
    assert!(!out.contains("WORKED"), "{out}{errors}");
    // Each attack was made.
    assert_eq!(
        out.matches("refused to ").count() + out.matches("refused privileged").count(),
        12,
        "{out}{errors}"
    );
    assert_eq!(out.matches("refused ").count(), 12 + 6, "{out}{errors}");
    has_line(&out, "the victim is whole");
    assert!(outcome.status == Status::Exit(0), "{out}{errors}");
}

/// What one context's programs compute with is in no register of another's: not after a call that sleeps, in a new thread,
/// a new process or a new program, on processors that they share.
#[test]
fn no_register_carries_anything_over() {
    if !needs::kvm() {
        return;
    }
    let Some(program) = built("foreign_registers", Linkage::Static) else {
        return;
    };
    let program = program.display().to_string();
    let own = Case::new(&program).arg("own").run(&Launcher::under_test());
    assert_eq!(own.text(), "found its own\n", "the search finds what is there");
    let outcome = Pod::new()
        .context("keeper", &[&program, "keep", "6"], "")
        .context("other", &[&program, "keep", "6"], "")
        .context("looker", &[&program, "look", "600"], "cpus = 2")
        .run();
    let (out, errors) = (outcome.text(), outcome.error_text());
    assert_eq!(out.matches("kept\n").count(), 2, "{out}{errors}");
    has_line(&out, "nothing of anybody");
    assert_eq!(outcome.status, Status::Exit(0), "{out}{errors}");
}

/// The same program where a context has its VM to itself and edits its own page tables: what is refused above works, so
/// the attacks are real ones.
#[test]
fn the_same_attacks_work_where_nothing_is_to_be_protected() {
    if !needs::kvm() {
        return;
    }
    let Some(hostile) = built("hostile_context", Linkage::Static) else {
        return;
    };
    let run = |options: &[&str]| {
        let case = Case::new(hostile.clone())
            .args([MARKER.0, MARKER.1])
            .env("IN_ITS_OWN_MEMORY", &format!("{}{}", MARKER.0, MARKER.1))
            .memory("256M");
        let case = options.iter().fold(case, |case, option| case.option(option));
        case.run(&Launcher::under_test()).text()
    };
    let open = run(&[]);
    has_line(&open, "WORKED to edit page tables");
    has_line(&open, "WORKED to find the marker in own frames");
    has_line(&run(&["--kernel-tables"]), "refused to edit page tables");
}

/// Two contexts that both name a segment have it, one that does not has not.
#[test]
fn a_segment_joins_those_who_name_it_and_nobody_else() {
    if !needs::kvm() {
        return;
    }
    let write = r#"
import mmap, os, time
f = os.open("/dev/shm/queue", os.O_RDWR)
assert os.fstat(f).st_size == 12 * 1024
m = mmap.mmap(f, 12 * 1024)
m[8:23] = b"from the writer"
m[0] = 1
while m[1] != 1:
    time.sleep(0.01)
print("answered", bytes(m[5000:5011]))
if os.fork() == 0:
    m[24:29] = b"child"
    os._exit(0)
os.wait()
assert m[24:29] == b"child"
try:
    os.ftruncate(f, 4096)
except PermissionError:
    print("its length stays")
m[0] = 2
"#;
    let read = r#"
import mmap, os, time
f = os.open("/dev/shm/queue", os.O_RDWR)
m = mmap.mmap(f, 12 * 1024)
while m[0] != 1:
    time.sleep(0.01)
print("read", bytes(m[8:23]), os.pread(f, 15, 8) == m[8:23])
os.pwrite(f, b"by a pwrite", 5000)
m[1] = 1
while m[0] != 2:
    time.sleep(0.01)
print("then", bytes(m[24:29]))
"#;
    let segment =
        |with: &str| format!("segment = [{{ name = \"queue\", with = [\"{with}\"], size_kib = 12 }}]");
    let outcome = Pod::new()
        .context("writer", &["/usr/bin/python3", "-c", write], &segment("reader"))
        .context("reader", &["/usr/bin/python3", "-c", read], &segment("writer"))
        .context("other", &["/bin/ls", "-A", "/dev/shm"], "")
        .run();
    let (out, errors) = (outcome.text(), outcome.error_text());
    assert_eq!(outcome.status, Status::Exit(0), "{out}{errors}");
    for line in [
        "answered b'by a pwrite'",
        "its length stays",
        "read b'from the writer' True",
        "then b'child'",
    ] {
        has_line(&out, line);
    }
    assert!(!out.contains("queue"), "{out}");
    let pod = Pod::new()
        .context("writer", &["/bin/true"], &segment("reader"))
        .context("reader", &["/bin/true"], "");
    let refused = pod.run();
    assert_eq!(refused.status.shell_code(), 125);
    let errors = refused.error_text();
    let why = "context writer: segment queue: context reader does not name it";
    assert!(errors.contains(why), "{errors}");
}

/// Each context from a manifest of its own: its identity, its segment, and nothing of the host's but what is listed.
#[test]
fn contexts_run_from_manifests() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    let manifest = |name: &str, with: &str, script: &str| {
        let made = cloak(&["manifest", "init", "/bin/busybox", "sh", "-c", script])
            .output()
            .expect("cloak starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = String::from_utf8(made.stdout).expect("a manifest is text");
        let text = text.replacen("name = \"busybox\"", &format!("name = \"{name}\""), 1)
            + &format!("\n[[segment]]\nname = \"queue\"\nsize_kib = 4\nwith = [\"{with}\"]\n");
        scratch.write(&format!("{name}.toml"), text);
    };
    let identity = "cat /sys/kernel/cloak/identity; echo";
    let give = "echo given | dd of=/dev/shm/queue conv=notrunc 2>/dev/null; ls /etc 2>&1";
    let take = "while ! grep -q given /dev/shm/queue; do :; done; head -n 1 /dev/shm/queue";
    manifest("giver", "taker", &format!("{give}; {identity}"));
    manifest("taker", "giver", &format!("{take}; {identity}"));
    let contexts = "[[context]]\nmanifest = \"giver.toml\"\n[[context]]\nmanifest = \"taker.toml\"\n";
    let file = scratch.write("pod.toml", format!("version = 1\n{contexts}"));
    let mut command = cloak(&["pod", "run"]);
    command.arg(file);
    let running = Running::start(command, Vec::new()).expect("cloak starts");
    let outcome = running.finish(PATIENCE).expect("the pod ends");
    let (out, errors) = (outcome.text(), outcome.error_text());
    assert_eq!(outcome.status, Status::Exit(0), "{out}{errors}");
    has_line(&out, "given");
    has_line(&out, "ls: /etc: No such file or directory");
    let identities: BTreeSet<&str> = out.lines().filter(|line| line.len() == 96).collect();
    assert_eq!(identities.len(), 2, "each has its own: {out}");
    for name in ["giver", "taker"] {
        has_line(&errors, &format!("cloak: context {name}: exited with 0"));
    }
}

#[test]
fn what_a_context_had_is_given_back_when_it_ends() {
    if !needs::kvm() {
        return;
    }
    let pod = Pod::new();
    let shared = format!("volumes = [\"{}:/shared\"]", pod.scratch.path().display());
    let large = "import time; x = bytearray(b'x') * (160 << 20); print('filled', flush=True)\nwhile not __import__('os').path.exists('/shared/go'): time.sleep(0.05)";
    let small = "import time\nwhile not __import__('os').path.exists('/shared/end'): time.sleep(0.05)";
    let pod = pod
        .context("large", &["/usr/bin/python3", "-c", large], &shared)
        .context("small", &["/usr/bin/python3", "-c", small], &shared);
    let mut running = pod.start();
    assert!(
        running.prints("filled", PATIENCE),
        "{}",
        String::from_utf8_lossy(&running.stderr_so_far())
    );
    let full = resident(&running);
    assert!(full >= 160 << 10, "{full} KiB");
    fs::write(pod.scratch.join("go"), "").expect("writable");
    let until = Instant::now() + PATIENCE;
    while resident(&running) + (150 << 10) > full {
        assert!(
            Instant::now() < until,
            "{} of {full} KiB are still there",
            resident(&running)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::write(pod.scratch.join("end"), "").expect("writable");
    let outcome = running.finish(PATIENCE).expect("it ends");
    assert!(outcome.status == Status::Exit(0), "{}", outcome.error_text());
}

/// Resident memory of the monitor, KiB.
fn resident(running: &Running) -> u64 {
    let path = PathBuf::from(format!("/proc/{}/status", running.pid().as_raw_pid()));
    let text = fs::read_to_string(path).expect("it runs");
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a line VmRSS");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

#[test]
fn one_context_goes_on_when_the_os_service_of_another_dies() {
    if !needs::kvm() {
        return;
    }
    let wait = "import time, os\nprint(os.uname().nodename, flush=True)\nwhile not os.path.exists('/shared/go'): time.sleep(0.05)\nprint('went on', flush=True)";
    let pod = Pod::new();
    let shared = format!("volumes = [\"{}:/shared\"]", pod.scratch.path().display());
    let pod = pod
        .context("one", &["/usr/bin/python3", "-c", wait], &shared)
        .context("two", &["/usr/bin/python3", "-c", wait], &shared);
    let mut running = pod.start();
    assert!(running.prints("one", PATIENCE) && running.prints("two", PATIENCE));
    let services = children_of(running.pid().as_raw_pid());
    assert_eq!(services.len(), 2, "an OS service each");
    // They are started in the order of the contexts.
    let first = services.iter().min().expect("two");
    let killed = Command::new("kill")
        .args(["-9", &first.to_string()])
        .status()
        .expect("kill runs");
    assert!(killed.success());
    fs::write(pod.scratch.join("go"), "").expect("writable");
    let outcome = running.finish(PATIENCE).expect("it ends");
    let (out, errors) = (outcome.text(), outcome.error_text());
    has_line(&errors, "cloak: context two: exited with 0");
    assert_eq!(out.matches("went on").count(), 1, "{out}{errors}");
    assert_ne!(outcome.status, Status::Exit(0));
}

#[test]
fn sixteen_contexts_fit_a_vm_and_seventeen_do_not() {
    if !needs::kvm() {
        return;
    }
    let many = |count: usize| {
        let pod = (0..count).fold(Pod::new(), |pod, i| {
            pod.context(
                &format!("c{i}"),
                &["/bin/busybox", "echo", &format!("context {i}.")],
                "",
            )
        });
        pod.run()
    };
    let outcome = many(16);
    assert!(outcome.status == Status::Exit(0), "{}", outcome.error_text());
    for i in 0..16 {
        has_line(&outcome.text(), &format!("context {i}."));
    }
    let outcome = many(17);
    assert_eq!(outcome.status.shell_code(), 125);
    assert!(
        outcome
            .error_text()
            .contains("17 contexts in one VM are not possible: 1 to 16 are")
    );
}
