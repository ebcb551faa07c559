//! Command-line programs as people use them: sqlite3, openssl, xz, perl, jq, git.

use cloak_tests::scratch::noise;
use cloak_tests::{Case, Launcher, Scratch, needs};
use std::path::Path;
use std::process::Command;

#[test]
fn sqlite3_with_wal_on_a_shared_volume() {
    let Some(sqlite) = needs::cloaked_program("sqlite3") else {
        return;
    };
    let fill = "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO t SELECT i, hex(i*7919) FROM n;
        CREATE INDEX by_value ON t(v); BEGIN; UPDATE t SET v = v || 'x' WHERE id % 3 = 0; COMMIT;
        SELECT count(*), sum(length(v)), min(v), max(v) FROM t; PRAGMA integrity_check;";
    let look =
        "SELECT count(*), sum(length(v)) FROM t; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA integrity_check;";
    let scratch = Scratch::new();
    let run = |name: &str, script: &str, launcher: &Launcher| {
        let case = Case::new(&sqlite)
            .arg(scratch.join(name))
            .arg(script)
            .volume(scratch.path());
        let outcome = case.run(launcher);
        assert_eq!(outcome.status.shell_code(), 0, "{}", outcome.error_text());
        outcome.text()
    };
    let cloak = Launcher::under_test();
    assert_eq!(
        run("native.db", fill, &Launcher::Native),
        run("cloaked.db", fill, &cloak)
    );
    // What the cloaked run wrote, the host reads, and the other way round.
    assert_eq!(
        run("cloaked.db", look, &Launcher::Native),
        run("native.db", look, &cloak)
    );
}

#[test]
fn openssl_digests_ciphers_and_keys() {
    let Some(openssl) = needs::cloaked_program("openssl") else {
        return;
    };
    let scratch = Scratch::new();
    let file = scratch.write("noise", noise(8 << 20, 5));
    let base = || Case::new(&openssl).volume(scratch.path());
    base().args(["dgst", "-sha512"]).arg(&file).succeeds_as_native();
    let key = [
        "-K",
        "000102030405060708090a0b0c0d0e0f",
        "-iv",
        "0f0e0d0c0b0a09080706050403020100",
    ];
    base()
        .args(["enc", "-aes-128-ctr"])
        .args(key)
        .arg("-in")
        .arg(&file)
        .succeeds_as_native();
    let made = base()
        .args(["genpkey", "-algorithm", "ED25519"])
        .run(&Launcher::under_test());
    assert!(made.text().contains("BEGIN PRIVATE KEY"), "{}", made.error_text());
}

#[test]
fn openssl_speed() {
    let Some(openssl) = needs::cloaked_program("openssl") else {
        return;
    };
    // The figures differ from run to run; that each is there does not. It times itself with SIGALRM.
    let case = Case::new(openssl).args([
        "speed",
        "-seconds",
        "1",
        "-bytes",
        "1024",
        "sha256",
        "aes-128-cbc",
    ]);
    let outcome = case.run(&Launcher::under_test());
    assert_eq!(outcome.status.shell_code(), 0, "{}", outcome.error_text());
    for line in ["sha256", "aes-128-cbc"] {
        assert!(
            outcome
                .text()
                .lines()
                .any(|text| text.starts_with(line) && text.ends_with('k')),
            "{}",
            outcome.text()
        );
    }
}

#[test]
fn xz_with_two_threads() {
    let Some(xz) = needs::cloaked_program("xz") else {
        return;
    };
    let mut bytes = noise(4 << 20, 6);
    bytes.extend(b"a sentence that repeats. ".iter().cycle().take(12 << 20));
    let packed = Case::new(&xz)
        .args(["-T2", "--block-size=2MiB", "-1", "-c"])
        .stdin(bytes.clone())
        .succeeds_as_native();
    let unpacked = Case::new(&xz)
        .args(["-d", "-T2", "-c"])
        .stdin(packed.stdout)
        .succeeds_as_native();
    assert!(unpacked.stdout == bytes, "the round trip changed the bytes");
}

#[test]
fn perl_script() {
    let Some(perl) = needs::cloaked_program("perl") else {
        return;
    };
    let script = r#"use strict; use warnings; use POSIX qw(floor); use List::Util qw(sum); use Digest::SHA qw(sha256_hex);
        my %count; while (<STDIN>) { $count{$1}++ while /(\w+)/g }
        print "$_ $count{$_}\n" for sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
        print sum(map { floor($_ / 3) } 1..100000), " ", sha256_hex("x" x 1e6), "\n";
        local $SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 1; select(undef, undef, undef, 30) while 1 }; print "got $@";
        exit 7;"#;
    let text = "the quick brown fox jumps over the lazy dog ".repeat(5000);
    let outcome = Case::new(perl).args(["-e", script]).stdin(text).same_as_native();
    assert_eq!(outcome.status.shell_code(), 7, "{}", outcome.error_text());
}

