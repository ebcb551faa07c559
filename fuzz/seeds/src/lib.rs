//! First inputs of the fuzz targets: real ones, from where they already are.
//!
//! A target that starts from nothing spends its time on learning a magic number. So each plants what it should start
//! from, when it is started, in the folder that `fuzz/run` names: files of this repository, evidence that the packages
//! in use carry, the larger collection beside the repository where there is one, and what a target makes itself.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// Where `fuzz/run` keeps the inputs of the target that it starts.
const CORPUS: &str = "CLOAK_FUZZ_CORPUS";

/// Writes what `seeds` gives to the target's inputs. Does nothing where no folder is named, as when one finding is
/// tried again.
pub fn plant<S: AsRef<[u8]>, I: IntoIterator<Item = S>>(seeds: impl FnOnce() -> I) {
    let Some(folder) = env::var_os(CORPUS).map(PathBuf::from) else {
        return;
    };
    for (index, seed) in seeds().into_iter().enumerate() {
        fs::write(folder.join(format!("seed-{index:03}")), seed).expect("a file for a first input");
    }
}

/// A file of this repository.
pub fn own(path: &str) -> Vec<u8> {
    read(&repository().join(path))
}

/// Every file in a folder of this repository.
pub fn own_folder(path: &str) -> Vec<Vec<u8>> {
    files(&repository().join(path))
}

/// A file that most machines have; nothing where this one hasn't.
pub fn machine(path: &str) -> Option<Vec<u8>> {
    fs::read(path).ok()
}

/// Every file of `folder` in the collection of evidence beside the repository; none where there is no collection.
pub fn collected(folder: &str) -> Vec<Vec<u8>> {
    files(&repository().join("../shared/vectors").join(folder))
}

/// Every file of `folder` in the source of a package that the targets use.
pub fn carried(package: &str, folder: &str) -> Vec<Vec<u8>> {
    files(&package_dir(package).join(folder))
}

/// One file in the source of a package that the targets use.
pub fn carried_file(package: &str, path: &str) -> Vec<u8> {
    read(&package_dir(package).join(path))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// In the order of their names, so that every run starts alike.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

/// Where cargo keeps a package's source.
fn package_dir(name: &str) -> PathBuf {
    static METADATA: LazyLock<Value> = LazyLock::new(metadata);
    let packages = METADATA["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == name);
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let folder = Path::new(manifest.expect("a package that the targets use")).parent();
    folder.expect("a manifest is in a folder").to_owned()
}

fn metadata() -> Value {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(repository().join("fuzz/Cargo.toml"))
        .output()
        .expect("cargo runs");
    serde_json::from_slice(&output.stdout).expect("cargo's metadata is JSON")
}
