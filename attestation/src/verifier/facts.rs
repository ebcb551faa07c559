//! The claims that every kind of evidence has, and how they compare with a reference value.

use crate::bytes::{Bytes32, Bytes48, Bytes64};
use crate::policy::Reference;
use crate::verdict::Claims;

/// The claims that every kind has, under one set of names.
pub(super) struct Facts<'a> {
    pub(super) report_data: &'a Bytes64,
    pub(super) measurement: &'a Bytes48,
    pub(super) manifest: ManifestDigest<'a>,
    pub(super) rtmrs: Option<&'a [Bytes48; 4]>,
}

pub(super) enum ManifestDigest<'a> {
    HostData(&'a Bytes32),
    MrConfigId(&'a Bytes48),
    Statement(&'a Bytes32),
}

impl<'a> Facts<'a> {
    pub(super) fn of(claims: &'a Claims) -> Self {
        match claims {
            Claims::Snp(claims) => Self {
                report_data: &claims.report_data,
                measurement: &claims.measurement,
                manifest: ManifestDigest::HostData(&claims.host_data),
                rtmrs: None,
            },
            Claims::Tdx(claims) => Self {
                report_data: &claims.report_data,
                measurement: &claims.mrtd,
                manifest: ManifestDigest::MrConfigId(&claims.mr_config_id),
                rtmrs: Some(&claims.rtmrs),
            },
            Claims::Software(claims) => Self {
                report_data: &claims.report_data,
                measurement: &claims.measurement,
                manifest: ManifestDigest::Statement(&claims.manifest_digest),
                rtmrs: None,
            },
        }
    }

    pub(super) fn manifest_text(&self) -> String {
        match self.manifest {
            ManifestDigest::HostData(digest) | ManifestDigest::Statement(digest) => digest.to_string(),
            ManifestDigest::MrConfigId(digest) => digest.to_string(),
        }
    }

    pub(super) fn measures(&self, reference: &Reference) -> bool {
        match self.manifest {
            ManifestDigest::HostData(_) => reference.snp_measurement.contains(self.measurement),
            ManifestDigest::MrConfigId(_) => reference.mrtd.contains(self.measurement),
            ManifestDigest::Statement(_) => reference.software_measurement.contains(self.measurement),
        }
    }

    pub(super) fn is_for_this_platform(&self, reference: &Reference) -> bool {
        match self.manifest {
            ManifestDigest::HostData(_) => !reference.snp_measurement.is_empty(),
            ManifestDigest::MrConfigId(_) => !reference.mrtd.is_empty(),
            ManifestDigest::Statement(_) => !reference.software_measurement.is_empty(),
        }
    }

    pub(super) fn pins_manifest(&self, reference: &Reference) -> bool {
        match self.manifest {
            ManifestDigest::HostData(_) => !reference.host_data.is_empty(),
            ManifestDigest::MrConfigId(_) => !reference.mr_config_id.is_empty(),
            ManifestDigest::Statement(_) => !reference.software_manifest.is_empty(),
        }
    }

    pub(super) fn manifest_fits(&self, reference: &Reference) -> bool {
        !self.pins_manifest(reference)
            || match self.manifest {
                ManifestDigest::HostData(digest) => reference.host_data.contains(digest),
                ManifestDigest::MrConfigId(digest) => reference.mr_config_id.contains(digest),
                ManifestDigest::Statement(digest) => reference.software_manifest.contains(digest),
            }
    }

    pub(super) fn rtmrs_fit(&self, reference: &Reference) -> bool {
        let Some(found) = self.rtmrs else { return true };
        let wanted = [
            &reference.rtmr0,
            &reference.rtmr1,
            &reference.rtmr2,
            &reference.rtmr3,
        ];
        wanted
            .iter()
            .zip(found)
            .all(|(wanted, found)| wanted.is_empty() || wanted.contains(found))
    }
}
