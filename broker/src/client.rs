//! The guest's side: attest once, then fetch secrets. And the administrator's.
//!
//! ```no_run
//! # async fn fetch() -> Result<(), Box<dyn std::error::Error>> {
//! use cloak_broker::attester::ConfigfsTsm;
//! let mut client = cloak_broker::Client::new("https://broker:8443", "/etc/ssl/broker.pem".as_ref())?;
//! let attester = ConfigfsTsm::open(cloak_broker::attester::CONFIGFS_TSM.as_ref())?;
//! let session = client.attest(&attester).await?;
//! let secret = client.get(&session, &"default/key/disk".parse()?).await?;
//! # Ok(()) }
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::attester::{Attester, AttesterError};
use crate::audit::Entry;
use crate::jwe::{JweError, TeeKey};
use crate::path::{Listed, ResourcePath};
use crate::protocol::{
    self, Attestation, AttestationToken, Challenge, CompositeEvidence, ErrorInformation, HashAlgorithm,
    PREFIX, Response, RuntimeData, SELECTED_HASH, SESSION_COOKIE, SUPPORTED_HASHES, primary_evidence,
    report_data,
};
use crate::tls::{self, TlsError};

/// Largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;
/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a client didn't get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address of a broker.
    #[error("{0:?} is not https://HOST[:PORT]")]
    Url(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The broker cannot be reached, or is not the one whose certificate is trusted.
    #[error("{host}: {problem}")]
    Connection {
        /// Which.
        host: String,
        /// Why.
        problem: String,
    },
    /// The broker said no.
    #[error("the broker answers {status} {problem}: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Name of the problem, as in [`crate::protocol::Problem`].
        problem: String,
        /// For people.
        detail: String,
    },
    /// The broker's answer is not one of the protocol's.
    #[error("the broker's answer cannot be read: {0}")]
    Answer(String),
    /// There is no evidence to show.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// The secret does not open.
    #[error(transparent)]
    Jwe(#[from] JweError),
}

/// A connection to one broker, made at its first use and again when it was lost.
pub struct Client {
    host: String,
    port: u16,
    tls: TlsConnector,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// What an attested guest has: the key that its secrets are encrypted to, and its token.
pub struct Session {
    key: TeeKey,
    cookie: String,
    token: String,
}

impl Session {
    /// The attestation result, a JWT, which other relying parties of the broker's key take too.
    pub fn token(&self) -> &str {
        &self.token
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// For the broker at `url`, whose certificate has to come from one in `roots` (PEM).
    ///
    /// # Errors
    /// [`ClientError`] if there is no such file or the address isn't one.
    pub fn new(url: &str, roots: &Path) -> Result<Self, ClientError> {
        Self::with(url, tls::client(roots)?)
    }

    /// The same, with the certificates themselves.
    ///
    /// # Errors
    /// [`ClientError`] if there is none, or the address isn't one.
    pub fn trusting(url: &str, pem: &[u8]) -> Result<Self, ClientError> {
        Self::with(url, tls::client_trusting(pem)?)
    }

    fn with(url: &str, mut tls: rustls::ClientConfig) -> Result<Self, ClientError> {
        let wrong = || ClientError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("https") || uri.path() != "/" || uri.query().is_some() {
            return Err(wrong());
        }
        let host = uri
            .host()
            .ok_or_else(wrong)?
            .trim_start_matches('[')
            .trim_end_matches(']');
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(443),
            tls: TlsConnector::from(Arc::new(tls)),
            connection: None,
        })
    }

    /// Asks for a challenge and answers it with evidence from `attester` for a fresh key.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] has the reasons.
    pub async fn attest(&mut self, attester: &dyn Attester) -> Result<Session, ClientError> {
        let request = protocol::Request {
            version: protocol::VERSION.to_owned(),
            tee: attester.tee().as_str().to_owned(),
            extra_params: json!({ SUPPORTED_HASHES: ["sha256", "sha384", "sha512"] }),
        };
        let answer = self.post("/auth", None, &request).await?;
        let cookie = session_cookie(&answer.headers)?;
        let challenge: Challenge = read(&answer)?;
        let key = TeeKey::generate()?;
        let attestation = answer_to(&challenge, &key, attester)?;
        let answer = self.post("/attest", Some(&cookie), &attestation).await?;
        let AttestationToken { token } = read(&answer)?;
        Ok(Session { key, cookie, token })
    }

    /// Fetches a secret.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] has the reasons.
    pub async fn get(
        &mut self,
        session: &Session,
        path: &ResourcePath,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let request = self
            .request(Method::GET, &format!("/resource/{path}"))
            .header(header::COOKIE, format!("{SESSION_COOKIE}={}", session.cookie));
        let answer = self.send(request, Bytes::new()).await?;
        let sealed: Response = read(&answer)?;
        Ok(session.key.decrypt(&sealed)?)
    }