#[test]
fn jq_over_a_large_document() {
    let Some(jq) = needs::cloaked_program("jq") else {
        return;
    };
    let rows: Vec<String> = (0..30_000)
        .map(|i| format!(r#"{{"id":{i},"tags":["a{}","b"],"v":{}.5}}"#, i % 7, i * 3))
        .collect();
    let document = format!("[{}]", rows.join(","));
    let query = "group_by(.tags[0]) | map({tag: .[0].tags[0], n: length, sum: (map(.v) | add)})";
    Case::new(&jq)
        .args(["-S", query])
        .stdin(document)
        .succeeds_as_native();
    let outcome = Case::new(&jq).arg(".").stdin("{ not json").same_as_native();
    assert_ne!(outcome.status.shell_code(), 0);
}

/// A repository with a few hundred commits, made by the host's git.
fn make_repository(folder: &Path) {
    let mut stream = String::new();
    for i in 0..300 {
        let text = format!("line {i}\n").repeat(i % 17 + 1);
        stream += &format!(
            "commit refs/heads/main\nmark :{}\ncommitter A Person <a@example.org> {} +0000\ndata <<END\nChange {i}\nEND\n\
             M 100644 inline file{}.txt\ndata {}\n{text}\n",
            i + 1,
            1_600_000_000 + i * 1000,
            i % 23,
            text.len()
        );
    }
    let git = |arguments: &[&str], input: &str| {
        let mut command = Command::new("/usr/bin/git");
        command
            .arg("-C")
            .arg(folder)
            .args(arguments)
            .env_clear()
            .env("HOME", folder)
            .env("PATH", "/usr/bin:/bin");
        let outcome = cloak_tests::process::Running::start(command, input.into())
            .and_then(|running| running.finish(std::time::Duration::from_secs(120)))
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            outcome.status.shell_code(),
            0,
            "git {arguments:?}: {}",
            outcome.error_text()
        );
    };
    git(&["init", "-q", "-b", "main", "."], "");
    git(&["fast-import", "--quiet"], &stream);
    git(&["reset", "-q", "--hard", "main"], "");
}

#[test]
fn git_log_and_friends() {
    let Some(git) = needs::cloaked_program("/usr/bin/git") else {
        return;
    };
    let scratch = Scratch::new();
    make_repository(scratch.path());
    let questions: [&[&str]; 5] = [
        &["log", "--stat"],
        &["log", "-p", "-20", "--", "file3.txt"],
        &["status", "--short", "--branch"],
        &["cat-file", "-p", "HEAD~100^{tree}"],
        &["fsck", "--full"],
    ];
    for question in questions {
        let case = Case::new(&git).arg("--no-pager").args(question.iter().copied());
        let case = case
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*");
        case.in_folder(scratch.path())
            .volume(scratch.path())
            .env("GIT_OPTIONAL_LOCKS", "0")
            .succeeds_as_native();
    }
}

/// `--user`: numbers inside and owner on the host are that user's, and what only root may read stays closed.
#[test]
fn a_program_runs_as_another_user() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !needs::kvm() || !needs::root() {
        return;
    }
    let scratch = Scratch::new();
    let (closed, open) = (scratch.write("closed", "secret"), scratch.path().join("open"));
    let permit = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    std::fs::create_dir(&open)
        .and_then(|()| permit(&open, 0o777))
        .and_then(|()| permit(&closed, 0o600))
        .and_then(|()| permit(scratch.path(), 0o755))
        .expect("the folder is ours");
    let script = format!(
        "id -u; id -g; id -G; echo mine > {open}/made && cat {open}/made; cat {closed} || echo closed",
        open = open.display(),
        closed = closed.display()
    );
    let outcome = Case::new("/bin/sh")
        .args(["-c", &script])
        .volume(scratch.path())
        .option("--user=4321:1234")
        .run(&Launcher::under_test());
    assert_eq!(
        outcome.text(),
        "4321\n1234\n1234\nmine\nclosed\n",
        "{}",
        outcome.error_text()
    );
    let made = std::fs::metadata(open.join("made")).expect("it was made");
    assert_eq!((made.uid(), made.gid()), (4321, 1234));
    let unknown = Case::new("/bin/true")
        .option("--user=no such user")
        .run(&Launcher::under_test());
    assert_eq!(unknown.status.shell_code(), 125);
    assert!(
        unknown.error_text().contains("--user no such user"),
        "{}",
        unknown.error_text()
    );
}
