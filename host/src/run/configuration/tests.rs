use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use cloak_abi::config::{Records, number};

use super::super::service::OsSide;
use super::super::{Protected, Volume, stated};
use super::*;
use crate::os::Access;
use crate::vm::anchors::{Anchor, Mark};

const USER: [u32; 2] = [5, 6];

fn options() -> RunOptions {
    RunOptions {
        environment: Environment {
            clear: true,
            set: Vec::new(),
        },
        workdir: Some("/work".into()),
        ..RunOptions::new(vec!["./it".into(), "argument".into()])
    }
}

/// What the libos is told, record by record.
fn told(options: &RunOptions, program: &str, exec: bool) -> Vec<(Tag, Vec<u8>)> {
    let program = Path::new(program);
    let stated = Stated::of(&stated::of_options(options, program, 1)).expect("a manifest");
    let user = Identity {
        uid: USER[0],
        gid: USER[1],
        groups: vec![7],
    };
    let shared = Segment {
        name: "shared".to_owned(),
        bytes: 4096,
        contexts: vec![0],
    };
    let signals = Inherited {
        ignored: 1,
        blocked: 2,
    };
    let segments = [&shared].into_iter();
    let bytes =
        configuration(options, &stated, program, &user, segments, exec, signals).expect("a configuration");
    Records::new(&bytes)
        .map(|record| record.map(|(tag, value)| (tag, value.to_vec())))
        .collect::<Result<_, _>>()
        .expect("records")
}

fn all(told: &[(Tag, Vec<u8>)], wanted: Tag) -> Vec<&[u8]> {
    let of = told.iter().filter(|(tag, _)| *tag == wanted);
    of.map(|(_, value)| value.as_slice()).collect()
}

