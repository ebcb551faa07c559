//! Reports: any bytes; every accessor of what parses.
#![no_main]

use cloak_attestation::snp::{Product, Report};
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(cloak_fuzz_attestation::reports), |bytes: &[u8]| {
    if let Ok(report) = Report::parse(bytes) {
        let _ = (report.signature(), report.reserved_violations(), report.product(), report.mitigations());
        for product in Product::ALL {
            let tcb = report.reported_tcb();
            let _ = (tcb.components(product), tcb.reserved(product));
        }
    }
});
