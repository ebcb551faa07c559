//! The GHCB certificate table.
#![no_main]

use cloak_attestation::snp::CertTable;
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(|| [cloak_fuzz_attestation::cert_table()]), |bytes: &[u8]| {
    if let Ok(table) = CertTable::parse(bytes) {
        let _ = table.into_evidence(bytes.to_vec());
    }
});
