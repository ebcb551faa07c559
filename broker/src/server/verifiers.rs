//! Verifiers of the policies in use, and the threads that judge.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cloak_attestation::bytes::Bytes64;
use cloak_attestation::evidence::{Attestation, Collateral};
use cloak_attestation::policy::PolicyError;
use cloak_attestation::time::Timestamp;
use cloak_attestation::{Evidence, Policy, Refused, Request, VerifiedEvidence, Verifier};
use tokio::sync::Semaphore;

/// Policies that are kept parsed.
const KEPT: usize = 256;

/// Judges evidence, as many at a time as there are processors.
pub(super) struct Judge {
    by_text: Mutex<HashMap<String, Arc<Verifier>>>,
    processors: Semaphore,
    collateral: Vec<Collateral>,
}

impl Judge {
    pub(super) fn new(collateral: Vec<Collateral>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            by_text: Mutex::default(),
            processors: Semaphore::new(processors),
            collateral,
        }
    }

    /// The verifier of a policy text, kept for the next time.
    pub(super) fn verifier(&self, text: &str) -> Result<Arc<Verifier>, PolicyError> {
        let mut kept = self.by_text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verifier) = kept.get(text) {
            return Ok(Arc::clone(verifier));
        }
        let verifier = Arc::new(Verifier::new(Policy::from_toml(text)?));
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(text.to_owned(), Arc::clone(&verifier));
        Ok(verifier)
    }

    /// Judges `evidence`, which has to have this REPORT_DATA, as of now.
    pub(super) async fn judge(
        &self,
        verifier: &Arc<Verifier>,
        evidence: &Evidence,
        report_data: Bytes64,
    ) -> Result<VerifiedEvidence, Refused> {
        let verifier = Arc::clone(verifier);
        let evidence = self.complete(evidence.clone());
        // The semaphore is never closed; were it, work would go on unbounded rather than stop.
        let permit = self.processors.acquire().await;
        let work = tokio::task::spawn_blocking(move || {
            let request = Request::at(Timestamp::now()).with_report_data(report_data);
            verifier.verify(&evidence, &request)
        });
        let verdict = work.await;
        drop(permit);
        match verdict {
            Ok(verdict) => verdict,
            // A verifier that panics has not verified.
            Err(_) => Err(Refused {
                reasons: Vec::new(),
                checks: Vec::new(),
            }),
        }
    }

    /// A quote that came alone gets the collateral of its processor family, if there is one here.
    fn complete(&self, mut evidence: Evidence) -> Evidence {
        let simulated = matches!(evidence.attestation, Attestation::SimulatedTdx(_));
        if let Attestation::Tdx(tdx) | Attestation::SimulatedTdx(tdx) = &mut evidence.attestation
            && tdx.collateral.is_none()
            && let Some(fmspc) = cloak_attestation::tdx::fmspc_of_quote(&tdx.quote)
        {
            let fits = |candidate: &&Collateral| {
                cloak_attestation::tdx::fmspc_of_collateral(candidate) == Some(fmspc)
            };
            if let Some(collateral) = self.collateral.iter().find(fits) {
                *tdx = std::mem::take(tdx).with_collateral(collateral.clone(), simulated);
            }
        }
        evidence
    }
}
