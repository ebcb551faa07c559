//! The order of the checks on SNP evidence. None waits for another, save where its input comes from.

use p384::ecdsa::signature::Verifier as _;

use super::chain::ChainCheck;
pub(crate) use super::chain::{SignatureMemory, Trust};
use super::checks::{check_endorsement, check_report, check_tcb, check_vek_allowed};
use super::claims::SnpClaims;
use super::report::{REPORT_BYTES, Report, ReportError};
use super::vek::{Vek, p384_key};
use crate::evidence::SnpEvidence;
use crate::policy::Policy;
use crate::time::Timestamp;
use crate::verdict::{Appraisal, ReasonCode};
use crate::x509::Cert;

/// Runs every check. The claims mean nothing unless all of them passed.
pub(crate) fn verify(
    appraisal: &mut Appraisal,
    evidence: &SnpEvidence,
    trust: Trust,
    policy: &Policy,
    now: Timestamp,
    memory: &SignatureMemory,
) -> Option<SnpClaims> {
    let report = parse_report(appraisal, &evidence.report);
    if let Some(report) = &report {
        check_report(appraisal, report, &policy.snp);
    }
    let cert = parse_vek_cert(appraisal, evidence.vek.as_deref());
    let vek = cert.as_ref().and_then(|cert| parse_vek(appraisal, cert));
    if let (Some(cert), Some(vek)) = (&cert, &vek) {
        check_vek_allowed(appraisal, vek, &policy.snp);
        ChainCheck {
            evidence,
            trust,
            policy,
            now,
            memory,
        }
        .run(appraisal, cert, vek);
    }
    let report = report?;
    let product = vek
        .as_ref()
        .map(|vek| vek.product)
        .or_else(|| report.product()?.ok());
    if let Some(product) = product {
        check_tcb(appraisal, &report, product, &policy.snp);
    }
    if let Some(cert) = &cert {
        check_signature(appraisal, &report, cert);
    }
    let vek = vek?;
    check_endorsement(appraisal, &report, &vek, &policy.snp);
    Some(SnpClaims::new(&report, &vek))
}

fn parse_report(appraisal: &mut Appraisal, bytes: &[u8]) -> Option<Report> {
    match Report::parse(bytes) {
        Ok(report) => Some(report),
        Err(error) => {
            let (code, at, expected) = match error {
                ReportError::Size(_) => (
                    ReasonCode::SnpReportSize,
                    "report",
                    format!("{REPORT_BYTES} bytes"),
                ),
                ReportError::Version(_) => (
                    ReasonCode::SnpReportVersion,
                    "report[0x000..0x004] VERSION",
                    "version 2 to 5".to_owned(),
                ),
            };
            appraisal.refuse(code, at, expected, error.to_string());
            None
        }
    }
}

fn parse_vek_cert(appraisal: &mut Appraisal, der: Option<&[u8]>) -> Option<Cert> {
    let Some(der) = der else {
        appraisal.refuse(
            ReasonCode::ChainMissing,
            "chain.vek",
            "a VCEK or VLEK certificate",
            "nothing",
        );
        return None;
    };
    match Cert::from_der_or_pem(der) {
        Ok(cert) => Some(cert),
        Err(error) => {
            appraisal.refuse(
                ReasonCode::ChainMalformed,
                "chain.vek",
                "a canonical certificate",
                error.to_string(),
            );
            None
        }
    }
}

fn parse_vek(appraisal: &mut Appraisal, cert: &Cert) -> Option<Vek> {
    match Vek::from_cert(cert) {
        Ok(vek) => Some(vek),
        Err(error) => {
            let expected = "the extensions of a VCEK or VLEK";
            appraisal.refuse(
                ReasonCode::SnpVekExtension,
                "chain.vek extensions",
                expected,
                error.to_string(),
            );
            None
        }
    }
}

fn check_signature(appraisal: &mut Appraisal, report: &Report, cert: &Cert) {
    let found = match (p384_key(cert), report.signature()) {
        (None, _) => "the key is not on P-384",
        (_, None) => "not two scalars of P-384",
        (Some(key), Some(signature)) => match key.verify(report.signed_bytes(), &signature) {
            Ok(()) => "verifies",
            Err(_) => "does not verify",
        },
    };
    let at = "report[0x2a0..0x330] SIGNATURE";
    let holds = found == "verifies";
    appraisal.require(
        ReasonCode::SnpReportSignature,
        at,
        holds,
        "the endorsement key's signature",
        found,
    );
}
