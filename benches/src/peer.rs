//! The ways of running a program that are compared.

use cloak_tests::launcher::workspace_root;
use cloak_tests::process::{RunError, Running};
use cloak_tests::{Case, Launcher, Scratch};
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What a container engine gives by default and a server's start needs.
const RIGHTS: &str = r#"["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FOWNER","CAP_KILL","CAP_SETGID","CAP_SETUID"]"#;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How a peer starts a program.
#[derive(Clone, Debug)]
enum Way {
    Launcher(Launcher),
    /// bubblewrap, with name spaces and the host's files.
    Bwrap(PathBuf),
    /// A runtime that takes an OCI bundle, with its options.
    Oci(PathBuf, &'static [&'static str]),
}

/// One way of running a program, with its name in the table.
#[derive(Clone, Debug)]
pub struct Peer {
    name: &'static str,
    way: Way,
}

impl Peer {
    /// Native, which everything is compared with.
    pub fn native() -> Self {
        Peer {
            name: "native",
            way: Way::Launcher(Launcher::Native),
        }
    }

    /// Cloak itself: `CLOAK_BIN` or the release build, when it is there.
    pub fn cloak() -> Option<Self> {
        let built = workspace_root().join("target/release/cloak").is_file();
        let there = env::var_os("CLOAK_BIN").is_some() || built;
        there.then(|| Peer {
            name: "cloak",
            way: Way::Launcher(Launcher::under_test()),
        })
    }

    /// All that this machine has, native first.
    pub fn all() -> Vec<Self> {
        let mut peers = vec![Peer::native()];
        peers.extend(Peer::cloak());
        peers.extend(find("bwrap").map(|path| Peer {
            name: "bwrap",
            way: Way::Bwrap(path),
        }));
        peers.extend(find("runc").map(|path| Peer {
            name: "runc",
            way: Way::Oci(path, &[]),
        }));
        if let Some(path) = gvisor() {
            peers.push(Peer {
                name: "gVisor systrap",
                way: Way::Oci(
                    path.clone(),
                    &["--platform=systrap", "--network=host", "--ignore-cgroups"],
                ),
            });
            peers.push(Peer {
                name: "gVisor ptrace",
                way: Way::Oci(path, &["--platform=ptrace", "--network=host", "--ignore-cgroups"]),
            });
        }
        peers
    }

    /// Its name in the table.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Starts `case`.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(&self, case: &Case) -> Result<Started, RunError> {
        match &self.way {
            Way::Launcher(launcher) => Started::plain(launcher.command(case)),
            Way::Bwrap(path) => {
                let mut command = Command::new(path);
                command.args([
                    "--dev-bind",
                    "/",
                    "/",
                    "--unshare-pid",
                    "--unshare-ipc",
                    "--proc",
                    "/proc",
                    "--clearenv",
                ]);
                for (key, value) in case.environment() {
                    command.arg("--setenv").arg(key).arg(value);
                }
                command.arg("--").arg(case.program()).args(case.arguments());
                Started::plain(command)
            }
            Way::Oci(path, options) => Started::in_bundle(path, options, case),
        }
    }
}

/// A program that runs under a peer; what the peer made for it goes when this does.
pub struct Started {
    /// The peer's process.
    pub running: Option<Running>,
    container: Option<Container>,
}

struct Container {
    delete: Command,
    _bundle: Scratch,
}

impl Started {
    fn plain(command: Command) -> Result<Self, RunError> {
        Ok(Started {
            running: Some(Running::start(command, Vec::new())?),
            container: None,
        })
    }

    fn in_bundle(runtime: &Path, options: &[&str], case: &Case) -> Result<Self, RunError> {
        let bundle = Scratch::new();
        let id = format!(
            "cloak-bench-{}-{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        fs::create_dir(bundle.join("rootfs")).expect("scratch is writable");
        bundle.write("config.json", configuration(case));
        let mut command = Command::new(runtime);
        command
            .args(options)
            .arg("run")
            .arg("--bundle")
            .arg(bundle.path())
            .arg(&id);
        let mut delete = Command::new(runtime);
        delete.args(options).args(["delete", "--force", &id]);
        delete
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let container = Some(Container {
            delete,
            _bundle: bundle,
        });
        Ok(Started {
            running: Some(Running::start(command, Vec::new())?),
            container,
        })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.running = None;
        if let Some(container) = &mut self.container {
            // A container that ended by itself is gone already, and then this says so to nobody.
            let _ = container.delete.status();
        }
    }
}

/// An OCI configuration with the host's files, its network, and name spaces for the rest.
fn configuration(case: &Case) -> String {
    let words = |words: Vec<String>| {
        words
            .iter()
            .map(|word| quoted(word))
            .collect::<Vec<_>>()
            .join(",")
    };
    let program = std::iter::once(case.program().display().to_string());
    let arguments = program
        .chain(
            case.arguments()
                .iter()
                .map(|word| word.to_string_lossy().into_owned()),
        )
        .collect();
    let environment = case
        .environment()
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut mounts = String::from(
        r#"{"destination":"/proc","type":"proc","source":"proc"},
           {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]}"#,
    );
    for folder in ["/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/tmp", "/root"] {
        let source = fs::canonicalize(folder).unwrap_or_else(|_| PathBuf::from(folder));
        let source = quoted(&source.display().to_string());
        let _ = write!(
            mounts,
            r#",{{"destination":"{folder}","type":"bind","source":{source},"options":["rbind","rw"]}}"#
        );
    }
    format!(
        r#"{{"ociVersion":"1.0.2","process":{{"terminal":false,"user":{{"uid":0,"gid":0}},"args":[{}],"env":[{}],"cwd":"/",
        "capabilities":{{"bounding":{RIGHTS},"effective":{RIGHTS},"permitted":{RIGHTS}}},
        "rlimits":[{{"type":"RLIMIT_NOFILE","hard":10000,"soft":10000}}]}},"root":{{"path":"rootfs","readonly":false}},
        "mounts":[{mounts}],"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"ipc"}},{{"type":"mount"}},{{"type":"uts"}}]}}}}"#,
        words(arguments),
        words(environment)
    )
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if u32::from(letter) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
    out + "\""
}

fn gvisor() -> Option<PathBuf> {
    let fetched = workspace_root().join("tests/.cache/bench/runsc");
    if fetched.is_file() {
        Some(fetched)
    } else {
        find("runsc")
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    folders
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#);
    }

    #[test]
    fn native_comes_first() {
        assert_eq!(Peer::all()[0].name(), "native");
    }
}
