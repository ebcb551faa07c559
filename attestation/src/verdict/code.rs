//! The reason codes: stable names for what can be wrong with evidence.
//!
//! A code never changes its meaning and is never given to another one; what a person reads beside it may change.
//! `docs/attestation.md` lists them all, and a test compares the two.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! reason_codes {
    ($($variant:ident = $code:literal, $meaning:literal;)*) => {
        /// Why evidence is refused. The name that [`ReasonCode::as_str`] gives is stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ReasonCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl ReasonCode {
            /// Every code.
            pub const ALL: &'static [ReasonCode] = &[$(ReasonCode::$variant,)*];

            /// The stable name.
            pub fn as_str(self) -> &'static str {
                match self { $(ReasonCode::$variant => $code,)* }
            }

            /// One sentence for a person.
            pub fn meaning(self) -> &'static str {
                match self { $(ReasonCode::$variant => $meaning,)* }
            }
        }
    };
}

reason_codes! {
    EvidenceKind = "evidence.kind.not-allowed", "The policy does not name this kind of evidence.";
    EvidenceReportData = "evidence.report-data.mismatch", "REPORT_DATA is not the value that was asked for, so the evidence may be a replay or for another key.";
    EvidenceManifest = "evidence.manifest.mismatch", "The manifest that came along is not the one whose digest the machine was launched with.";
    EvidenceEventLog = "evidence.event-log.mismatch", "Replaying the event log does not give the run-time registers.";
    EvidenceRuntimeData = "evidence.runtime-data.mismatch", "The runtime data that came along is not what REPORT_DATA binds.";
    EvidenceSize = "evidence.size", "A part of the evidence is larger than anything genuine.";
    ReferenceUnknown = "reference.unknown", "Each measured value is known, but no reference value names them together.";
    ReferenceMeasurement = "reference.measurement.unknown", "No reference value has this launch measurement.";
    ReferenceManifest = "reference.manifest.unknown", "No reference value with this measurement has this manifest digest.";
    ReferenceRtmr = "reference.rtmr.unknown", "No reference value with this measurement has these run-time registers.";
    ReferenceNone = "reference.none", "The policy asks for reference values, and none is for this platform.";

    ChainMissing = "chain.missing", "A certificate that the chain needs did not come along and is not built in.";
    ChainMalformed = "chain.malformed", "A certificate is not canonical DER of an X.509 version 3 certificate.";
    ChainRoot = "chain.root.unknown", "The root certificate is not a pinned one.";
    ChainName = "chain.name", "Subject and issuer names do not form the chain that the vendor publishes.";
    ChainUsage = "chain.usage", "A certificate may not be used in this place: basic constraints, key usage or a critical extension that is not understood.";
    ChainAlgorithm = "chain.algorithm", "A signature algorithm other than the one the vendor uses.";
    ChainSignature = "chain.signature", "The issuer did not sign this certificate.";
    ChainWeakKey = "chain.key.weak", "A key is shorter than the vendor's.";
    ChainCurve = "chain.key.curve", "An endorsement key is not on the vendor's curve.";
    ChainNotYetValid = "chain.not-yet-valid", "A certificate is not valid yet.";
    ChainExpired = "chain.expired", "A certificate has expired.";
    ChainRevoked = "chain.revoked", "The issuer revoked a certificate.";
    CrlMissing = "chain.crl.missing", "The policy requires revocation information and none for this issuer came along.";
    CrlMalformed = "chain.crl.malformed", "A revocation list is not canonical DER, or lacks a field that is needed.";
    CrlIssuer = "chain.crl.issuer", "A revocation list is from none of the chain's issuers.";
    CrlSignature = "chain.crl.signature", "The issuer did not sign this revocation list.";
    CrlNotYetValid = "chain.crl.not-yet-valid", "A revocation list is from the future.";
    CrlExpired = "chain.crl.expired", "A revocation list is out of date.";

    SnpReportSize = "snp.report.size", "A report has exactly 1184 bytes.";
    SnpReportVersion = "snp.report.version", "A report version that is not known.";
    SnpReportReserved = "snp.report.reserved", "A reserved field is not zero.";
    SnpReportAlgorithm = "snp.report.algorithm", "The report names a signature algorithm other than ECDSA P-384 with SHA-384.";
    SnpReportUnsigned = "snp.report.unsigned", "The firmware did not sign the report, or names a key that does not exist.";
    SnpReportSignature = "snp.report.signature", "The endorsement key did not sign the report.";
    SnpVekExtension = "snp.vek.extension", "An extension of the endorsement certificate is missing, doubled or malformed.";
    SnpVekKind = "snp.vek.kind", "The report was signed by the other kind of endorsement key.";
    SnpVekNotAllowed = "snp.vek.not-allowed", "The policy does not accept this kind of endorsement key.";
    SnpProductMismatch = "snp.product.mismatch", "Report, endorsement certificate and chain are for different products.";
    SnpProductNotAllowed = "snp.product.not-allowed", "The policy does not accept this product.";
    SnpTcbVek = "snp.tcb.vek-mismatch", "The endorsement key was made for another TCB than the report gives.";
    SnpTcbInconsistent = "snp.tcb.inconsistent", "The report's TCB versions contradict each other.";
    SnpTcbMinimum = "snp.tcb.below-minimum", "The reported TCB is below the policy's minimum.";
    SnpTcbLaunchMinimum = "snp.tcb.launch-below-minimum", "The guest was launched on a TCB below the policy's minimum.";
    SnpFirmwareMinimum = "snp.firmware.below-minimum", "The firmware version is below the policy's minimum.";
    SnpFirmwareProvisional = "snp.firmware.provisional", "The firmware is not committed and can be rolled back.";
    SnpMitigations = "snp.mitigations.missing", "A mitigation that the policy requires is not verified on the machine.";
    SnpHwid = "snp.hwid.mismatch", "The endorsement key belongs to another chip than the report gives.";
    SnpChipMasked = "snp.chip.masked", "The report hides the chip identity.";
    SnpChipNotAllowed = "snp.chip.not-allowed", "The chip is not on the policy's list.";
    SnpPolicyReserved = "snp.policy.reserved", "A reserved bit of the guest policy has the wrong value.";
    SnpPolicyDebug = "snp.policy.debug", "The guest may be debugged: the host can read its memory.";
    SnpPolicySmt = "snp.policy.smt", "The guest may share a core with another one.";
    SnpPolicyMigration = "snp.policy.migration-agent", "The guest may be bound to a migration agent.";
    SnpPolicySingleSocket = "snp.policy.single-socket", "The guest may run on more than one socket.";
    SnpPolicyCxl = "snp.policy.cxl", "The guest may use CXL memory.";
    SnpPolicyAesXts = "snp.policy.aes-256-xts", "The guest does not require AES-256-XTS memory encryption.";
    SnpPolicyRapl = "snp.policy.rapl", "The guest does not require power reporting to be off.";
    SnpPolicyCiphertext = "snp.policy.ciphertext-hiding", "The guest does not require ciphertext hiding.";
    SnpPolicyPageSwap = "snp.policy.page-swap", "The host may move and swap the guest's pages.";
    SnpPolicyAbi = "snp.policy.abi", "The guest accepts a firmware ABI below the policy's minimum.";
    SnpAliasCheck = "snp.platform.alias-check", "The machine did not check memory for aliases.";
    SnpVmpl = "snp.vmpl", "The report is for a less privileged VMPL than the policy accepts.";
    SnpGuestSvn = "snp.guest-svn.below-minimum", "The guest's security version is below the policy's minimum.";
    SnpIdKey = "snp.id-key.not-allowed", "The ID block is not signed with a key on the policy's list.";
    SnpAuthorKey = "snp.author-key.not-allowed", "The ID key is not certified by an author key on the policy's list.";

    TdxQuoteMalformed = "tdx.quote.malformed", "The quote does not have the layout of its version, or has bytes to spare.";
    TdxQuoteVersion = "tdx.quote.version", "A quote version, TEE type, key type or vendor that is not known.";
    TdxQuoteSignature = "tdx.quote.signature", "The attestation key did not sign the quote.";
    TdxCollateralMissing = "tdx.collateral.missing", "A quote cannot be judged offline without its collateral.";
    TdxCollateralMalformed = "tdx.collateral.malformed", "A part of the collateral cannot be read.";
    TdxCollateralExpired = "tdx.collateral.expired", "A part of the collateral is out of date.";
    TdxCollateralNotYetValid = "tdx.collateral.not-yet-valid", "A part of the collateral is from the future.";
    TdxCollateralSignature = "tdx.collateral.signature", "Intel did not sign a part of the collateral.";
    TdxCollateralType = "tdx.collateral.type", "The collateral is for another kind of quote.";
    TdxQe = "tdx.qe", "The quoting enclave is not Intel's, or did not certify the attestation key.";
    TdxFmspc = "tdx.fmspc.mismatch", "The collateral is for another processor family.";
    TdxModule = "tdx.module", "The TDX module is not signed by Intel or has unexpected attributes.";
    TdxTcbUnmatched = "tdx.tcb.unmatched", "The platform is below every TCB level that Intel lists.";
    TdxTcbRevoked = "tdx.tcb.revoked", "Intel revoked this TCB level.";
    TdxTcbStatus = "tdx.tcb.status", "The policy does not accept this TCB status.";
    TdxAdvisory = "tdx.tcb.advisory", "The platform is affected by an advisory that the policy does not accept.";
    TdxEvaluation = "tdx.tcb.evaluation", "The collateral is of an older TCB recovery than the policy's minimum.";
    TdxDebug = "tdx.attributes.debug", "The domain may be debugged: the host can read its memory.";
    TdxProfiling = "tdx.attributes.profiling", "The host may profile the domain.";
    TdxAttributesReserved = "tdx.attributes.reserved", "A reserved attribute bit is set.";
    TdxMigratable = "tdx.attributes.migratable", "The domain may be migrated by a migration domain.";
    TdxSeptVe = "tdx.attributes.sept-ve", "The host can inject exceptions by removing pages: SEPT_VE_DISABLE is off.";
    TdxServiceTd = "tdx.service-td", "A service domain is bound to this domain.";
    TdxXfam = "tdx.xfam", "The extended features are not those that the policy accepts.";
    TdxMrOwner = "tdx.mr-owner", "MROWNER is not on the policy's list.";
    TdxMrOwnerConfig = "tdx.mr-owner-config", "MROWNERCONFIG is not on the policy's list.";
    TdxPlatform = "tdx.platform", "The platform has a property that the policy does not accept: SMT, dynamic, cached keys.";
    TdxUnverified = "tdx.unverified", "The quote does not verify, for a reason that has no code of its own.";

    SoftwareMalformed = "software.malformed", "The signed statement cannot be read.";
    SoftwareSignature = "software.signature", "The host key did not sign the statement.";
    SoftwareKey = "software.key.not-allowed", "The host key is not on the policy's list.";
    SoftwareNotYetValid = "software.not-yet-valid", "The statement is from the future.";
    SoftwareExpired = "software.expired", "The statement is older than the policy accepts.";

    SimulatedRoot = "simulated.root.not-allowed", "The simulated root is not on the policy's list, or is a vendor's real one.";
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_codes_share_a_name() {
        let names: HashSet<_> = ReasonCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), ReasonCode::ALL.len());
    }

    #[test]
    fn names_are_dotted_lower_case() {
        for code in ReasonCode::ALL {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
            assert!(code.as_str().chars().all(allowed), "{code}");
        }
    }
}
