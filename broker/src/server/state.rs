//! What every request sees.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use axum::http::StatusCode;
use cloak_attestation::Verifier;
use p256::ecdsa::SigningKey;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use super::error::Refusal;
use super::limits::PerAddress;
use super::metrics::Metrics;
use super::verifiers::Judge;
use crate::audit::{Decision, Head};
use crate::config::{Config, ConfigError, Limits};
use crate::protocol::Problem;
use crate::seal::Sealer;
use crate::session::Sessions;
use crate::store::{Change, Job, Ledger, Store, StoreError};

/// What can change while the broker runs.
pub(super) struct Reload {
    pub(super) attestation: Arc<Verifier>,
    admin_token_digest: [u8; 32],
}

impl Reload {
    /// Reads it from the files that `config` names.
    ///
    /// # Errors
    /// [`ConfigError`]; what was in force stays so.
    pub(super) fn read(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            attestation: Arc::new(Verifier::new(config.read_policy()?)),
            admin_token_digest: config.read_admin_token_digest()?,
        })
    }
}

pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) issuer: String,
    pub(super) token_key: SigningKey,
    pub(super) sealer: Sealer,
    pub(super) store: Arc<Store>,
    pub(super) ledger: Ledger,
    pub(super) sessions: Sessions,
    pub(super) judge: Judge,
    pub(super) metrics: Metrics,
    pub(super) addresses: PerAddress,
    pub(super) current: RwLock<Arc<Reload>>,
}

pub(super) type State = Arc<Shared>;

impl Shared {
    pub(super) fn current(&self) -> Arc<Reload> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn reload(&self, reload: Reload) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(reload);
    }

    pub(super) fn is_admin(&self, token: Option<&str>) -> bool {
        let Some(token) = token else { return false };
        let found = Sha256::digest(token.as_bytes());
        found.ct_eq(&self.current().admin_token_digest).into()
    }

    /// Writes a decision. Only then may it be answered.
    pub(super) async fn decide(&self, decision: Decision) -> Result<Head, StoreError> {
        self.ledger
            .write(Job {
                decision,
                change: None,
            })
            .await
    }

    /// Writes a decision and the change that it allows, together.
    pub(super) async fn change(&self, decision: Decision, change: Change) -> Result<Head, StoreError> {
        self.ledger
            .write(Job {
                decision,
                change: Some(change),
            })
            .await
    }

    pub(super) fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A refusal for want of room.
pub(super) fn too_many() -> Refusal {
    Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        Problem::TooManyRequests,
        "this address asks more often than the broker allows",
    )
}
