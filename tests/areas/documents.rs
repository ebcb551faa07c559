//! Documents against the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cloak_tests::compat::table::SUITES;
use cloak_tests::differences::{Known, known_differences};
use toml::{Table, Value};

/// Every package that a manifest of this repository names has its reason in `docs/dependencies.md`, and every
/// package there is one that a manifest names.
#[test]
fn every_direct_dependency_has_its_reason() {
    let direct: BTreeSet<String> = manifests().iter().flat_map(dependencies).collect();
    let documented = documented();
    let missing: Vec<_> = direct.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&direct).collect();
    assert!(
        missing.is_empty(),
        "docs/dependencies.md gives no reason for {missing:?}"
    );
    assert!(
        gone.is_empty(),
        "docs/dependencies.md tells of {gone:?}, which no manifest names"
    );
}

/// The page on other people's suites was written from the lists of differences as they are now.
#[test]
fn every_listed_difference_has_its_line() {
    let page = fs::read_to_string(root().join("docs/compat.md")).expect("docs/compat.md is there");
    let steady = |known: &Known| known.steady;
    for suite in &SUITES {
        for known in known_differences(suite.name).into_iter().filter(steady) {
            assert!(
                page.contains(&known.reason.replace('|', "\\|")),
                "docs/compat.md tells nothing of {} (make compat)",
                known.test
            );
        }
    }
}

/// The page on platforms has each thing that a hostile hypervisor can do, and each protection that it names is one that a test
/// takes away.
#[test]
fn every_hostile_case_has_its_protection_or_a_reason() {
    let page = fs::read_to_string(root().join("docs/platforms.md")).expect("docs/platforms.md is there");
    let (_, section) = page
        .split_once("### Cases of a hostile hypervisor")
        .expect("a section");
    let (section, _) = section.split_once("The simulated processor").expect("its end");
    let quoted = |text: &str| {
        let words = text.split('`').skip(1).step_by(2);
        words.map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let (table, rest) = section
        .split_once("What has nothing to take away")
        .expect("two tables");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('|').collect()).collect();
    let column = |at: usize| rows.iter().filter_map(move |row: &Vec<&str>| row.get(at));
    let listed: BTreeSet<String> = column(1).flat_map(|text| quoted(text)).collect();
    let explained: BTreeSet<String> = quoted(rest);
    let cases = cloak_sim::hostile::Hostile::ALL.iter().map(|(name, _)| *name);
    for name in cases.chain(
        cloak_sim::tdx::hostile::Hostile::ALL
            .iter()
            .map(|(name, _)| *name),
    ) {
        assert!(
            listed.contains(name) || explained.contains(name),
            "docs/platforms.md says nothing of {name}"
        );
    }
    let tests = ["snp/src/weakened_tests.rs", "tdx/src/weakened_tests.rs"];
    let tests = tests.map(|path| fs::read_to_string(root().join("guest-shim").join(path)).expect("tests"));
    for protection in column(2).flat_map(|text| quoted(text)) {
        let taken = tests
            .iter()
            .any(|text| text.contains(&format!("Protection::{protection}")));
        assert!(
            taken || protection == "Given::check",
            "no test takes {protection} away"
        );
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The root's, the workspace members' and the fuzz folders'.
fn manifests() -> Vec<Table> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.parse::<Table>().expect("a manifest is TOML")
    };
    let mut all = vec![read(root().join("Cargo.toml"))];
    let members = all[0]["workspace"]["members"].as_array().expect("a list").clone();
    for member in members.iter().filter_map(Value::as_str) {
        all.push(read(root().join(member).join("Cargo.toml")));
    }
    for folder in fs::read_dir(root().join("fuzz")).expect("the fuzz folders") {
        let manifest = folder.expect("a fuzz folder").path().join("Cargo.toml");
        if manifest.exists() {
            all.push(read(manifest));
        }
    }
    all
}

/// Names in all tables of dependencies, those of targets too, without this repository's own packages.
fn dependencies(manifest: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if key.ends_with("dependencies") {
            names.extend(table.keys().filter(|n| !n.starts_with("cloak-")).cloned());
        } else if key != "package" {
            names.extend(dependencies(table));
        }
    }
    names
}

/// Names in the first column of the document's tables, in back quotes.
fn documented() -> BTreeSet<String> {
    let text =
        fs::read_to_string(root().join("docs/dependencies.md")).expect("docs/dependencies.md is there");
    text.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" |"))
        .flat_map(|(cell, _)| {
            cell.split(", ")
                .map(|n| n.trim_matches('`').to_owned())
                .collect::<Vec<_>>()
        })
        .collect()
}
