//! Reports: any bytes; every accessor of what parses.
#![no_main]

use cloak_attestation::snp::{Product, Report};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(report) = Report::parse(bytes) {
        let _ = (report.signature(), report.reserved_violations(), report.product(), report.mitigations());
        for product in Product::ALL {
            let tcb = report.reported_tcb();
            let _ = (tcb.components(product), tcb.reserved(product));
        }
    }
});
