//! Evidence as other tools write it: certificate table, Confidential Containers' JSON, Azure's HCL report.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloak_attestation::evidence::{Attestation, Companions, EvidenceError, HclReport};
use cloak_attestation::{Evidence, Policy};
use serde_json::json;
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::{CertTableEntry, CertType};
use sev::parser::ByteParser as _;
use sha2::{Digest, Sha256};

use crate::vectors::{codes, dcap_qvl, judge, sev as sev_file, sev_milan};

fn read(bytes: &[u8]) -> Result<Evidence, EvidenceError> {
    Evidence::read(bytes, Companions::default())
}

#[test]
fn the_certificate_table_that_a_host_writes() {
    let vcek = sev_file("tests/certs_data/vcek_milan.der");
    let entries = vec![CertTableEntry {
        cert_type: CertType::VCEK,
        data: vcek,
    }];
    // Written by the `sev` package, as a host's tool would.
    let table = CertTableEntry::cert_table_to_vec_bytes(&entries).unwrap();
    let mut companions = Companions::default();
    companions.add_certificate_table(&table).unwrap();
    let evidence = Evidence::read(&sev_milan().report, companions).unwrap();
    judge(&Policy::default(), &evidence, "2024-01-01").unwrap();
    assert!(Companions::default().add_certificate_table(&table[..40]).is_err());
}

#[test]
fn confidential_containers_snp() {
    let snp = sev_milan();
    let report = AttestationReport::from_bytes(&snp.report).unwrap();
    let chain = vec![CertTableEntry {
        cert_type: CertType::VCEK,
        data: snp.vek.clone().unwrap(),
    }];
    let parsed = json!({ "attestation_report": report, "cert_chain": chain });
    let evidence = read(parsed.to_string().as_bytes()).unwrap();
    assert_eq!(evidence.attestation, Attestation::SevSnp(snp.clone()));
    judge(&Policy::default(), &evidence, "2024-01-01").unwrap();
    let encoded = json!({ "attestation_report": STANDARD.encode(&snp.report), "cert_chain": null });
    let evidence = read(encoded.to_string().as_bytes()).unwrap();
    assert_eq!(
        codes(judge(&Policy::default(), &evidence, "2024-01-01")),
        ["chain.missing"]
    );
}

#[test]
fn confidential_containers_tdx() {
    let quote = dcap_qvl("sample/tdx_quote");
    let json = json!({ "quote": STANDARD.encode(&quote), "cc_eventlog": null });
    let mut companions = Companions::default();
    companions
        .add_collateral(&dcap_qvl("sample/tdx_quote_collateral.json"))
        .unwrap();
    let evidence = Evidence::read(json.to_string().as_bytes(), companions).unwrap();
    judge(&Policy::default(), &evidence, "1750400000").unwrap();
}

#[test]
fn json_that_is_something_else() {
    for text in [
        "{}",
        "{\"quote\": 1}",
        "{\"quote\": \"*\"}",
        "{\"attestation_report\": {}}",
        "{\"hcl_report\": []}",
    ] {
        assert!(read(text.as_bytes()).is_err(), "{text}");
    }
}

/// An HCL report around `report`, with `data` as its runtime data.
fn hcl(report: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = b"HCLA".to_vec();
    bytes.extend([0; 28]);
    bytes.extend(report);
    for word in [data.len() as u32 + 20, 1, 2, 1, data.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(data);
    bytes.extend([0; 100]);
    bytes
}

#[test]
fn azures_hcl_report() {
    let data = br#"{"keys":[]}"#;
    let bytes = hcl(&sev_milan().report, data);
    let parsed = HclReport::parse(&bytes).unwrap();
    assert_eq!(
        (parsed.report, parsed.runtime_data.as_slice()),
        (sev_milan().report, &data[..])
    );
    let mut companions = Companions::default();
    companions
        .add_certificates(&sev_file("tests/certs_data/vcek_milan.der"))
        .unwrap();
    let evidence = Evidence::read(&bytes, companions).unwrap();
    // This report was made for other data than the runtime data beside it.
    let refused = codes(judge(&Policy::default(), &evidence, "2024-01-01"));
    assert_eq!(refused, ["evidence.runtime-data.mismatch"]);
    for length in 0..bytes.len() - 100 {
        assert!(HclReport::parse(&bytes[..length]).is_err(), "{length}");
    }
    let json = json!({ "hcl_report": STANDARD.encode(&bytes), "vcek": "" });
    assert_eq!(
        read(json.to_string().as_bytes()).unwrap().kind().as_str(),
        "sev-snp"
    );
}

#[test]
fn azures_runtime_data_that_is_bound() {
    use cloak_attestation::sim::SnpWorld;
    use cloak_attestation::snp::{Product, VekKind};
    use cloak_attestation::time::Timestamp;
    let world = SnpWorld::new(Product::Milan, Timestamp(1_780_000_000)).unwrap();
    let spec = world.vek_spec(VekKind::Vcek);
    let endorsement = world.endorse(&spec).unwrap();
    let mut fields = endorsement.fields(&spec);
    fields.report_data.0[..32].copy_from_slice(&Sha256::digest(b"runtime"));
    let evidence = Evidence {
        runtime_data: Some(b"runtime".to_vec()),
        ..Attestation::SimulatedSnp(endorsement.attest(&fields)).into()
    };
    let policy = Policy::from_toml("platforms = [\"simulated-snp\"]").unwrap();
    judge(&policy, &evidence, "1780000000").unwrap();
}
