//! The kernel's headers, which tests compare our structures with: those of CLOAK_KERNEL_HEADERS (an include folder), else the
//! newest that Debian has for each release (`scripts/install-test-packages` unpacks them), else the machine's.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Include folders that know `symbol` in `asm/kvm.h`. Where there is none, the running test says that it skips.
pub fn knowing(symbol: &str) -> Vec<PathBuf> {
    let mut found = folders();
    found.retain(|include| {
        let files = ["x86_64-linux-gnu/asm/kvm.h", "asm/kvm.h"].map(|file| include.join(file));
        let text = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
        text.is_some_and(|text| text.contains(symbol))
    });
    if found.is_empty() {
        crate::skipped::skip(&format!(
            "no kernel headers with {symbol} (scripts/install-test-packages, or CLOAK_KERNEL_HEADERS)"
        ));
    }
    found
}

/// All include folders that there are.
pub fn folders() -> Vec<PathBuf> {
    if let Some(told) = std::env::var_os("CLOAK_KERNEL_HEADERS") {
        return vec![told.into()];
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/.cache/kernel-headers");
    let releases = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let mut folders: Vec<_> = releases.map(|entry| entry.path().join("include")).collect();
    folders.sort();
    folders.retain(|folder| folder.is_dir());
    if folders.is_empty() {
        folders.push("/usr/include".into());
    }
    folders
}

/// Assertions for a C compiler.
#[derive(Default)]
pub struct Asserted(pub String);

impl Asserted {
    /// Beginning with these headers.
    pub fn including(headers: &[&str]) -> Self {
        let lines = headers.iter().map(|header| format!("#include <{header}>\n"));
        Self(lines.collect())
    }

    /// That an expression has a value.
    pub fn equal(&mut self, expression: &str, value: impl Into<u64>) {
        let value = value.into();
        writeln!(
            self.0,
            "_Static_assert(({expression}) == {value}ull, \"{expression}\");"
        )
        .expect("a string");
    }

    /// Fails where one does not hold under the headers of a folder.
    pub fn check(&self, include: &Path) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("layout.c");
        std::fs::write(&file, &self.0).expect("a file");
        let mut compiler = Command::new("cc");
        compiler.arg("-I").arg(include);
        compiler.args(["-fsyntax-only", "-Werror"]).arg(&file);
        let Ok(built) = compiler.output() else {
            crate::skipped::skip("no C compiler here");
            return;
        };
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{}: {said}", include.display());
    }
}

/// Asserts size and offsets of structures: `layout!(asserted, module, name { field as "c name", … } …)`.
macro_rules! layout {
    ($asserted:ident, $module:ident, $($name:ident { $($field:ident as $c:literal),* })*) => {$(
        $asserted.equal(
            concat!("sizeof(struct ", stringify!($name), ")"),
            size_of::<$module::$name>() as u64,
        );
        $($asserted.equal(
            concat!("__builtin_offsetof(struct ", stringify!($name), ", ", $c, ")"),
            std::mem::offset_of!($module::$name, $field) as u64,
        );)*
    )*};
}
pub(crate) use layout;
