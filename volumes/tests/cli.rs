//! `cloak volume` as a person uses it, without the process around it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::Parser;
use cloak_volumes::cli::{Derive, Outcome, VolumeArgs};
use cloak_volumes::files::{FileAnchor, FileStore, fresh, now};
use cloak_volumes::secret::Secret;
use cloak_volumes::{NewInode, Options, Volume, VolumeKey};
use zeroize::Zeroizing;

/// Keys that follow from the first byte of a "manifest".
struct OneByte;

impl Derive for OneByte {
    fn derive(
        &self,
        manifest: &Path,
        root: &Path,
        guest: Option<&str>,
    ) -> Result<Secret, Box<dyn std::error::Error>> {
        let mut key = Box::new(Zeroizing::new([0; 32]));
        key[0] = std::fs::read(manifest)?[0];
        key[1..].copy_from_slice(&Secret::open(root)?.into_bytes()[1..]);
        if guest.is_some_and(|guest| guest != "/data") {
            return Err("no such volume".into());
        }
        Ok(Secret::from_bytes(key))
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: VolumeArgs,
}

fn run(args: &[&str]) -> (Outcome, String, String) {
    let (mut out, mut err) = (vec![], vec![]);
    let cli = Cli::try_parse_from([&["volume"], args].concat()).unwrap();
    let outcome = cli.args.run(&OneByte, &mut out, &mut err);
    (
        outcome,
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

struct Made {
    folder: tempfile::TempDir,
    container: String,
    key: String,
    anchor: String,
}

impl Made {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (container, key, anchor) = (path("volume"), path("key"), path("anchor"));
        let (outcome, out, err) = run(&[
            "create",
            &container,
            "--key",
            &key,
            "--new-key-file",
            "--limit",
            "64M",
            "--anchor",
            &anchor,
        ]);
        assert_eq!((outcome, err.as_str()), (Outcome::Done, ""));
        assert_eq!(out.trim().len(), 32, "the volume's id");
        let made = Self {
            folder,
            container,
            key,
            anchor,
        };
        made.fill();
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn fill(&self) {
        let options = Options {
            cache_bytes: 1 << 20,
            clock: now,
            expected: None,
            anchor: Box::new(FileAnchor::existing(Path::new(&self.anchor))),
            fresh: fresh().unwrap(),
            wide: cloak_volumes::own_registers,
        };
        let key = VolumeKey::new(Secret::open(Path::new(&self.key)).unwrap().into_bytes());
        let store = FileStore::open(Path::new(&self.container), true).unwrap();
        let mut volume = Volume::open(store, key, options).unwrap();
        let new = NewInode {
            mode: 0o100_640,
            uid: 5,
            gid: 6,
            device: 0,
        };
        let dir = volume
            .mkdir(volume.root(), b"folder", &NewInode { mode: 0o750, ..new })
            .unwrap();
        let file = volume.create_file(dir, b"file", &new).unwrap();
        volume.write_at(file, 0, &b"content ".repeat(2000)).unwrap();
        volume
            .symlink(volume.root(), b"link", b"folder/file", &new)
            .unwrap();
        volume
            .create_file(volume.root(), b"bad\x1b[2Jname", &new)
            .unwrap();
        volume.close().unwrap();
    }
}

#[test]
fn a_volume_is_made_listed_read_checked_and_given_a_new_key() {
    let made = Made::new();
    let with = ["--key", &made.key, "--anchor", &made.anchor];
    let (outcome, out, _) = run(&[&["ls", &made.container, "-R"], &with[..]].concat());
    assert_eq!(outcome, Outcome::Done);
    for line in [
        "directory 0750   2     5     6",
        "file      0640   1     5     6        16000 /folder/file",
    ] {
        assert!(out.contains(line), "{out}");
    }
    assert!(
        out.contains("/link -> folder/file") && !out.contains('\x1b'),
        "{out}"
    );
    let (_, json, _) = run(&[&["ls", &made.container, "-R", "--json"], &with[..]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 4);
    let (outcome, content, _) = run(&[&["cat", &made.container, "folder/file"], &with[..]].concat());
    assert_eq!((outcome, content), (Outcome::Done, "content ".repeat(2000)));

    let (outcome, out, _) = run(&[&["check", &made.container], &with[..]].concat());
    assert!(
        outcome == Outcome::Done && out.starts_with("good: 5 inodes"),
        "{out}"
    );

    let new_key = made.path("new-key").display().to_string();
    let rekey = [
        &["rekey", &made.container, "--new-key", &new_key, "--new-key-file"],
        &with[..],
    ]
    .concat();
    // What an interrupted run leaves does not disturb the next.
    fs::write(made.path("volume.rekey"), b"half of something").unwrap();
    let (outcome, _, err) = run(&rekey);
    assert_eq!((outcome, err.as_str()), (Outcome::Done, ""));
    assert!(!made.path("volume.rekey").exists());
    let (outcome, _, err) = run(&[&["ls", &made.container], &with[..]].concat());
    assert!(outcome == Outcome::Failed && err.contains("wrong key"), "{err}");
    let with = ["--key", &new_key, "--anchor", &made.anchor];
    let (outcome, out, _) = run(&[&["check", &made.container], &with[..]].concat());
    assert!(
        outcome == Outcome::Done && out.starts_with("good: 5 inodes"),
        "{out}"
    );
}

#[test]
fn a_key_comes_by_descriptor_too() {
    use std::os::fd::AsRawFd;
    let made = Made::new();
    let key = fs::File::open(&made.key).unwrap();
    let fd = key.as_raw_fd().to_string();
    let (outcome, out, _) = run(&["ls", &made.container, "--key-fd", &fd, "/folder"]);
    assert!(outcome == Outcome::Done && out.contains("/folder/file"), "{out}");
}

#[test]
fn without_a_key_a_listing_is_opaque() {
    let made = Made::new();
    let (outcome, out, _) = run(&["ls", &made.container]);
    assert_eq!(outcome, Outcome::Done);
    assert!(
        out.contains("superblock-0") && out.contains("blocks-0000000000000002") && !out.contains("folder")
    );
    let (outcome, _, err) = run(&["check", &made.container]);
    assert!(outcome == Outcome::Failed && err.contains("--key"), "{err}");
}

#[test]
fn a_check_says_what_is_wrong_and_where() {
    let made = Made::new();
    let with = ["--key", &made.key, "--anchor", &made.anchor];
    let old = fs::read(&made.container).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&made.container).unwrap();
    // Every block but the superblocks: those of an older state are used by nobody.
    let (mut faults, mut good) = (0, 0);
    for block in 2..old.len() / 4096 {
        let offset = block as u64 * 4096 + 9;
        file.write_all_at(&[!old[offset as usize]], offset).unwrap();
        let (outcome, out, _) = run(&[&["check", &made.container, "--json"], &with[..]].concat());
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        if outcome == Outcome::Differs {
            let what = json["findings"][0]["what"].as_str().unwrap();
            let place = format!("at byte {} of the container", block * 4096);
            assert!(what.contains("tampered") && what.contains(&place), "{what}");
            faults += 1;
        } else {
            assert_eq!(json["good"], true);
            good += 1;
        }
        file.write_all_at(&[old[offset as usize]], offset).unwrap();
    }
    assert!(faults >= 8 && good > 0, "{faults} faults, {good} unused");
    // The whole volume as it was, after it went on.
    made.path("older");
    let new_key = made.path("k2").display().to_string();
    run(&[
        &["rekey", &made.container, "--new-key", &new_key, "--new-key-file"],
        &with[..],
    ]
    .concat());
    fs::write(&made.container, &old).unwrap();
    let (outcome, out, _) = run(&[&["check", &made.container], &with[..]].concat());
    assert!(
        outcome == Outcome::Differs && out.contains("rolled back"),
        "{out}"
    );
    fs::remove_file(&made.anchor).unwrap();
    let (outcome, out, _) = run(&[&["check", &made.container], &with[..]].concat());
    assert!(
        outcome == Outcome::Differs && out.contains("never seen this volume"),
        "{out}"
    );
}

#[test]
fn what_is_there_is_not_overwritten_and_what_is_in_use_is_left_alone() {
    let made = Made::new();
    let (outcome, _, err) = run(&["create", &made.container, "--key", &made.key]);
    assert!(outcome == Outcome::Failed && err.contains("File exists"), "{err}");
    let store = FileStore::open(Path::new(&made.container), true).unwrap();
    let (outcome, _, err) = run(&["ls", &made.container, "--key", &made.key]);
    assert!(
        outcome == Outcome::Failed && err.contains("another process has it open"),
        "{err}"
    );
    drop(store);
    let (outcome, _, err) = run(&["ls", &made.container, "--key", "/dev/null"]);
    assert_eq!(outcome, Outcome::Failed, "{err}");
}
