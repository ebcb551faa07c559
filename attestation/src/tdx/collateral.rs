//! Collateral: what Intel publishes about a platform, in the JSON form that `QuoteCollateralV3` has (PCS).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::dates::{certificate_window, list_window};

use crate::time::{Timestamp, Window};

/// TCB info has about 15 KB; ten times all parts together.
const MAX_COLLATERAL_BYTES: usize = 512 * 1024;
/// Intel's chains have three certificates.
const MAX_CHAIN: usize = 4;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Collateral as `dcap-qvl` and Intel's tools write it.
pub type Collateral = dcap_qvl::QuoteCollateralV3;

/// Why a part of the collateral cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollateralError {
    /// Larger than any collateral.
    #[error("{0} bytes, more than {MAX_COLLATERAL_BYTES}")]
    Size(usize),
    /// Not the JSON of `QuoteCollateralV3`.
    #[error("not QuoteCollateralV3 JSON: {0}")]
    Json(String),
    /// A chain that is not PEM, or too long.
    #[error("{0} is not a PEM chain of one to {MAX_CHAIN} certificates")]
    Pem(&'static str),
    /// A list that is not DER.
    #[error("{0} is not a DER revocation list with nextUpdate")]
    Crl(&'static str),
    /// A date that cannot be read.
    #[error("{0} has no readable issueDate and nextUpdate")]
    Dates(&'static str),
}

/// Reads collateral.
///
/// # Errors
/// [`CollateralError`] if it is too large or not the JSON of `QuoteCollateralV3`.
pub fn parse_collateral(json: &[u8]) -> Result<Collateral, CollateralError> {
    if json.len() > MAX_COLLATERAL_BYTES {
        return Err(CollateralError::Size(json.len()));
    }
    serde_json::from_slice(json).map_err(|error| CollateralError::Json(error.to_string()))
}

/// When a named part may be used.
#[derive(Debug, Clone)]
pub(super) struct DatedPart {
    pub(super) at: String,
    pub(super) window: Window,
}

/// The window of every part, or what of it cannot be read.
pub(super) fn dated_parts(
    collateral: &Collateral,
    pck_chain: &[Vec<u8>],
) -> Result<Vec<DatedPart>, CollateralError> {
    let mut parts = Vec::new();
    for (at, json) in [
        ("tcb_info", &collateral.tcb_info),
        ("qe_identity", &collateral.qe_identity),
    ] {
        parts.push(DatedPart {
            at: format!("collateral.{at}"),
            window: json_window(at, json)?,
        });
    }
    for (at, der) in [
        ("root_ca_crl", &collateral.root_ca_crl),
        ("pck_crl", &collateral.pck_crl),
    ] {
        parts.push(DatedPart {
            at: format!("collateral.{at}"),
            window: list_window(der).map_err(|_| CollateralError::Crl(at))?,
        });
    }
    let mut seen = "";
    for (at, text) in [
        ("tcb_info_issuer_chain", &collateral.tcb_info_issuer_chain),
        ("qe_identity_issuer_chain", &collateral.qe_identity_issuer_chain),
    ] {
        // Intel signs both with one certificate, so the second chain is mostly the first again.
        if !seen.is_empty() && text == seen {
            continue;
        }
        seen = text;
        let chain = pem_chain(text.as_bytes()).map_err(|()| CollateralError::Pem(at))?;
        push_chain(
            &mut parts,
            &format!("collateral.{at}"),
            &chain,
            CollateralError::Pem(at),
        )?;
    }
    push_chain(
        &mut parts,
        "quote PCK chain",
        pck_chain,
        CollateralError::Pem("the PCK chain"),
    )?;
    Ok(parts)
}

fn push_chain(
    parts: &mut Vec<DatedPart>,
    at: &str,
    chain: &[Vec<u8>],
    error: CollateralError,
) -> Result<(), CollateralError> {
    for (index, der) in chain.iter().enumerate() {
        // `dcap-qvl` judges the certificate; here only its dates are read.
        let window = certificate_window(der).map_err(|_| error.clone())?;
        parts.push(DatedPart {
            at: format!("{at}[{index}]"),
            window,
        });
    }
    Ok(())
}

fn json_window(at: &'static str, json: &str) -> Result<Window, CollateralError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Dates {
        issue_date: String,
        next_update: String,
    }
    let dates: Dates = serde_json::from_str(json).map_err(|_| CollateralError::Dates(at))?;
    let instant = |text: &str| text.parse::<Timestamp>().map_err(|_| CollateralError::Dates(at));
    Ok(Window {
        from: instant(&dates.issue_date)?,
        until: instant(&dates.next_update)?,
    })
}

/// The root that collateral names, DER: the last of a chain, which nothing has verified here.
pub(crate) fn root_of(collateral: &Collateral) -> Option<Vec<u8>> {
    pem_chain(collateral.pck_crl_issuer_chain.as_bytes()).ok()?.pop()
}

/// The certificates of a PEM text, DER. Text between them is not allowed.
pub(super) fn pem_chain(text: &[u8]) -> Result<Vec<Vec<u8>>, ()> {
    let mut rest = std::str::from_utf8(text)
        .map_err(|_| ())?
        .trim_end_matches('\0')
        .trim();
    let mut chain = Vec::new();
    while !rest.is_empty() {
        let (body, after) = rest
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.split_once(END))
            .ok_or(())?;
        let digits: String = body.split_ascii_whitespace().collect();
        chain.push(STANDARD.decode(digits).map_err(|_| ())?);
        if chain.len() > MAX_CHAIN {
            return Err(());
        }
        rest = after.trim_start();
    }
    if chain.is_empty() { Err(()) } else { Ok(chain) }
}

/// PEM as RFC 7468 has it: 64 characters to a line, a newline after each.
pub(crate) fn to_pem(der: &[u8]) -> String {
    let digits = STANDARD.encode(der);
    let mut pem = format!("{BEGIN}\n");
    let mut rest = digits.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(END);
    pem.push('\n');
    pem
}
