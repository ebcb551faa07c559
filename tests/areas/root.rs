//! The host's root as a program sees it: it may write all over, and nothing of that reaches the host.

use std::path::Path;
use std::process::Command;

use cloak_tests::{Case, Launcher, Scratch, needs};

/// Writes all over, and prints what it finds then.
const SCRIPT: &str = r#"
set -e
for d in /etc /usr /var /root /opt; do echo marker > $d/cloak-overlay-test; cat $d/cloak-overlay-test; done
cp /etc/group /etc/passwd; cmp /etc/group /etc/passwd && echo replaced
rm /etc/group; test ! -e /etc/group && echo removed
mkdir /etc/group; test -z "$(ls /etc/group)" && echo opaque
echo more >> /etc/hosts; tail -n 1 /etc/hosts
mv /usr/share/doc /usr/share/moved; test -d /usr/share/moved && test ! -e /usr/share/doc && echo moved
a=$(stat -c %i /etc/hostname); chmod 600 /etc/hostname; test $a = $(stat -c %i /etc/hostname) && echo same number
ln /etc/hostname /etc/hostname2; stat -c %h /etc/hostname2
mount -t tmpfs none /mnt; echo x > /mnt/x; grep -c ' /mnt tmpfs ' /proc/self/mounts; umount /mnt; test ! -e /mnt/x && echo unmounted
mount --bind /etc /srv; cat /srv/cloak-overlay-test; umount /srv
cp /usr/bin/id /usr/bin/id-of-root; chmod 4755 /usr/bin/id-of-root
"#;

const FOUND: &str = "marker\nmarker\nmarker\nmarker\nmarker\nreplaced\nremoved\nopaque\nmore\nmoved\nsame number\n2\n1\nunmounted\nmarker\n";

#[test]
fn nothing_that_root_writes_reaches_the_host() {
    if needs::cloaked_program("/bin/sh").is_none() || !needs::root() {
        return;
    }
    // Others write in /var/tmp, which is a new time in /var.
    let listing = || {
        ["ls -la /etc /usr /opt /usr/share", "ls -a /var /root"].map(|list| {
            let output = Command::new("sh").args(["-c", list]).output();
            output.expect("ls runs").stdout
        })
    };
    let before = listing();
    let outcome = Case::new("/bin/sh")
        .args(["-c", SCRIPT])
        .run(&Launcher::under_test());
    assert_eq!(outcome.text(), FOUND, "{}", outcome.error_text());
    assert_eq!(listing(), before);
}

#[test]
fn a_set_id_program_changes_the_effective_identity_inside() {
    if needs::cloaked_program("/usr/bin/python3").is_none() || !needs::root() {
        return;
    }
    let script = "cp /usr/bin/id /usr/bin/other; chmod 4755 /usr/bin/other; \
                  python3 -c 'import os; os.setresuid(65534, 65534, 65534); os.execv(\"/usr/bin/other\", [\"id\", \"-u\"])'";
    let outcome = Case::new("/bin/sh")
        .args(["-c", script])
        .run(&Launcher::under_test());
    assert_eq!(outcome.text(), "0\n", "{}", outcome.error_text());
}

#[test]
fn a_read_only_root_can_be_asked_for() {
    if needs::cloaked_program("/bin/sh").is_none() {
        return;
    }
    let script = "echo x > /etc/cloak-overlay-test || echo refused";
    let case = Case::new("/bin/sh")
        .args(["-c", script])
        .option("--root")
        .option("read-only");
    let outcome = case.run(&Launcher::under_test());
    assert_eq!(outcome.text(), "refused\n", "{}", outcome.error_text());
}

/// In memory, on a volume of the host, and on the layer above the host's root.
#[test]
fn what_happens_to_files_is_told_as_natively() {
    let Some(python) = needs::cloaked_program("/usr/bin/python3") else {
        return;
    };
    let (shared, memory) = (Scratch::new(), Scratch::new());
    let overlay = Path::new("/var/tmp").join(format!("cloak-inotify-{}", std::process::id()));
    let script = include_str!("../data/inotify.py");
    let case = |folder: &Path| Case::new(&python).args(["-c", script]).arg(folder);
    case(shared.path()).volume(shared.path()).succeeds_as_native();
    case(&memory.join("made")).succeeds_as_native();
    let native = case(&overlay).run(&Launcher::Native);
    std::fs::remove_dir_all(&overlay).expect("the native run made it");
    let cloaked = case(&overlay).run(&Launcher::under_test());
    assert_eq!(cloaked.text(), native.text(), "{}", cloaked.error_text());
    assert!(!overlay.exists());
}
