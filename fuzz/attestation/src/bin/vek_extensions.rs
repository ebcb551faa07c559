//! Certificates, and the extensions of those that parse.
#![no_main]

use cloak_attestation::snp::Vek;
use cloak_attestation::x509::Cert;
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(cloak_fuzz_attestation::certificates), |bytes: &[u8]| {
    if let Ok(cert) = Cert::from_der_or_pem(bytes) {
        let _ = (Vek::from_cert(&cert), cert.validity(), cert.may_issue(0), cert.subject_common_name());
    }
});
