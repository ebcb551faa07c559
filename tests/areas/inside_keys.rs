//! Keys that come from inside a measured machine: a protected volume opens to the shim and the manifest that made it, and to nobody
//! else; what the host says of keys counts for nothing.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use cloak_tests::{Launcher, Scratch};

/// Made up of parts inside the guest, so that no manifest holds it.
const MARKER: &[u8] = b"SECRET-OF-THE-MACHINE";
const STEPS: &str = "case $STEP in \
    write) printf '%s-OF-%s-%s' SECRET THE MACHINE >/data/kept && echo written;; \
    more) echo more >>/data/log && echo written;; \
    read) cat /data/kept;; \
    esac";

/// A manifest with a protected volume, whose container is there and empty.
struct Context {
    scratch: Scratch,
}

impl Context {
    fn new() -> Self {
        let own = Self {
            scratch: Scratch::new(),
        };
        let volume = format!("{}=/data", own.file("data.vol").display());
        let made = cloak()
            .args([
                "manifest",
                "init",
                "--name",
                "keys",
                "--add",
                "/bin/cat",
                "--protected",
                &volume,
            ])
            .args(["/bin/sh", "-c", STEPS])
            .output()
            .expect("cloak starts");
        assert!(made.status.success(), "{}", text(&made.stderr));
        let caller = "[program]\nuntrusted_environment = [\"STEP\"]";
        let manifest = text(&made.stdout).replacen("[program]", caller, 1);
        fs::write(own.file("cloak.toml"), manifest).expect("written");
        fs::write(own.file("data.vol"), []).expect("written");
        own
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn run(&self, step: &str, options: &[&str]) -> Output {
        self.run_as("cloak.toml", step, options)
    }

    fn run_as(&self, manifest: &str, step: &str, options: &[&str]) -> Output {
        let mut command = cloak();
        command.args(["run", "--platform", "sim-snp", "--manifest"]);
        command.arg(self.file(manifest));
        command.args(["--env", &format!("STEP={step}")]).args(options);
        command.output().expect("cloak starts")
    }

    fn writes(&self, step: &str, options: &[&str]) {
        let output = self.run(step, options);
        assert_eq!(text(&output.stdout), "written\n", "{}", text(&output.stderr));
    }

    fn is_refused(&self, output: &Output, reason: &str) {
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(reason), "{said}");
        assert_eq!(text(&output.stdout), "");
    }
}

fn cloak() -> Command {
    let Launcher::Cloak(binary) = Launcher::under_test() else {
        unreachable!("the launcher under test is a binary")
    };
    Command::new(binary)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_volume_opens_to_the_shim_and_manifest_that_made_it_and_to_nobody_else() {
    let context = Context::new();
    context.writes("write", &[]);
    let container = fs::read(context.file("data.vol")).expect("there");
    assert!(!container.is_empty());
    assert!(!container.windows(MARKER.len()).any(|part| part == MARKER));
    let read = context.run("read", &[]);
    assert_eq!(read.stdout, MARKER, "{}", text(&read.stderr));
    // A shim with another byte has another measurement, so the machine makes another key.
    context.is_refused(&context.run("read", &["--hostile", "shim"]), "key");
    // Another manifest: HOST_DATA is another, and the identity.
    let manifest = fs::read_to_string(context.file("cloak.toml")).expect("there");
    let other = manifest.replacen("name = \"keys\"", "name = \"other\"", 1);
    fs::write(context.file("other.toml"), other).expect("written");
    context.is_refused(&context.run_as("other.toml", "read", &[]), "key");
    // As many vCPUs are measured as there are.
    let two = manifest.replacen("cpus = 1", "cpus = 2", 1);
    fs::write(context.file("two.toml"), two).expect("written");
    context.is_refused(&context.run_as("two.toml", "read", &[]), "key");
    // And none of that has changed a byte.
    assert_eq!(fs::read(context.file("data.vol")).expect("there"), container);
    assert_eq!(context.run("read", &[]).stdout, MARKER);
}

#[test]
fn keys_of_the_hosts_are_refused() {
    let context = Context::new();
    let key = context.file("root.key").display().to_string();
    assert!(
        cloak()
            .args(["key", "new", &key])
            .status()
            .expect("starts")
            .success()
    );
    context.is_refused(
        &context.run("read", &["--root-key", &key]),
        "keys come from inside",
    );
    let volume = format!("{}:/data:key={key}", context.file("data.vol").display());
    let output = cloak()
        .args([
            "run",
            "--platform",
            "sim-snp",
            "--protected",
            &volume,
            "--",
            "/bin/true",
        ])
        .output()
        .expect("starts");
    context.is_refused(&output, "the host is not to have it");
}

#[test]
fn a_security_processor_that_is_not_heard_makes_no_key() {
    let context = Context::new();
    // The first message is the report's; the second, the key's, gets its answer.
    let output = context.run("write", &["--hostile", "repeat-answers"]);
    context.is_refused(&output, "makes no key");
    assert!(fs::read(context.file("data.vol")).expect("there").is_empty());
}

/// An anchor of the host's: it helps where whoever has the disk does not have the anchor, and the monitor is honest.
#[test]
fn an_anchor_notices_yesterdays_volume_and_an_empty_one() {
    let context = Context::new();
    let container = context.file("data.vol");
    let anchor = format!("/data={}", context.file("anchor").display());
    context.writes("more", &["--anchor", &format!("{anchor},begin-anchor")]);
    let yesterday = fs::read(&container).expect("there");
    context.writes("more", &["--anchor", &anchor]);
    fs::write(&container, &yesterday).expect("written");
    context.is_refused(&context.run("more", &["--anchor", &anchor]), "rolled back");
    // Emptied, it would be made anew.
    fs::write(&container, []).expect("written");
    context.is_refused(&context.run("more", &["--anchor", &anchor]), "rolled back");
    // Without the anchor nobody notices, which is why there is one.
    fs::write(&container, &yesterday).expect("written");
    context.writes("more", &[]);
}
