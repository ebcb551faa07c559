//! Manifests as text: strict, one canonical form, and the schema that the documents carry.

use std::path::Path;

use cloak_manifest::model::json_schema;
use cloak_manifest::{Digest, Identity, Manifest, ManifestError};
use proptest::prelude::*;

const FULL: &str = include_str!("full.toml");

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text.as_bytes())
}

/// Identities must not change unnoticed, nor the schema that others use. `CLOAK_WRITE_GOLDEN=1` writes them anew.
fn assert_golden(name: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("CLOAK_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(golden == now, "{name} is stale; it would be\n{now}");
}

#[test]
fn the_full_example_is_good_and_its_form_does_not_drift() {
    let manifest = parse(FULL).unwrap();
    let canonical = manifest.canonical().unwrap();
    assert_golden("tests/full.canonical.toml", &canonical);
    assert_eq!(parse(&canonical).unwrap(), manifest);
    let digests = manifest.digests().unwrap();
    let identity = Identity::of(&Digest([0xab; 48]), &digests);
    let golden = format!("{}\n{}\n{identity}\n", digests.sha256, digests.sha384);
    assert_golden("tests/full.digests", &golden);
}

#[test]
fn order_spacing_comments_and_defaults_do_not_count() {
    let one = "version = 1\nname = 'a'\n[program]\npath = '/bin/a'\n";
    let other = "# said otherwise\nname=\"\\u0061\"\nversion=1\n[platform]\naccept=['tdx','plain','snp']\n\
                 [resources]\ncpus=1\nmemory_mib=4096\n[network]\nmode='none'\n\
                 [program]\nworkdir='/'\nargs=[]\npath=\"/bin/a\"\n";
    assert_eq!(
        parse(one).unwrap().canonical().unwrap(),
        parse(other).unwrap().canonical().unwrap()
    );
}

/// Anything that changes what the manifest says changes its digest.
#[test]
fn every_field_counts() {
    let base = parse(FULL).unwrap().digests().unwrap();
    let changes = [
        ("name = \"web\"", "name = \"wxb\""),
        ("path = \"/usr/bin/python3\"\n", "path = \"/usr/bin/python4\"\n"),
        ("\"-m\"", "\"-n\""),
        ("workdir = \"/srv\"", "workdir = \"/sry\""),
        ("C.UTF-8", "C.UTF-9"),
        ("[\"TERM\"]", "[\"TERMS\"]"),
        ("untrusted_args = true", "untrusted_args = false"),
        ("exec = true", "exec = false"),
        ("memory_mib = 512", "memory_mib = 513"),
        ("cpus = 2", "cpus = 3"),
        ("[\"snp\", \"plain\"]", "[\"snp\"]"),
        ("mode = \"private\"\npublish = [\"8000/tcp\"]", "mode = \"host\""),
        ("8000/tcp", "8000/udp"),
        ("kind = \"protected\"", "kind = \"shared\""),
        ("source = \"/var/lib/web.vol\"", "source = \"/var/lib/web.vox\""),
        ("read_only = true", "read_only = false"),
        ("aaaa", "aaab"),
        ("path = \"/bin\"", "path = \"/bim\""),
        ("target = \"usr/bin\"", "target = \"usr/bim\""),
        ("path = \"/run/key\"", "path = \"/run/kez\""),
        ("size_kib = 64", "size_kib = 68"),
        ("with = [\"db\"]", "with = [\"dc\"]"),
    ];
    for (from, to) in changes {
        assert_eq!(FULL.matches(from).count().min(1), 1, "{from}");
        let changed = parse(&FULL.replacen(from, to, 1)).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_ne!(changed.digests().unwrap(), base, "{from}");
    }
}

#[test]
fn what_can_not_be_is_refused_and_named() {
    let refusals = [
        ("name = \"web\"", "name = \"w b\"", "name"),
        ("name = \"web\"", "name = \"\"", "name"),
        ("version = 1", "version = 2", "version"),
        ("workdir = \"/srv\"", "workdir = \"srv\"", "program.workdir"),
        (
            "workdir = \"/srv\"",
            "workdir = \"/srv/../etc\"",
            "program.workdir",
        ),
        ("workdir = \"/srv\"", "workdir = \"/srv/\"", "program.workdir"),
        ("workdir = \"/srv\"", "workdir = \"//srv\"", "program.workdir"),
        ("\"-m\"", "\"-m\\u0000\"", "program.args"),
        ("LANG", "'LA=NG'", "program.environment"),
        ("[\"TERM\"]", "[\"LANG\"]", "there twice"),
        ("memory_mib = 512", "memory_mib = 63", "resources.memory_mib"),
        ("memory_mib = 512", "memory_mib = -1", "memory_mib"),
        ("cpus = 2", "cpus = 0", "resources.cpus"),
        ("cpus = 2", "cpus = 65", "resources.cpus"),
        ("[\"snp\", \"plain\"]", "[]", "platform.accept"),
        ("mode = \"private\"", "mode = \"host\"", "network.publish"),
        ("8000/tcp", "8000", "network.publish"),
        ("8000/tcp", "08000/tcp", "network.publish"),
        ("8000/tcp", "0/tcp", "network.publish"),
        ("[\"8000/tcp\"]", "[\"1/udp\", \"1/udp\"]", "there twice"),
        ("[\"snp\", \"plain\"]", "[\"snp\", \"snp\"]", "there twice"),
        ("[\"snp\", \"plain\"]", "[\"sgx\"]", "sgx"),
        ("guest = \"/data\"", "guest = \"/\"", "there twice"),
        ("kind = \"protected\"", "kind = \"memory\"", "volume.source"),
        ("kind = \"protected\"", "kind = \"encrypted\"", "encrypted"),
        ("source = \"/var/lib/web.vol\"\n", "", "volume.source"),
        ("aaaa", "aaa", "digest"),
        (
            "path = \"/usr/bin/python3\"\ndigest",
            "path = \"/data/python3\"\ndigest",
            "no measured or shared volume",
        ),
        (
            "path = \"/usr/bin/python3\"\ndigest",
            "path = \"/proc/python3\"\ndigest",
            "no measured or shared volume",
        ),
        ("path = \"/bin\"", "path = \"/data/bin\"", "no measured volume"),
        ("path = \"/bin\"", "path = \"/usr/bin/python3\"", "there twice"),
        ("path = \"/bin\"", "path = \"/usr/bin/python3/x\"", "lies below"),
        ("target = \"usr/bin\"", "target = \"\"", "link.target"),
        ("aaaa", "AAAA", "digest"),
        ("with = [\"db\"]", "with = []", "segment.with"),
        ("size_kib = 64", "size_kib = 63", "segment.size_kib"),
        ("size_kib = 64", "size_kib = 0", "segment.size_kib"),
        ("path = \"/run/key\"", "path = \"/srv/key\"", "secret.path"),
        ("path = \"/run/key\"", "", "secret.name"),
        ("name = \"tls\"", "name = \"a/b\"", "secret.name"),
        ("name = \"tls\"", "name = \"a/../b\"", "secret.name"),
        (
            "variable = \"DB_PASSWORD\"",
            "variable = \"LANG\"",
            "secret.variable",
        ),
        (
            "variable = \"DB_PASSWORD\"",
            "variable = \"A=B\"",
            "secret.variable",
        ),
        ("https://kbs", "http://kbs", "broker.url"),
        ("BEGIN CERTIFICATE", "BEGIN KEY", "broker.ca"),
        (
            "mode = \"private\"\npublish = [\"8000/tcp\"]",
            "mode = \"none\"",
            "network.mode",
        ),
        ("released = \"web/key/root\"", "released = \"x/y\"", "secret.name"),
    ];
    for (from, to, names) in refusals {
        let error = parse(&FULL.replacen(from, to, 1)).expect_err(to).to_string();
        assert!(error.contains(names), "{to}: {error}");
    }
    assert!(Manifest::parse(&[0xff]).is_err());
    assert!(Manifest::parse(&vec![b'#'; 5 << 20]).is_err());
}

/// An unknown field in any table: what nobody obeys is not said.
#[test]
fn unknown_fields_are_refused_everywhere() {
    parse(FULL).unwrap();
    let lines: Vec<&str> = FULL.lines().collect();
    let mut tried = 0;
    for (index, line) in lines.iter().enumerate() {
        if line.starts_with('[') && !line.contains("environment") || index == 0 {
            let mut more = lines.clone();
            let at = if index == 0 { 0 } else { index + 1 };
            more.insert(at, "surprise = 1");
            let error = parse(&more.join("\n")).expect_err(line).to_string();
            assert!(error.contains("surprise"), "{line}: {error}");
            tried += 1;
        }
    }
    assert_eq!(tried, 17);
}

#[test]
fn the_documented_schema_is_the_one() {
    // By value: the order of fields depends on features that other crates of a build turn on.
    let now = serde_json::to_value(json_schema()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/manifest.schema.json");
    if std::env::var_os("CLOAK_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{now:#}\n")).unwrap();
    }
    let documented: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(documented, now, "docs/manifest.schema.json is stale");
    assert_eq!(now["additionalProperties"], false);
    for (name, part) in now["$defs"].as_object().unwrap() {
        if part.get("properties").is_some() {
            assert_eq!(part["additionalProperties"], false, "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any strings survive the canonical form, also those that a careless writer would end early.
    #[test]
    fn the_canonical_form_is_read_back(args in prop::collection::vec("[^\\x00]{0,20}", 0..4),
                                       values in prop::collection::btree_map("[^\\x00=]{1,9}", "[^\\x00]{0,20}", 0..4)) {
        let mut manifest = parse(FULL).unwrap();
        manifest.program.args = args;
        manifest.program.environment = values;
        manifest.program.untrusted_environment.clear();
        let canonical = manifest.canonical().unwrap();
        let again = parse(&canonical).unwrap();
        prop_assert_eq!(&again.canonical().unwrap(), &canonical);
        prop_assert_eq!(again.program, manifest.program);
    }

    #[test]
    fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::parse(&bytes);
    }
}
