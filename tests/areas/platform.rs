//! Programs on a simulated SNP machine: they run as natively, their reports verify where a policy trusts the simulated root
//! and nowhere else, and a hypervisor that lies gets a stop with a reason and nothing else.

use cloak_tests::scratch::Scratch;
use cloak_tests::{Case, Launcher, Status};
use std::path::Path;
use std::process::Command;

const ON: [&str; 2] = ["--platform", "sim-snp"];

fn simulated(program: &str) -> Case {
    ON.iter().fold(Case::new(program).memory("512M"), |case, option| {
        case.option(option)
    })
}

fn shell(script: &str) -> Case {
    simulated("/bin/sh").args(["-c", script])
}

/// What `cloak` prints for these arguments, which must succeed.
fn cloak(arguments: &[&str]) -> String {
    let output = command(arguments).output().expect("cloak runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn command(arguments: &[&str]) -> Command {
    let Launcher::Cloak(binary) = Launcher::under_test() else {
        unreachable!("the launcher under test is a binary")
    };
    let mut command = Command::new(binary);
    command.args(arguments);
    command
}

#[test]
fn programs_run_as_natively() {
    shell("echo hello; printf '%s\\n' a b c | sort -r | head -2; exit 3").same_as_native();
    shell("for i in 1 2 3; do (exit $i) & wait $!; echo $?; done; wc -l </etc/passwd").succeeds_as_native();
    simulated("/usr/bin/env").arg("-i").succeeds_as_native();
    let sums = "import threading, hashlib\n\
                out = [None] * 8\n\
                def work(i):\n    h = hashlib.sha256()\n    for _ in range(200):\n        h.update(bytes([i]) * 10000)\n    out[i] = h.hexdigest()\n\
                ts = [threading.Thread(target=work, args=(i,)) for i in range(8)]\n\
                [t.start() for t in ts]; [t.join() for t in ts]; print(out)";
    simulated("/usr/bin/python3")
        .args(["-c", sums])
        .succeeds_as_native();
}

/// A child of its own memory, and much more memory than the start accepts: all of it zero at first, though what is accepted is
/// noise.
#[test]
fn memory_that_is_accepted_later_is_zero() {
    let script = "import os, mmap\n\
                  m = mmap.mmap(-1, 200 << 20)\n\
                  assert all(m[i:i + (1 << 20)] == bytes(1 << 20) for i in range(0, 200 << 20, 1 << 20))\n\
                  m[::4096] = b'x' * (len(m) // 4096)\n\
                  pid = os.fork()\n\
                  if pid == 0:\n    assert m[4096:4097] == b'x'; m.close(); os._exit(7)\n\
                  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let outcome = simulated("/usr/bin/python3")
        .args(["-c", script])
        .run(&Launcher::under_test());
    assert_eq!(
        (outcome.status, outcome.text().as_str()),
        (Status::Exit(0), "7\n"),
        "{}",
        outcome.error_text()
    );
}

#[test]
fn it_says_that_it_is_a_simulation_and_plain_kvm_does_not() {
    let outcome = shell("true").run(&Launcher::under_test());
    assert_eq!(
        outcome.error_text(),
        "cloak: simulated SEV-SNP: this protects nothing from whoever runs it\n"
    );
    let absent = Case::new("/bin/sh")
        .args(["-c", "ls -A /sys/kernel/config"])
        .run(&Launcher::under_test());
    assert_eq!(
        (absent.text().as_str(), absent.error_text().as_str()),
        ("", ""),
        "no attester on plain KVM"
    );
}

/// Report and certificates of a guest of `cpus` vCPUs, over 64 bytes of 'n', in `folder`.
fn attest(folder: &Path, cpus: u32, options: &[&str]) {
    let script = format!(
        "set -e; cd /sys/kernel/config/tsm/report; mkdir r; cat r/generation r/provider\n\
         printf %64s | tr ' ' n >r/inblob\n\
         cat r/outblob >{0}/report; cat r/auxblob >{0}/aux; cat r/generation; rmdir r; ls",
        folder.display()
    );
    let case = options
        .iter()
        .fold(shell(&script).cpus(cpus).volume(folder), |case, option| {
            case.option(option)
        });
    let outcome = case.run(&Launcher::under_test());
    assert_eq!(outcome.text(), "0\nsev_guest\n1\n", "{}", outcome.error_text());
}

fn field(report: &[u8], at: usize, len: usize) -> String {
    report[at..at + len]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn root_digest() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sim/keys/ark.der");
    let output = Command::new("sha256sum").arg(root).output().expect("coreutils");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

#[test]
fn a_report_has_the_predicted_measurement_and_verifies_where_it_is_trusted_only() {
    let scratch = Scratch::new();
    let folder = scratch.path();
    for cpus in [1, 2] {
        attest(folder, cpus, &[]);
        let report = std::fs::read(folder.join("report")).expect("a report");
        assert_eq!(report.len(), 1184);
        let predicted = cloak(&["measure", "--platform", "snp", "--cpus", &cpus.to_string()]);
        assert_eq!(
            field(&report, 0x90, 48),
            predicted.trim(),
            "MEASUREMENT for {cpus} vCPUs"
        );
        assert_ne!(
            field(&report, 0xc0, 32),
            "00".repeat(32),
            "HOST_DATA is the manifest's digest"
        );
        let policy = format!(
            "platforms = [\"simulated-snp\"]\n[snp]\nmaximum_vmpl = 1\n[simulated]\nroot_digests = [\"{}\"]\n\
             [[reference]]\nname = \"this build\"\nversion = \"1\"\nsnp_measurement = [\"{}\"]\nhost_data = [\"{}\"]\n",
            root_digest(),
            predicted.trim(),
            field(&report, 0xc0, 32),
        );
        let policy_file = folder.join("policy.toml");
        std::fs::write(&policy_file, &policy).expect("a file");
        let paths = ["report", "aux", "policy.toml"].map(|name| folder.join(name).display().to_string());
        let nonce = "6e".repeat(64);
        let trusted = [
            "verify",
            &paths[0],
            "--cert-table",
            &paths[1],
            "--simulated",
            "--policy",
            &paths[2],
            "--nonce",
            &nonce,
        ];
        cloak(&trusted);
        // The default policy, another nonce, another measurement, and as a report of real hardware.
        let refused = |arguments: &[&str], code: &str| {
            let output = command(arguments).output().expect("cloak runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
            assert!(text.contains(code), "{arguments:?}: {text}");
        };
        refused(
            &["verify", &paths[0], "--cert-table", &paths[1], "--simulated"],
            "evidence.kind.not-allowed",
        );
        refused(
            &["verify", &paths[0], "--cert-table", &paths[1]],
            "chain.root.unknown",
        );
        let mut other = trusted;
        let wrong = "6f".repeat(64);
        other[8] = &wrong;
        refused(&other, "evidence.report-data.mismatch");
        std::fs::write(&policy_file, policy.replace(predicted.trim(), &"0".repeat(96))).expect("a file");
        refused(&trusted, "reference.measurement.unknown");
    }
}

/// A byte of the shim is another: the guest runs, and its measurement tells.
#[test]
fn a_changed_shim_shows_in_the_measurement() {
    let scratch = Scratch::new();
    attest(scratch.path(), 1, &["--hostile", "shim"]);
    let report = std::fs::read(scratch.path().join("report")).expect("a report");
    let predicted = cloak(&["measure", "--platform", "snp", "--cpus", "1"]);
    assert_ne!(field(&report, 0x90, 48), predicted.trim());
}

/// What the hypervisor does, and what the guest says to it. The program never runs.
const HOSTILE: &[(&str, &str)] = &[
    ("old-protocol", "version 2 of the GHCB protocol"),
    ("c-bit", "the hypervisor names another bit"),
    ("cpuid-c-bit", "the table of CPUID values names another bit"),
    ("cpuid-state", "sizes of vector state"),
    ("cpuid-count", "the table of CPUID values makes no sense"),
    ("memory", "a size is wrong"),
    ("little-memory", "too little memory"),
    ("vcpus", "a size is wrong"),
    ("config", "a size is wrong"),
    ("other-ghcb", "registered another page"),
    ("replay", "a page was accepted before"),
    ("remap", "a page can't be accepted"),
    ("page-state-never", "did not change the state of pages"),
    ("page-state-elsewhere", "did not change the state of pages"),
    ("page-state-refused", "did not change the state of pages"),
    ("drop-messages", "does not carry messages"),
    ("change-answers", "does not carry messages"),
    ("reorder-answers", "does not carry messages"),
    ("other-host-data", "not the one that the machine was launched for"),
    ("other-program", "the program is not what the manifest says"),
];

#[test]
fn a_hypervisor_that_lies_gets_a_stop_with_its_reason() {
    for (case, reason) in HOSTILE {
        let outcome = shell("echo disclosed")
            .option("--hostile")
            .option(case)
            .run(&Launcher::under_test());
        let said = outcome.error_text();
        assert_eq!(outcome.status, Status::Exit(125), "{case}: {said}");
        assert!(said.contains(reason), "{case}: {said}");
        assert_eq!(outcome.text(), "", "{case}");
    }
}

/// The first report, at the start, is answered; the second gets the first's answer. The program learns that there is none.
#[test]
fn a_repeated_answer_is_no_report() {
    let script = "cd /sys/kernel/config/tsm/report; mkdir r; printf %64s >r/inblob; cat r/outblob || cat r/outblob; echo end";
    let outcome = shell(script)
        .option("--hostile")
        .option("repeat-answers")
        .run(&Launcher::under_test());
    assert_eq!(outcome.text(), "end\n");
    assert_eq!(
        outcome.error_text().matches("Input/output error").count(),
        2,
        "{}",
        outcome.error_text()
    );
}

/// Further vCPUs: a page that can't become the state of one, and a hypervisor that makes none.
#[test]
fn a_vcpu_that_can_not_be_made_ends_it() {
    for (case, reason) in [
        ("no-vmsa", "can't be made the state of a vCPU"),
        ("no-vcpu", "vCPU"),
    ] {
        let outcome = shell("for i in 1 2 3 4; do (while :; do :; done) & done; sleep 1; kill $(jobs -p)")
            .cpus(2)
            .option("--hostile")
            .option(case)
            .run(&Launcher::under_test());
        assert_eq!(
            outcome.status,
            Status::Exit(125),
            "{case}: {}",
            outcome.error_text()
        );
        assert!(
            outcome.error_text().contains(reason),
            "{case}: {}",
            outcome.error_text()
        );
    }
}

#[test]
fn what_is_not_there_is_refused_before_anything_starts() {
    for (options, reason) in [
        (&["--platform", "snp"][..], "--platform snp"),
        (
            &["--platform", "plain", "--hostile", "replay"],
            "not a simulated one",
        ),
        (&["--platform", "sim-snp", "--hostile", "nothing"], "no such case"),
        (&["--platform", "sim-snp", "--kernel-tables"], "several contexts"),
    ] {
        let output = command(&[&["run"], options, &["--", "/bin/true"]].concat())
            .output()
            .expect("cloak runs");
        assert_eq!(output.status.code(), Some(125), "{options:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(reason), "{options:?}: {said}");
    }
}
