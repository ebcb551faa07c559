//! From the root to the endorsement key: names, uses, algorithms, keys, signatures, dates, revocation (RFC 5280 §6,
//! VCEK §2).

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::anchors::{Anchors, pinned, pinned_roots};
use super::vek::{Vek, VekKind, p384_key};
use crate::bytes::Bytes32;
use crate::evidence::SnpEvidence;
use crate::policy::{Policy, Revocation};
use crate::time::Timestamp;
use crate::verdict::{Appraisal, ReasonCode};
use crate::x509::{Cert, Crl, PssKey, SignatureError};

/// More than this many lists cannot belong to two issuers.
const MAX_CRLS: usize = 4;
/// Remembered signatures; past that the memory starts anew, which costs time and nothing else.
const MAX_REMEMBERED: usize = 4096;

/// Where the chain has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// At AMD's root for the product.
    Amd,
    /// At a root that came along and is nobody's.
    Simulated,
}

/// Certificate signatures that were found good. A signature does not become bad, unlike dates and revocation,
/// which are checked each time.
#[derive(Debug, Default)]
pub(crate) struct SignatureMemory(Mutex<HashSet<[u8; 32]>>);

impl SignatureMemory {
    fn verify(&self, cert: &Cert, issuer: &Cert, key: &PssKey) -> Result<(), SignatureError> {
        let mut hash = Sha256::new_with_prefix((issuer.der().len() as u64).to_le_bytes());
        hash.update(issuer.der());
        hash.update(cert.der());
        let link: [u8; 32] = hash.finalize().into();
        // A panic elsewhere cannot leave a set half changed, so a poisoned lock is still good.
        if self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&link)
        {
            return Ok(());
        }
        cert.verify_signed_by(key)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(link);
        Ok(())
    }
}

pub(super) struct ChainCheck<'a> {
    pub(super) evidence: &'a SnpEvidence,
    pub(super) trust: Trust,
    pub(super) policy: &'a Policy,
    pub(super) now: Timestamp,
    pub(super) memory: &'a SignatureMemory,
}

