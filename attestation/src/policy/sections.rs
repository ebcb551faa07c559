//! The parts of a policy that are about one platform.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bytes::{Bytes32, Bytes48, Bytes64};
use crate::snp::{Product, TcbComponents, VekKind};

/// What an SNP report has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SnpPolicy {
    /// Processor generations.
    pub products: BTreeSet<Product>,
    /// Kinds of endorsement key.
    pub endorsement_keys: BTreeSet<VekKind>,
    /// Accept a guest whose memory the host can decrypt.
    pub dangerous_allow_debug: bool,
    /// Accept a guest that may be bound to a migration agent.
    pub allow_migration_agent: bool,
    /// Accept a guest that may share cores with another one.
    pub allow_smt: bool,
    /// Accept a guest that may use CXL memory.
    pub allow_cxl: bool,
    /// Accept firmware that can still be rolled back.
    pub allow_provisional_firmware: bool,
    /// Accept a report that hides which chip made it.
    pub allow_masked_chip: bool,
    /// Ask for a guest bound to one socket.
    pub require_single_socket: bool,
    /// Ask for AES-256-XTS memory encryption.
    pub require_aes_256_xts: bool,
    /// Ask for power reporting to be off, which some side channels read.
    pub require_rapl_off: bool,
    /// Ask for ciphertext to be hidden from the host.
    pub require_ciphertext_hiding: bool,
    /// Ask for the host to be unable to move and swap pages (report version 5).
    pub require_page_swap_disabled: bool,
    /// Ask for the machine to have checked its memory for aliases (CVE-2024-21944).
    pub require_alias_check: bool,
    /// Mitigations that have to be verified on the machine: bits of CURRENT_MIT_VECTOR (report version 5).
    pub required_mitigations: u64,
    /// Least firmware ABI in the guest policy, as `"1.51"`.
    pub minimum_abi: Option<AbiVersion>,
    /// Least version of the committed firmware, as `"1.55"`.
    pub minimum_firmware: Option<AbiVersion>,
    /// Least privileged VMPL that may speak for the guest; 0 is the most privileged.
    pub maximum_vmpl: u32,
    /// Least GUEST_SVN.
    pub minimum_guest_svn: u32,
    /// Least TCB, for REPORTED_TCB and LAUNCH_TCB alike.
    pub minimum_tcb: MinimumTcb,
    /// If any: CHIP_ID has to be one of these.
    pub chip_ids: BTreeSet<Bytes64>,
    /// If any: ID_KEY_DIGEST has to be one of these.
    pub id_key_digests: BTreeSet<Bytes48>,
    /// If any: AUTHOR_KEY_DIGEST has to be one of these.
    pub author_key_digests: BTreeSet<Bytes48>,
}

impl Default for SnpPolicy {
    fn default() -> Self {
        Self {
            products: Product::ALL.into(),
            endorsement_keys: BTreeSet::from([VekKind::Vcek, VekKind::Vlek]),
            dangerous_allow_debug: false,
            allow_migration_agent: false,
            allow_smt: true,
            allow_cxl: false,
            allow_provisional_firmware: false,
            allow_masked_chip: false,
            require_single_socket: false,
            require_aes_256_xts: false,
            require_rapl_off: false,
            require_ciphertext_hiding: false,
            require_page_swap_disabled: false,
            require_alias_check: false,
            required_mitigations: 0,
            minimum_abi: None,
            minimum_firmware: None,
            maximum_vmpl: 0,
            minimum_guest_svn: 0,
            minimum_tcb: MinimumTcb::default(),
            chip_ids: BTreeSet::new(),
            id_key_digests: BTreeSet::new(),
            author_key_digests: BTreeSet::new(),
        }
    }
}

/// Least TCB of each product; what is not written is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MinimumTcb {
    /// EPYC 7003.
    pub milan: TcbComponents,
    /// EPYC 9004 and 8004.
    pub genoa: TcbComponents,
    /// EPYC 9005.
    pub turin: TcbComponents,
}

impl MinimumTcb {
    /// The minimum for `product`.
    pub fn of(&self, product: Product) -> &TcbComponents {
        match product {
            Product::Milan => &self.milan,
            Product::Genoa => &self.genoa,
            Product::Turin => &self.turin,
        }
    }
}

/// A major and a minor version, written `"1.51"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AbiVersion {
    /// Major version.
    pub major: u8,
    /// Minor version.
    pub minor: u8,
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for AbiVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('.').and_then(|(major, minor)| {
            Some(Self {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| format!("{text:?} is not a version: write \"MAJOR.MINOR\""))
    }
}

impl Serialize for AbiVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AbiVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for AbiVersion {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AbiVersion".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]{1,3}\\.[0-9]{1,3}$" })
    }
}

