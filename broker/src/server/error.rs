//! Answers that are no success.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::protocol::{ErrorInformation, Problem};
use crate::random::NoRandomness;
use crate::seal::SealError;
use crate::session::SessionError;
use crate::store::StoreError;

/// A status with the protocol's body.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) problem: Problem,
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, problem: Problem, detail: impl Into<String>) -> Self {
        Self {
            status,
            problem,
            detail: detail.into(),
        }
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Problem::SerdeError, detail)
    }

    pub(super) fn unauthorized(problem: Problem, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, problem, detail)
    }

    /// A failure of the broker's own. What it was stands in its log; who asks learns only that it was.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        eprintln!("cloak kbs: {error}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Problem::Internal,
            "the broker failed; its log says why",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let busy = matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        let body = ErrorInformation::new(self.problem, self.detail);
        let mut response = (self.status, Json(body)).into_response();
        if busy {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::new(StatusCode::CONFLICT, Problem::Conflict, error.to_string()),
            StoreError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Problem::Busy, error.to_string())
            }
            error => Self::internal(&error),
        }
    }
}

impl From<SealError> for Refusal {
    fn from(error: SealError) -> Self {
        Self::internal(&error)
    }
}

impl From<NoRandomness> for Refusal {
    fn from(error: NoRandomness) -> Self {
        Self::internal(&error)
    }
}

impl From<SessionError> for Refusal {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Full => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Problem::Busy, error.to_string())
            }
            SessionError::Randomness(error) => Self::internal(&error),
        }
    }
}