impl ChainCheck<'_> {
    /// Checks everything above and at `cert`, which says it is `vek`.
    pub(super) fn run(&self, appraisal: &mut Appraisal, cert: &Cert, vek: &Vek) {
        let carried_root = self.parse(appraisal, "chain.ark", self.evidence.ark.as_deref());
        let carried_authority = self.parse(appraisal, "chain.ask", self.evidence.authority.as_deref());
        let simulated;
        let anchors = match self.trust {
            Trust::Amd => {
                let anchors = pinned(vek.product);
                if let Some(root) = &carried_root {
                    require_pinned(appraisal, &anchors.ark, root);
                }
                anchors
            }
            Trust::Simulated => {
                let Some(root) = carried_root else {
                    appraisal.refuse(
                        ReasonCode::ChainMissing,
                        "chain.ark",
                        "a simulated root",
                        "nothing",
                    );
                    return;
                };
                self.require_simulated(appraisal, &root);
                simulated = Anchors::simulated(root);
                &simulated
            }
        };
        let Some(authority) = carried_authority.as_ref().or_else(|| anchors.authority(vek.kind)) else {
            appraisal.refuse(
                ReasonCode::ChainMissing,
                "chain.ask",
                "the endorsement key's issuer",
                "nothing",
            );
            return;
        };
        self.check_names(appraisal, anchors, authority, cert, vek);
        self.check_uses(appraisal, anchors, authority, cert);
        self.check_keys_and_signatures(appraisal, anchors, authority, cert);
        self.check_dates(appraisal, anchors, authority, cert);
        self.check_revocation(appraisal, anchors, authority, cert);
    }

    fn parse(&self, appraisal: &mut Appraisal, at: &'static str, der: Option<&[u8]>) -> Option<Cert> {
        match Cert::from_der_or_pem(der?) {
            Ok(cert) => Some(cert),
            Err(error) => {
                appraisal.refuse(
                    ReasonCode::ChainMalformed,
                    at,
                    "a canonical certificate",
                    error.to_string(),
                );
                None
            }
        }
    }

    fn require_simulated(&self, appraisal: &mut Appraisal, root: &Cert) {
        let digest = Bytes32::from(<[u8; 32]>::from(Sha256::digest(root.der())));
        let allowed = &self.policy.simulated.root_digests;
        let holds = !pinned_roots().any(|real| real == root.der())
            && (allowed.is_empty() || allowed.contains(&digest));
        let expected = if allowed.is_empty() {
            "a root that is not AMD's"
        } else {
            "a root on the policy's list"
        };
        appraisal.require(
            ReasonCode::SimulatedRoot,
            "chain.ark",
            holds,
            expected,
            digest.to_string(),
        );
    }

    fn check_names(
        &self,
        appraisal: &mut Appraisal,
        anchors: &Anchors,
        authority: &Cert,
        cert: &Cert,
        vek: &Vek,
    ) {
        let root_name = format!("ARK-{}", vek.product);
        let issuer_name = vek.kind.issuer_common_name(vek.product);
        for (at, expected, found) in [
            ("chain.ark subject", &root_name, anchors.ark.subject_common_name()),
            ("chain.ask subject", &issuer_name, authority.subject_common_name()),
            ("chain.vek issuer", &issuer_name, cert.issuer_common_name()),
        ] {
            let found = found.unwrap_or_else(|| "no single common name".to_owned());
            appraisal.require_equal(ReasonCode::ChainName, at, expected, &found);
        }
        for (at, issuer, subject) in [
            ("chain.ark issuer", anchors.ark.subject(), anchors.ark.issuer()),
            ("chain.ask issuer", anchors.ark.subject(), authority.issuer()),
            ("chain.vek issuer", authority.subject(), cert.issuer()),
        ] {
            appraisal.require(
                ReasonCode::ChainName,
                at,
                issuer == subject,
                issuer.to_string(),
                subject.to_string(),
            );
        }
    }

    fn check_uses(&self, appraisal: &mut Appraisal, anchors: &Anchors, authority: &Cert, cert: &Cert) {
        for (at, issuer, below) in [("chain.ark", &anchors.ark, 1), ("chain.ask", authority, 0)] {
            let expected = "a CA with keyCertSign and room below";
            let holds = issuer.may_issue(below);
            appraisal.require(
                ReasonCode::ChainUsage,
                at,
                holds,
                expected,
                if holds { expected } else { "not that" },
            );
        }
        let is_ca = cert.is_ca();
        let found = if is_ca { "a CA" } else { "not a CA" };
        appraisal.require(ReasonCode::ChainUsage, "chain.vek", !is_ca, "not a CA", found);
        for (at, cert) in [
            ("chain.ark", &anchors.ark),
            ("chain.ask", authority),
            ("chain.vek", cert),
        ] {
            if let Some(oid) = cert.unknown_critical_extension() {
                let expected = "no critical extension but basic constraints and key usage";
                appraisal.refuse(ReasonCode::ChainUsage, at, expected, oid.to_string());
            }
        }
    }

    fn check_keys_and_signatures(
        &self,
        appraisal: &mut Appraisal,
        anchors: &Anchors,
        authority: &Cert,
        cert: &Cert,
    ) {
        let curve = if p384_key(cert).is_some() {
            "a point on P-384"
        } else {
            "not a point on P-384"
        };
        appraisal.require(
            ReasonCode::ChainCurve,
            "chain.vek key",
            curve == "a point on P-384",
            "a point on P-384",
            curve,
        );
        for (at, issuer, subject) in [
            ("chain.ask", &anchors.ark, authority),
            ("chain.vek", authority, cert),
        ] {
            let pss = subject.uses_pss_sha384();
            let found = if pss { "RSASSA-PSS with SHA-384" } else { "another" };
            appraisal.require(
                ReasonCode::ChainAlgorithm,
                at,
                pss,
                "RSASSA-PSS with SHA-384",
                found,
            );
            self.check_link(appraisal, at, issuer, subject);
        }
        // AMD's root is compared byte for byte; one that came along must at least hold its own key.
        if self.trust == Trust::Simulated {
            self.check_link(appraisal, "chain.ark", &anchors.ark, &anchors.ark);
        }
    }

    fn check_link(&self, appraisal: &mut Appraisal, at: &'static str, issuer: &Cert, subject: &Cert) {
        let found = match PssKey::new(issuer.public_key()) {
            Ok(key) => {
                let bits = format!("{} bits", key.bits());
                appraisal.require(
                    ReasonCode::ChainWeakKey,
                    at,
                    key.has_full_length(),
                    "4096 bits",
                    bits,
                );
                self.memory.verify(subject, issuer, &key)
            }
            Err(error) => Err(error),
        };
        let text = found
            .as_ref()
            .err()
            .map_or_else(|| "verifies".to_owned(), ToString::to_string);
        appraisal.require(
            ReasonCode::ChainSignature,
            at,
            found.is_ok(),
            "the issuer's signature",
            text,
        );
    }

    fn check_dates(&self, appraisal: &mut Appraisal, anchors: &Anchors, authority: &Cert, cert: &Cert) {
        let codes = (ReasonCode::ChainNotYetValid, ReasonCode::ChainExpired);
        for (at, cert) in [
            ("chain.ark", &anchors.ark),
            ("chain.ask", authority),
            ("chain.vek", cert),
        ] {
            appraisal.require_current(codes, at, &cert.validity(), self.now, self.policy.tolerance());
        }
    }

    fn check_revocation(&self, appraisal: &mut Appraisal, anchors: &Anchors, authority: &Cert, cert: &Cert) {
        let lists = &self.evidence.crls;
        if lists.len() > MAX_CRLS {
            let found = format!("{} lists", lists.len());
            appraisal.refuse(
                ReasonCode::EvidenceSize,
                "chain.crls",
                format!("at most {MAX_CRLS} lists"),
                found,
            );
            return;
        }
        let mut root_list_seen = false;
        for (index, der) in lists.iter().enumerate() {
            let at = format!("chain.crls[{index}]");
            let crl = match Crl::from_der(der) {
                Ok(crl) => crl,
                Err(error) => {
                    appraisal.refuse(
                        ReasonCode::CrlMalformed,
                        at,
                        "a canonical list",
                        error.to_string(),
                    );
                    continue;
                }
            };
            let (issuer, subjects): (&Cert, &[(&'static str, &Cert)]) =
                if crl.issuer() == anchors.ark.subject() {
                    root_list_seen = true;
                    (
                        &anchors.ark,
                        &[("chain.ark", &anchors.ark), ("chain.ask", authority)],
                    )
                } else if crl.issuer() == authority.subject() {
                    (authority, &[("chain.vek", cert)])
                } else {
                    let expected = format!("{} or {}", anchors.ark.subject(), authority.subject());
                    appraisal.refuse(ReasonCode::CrlIssuer, at, expected, crl.issuer().to_string());
                    continue;
                };
            self.check_list(appraisal, at, &crl, issuer, subjects);
        }
        if self.policy.revocation == Revocation::Require {
            let found = if root_list_seen { "one" } else { "none" };
            appraisal.require(
                ReasonCode::CrlMissing,
                "chain.crls",
                root_list_seen,
                "a revocation list of the root",
                found,
            );
        }
    }

    fn check_list(
        &self,
        appraisal: &mut Appraisal,
        at: String,
        crl: &Crl,
        issuer: &Cert,
        subjects: &[(&'static str, &Cert)],
    ) {
        let verified = PssKey::new(issuer.public_key()).and_then(|key| crl.verify_signed_by(&key));
        let text = verified
            .as_ref()
            .err()
            .map_or_else(|| "verifies".to_owned(), ToString::to_string);
        let signed = verified.is_ok();
        appraisal.require(
            ReasonCode::CrlSignature,
            at.clone(),
            signed,
            "the issuer's signature",
            text,
        );
        let codes = (ReasonCode::CrlNotYetValid, ReasonCode::CrlExpired);
        appraisal.require_current(codes, at, crl.window(), self.now, self.policy.tolerance());
        for &(at, subject) in subjects {
            let revoked = crl.revokes(subject.serial());
            let found = if revoked { "revoked" } else { "not revoked" };
            appraisal.require(ReasonCode::ChainRevoked, at, !revoked, "not revoked", found);
        }
    }
}

fn require_pinned(appraisal: &mut Appraisal, pinned: &Cert, carried: &Cert) {
    let holds = pinned.der() == carried.der();
    let describe = |cert: &Cert| format!("{} ({})", cert.subject(), hex::encode(Sha256::digest(cert.der())));
    appraisal.require(
        ReasonCode::ChainRoot,
        "chain.ark",
        holds,
        describe(pinned),
        describe(carried),
    );
}

/// The kind of endorsement key whose issuer has this common name.
pub(crate) fn authority_kind(common_name: &str) -> Option<VekKind> {
    match common_name.strip_prefix("SEV-")? {
        rest if rest.starts_with("VLEK-") => Some(VekKind::Vlek),
        "VCEK" | "VLEK" => None,
        _ => Some(VekKind::Vcek),
    }
}
