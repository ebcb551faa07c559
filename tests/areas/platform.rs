//! Programs on simulated SNP and TDX machines: they run as natively, their reports verify where a policy trusts the simulated root
//! and nowhere else, and a hypervisor that lies gets a stop with a reason and nothing else.

use cloak_attestation::Evidence;
use cloak_attestation::bytes::Bytes48;
use cloak_attestation::evidence::Attestation;
use cloak_attestation::sim::IdSigner;
use cloak_attestation::snp::GuestPolicy;
use cloak_attestation::time::Timestamp;
use cloak_tests::programs::{Linkage, built};
use cloak_tests::scratch::Scratch;
use cloak_tests::{Case, Launcher, Status};
use sha2::{Digest, Sha384};
use std::path::Path;
use std::process::Command;

const SNP: &str = "sim-snp";
const TDX: &str = "sim-tdx";
const BOTH: [&str; 2] = [SNP, TDX];

fn simulated(platform: &str, program: &str) -> Case {
    Case::new(program)
        .memory("512M")
        .option("--platform")
        .option(platform)
}

fn shell(platform: &str, script: &str) -> Case {
    simulated(platform, "/bin/sh").args(["-c", script])
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
    let sums = "import threading, hashlib\n\
                out = [None] * 8\n\
                def work(i):\n    h = hashlib.sha256()\n    for _ in range(200):\n        h.update(bytes([i]) * 10000)\n    out[i] = h.hexdigest()\n\
                ts = [threading.Thread(target=work, args=(i,)) for i in range(8)]\n\
                [t.start() for t in ts]; [t.join() for t in ts]; print(out)";
    for on in BOTH {
        shell(on, "echo hello; printf '%s\\n' a b c | sort -r | head -2; exit 3").same_as_native();
        shell(
            on,
            "for i in 1 2 3; do (exit $i) & wait $!; echo $?; done; wc -l </etc/passwd",
        )
        .succeeds_as_native();
        simulated(on, "/usr/bin/env").arg("-i").succeeds_as_native();
        simulated(on, "/usr/bin/python3")
            .args(["-c", sums])
            .succeeds_as_native();
    }
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
    // Small pages, which KVM backs domains with, too.
    for options in [&[SNP][..], &[TDX], &[TDX, "--hostile", "small-pages"]] {
        let case = options[1..]
            .iter()
            .fold(simulated(options[0], "/usr/bin/python3"), |case, option| {
                case.option(option)
            });
        let outcome = case.args(["-c", script]).run(&Launcher::under_test());
        assert_eq!(
            (outcome.status, outcome.text().as_str()),
            (Status::Exit(0), "7\n"),
            "{options:?}: {}",
            outcome.error_text()
        );
    }
}

