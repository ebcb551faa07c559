//! Two views of a context's memory: the program's is plaintext, the OS side's is ciphertext, wherever one looks.
//!
//! A program fills its memory with secrets; meanwhile everything on the OS side is searched for them. The same search of
//! the same program without cloaking finds each of them, so that it can fail.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cloak_tests::os_side::children_of;
use cloak_tests::process::Running;
use cloak_tests::programs::{Linkage, built};
use cloak_tests::{Case, Launcher, Scratch, needs};

const PATIENCE: Duration = Duration::from_secs(400);
const NAME: &str = "views";
/// Halves of what is kept; only the program puts them together.
const MARKER: [&str; 2] = ["THE-MARKER-THAT-", "NOBODY-MAY-SEE"];
const PASSWORD: [&str; 2] = ["correct-horse-", "battery-staple"];

/// What is searched for, by what it is.
fn needles() -> [(&'static str, Vec<u8>); 3] {
    let first = MARKER[0].as_bytes()[0];
    let key = (0..32i32).map(|i| (i * 73 + i32::from(first)) as u8 ^ (i << 3) as u8);
    [
        ("marker", MARKER.concat().into_bytes()),
        ("key", key.collect()),
        ("password", PASSWORD.concat().into_bytes()),
    ]
}

/// Looks at a stream of bytes, in parts of any length.
struct Search {
    needles: [(&'static str, Vec<u8>); 3],
    found: Vec<&'static str>,
    /// The end of what came before, in which a needle may begin.
    rest: Vec<u8>,
    counts: [u64; 256],
}

impl Search {
    fn new() -> Self {
        Self {
            needles: needles(),
            found: Vec::new(),
            rest: Vec::new(),
            counts: [0; 256],
        }
    }

    fn look(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.counts[usize::from(byte)] += 1);
        let joined = [&self.rest, bytes].concat();
        for (name, needle) in &self.needles {
            if !self.found.contains(name) && holds(&joined, needle) {
                self.found.push(name);
            }
        }
        let longest = self
            .needles
            .iter()
            .map(|(_, needle)| needle.len())
            .max()
            .unwrap_or(0);
        self.rest = joined[joined.len().saturating_sub(longest - 1)..].to_vec();
    }

    fn bytes(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// By how much byte values differ in frequency: chi-squared, in deviations from its mean for random bytes.
    fn unevenness(&self) -> f64 {
        let expected = self.bytes() as f64 / 256.0;
        let chi: f64 = self
            .counts
            .iter()
            .map(|&n| (n as f64 - expected).powi(2) / expected)
            .sum();
        // 255 degrees of freedom.
        (chi - 255.0) / (2.0f64 * 255.0).sqrt()
    }
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    let (first, rest) = needle.split_first().expect("needles are not empty");
    let mut from = bytes;
    while let Some(at) = from.iter().position(|byte| byte == first) {
        from = &from[at + 1..];
        if from.starts_with(rest) {
            return true;
        }
    }
    false
}

fn secrets(mib: &str, file: &str, go: &Path) -> Case {
    Case::new(built("secrets", Linkage::Static).expect("gcc builds static programs"))
        .args([mib, MARKER[0], MARKER[1], PASSWORD[0], PASSWORD[1], file])
        .arg(go.to_str().expect("a plain path"))
        .patience(PATIENCE)
}

fn start(case: &Case, launcher: &Launcher, runtime: &Scratch) -> Running {
    let mut command = launcher.command(case);
    command.env("CLOAK_RUNTIME_DIR", runtime.join("sockets"));
    let mut running = Running::start(command, Vec::new()).expect("it starts");
    assert!(
        running.prints("filled", PATIENCE),
        "{}",
        String::from_utf8_lossy(&running.stderr_so_far())
    );
    running
}

fn cloak(runtime: &Scratch, arguments: &[&str]) -> Command {
    let Launcher::Cloak(cloak) = Launcher::under_test() else {
        panic!("the launcher under test is cloak");
    };
    let mut command = Command::new(cloak);
    command
        .args(arguments)
        .env("CLOAK_RUNTIME_DIR", runtime.join("sockets"));
    command
}

/// All that the OS side gets when it reads the whole view.
fn search_view(runtime: &Scratch) -> Search {
    let mut reader = cloak(runtime, &["inspect", NAME, "--os-view", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("cloak starts");
    let mut out = reader.stdout.take().expect("it is piped");
    let mut search = Search::new();
    let mut part = vec![0; 1 << 20];
    while let Ok(len @ 1..) = out.read(&mut part) {
        search.look(&part[..len]);
    }
    assert!(reader.wait().expect("it ends").success());
    search
}

/// All of a process's memory that can be read: what a core file would hold, and more.
fn search_process(pid: i32) -> Search {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process's map");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the process's memory");
    let mut search = Search::new();
    let mut part = vec![0; 1 << 20];
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').expect("a line of a map");
        if !rest.starts_with('r') {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        let (mut at, end) = (address(start), address(end));
        while at < end {
            let want = part.len().min((end - at) as usize);
            // What is special, the kernel's own parts, can't be read.
            let Ok(len @ 1..) = memory.read_at(&mut part[..want], at) else {
                break;
            };
            search.look(&part[..len]);
            at += len as u64;
        }
    }
    search
}

/// A core file of the process, as root makes one of whatever may not be dumped by the kernel; none where `gcore` is missing.
fn search_core(pid: i32, scratch: &Scratch) -> Option<Search> {
    needs::host_program("gcore")?;
    // Files that are mapped shared go in as well, which is how the shared region is mapped.
    fs::write(format!("/proc/{pid}/coredump_filter"), "0x7f").expect("root may choose what is in it");
    let prefix = scratch.join("core-of");
    let made = Command::new("gcore")
        .arg("-o")
        .arg(&prefix)
        .arg(pid.to_string())
        .output();
    let made = made.expect("it starts");
    let mut core = File::open(scratch.join(&format!("core-of.{pid}")))
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&made.stderr)));
    let mut search = Search::new();
    let mut part = vec![0; 1 << 20];
    while let Ok(len @ 1..) = core.read(&mut part) {
        search.look(&part[..len]);
    }
    Some(search)
}

#[test]
fn what_512_mebibytes_hold_is_nowhere_on_the_os_side() {
    if !needs::kvm() || !needs::root() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("shared")).expect("room");
    let go = scratch.join("shared/go");
    let (container, key) = (scratch.join("vault"), scratch.join("vault.key"));
    let made = cloak(&scratch, &["volume", "create", "--new-key-file", "--key"])
        .args([&key, &container])
        .output()
        .expect("cloak starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let protected = format!("{}:/vault:key={}", container.display(), key.display());
    let case = secrets("512", "/vault/secrets", &go)
        .memory("704M")
        .volume(&scratch.join("shared"))
        .option("--name")
        .option(NAME)
        .option("--protected")
        .option(&protected);
    let running = start(&case, &Launcher::under_test(), &scratch);
    let monitor = running.pid().as_raw_nonzero().get();

    let view = search_view(&scratch);
    assert_eq!(view.found, [""; 0], "in the OS view");
    assert!(view.bytes() >= 704 << 20, "{} bytes", view.bytes());
    assert!(view.unevenness() < 6.0, "{} deviations", view.unevenness());

    let service = *children_of(monitor).first().expect("an OS service");
    let memory = search_process(service);
    assert_eq!(memory.found, [""; 0], "in the OS service's memory");
    assert!(memory.bytes() > 1 << 20);
    let limits = fs::read_to_string(format!("/proc/{service}/limits")).expect("its limits");
    let cores = limits.lines().find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = cores.expect("a limit").split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "of core files");

    if let Some(core) = search_core(service, &scratch) {
        assert_eq!(core.found, [""; 0], "in a core file of the OS service");
        // The shared region is most of it.
        assert!(core.bytes() > 16 << 20, "{} bytes of core", core.bytes());
    }

    let mut region = Search::new();
    region.look(&shared_region(service));
    assert_eq!(region.found, [""; 0], "in the shared region");
    let mut vault = Search::new();
    vault.look(&fs::read(&container).expect("the container"));
    assert_eq!(vault.found, [""; 0], "in the protected volume");

    // The monitor is trusted, and root may look: the search itself finds what is there.
    assert_eq!(search_process(monitor).found.len(), 3, "in guest memory itself");

    fs::write(&go, "").expect("room");
    let outcome = running.finish(PATIENCE).expect("it ends");
    assert_eq!(outcome.text(), "filled\nwhole\n", "{}", outcome.error_text());
}

/// The shared region, as the OS service maps it.
fn shared_region(service: i32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{service}/maps")).expect("its mappings");
    let line = maps.lines().find(|line| line.contains("/memfd:cloak-shared"));
    let range = line
        .and_then(|line| line.split(' ').next())
        .expect("the shared region");
    fs::read(format!("/proc/{service}/map_files/{range}")).expect("root may read it")
}

#[test]
fn without_cloaking_all_of_it_is_found() {
    if !needs::root() {
        return;
    }
    let scratch = Scratch::new();
    let (go, file) = (scratch.join("go"), scratch.join("file"));
    let case = secrets("64", file.to_str().expect("a plain path"), &go);
    let running = start(&case, &Launcher::Native, &scratch);
    let pid = running.pid().as_raw_nonzero().get();
    assert_eq!(search_process(pid).found.len(), 3, "in memory");
    if let Some(core) = search_core(pid, &scratch) {
        assert_eq!(core.found.len(), 3, "in a core file");
    }
    let mut kept = Search::new();
    kept.look(&fs::read(&file).expect("its file"));
    assert_eq!(kept.found.len(), 3, "in its file");
    assert!(kept.unevenness() > 1000.0, "{}", kept.unevenness());
    fs::write(&go, "").expect("room");
    let outcome = running.finish(PATIENCE).expect("it ends");
    assert_eq!(outcome.text(), "filled\nwhole\n");
}

#[test]
fn with_a_limit_the_view_is_the_swap_file() {
    if !needs::kvm() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("shared")).expect("room");
    let (go, swap) = (scratch.join("shared/go"), scratch.join("swap"));
    let case = secrets("96", "-", &go)
        .memory("256M")
        .volume(&scratch.join("shared"))
        .option("--name")
        .option(NAME)
        .option("--resident")
        .option("32M")
        .option("--swap")
        .option(swap.to_str().expect("a plain path"));
    let running = start(&case, &Launcher::under_test(), &scratch);
    let mut file = Search::new();
    file.look(&fs::read(&swap).expect("the swap file"));
    assert_eq!(file.found, [""; 0], "in the swap file");
    let view = search_view(&scratch);
    assert_eq!(view.found, [""; 0]);
    assert_eq!(view.bytes(), fs::metadata(&swap).expect("the swap file").len());
    assert!(
        view.counts[1..].iter().all(|&count| count > 64 << 10),
        "little was sealed"
    );
    let shown = cloak(&scratch, &["inspect", NAME, "--find", &MARKER.concat()]);
    assert!(shows(shown).contains("THE-MARK"));
    fs::write(&go, "").expect("room");
    let outcome = running.finish(PATIENCE).expect("it ends");
    assert_eq!(outcome.text(), "filled\nwhole\n", "{}", outcome.error_text());
}

