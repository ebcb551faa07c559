//! Whether the host's configuration is what the manifest says.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use cloak_abi::config::{Published, mount_flags, run_flags};

use super::{Stated, Volume};
use crate::fs::MountRecord;

/// First argument of the helper that fetches secrets and then becomes the program.
pub const START: &str = "guest-start";

/// What the configuration says.
#[derive(Debug, Clone, Default)]
pub struct Told<'a> {
    /// Path of the program.
    pub program: &'a [u8],
    /// Arguments, the program's own name first.
    pub arguments: &'a [Vec<u8>],
    /// Variables.
    pub environment: &'a [Vec<u8>],
    /// Working directory.
    pub cwd: &'a [u8],
    /// Mounts but for protected volumes.
    pub mounts: &'a [MountRecord],
    /// Protected volumes: where, and whether they may only be read.
    pub protected: Vec<(&'a [u8], bool)>,
    /// [`run_flags`].
    pub flags: u64,
    /// Published ports.
    pub published: &'a [Published],
    /// Number of segments.
    pub segments: usize,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Kind of machine, as manifests name it.
    pub platform: &'static str,
}

/// Compares.
///
/// # Errors
/// What differs.
pub fn check(stated: &Stated, told: &Told<'_>) -> Result<(), String> {
    let agree = |is: bool, what: &str| {
        if is {
            Ok(())
        } else {
            Err(format!("{what} is not what the manifest says"))
        }
    };
    let accepted = stated.accept.iter().any(|kind| kind == told.platform);
    if !accepted {
        return Err(format!(
            "the manifest does not accept the platform {}",
            told.platform
        ));
    }
    program(stated, told)?;
    agree(told.cwd == stated.workdir.as_bytes(), "the working directory")?;
    environment(stated, told.environment)?;
    agree(u64::from(told.vcpus) == stated.cpus, "the number of vCPUs")?;
    agree(told.segments == stated.segments, "the number of segments")?;
    let set = |flag: u64| told.flags & flag != 0;
    let network = match (set(run_flags::NO_NETWORK), set(run_flags::PRIVATE_NETWORK)) {
        (true, false) => "none",
        (false, true) => "private",
        (false, false) => "host",
        (true, true) => "contradictory",
    };
    agree(network == stated.network, "the network")?;
    if let Some(port) = told.published.iter().find(|port| !may_publish(stated, port)) {
        return Err(format!(
            "the manifest does not let the port {} be published",
            port.port
        ));
    }
    // Both show what happens inside to whoever started it.
    agree(
        stated.exec || !set(run_flags::EXEC),
        "that further programs may be started",
    )?;
    agree(
        stated.exec || !set(run_flags::TRACE),
        "that system calls are told",
    )?;
    volumes(stated, told)
}

/// The program, or the helper that becomes it.
fn program(stated: &Stated, told: &Told<'_>) -> Result<(), String> {
    let differs = |what: &str| Err(format!("the {what} is not what the manifest says"));
    let mut wanted: Vec<&[u8]> = Vec::new();
    let path = if stated.needs_helper() {
        let Some(helper) = &stated.helper else {
            return differs("helper that fetches secrets");
        };
        wanted.extend([helper.as_bytes(), START.as_bytes(), b"--", stated.path.as_bytes()]);
        helper.clone()
    } else {
        absolute(stated)
    };
    if told.program != path.as_bytes() {
        return differs("program");
    }
    let given: Vec<&[u8]> = told.arguments.iter().map(Vec::as_slice).collect();
    if wanted.is_empty() {
        // A program's name for itself: with arguments of the caller's it is the caller's, too.
        let own = given.first().copied().unwrap_or_default();
        wanted.push(if stated.untrusted_args {
            own
        } else {
            stated.path.as_bytes()
        });
    }
    wanted.extend(stated.args.iter().map(String::as_bytes));
    let good = if stated.untrusted_args {
        given.starts_with(&wanted)
    } else {
        given == wanted
    };
    if good {
        Ok(())
    } else {
        differs("list of arguments")
    }
}

/// A run without a manifest has one made whose program is as its caller wrote it. A name alone is one that was found nowhere.
fn absolute(stated: &Stated) -> String {
    if stated.path.starts_with('/') || !stated.path.contains('/') {
        return stated.path.clone();
    }
    let folder = stated.workdir.strip_suffix('/').unwrap_or(&stated.workdir);
    format!("{folder}/{}", stated.path)
}

