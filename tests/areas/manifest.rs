//! `cloak run --manifest`: what the manifest says holds, whatever the OS side and the caller try.
//!
//! Each attack is made twice: against a plain run, where it works, and against one with a manifest.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cloak_tests::os_side::children_of;
use cloak_tests::outcome::Outcome;
use cloak_tests::process::Running;
use cloak_tests::programs::{Linkage, built};
use cloak_tests::{Launcher, Scratch, needs};

const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;

/// A folder for files that are measured: a guest has its own `/tmp`, so it lies below the build's folder.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("manifest-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the folder of the build");
        Self(path.canonicalize().expect("it is there"))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, bytes).expect("room");
        path
    }

    fn program(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.write(name, bytes);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("own file");
        path
    }

    /// `cloak manifest init`, with 512 MiB, in a file of this name.
    fn init(&self, name: &str, options: &[&OsStr], program: &[&OsStr]) -> PathBuf {
        let made = cloak()
            .args(["manifest", "init"])
            .args(options)
            .args(program)
            .output()
            .expect("cloak starts");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        let text = String::from_utf8(made.stdout).expect("text");
        self.write(name, text.replace("memory_mib = 4096", "memory_mib = 512"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn cloak() -> Command {
    let Launcher::Cloak(path) = Launcher::under_test() else {
        unreachable!("the launcher under test is a binary")
    };
    let mut command = Command::new(path);
    let sockets = format!("sockets-{}", std::process::id());
    command.env_clear().env("PATH", "/usr/bin:/bin").env(
        "CLOAK_RUNTIME_DIR",
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(sockets),
    );
    command
}

fn finish(command: Command) -> Outcome {
    let running = Running::start(command, Vec::new()).expect("cloak starts");
    running.finish(PATIENCE).expect("it ends")
}

fn stated(manifest: &Path, options: &[&OsStr]) -> Outcome {
    let mut command = cloak();
    command.args(["run", "--manifest"]).arg(manifest).args(options);
    finish(command)
}

fn plain(program: &[&OsStr]) -> Outcome {
    let mut command = cloak();
    command
        .args(["run", "--cpus", "1", "--memory", "512M", "--"])
        .args(program);
    finish(command)
}

fn os(path: &Path) -> &OsStr {
    path.as_os_str()
}

fn word(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn prints(outcome: &Outcome, text: &str) {
    assert_eq!(outcome.status.shell_code(), 0, "{}", outcome.error_text());
    assert_eq!(outcome.text(), text);
}

/// Cloak's own refusal, with a line that says why.
fn refused(outcome: &Outcome, why: &str) {
    assert_eq!(outcome.status.shell_code(), 125, "{}", outcome.text());
    assert!(outcome.error_text().contains(why), "{}", outcome.error_text());
    assert_eq!(outcome.text(), "");
}

fn append(manifest: &Path, more: &str) {
    let text = fs::read_to_string(manifest).expect("own file") + more;
    fs::write(manifest, text).expect("own file");
}

fn replace(manifest: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(manifest).expect("own file");
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(manifest, text.replacen(from, to, 1)).expect("own file");
}

fn shared(guest: &str, source: &Path) -> String {
    format!(
        "\n[[volume]]\nguest = \"{guest}\"\nkind = \"shared\"\nsource = \"{}\"\n",
        source.display()
    )
}

fn flip(file: &Path, block: usize) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(file)
        .expect("own file");
    let at = (block * BLOCK + 1) as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 1], at).expect("inside");
}

#[test]
fn what_init_prints_runs_as_it_is() {
    let (Some(python), Some(busybox)) = (
        needs::cloaked_program("python3"),
        needs::cloaked_program("busybox"),
    ) else {
        return;
    };
    let folder = Folder::new();
    let run = |name, program: &[&OsStr]| stated(&folder.init(name, &[], program), &[]);
    prints(&run("py", &[os(&python), word("-c"), word("print(1)")]), "1\n");
    prints(&run("bb", &[os(&busybox), word("echo"), word("two")]), "two\n");
    let script = folder.program("script", "#!/bin/sh\necho \"script: $1\"\n");
    prints(&run("sh", &[os(&script), word("three")]), "script: three\n");
    let by_env = folder.program(
        "by-env",
        "#!/usr/bin/env python3\nimport json\nprint(json.dumps([4]))\n",
    );
    prints(&run("env", &[os(&by_env)]), "[4]\n");
    for linkage in [
        Linkage::Dynamic,
        Linkage::Static,
        Linkage::StaticPie,
        Linkage::Musl,
    ] {
        if let Some(hello) = built("hello", linkage) {
            let native = Command::new(&hello).env_clear().output().expect("it starts");
            let cloaked = run("hello", &[os(&hello)]);
            assert_eq!(
                cloaked.stdout,
                native.stdout,
                "{linkage:?}: {}",
                cloaked.error_text()
            );
        }
    }
}

#[test]
fn only_what_is_listed_is_there_and_nothing_can_be_changed() {
    let Some(busybox) = needs::cloaked_program("busybox") else {
        return;
    };
    let folder = Folder::new();
    let listed = folder.write("listed", "listed");
    let other = folder.write("other", "other");
    let script = format!(
        "cat {0}; cat {1} || echo not there; echo x > {0} || echo no; rm {0} || echo no; ls {2}; ls / /tmp; \
         echo mine > /tmp/own; cat /tmp/own; cat /proc/self/comm",
        listed.display(),
        other.display(),
        folder.0.display()
    );
    let program = [os(&busybox), word("sh"), word("-c"), word(&script)];
    let manifest = folder.init("m", &[word("--add"), os(&listed)], &program);
    let outcome = stated(&manifest, &[]);
    let top = folder
        .0
        .components()
        .nth(1)
        .expect("absolute")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    let mut names = vec!["dev", "proc", "sys", "tmp", "usr", &top];
    if busybox.starts_with("/bin") {
        names.push("bin");
    }
    names.sort_unstable();
    names.dedup();
    let there = format!(
        "listednot there\nno\nno\nlisted\n/:\n{}\n\n/tmp:\nmine\ncat\n",
        names.join("\n")
    );
    prints(&outcome, &there);
    assert!(
        outcome.error_text().contains("Read-only file system"),
        "{}",
        outcome.error_text()
    );
    assert_eq!(fs::read(&listed).expect("own file"), b"listed");
    assert!(
        plain(&program).text().starts_with("listedother"),
        "a plain run sees the host's root"
    );
}

/// A module of a program and the program itself, changed between the making of the manifest and the run.
#[test]
fn a_file_that_was_changed_before_the_run_is_refused() {
    let (Some(python), Some(busybox)) = (
        needs::cloaked_program("python3"),
        needs::cloaked_program("busybox"),
    ) else {
        return;
    };
    let folder = Folder::new();
    let module = folder.write("module.py", "answer = 'right'\n");
    let main = folder.write("main.py", "import module\nprint(module.answer)\n");
    let program = [os(&python), os(&main)];
    let manifest = folder.init(
        "m",
        &[word("--add"), os(&main), word("--add"), os(&module)],
        &program,
    );
    prints(&stated(&manifest, &[]), "right\n");
    for attack in [
        "answer = 'wrong'\n",
        "answer = 'wrong' # and longer\n",
        "answer = 1\n",
        "",
    ] {
        fs::write(&module, attack).expect("own file");
        let outcome = stated(&manifest, &[]);
        assert_ne!(outcome.status.shell_code(), 0);
        assert_eq!(outcome.text(), "");
        let line = format!("cloak: measured file {}: its digest is ", module.display());
        assert!(outcome.error_text().contains(&line), "{}", outcome.error_text());
        assert!(
            !plain(&program).text().contains("right"),
            "without a manifest the change counts"
        );
    }
    // Another measured file in its place.
    fs::copy(&main, &module).expect("room");
    assert_ne!(stated(&manifest, &[]).status.shell_code(), 0);
    fs::remove_file(&module).expect("own file");
    assert!(stated(&manifest, &[]).error_text().contains("module"));

    // The program's own text.
    let copy = folder.program("busybox", fs::read(&busybox).expect("readable"));
    let program = [os(&copy), word("echo"), word("fine")];
    let manifest = folder.init("b", &[], &program);
    prints(&stated(&manifest, &[]), "fine\n");
    let blocks = fs::metadata(&copy).expect("there").len() as usize / BLOCK;
    // A string in data that the program does not use: a plain run does not notice.
    flip(&copy, blocks - 1);
    let outcome = stated(&manifest, &[]);
    assert_eq!(outcome.status.shell_code(), 126, "{}", outcome.error_text());
    assert!(
        outcome.error_text().contains("not what it should be"),
        "{}",
        outcome.error_text()
    );
    prints(&plain(&program), "fine\n");
}

/// After it was opened and compared once: each block that is read later is compared, too.
#[test]
fn a_file_that_changes_during_the_run_gives_no_wrong_byte() {
    let Some(python) = needs::cloaked_program("python3") else {
        return;
    };
    const BLOCKS: usize = 4096;
    const CHANGED: usize = 3000;
    let folder = Folder::new();
    let script = folder.write("meanwhile.py", include_str!("../data/measured_meanwhile.py"));
    let content: String = (0..BLOCKS * BLOCK / 8).map(|i| format!("{i:08}")).collect();
    let right = |block: usize| format!("{:08}", block * BLOCK / 8);
    // As `flip` leaves it: one bit of the second digit.
    let mut wrong = right(CHANGED).into_bytes();
    wrong[1] ^= 1;
    let wrong = String::from_utf8_lossy(&wrong).into_owned();
    let attack = |with_manifest: bool| {
        let data = folder.write("data", &content);
        let sync = Scratch::new();
        let changed = CHANGED.to_string();
        let program = [
            os(&python),
            os(&script),
            os(&data),
            word("5"),
            word(&changed),
            word("/sync/go"),
        ];
        let mut command = cloak();
        command.arg("run");
        if with_manifest {
            let manifest = folder.init("m", &[word("--add"), os(&folder.0)], &program);
            append(&manifest, &shared("/sync", sync.path()));
            command.arg("--manifest").arg(manifest);
        } else {
            let volume = format!("{}:/sync", sync.path().display());
            command
                .args(["--cpus", "1", "--memory", "512M", "--volume", &volume, "--"])
                .args(program);
        }
        let mut running = Running::start(command, Vec::new()).expect("cloak starts");
        let said = |running: &Running| String::from_utf8_lossy(&running.stderr_so_far()).into_owned();
        assert!(running.prints("before", PATIENCE), "{}", said(&running));
        flip(&data, CHANGED);
        sync.write("go", "");
        running.finish(PATIENCE).expect("it ends")
    };
    let beside = right(CHANGED + 1);
    let start = format!(
        "before {0} {0}\nsame {0} {0} {0}\nbeside {beside} {beside} {beside}\n",
        right(5)
    );
    let outcome = attack(true);
    prints(&outcome, &format!("{start}changed EIO signal 7 signal 7\n"));
    let line = format!(
        "cloak: measured file {}: block {CHANGED}: found ",
        folder.join("data").display()
    );
    assert!(outcome.error_text().contains(&line), "{}", outcome.error_text());
    assert!(
        outcome.error_text().contains(", expected "),
        "{}",
        outcome.error_text()
    );
    // The attack works where nobody compares.
    prints(
        &attack(false),
        &format!("{start}changed {wrong} {wrong} {wrong}\n"),
    );
}

#[test]
fn a_link_leads_where_the_manifest_says() {
    let Some(busybox) = needs::cloaked_program("busybox") else {
        return;
    };
    let folder = Folder::new();
    let (one, two, link) = (
        folder.write("one", "one"),
        folder.write("two", "two"),
        folder.join("link"),
    );
    symlink("one", &link).expect("a link");
    let program = [os(&busybox), word("cat"), os(&link)];
    let add: Vec<&OsStr> = [&one, &two, &link]
        .iter()
        .flat_map(|path| [word("--add"), os(path)])
        .collect();
    let manifest = folder.init("m", &add, &program);
    prints(&stated(&manifest, &[]), "one");
    // To another measured file, so that no digest would tell.
    fs::remove_file(&link).expect("own link");
    symlink("two", &link).expect("a link");
    prints(&plain(&program), "two");
    prints(&stated(&manifest, &[]), "one");
    // The file's own name as a link to another one.
    fs::remove_file(&one).expect("own file");
    symlink("two", &one).expect("a link");
    let outcome = stated(&manifest, &[]);
    assert_eq!(outcome.text(), "");
    assert!(
        outcome.error_text().contains("its digest is"),
        "{}",
        outcome.error_text()
    );
}

/// A listed file on a shared volume is compared, by whatever name it is reached; the rest of the volume is the host's.
#[test]
fn a_file_on_a_shared_volume_can_be_measured() {
    let Some(busybox) = needs::cloaked_program("busybox") else {
        return;
    };
    let folder = Folder::new();
    folder.write("measured", "right");
    folder.write("free", "free");
    symlink(folder.join("measured"), folder.join("absolute")).expect("a link");
    symlink("measured", folder.join("relative")).expect("a link");
    let script = format!(
        "cd {}; cat measured absolute relative ./measured ../*/measured free; echo x > measured; mv free measured; rm measured; cat measured",
        folder.0.display()
    );
    let program = [os(&busybox), word("sh"), word("-c"), word(&script)];
    let manifest = folder.init("m", &[word("--add"), os(&folder.join("measured"))], &program);
    replace(
        &manifest,
        "kind = \"measured\"\nread_only = true",
        "kind = \"shared\"\nread_only = true",
    );
    // Links are the host's on a shared volume.
    let text = fs::read_to_string(&manifest).expect("own file");
    let parts: Vec<&str> = text
        .split("\n\n")
        .filter(|part| !part.starts_with("[[link]]"))
        .collect();
    let volume = format!(
        "[[volume]]\nguest = \"{0}\"\nkind = \"shared\"\nsource = \"{0}\"\n",
        folder.0.display()
    );
    fs::write(&manifest, [parts.join("\n\n"), volume].join("\n\n")).expect("own file");
    prints(&stated(&manifest, &[]), "rightrightrightrightrightfreeright");
    folder.write("measured", "wrong");
    let outcome = stated(&manifest, &[]);
    assert_eq!(outcome.text(), "free", "{}", outcome.error_text());
    assert!(plain(&program).text().starts_with("wrongwrong"));
}

#[test]
fn the_caller_adds_nothing_that_the_manifest_does_not_leave_to_it() {
    let (Some(python), Some(busybox)) = (
        needs::cloaked_program("python3"),
        needs::cloaked_program("busybox"),
    ) else {
        return;
    };
    let folder = Folder::new();
    // Code that a variable brings in.
    folder.write("sitecustomize.py", "print('smuggled')\n");
    let program = [
        os(&python),
        word("-c"),
        word("import os; print('program', os.environ.get('LD_PRELOAD'))"),
    ];
    let manifest = folder.init("m", &[], &program);
    let smuggled = |mut command: Command, arguments: &[&OsStr]| {
        command
            .env("PYTHONPATH", &folder.0)
            .env("LD_PRELOAD", "/nowhere/preload.so")
            .args(arguments);
        finish(command)
    };
    let mut command = cloak();
    command.args(["run", "--cpus", "1", "--memory", "512M", "--"]);
    let outcome = smuggled(command, &program);
    assert_eq!(outcome.text(), "smuggled\nprogram /nowhere/preload.so\n");
    let mut command = cloak();
    command.args(["run", "--manifest"]).arg(&manifest);
    let outcome = smuggled(command, &[]);
    prints(&outcome, "program None\n");

    let show = [
        os(&busybox),
        word("sh"),
        word("-c"),
        word("echo $CHOSEN $OTHER $0 $1"),
    ];
    let manifest = folder.init("n", &[], &show);
    let more = [word("--"), word("zero"), word("one")];
    refused(&stated(&manifest, &more), "program.untrusted_args");
    refused(
        &stated(&manifest, &[word("--env"), word("CHOSEN=1")]),
        "does not leave CHOSEN to the caller",
    );
    replace(
        &manifest,
        "[program.environment]",
        "untrusted_args = true\nuntrusted_environment = [\"CHOSEN\"]\n[program.environment]",
    );
    let mut command = cloak();
    command
        .env("CHOSEN", "chosen")
        .env("OTHER", "other")
        .args(["run", "--manifest"])
        .arg(&manifest)
        .args(more);
    prints(&finish(command), "chosen zero one\n");
    let set = [word("--env"), word("CHOSEN=set"), word("--"), word("zero")];
    prints(&stated(&manifest, &set), "set zero\n");
    refused(
        &stated(&manifest, &[word("--env"), word("OTHER=1")]),
        "does not leave OTHER",
    );
}

#[test]
fn options_that_contradict_the_manifest_are_refused() {
    let Some(busybox) = needs::cloaked_program("busybox") else {
        return;
    };
    let folder = Folder::new();
    let anchor = folder.join("anchor");
    let begin = format!("/data={},begin-anchor", anchor.display());
    let manifest = folder.init("m", &[], &[os(&busybox), word("hostname")]);
    for (options, why) in [
        (&["--cpus", "2"][..], "--cpus 2 contradicts"),
        (&["--memory", "1G"], "contradicts the manifest, which says 512M"),
        (&["--workdir", "/tmp"], "--workdir /tmp contradicts"),
        (
            &["--network", "host"],
            "--network contradicts the manifest, which says none",
        ),
        (&["--volume", "/usr:/data"], "the manifest names all volumes"),
        (
            &["--protected", "/v:/data:key=/k"],
            "the manifest names all volumes",
        ),
        (
            &["--anchor", &begin],
            "no protected volume at /data to be anchored",
        ),
    ] {
        let options: Vec<&OsStr> = options.iter().map(|o| word(o)).collect();
        refused(&stated(&manifest, &options), why);
    }
    let same = [
        "--cpus",
        "1",
        "--memory",
        "512M",
        "--network",
        "none",
        "--workdir",
        "/",
    ]
    .map(word);
    prints(&stated(&manifest, &same), "busybox\n");
    prints(
        &stated(&manifest, &[word("--name"), word("another"), word("--stats")]),
        "another\n",
    );
    replace(&manifest, "[\"plain\", \"snp\", \"tdx\"]", "[\"snp\"]");
    refused(&stated(&manifest, &[]), "accepts the platforms snp");
    replace(&manifest, "[\"snp\"]", "[\"plain\"]");
    append(&manifest, "\n[[secret]]\nname = \"tls\"\npath = \"/tmp/tls\"\n");
    refused(&stated(&manifest, &[]), "there is no [broker]");
    let ca = "-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n";
    append(
        &manifest,
        &format!(
            "\n[broker]\nurl = \"https://127.0.0.1:1\"\nca = \"{ca}\"\nhelper = \"{}\"\n",
            busybox.display()
        ),
    );
    refused(&stated(&manifest, &[]), "does not reach the broker");
    replace(&manifest, "mode = \"none\"", "mode = \"host\"");
    refused(&stated(&manifest, &[]), "the secret \"tls\"");
    refused(
        &stated(&folder.write("none", "version = 2"), &[]),
        "missing field",
    );
}

#[test]
fn the_program_finds_its_identity() {
    let Some(busybox) = needs::cloaked_program("busybox") else {
        return;
    };
    let folder = Folder::new();
    let program = [
        os(&busybox),
        word("cat"),
        word("/sys/kernel/cloak/identity"),
        word("/sys/kernel/cloak/manifest"),
    ];
    let manifest = folder.init("m", &[], &program);
    let text = |arguments: &[&OsStr]| {
        let output = cloak().args(arguments).output().expect("cloak starts");
        String::from_utf8(output.stdout).expect("text")
    };
    let shim = text(&[word("measure"), word("--shim")]);
    let shim = shim
        .split_whitespace()
        .find(|w| w.len() == 96)
        .expect("a digest")
        .to_owned();
    let said = text(&[
        word("manifest"),
        word("identity"),
        os(&manifest),
        word("--shim"),
        word(&shim),
    ]);
    let identity = said
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().nth(1))
        .expect("a line");
    let canonical = text(&[word("manifest"), word("canonical"), os(&manifest)]);
    prints(&stated(&manifest, &[]), &format!("{identity}\n{canonical}"));
    // A run without a manifest has one, too.
    let outcome = plain(&program);
    assert!(
        outcome
            .text()
            .contains("kind = \"shared\"\nread_only = true\nsource = \"/\""),
        "{}",
        outcome.text()
    );
    assert_ne!(outcome.text().lines().next(), Some(identity));
}