fn numbers(value: &[u8]) -> Vec<u64> {
    let (words, _) = value.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// Number, flags and path of each mount.
fn mounted(told: &[(Tag, Vec<u8>)]) -> Vec<(u32, u32, String)> {
    let word = |value: &[u8], at: usize| {
        let bytes = value[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes)
    };
    let mounts = all(told, Tag::Mount).into_iter();
    mounts
        .map(|value| {
            let path = String::from_utf8_lossy(&value[8..]).into_owned();
            (word(value, 0), word(value, 4), path)
        })
        .collect()
}

#[test]
fn the_program_is_told_who_it_is_where_it_is_and_what_it_inherits() {
    let without = told(&options(), "./it", false);
    let told = told(&options(), "./it", true);
    let one = |tag| match all(&told, tag)[..] {
        [value] => value,
        ref other => panic!("{tag:?}: {other:?}"),
    };
    assert_eq!(one(Tag::Program), b"/work/./it");
    assert_eq!(all(&told, Tag::Arg), [b"./it".as_slice(), b"argument"]);
    assert_eq!(one(Tag::Cwd), b"/work");
    assert_eq!(numbers(one(Tag::Ids)), [5, 6, 7]);
    assert_eq!(numbers(one(Tag::Signals)), [1, 2]);
    assert_eq!(number(Tag::Flags, one(Tag::Flags), 0), Ok(run_flags::EXEC));
    assert_eq!(one(Tag::Seed).len(), 32);
    assert_eq!(numbers(&one(Tag::Segment)[..16]), [0, 4096]);
    assert_eq!(&one(Tag::Segment)[16..], b"shared");
    assert_eq!(number(Tag::Flags, all(&without, Tag::Flags)[0], 0), Ok(0));
}

/// A name that was not found on PATH: the guest looks, and says that it is not there.
#[test]
fn a_bare_name_is_not_taken_for_one_in_the_working_directory() {
    assert_eq!(all(&told(&options(), "it", true), Tag::Program), [b"it"]);
    assert_eq!(
        all(&told(&options(), "/bin/it", true), Tag::Program),
        [b"/bin/it"]
    );
}

#[test]
fn no_two_seeds_are_alike() {
    let seed = || all(&told(&options(), "it", true), Tag::Seed)[0].to_vec();
    assert_ne!(seed(), seed());
}

#[test]
fn a_variable_that_is_set_again_replaces_what_was() {
    let variables = |clear, set: &[&str]| {
        environment(&Environment {
            clear,
            set: set.iter().map(ToString::to_string).collect(),
        })
    };
    assert_eq!(
        variables(true, &["A=1", "B=", "A=2=3"]),
        [b"B=".to_vec(), b"A=2=3".to_vec()]
    );
    let path = std::env::var("PATH").expect("cargo sets it");
    let path = format!("PATH={path}").into_bytes();
    assert_eq!(
        variables(true, &["PATH", "cloak-has-no-such-variable"]),
        std::slice::from_ref(&path)
    );
    let of_path = |all: Vec<Vec<u8>>| {
        all.into_iter()
            .filter(|v| v.starts_with(b"PATH="))
            .collect::<Vec<_>>()
    };
    assert_eq!(of_path(variables(false, &[])), [path]);
    assert_eq!(of_path(variables(false, &["PATH=/x"])), [b"PATH=/x"]);
}

#[derive(Debug)]
struct Seen;

impl Anchor for Seen {
    fn seen(&self) -> Option<Mark> {
        Some([3; 7])
    }

    fn advance(&mut self, _: &Mark) -> Result<(), i32> {
        Ok(())
    }
}

/// The libos names a root of the OS service's by its number, so both lists have to be of one order.
#[test]
fn mounts_have_the_numbers_of_the_services_roots() {
    let folder = |name: &str| {
        let path = std::env::temp_dir().join(format!("cloak-roots-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        path
    };
    let (read, written, measured, sealed) = (folder("r"), folder("w"), folder("m"), folder("s"));
    let volume = |host: &PathBuf, guest: &str, read_only| Volume {
        host: host.clone(),
        guest: guest.into(),
        read_only,
        exclusive: false,
    };
    let protected = |guest: &str, key, anchor| Protected {
        container: sealed.clone(),
        guest: guest.into(),
        read_only: false,
        key,
        anchor,
        withheld: Vec::new(),
    };
    let mut options = options();
    options.volumes = vec![volume(&read, "/r", true), volume(&written, "/w", false)];
    options.memory_volumes = vec![("/m".into(), true)];
    options.measured.volumes = vec![(measured.clone(), "/measured".to_owned())];
    let anchor: Box<dyn Anchor> = Box::new(Seen);
    options.protected = vec![
        protected("/nobody", VolumeKey::Nobody, None),
        protected("/given", VolumeKey::Given(Box::new([9; 32].into())), Some(anchor)),
        protected("/inside", VolumeKey::Inside, None),
    ];
    let told = told(&options, "it", true);
    let expected = [
        (0, mount_flags::OVERLAY, "/"),
        (0, mount_flags::MEMORY, "/tmp"),
        (1, mount_flags::READ_ONLY, "/r"),
        (2, 0, "/w"),
        (3, mount_flags::READ_ONLY | mount_flags::MEASURED, "/measured"),
        (0, mount_flags::MEMORY | mount_flags::READ_ONLY, "/m"),
        (4, mount_flags::READ_ONLY | mount_flags::CIPHERTEXT, "/nobody"),
    ]
    .map(|(number, flags, path)| (number, flags, path.to_owned()));
    assert_eq!(mounted(&told), expected);
    let sealed_volumes: Vec<_> = all(&told, Tag::Protected)
        .into_iter()
        .map(|value| config::Protected::parse(value).expect("a protected volume"))
        .map(|volume| (volume.index, *volume.key, volume.anchor, volume.path))
        .collect();
    let seen = Anchored {
        number: 0,
        seen: Some([3; 7]),
    };
    assert_eq!(
        sealed_volumes,
        [
            (5, [9; 32], Some(seen), b"/given".as_slice()),
            (6, [0; 32], None, b"/inside")
        ]
    );
    let side = OsSide::of(&options).expect("all is there");
    let name = |fd: &OwnedFd| {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        fs::read_link(link).expect("an open descriptor")
    };
    let roots: Vec<_> = side
        .roots
        .iter()
        .map(|(fd, access)| (name(fd), *access))
        .collect();
    let expected = [
        (PathBuf::from("/"), Access::ReadOnly),
        (read.clone(), Access::ReadOnly),
        (written.clone(), Access::ReadWrite),
        (measured.clone(), Access::ReadOnly),
        (sealed.clone(), Access::ReadOnly),
        (sealed.clone(), Access::ReadWrite),
        (sealed.clone(), Access::ReadWrite),
    ];
    assert_eq!(roots, expected);
    for path in [read, written, measured, sealed] {
        fs::remove_dir(path).expect("empty");
    }
}

/// Where the monitor can't read memory the guest has the pager, and a file for it behind all other roots.
#[test]
fn only_a_guest_that_pages_by_itself_is_told_the_limit() {
    let mut options = options();
    options.resident = Some(Resident {
        bytes: 1 << 26,
        swap: "/nowhere".into(),
    });
    assert!(all(&told(&options, "it", true), Tag::Resident).is_empty());
    options.machine = Machine::Snp(Default::default());
    assert_eq!(
        numbers(all(&told(&options, "it", true), Tag::Resident)[0]),
        [1 << 26, 1]
    );
}
