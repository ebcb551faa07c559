//! Writes what Intel publishes: TCB info and QE identity, signed.

use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

use super::tdx_quote::{FMSPC, QE_ISV_SVN, QE_MR_SIGNER, QE_PRODUCT};
use super::tdx_world::{TdxFault, TdxSpec};
use crate::time::Timestamp;

/// A signed JSON text and its raw signature.
pub(super) struct SignedText {
    pub(super) text: String,
    pub(super) signature: Vec<u8>,
}

pub(super) fn tcb_info(spec: &TdxSpec, key: &SigningKey) -> SignedText {
    let fmspc = if spec.fault == Some(TdxFault::OtherFmspc) {
        "00906EA10000".to_owned()
    } else {
        upper(&FMSPC)
    };
    let required = if spec.fault == Some(TdxFault::BelowEveryLevel) {
        99
    } else {
        1
    };
    let components = |svn: u8| -> Vec<Value> { (0..16).map(|_| json!({ "svn": svn })).collect() };
    let mut tdx = components(0);
    tdx[0] = json!({ "svn": required });
    sign(
        key,
        json!({
            "id": if spec.fault == Some(TdxFault::SgxCollateral) { "SGX" } else { "TDX" },
            "version": 3,
            "issueDate": instant(spec.window.from),
            "nextUpdate": instant(spec.window.until),
            "fmspc": fmspc,
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": spec.evaluation,
            "tdxModule": {
                "mrsigner": "00".repeat(48),
                "attributes": "0000000000000000",
                "attributesMask": "FFFFFFFFFFFFFFFF",
            },
            "tcbLevels": [{
                "tcb": { "sgxtcbcomponents": components(0), "pcesvn": 0, "tdxtcbcomponents": tdx },
                "tcbDate": instant(spec.window.from),
                "tcbStatus": spec.tcb_status,
                "advisoryIDs": spec.advisories,
            }],
        }),
    )
}

pub(super) fn qe_identity(spec: &TdxSpec, key: &SigningKey) -> SignedText {
    sign(
        key,
        json!({
            "id": "TD_QE",
            "version": 2,
            "issueDate": instant(spec.window.from),
            "nextUpdate": instant(spec.window.until),
            "tcbEvaluationDataNumber": spec.evaluation,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": upper(&QE_MR_SIGNER),
            "isvprodid": QE_PRODUCT,
            "tcbLevels": [{
                "tcb": { "isvsvn": QE_ISV_SVN },
                "tcbDate": instant(spec.window.from),
                "tcbStatus": "UpToDate",
            }],
        }),
    )
}

fn sign(key: &SigningKey, value: Value) -> SignedText {
    let text = value.to_string();
    let signature: Signature = key.sign(text.as_bytes());
    SignedText {
        text,
        signature: signature.to_bytes().to_vec(),
    }
}

fn instant(time: Timestamp) -> String {
    time.to_string()
}

fn upper(bytes: &[u8]) -> String {
    hex::encode_upper(bytes)
}
