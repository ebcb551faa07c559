//! The pod file: TOML, a table for each context.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cloak_host::run::{Environment, RunOptions, Segment};
use serde::Deserialize;

use crate::commands::run::{parse_size, parse_variable, parse_volume, protected};

/// Why a pod file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// It can't be read.
    #[error("reading {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no pod file.
    #[error("{path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected.
        source: toml::de::Error,
    },
    /// Something in it can't be.
    #[error("{path}: {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What, and what would be right.
        what: String,
    },
}

/// A pod file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    version: u32,
    /// In the order of the file.
    #[serde(rename = "context")]
    pub contexts: Vec<Context>,
}

/// One context.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Its name in messages, and the host name inside.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    #[serde(default = "one")]
    cpus: usize,
    #[serde(default = "memory")]
    memory: String,
    #[serde(default)]
    environment: Vec<String>,
    workdir: Option<PathBuf>,
    user: Option<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    protected: Vec<String>,
    #[serde(default, rename = "segment")]
    segments: Vec<Shared>,
}

/// Memory that a context is ready to share.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shared {
    name: String,
    /// The other contexts that have it, each of which must name it too.
    with: BTreeSet<String>,
    size_kib: u64,
}

/// Largest segment, KiB.
const SEGMENT_MAX: u64 = 1 << 20;

const fn one() -> usize {
    1
}

fn memory() -> String {
    "1G".to_owned()
}

impl Pod {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn read(path: &Path) -> Result<Self, PodError> {
        let text = std::fs::read_to_string(path).map_err(|source| PodError::Read {
            path: path.to_owned(),
            source,
        })?;
        let pod: Self = toml::from_str(&text).map_err(|source| PodError::Parse {
            path: path.to_owned(),
            source,
        })?;
        pod.check().map_err(|what| PodError::Content {
            path: path.to_owned(),
            what,
        })?;
        Ok(pod)
    }

    fn check(&self) -> Result<(), String> {
        if self.version != 1 {
            return Err(format!("version is {}, and this program knows 1", self.version));
        }
        let mut names = BTreeSet::new();
        for context in &self.contexts {
            let name = &context.name;
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(format!("{name:?} is not the name of a context"));
            }
            if !names.insert(name) {
                return Err(format!("two contexts have the name {name}"));
            }
            if context.command.is_empty() {
                return Err(format!("context {name} has an empty command"));
            }
        }
        self.segments().map(drop)
    }

    /// What contexts share: each that has a segment names it, of the same size, with all others that have it.
    ///
    /// # Errors
    /// Which segment of which context is not so.
    pub fn segments(&self) -> Result<Vec<Segment>, String> {
        let mut all: BTreeMap<&str, Segment> = BTreeMap::new();
        for (index, context) in self.contexts.iter().enumerate() {
            for shared in &context.segments {
                let bad = |why: String| {
                    Err(format!(
                        "context {}: segment {}: {why}",
                        context.name, shared.name
                    ))
                };
                if shared.name.is_empty()
                    || shared.name.len() > 200
                    || shared.name.contains(['/', '\0'])
                    || shared.name.starts_with('.')
                {
                    return bad("its name has to be one of a file in /dev/shm".to_owned());
                }
                if shared.size_kib == 0 || shared.size_kib > SEGMENT_MAX {
                    return bad(format!("size_kib has to be 1 to {SEGMENT_MAX}"));
                }
                if shared.with.is_empty() || shared.with.contains(&context.name) {
                    return bad("`with` has to name other contexts".to_owned());
                }
                for other in &shared.with {
                    let Some(there) = self.contexts.iter().find(|c| c.name == *other) else {
                        return bad(format!("there is no context {other}"));
                    };
                    let mut also = there.segments.iter().filter(|s| s.name == shared.name);
                    let Some(theirs) = also.next() else {
                        return bad(format!("context {other} does not name it"));
                    };
                    let ours = shared.with.iter().chain([&context.name]).collect::<BTreeSet<_>>();
                    if theirs.with.iter().chain([other]).collect::<BTreeSet<_>>() != ours {
                        return bad(format!(
                            "context {other} shares it with others than this one does"
                        ));
                    }
                    if theirs.size_kib != shared.size_kib || also.next().is_some() {
                        return bad(format!("context {other} names it with another size, or twice"));
                    }
                }
                let segment = all.entry(&shared.name).or_insert_with(|| Segment {
                    name: shared.name.clone(),
                    bytes: shared.size_kib << 10,
                    contexts: Vec::new(),
                });
                if segment.contexts.contains(&index) {
                    return bad("it is named twice".to_owned());
                }
                if let Some(&first) = segment.contexts.first()
                    && !shared.with.contains(&self.contexts[first].name)
                {
                    return bad("other contexts have one of this name; choose another".to_owned());
                }
                segment.contexts.push(index);
            }
        }
        Ok(all.into_values().collect())
    }
}

impl Context {
    /// What to run.
    ///
    /// # Errors
    /// [`PodError::Content`] with the field that is wrong; what is wrong with a key.
    pub fn options(self, device: &Path) -> Result<RunOptions, Box<dyn std::error::Error>> {
        let name = self.name.clone();
        let at = |field: &'static str| {
            let name = name.clone();
            move |why: String| format!("context {name}: {field}: {why}")
        };
        let volumes = self.volumes.iter().map(|text| parse_volume(text));
        let variables = self.environment.iter().map(|text| parse_variable(text));
        let protected = self
            .protected
            .iter()
            .map(|text| Ok(protected::Asked::parse(text).map_err(at("protected"))?.open()?))
            .collect::<Result<_, Box<dyn std::error::Error>>>()?;
        Ok(RunOptions {
            device: device.to_owned(),
            cpus: Some(self.cpus),
            memory: parse_size(&self.memory).map_err(at("memory"))?,
            environment: Environment {
                clear: true,
                set: variables.collect::<Result<_, _>>().map_err(at("environment"))?,
            },
            user: self.user,
            workdir: Some(self.workdir.unwrap_or_else(|| PathBuf::from("/"))),
            volumes: volumes.collect::<Result<_, _>>().map_err(at("volumes"))?,
            protected,
            name: Some(self.name),
            kernel_tables: true,
            ..RunOptions::new(self.command.into_iter().map(OsString::from).collect())
        })
    }
}
