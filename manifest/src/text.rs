//! From text to a checked [`Manifest`], and to the canonical form that digests are taken of.
//!
//! Two manifests that say the same have the same canonical form: defaults and order, spacing and comments of the
//! file do not count. It is TOML: keys in the order of their bytes, values before tables, one line each, an empty
//! line before each table, strings always in double quotes, keys only where they need them. Our own writer, as identities must not change with a library's taste.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use toml::{Table, Value};

use crate::model::{Manifest, NetworkMode, VolumeKind};

/// Longest manifest, bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Too long.
    #[error("the manifest has {0} bytes, more than {MAX_BYTES}")]
    TooLong(usize),
    /// Not text.
    #[error("the manifest is not UTF-8")]
    NotText,
    /// Not TOML, or not these fields.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A value that can't be.
    #[error("{field}: {found:?} {rule}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// A form that can't be written, which no checked manifest has.
    #[error("writing the manifest: {0}")]
    Write(#[from] toml::ser::Error),
}

impl Manifest {
    /// Reads and checks.
    ///
    /// # Errors
    /// [`ManifestError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::NotText)?;
        let mut own: Self = toml::from_str(text)?;
        own.check()?;
        own.sort();
        Ok(own)
    }

    /// The bytes that digests are taken of and that travel with evidence.
    ///
    /// # Errors
    /// [`ManifestError::Write`].
    pub fn canonical(&self) -> Result<String, ManifestError> {
        let mut sorted = self.clone();
        sorted.sort();
        let mut out = String::new();
        table(&mut out, "", &Table::try_from(&sorted)?);
        Ok(out)
    }

    /// Order that means nothing is made one order.
    fn sort(&mut self) {
        self.platform.accept.sort_unstable();
        self.program.untrusted_environment.sort_unstable();
        self.network.publish.sort_unstable();
        self.volumes.sort_by(|a, b| a.guest.cmp(&b.guest));
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.links.sort_by(|a, b| a.path.cmp(&b.path));
        self.secrets.sort_by(|a, b| a.name.cmp(&b.name));
        self.segments.sort_by(|a, b| a.name.cmp(&b.name));
        self.segments.iter_mut().for_each(|s| s.with.sort_unstable());
    }

    /// What the types can't say.
    ///
    /// # Errors
    /// [`ManifestError::Value`].
    pub fn check(&self) -> Result<(), ManifestError> {
        number(
            "version",
            u64::from(self.version),
            1..=1,
            "is not a version this Cloak knows: 1",
        )?;
        name("name", &self.name)?;
        self.check_program()?;
        number(
            "resources.memory_mib",
            self.resources.memory_mib,
            64..=1 << 24,
            "is not from 64 to 16777216",
        )?;
        number(
            "resources.cpus",
            u64::from(self.resources.cpus),
            1..=64,
            "is not from 1 to 64",
        )?;
        if self.platform.accept.is_empty() {
            return Err(value(
                "platform.accept",
                "[]",
                "accepts no platform, so it can never run",
            ));
        }
        unique(
            "platform.accept",
            self.platform.accept.iter().map(|p| format!("{p:?}")),
        )?;
        self.check_network()?;
        self.check_volumes()?;
        self.check_measured()?;
        self.check_secrets()?;
        for segment in &self.segments {
            name("segment.name", &segment.name)?;
            segment.with.iter().try_for_each(|n| name("segment.with", n))?;
            unique("segment.with", segment.with.iter().cloned())?;
            if segment.with.is_empty() {
                return Err(value("segment.with", "[]", "names nobody to share with"));
            }
            number(
                "segment.size_kib",
                segment.size_kib,
                4..=1 << 34,
                "is not from 4 to 17179869184",
            )?;
            number(
                "segment.size_kib",
                segment.size_kib % 4,
                0..=0,
                "KiB are left beyond whole pages of 4 KiB",
            )?;
        }
        unique("segment.name", self.segments.iter().map(|s| s.name.clone()))
    }

    fn check_program(&self) -> Result<(), ManifestError> {
        path("program.path", &self.program.path)?;
        path("program.workdir", &self.program.workdir)?;
        self.program
            .args
            .iter()
            .try_for_each(|a| no_nul("program.args", a))?;
        let fixed = &self.program.environment;
        fixed
            .values()
            .try_for_each(|v| no_nul("program.environment", v))?;
        for variable in fixed.keys().chain(&self.program.untrusted_environment) {
            variable_name("program.environment", variable)?;
        }
        let all = fixed.keys().chain(&self.program.untrusted_environment);
        unique("program.untrusted_environment", all.cloned())
    }

    fn check_secrets(&self) -> Result<(), ManifestError> {
        let released = self.keys.released.as_ref();
        for name in self.secrets.iter().map(|s| &s.name).chain(released) {
            secret_name(name)?;
        }
        let taken = self.program.environment.keys();
        let mut variables: Vec<String> = taken
            .chain(&self.program.untrusted_environment)
            .cloned()
            .collect();
        for secret in &self.secrets {
            if let Some(file) = &secret.path {
                path("secret.path", file)?;
                // Elsewhere it would be the host's to read.
                let kind = self.volume_of(file).filter(|v| v.guest != *file).map(|v| v.kind);
                if !matches!(kind, Some(VolumeKind::Memory | VolumeKind::Protected)) {
                    return Err(value(
                        "secret.path",
                        file,
                        "lies in no memory volume and no protected one",
                    ));
                }
            }
            if let Some(variable) = &secret.variable {
                variable_name("secret.variable", variable)?;
                variables.push(variable.clone());
            }
            if secret.path.is_none() && secret.variable.is_none() {
                return Err(value(
                    "secret.name",
                    &secret.name,
                    "appears in no file (path) and no variable",
                ));
            }
        }
        unique("secret.name", self.secrets.iter().map(|s| s.name.clone()))?;
        unique("secret.path", self.secrets.iter().filter_map(|s| s.path.clone()))?;
        unique("secret.variable", variables.into_iter())?;
        let Some(broker) = &self.broker else {
            return match self.secrets.first().map(|s| &s.name).or(released) {
                Some(name) => Err(value(
                    "secret.name",
                    name,
                    "is released by nobody: there is no [broker]",
                )),
                None => Ok(()),
            };
        };
        let host = broker.url.strip_prefix("https://").unwrap_or_default();
        if host.is_empty() || host.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace()) {
            return Err(value("broker.url", &broker.url, "is not https://HOST[:PORT]"));
        }
        if !broker.ca.contains("-----BEGIN CERTIFICATE-----") {
            return Err(value("broker.ca", &broker.ca, "has no certificate in PEM"));
        }
        path("broker.helper", &broker.helper)?;
        if self.needs_broker() && self.network.mode == NetworkMode::None {
            return Err(value("network.mode", "none", "does not reach the broker"));
        }
        Ok(())
    }

    fn check_network(&self) -> Result<(), ManifestError> {
        let network = &self.network;
        unique("network.publish", network.publish.iter().cloned())?;
        for port in &network.publish {
            let is_port = |digits: &str| {
                let parsed = digits.parse::<u16>().ok().filter(|port| *port != 0);
                parsed.is_some_and(|port| port.to_string() == digits)
            };
            match port.split_once('/') {
                Some((digits, "tcp" | "udp")) if is_port(digits) => {}
                _ => {
                    return Err(value(
                        "network.publish",
                        port,
                        "is not a port such as 80/tcp or 53/udp",
                    ));
                }
            }
            if network.mode != NetworkMode::Private {
                return Err(value(
                    "network.publish",
                    port,
                    "is published of a private network only",
                ));
            }
        }
        Ok(())
    }

    fn check_measured(&self) -> Result<(), ManifestError> {
        for file in &self.files {
            path("file.path", &file.path)?;
            self.holder(
                "file.path",
                &file.path,
                &[VolumeKind::Measured, VolumeKind::Shared],
            )?;
        }
        for link in &self.links {
            path("link.path", &link.path)?;
            no_nul("link.target", &link.target)?;
            if link.target.is_empty() || link.target.len() > 4095 {
                return Err(value("link.target", &link.target, "is not 1 to 4095 bytes"));
            }
            self.holder("link.path", &link.path, &[VolumeKind::Measured])?;
        }
        let files = self.files.iter().map(|f| &f.path);
        let all: BTreeSet<&String> = files.clone().chain(self.links.iter().map(|l| &l.path)).collect();
        unique(
            "file.path",
            files.chain(self.links.iter().map(|l| &l.path)).cloned(),
        )?;
        // A file or link has nothing below it.
        for found in &all {
            let mut above = found.as_str();
            while let Some((parent, _)) = above.rsplit_once('/').filter(|(p, _)| !p.is_empty()) {
                if all.contains(&parent.to_owned()) {
                    return Err(value(
                        "file.path",
                        found,
                        "lies below a path that is a file or a link",
                    ));
                }
                above = parent;
            }
        }
        Ok(())
    }

    /// What is measured lies where its bytes can come from.
    fn holder(&self, field: &'static str, found: &str, kinds: &[VolumeKind]) -> Result<(), ManifestError> {
        let own = OWN_PLACES.iter().any(|place| {
            found
                .strip_prefix(place)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        match self.volume_of(found) {
            Some(volume) if kinds.contains(&volume.kind) && volume.guest != found && !own => Ok(()),
            _ if kinds.len() > 1 => Err(value(field, found, "lies in no measured or shared volume")),
            _ => Err(value(field, found, "lies in no measured volume")),
        }
    }

    fn check_volumes(&self) -> Result<(), ManifestError> {
        for volume in &self.volumes {
            path("volume.guest", &volume.guest)?;
            if volume.exclusive && (volume.kind != VolumeKind::Shared || volume.read_only) {
                return Err(value(
                    "volume.exclusive",
                    &volume.guest,
                    "can't be: only a shared volume that the program may write is exclusive",
                ));
            }
            match (&volume.source, volume.kind) {
                (Some(source), VolumeKind::Memory) => {
                    return Err(value(
                        "volume.source",
                        source,
                        "can't be: a memory volume has no source",
                    ));
                }
                (None, VolumeKind::Memory) => {}
                (Some(source), _) => path("volume.source", source)?,
                (None, _) => {
                    return Err(value(
                        "volume.source",
                        &volume.guest,
                        "needs a source, unless its kind is memory",
                    ));
                }
            }
        }
        unique("volume.guest", self.volumes.iter().map(|v| v.guest.clone()))
    }
}

/// Places of the guest that it makes up itself, whatever is mounted.
const OWN_PLACES: [&str; 3] = ["/proc", "/sys", "/dev"];

fn value(field: &'static str, found: &str, rule: &'static str) -> ManifestError {
    ManifestError::Value {
        field,
        found: found.to_owned(),
        rule,
    }
}

fn number(
    field: &'static str,
    found: u64,
    range: std::ops::RangeInclusive<u64>,
    rule: &'static str,
) -> Result<(), ManifestError> {
    if range.contains(&found) {
        Ok(())
    } else {
        Err(value(field, &found.to_string(), rule))
    }
}

fn name(field: &'static str, found: &str) -> Result<(), ManifestError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !found.is_empty() && found.len() <= 64 && found.chars().all(good) {
        Ok(())
    } else {
        Err(value(
            field,
            found,
            "is not 1 to 64 letters, digits, '-', '_' or '.'",
        ))
    }
}

