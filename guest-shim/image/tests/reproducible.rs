//! The shim is a measured artifact: built from a copy of the tree in another folder, it has the same bytes.

#[path = "../recipe.rs"]
mod recipe;

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha384};

/// What the build of the workspace reads. The rest of the tree is large or not ours.
const SKIPPED: &[&str] = &["target", ".git", ".cache"];

#[test]
fn another_folder_gives_the_same_bytes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("another/folder");
    copy_tree(&root, &copy);
    for part in &recipe::PARTS {
        let built = recipe::build(&copy, &folder.path().join("build"), part);
        let built = fs::read(built).expect("the build left its program");
        let carried = match part.package {
            "cloak-kernel" => cloak_shim_image::KERNEL,
            _ => cloak_shim_image::LIBOS,
        };
        assert_eq!(
            hex(&built),
            hex(carried),
            "SHA-384 of {} differs between two folders: compare the files with `cmp -l` and look for paths \
             (`strings`) and for what depends on the order of files",
            part.package
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha384::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder in the copy");
    for entry in fs::read_dir(from).expect("a folder of the tree") {
        let entry = entry.expect("a folder of the tree");
        let (kind, name) = (entry.file_type().expect("a kind"), entry.file_name());
        if SKIPPED.iter().any(|s| *s == name) {
            continue;
        } else if kind.is_dir() {
            copy_tree(&entry.path(), &to.join(name));
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(name)).expect("a file of the copy");
        }
    }
}
