//! What the administrator does: secrets, their policies, the list, the log.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Query, State as Extract};
use axum::http::{HeaderMap, StatusCode};
use cloak_attestation::Policy;
use serde::{Deserialize, Serialize};

use super::credentials::bearer;
use super::error::Refusal;
use super::release::{Parts, resource_path};
use super::state::State;
use crate::audit::{Action, Decision, Entry, Outcome};
use crate::path::{Listed, ResourcePath};
use crate::protocol::Problem;
use crate::store::{Change, PAGE, Row};

/// What a change made.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    path: ResourcePath,
    version: u64,
}

/// Which entries of the log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    #[serde(default)]
    after: u64,
    #[serde(default = "page")]
    limit: u32,
}

fn page() -> u32 {
    PAGE
}

/// Admits the administrator, or writes down that it was someone else.
async fn admit(
    state: &State,
    peer: SocketAddr,
    headers: &HeaderMap,
    action: Action,
    path: Option<&ResourcePath>,
) -> Result<Decision, Refusal> {
    let mut decision = Decision::new(action, Outcome::Granted);
    decision.peer = Some(peer.ip().to_string());
    decision.resource = path.cloned();
    if state.is_admin(bearer(headers)) {
        return Ok(decision);
    }
    let detail = "this needs the administrator's token";
    decision.outcome = Outcome::Refused;
    decision.reasons.push(detail.to_owned());
    state.decide(decision).await?;
    Err(Refusal::unauthorized(Problem::AdminAuth, detail))
}

fn missing(path: &ResourcePath) -> Refusal {
    let detail = format!("there is no secret {path}");
    Refusal::new(StatusCode::NOT_FOUND, Problem::InvalidRequestPath, detail)
}

pub(super) async fn put_secret(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    parts: Parts,
    headers: HeaderMap,
    secret: Bytes,
) -> Result<Json<Written>, Refusal> {
    let path = resource_path(parts)?;
    let decision = admit(&state, peer, &headers, Action::PutSecret, Some(&path)).await?;
    if secret.is_empty() {
        return Err(Refusal::malformed("a secret has at least one byte"));
    }
    let before = state.store.read(&path).await?;
    let expected = before.as_ref().map(|row| row.version);
    let policy = before.and_then(|row| row.policy);
    write(&state, decision, path, expected, policy, &secret).await
}

pub(super) async fn put_policy(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    parts: Parts,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Written>, Refusal> {
    let path = resource_path(parts)?;
    let mut decision = admit(&state, peer, &headers, Action::PutPolicy, Some(&path)).await?;
    let text = std::str::from_utf8(&body).map_err(|error| Refusal::malformed(error.to_string()))?;
    let policy = Policy::from_toml(text).map_err(|error| Refusal::malformed(error.to_string()))?;
    if policy.references.is_empty() {
        let detail = "a secret's policy needs at least one [[reference]]: without, any guest would get it";
        return Err(Refusal::malformed(detail));
    }
    let row = state.store.read(&path).await?.ok_or_else(|| missing(&path))?;
    let secret = state
        .sealer
        .open(&path, row.version, row.policy.as_deref(), &row.sealed)?;
    decision.policy = Some(policy.digest().to_string());
    write(
        &state,
        decision,
        path,
        Some(row.version),
        Some(text.to_owned()),
        &secret,
    )
    .await
}

async fn write(
    state: &State,
    mut decision: Decision,
    path: ResourcePath,
    expected: Option<u64>,
    policy: Option<String>,
    secret: &[u8],
) -> Result<Json<Written>, Refusal> {
    let version = expected.unwrap_or(0) + 1;
    let sealed = state.sealer.seal(&path, version, policy.as_deref(), secret)?;
    let row = Row {
        version,
        policy,
        sealed,
    };
    decision.version = Some(version);
    let change = Change::Write {
        path: path.clone(),
        expected,
        row,
    };
    state.change(decision, change).await?;
    Ok(Json(Written { path, version }))
}

pub(super) async fn remove(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    parts: Parts,
    headers: HeaderMap,
) -> Result<StatusCode, Refusal> {
    let path = resource_path(parts)?;
    let mut decision = admit(&state, peer, &headers, Action::Remove, Some(&path)).await?;
    let row = state.store.read(&path).await?.ok_or_else(|| missing(&path))?;
    decision.version = Some(row.version);
    let change = Change::Remove {
        path,
        expected: row.version,
    };
    state.change(decision, change).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn list(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Result<Json<Vec<Listed>>, Refusal> {
    let decision = admit(&state, peer, &headers, Action::List, None).await?;
    let list = state.store.list().await?;
    state.decide(decision).await?;
    Ok(Json(list))
}

pub(super) async fn audit(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    query: Result<Query<AuditQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<Entry>>, Refusal> {
    let decision = admit(&state, peer, &headers, Action::ReadAudit, None).await?;
    let Query(query) = query.map_err(|error| Refusal::malformed(error.body_text()))?;
    if !(1..=PAGE).contains(&query.limit) || i64::try_from(query.after).is_err() {
        return Err(Refusal::malformed(format!(
            "limit is 1 to {PAGE}, after is below 2^63"
        )));
    }
    // The reading is written down first, so the last page shows it.
    state.decide(decision).await?;
    Ok(Json(state.store.audit(query.after, query.limit).await?))
}