fn variable_name(field: &'static str, found: &str) -> Result<(), ManifestError> {
    no_nul(field, found)?;
    if found.is_empty() || found.contains('=') {
        return Err(value(field, found, "is no variable's name"));
    }
    Ok(())
}

/// As the broker names secrets.
fn secret_name(found: &str) -> Result<(), ManifestError> {
    let parts = found.split('/').count();
    let good = |part: &str| name("secret.name", part).is_ok() && part != "." && part != "..";
    if (parts == 1 || parts == 3) && found.split('/').all(good) {
        Ok(())
    } else {
        Err(value(
            "secret.name",
            found,
            "is not REPOSITORY/TYPE/TAG, or a TAG, of letters, digits, '-', '_' and '.'",
        ))
    }
}

fn no_nul(field: &'static str, found: &str) -> Result<(), ManifestError> {
    if found.contains('\0') {
        Err(value(field, found, "has a NUL byte"))
    } else {
        Ok(())
    }
}

/// One spelling for each path: what is compared as text must not have two.
fn path(field: &'static str, found: &str) -> Result<(), ManifestError> {
    no_nul(field, found)?;
    let below = found.strip_prefix('/');
    let good = |part: &str| !matches!(part, "" | "." | "..");
    if found == "/" || below.is_some_and(|b| b.split('/').all(good)) {
        Ok(())
    } else {
        Err(value(
            field,
            found,
            "is not an absolute path without '.', '..', '//' and a '/' at the end",
        ))
    }
}