fn environment(stated: &Stated, given: &[Vec<u8>]) -> Result<(), String> {
    let mut seen: Vec<&str> = Vec::new();
    for variable in given {
        let end = variable.iter().position(|byte| *byte == b'=');
        let parts = end.map(|end| (core::str::from_utf8(&variable[..end]), &variable[end + 1..]));
        let Some((Ok(name), value)) = parts.filter(|(name, _)| name.is_ok_and(|n| !seen.contains(&n))) else {
            return Err("a variable of the environment is none, or there twice".into());
        };
        seen.push(name);
        let fixed = stated.environment.get(name);
        let good = match fixed {
            Some(stated) => stated.as_bytes() == value,
            None => stated.untrusted_environment.iter().any(|open| open == name),
        };
        if !good {
            return Err(format!("the variable {name} is not what the manifest says"));
        }
    }
    match stated
        .environment
        .keys()
        .find(|name| !seen.contains(&name.as_str()))
    {
        Some(name) => Err(format!("the variable {name} of the manifest is missing")),
        None => Ok(()),
    }
}

fn may_publish(stated: &Stated, port: &Published) -> bool {
    let protocol = if port.datagrams { "udp" } else { "tcp" };
    let name = format!("{}/{protocol}", port.port);
    stated.publish.contains(&name)
}

/// Each volume of the manifest is there once, as what it is, and nothing else is.
fn volumes(stated: &Stated, told: &Told<'_>) -> Result<(), String> {
    let mounts = told
        .mounts
        .iter()
        .map(|record| (record.path.as_slice(), what_is(record.flags)));
    let protected = told
        .protected
        .iter()
        .map(|(path, read_only)| (*path, ("protected", *read_only, false)));
    let mut missing: Vec<&Volume> = stated.volumes.iter().collect();
    for (path, what) in mounts.chain(protected) {
        let is = |volume: &&Volume| volume.guest.as_bytes() == path && volume.is() == what;
        let Some(index) = missing.iter().position(is) else {
            let name = String::from_utf8_lossy(path);
            return Err(format!("the volume at {name} is not what the manifest says"));
        };
        missing.remove(index);
    }
    match missing.first() {
        Some(volume) => Err(format!(
            "the volume at {} of the manifest is missing",
            volume.guest
        )),
        None => Ok(()),
    }
}

/// Kind of a mount, whether nothing of it is written where the host has it, and whether nobody outside writes there.
fn what_is(flags: u32) -> (&'static str, bool, bool) {
    let set = |flag: u32| flags & flag != 0;
    let read_only = set(mount_flags::READ_ONLY);
    let (kind, only_read) = if set(mount_flags::MEASURED) {
        ("measured", true)
    } else if set(mount_flags::CIPHERTEXT) {
        ("ciphertext", true)
    } else if set(mount_flags::MEMORY) {
        ("memory", read_only)
    } else {
        ("shared", read_only || set(mount_flags::OVERLAY))
    };
    (kind, only_read, set(mount_flags::EXCLUSIVE))
}

impl Volume {
    /// The same of what the manifest says.
    fn is(&self) -> (&str, bool, bool) {
        let only_read = self.read_only || matches!(self.kind.as_str(), "measured" | "ciphertext");
        (&self.kind, only_read, self.exclusive)
    }
}

impl Stated {
    /// Whether something has to be fetched before the program starts.
    #[must_use]
    pub const fn needs_helper(&self) -> bool {
        self.secrets > 0 || self.released.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"name = "a"
version = 1

[network]
mode = "none"

[platform]
accept = ["snp"]

[program]
args = ["-c", "true"]
path = "/bin/sh"
untrusted_environment = ["TERM"]

[program.environment]
LANG = "C"

[resources]
cpus = 2
memory_mib = 64

[[volume]]
guest = "/"
kind = "measured"
read_only = true
source = "/"

[[volume]]
guest = "/data"
kind = "protected"
source = "/x.vol"

[[volume]]
guest = "/tmp"
kind = "memory"
"#;

    fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn record(flags: u32, path: &str) -> MountRecord {
        MountRecord {
            index: 0,
            flags,
            path: path.into(),
        }
    }

    struct Config {
        arguments: Vec<Vec<u8>>,
        environment: Vec<Vec<u8>>,
        mounts: Vec<MountRecord>,
        published: Vec<Published>,
    }

    fn config() -> Config {
        Config {
            arguments: bytes(&["/bin/sh", "-c", "true"]),
            environment: bytes(&["LANG=C", "TERM=x"]),
            mounts: [
                record(mount_flags::READ_ONLY | mount_flags::MEASURED, "/"),
                record(mount_flags::MEMORY, "/tmp"),
            ]
            .into(),
            published: Vec::new(),
        }
    }

    impl Config {
        fn told(&self) -> Told<'_> {
            Told {
                program: b"/bin/sh",
                arguments: &self.arguments,
                environment: &self.environment,
                cwd: b"/",
                mounts: &self.mounts,
                protected: [(&b"/data"[..], false)].into(),
                flags: run_flags::NO_NETWORK,
                published: &self.published,
                segments: 0,
                vcpus: 2,
                platform: "snp",
            }
        }
    }

    fn stated() -> Stated {
        Stated::read(MANIFEST).expect("canonical")
    }

    #[test]
    fn what_the_manifest_says_is_taken() {
        assert_eq!(check(&stated(), &config().told()), Ok(()));
    }

