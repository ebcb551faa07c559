//! Evidence that the targets start from, in every form: what the packages `sev` and `dcap-qvl` carry, the collection
//! beside the repository, and envelopes that are put together of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloak_attestation::bytes::{Bytes32, Bytes48, Bytes64};
use cloak_attestation::evidence::{Attestation, Event, SnpEvidence, TdxEvidence};
use cloak_attestation::software::SoftwareClaims;
use cloak_attestation::tdx::parse_collateral;
use cloak_attestation::time::Timestamp;
use cloak_attestation::token::{Ear, Status, Trustworthiness};
use cloak_attestation::{Evidence, EvidenceKind};
use cloak_fuzz_seeds::{carried, carried_file, collected};
use p256::ecdsa::SigningKey;

/// When the targets judge: within the dates of most of the real evidence.
pub const NOW: Timestamp = Timestamp(1_750_400_000);

/// The key of software evidence and tokens.
pub fn signing_key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).expect("a scalar")
}

/// A result that is good at [`NOW`].
pub fn ear() -> Ear {
    Ear {
        issued_at: NOW,
        expires_at: Timestamp(NOW.0 + 300),
        status: Status::Affirming,
        trustworthiness: Trustworthiness {
            configuration: 2,
            executables: 2,
            hardware: 2,
            runtime_opaque: 2,
        },
        policy_digest: Some(Bytes32::ZERO),
        kind: Some(EvidenceKind::SevSnp),
        measurement: Some(Bytes48::ZERO),
        report_data: Some(Bytes64::ZERO),
        reasons: vec!["chain.expired".to_owned()],
    }
}

/// A statement of that key.
pub fn software(manifest_digest: Bytes32) -> Evidence {
    let claims = SoftwareClaims {
        measurement: Bytes48::ZERO,
        manifest_digest,
        report_data: Bytes64::ZERO,
        issued_at: NOW,
    };
    Attestation::Software(claims.sign(&signing_key())).into()
}

/// SNP reports of Milan and Turin.
pub fn reports() -> Vec<Vec<u8>> {
    let text = carried_file("sev", "tests/certs_data/report_milan.hex");
    let mut reports = vec![hex::decode(text.trim_ascii()).expect("hexadecimal")];
    let others = ["ms-tav", "go-sev-guest"].into_iter().flat_map(collected);
    reports.extend(others.filter(|file| file.len() == cloak_attestation::snp::REPORT_BYTES));
    reports
}

/// AMD's certificates, DER and PEM.
pub fn certificates() -> Vec<Vec<u8>> {
    let folders = ["ms-tav", "go-sev-guest", "sev-crate", "enarx"];
    let all = folders.into_iter().flat_map(collected);
    let mut all: Vec<_> = all
        .filter(|file| file.starts_with(b"-----BEGIN") || file.starts_with(&[0x30, 0x82]))
        .collect();
    all.push(vcek());
    all
}

/// A GHCB certificate table with one certificate (GHCB specification 2.03, §4.1.8.1).
pub fn cert_table() -> Vec<u8> {
    const VCEK: &str = "63da758de6644564adc5f4b93be8accd";
    let certificate = vcek();
    let mut table = hex::decode(VCEK).expect("hexadecimal");
    table.extend(48u32.to_le_bytes());
    table.extend((certificate.len() as u32).to_le_bytes());
    table.extend([0; 24]);
    table.extend(certificate);
    table
}

/// Quotes of TDX 1.0 and 1.5, and one of SGX.
pub fn quotes() -> Vec<Vec<u8>> {
    let samples = carried("dcap-qvl", "sample").into_iter();
    samples
        .filter(|file| !file.starts_with(b"{") && !file.is_ascii())
        .collect()
}

/// `QuoteCollateralV3` JSON.
pub fn collateral() -> Vec<Vec<u8>> {
    let samples = carried("dcap-qvl", "sample").into_iter();
    samples.filter(|file| file.starts_with(b"{")).collect()
}

/// Evidence in every form that is read.
pub fn evidence() -> Vec<Vec<u8>> {
    let (reports, quotes) = (reports(), quotes());
    let mut all = Vec::new();
    for report in &reports {
        let evidence = SnpEvidence {
            report: report.clone(),
            vek: Some(vcek()),
            ..SnpEvidence::default()
        };
        all.push(Evidence::from(Attestation::SevSnp(evidence)).to_cbor());
        all.push(
            format!(
                "{{\"attestation_report\":\"{}\",\"cert_chain\":null}}",
                STANDARD.encode(report)
            )
            .into_bytes(),
        );
        all.push(hcl(report));
    }
    for json in collateral() {
        let collateral = parse_collateral(&json).ok().map(Box::new);
        let quote = carried_file("dcap-qvl", "sample/tdx_quote");
        let evidence = TdxEvidence {
            quote,
            collateral,
            root: None,
        };
        all.push(Evidence::from(Attestation::Tdx(evidence)).to_cbor());
    }
    for quote in &quotes {
        all.push(format!("{{\"quote\":\"{}\"}}", STANDARD.encode(quote)).into_bytes());
    }
    let mut whole = software(Bytes32::ZERO);
    whole.manifest = Some(b"version = 1".to_vec());
    whole.event_log = vec![Event {
        rtmr: 2,
        digest: Bytes48::ZERO,
        data: None,
    }];
    whole.runtime_data = Some(b"{}".to_vec());
    all.push(whole.to_cbor());
    all.extend(reports);
    all.extend(quotes);
    all
}

fn vcek() -> Vec<u8> {
    carried_file("sev", "tests/certs_data/vcek_milan.der")
}

/// Azure's form around a report, with runtime data.
fn hcl(report: &[u8]) -> Vec<u8> {
    let data = br#"{"keys":[]}"#;
    let mut bytes = b"HCLA".to_vec();
    bytes.extend([0; 28]);
    bytes.extend(report);
    for word in [data.len() as u32 + 20, 1, 2, 1, data.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(data);
    bytes
}
