//! Files: digests against `fsverity digest`, libraries against `ldd`, and the command on a real program.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use cloak_manifest::cache::LoaderCache;
use cloak_manifest::cli::{ManifestArgs, Outcome};
use cloak_manifest::elf::Requests;
use cloak_manifest::loads::files_of;
use cloak_manifest::{Manifest, verity};
use proptest::prelude::*;

/// Says where `make test` counts it that an oracle is not there.
fn skip(test: &str, why: &str) {
    eprintln!("{test}: skipped: {why}");
    if let Some(list) = std::env::var_os("CLOAK_TEST_SKIPS") {
        let mut list = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(list)
            .unwrap();
        writeln!(list, "{test}: {why}").unwrap();
    }
}

fn filled(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Computed once with `fsverity digest` (fsverity-utils 1.5) on these very bytes.
#[test]
fn digests_are_those_of_fsverity_utils() {
    let known = [
        (
            0,
            "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
        ),
        (
            1,
            "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551",
        ),
        (
            4096,
            "fa92af10ee791a0e76ea19294552e736a9ebd0afc0b526264904e2aaf435e240",
        ),
        (
            4097,
            "ffcb950bbe83f4d44946a9e24126ef5f8d28671b35c514f1067ac6014d9d3840",
        ),
        (
            4096 * 128,
            "fa1f118a8a8eb6b0f44a9a2aa8c420334461f59aa9d1e385e8ed465cbe09c33f",
        ),
        (
            4096 * 129,
            "e54b7ca1abf08dd01020ea5d8056fba972e30083ab1b6e53e8687e4931b07bb8",
        ),
    ];
    for (length, expected) in known {
        let digest = verity::digest(filled(length).as_slice()).unwrap();
        assert_eq!(digest.to_string(), expected, "{length} bytes");
    }
}

/// Every border of blocks and levels, beside the tool.
#[test]
fn digests_are_those_that_fsverity_prints() {
    if Command::new("fsverity").arg("--version").output().is_err() {
        return skip("manifest::fsverity", "fsverity is not installed (make packages)");
    }
    let folder = tempfile::tempdir().unwrap();
    let full = 4096 * 128;
    let lengths = [
        0,
        1,
        4095,
        4096,
        4097,
        8192,
        full - 1,
        full,
        full + 1,
        2 * full,
        5_000_001,
        128 * full,
        128 * full + 1,
    ];
    let paths: Vec<PathBuf> = lengths
        .iter()
        .map(|&length| {
            let path = folder.path().join(length.to_string());
            fs::write(&path, filled(length)).unwrap();
            path
        })
        .collect();
    let theirs = Command::new("fsverity")
        .arg("digest")
        .args(&paths)
        .output()
        .unwrap();
    assert!(theirs.status.success());
    let mut ours = Vec::new();
    let words = ["manifest", "digest"].map(PathBuf::from).into_iter().chain(paths);
    let outcome = command(words.collect()).run(&mut ours, &mut std::io::stderr());
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(
        String::from_utf8(ours).unwrap(),
        String::from_utf8(theirs.stdout).unwrap()
    );
}

/// What `ldd` lists, links resolved. None for what it does not take.
fn ldd(program: &Path) -> Option<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    if !output.status.success() || text.contains("not found") {
        return None;
    }
    let path = |line: &str| {
        let target = line.split("=>").last()?.trim().split(" (").next()?;
        target.starts_with('/').then(|| fs::canonicalize(target).ok())?
    };
    let mut files: BTreeSet<PathBuf> = text.lines().filter_map(path).collect();
    files.insert(fs::canonicalize(program).ok()?);
    Some(files)
}

/// Programs and libraries of this machine: what we find is what the loader loads.
#[test]
fn libraries_are_those_that_ldd_lists() {
    let mut compared = 0;
    let mut some = Vec::new();
    for folder in ["/usr/bin", "/usr/sbin", "/usr/lib/git-core"] {
        some.extend(
            fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
    }
    some.sort();
    for program in some.iter().step_by(5) {
        let Ok(bytes) = fs::read(program) else { continue };
        if !Requests::parse(&bytes).is_ok_and(|r| r.interpreter.is_some()) {
            continue;
        }
        let Some(theirs) = ldd(program) else { continue };
        let mut ours = files_of(program)
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()))
            .files;
        // The loader reads it for libraries elsewhere; a Python has its library with it. `ldd` lists neither.
        ours.remove(Path::new("/etc/ld.so.cache"));
        if program.to_string_lossy().contains("python3") {
            assert!(ours.is_superset(&theirs), "{}", program.display());
            continue;
        }
        assert_eq!(ours, theirs, "{}", program.display());
        compared += 1;
    }
    if compared == 0 {
        return skip("manifest::ldd", "ldd lists nothing here");
    }
    assert!(compared >= 20, "only {compared} programs were compared");
}