    /// Writes a secret, as the administrator. Its policy stays; a new secret has none, and goes to nobody.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put(&mut self, admin: &str, path: &ResourcePath, secret: &[u8]) -> Result<(), ClientError> {
        let request = self
            .admin(admin, Method::POST, &format!("/resource/{path}"))
            .header(header::CONTENT_TYPE, "application/octet-stream");
        self.send(request, Bytes::copy_from_slice(secret)).await.map(drop)
    }

    /// Writes a secret's policy, as the administrator.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_policy(
        &mut self,
        admin: &str,
        path: &ResourcePath,
        policy: &str,
    ) -> Result<(), ClientError> {
        let request = self
            .admin(admin, Method::PUT, &format!("/resource-policy/{path}"))
            .header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
        self.send(request, Bytes::copy_from_slice(policy.as_bytes()))
            .await
            .map(drop)
    }

    /// Removes a secret and its policy, as the administrator.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&mut self, admin: &str, path: &ResourcePath) -> Result<(), ClientError> {
        let request = self.admin(admin, Method::DELETE, &format!("/resource/{path}"));
        self.send(request, Bytes::new()).await.map(drop)
    }

    /// Names of the secrets, as the administrator.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&mut self, admin: &str) -> Result<Vec<Listed>, ClientError> {
        let request = self.admin(admin, Method::GET, "/resources");
        read(&self.send(request, Bytes::new()).await?)
    }

    /// A page of the audit log after `sequence`, as the administrator.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit(&mut self, admin: &str, after: u64) -> Result<Vec<Entry>, ClientError> {
        let request = self.admin(admin, Method::GET, &format!("/audit?after={after}"));
        read(&self.send(request, Bytes::new()).await?)
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(header::HOST, format!("{}:{}", self.host, self.port))
    }

    fn admin(&self, token: &str, method: Method, path: &str) -> hyper::http::request::Builder {
        self.request(method, path)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
    }

    async fn post(
        &mut self,
        path: &str,
        cookie: Option<&str>,
        body: &impl serde::Serialize,
    ) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        let mut request = self
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, format!("{SESSION_COOKIE}={cookie}"));
        }
        self.send(request, body.into()).await
    }

    async fn send(
        &mut self,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let request = request
            .body(Full::new(body))
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        let exchange = async {
            let connection = self.connected().await?;
            let response = connection
                .send_request(request)
                .await
                .map_err(|error| error.to_string())?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| error.to_string())?;
            Ok::<_, String>((parts, body.to_bytes()))
        };
        let result = tokio::time::timeout(PATIENCE, exchange).await;
        let (parts, body) = result
            .unwrap_or(Err("no answer in time".to_owned()))
            .map_err(|problem| ClientError::Connection {
                host: format!("{}:{}", self.host, self.port),
                problem,
            })?;
        if parts.status.is_success() {
            return Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            });
        }
        let problem: Option<ErrorInformation> = serde_json::from_slice(&body).ok();
        let status = parts.status.as_u16();
        Err(match problem {
            Some(problem) => ClientError::Refused {
                status,
                problem: problem.name().to_owned(),
                detail: problem.detail,
            },
            None => ClientError::Answer(format!("status {status} without a problem")),
        })
    }

    /// The connection there is, or a new one.
    async fn connected(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, String> {
        let alive = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !alive {
            self.connection = Some(self.connect().await?);
        }
        self.connection.as_mut().ok_or_else(|| "no connection".to_owned())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let name = ServerName::try_from(self.host.clone()).map_err(|error| text(&error))?;
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| text(&error))?;
        stream.set_nodelay(true).map_err(|error| text(&error))?;
        let stream = self
            .tls
            .connect(name, stream)
            .await
            .map_err(|error| text(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| text(&error))?;
        // Ends with the sender; what goes wrong in it, the next request says.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// The body of `/attest`.
///
/// # Errors
/// [`ClientError`] if the challenge wants what is not known here, or there is no evidence.
pub fn answer_to(
    challenge: &Challenge,
    key: &TeeKey,
    attester: &dyn Attester,
) -> Result<Attestation, ClientError> {
    let hash = match challenge.extra_params.get(SELECTED_HASH) {
        None => HashAlgorithm::Sha384,
        Some(name) => name
            .as_str()
            .and_then(HashAlgorithm::from_name)
            .ok_or_else(|| ClientError::Answer(format!("hash algorithm {name}")))?,
    };
    let runtime_data = RuntimeData {
        nonce: challenge.nonce.clone(),
        tee_pubkey: key.public(),
    };
    let evidence = attester.attest(&report_data(&runtime_data, "", hash))?;
    Ok(Attestation {
        init_data: None,
        runtime_data,
        tee_evidence: CompositeEvidence {
            primary_evidence: primary_evidence(&evidence),
            additional_evidence: String::new(),
        },
    })
}

fn session_cookie(headers: &HeaderMap<HeaderValue>) -> Result<String, ClientError> {
    let prefix = format!("{SESSION_COOKIE}=");
    headers
        .get_all(header::SET_COOKIE)
        .iter()
        .filter_map(|value| {
            value
                .to_str()
                .ok()?
                .split(';')
                .next()?
                .strip_prefix(prefix.as_str())
        })
        .next()
        .map(ToOwned::to_owned)
        .ok_or_else(|| ClientError::Answer("no session cookie".to_owned()))
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| ClientError::Answer(format!("status {}: {error}", answer.status.as_u16())))
}
