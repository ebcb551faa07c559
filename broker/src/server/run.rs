//! Start, reload, stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use cloak_attestation::tdx::parse_collateral;
use hyper_util::rt::TokioTimer;
use p256::ecdsa::SigningKey;
use p256::pkcs8::DecodePrivateKey as _;
use tokio::task::JoinHandle;

use super::limits::PerAddress;
use super::metrics::Metrics;
use super::router::router;
use super::state::{Reload, Shared, State};
use super::verifiers::Judge;
use crate::audit::{Action, Decision, Outcome};
use crate::config::{Config, ConfigError};
use crate::seal::{SealError, Sealer};
use crate::session::Sessions;
use crate::store::{Ledger, Store, StoreError};
use crate::tls::{self, TlsError};

/// Why the broker doesn't serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Root key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address.
    #[error("{address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("serving: {0}")]
    Serve(io::Error),
}

/// A broker that serves.
pub struct Running {
    address: SocketAddr,
    config: Config,
    state: State,
    tls: RustlsConfig,
    handle: Handle<SocketAddr>,
    server: JoinHandle<io::Result<()>>,
    writer: JoinHandle<()>,
}

/// Starts a broker. When this returns, the address takes connections.
///
/// # Errors
/// [`ServeError`].
pub async fn start(config: Config) -> Result<Running, ServeError> {
    let sealer = Sealer::load(&config.root_key)?;
    let tls = RustlsConfig::from_config(Arc::new(tls::server(&config.tls_certificate, &config.tls_key)?));
    let reload = Reload::read(&config)?;
    let token_key = read_token_key(&config)?;
    let collateral = read_collateral(&config)?;
    let store = Arc::new(Store::open(&config, sealer.check_value()).await?);
    let (ledger, writer) = Ledger::start(Arc::clone(&store));
    let state = Arc::new(Shared {
        limits: config.limits,
        issuer: config.issuer.clone(),
        token_key,
        sealer,
        store,
        ledger,
        sessions: Sessions::new(config.limits.session_bounds()),
        judge: Judge::new(collateral),
        metrics: Metrics::default(),
        addresses: PerAddress::new(&config.limits),
        current: std::sync::RwLock::new(Arc::new(reload)),
    });
    state
        .decide(Decision::new(Action::Start, Outcome::Granted))
        .await?;
    let blame = |source| ServeError::Listen {
        address: config.listen,
        source,
    };
    let listener = std::net::TcpListener::bind(config.listen).map_err(blame)?;
    listener.set_nonblocking(true).map_err(blame)?;
    let address = listener.local_addr().map_err(blame)?;
    let handle = Handle::new();
    let mut server = axum_server::from_tcp_rustls(listener, tls.clone())
        .map_err(blame)?
        .handle(handle.clone());
    // A client that sends its headers a byte a minute holds no connection.
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(config.limits.request_seconds.into()));
    let service = router(Arc::clone(&state)).into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(server.serve(service));
    Ok(Running {
        address,
        config,
        state,
        tls,
        handle,
        server,
        writer,
    })
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes up policy, administrator's token and certificate as the files say now. Connections and sessions go on.
    /// What cannot be read leaves everything as it was.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn reload(&self) -> Result<(), ServeError> {
        let result = self.read_again();
        let mut decision = Decision::new(Action::Reload, Outcome::Granted);
        match result {
            Ok((reload, tls)) => {
                decision.policy = Some(reload.attestation.policy().digest().to_string());
                self.state.decide(decision).await?;
                self.state.reload(reload);
                self.tls.reload_from_config(Arc::new(tls));
                Ok(())
            }
            Err(error) => {
                decision.outcome = Outcome::Refused;
                decision.reasons.push(error.to_string());
                self.state.decide(decision).await?;
                Err(error)
            }
        }
    }

    fn read_again(&self) -> Result<(Reload, rustls::ServerConfig), ServeError> {
        let reload = Reload::read(&self.config)?;
        let tls = tls::server(&self.config.tls_certificate, &self.config.tls_key)?;
        Ok((reload, tls))
    }

    /// Takes no more connections, lets requests end, writes what waits.
    ///
    /// # Errors
    /// [`ServeError::Serve`] if the server had failed before.
    pub async fn stop(self) -> Result<(), ServeError> {
        let patience = Duration::from_secs(self.config.limits.stop_seconds.into());
        self.handle.graceful_shutdown(Some(patience));
        let served = self.server.await;
        // The writer ends when the last handle to it is gone, with the state.
        drop(self.state);
        let _ = tokio::time::timeout(patience, self.writer).await;
        match served {
            Ok(result) => result.map_err(ServeError::Serve),
            Err(panic) => Err(ServeError::Serve(io::Error::other(panic))),
        }
    }

    /// Waits until the server ends by itself, which it does only when it fails.
    pub async fn ended(&mut self) -> ServeError {
        match (&mut self.server).await {
            Ok(Err(error)) => ServeError::Serve(error),
            Ok(Ok(())) => ServeError::Serve(io::Error::other("the server ended")),
            Err(panic) => ServeError::Serve(io::Error::other(panic)),
        }
    }
}

fn read_token_key(config: &Config) -> Result<SigningKey, ServeError> {
    let path = &config.token_key;
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
        path: path.clone(),
        source,
    })?;
    let key = SigningKey::from_pkcs8_pem(&text).map_err(|error| ConfigError::Content {
        path: path.clone(),
        problem: format!("not a P-256 key in PKCS#8 PEM: {error}"),
    })?;
    Ok(key)
}

fn read_collateral(config: &Config) -> Result<Vec<cloak_attestation::evidence::Collateral>, ServeError> {
    let read = |path: &std::path::PathBuf| {
        let bytes = std::fs::read(path).map_err(|source| ConfigError::File {
            path: path.clone(),
            source,
        })?;
        let collateral = parse_collateral(&bytes).map_err(|error| ConfigError::Content {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        Ok(collateral)
    };
    config.collateral.iter().map(read).collect()
}
