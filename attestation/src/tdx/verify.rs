//! The order of the checks on TDX evidence.

use dcap_qvl::configs::RustCryptoConfig;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuotePolicy};

use super::checks::{check_platform, check_report};
use super::claims::TdxClaims;
use super::collateral::{Collateral, DatedPart, dated_parts, pem_chain};
use super::failure::classify;
use super::quote::{Quote, QuoteError};
use crate::evidence::TdxEvidence;
use crate::policy::Policy;
use crate::time::Timestamp;
use crate::verdict::{Appraisal, ReasonCode};

/// Runs every check, with `root` (DER) as the only trust anchor. The claims mean nothing unless all passed.
pub(crate) fn verify(
    appraisal: &mut Appraisal,
    evidence: &TdxEvidence,
    root: &[u8],
    policy: &Policy,
    now: Timestamp,
) -> Option<TdxClaims> {
    let quote = parse_quote(appraisal, &evidence.quote);
    if let Some(quote) = &quote {
        check_report(appraisal, &quote.report, &policy.tdx);
    }
    let Some(collateral) = &evidence.collateral else {
        appraisal.refuse(
            ReasonCode::TdxCollateralMissing,
            "collateral",
            "QuoteCollateralV3",
            "nothing",
        );
        return None;
    };
    let quote = quote?;
    let pck_chain = pck_chain(appraisal, &quote, collateral)?;
    let rooted = check_root(appraisal, &pck_chain, root);
    let parts = read_parts(appraisal, collateral, &pck_chain)?;
    let dated = check_dates(appraisal, &parts, policy, now);
    if !rooted {
        // Signatures under another root say nothing, and checking them is what costs.
        return None;
    }
    // The quote's own chain is what its bytes bind; collateral cannot put another in its place.
    let mut collateral = Collateral::clone(collateral);
    if quote.pck_chain.is_some() {
        collateral.pck_certificate_chain = None;
    }
    let verified = check_cryptography(appraisal, evidence, collateral, root, dated)?;
    let status = check_platform(appraisal, &verified, &policy.tdx)?;
    Some(TdxClaims::new(&quote, &verified, status))
}

fn parse_quote(appraisal: &mut Appraisal, bytes: &[u8]) -> Option<Quote> {
    match Quote::parse(bytes) {
        Ok(quote) => Some(quote),
        Err(error) => {
            let (code, expected) = match error {
                QuoteError::Unknown { .. } => (ReasonCode::TdxQuoteVersion, "a TDX quote of version 4 or 5"),
                _ => (ReasonCode::TdxQuoteMalformed, "the layout of a TDX quote"),
            };
            appraisal.refuse(code, "quote", expected, error.to_string());
            None
        }
    }
}

fn pck_chain(appraisal: &mut Appraisal, quote: &Quote, collateral: &Collateral) -> Option<Vec<Vec<u8>>> {
    if let Some(chain) = &quote.pck_chain {
        return Some(chain.clone());
    }
    let at = "collateral.pck_certificate_chain";
    match collateral
        .pck_certificate_chain
        .as_ref()
        .map(|text| pem_chain(text.as_bytes()))
    {
        Some(Ok(chain)) => Some(chain),
        Some(Err(())) => {
            appraisal.refuse(
                ReasonCode::TdxCollateralMalformed,
                at,
                "a PEM chain",
                "something else",
            );
            None
        }
        None => {
            appraisal.refuse(
                ReasonCode::ChainMissing,
                at,
                "the PCK chain, as the quote has none",
                "nothing",
            );
            None
        }
    }
}

/// `dcap-qvl` ends paths at the pinned root and never looks at the copy that came along.
fn check_root(appraisal: &mut Appraisal, pck_chain: &[Vec<u8>], root: &[u8]) -> bool {
    let carried = pck_chain.get(2).map(Vec::as_slice).unwrap_or_default();
    let holds = carried == root || pck_chain.len() == 2;
    let found = if holds { "that" } else { "another" };
    appraisal.require(
        ReasonCode::ChainRoot,
        "quote PCK chain[2]",
        holds,
        "the pinned root",
        found,
    )
}

fn read_parts(
    appraisal: &mut Appraisal,
    collateral: &Collateral,
    pck_chain: &[Vec<u8>],
) -> Option<Vec<DatedPart>> {
    match dated_parts(collateral, pck_chain) {
        Ok(parts) => Some(parts),
        Err(error) => {
            let expected = "readable parts";
            appraisal.refuse(
                ReasonCode::TdxCollateralMalformed,
                "collateral",
                expected,
                error.to_string(),
            );
            None
        }
    }
}

/// An instant to judge the rest at, and whether it lies in all windows.
struct Dated {
    instant: Timestamp,
    all_current: bool,
}

/// Requires every part to be current. The rest is then judged at the nearest instant at which all are, so that one
/// stale part does not hide what else is wrong.
fn check_dates(appraisal: &mut Appraisal, parts: &[DatedPart], policy: &Policy, now: Timestamp) -> Dated {
    let codes = (
        ReasonCode::TdxCollateralNotYetValid,
        ReasonCode::TdxCollateralExpired,
    );
    let mut all_current = true;
    for part in parts {
        all_current &=
            appraisal.require_current(codes, part.at.clone(), &part.window, now, policy.tolerance());
    }
    let from = parts.iter().map(|part| part.window.from).max().unwrap_or(now);
    let until = parts.iter().map(|part| part.window.until).min().unwrap_or(now);
    // Revocation lists end before their last second.
    let instant = if from <= until {
        now.clamp(from, until.minus_seconds(1).max(from))
    } else {
        now
    };
    let instant = if from <= now && now <= until { now } else { instant };
    Dated { instant, all_current }
}

fn check_cryptography(
    appraisal: &mut Appraisal,
    evidence: &TdxEvidence,
    collateral: Collateral,
    root: &[u8],
    dated: Dated,
) -> Option<QuoteClaims> {
    let now = dated.instant.0;
    // Debug and service domains are this crate's to judge, with codes of its own.
    let verifier = QuoteVerifier::<RustCryptoConfig>::new_with_config(root.to_vec())
        .allow_debug(true)
        .allow_service_td(true);
    let result =
        verifier.verify_with_policy(&evidence.quote, collateral, now, &QuotePolicy::claims_only(now));
    match result {
        Ok(claims) => {
            let at = "quote and collateral";
            appraisal.require(
                ReasonCode::TdxUnverified,
                at,
                true,
                "Intel's signatures throughout",
                "verifies",
            );
            Some(claims)
        }
        Err(error) => {
            let text = format!("{error:#}");
            let code = classify(&text);
            let about_dates = matches!(
                code,
                ReasonCode::TdxCollateralExpired | ReasonCode::TdxCollateralNotYetValid
            );
            let known = appraisal.has_failed(code) || (about_dates && !dated.all_current);
            if !known {
                appraisal.refuse(code, "quote and collateral", code.meaning(), text);
            }
            None
        }
    }
}