    /// Everything that a host could say otherwise, one at a time.
    #[test]
    fn what_it_does_not_say_is_refused() {
        type Change = (&'static str, fn(&mut Config), fn(&mut Told<'_>));
        let none: fn(&mut Config) = |_| {};
        let same: fn(&mut Told<'_>) = |_| {};
        let changes: [Change; 27] = [
            ("program", none, |t| t.program = b"/bin/bash"),
            (
                "argument",
                |c| c.arguments = bytes(&["/bin/sh", "-c", "id"]),
                same,
            ),
            ("more arguments", |c| c.arguments.push(b"x".to_vec()), same),
            ("fewer arguments", |c| drop(c.arguments.pop()), same),
            ("own name", |c| c.arguments[0] = b"sh".to_vec(), same),
            ("cwd", none, |t| t.cwd = b"/tmp"),
            ("fixed variable", |c| c.environment[0] = b"LANG=D".to_vec(), same),
            ("missing variable", |c| drop(c.environment.remove(0)), same),
            (
                "other variable",
                |c| c.environment.push(b"LD_PRELOAD=/x".to_vec()),
                same,
            ),
            ("variable twice", |c| c.environment.push(b"LANG=C".to_vec()), same),
            ("no variable", |c| c.environment.push(b"TERM".to_vec()), same),
            ("vcpus", none, |t| t.vcpus = 1),
            ("segments", none, |t| t.segments = 1),
            ("platform", none, |t| t.platform = "tdx"),
            ("host's network", none, |t| t.flags = 0),
            ("private network", none, |t| t.flags = run_flags::PRIVATE_NETWORK),
            ("exec", none, |t| t.flags |= run_flags::EXEC),
            ("trace", none, |t| t.flags |= run_flags::TRACE),
            (
                "root shared",
                |c| c.mounts[0].flags = mount_flags::READ_ONLY,
                same,
            ),
            (
                "one more mount",
                |c| c.mounts.push(record(mount_flags::MEMORY, "/etc")),
                same,
            ),
            (
                "a mount twice",
                |c| c.mounts.push(record(mount_flags::MEMORY, "/tmp")),
                same,
            ),
            ("one mount less", |c| drop(c.mounts.pop()), same),
            ("exclusive", |c| c.mounts[1].flags |= mount_flags::EXCLUSIVE, same),
            ("protected read-only", none, |t| t.protected[0].1 = true),
            ("protected elsewhere", none, |t| t.protected[0].0 = b"/date"),
            ("not protected", none, |t| t.protected.clear()),
            (
                "shared instead",
                |c| c.mounts.push(record(0, "/data")),
                |t| t.protected.clear(),
            ),
        ];
        for (what, change, more) in changes {
            let mut config = config();
            change(&mut config);
            let mut told = config.told();
            more(&mut told);
            assert!(check(&stated(), &told).is_err(), "{what}");
        }
        let port = Published {
            datagrams: false,
            port: 80,
            host: ([127, 0, 0, 1], 8080).into(),
        };
        let mut config = config();
        config.published.push(port);
        assert!(check(&stated(), &config.told()).is_err(), "published");
    }

    #[test]
    fn the_caller_chooses_what_is_left_to_the_caller() {
        let text = MANIFEST.replace(
            "untrusted_environment",
            "untrusted_args = true\nuntrusted_environment",
        );
        let stated = Stated::read(&text).expect("canonical");
        let mut config = config();
        config.arguments = bytes(&["sh", "-c", "true", "more"]);
        assert_eq!(check(&stated, &config.told()), Ok(()));
        config.arguments = bytes(&["sh", "more", "-c", "true"]);
        assert!(
            check(&stated, &config.told()).is_err(),
            "the manifest's come first"
        );
    }

    #[test]
    fn a_program_is_where_its_caller_wrote_it() {
        for (path, there) in [
            ("/bin/a", "/bin/a"),
            ("./a", "/work/./a"),
            ("b/a", "/work/b/a"),
            ("a", "a"),
        ] {
            let mut stated = stated();
            (stated.path, stated.workdir) = (path.to_owned(), "/work".to_owned());
            assert_eq!(absolute(&stated), there);
        }
    }

    #[test]
    fn with_secrets_the_helper_runs_first() {
        let text = format!(
            "{MANIFEST}\n[broker]\nca = \"c\"\nhelper = \"/h\"\nurl = \"https://b\"\n\n[[secret]]\nname = \"s\"\npath = \"/s\"\n"
        );
        let stated = Stated::read(&text).expect("canonical");
        let mut config = config();
        assert!(
            check(&stated, &config.told()).is_err(),
            "the program without its secrets"
        );
        config.arguments = bytes(&["/h", START, "--", "/bin/sh", "-c", "true"]);
        let mut told = config.told();
        told.program = b"/h";
        assert_eq!(check(&stated, &told), Ok(()));
        config.arguments[1] = b"other".to_vec();
        let mut told = config.told();
        told.program = b"/h";
        assert!(check(&stated, &told).is_err());
    }
}