/// What Intel's collateral says of a platform's TCB (PCS API, `tcbStatus`). `Revoked` is never acceptable and
/// therefore not a word here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TcbStatus {
    /// Everything is current.
    UpToDate,
    /// Current, but software has to do its part.
    SWHardeningNeeded,
    /// Current, but the machine is not configured as it should be.
    ConfigurationNeeded,
    /// Both of the former.
    ConfigurationAndSWHardeningNeeded,
    /// A TCB recovery has not been applied.
    OutOfDate,
    /// Not applied, and the machine is not configured as it should be.
    OutOfDateConfigurationNeeded,
    /// The platform is current and the domain was launched before it was.
    TDRelaunchAdvised,
    /// The same, and the machine is not configured as it should be.
    TDRelaunchAdvisedConfigurationNeeded,
}

/// What to think of advisories that affect a platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum AdvisoryPolicy {
    /// None but these, such as `INTEL-SA-00615`.
    Only(BTreeSet<String>),
    /// Any but these.
    AnyExcept(BTreeSet<String>),
}

impl AdvisoryPolicy {
    /// Whether `advisory` is acceptable.
    pub fn accepts(&self, advisory: &str) -> bool {
        match self {
            AdvisoryPolicy::Only(accepted) => accepted.contains(advisory),
            AdvisoryPolicy::AnyExcept(rejected) => !rejected.contains(advisory),
        }
    }
}

impl Default for AdvisoryPolicy {
    fn default() -> Self {
        AdvisoryPolicy::Only(BTreeSet::new())
    }
}

/// What a TDX quote has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TdxPolicy {
    /// Acceptable states of the platform's TCB.
    pub tcb_statuses: BTreeSet<TcbStatus>,
    /// Acceptable advisories. Default: none at all.
    pub advisories: AdvisoryPolicy,
    /// Least `tcbEvaluationDataNumber` of the collateral, so that old collateral cannot hide a recovery.
    pub minimum_tcb_evaluation: u32,
    /// Accept a domain whose memory the host can read, or that it may profile.
    pub dangerous_allow_debug: bool,
    /// Service domains that may be bound: values of MRSERVICETD. Default: none.
    pub service_tds: BTreeSet<Bytes48>,
    /// Bits of XFAM that have to be set.
    pub xfam_required: u64,
    /// Bits of XFAM that may be set.
    pub xfam_allowed: u64,
    /// If any: MROWNER has to be one of these. Else it has to be zero.
    pub mr_owners: BTreeSet<Bytes48>,
    /// If any: MROWNERCONFIG has to be one of these. Else it has to be zero.
    pub mr_owner_configs: BTreeSet<Bytes48>,
    /// Accept a platform with SMT on, as its certificate says.
    pub allow_smt: bool,
    /// Accept a platform to which packages can be added.
    pub allow_dynamic_platform: bool,
    /// Accept a platform whose keys Intel's registration service keeps.
    pub allow_cached_keys: bool,
}

impl Default for TdxPolicy {
    fn default() -> Self {
        Self {
            tcb_statuses: BTreeSet::from([TcbStatus::UpToDate]),
            advisories: AdvisoryPolicy::default(),
            minimum_tcb_evaluation: 0,
            dangerous_allow_debug: false,
            service_tds: BTreeSet::new(),
            // x87 and SSE are always on (TDX Module ABI, XFAM).
            xfam_required: 0b11,
            xfam_allowed: u64::MAX,
            mr_owners: BTreeSet::new(),
            mr_owner_configs: BTreeSet::new(),
            allow_smt: true,
            allow_dynamic_platform: true,
            allow_cached_keys: true,
        }
    }
}

/// What a statement of a host key has to say. Nothing passes until a key is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SoftwarePolicy {
    /// SHA-256 of the host keys that may sign, each over the key's uncompressed SEC 1 point.
    pub key_digests: BTreeSet<Bytes32>,
    /// Oldest acceptable statement, in seconds.
    pub maximum_age_seconds: u32,
}

impl Default for SoftwarePolicy {
    fn default() -> Self {
        Self {
            key_digests: BTreeSet::new(),
            maximum_age_seconds: 300,
        }
    }
}

/// Which simulated signers to believe, once `platforms` names a simulated kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimulatedPolicy {
    /// If any: SHA-256 of the root certificate's DER has to be one of these. Else any simulated root will do.
    pub root_digests: BTreeSet<Bytes32>,
}
