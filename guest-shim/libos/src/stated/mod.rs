//! What the manifest says, as far as the host's configuration has to agree with it.
//!
//! On plain KVM the monitor translates the manifest, and is believed. Where the launch is measured it is the OS side, and what is
//! proven is the manifest alone (`attest::check_manifest`): so the libos reads it, and [`check`] holds the configuration
//! against it before anything of that is used. Names of measured files and links are taken from here; keys never come from there.

pub mod check;
pub mod reader;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use self::reader::{Line, Malformed, Value, lines};

/// The manifest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// Program, arguments, working directory.
    pub path: String,
    /// Arguments without the program's own name.
    pub args: Vec<String>,
    /// `/` if it is not said.
    pub workdir: String,
    /// Variables with fixed values.
    pub environment: BTreeMap<String, String>,
    /// Names of variables that the caller gives values.
    pub untrusted_environment: Vec<String>,
    /// Whether the caller may add arguments.
    pub untrusted_args: bool,
    /// Whether the owner may start more.
    pub exec: bool,
    /// Number of vCPUs.
    pub cpus: u64,
    /// Kinds of machine.
    pub accept: Vec<String>,
    /// Whose network it is.
    pub network: String,
    /// Ports that may be published.
    pub publish: Vec<String>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Measured files: path and digest.
    pub files: Vec<([u8; 32], Vec<u8>)>,
    /// Links of measured volumes: path and target.
    pub links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Number of secrets.
    pub secrets: usize,
    /// Who fetches secrets: a program.
    pub helper: Option<String>,
    /// The secret that is the root of the context's keys.
    pub released: Option<String>,
    /// Number of segments.
    pub segments: usize,
}

/// A part of the name space.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where.
    pub guest: String,
    /// What kind.
    pub kind: String,
    /// Whether the program may only read it.
    pub read_only: bool,
    /// Whether nobody outside changes it meanwhile.
    pub exclusive: bool,
}

impl Stated {
    /// Reads a canonical form.
    ///
    /// # Errors
    /// The line that can't be read, or says what this build does not know.
    pub fn read(text: &str) -> Result<Self, Malformed> {
        let mut stated = Self {
            workdir: "/".into(),
            ..Self::default()
        };
        let mut table = "";
        for line in lines(text) {
            let (number, line) = line?;
            match line {
                Line::Table(name) => table = name,
                Line::Item(name) => {
                    table = name;
                    stated.item(name);
                }
                Line::Entry(key, value) => stated.entry(table, key, value).ok_or(Malformed(number))?,
            }
        }
        Ok(stated)
    }

    fn item(&mut self, table: &str) {
        match table {
            "volume" => self.volumes.push(Volume::default()),
            "file" => self.files.push(Default::default()),
            "link" => self.links.push(Default::default()),
            "secret" => self.secrets += 1,
            "segment" => self.segments += 1,
            // Its first field is an error.
            _ => {}
        }
    }

    fn entry(&mut self, table: &str, key: String, value: Value) -> Option<()> {
        match (table, key.as_str(), value) {
            ("", "version", Value::Number(1)) => {}
            // What it is called where it runs is its caller's business.
            ("", "name", Value::Text(_)) => {}
            ("program", "path", Value::Text(text)) => self.path = text,
            ("program", "args", Value::List(list)) => self.args = list,
            ("program", "workdir", Value::Text(text)) => self.workdir = text,
            ("program", "untrusted_environment", Value::List(list)) => self.untrusted_environment = list,
            ("program", "untrusted_args", Value::Truth(on)) => self.untrusted_args = on,
            ("program", "exec", Value::Truth(on)) => self.exec = on,
            ("program.environment", _, Value::Text(text)) => drop(self.environment.insert(key, text)),
            ("resources", "cpus", Value::Number(number)) => self.cpus = number,
            // How much there is, is the host's to say: it may give less whatever was agreed.
            ("resources", "memory_mib", Value::Number(_)) => {}
            ("platform", "accept", Value::List(list)) => self.accept = list,
            ("network", "mode", Value::Text(text)) => self.network = text,
            ("network", "publish", Value::List(list)) => self.publish = list,
            ("volume", _, value) => self.volumes.last_mut()?.entry(&key, value)?,
            ("file", "path", Value::Text(text)) => self.files.last_mut()?.1 = text.into_bytes(),
            ("file", "digest", Value::Text(text)) => self.files.last_mut()?.0 = digest(&text)?,
            ("link", "path", Value::Text(text)) => self.links.last_mut()?.0 = text.into_bytes(),
            ("link", "target", Value::Text(text)) => self.links.last_mut()?.1 = text.into_bytes(),
            ("broker", "helper", Value::Text(text)) => self.helper = Some(text),
            ("keys", "released", Value::Text(text)) => self.released = Some(text),
            // The helper reads these by itself.
            ("broker", "url" | "ca", Value::Text(_)) => {}
            ("secret", "name" | "path" | "variable", Value::Text(_)) => {}
            ("segment", ..) => {}
            _ => return None,
        }
        Some(())
    }
}

impl Volume {
    fn entry(&mut self, key: &str, value: Value) -> Option<()> {
        match (key, value) {
            ("guest", Value::Text(text)) => self.guest = text,
            ("kind", Value::Text(text)) => self.kind = text,
            ("read_only", Value::Truth(on)) => self.read_only = on,
            ("exclusive", Value::Truth(on)) => self.exclusive = on,
            // Where its bytes are is the host's business.
            ("source", Value::Text(_)) => {}
            _ => return None,
        }
        Some(())
    }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that the manifest crate writes is read here.
    #[test]
    fn the_full_manifest_is_read() {
        let text = include_str!("../../../../manifest/tests/full.canonical.toml");
        let stated = Stated::read(text).expect("canonical");
        assert_eq!(stated.path, "/usr/bin/python3");
        assert_eq!(stated.args, ["-m", "http.server"]);
        assert_eq!(stated.workdir, "/srv");
        assert_eq!(stated.environment["LANG"], "C.UTF-8");
        assert_eq!(stated.cpus, 2);
        assert!(stated.untrusted_args && stated.exec);
        assert_eq!(stated.network, "private");
        let kinds: Vec<&str> = stated.volumes.iter().map(|v| v.kind.as_str()).collect();
        for kind in ["measured", "protected", "ciphertext", "shared", "memory"] {
            assert!(kinds.contains(&kind), "{kind}");
        }
        assert!(
            stated
                .files
                .iter()
                .all(|(digest, path)| *digest != [0; 32] && path[0] == b'/')
        );
        assert!(stated.secrets > 0 && stated.segments > 0);
        assert!(stated.helper.is_some() && stated.released.is_some());
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for (text, line) in [
            ("version = 2\n", 1),
            ("version = 1\nmore = 1\n", 2),
            ("version = 1\n\n[program]\npath = 1\n", 4),
            ("version = 1\n\n[other]\nx = 1\n", 4),
            ("version = 1\n\n[[volume]]\nmore = true\n", 4),
            ("version = 1\n\n[[file]]\ndigest = \"00\"\n", 4),
        ] {
            assert_eq!(Stated::read(text), Err(Malformed(line)), "{text}");
        }
    }
}
