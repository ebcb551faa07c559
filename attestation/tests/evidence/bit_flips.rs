//! Every bit of real evidence, changed one at a time: each change has to be noticed.
//!
//! All of them, not a sample: 9472 for a report, some 10,900 for a VCEK certificate, some 40,000 for a quote. The
//! verifier's own memory of good certificate signatures keeps this to one signature a change.

use std::sync::atomic::{AtomicUsize, Ordering};

use cloak_attestation::evidence::{SnpEvidence, TdxEvidence};
use cloak_attestation::x509::Cert;
use cloak_attestation::{Evidence, Policy, Verifier};

use crate::vectors::{at, sev_milan, shared, snp_evidence, tdx, tdx_evidence};

/// The bits of `bytes`, up to the byte `end`, whose change `accepted` does not notice.
fn unnoticed(bytes: &[u8], end: usize, accepted: impl Fn(Vec<u8>) -> bool + Sync) -> Vec<usize> {
    let next = AtomicUsize::new(0);
    let bits = end * 8;
    let worker = || {
        let mut unnoticed = Vec::new();
        loop {
            let bit = next.fetch_add(1, Ordering::Relaxed);
            if bit >= bits {
                return unnoticed;
            }
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            if accepted(changed) {
                unnoticed.push(bit);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<usize> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("no panic on changed evidence"))
            .collect()
    });
    all.sort_unstable();
    all
}

fn check(evidence: &SnpEvidence, time: &str) {
    let verifier = Verifier::new(Policy::default());
    let accepted = |evidence: SnpEvidence| verifier.verify(&snp_evidence(evidence), &at(time)).is_ok();
    assert!(
        accepted(evidence.clone()),
        "the evidence is good before it is changed"
    );
    let reports = unnoticed(&evidence.report, evidence.report.len(), |report| {
        accepted(SnpEvidence {
            report,
            ..evidence.clone()
        })
    });
    assert_eq!(
        reports,
        Vec::<usize>::new(),
        "bits of the report that nothing covers"
    );
    let vek = evidence.vek.as_deref().unwrap();
    let certificates = unnoticed(vek, vek.len(), |vek| {
        accepted(SnpEvidence {
            vek: Some(vek),
            ..evidence.clone()
        })
    });
    assert_eq!(
        certificates,
        Vec::<usize>::new(),
        "bits of the certificate that nothing covers"
    );
}

#[test]
fn of_a_milan_report_and_its_vcek() {
    check(&sev_milan(), "2024-01-01");
}

/// The longer TCB and the short chip identity of Turin.
#[test]
fn of_a_turin_report_and_its_vcek() {
    let (Some(report), Some(vek)) = (
        shared("ms-tav/turin_attestation_report.bin"),
        shared("ms-tav/turin_vcek.pem"),
    ) else {
        return;
    };
    let der = Cert::from_der_or_pem(&vek).unwrap().der().to_vec();
    let evidence = SnpEvidence {
        report,
        vek: Some(der),
        ..Default::default()
    };
    check(&evidence, "2026-06-01");
}

fn check_quote(evidence: TdxEvidence, end: usize, time: &str) {
    let verifier = Verifier::new(Policy::default());
    let accepted = |quote: Vec<u8>| {
        let evidence: Evidence = tdx_evidence(TdxEvidence {
            quote,
            ..evidence.clone()
        });
        verifier.verify(&evidence, &at(time)).is_ok()
    };
    assert!(accepted(evidence.quote.clone()));
    assert_eq!(
        unnoticed(&evidence.quote, end, accepted),
        Vec::<usize>::new(),
        "bits of the quote that nothing covers"
    );
}

#[test]
fn of_a_tdx_quote() {
    let evidence = tdx("tdx_quote");
    let end = evidence.quote.len();
    check_quote(evidence, end, "1750400000");
}

/// Up to its PCK chain, which has the form and the checks of the other's. Its collateral has the chain too, so here a quote
/// that names the chain's certificate in another way would do as well, if it had the length of one.
#[test]
fn of_a_tdx_quote_of_version_5() {
    let evidence = tdx("tdx_quote_td15ex");
    let begin = b"-----BEGIN";
    let chain = evidence
        .quote
        .windows(begin.len())
        .position(|window| window == begin);
    check_quote(evidence, chain.unwrap(), "1792454400");
}
