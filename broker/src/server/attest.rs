//! `/auth` and `/attest`.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State as Extract};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cloak_attestation::token::Ear;
use cloak_attestation::{Evidence, Refused, VerifiedEvidence};
use serde_json::{Map, Value, json};

use super::credentials::session_id;
use super::error::Refusal;
use super::state::State;
use crate::audit::{Action, Decision, Outcome};
use crate::jwe::Recipient;
use crate::protocol::{
    self, Attestation, AttestationToken, Problem, Request, SELECTED_HASH, SESSION_COOKIE, SUPPORTED_HASHES,
    Tee, TeePublicKey, read_primary_evidence, report_data,
};
use crate::random::random;
use crate::session::{Attested, Challenge, SessionId};

pub(super) async fn auth(Extract(state): Extract<State>, body: Bytes) -> Result<Response, Refusal> {
    let request: Request = parse(&body)?;
    let refuse = |detail: String| Refusal::unauthorized(Problem::AttestationError, detail);
    if !request.version_fits() {
        let spoken = protocol::VERSION;
        return Err(refuse(format!(
            "protocol version {:?}: this broker speaks {spoken}",
            request.version
        )));
    }
    let tee = Tee::from_name(&request.tee)
        .ok_or_else(|| refuse(format!("tee {:?} is not served by this broker", request.tee)))?;
    let hash = request
        .hash_algorithm()
        .ok_or_else(|| refuse("none of sha384, sha512, sha256 is among the supported hashes".to_owned()))?;
    let extra_params = match request.extra_params.get(SUPPORTED_HASHES) {
        Some(_) => json!({ SELECTED_HASH: hash.as_str() }),
        None => Value::String(String::new()),
    };
    let nonce = STANDARD.encode(random::<32>()?);
    let challenge = Challenge {
        tee,
        nonce: nonce.clone(),
        hash,
    };
    let id = state.sessions.open(challenge, state.now())?;
    let answer = protocol::Challenge { nonce, extra_params };
    Ok(with_cookie(id, state.limits.challenge_seconds, Json(answer)))
}

pub(super) async fn attest(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let attestation: Attestation = parse(&body)?;
    let unauthorized = |detail: &str| Refusal::unauthorized(Problem::AttestationError, detail);
    let id =
        session_id(&headers).ok_or_else(|| unauthorized("no session: ask /auth for a challenge first"))?;
    let challenge = state.sessions.take_challenge(&id, state.now()).ok_or_else(|| {
        unauthorized("the session has no open challenge: its nonce was used, or has expired")
    })?;
    if !state.sessions.has_room(body.len(), state.now()) {
        return Err(crate::session::SessionError::Full.into());
    }
    let judged = judge(&state, &challenge, attestation).await;
    let mut decision = Decision::new(Action::Attest, Outcome::Refused);
    decision.peer = Some(peer.ip().to_string());
    decision.kind = Some(challenge.tee.evidence_kind().to_string());
    let good = match judged {
        Ok(good) => good,
        Err(reasons) => {
            state.metrics.attested(challenge.tee.as_str(), false);
            let detail = format!("the evidence is refused: {}", reasons.join(", "));
            decision.reasons = reasons;
            state.decide(decision).await?;
            return Err(unauthorized(&detail));
        }
    };
    let attested = Attested::new(
        good.evidence,
        *good.verified.report_data(),
        good.recipient,
        body.len(),
        *good.verified.policy_digest(),
    )?;
    let subject = attested.token.to_text();
    decision.outcome = Outcome::Granted;
    decision.subject = Some(subject.clone());
    decision.measurement = Some(good.verified.measurement().to_string());
    decision.policy = Some(good.verified.policy_digest().to_string());
    state.decide(decision).await?;
    // After the record, so that no session exists that the log doesn't know of.
    state.sessions.attest(id, attested, state.now())?;
    state.metrics.attested(challenge.tee.as_str(), true);
    let seconds = state.limits.session_seconds;
    let ear = Ear::for_verified(&good.verified, seconds.into());
    let token = ear.to_jwt_with(&state.token_key, claims(&state, subject, &good.key));
    Ok(with_cookie(id, seconds, Json(AttestationToken { token })))
}

/// Everything good that came of one attestation.
struct Good {
    evidence: Evidence,
    verified: VerifiedEvidence,
    recipient: Recipient,
    key: TeePublicKey,
}

/// Judges an answer to a challenge; the error is every reason that speaks against it.
async fn judge(state: &State, challenge: &Challenge, body: Attestation) -> Result<Good, Vec<String>> {
    let one = |reason: String| vec![reason];
    let runtime_data = &body.runtime_data;
    if runtime_data.nonce != challenge.nonce {
        return Err(one("the nonce is not the session's".to_owned()));
    }
    let recipient = Recipient::try_from(&runtime_data.tee_pubkey).map_err(|error| one(error.to_string()))?;
    let evidence = read_primary_evidence(&body, challenge.tee).map_err(|error| one(error.to_string()))?;
    let additional = &body.tee_evidence.additional_evidence;
    let expected = report_data(runtime_data, additional, challenge.hash);
    let verifier = state.current().attestation.clone();
    let verified = state
        .judge
        .judge(&verifier, &evidence, expected)
        .await
        .map_err(|refused| codes(&refused))?;
    Ok(Good {
        evidence,
        verified,
        recipient,
        key: body.runtime_data.tee_pubkey,
    })
}

/// The codes of a refusal, each once.
pub(super) fn codes(refused: &Refused) -> Vec<String> {
    let mut codes: Vec<String> = refused.codes().iter().map(ToString::to_string).collect();
    codes.dedup();
    codes
}

/// Claims that the protocol asks for beside the result's own.
fn claims(state: &State, subject: String, key: &TeePublicKey) -> Map<String, Value> {
    let point = state.token_key.verifying_key().to_sec1_point(false);
    let coordinate = |bytes: Option<&[u8]>| URL_SAFE_NO_PAD.encode(bytes.unwrap_or_default());
    let jwk = json!({
        "alg": "ES256",
        "crv": "P-256",
        "kty": "EC",
        "x": coordinate(point.x().map(|x| &x[..])),
        "y": coordinate(point.y().map(|y| &y[..])),
    });
    let claims = [
        ("iss", Value::String(state.issuer.clone())),
        ("jti", Value::String(subject)),
        ("jwk", jwk),
        ("tee-pubkey", json!(key)),
    ];
    claims
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::malformed(error.to_string()))
}

fn with_cookie(id: SessionId, seconds: u32, answer: impl IntoResponse) -> Response {
    let cookie = format!(
        "{SESSION_COOKIE}={}; Path=/kbs; Max-Age={seconds}; HttpOnly; Secure; SameSite=Strict",
        id.to_text()
    );
    let mut response = (StatusCode::OK, answer).into_response();
    // Hexadecimal digits and the words above are always a header's value.
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}
