//! Puts a reason code on what `dcap-qvl` says.
//!
//! It stops at the first failure and gives a chain of texts. The table below names those texts; tests run real and
//! simulated failures through it, so a new release of the crate that words them otherwise shows. A text that is not
//! in the table is refused all the same, as `tdx.unverified`.

use crate::verdict::ReasonCode;

/// Text that an error contains, and its code. The first that fits counts.
const TABLE: &[(&str, ReasonCode)] = &[
    ("TCB status is invalid: Revoked", ReasonCode::TdxTcbRevoked),
    ("CertRevoked", ReasonCode::ChainRevoked),
    ("CertNotValidYet", ReasonCode::TdxCollateralNotYetValid),
    (
        "issue date is in the future",
        ReasonCode::TdxCollateralNotYetValid,
    ),
    ("CertExpired", ReasonCode::TdxCollateralExpired),
    ("CrlExpired", ReasonCode::TdxCollateralExpired),
    ("TCBInfo expired", ReasonCode::TdxCollateralExpired),
    ("QE Identity expired", ReasonCode::TdxCollateralExpired),
    (
        "Signature is invalid for tcb_info",
        ReasonCode::TdxCollateralSignature,
    ),
    (
        "Signature is invalid for qe_identity",
        ReasonCode::TdxCollateralSignature,
    ),
    ("Failed to parse root CA CRL", ReasonCode::TdxCollateralSignature),
    (
        "InvalidCrlSignatureForPublicKey",
        ReasonCode::TdxCollateralSignature,
    ),
    ("UnknownRevocationStatus", ReasonCode::CrlMissing),
    ("UnknownIssuer", ReasonCode::ChainSignature),
    ("InvalidSignatureForPublicKey", ReasonCode::ChainSignature),
    ("must be issued directly by the root", ReasonCode::ChainName),
    ("Fmspc mismatch", ReasonCode::TdxFmspc),
    ("non-TDX TCB info", ReasonCode::TdxCollateralType),
    ("Unsupported QE Identity id", ReasonCode::TdxCollateralType),
    ("Failed to decode TcbInfo", ReasonCode::TdxCollateralMalformed),
    ("Failed to decode QeIdentity", ReasonCode::TdxCollateralMalformed),
    ("Failed to parse PCK CRL", ReasonCode::TdxCollateralMalformed),
    (
        "ISV enclave report signature is invalid",
        ReasonCode::TdxQuoteSignature,
    ),
    ("Signature is invalid for qe_report", ReasonCode::TdxQe),
    ("QE report", ReasonCode::TdxQe),
    ("QE MRSIGNER", ReasonCode::TdxQe),
    ("QE ISVPRODID", ReasonCode::TdxQe),
    ("QE ISVSVN", ReasonCode::TdxQe),
    ("QE MISCSELECT", ReasonCode::TdxQe),
    ("QE ATTRIBUTES", ReasonCode::TdxQe),
    ("Invalid QE auth data length", ReasonCode::TdxQe),
    ("TDX module ISVSVN", ReasonCode::TdxTcbUnmatched),
    ("No matching TCB level found", ReasonCode::TdxTcbUnmatched),
    ("TDX module", ReasonCode::TdxModule),
    ("TD migration is enabled", ReasonCode::TdxMigratable),
    ("SEPT_VE_DISABLE is not enabled", ReasonCode::TdxSeptVe),
    ("SERVTD_EXT is enabled", ReasonCode::TdxServiceTd),
    (
        "Reserved bits in TD attributes",
        ReasonCode::TdxAttributesReserved,
    ),
    ("Failed to decode quote", ReasonCode::TdxQuoteMalformed),
];

/// The code for an error of `dcap-qvl`, given with its causes.
pub(super) fn classify(error: &str) -> ReasonCode {
    let fits = TABLE.iter().find(|(text, _)| error.contains(text));
    fits.map_or(ReasonCode::TdxUnverified, |&(_, code)| code)
}