fn unique(field: &'static str, all: impl Iterator<Item = String>) -> Result<(), ManifestError> {
    let mut seen = BTreeSet::new();
    for one in all {
        if let Some(twice) = seen.replace(one) {
            return Err(value(field, &twice, "is there twice"));
        }
    }
    Ok(())
}

/// Writes a table's values, then its tables. `Table` is ordered by key.
fn table(out: &mut String, prefix: &str, entries: &Table) {
    let is_table = |v: &Value| match v {
        Value::Table(_) => true,
        Value::Array(items) => items.first().is_some_and(Value::is_table),
        _ => false,
    };
    for (key, value) in entries.iter().filter(|(_, v)| !is_table(v)) {
        self::key(out, key);
        out.push_str(" = ");
        scalar(out, value);
        out.push('\n');
    }
    for (key, value) in entries.iter().filter(|(_, v)| is_table(v)) {
        let mut path = prefix.to_owned();
        if !path.is_empty() {
            path.push('.');
        }
        self::key(&mut path, key);
        match value {
            Value::Array(items) => {
                for item in items.iter().filter_map(Value::as_table) {
                    // Writing to a `String` can't fail.
                    let _ = writeln!(out, "\n[[{path}]]");
                    table(out, &path, item);
                }
            }
            other => {
                let _ = writeln!(out, "\n[{path}]");
                table(out, &path, other.as_table().unwrap_or(&Table::new()));
            }
        }
    }
}

fn key(out: &mut String, key: &str) {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !key.is_empty() && key.chars().all(bare) {
        out.push_str(key);
    } else {
        string(out, key);
    }
}

fn scalar(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                scalar(out, item);
            }
            out.push(']');
        }
        // Integers and booleans; a manifest has no others.
        other => out.push_str(&other.to_string()),
    }
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
