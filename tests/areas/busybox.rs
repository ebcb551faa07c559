//! `busybox`, static: what a system is full of, compared with a native run on the same files.

use cloak_tests::scratch::noise;
use cloak_tests::{Case, Scratch, needs};

const MIB: usize = 1 << 20;

fn busybox(applet: &str) -> Option<Case> {
    needs::cloaked_program("busybox").map(|path| Case::new(path).arg(applet))
}

#[test]
fn sha256sum_of_a_large_file() {
    let Some(case) = busybox("sha256sum") else { return };
    let scratch = Scratch::new();
    let file = scratch.write("noise", noise(64 * MIB, 1));
    case.volume(scratch.path()).arg(file).succeeds_as_native();
}

#[test]
fn gzip_round_trip_of_64_mib() {
    let (Some(gzip), Some(gunzip)) = (busybox("gzip"), busybox("gunzip")) else {
        return;
    };
    // Half of it compresses, half does not.
    let mut bytes = noise(32 * MIB, 2);
    bytes.extend(b"all work and no play ".iter().cycle().take(32 * MIB));
    let packed = gzip.arg("-c").stdin(bytes.clone()).succeeds_as_native();
    assert!(packed.stdout.len() < 40 * MIB, "{} bytes", packed.stdout.len());
    let unpacked = gunzip.arg("-c").stdin(packed.stdout).succeeds_as_native();
    assert!(unpacked.stdout == bytes, "the round trip changed the bytes");
}

#[test]
fn awk_over_many_lines() {
    let Some(case) = busybox("awk") else { return };
    let input: String = (0..200_000)
        .map(|i| format!("{} {} line\n", i, i * 7 % 1000))
        .collect();
    let script = "{ sum[$2 % 10] += $1; n++ } END { for (i = 0; i < 10; i++) print i, sum[i]; print n, n % 97, length(n) }";
    case.arg(script).stdin(input).succeeds_as_native();
}

#[test]
fn sort_in_several_ways() {
    let input: String = noise(400_000, 3)
        .chunks(8)
        .map(|word| format!("{}\n", word[0] as u32 * 1000 + word[1] as u32))
        .collect();
    for options in [vec!["-n"], vec!["-r"], vec!["-n", "-u"]] {
        let Some(case) = busybox("sort") else { return };
        case.args(options).stdin(input.clone()).succeeds_as_native();
    }
}

#[test]
fn find_through_a_system_tree() {
    let Some(case) = busybox("find") else { return };
    case.args(["/usr/share/perl", "/etc/ssl", "-type", "f", "-size", "+1k"])
        .succeeds_as_native();
}

#[test]
fn ls_of_usr_lib() {
    for options in ["-l", "-la", "-lR"] {
        let Some(case) = busybox("ls") else { return };
        case.args([
            options,
            if options == "-lR" {
                "/usr/lib/ssl"
            } else {
                "/usr/lib"
            },
        ])
        .succeeds_as_native();
    }
}

#[test]
fn files_made_changed_and_removed() {
    let scratch = Scratch::new();
    let steps: [&[&str]; 9] = [
        &["mkdir", "-p", "a/b/c"],
        &["dd", "if=/dev/zero", "of=a/zeros", "bs=4096", "count=100"],
        &["cp", "a/zeros", "a/b/copy"],
        &["mv", "a/b/copy", "a/b/c/moved"],
        &["ln", "-s", "b/c/moved", "a/link"],
        &["cmp", "a/zeros", "a/link"],
        &["wc", "-c", "a/link"],
        &["tar", "cf", "a.tar", "a/zeros", "a/link"],
        &["rm", "-r", "a"],
    ];
    for (number, step) in steps.iter().enumerate() {
        let Some(busybox) = needs::cloaked_program("busybox") else {
            return;
        };
        let (native, cloaked) = (scratch.join("native"), scratch.join("cloaked"));
        if number == 0 {
            std::fs::create_dir_all(&native)
                .and_then(|()| std::fs::create_dir_all(&cloaked))
                .expect("scratch");
        }
        let case = Case::new(busybox)
            .args(step.iter().copied())
            .volume(scratch.path());
        // The steps change files, so each way of running has its own folder.
        let here = case
            .clone()
            .in_folder(&native)
            .run(&cloak_tests::Launcher::Native);
        let there = case.in_folder(&cloaked).run(&cloak_tests::Launcher::under_test());
        // dd tells its speed on standard error.
        let native_outcome = (here.status.shell_code(), here.text());
        assert_eq!(
            native_outcome,
            (there.status.shell_code(), there.text()),
            "{step:?}: {}",
            there.error_text()
        );
        assert_eq!(native_outcome.0, 0, "{step:?}: {}", here.error_text());
    }
    let archive = |way: &str| {
        std::fs::metadata(scratch.join(way).join("a.tar"))
            .expect("tar made it")
            .len()
    };
    assert_eq!(archive("native"), archive("cloaked"));
    assert!(!scratch.join("cloaked").join("a").exists(), "rm left the folder");
}

#[test]
fn small_applets() {
    let cases: [&[&str]; 12] = [
        &["true"],
        &["false"],
        &["echo", "-e", "a\\tb"],
        &["seq", "1", "1000"],
        &["printf", "%05d %s\\n", "42", "x"],
        &["expr", "6", "*", "7"],
        &["md5sum", "/etc/passwd", "/etc/absent"],
        &["cut", "-d:", "-f1,7", "/etc/passwd"],
        &["sed", "-n", "s/root/ROOT/gp", "/etc/passwd"],
        &["grep", "-c", "bin", "/etc/passwd"],
        &["stat", "-c", "%s %a %F", "/etc/passwd", "/etc", "/dev/null"],
        &["date", "-u", "-d", "@1234567890"],
    ];
    for arguments in cases {
        let Some(path) = needs::cloaked_program("busybox") else {
            return;
        };
        Case::new(path).args(arguments.iter().copied()).same_as_native();
    }
}
