//! Reference values: what may run, by name and version.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes32, Bytes48};

/// One thing that may run. Evidence matches if every list that is not empty and is about its platform contains the
/// evidence's value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reference {
    /// What it is.
    pub name: String,
    /// Which of them.
    pub version: String,
    /// SNP: launch measurements, one for each number of vCPUs and product.
    pub snp_measurement: BTreeSet<Bytes48>,
    /// SNP: HOST_DATA, which is the SHA-256 of the manifest.
    pub host_data: BTreeSet<Bytes32>,
    /// TDX: MRTD.
    pub mrtd: BTreeSet<Bytes48>,
    /// TDX: MRCONFIGID, which is the SHA-384 of the manifest.
    pub mr_config_id: BTreeSet<Bytes48>,
    /// TDX: run-time register 0.
    pub rtmr0: BTreeSet<Bytes48>,
    /// TDX: run-time register 1.
    pub rtmr1: BTreeSet<Bytes48>,
    /// TDX: run-time register 2.
    pub rtmr2: BTreeSet<Bytes48>,
    /// TDX: run-time register 3.
    pub rtmr3: BTreeSet<Bytes48>,
    /// Software: SHA-384 of the shim's image.
    pub software_measurement: BTreeSet<Bytes48>,
    /// Software: SHA-256 of the manifest.
    pub software_manifest: BTreeSet<Bytes32>,
}

/// Name and version of a reference value that matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReferenceName {
    /// What it is.
    pub name: String,
    /// Which of them.
    pub version: String,
}

impl Reference {
    /// Its name and version.
    pub fn reference_name(&self) -> ReferenceName {
        ReferenceName {
            name: self.name.clone(),
            version: self.version.clone(),
        }
    }

    /// A reference without a measurement would let everything pass that has the right manifest, or everything.
    pub(super) fn pins_no_measurement(&self) -> bool {
        self.snp_measurement.is_empty() && self.mrtd.is_empty() && self.software_measurement.is_empty()
    }
}
