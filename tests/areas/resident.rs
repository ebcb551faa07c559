//! `cloak run --resident`: right results in less memory than a program needs, and a swap file that tells nothing and
//! can't be tampered with. By the monitor's pager, and by the guest's own on a measured machine.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use cloak_tests::programs::{Linkage, built};
use cloak_tests::{Case, Launcher, Scratch, needs};

const PATIENCE: Duration = Duration::from_secs(400);
const MARKER: &[u8] = b"SECRET!!";

fn working_set(scratch: &Scratch, mib: &str, resident: &str) -> Case {
    Case::new(built("working_set", Linkage::Static).expect("gcc builds static programs"))
        .arg(mib)
        .memory("2G")
        .option("--resident")
        .option(resident)
        .option("--swap")
        .option(scratch.join("swap").to_str().expect("a plain path"))
        .patience(PATIENCE)
}

#[test]
fn one_gibibyte_in_256_mebibytes() {
    if hosts_pager() {
        let scratch = Scratch::new();
        working_set(&scratch, "1024", "256M").succeeds_as_native();
    }
}

#[test]
fn one_gibibyte_in_256_mebibytes_by_the_guests_own_pager() {
    if needs::kvm() {
        let scratch = Scratch::new();
        inside(working_set(&scratch, "1024", "256M")).succeeds_as_native();
        let swapped = fs::metadata(scratch.join("swap")).expect("the swap file").len();
        assert!(swapped > 700 << 20, "only {swapped} bytes were swapped");
    }
}

#[test]
fn several_processors_by_the_guests_own_pager() {
    if needs::kvm() {
        let scratch = Scratch::new();
        inside(working_set(&scratch, "128", "32M"))
            .cpus(2)
            .succeeds_as_native();
    }
}

/// What a `fork` copies may have left; what one side writes the other does not see.
#[test]
fn copies_of_what_has_left_are_copies() {
    if !needs::kvm() {
        return;
    }
    let script = "import os, mmap\n\
                  m = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
                  for i in range(0, len(m), 4096): m[i:i + 8] = i.to_bytes(8, 'little')\n\
                  pid = os.fork()\n\
                  step = 4096 * 2\n\
                  if pid == 0:\n    \
                      for i in range(0, len(m), step): m[i:i + 8] = b'childish'\n    \
                      ok = all(m[i:i + 8] == (b'childish' if i % step == 0 else i.to_bytes(8, 'little')) for i in range(0, len(m), 4096))\n    \
                      os._exit(0 if ok else 1)\n\
                  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n\
                  print(all(m[i:i + 8] == i.to_bytes(8, 'little') for i in range(0, len(m), 4096)))\n\
                  m.madvise(mmap.MADV_DONTNEED)\n\
                  print(not any(m[i] for i in range(0, len(m), 4096)))";
    let scratch = Scratch::new();
    let case = Case::new("/usr/bin/python3").args(["-c", script]).memory("1G");
    let case = case.option("--resident").option("32M").option("--swap");
    let case = case
        .option(scratch.join("swap").to_str().expect("a plain path"))
        .patience(PATIENCE);
    inside(case).succeeds_as_native();
}

/// Whether the pager is the host's. Where all areas run on a measured machine it is the guest's own, which has its own tests.
fn hosts_pager() -> bool {
    needs::plain() && needs::kvm()
}

fn inside(case: Case) -> Case {
    match needs::other_platform() {
        // All areas run on a measured machine.
        Some(_) => case,
        None => case.option("--platform").option("sim-snp"),
    }
}

#[test]
fn several_processors_in_little_memory() {
    if hosts_pager() {
        let scratch = Scratch::new();
        working_set(&scratch, "128", "32M").cpus(2).succeeds_as_native();
    }
}

/// What the program holds is not in the swap file; changed there, it stops the VM before the program has a byte.
#[test]
fn a_swap_file_shows_nothing_and_can_not_be_changed() {
    if hosts_pager() {
        shows_nothing_and_can_not_be_changed("16M", |case| case);
    }
}

/// The same with the guest's own pager, which the OS service serves.
#[test]
fn nor_can_the_guests_own() {
    if needs::kvm() {
        shows_nothing_and_can_not_be_changed("24M", inside);
    }
}

fn shows_nothing_and_can_not_be_changed(resident: &str, how: impl Fn(Case) -> Case) {
    let scratch = Scratch::new();
    let folder = scratch.join("go");
    fs::create_dir(&folder).expect("scratch is writable");
    let go = folder.join("on");
    let case = working_set(&scratch, "64", resident)
        .arg(go.to_str().expect("a plain path"))
        .memory("256M")
        .volume(&folder);
    let case = how(case);
    let mut running = case.start(&Launcher::under_test());
    assert!(
        running.prints("ok filled", PATIENCE),
        "{}",
        String::from_utf8_lossy(&running.stderr_so_far())
    );

    let swap = scratch.join("swap");
    let bytes = fs::read(&swap).expect("the swap file");
    let used: Vec<usize> = (0..bytes.len() / 4096)
        .filter(|page| bytes[page * 4096..][..4096].iter().any(|&b| b != 0))
        .collect();
    assert!(used.len() > 32 << 8, "only {} pages were swapped", used.len());
    assert!(
        !bytes.windows(MARKER.len()).any(|w| w == MARKER),
        "the swap file shows the program's memory"
    );

    let file = File::options().write(true).open(&swap).expect("the swap file");
    for page in used {
        file.write_all_at(&[bytes[page * 4096 + 9] ^ 1], page as u64 * 4096 + 9)
            .expect("the swap file");
    }
    fs::write(&go, "").expect("scratch is writable");
    let outcome = running.finish(PATIENCE).expect("it ends");
    assert_eq!(outcome.status.shell_code(), 125, "{}", outcome.text());
    assert!(
        outcome.error_text().contains("integrity of memory"),
        "{}",
        outcome.error_text()
    );
    assert!(
        !outcome.text().contains("in order"),
        "the program went on: {}",
        outcome.text()
    );
}

#[test]
fn one_option_without_the_other_is_refused() {
    for options in [["--resident", "64M"], ["--swap", "/nowhere"]] {
        let case = Case::new("/bin/true").option(options[0]).option(options[1]);
        let outcome = case.run(&Launcher::under_test());
        assert_eq!(outcome.status.shell_code(), 125, "{}", outcome.error_text());
    }
}