#[test]
fn without_network_there_is_none() {
    let Some(python) = needs::cloaked_program("python3") else {
        return;
    };
    let folder = Folder::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let _unix = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let script = include_str!("../data/no_network.py");
    let program = [
        os(&python),
        word("-c"),
        word(script),
        word(&port),
        word("/shared/socket"),
    ];
    let manifest = folder.init("m", &[], &program);
    append(&manifest, &shared("/shared", scratch.path()));
    let none = "connect ENETUNREACH\ndatagram ENETUNREACH\nsocket ECONNREFUSED\n\
                listen ok\naccept EAGAIN\nloopback ENETUNREACH\npair ok\nname gaierror\n";
    let outcome = stated(&manifest, &[]);
    prints(&outcome, none);
    let volume = format!("{}:/shared", scratch.path().display());
    let run = |network: &str| {
        let mut command = cloak();
        command
            .args([
                "run",
                "--cpus",
                "1",
                "--memory",
                "512M",
                "--network",
                network,
                "--volume",
                &volume,
                "--",
            ])
            .args(program);
        finish(command)
    };
    prints(&run("none"), none);
    let host = run("host").text();
    assert!(host.starts_with("connect ok\ndatagram ok\nsocket ok\n"), "{host}");
}

/// The volume of one manifest does not open with the key of another, though only one byte of them differs.
#[test]
fn keys_of_volumes_follow_from_the_whole_manifest() {
    let Some(busybox) = needs::cloaked_program("busybox") else {
        return;
    };
    let folder = Folder::new();
    let (key, volume) = (folder.join("root.key"), folder.join("safe.vol"));
    let made = cloak()
        .args(["key", "new"])
        .arg(&key)
        .status()
        .expect("cloak starts");
    assert!(made.success());
    assert!(
        !cloak()
            .args(["key", "new"])
            .arg(&key)
            .status()
            .expect("cloak starts")
            .success(),
        "never over another"
    );
    let script = "cat /data/file; echo kept > /data/file; cat /data/file";
    let program = [os(&busybox), word("sh"), word("-c"), word(script)];
    let manifest = folder.init("one", &[], &program);
    append(
        &manifest,
        &format!(
            "\n[[volume]]\nguest = \"/data\"\nkind = \"protected\"\nsource = \"{}\"\n",
            volume.display()
        ),
    );
    let other = folder.write("other", fs::read(&manifest).expect("own file"));
    replace(&other, "name = \"busybox\"", "name = \"busybux\"");
    let on_volume = |subcommand: &str, manifest: &Path, more: &[&OsStr]| {
        let output = cloak()
            .args(["volume", subcommand])
            .arg(&volume)
            .arg("--manifest")
            .arg(manifest)
            .arg("--root-key")
            .arg(&key)
            .args(more)
            .output();
        output.expect("cloak starts")
    };
    let made = on_volume("create", &manifest, &[]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    refused(&stated(&manifest, &[]), "cloak key new FILE");
    let with_key: [&OsStr; 2] = [word("--root-key"), os(&key)];
    prints(&stated(&manifest, &with_key), "kept\n");
    prints(&stated(&manifest, &with_key), "kept\nkept\n");
    refused(&stated(&other, &with_key), "key");
    let theirs = folder.join("other.key");
    assert!(
        cloak()
            .args(["key", "new"])
            .arg(&theirs)
            .status()
            .expect("cloak starts")
            .success()
    );
    refused(&stated(&manifest, &[word("--root-key"), os(&theirs)]), "key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("own file");
    refused(&stated(&manifest, &with_key), "0600");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("own file");

    // An anchor, and yesterday's container.
    let option = OsString::from(format!("/data={}", folder.join("anchor").display()));
    let begin = OsString::from(format!("{},begin-anchor", option.to_string_lossy()));
    let anchored = |option: &OsString| {
        let options: [&OsStr; 4] = [word("--root-key"), os(&key), word("--anchor"), option];
        stated(&manifest, &options)
    };
    let yesterday = fs::read(&volume).expect("own file");
    prints(&anchored(&begin), "kept\nkept\n");
    prints(&anchored(&option), "kept\nkept\n");
    let today = fs::read(&volume).expect("own file");
    fs::write(&volume, yesterday).expect("own file");
    refused(&anchored(&option), "rolled back");
    fs::write(&volume, today).expect("own file");
    prints(&anchored(&option), "kept\nkept\n");

    // The other manifest can have it once it is sealed anew.
    let moved = on_volume("rekey", &manifest, &[word("--new-manifest"), os(&other)]);
    assert!(
        moved.status.success(),
        "{}",
        String::from_utf8_lossy(&moved.stderr)
    );
    refused(&stated(&manifest, &with_key), "key");
    prints(&stated(&other, &with_key), "kept\nkept\n");
    assert_eq!(on_volume("cat", &other, &[word("/file")]).stdout, b"kept\n");
}

/// A database with WAL on a protected volume of a manifest, its VM and then its OS service killed at work: what was
/// committed is there.
#[test]
fn a_database_survives_killed_monitors_and_services() {
    let (Some(sqlite), Some(busybox)) = (
        needs::cloaked_program("sqlite3"),
        needs::cloaked_program("busybox"),
    ) else {
        return;
    };
    let folder = Folder::new();
    let (key, volume) = (folder.join("root.key"), folder.join("safe.vol"));
    let script = "i=0; while [ $i -lt 100 ]; do echo \"insert into t values($i);\"; i=$((i+1)); done > /tmp/in; \
        sqlite3 /data/db 'pragma journal_mode=wal; pragma synchronous=full; create table if not exists t(a)'; \
        while :; do sqlite3 /data/db 'select count(*), (select * from pragma_integrity_check), \"whole\" from t'; \
        sqlite3 /data/db < /tmp/in; done";
    let program = [os(&busybox), word("sh"), word("-c"), word(script)];
    let manifest = folder.init("m", &[word("--add"), os(&sqlite)], &program);
    let more = format!(
        "\n[[volume]]\nguest = \"/data\"\nkind = \"protected\"\nsource = \"{}\"\n",
        volume.display()
    );
    append(&manifest, &more);
    let anchor = folder.join("anchor");
    let on_volume = |subcommand: &str| {
        let mut command = cloak();
        command.args(["volume", subcommand]).arg(&volume);
        command
            .arg("--manifest")
            .arg(&manifest)
            .arg("--root-key")
            .arg(&key);
        let output = command.arg("--anchor").arg(&anchor).output();
        output.expect("cloak starts")
    };
    let new = cloak().args(["key", "new"]).arg(&key).status();
    assert!(new.expect("cloak starts").success());
    assert!(on_volume("create").status.success());
    let mut before = 0u64;
    for round in 0..4 {
        let mut command = cloak();
        command.args(["run", "--manifest"]).arg(&manifest);
        command.arg("--root-key").arg(&key);
        command.arg("--anchor").arg(format!("/data={}", anchor.display()));
        let mut running = Running::start(command, Vec::new()).expect("cloak starts");
        let counts = |running: &Running| -> Vec<u64> {
            let text = String::from_utf8_lossy(&running.stdout_so_far()).into_owned();
            let whole = text.lines().filter_map(|line| line.strip_suffix("|ok|whole"));
            whole.filter_map(|count| count.parse().ok()).collect()
        };
        assert!(
            running.prints("|whole", PATIENCE),
            "{}",
            String::from_utf8_lossy(&running.stderr_so_far())
        );
        let found = counts(&running).first().copied();
        assert!(
            found.is_some_and(|found| found >= before),
            "{found:?} rows after {before}"
        );
        let more = found.unwrap_or_default() + 100;
        assert!(
            running.prints(&format!("{more}|ok|whole"), PATIENCE),
            "it goes on"
        );
        let monitor = running.pid();
        let service = children_of(monitor.as_raw_nonzero().get());
        let victim = if round % 2 == 0 {
            monitor
        } else {
            rustix::process::Pid::from_raw(service[0]).expect("a number")
        };
        rustix::process::kill_process(victim, rustix::process::Signal::KILL).expect("it runs");
        let _killed = running.finish(PATIENCE).expect("it ends");
        before = more;
        let check = on_volume("check");
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stderr)
        );
    }
}
