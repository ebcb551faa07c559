//! What a client shows to be known again: a session's cookie, a token, the administrator's token.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use cloak_attestation::time::Timestamp;
use cloak_attestation::token::Ear;
use serde_json::Value;

use super::error::Refusal;
use super::state::Shared;
use crate::protocol::{Problem, SESSION_COOKIE};
use crate::session::{Attested, SessionId, TokenId};

/// The text after `Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The session that the cookie names.
pub(super) fn session_id(headers: &HeaderMap) -> Option<SessionId> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == SESSION_COOKIE)
        .and_then(|(_, value)| SessionId::from_text(value))
}

/// The attested session of whoever asks: by token if there is one, else by cookie.
pub(super) fn attested(shared: &Shared, headers: &HeaderMap) -> Result<Arc<Attested>, Refusal> {
    if headers.contains_key(header::AUTHORIZATION) {
        let token = bearer(headers).unwrap_or_default();
        return by_token(shared, token);
    }
    let unknown = || Refusal::unauthorized(Problem::TokenNotFound, "no attested session: attest first");
    let id = session_id(headers).ok_or_else(unknown)?;
    shared.sessions.by_id(&id, shared.now()).ok_or_else(unknown)
}

fn by_token(shared: &Shared, token: &str) -> Result<Arc<Attested>, Refusal> {
    let refuse = |detail: String| Refusal::unauthorized(Problem::TokenVerifierError, detail);
    let (_, claims) = Ear::from_jwt_with(token, shared.token_key.verifying_key(), Timestamp::now())
        .map_err(|error| refuse(error.to_string()))?;
    let id = claims
        .get("jti")
        .and_then(Value::as_str)
        .and_then(TokenId::from_text);
    // The token alone is not enough: a secret's policy judges the evidence, which is kept with the session.
    id.and_then(|id| shared.sessions.by_token(&id, shared.now()))
        .ok_or_else(|| refuse("the token's session is over: attest again".to_owned()))
}