#[test]
fn it_says_that_it_is_a_simulation_and_plain_kvm_does_not() {
    for (on, name) in [(SNP, "SEV-SNP"), (TDX, "TDX")] {
        let outcome = shell(on, "true").run(&Launcher::under_test());
        assert_eq!(
            outcome.error_text(),
            format!("cloak: simulated {name}: this protects nothing from whoever runs it\n")
        );
    }
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
fn attest(on: &str, folder: &Path, cpus: u32, options: &[&str]) {
    let script = format!(
        "set -e; cd /sys/kernel/config/tsm/report; mkdir r; cat r/generation r/provider\n\
         printf %64s | tr ' ' n >r/inblob\n\
         cat r/outblob >{0}/report; cat r/auxblob >{0}/aux; cat r/generation; rmdir r; ls",
        folder.display()
    );
    let case = options
        .iter()
        .fold(shell(on, &script).cpus(cpus).volume(folder), |case, option| {
            case.option(option)
        });
    let outcome = case.run(&Launcher::under_test());
    let provider = if on == SNP { "sev_guest" } else { "tdx_guest" };
    let said = outcome.error_text();
    assert_eq!(outcome.text(), format!("0\n{provider}\n1\n"), "{said}");
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
        attest(SNP, folder, cpus, &[]);
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

/// `--id-block` and `--id-auth`: refused with a reason where the firmware would refuse, and named in reports, which a policy may
/// ask for.
#[test]
fn an_id_block_is_held_against_the_launch_and_named_in_reports() {
    let scratch = Scratch::new();
    let folder = scratch.path();
    let predicted = cloak(&["measure", "--platform", "snp", "--cpus", "2"]);
    let measurement: Bytes48 = predicted.trim().parse().expect("a digest");
    let [block_file, auth_file] = ["block", "auth"].map(|name| folder.join(name));
    let [block_option, auth_option] = [("--id-block", &block_file), ("--id-auth", &auth_file)]
        .map(|(option, file)| format!("{option}={}", file.display()));
    let options = [block_option.as_str(), auth_option.as_str()];
    let put = |block: &[u8], auth: &[u8]| {
        std::fs::write(&block_file, block).expect("a file");
        std::fs::write(&auth_file, auth).expect("a file");
    };
    let (block, auth) = IdSigner::new(true).sign(measurement, GuestPolicy(0x30000), 3);
    put(block.raw(), auth.raw());
    attest(SNP, folder, 2, &options);
    let report = std::fs::read(folder.join("report")).expect("a report");
    assert_eq!(field(&report, 0x90, 48), predicted.trim(), "MEASUREMENT");
    assert_eq!(field(&report, 0x04, 4), "03000000", "GUEST_SVN");
    assert_eq!(field(&report, 0x48, 1), "01", "AUTHOR_KEY_EN");
    let id_key = auth.id_key_digest().to_string();
    assert_eq!(field(&report, 0xe0, 48), id_key, "ID_KEY_DIGEST");
    let author_key = auth.author_key_digest().expect("there is one").to_string();
    assert_eq!(field(&report, 0x110, 48), author_key, "AUTHOR_KEY_DIGEST");

    let verified = |digest: &str| {
        let policy = format!(
            "platforms = [\"simulated-snp\"]\n[snp]\nmaximum_vmpl = 1\nid_key_digests = [\"{digest}\"]\n\
             [simulated]\nroot_digests = [\"{}\"]\n",
            root_digest(),
        );
        std::fs::write(folder.join("policy.toml"), policy).expect("a file");
        let [report, aux, policy] =
            ["report", "aux", "policy.toml"].map(|name| folder.join(name).display().to_string());
        let arguments = [
            "verify",
            &report,
            "--cert-table",
            &aux,
            "--simulated",
            "--policy",
            &policy,
        ];
        command(&arguments).output().expect("cloak runs").status.code()
    };
    assert_eq!(verified(&id_key), Some(0));
    assert_eq!(verified(&author_key), Some(1), "another's key");

    let refused = |platform: &str, cpus: &str| {
        let run = ["run", "--platform", platform, "--cpus", cpus];
        let output = command(&[&run[..], &options, &["--", "/bin/true"]].concat())
            .output()
            .expect("cloak runs");
        assert_eq!(output.status.code(), Some(125));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(SNP, "1");
    assert!(
        said.contains("BAD_MEASUREMENT") && said.contains("cloak measure --platform snp --cpus 1"),
        "{said}"
    );
    assert!(refused("plain", "2").contains("--id-block is for"));
    assert!(refused(TDX, "2").contains("--id-block is for"));
    let mut changed = *auth.raw();
    changed[0x40] ^= 1;
    put(block.raw(), &changed);
    assert!(refused(SNP, "2").contains("BAD_SIGNATURE"));
    put(&block.raw()[1..], auth.raw());
    assert!(refused(SNP, "2").contains("has 95 bytes"));
    let (block, auth) = IdSigner::new(false).sign(measurement, GuestPolicy(0xb0000), 0);
    put(block.raw(), auth.raw());
    assert!(refused(SNP, "2").contains("POLICY_FAILURE"));
}

/// Where MRTD, MRCONFIGID and the run-time registers 2 and 3 are in a quote of version 4.
const MRTD: usize = 48 + 136;
const CONFIG_ID: usize = 48 + 184;
const REGISTERS: [usize; 2] = [48 + 424, 48 + 472];

/// What a run-time register is after one extension by the SHA-384 of `bytes`.
fn extended(bytes: &[u8]) -> String {
    let event = Sha384::digest(bytes);
    let register = Sha384::new().chain_update([0; 48]).chain_update(event).finalize();
    register.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A quote has what `cloak measure` predicts, is bound to the manifest, and its run-time registers are those of the manifest and of
/// the program; it verifies under a policy that names the simulated root.
#[test]
fn a_quote_has_the_predicted_measurement_and_verifies_where_it_is_trusted_only() {
    let scratch = Scratch::new();
    let folder = scratch.path();
    let now = Timestamp::now();
    let world = cloak_sim::keys::tdx_world(now).expect("built in");
    for cpus in [1, 2] {
        attest(TDX, folder, cpus, &[]);
        let quote = std::fs::read(folder.join("report")).expect("a quote");
        let predicted = cloak(&["measure", "--platform", "tdx", "--cpus", &cpus.to_string()]);
        assert_eq!(field(&quote, MRTD, 48), predicted.trim(), "MRTD for {cpus} vCPUs");
        assert_ne!(
            field(&quote, CONFIG_ID, 48),
            "00".repeat(48),
            "the manifest's digest"
        );
        let shell = std::fs::read("/bin/sh").expect("a shell");
        assert_eq!(field(&quote, REGISTERS[1], 48), extended(&shell), "the program");
        assert_ne!(field(&quote, REGISTERS[0], 48), "00".repeat(48), "the manifest");
        let evidence = world.complete(quote.clone(), &world.spec()).expect("signed");
        let evidence = Evidence::from(Attestation::SimulatedTdx(evidence));
        let file = folder.join("evidence");
        std::fs::write(&file, evidence.to_cbor()).expect("a file");
        let policy = format!(
            "platforms = [\"simulated-tdx\"]\n[simulated]\nroot_digests = [\"{}\"]\n\
             [[reference]]\nname = \"this build\"\nversion = \"1\"\nmrtd = [\"{}\"]\nmr_config_id = [\"{}\"]\n\
             rtmr3 = [\"{}\"]\n",
            world.root_digest(),
            predicted.trim(),
            field(&quote, CONFIG_ID, 48),
            extended(&shell),
        );
        let policy_file = folder.join("policy.toml");
        std::fs::write(&policy_file, &policy).expect("a file");
        let [file, policy_name] = [file, policy_file.clone()].map(|path| path.display().to_string());
        let nonce = "6e".repeat(64);
        let trusted = ["verify", &file, "--policy", &policy_name, "--nonce", &nonce];
        cloak(&trusted);
        let refused = |arguments: &[&str], code: &str| {
            let output = command(arguments).output().expect("cloak runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
            assert!(text.contains(code), "{arguments:?}: {text}");
        };
        refused(&["verify", &file], "evidence.kind.not-allowed");
        let mut other = trusted;
        let wrong = "6f".repeat(64);
        other[5] = &wrong;
        refused(&other, "evidence.report-data.mismatch");
        std::fs::write(&policy_file, policy.replace(predicted.trim(), &"0".repeat(96))).expect("a file");
        refused(&trusted, "reference.measurement.unknown");
    }
}

/// A byte of the shim is another: the guest runs, and its measurement tells.
#[test]
fn a_changed_shim_shows_in_the_measurement() {
    let scratch = Scratch::new();
    for (on, platform, at) in [(SNP, "snp", 0x90), (TDX, "tdx", MRTD)] {
        attest(on, scratch.path(), 1, &["--hostile", "shim"]);
        let report = std::fs::read(scratch.path().join("report")).expect("a report");
        let predicted = cloak(&["measure", "--platform", platform, "--cpus", "1"]);
        assert_ne!(field(&report, at, 48), predicted.trim(), "{on}");
    }
}

/// What the hypervisor does, and what the guest says to it. The program never runs.
const HOSTILE_SNP: &[(&str, &str)] = &[
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

/// The same on TDX.
const HOSTILE_TDX: &[(&str, &str)] = &[
    ("memory", "a size is wrong"),
    ("little-memory", "too little memory"),
    ("vcpus", "a size is wrong"),
    ("more-vcpus", "a size is wrong"),
    ("config", "a size is wrong"),
    ("other-config-id", "not the one that the machine was launched for"),
    ("debug", "ATTRIBUTES"),
    ("no-sept-ve-disable", "ATTRIBUTES"),
    ("width", "another bit for shared memory"),
    // It goes on as on real hardware, which there is not: its first TDCALL is an illegal instruction.
    ("cpuid-tdx", "can't go on"),
    ("accepted-before", "a page was accepted before"),
    ("not-accepted", "a page can't be accepted"),
    ("take-pages", "can't go on"),
    ("map-gpa-never", "did not share memory"),
    ("map-gpa-elsewhere", "did not share memory"),
    ("map-gpa-refused", "did not share memory"),
    ("no-cause", "an exception (#VE) of a kind that nothing"),
    ("device-cause", "an access to memory that is not there"),
    ("other-cause", "an exception (#VE) of a kind that nothing"),
    ("refuse-calls", "an answer to something that was not asked"),
];

#[test]
fn a_hypervisor_that_lies_gets_a_stop_with_its_reason() {
    let snp = HOSTILE_SNP.iter().map(|case| (SNP, case));
    for (on, (case, reason)) in snp.chain(HOSTILE_TDX.iter().map(|case| (TDX, case))) {
        stops(on, "echo disclosed", case, reason);
    }
}

/// A hypervisor that does this ends the guest, for this reason, with nothing said.
fn stops(on: &str, script: &str, case: &str, reason: &str) {
    let outcome = shell(on, script)
        .option("--hostile")
        .option(case)
        .run(&Launcher::under_test());
    let said = outcome.error_text();
    assert_eq!(outcome.status, Status::Exit(125), "{on} {case}: {said}");
    assert!(said.contains(reason), "{on} {case}: {said}");
    assert_eq!(outcome.text(), "", "{on} {case}");
}

/// A hypervisor that has no quote, or another one, gets no further than an error where the program asked. Only the one that never
/// answers takes its time, and the buffer is its own from then on.
#[test]
fn a_program_gets_its_own_quote_or_none() {
    let ask = "cat r/outblob >/dev/null && echo quote";
    for (case, reasons) in [
        ("early-quote", ["Input/output error"; 2]),
        ("long-quote", ["Input/output error"; 2]),
        ("changed-quote", ["Input/output error"; 2]),
        ("other-quote", ["Input/output error"; 2]),
        ("no-quote", ["Input/output error"; 2]),
        ("never-quote", ["Connection timed out", "Device or resource busy"]),
    ] {
        let script = format!(
            "cd /sys/kernel/config/tsm/report; mkdir r; printf %64s >r/inblob; {ask}; {ask}; echo end"
        );
        let outcome = shell(TDX, &script)
            .option("--hostile")
            .option(case)
            .run(&Launcher::under_test());
        let said = outcome.error_text();
        assert_eq!(outcome.text(), "end\n", "{case}: {said}");
        let mut lines = said.lines().filter(|line| line.contains("outblob"));
        for reason in reasons {
            let line = lines.next().unwrap_or_default();
            assert!(line.contains(reason), "{case}: {said}");
        }
    }
}

/// Interrupts that nobody asked for, of all vectors, while programs compute, fork and wait: nothing of it is noticed, but that they
/// are counted.
#[test]
fn wild_interrupts_are_dropped_and_counted() {
    let script = "for i in 1 2 3 4 5 6; do (exit $i); echo $?; done; n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; echo $n";
    let outcome = shell(TDX, script)
        .cpus(2)
        .option("--hostile")
        .option("wild-interrupts")
        .option("--stats")
        .run(&Launcher::under_test());
    let said = outcome.error_text();
    assert_eq!(outcome.text(), "1\n2\n3\n4\n5\n6\n20000\n", "{said}");
    assert!(dropped(&said) > 0, "{said}");
}

/// A vCPU that the host starts before the kernel has asked for it waits, and is the same one afterwards.
#[test]
fn a_vcpu_that_starts_early_waits_to_be_released() {
    let script =
        "for i in 1 2 3 4; do (n=0; while [ $n -lt 5000 ]; do n=$((n+1)); done; echo $i) & done; wait; nproc";
    let outcome = shell(TDX, script)
        .cpus(2)
        .option("--hostile")
        .option("early-vcpu")
        .run(&Launcher::under_test());
    let mut lines: Vec<String> = outcome.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["1", "2", "2", "3", "4"], "{}", outcome.error_text());
}

/// What it injects once code at CPL 3 leaves to it, and the stop. The program is one that waits, and so leaves.
const INJECTED: &[(&str, &str)] = &[
    ("vc-reason", "what the interrupted instruction does not do"),
    ("vc-device", "as one to a device"),
    ("vc-unknown", "neither the shim nor a program asks it for"),
    ("vc-kernel", "the kernel was interrupted"),
    ("interrupt-kernel", "the kernel was interrupted"),
];

#[test]
fn an_exception_without_a_cause_ends_it() {
    for (case, reason) in INJECTED {
        stops(SNP, "sleep 0.2; echo disclosed", case, reason);
    }
}

/// How many events the kernel dropped, as `--stats` has it.
fn dropped(said: &str) -> u64 {
    let line = said.lines().find(|line| line.contains("dropped"));
    let count = line.and_then(|line| line.split_whitespace().last());
    count.and_then(|count| count.parse().ok()).expect("a count")
}

/// Vectors that nobody but a liar sends, and frames in a form that no CPU pushes: as if they had not come.
#[test]
fn events_that_nobody_may_send_are_dropped_and_counted() {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.02; done; echo whole";
    for case in ["wild-interrupts", "wild-exceptions", "wild-frames"] {
        let outcome = shell(SNP, script)
            .option("--hostile")
            .option(case)
            .option("--stats")
            .run(&Launcher::under_test());
        let said = outcome.error_text();
        assert_eq!(
            (outcome.status, outcome.text().as_str()),
            (Status::Exit(0), "whole\n"),
            "{case}: {said}"
        );
        assert!(dropped(&said) >= 12, "{case}: {said}");
    }
    // Where plain KVM's table stands in the place of a measured guest's, they are the guest's end.
    for case in ["unguarded-exceptions", "unguarded-frames"] {
        let outcome = shell(SNP, script)
            .option("--hostile")
            .option(case)
            .run(&Launcher::under_test());
        assert_ne!(outcome.status, Status::Exit(0), "{case}");
        assert!(
            outcome.error_text().contains("stopped"),
            "{case}: {}",
            outcome.error_text()
        );
    }
    let honest = shell(SNP, script).option("--stats").run(&Launcher::under_test());
    assert_eq!(
        dropped(&honest.error_text()),
        0,
        "nothing is dropped where nobody lies"
    );
}

/// What the CPU of this machine does not intercept, on one that does: answered from the table and the hypervisor's clock.
#[test]
fn intercepted_instructions_are_answered_as_the_processor_would() {
    let Some(program) = built("intercepted", Linkage::Static) else {
        return;
    };
    let outcome = simulated(SNP, &program.display().to_string())
        .option("--hostile")
        .option("intercept")
        .run(&Launcher::under_test());
    let vendor = std::fs::read_to_string("/proc/cpuinfo").expect("Linux");
    let vendor = vendor.lines().find_map(|line| line.strip_prefix("vendor_id\t: "));
    let wanted = format!(
        "vendor {}, leaves up to vector state\nAPIC 0, OSXSAVE 1\nvector state as enabled, of its size\n\
         hypervisor 0 0 0 0\nC-bit 51\ntime goes on, processor 0\nVMMCALL: no such instruction\n\
         alignment: a bus error\n",
        vendor.expect("a vendor")
    );
    assert_eq!(outcome.text(), wanted, "{}", outcome.error_text());
}

/// The first report, at the start, is answered; the second gets the first's answer. The program learns that there is none.
#[test]
fn a_repeated_answer_is_no_report() {
    let script = "cd /sys/kernel/config/tsm/report; mkdir r; printf %64s >r/inblob; cat r/outblob || cat r/outblob; echo end";
    let outcome = shell(SNP, script)
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
        let outcome = shell(
            SNP,
            "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 1; kill $(jobs -p)",
        )
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
        (&["--platform", "tdx"], "--platform tdx"),
        (
            &["--platform", "sim-tdx", "--quote-service", "vsock:2:4050"],
            "--quote-service is for --platform tdx",
        ),
        (&["--platform", "sim-snp", "--hostile", "nothing"], "no such case"),
        (&["--platform", "sim-tdx", "--hostile", "c-bit"], "no such case"),
        (&["--platform", "sim-snp", "--kernel-tables"], "several contexts"),
        (&["--platform", "sim-tdx", "--kernel-tables"], "several contexts"),
    ] {
        let output = command(&[&["run"], options, &["--", "/bin/true"]].concat())
            .output()
            .expect("cloak runs");
        assert_eq!(output.status.code(), Some(125), "{options:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(reason), "{options:?}: {said}");
    }
}
