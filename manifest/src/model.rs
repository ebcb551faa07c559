//! The fields of `cloak.toml`. A field that is not here is refused: what a manifest says and nobody obeys would
//! mislead whoever approves it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::identity::Digest;

/// What to run, in what, and what it may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Name of the context: letters, digits, `-`, `_` and `.`, at most 64.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.-]{1,64}$"))]
    pub name: String,
    /// What to run.
    pub program: Program,
    /// How much it gets.
    #[serde(default)]
    pub resources: Resources,
    /// Where it may run.
    #[serde(default)]
    pub platform: Platform,
    /// What of the network it sees.
    #[serde(default)]
    pub network: Network,
    /// What of files it sees. Longer guest paths go before shorter ones.
    #[serde(default, rename = "volume", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Files whose contents are part of the manifest.
    #[serde(default, rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<MeasuredFile>,
    /// Symbolic links in measured volumes.
    #[serde(default, rename = "link", skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// Who releases secrets, and who fetches them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<Broker>,
    /// What its keys follow from.
    #[serde(default, skip_serializing_if = "Keys::is_default")]
    pub keys: Keys,
    /// Secrets that are released to it after attestation.
    #[serde(default, rename = "secret", skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// Memory shared with other contexts of the VM, which have to name it too.
    #[serde(default, rename = "segment", skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program's absolute path in the guest.
    pub path: String,
    /// Its arguments, without its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Working directory, absolute. Default: `/`.
    #[serde(default = "root", skip_serializing_if = "is_root")]
    pub workdir: String,
    /// Environment variables with fixed values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Names of environment variables whose values the untrusted caller may choose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untrusted_environment: Vec<String>,
    /// Whether the untrusted caller may choose the arguments; `args` are then the first of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untrusted_args: bool,
    /// Whether the owner may start further programs in the running context, and see its memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exec: bool,
}

/// How much the context gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Guest memory in MiB: 64 to 16777216 (16 TiB).
    #[schemars(range(min = 64, max = 16_777_216))]
    pub memory_mib: u64,
    /// vCPUs: 1 to 64.
    #[schemars(range(min = 1, max = 64))]
    pub cpus: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            memory_mib: 4096,
            cpus: 1,
        }
    }
}

/// Where the context may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Platform {
    /// Kinds of machine. Elsewhere the context does not start.
    pub accept: Vec<PlatformKind>,
}

impl Default for Platform {
    fn default() -> Self {
        use PlatformKind::{Plain, Snp, Tdx};
        Self {
            accept: vec![Plain, Snp, Tdx],
        }
    }
}

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlatformKind {
    /// Plain KVM: software cloaks, and the host kernel is trusted.
    Plain,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

/// What of the network a context sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Whose network it is.
    pub mode: NetworkMode,
    /// Ports of a private network that may be published on the host, as `80/tcp` or `53/udp`. Where, the caller says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
}

/// Whose network a context sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// None.
    #[default]
    None,
    /// The host's. Traffic is as open to the host as the program makes it.
    Host,
    /// Its own: what its processes say to each other stays inside. Connections to others go through the host, and nobody reaches
    /// it but by ports that are published.
    Private,
}

/// A part of the guest's name space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Where, in the guest: absolute.
    pub guest: String,
    /// What kind.
    pub kind: VolumeKind,
    /// A host path (`shared`, `measured`) or the volume's file (`protected`, `ciphertext`); `memory` has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Whether the program may only read it. A measured volume is read-only anyway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether nobody else changes it while the program runs. Of a `shared` volume only; the guest then remembers how long files are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
}

/// Kinds of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// Read-only, each block checked against digests of the manifest.
    Measured,
    /// Encrypted and authenticated with a key that follows from the identity.
    Protected,
    /// The file of somebody else's protected volume, without its key: opaque names and bytes, read-only.
    Ciphertext,
    /// The host's, as it is, and as trustworthy.
    Shared,
    /// In the context's own memory; gone with it.
    Memory,
}

/// A file whose contents are part of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredFile {
    /// Absolute path in the guest, symbolic links resolved.
    pub path: String,
    /// Its fs-verity digest: SHA-256, blocks of 4096 bytes, no salt.
    pub digest: Digest<32>,
}

/// A symbolic link in a measured volume: where a name leads is as much of what runs as the bytes there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Absolute path in the guest; links in the folders before it resolved.
    pub path: String,
    /// Where it leads, as `readlink` gives it.
    pub target: String,
}

/// A key broker (`cloak kbs`), and the program inside that asks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// Its address: `https://HOST[:PORT]`.
    pub url: String,
    /// Certificates that its own has to come from, in PEM. The network is the host's, so nothing else says who answers.
    pub ca: String,
    /// The program that fetches what is released and then becomes the context's program: this `cloak`, as a path in the guest.
    pub helper: String,
}

/// What a context's keys follow from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// The secret of 32 bytes that is their root. Without it the machine's own key is, where it has one, or the caller's key
    /// file (plain KVM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<String>,
}

impl Keys {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A secret that is released to the context after attestation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// What it is called where it is released: `REPOSITORY/TYPE/TAG`, or a `TAG` of `default/secret`.
    pub name: String,
    /// The file that it appears in: in a memory volume or a protected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The environment variable that it appears in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variable: Option<String>,
}

/// Memory shared with other contexts of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// What it is called in all manifests that name it.
    pub name: String,
    /// Names of the other contexts.
    pub with: Vec<String>,
    /// Size in KiB, a multiple of 4.
    #[schemars(range(min = 4), extend("multipleOf" = 4))]
    pub size_kib: u64,
}

impl Manifest {
    /// Whether something is released to the context before its program starts.
    #[must_use]
    pub fn needs_broker(&self) -> bool {
        !self.secrets.is_empty() || self.keys.released.is_some()
    }

    /// The volume that serves a guest path: the one with the longest guest path above it.
    #[must_use]
    pub fn volume_of(&self, path: &str) -> Option<&Volume> {
        let covers = |guest: &str| {
            path.strip_prefix(guest)
                .is_some_and(|rest| guest == "/" || rest.is_empty() || rest.starts_with('/'))
        };
        let covering = self.volumes.iter().filter(|v| covers(&v.guest));
        covering.max_by_key(|v| v.guest.len())
    }
}

fn root() -> String {
    "/".to_owned()
}

fn is_root(path: &str) -> bool {
    path == "/"
}

/// The JSON schema (draft 2020-12). TOML and JSON share a data model, so it holds for the TOML file.
#[must_use]
pub fn json_schema() -> schemars::Schema {
    schemars::schema_for!(Manifest)
}