fn shows(mut command: Command) -> String {
    let told = command.output().expect("cloak starts");
    let errors = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success(), "{errors}");
    String::from_utf8(told.stdout).expect("text")
}

fn number(json: &str, field: &str) -> f64 {
    let (_, rest) = json.split_once(&format!("\"{field}\": ")).expect("the field");
    let end = rest.find([',', '\n']).expect("its end");
    rest[..end].parse().expect("a number")
}

/// A program that rewrites a page on each line of its input. Filled in parts: where a whole copy was and is free again, its
/// text would be found, too.
const REWRITES: &str = r#"
import sys
kept = bytearray(32 * 4096)
for at in range(0, len(kept), 32):
    kept[at : at + 32] = b"the first content of this page, "
print("filled", flush=True)
for line in sys.stdin:
    kept[:] = (b"round " + line.strip().encode() + b" of its contents; ").ljust(32, b".") * 4096
    print("rewritten", flush=True)
"#;

#[test]
fn a_page_is_shown_in_both_views_and_follows_the_program() {
    if needs::cloaked_program("/usr/bin/python3").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let mut command = cloak(
        &scratch,
        &["run", "--name", NAME, "--memory", "512M", "--cpus", "1", "--"],
    );
    let mut program = command
        .args(["/usr/bin/python3", "-u", "-c", REWRITES])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cloak starts");
    let mut input = program.stdin.take().expect("piped");
    let mut output = std::io::BufReader::new(program.stdout.take().expect("piped"));
    let mut line = || {
        let mut text = String::new();
        std::io::BufRead::read_line(&mut output, &mut text).expect("a line");
        text
    };
    assert_eq!(line(), "filled\n");
    let text = shows(cloak(
        &scratch,
        &["inspect", NAME, "--find", "this page, the first"],
    ));
    let (left, right): (String, String) = text
        .lines()
        .filter_map(|row| row.split_once(" │ "))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .unzip();
    assert!(left.contains("the firs") && !right.contains("the firs"), "{text}");

    let json = shows(cloak(
        &scratch,
        &["inspect", NAME, "--json", "--find", "this page, the first"],
    ));
    assert!(
        number(&json, "os_entropy") > 7.9 && number(&json, "application_entropy") < 5.0,
        "{json}"
    );
    let (gpa, before) = (number(&json, "gpa"), number(&json, "version"));
    assert!(
        json.contains("\"state\": \"clean\""),
        "it was looked at before: {json}"
    );

    std::io::Write::write_all(&mut input, b"two\n").expect("it reads");
    assert_eq!(line(), "rewritten\n");
    let page = format!("{gpa}");
    let json = shows(cloak(&scratch, &["inspect", NAME, "--json", "--page", &page]));
    assert!(
        json.contains("\"state\": \"plain\""),
        "its sealed copy is stale: {json}"
    );
    assert!(number(&json, "version") > before, "{json}");
    let hex: String = b"round two".iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(json.contains(&hex), "the new content is shown: {json}");

    for (wrong, why) in [
        ("0x0", "is not the address"),
        ("0xf0000000", "is not the address"),
    ] {
        let told = cloak(&scratch, &["inspect", NAME, "--page", wrong])
            .output()
            .expect("cloak starts");
        assert_eq!(told.status.code(), Some(125));
        assert!(String::from_utf8_lossy(&told.stderr).contains(why), "{told:?}");
    }
    drop(input);
    assert!(program.wait().expect("it ends").success());
}