#[test]
fn scripts_bring_their_interpreters() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("run");
    fs::write(&script, "#!/bin/sh -e\necho hello\n").unwrap();
    let files = files_of(&script).unwrap().files;
    let shell = fs::canonicalize("/bin/sh").unwrap();
    assert!(
        files.contains(&shell) && files.contains(&fs::canonicalize(&script).unwrap()),
        "{files:?}"
    );
    assert_eq!(files.len(), files_of(&shell).unwrap().files.len() + 1);
    fs::write(&script, format!("#!{}\n", script.display())).unwrap();
    let error = files_of(&script).unwrap_err().to_string();
    assert!(error.contains("nested"), "{error}");
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    manifest: ManifestArgs,
}

fn command(words: Vec<PathBuf>) -> ManifestArgs {
    Line::try_parse_from(words).unwrap().manifest
}

fn run(words: &[&str]) -> (Outcome, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let words = std::iter::once("manifest")
        .chain(words.iter().copied())
        .map(PathBuf::from);
    let outcome = command(words.collect()).run(&mut out, &mut err);
    (
        outcome,
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

#[test]
fn a_first_manifest_is_good_until_a_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("my program");
    fs::copy("/bin/cat", &program).unwrap();
    let path = folder.path().join("cloak.toml");
    let (outcome, text, err) = run(&["init", program.to_str().unwrap(), "--", "-n", "file"]);
    assert_eq!((outcome, err.as_str()), (Outcome::Done, ""));
    fs::write(&path, &text).unwrap();
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(
        manifest.canonical().unwrap(),
        text,
        "what is written is in the canonical form"
    );
    assert_eq!(
        (manifest.name.as_str(), manifest.program.args),
        ("myprogram", vec!["-n".to_owned(), "file".to_owned()])
    );
    assert!(
        manifest.files.iter().any(|f| f.path.contains("libc.so")),
        "{text}"
    );

    let path = path.to_str().unwrap();
    assert_eq!(run(&["canonical", path]).1, text);
    let (outcome, out, err) = run(&["check", path]);
    assert_eq!((outcome, err.as_str()), (Outcome::Done, ""), "{out}");
    let mut file = fs::OpenOptions::new().append(true).open(&program).unwrap();
    file.write_all(b"!").unwrap();
    let (outcome, _, err) = run(&["check", path]);
    assert_eq!(outcome, Outcome::Differs);
    assert!(
        err.contains("my program") && err.contains("the manifest says"),
        "{err}"
    );
    fs::remove_file(&program).unwrap();
    assert_eq!(run(&["check", path]).0, Outcome::Differs);
    assert_eq!(run(&["check", "/nowhere"]).0, Outcome::Failed);

    let (_, digests, _) = run(&["identity", path, "--shim", &"0".repeat(96)]);
    assert_eq!(digests.lines().count(), 3);
    assert_eq!(run(&["identity", path, "--shim", "00"]).0, Outcome::Failed);
    assert_eq!(run(&["schema"]).0, Outcome::Done);
}

#[test]
fn a_cache_that_is_damaged_is_an_empty_one() {
    let Ok(bytes) = fs::read("/etc/ld.so.cache") else {
        return skip("manifest::cache", "there is no /etc/ld.so.cache");
    };
    assert!(LoaderCache::parse(&bytes).find("libc.so.6").is_some());
    for length in (0..bytes.len()).step_by(97) {
        let _ = LoaderCache::parse(&bytes[..length]);
    }
    let mut bad = bytes.clone();
    bad[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(LoaderCache::parse(&bad), LoaderCache::default());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing that a file can hold makes its readers panic.
    #[test]
    fn damaged_files_do_not_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = fs::read("/bin/cat").unwrap();
        // Most of what is read lies in the first pages.
        let end = bytes.len().min(8192);
        bytes[at.index(end)] = byte;
        let _ = Requests::parse(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = Requests::parse(&bytes);
    }
}
