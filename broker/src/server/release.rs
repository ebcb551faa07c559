//! `GET /resource/…`: the release of a secret.
//!
//! Its policy, as it is now, judges the evidence that the session showed, as of now; so do the attestation policy as
//! it is now, if it was changed since. A verdict is remembered for the session and the policy's digest.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cloak_attestation::Verifier;

use super::attest::codes;
use super::credentials::attested;
use super::error::Refusal;
use super::state::State;
use crate::audit::{Action, Decision, Outcome};
use crate::path::ResourcePath;
use crate::protocol::Problem;
use crate::session::Attested;

/// Path segments; an error where they are not UTF-8.
pub(super) type Parts = Result<Path<(String, String, String)>, PathRejection>;

pub(super) fn resource_path(parts: Parts) -> Result<ResourcePath, Refusal> {
    let refuse = |detail| Refusal::new(StatusCode::NOT_FOUND, Problem::InvalidRequestPath, detail);
    let Path((repository, kind, tag)) = parts.map_err(|error| refuse(error.body_text()))?;
    ResourcePath::new(&repository, &kind, &tag).map_err(|error| refuse(error.to_string()))
}

pub(super) async fn get(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    parts: Parts,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let path = resource_path(parts)?;
    let mut decision = Decision::new(Action::Release, Outcome::Refused);
    decision.peer = Some(peer.ip().to_string());
    decision.resource = Some(path.clone());
    let released = release(&state, &path, &headers, &mut decision).await;
    state.metrics.released(released.is_ok());
    match released {
        Ok(answer) => {
            decision.outcome = Outcome::Granted;
            state.decide(decision).await?;
            let no_store = [(header::CACHE_CONTROL, "no-store")];
            Ok((no_store, Json(answer)).into_response())
        }
        Err(refusal) => {
            if decision.reasons.is_empty() {
                decision.reasons.push(refusal.detail.clone());
            }
            state.decide(decision).await?;
            Err(refusal)
        }
    }
}

async fn release(
    state: &State,
    path: &ResourcePath,
    headers: &HeaderMap,
    decision: &mut Decision,
) -> Result<crate::protocol::Response, Refusal> {
    let session = attested(state, headers)?;
    decision.subject = Some(session.token.to_text());
    decision.kind = Some(session.evidence.kind().to_string());
    let attestation = state.current().attestation.clone();
    passes(state, &session, &attestation, decision).await?;
    let row = state.store.read(path).await?.ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            Problem::InvalidRequestPath,
            format!("there is no secret {path}"),
        )
    })?;
    decision.version = Some(row.version);
    let Some(policy) = &row.policy else {
        return Err(denied("the secret has no policy yet, so nobody may have it"));
    };
    let verifier = state
        .judge
        .verifier(policy)
        .map_err(|error| Refusal::internal(&error))?;
    if verifier.policy().references.is_empty() {
        return Err(denied(
            "the secret's policy names no measurement, so nobody may have it",
        ));
    }
    passes(state, &session, &verifier, decision).await?;
    let secret = state
        .sealer
        .open(path, row.version, row.policy.as_deref(), &row.sealed)?;
    let answer = session.recipient.encrypt(&secret);
    answer.map_err(|error| Refusal::unauthorized(Problem::JweError, error.to_string()))
}

async fn passes(
    state: &State,
    session: &Attested,
    verifier: &Arc<Verifier>,
    decision: &mut Decision,
) -> Result<(), Refusal> {
    let digest = verifier.policy().digest();
    decision.policy = Some(digest.to_string());
    if session.has_passed(&digest) {
        return Ok(());
    }
    match state
        .judge
        .judge(verifier, &session.evidence, session.report_data)
        .await
    {
        Ok(verified) => {
            decision.measurement = Some(verified.measurement().to_string());
            session.remember(digest);
            Ok(())
        }
        Err(refused) => {
            decision.reasons = codes(&refused);
            let reasons = decision.reasons.join(", ");
            Err(denied(format!("the policy refuses this guest: {reasons}")))
        }
    }
}

fn denied(detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, Problem::PolicyDeny, detail)
}
