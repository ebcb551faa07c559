//! The pod file: TOML, a table for each context.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cloak_host::control::folder::Name;
use cloak_host::run::stated::{Caller, of_manifest};
use cloak_host::run::{Environment, Network, Published, Resident, RunOptions, Segment};
use cloak_manifest::Manifest;
use serde::Deserialize;

use crate::commands::key;
use crate::commands::run::{
    NetworkArg, parse_size, parse_variable, parse_volume, protected, publish, publishable,
};

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

/// A pod file that was read.
#[derive(Debug)]
pub struct Pod {
    /// Name of the VM while it runs.
    pub name: Option<Name>,
    /// In the order of the file.
    pub contexts: Vec<Context>,
}

/// One context.
#[derive(Debug)]
pub struct Context {
    /// Its name in messages, and the host name inside.
    pub name: String,
    resident: Option<Resident>,
    segments: Vec<Shared>,
    runs: Runs,
}

/// What a context runs, and in what.
#[derive(Debug)]
enum Runs {
    /// What a manifest says.
    Stated {
        manifest: Box<Manifest>,
        root_key: Option<PathBuf>,
        anchors: Vec<String>,
        publish: Vec<String>,
        user: Option<String>,
    },
    /// What the pod file says.
    Told(Box<Entry>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    name: Option<String>,
    #[serde(rename = "context")]
    contexts: Vec<Entry>,
}

/// A table of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    #[serde(default)]
    command: Vec<String>,
    cpus: Option<usize>,
    memory: Option<String>,
    #[serde(default)]
    environment: Vec<String>,
    workdir: Option<PathBuf>,
    user: Option<String>,
    network: Option<NetworkArg>,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    protected: Vec<String>,
    #[serde(default, rename = "segment")]
    segments: Vec<Shared>,
    manifest: Option<PathBuf>,
    root_key: Option<PathBuf>,
    #[serde(default)]
    anchors: Vec<String>,
    /// Most plaintext, and where the rest goes.
    resident: Option<String>,
    swap: Option<PathBuf>,
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
/// Memory of a context for which the file says nothing.
const MEMORY: &str = "1G";

impl Pod {
    /// Reads and checks a file, and the manifests that it names.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn read(path: &Path) -> Result<Self, PodError> {
        let text = read(path)?;
        let file: File = toml::from_str(&text).map_err(|source| PodError::Parse {
            path: path.to_owned(),
            source,
        })?;
        let content = |what| PodError::Content {
            path: path.to_owned(),
            what,
        };
        if file.version != 1 {
            return Err(content(format!(
                "version is {}, and this program knows 1",
                file.version
            )));
        }
        let name = file.name.as_deref().map(Name::new).transpose();
        let name = name.map_err(|error| content(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let contexts = file
            .contexts
            .into_iter()
            .map(|entry| entry.context(folder, &content));
        let pod = Self {
            name,
            contexts: contexts.collect::<Result<_, _>>()?,
        };
        pod.check().map_err(content)?;
        Ok(pod)
    }

    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut swaps = BTreeSet::new();
        for Context { name, resident, .. } in &self.contexts {
            if let Some(limit) = resident
                && !swaps.insert(&limit.swap)
            {
                return Err(format!(
                    "two contexts have the swap file {}",
                    limit.swap.display()
                ));
            }
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(format!("{name:?} is not the name of a context"));
            }
            if !names.insert(name) {
                return Err(format!("two contexts have the name {name}"));
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

fn read(path: &Path) -> Result<String, PodError> {
    std::fs::read_to_string(path).map_err(|source| PodError::Read {
        path: path.to_owned(),
        source,
    })
}

impl Entry {
    /// The context that it describes. Files that it names lie in `folder`.
    fn context(mut self, folder: &Path, bad: &impl Fn(String) -> PodError) -> Result<Context, PodError> {
        let resident = self
            .limit(folder)
            .map_err(|why| bad(format!("context {}: {why}", self.called())))?;
        let Some(file) = self.manifest.take() else {
            let name = self
                .name
                .clone()
                .ok_or_else(|| bad("a context without a manifest needs a name".to_owned()))?;
            if self.command.is_empty() {
                return Err(bad(format!(
                    "context {name} has an empty command and no manifest"
                )));
            }
            if self.root_key.is_some() || !self.anchors.is_empty() {
                return Err(bad(format!(
                    "context {name}: root_key and anchors go with a manifest"
                )));
            }
            let segments = std::mem::take(&mut self.segments);
            return Ok(Context {
                name,
                resident,
                segments,
                runs: Runs::Told(Box::new(self)),
            });
        };
        let file = folder.join(file);
        let manifest = Manifest::parse(read(&file)?.as_bytes())
            .map_err(|error| bad(format!("{}: {error}", file.display())))?;
        let rest = (
            self.command.is_empty() && self.cpus.is_none() && self.memory.is_none() && self.workdir.is_none(),
            self.environment.is_empty() && self.volumes.is_empty() && self.protected.is_empty(),
            self.segments.is_empty() && self.network.is_none(),
        );
        if rest != (true, true, true) {
            return Err(bad(format!(
                "{}: beside a manifest only name, root_key, anchors, publish, user, resident and swap can be said",
                file.display()
            )));
        }
        let segments = manifest.segments.iter().map(|segment| Shared {
            name: segment.name.clone(),
            with: segment.with.iter().cloned().collect(),
            size_kib: segment.size_kib,
        });
        Ok(Context {
            name: self.name.unwrap_or_else(|| manifest.name.clone()),
            resident,
            segments: segments.collect(),
            runs: Runs::Stated {
                root_key: self.root_key.map(|key| folder.join(key)),
                anchors: self.anchors,
                publish: self.publish,
                user: self.user,
                manifest: Box::new(manifest),
            },
        })
    }

    /// For messages.
    fn called(&self) -> String {
        let file = self.manifest.as_ref().map(|file| file.display().to_string());
        self.name.clone().or(file).unwrap_or_default()
    }

    /// Its limit on plaintext.
    fn limit(&self, folder: &Path) -> Result<Option<Resident>, String> {
        match (&self.resident, &self.swap) {
            (Some(bytes), Some(swap)) => Ok(Some(Resident {
                bytes: parse_size(bytes).map_err(|why| format!("resident: {why}"))?,
                swap: folder.join(swap),
            })),
            (None, None) => Ok(None),
            _ => Err("resident and swap go together".to_owned()),
        }
    }

    fn options(self, name: String) -> Result<RunOptions, Box<dyn std::error::Error>> {
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
        let memory = self.memory.as_deref().unwrap_or(MEMORY);
        let published = ports(&self.publish).map_err(at("publish"))?;
        let network = self.network.map_or_else(Network::default, Network::from);
        publishable(network, &published).map_err(at("publish"))?;
        Ok(RunOptions {
            cpus: Some(self.cpus.unwrap_or(1)),
            memory: parse_size(memory).map_err(at("memory"))?,
            environment: Environment {
                clear: true,
                set: variables.collect::<Result<_, _>>().map_err(at("environment"))?,
            },
            user: self.user,
            workdir: Some(self.workdir.unwrap_or_else(|| PathBuf::from("/"))),
            volumes: volumes.collect::<Result<_, _>>().map_err(at("volumes"))?,
            protected,
            network,
            published,
            ..RunOptions::new(self.command.into_iter().map(OsString::from).collect())
        })
    }
}

fn ports(texts: &[String]) -> Result<Vec<Published>, String> {
    let ports = texts
        .iter()
        .map(|text| publish::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    publish::check(&ports)?;
    Ok(ports)
}

/// What a manifest says, with the root key and the anchors that the pod file names.
fn stated(
    manifest: &Manifest,
    root_key: Option<PathBuf>,
    anchors: Vec<String>,
    publish: &[String],
) -> Result<RunOptions, Box<dyn std::error::Error>> {
    let root = key::root(root_key.as_deref(), None)?;
    let mut caller = Caller {
        withheld: root_key.into_iter().collect(),
        published: ports(publish)?,
        ..Caller::default()
    };
    for text in anchors {
        let asked = protected::AnchorAsked::parse(&text)?;
        caller.withheld.push(asked.file().to_owned());
        let (guest, anchor) = asked.open()?;
        caller.anchors.insert(guest, anchor);
    }
    for name in &manifest.program.untrusted_environment {
        if let Some(Ok(value)) = std::env::var_os(name).map(OsString::into_string) {
            caller.environment.insert(name.clone(), value);
        }
    }
    Ok(of_manifest(manifest, root, caller)?)
}

impl Context {
    /// Its command line, for a person.
    pub fn command(&self) -> String {
        match &self.runs {
            Runs::Told(entry) => entry.command.join(" "),
            Runs::Stated { manifest, .. } => {
                let program = &manifest.program;
                [std::slice::from_ref(&program.path), &program.args]
                    .concat()
                    .join(" ")
            }
        }
    }

    /// What to run.
    ///
    /// # Errors
    /// [`PodError::Content`] with the field that is wrong; what is wrong with a key.
    pub fn options(self, device: &Path) -> Result<RunOptions, Box<dyn std::error::Error>> {
        let mut options = match self.runs {
            Runs::Told(entry) => entry.options(self.name.clone())?,
            Runs::Stated {
                manifest,
                root_key,
                anchors,
                publish,
                user,
            } => {
                let told = |error| format!("context {}: {error}", self.name);
                let mut options = stated(&manifest, root_key, anchors, &publish).map_err(told)?;
                options.user = user;
                options
            }
        };
        options.device = device.to_owned();
        options.name = Some(self.name);
        options.resident = self.resident;
        options.kernel_tables = true;
        Ok(options)
    }
}
