//! Paths, and what every request passes through.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State as Extract};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::error::Refusal;
use super::state::{State, too_many};
use super::{admin, attest, release};
use crate::protocol::Problem;

/// What is served, as an OpenAPI 3.1 document.
pub const OPENAPI: &str = include_str!("../../openapi.json");

/// All of it.
pub(super) fn router(state: State) -> Router {
    use axum::routing::{post, put};
    let secret = get(release::get).post(admin::put_secret).delete(admin::remove);
    let protocol = Router::new()
        .route("/auth", post(attest::auth))
        .route("/attest", post(attest::attest))
        .route("/resource/{repository}/{type}/{tag}", secret)
        .route(
            "/resource-policy/{repository}/{type}/{tag}",
            put(admin::put_policy),
        )
        .route("/resources", get(admin::list))
        .route("/audit", get(admin::audit))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&state), admit));
    let limit = state.limits.body_kibibytes.saturating_mul(1024);
    Router::new()
        .nest(crate::protocol::PREFIX, protocol)
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(limit))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), measure))
        .with_state(state)
}

/// Bounds how often an address asks and how long an answer takes.
async fn admit(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if !state.addresses.admits(peer.ip()) {
        return too_many().into_response();
    }
    let patience = Duration::from_secs(state.limits.request_seconds.into());
    match tokio::time::timeout(patience, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Refusal::new(status, Problem::Busy, "the request took too long").into_response()
        }
    }
}

/// Counts answers, and gives those that the framework makes itself the protocol's body.
async fn measure(Extract(state): Extract<State>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let endpoint = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().to_owned(),
        None => "none".to_owned(),
    };
    let mut response = next.run(request).await;
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = "the body is larger than the broker takes";
        response = Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Problem::TooLarge, detail).into_response();
    }
    state
        .metrics
        .answered(&endpoint, response.status().as_u16(), start.elapsed());
    response
}

async fn nothing_here() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        Problem::InvalidRequestPath,
        "nothing is at this path",
    )
}

async fn other_method() -> Refusal {
    let detail = "this path has no such method";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Problem::MethodNotAllowed, detail)
}

async fn live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Whether the database answers.
async fn ready(Extract(state): Extract<State>) -> Result<StatusCode, Refusal> {
    match state.store.audit(u64::MAX >> 1, 1).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => {
            let detail = "the database does not answer";
            eprintln!("cloak kbs: {error}");
            Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                Problem::Busy,
                detail,
            ))
        }
    }
}

async fn metrics(Extract(state): Extract<State>) -> Result<Response, Refusal> {
    let text = state
        .metrics
        .text(state.sessions.len(), state.ledger.head().sequence)
        .map_err(|error| Refusal::internal(&error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
