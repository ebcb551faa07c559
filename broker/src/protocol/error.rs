//! Errors on the wire: problem details (RFC 7807), as the protocol has them.

use serde::{Deserialize, Serialize};

const NAMESPACE: &str = "https://github.com/confidential-containers/kbs/errors";

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInformation {
    /// A name, in the form of an address that leads nowhere.
    #[serde(rename = "type")]
    pub problem: String,
    /// What happened, for people.
    pub detail: String,
}

/// Names of problems. The first group is the protocol's; the second has no counterpart there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// An administrator's token is missing or wrong.
    AdminAuth,
    /// Evidence was refused, or the exchange was not kept to.
    AttestationError,
    /// Nothing is at this path.
    InvalidRequestPath,
    /// The secret cannot be encrypted to the guest's key.
    JweError,
    /// The secret's policy refuses this guest.
    PolicyDeny,
    /// A body that cannot be read.
    SerdeError,
    /// Neither token nor attested session.
    TokenNotFound,
    /// A token that does not count.
    TokenVerifierError,
    /// The method is not one of the path's.
    MethodNotAllowed,
    /// A body larger than is taken.
    TooLarge,
    /// More requests than a client may make.
    TooManyRequests,
    /// As many sessions as there is room for.
    Busy,
    /// Another change came first.
    Conflict,
    /// The broker's own failure.
    Internal,
}

impl Problem {
    /// The last part of the problem's address.
    pub fn as_str(self) -> &'static str {
        match self {
            Problem::AdminAuth => "AdminAuth",
            Problem::AttestationError => "AttestationError",
            Problem::InvalidRequestPath => "InvalidRequestPath",
            Problem::JweError => "JweError",
            Problem::PolicyDeny => "PolicyDeny",
            Problem::SerdeError => "SerdeError",
            Problem::TokenNotFound => "TokenNotFound",
            Problem::TokenVerifierError => "TokenVerifierError",
            Problem::MethodNotAllowed => "MethodNotAllowed",
            Problem::TooLarge => "TooLarge",
            Problem::TooManyRequests => "TooManyRequests",
            Problem::Busy => "Busy",
            Problem::Conflict => "Conflict",
            Problem::Internal => "Internal",
        }
    }
}

impl ErrorInformation {
    /// The body for a problem.
    pub fn new(problem: Problem, detail: impl Into<String>) -> Self {
        Self {
            problem: format!("{NAMESPACE}/{}", problem.as_str()),
            detail: detail.into(),
        }
    }

    /// The problem's name without its namespace.
    pub fn name(&self) -> &str {
        self.problem.rsplit('/').next().unwrap_or_default()
    }
}
