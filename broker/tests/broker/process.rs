//! Plain requests, as a client of another make sends them; and brokers in processes of their own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{Broker, Folder};

/// Sends what it is told, whatever that is.
pub struct Http {
    port: u16,
    tls: TlsConnector,
    connection: Option<SendRequest<Full<Bytes>>>,
}

pub struct Answer {
    pub status: u16,
    pub json: Value,
    pub text: String,
    pub cookie: Option<String>,
    pub set_cookie: Option<String>,
}

impl Answer {
    /// Status and name of the problem.
    pub fn problem(&self) -> (u16, &str) {
        let name = self.json["type"].as_str().unwrap_or_default();
        (self.status, name.rsplit('/').next().unwrap_or_default())
    }
}

impl Http {
    pub fn new(broker: &Broker<'_>) -> Self {
        Self::to(broker.folder, broker.running.address().port())
    }

    pub fn to(folder: &Folder, port: u16) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(folder.file("tls.crt")).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            port,
            tls: TlsConnector::from(Arc::new(config)),
            connection: None,
        }
    }

    pub async fn post(&mut self, path: &str, session: Option<&str>, body: &Value) -> Answer {
        let cookie = session.map(|id| ("cookie", format!("kbs-session-id={id}")));
        self.send(Method::POST, &format!("/kbs/v0{path}"), cookie, body.to_string())
            .await
    }

    pub async fn get(&mut self, path: &str, token: Option<&str>) -> Answer {
        let bearer = token.map(|token| ("authorization", format!("Bearer {token}")));
        self.send(Method::GET, &format!("/kbs/v0{path}"), bearer, String::new())
            .await
    }

    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        header: Option<(&str, String)>,
        body: String,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let connected = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !connected {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let stream = self.tls.connect(name, stream).await.unwrap();
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            self.connection = Some(sender);
        }
        let response = self
            .connection
            .as_mut()
            .unwrap()
            .send_request(request)
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let set_cookie = parts
            .headers
            .get("set-cookie")
            .map(|value| value.to_str().unwrap().to_owned());
        let cookie = set_cookie.as_ref().and_then(|value| {
            let (pair, _) = value.split_once(';')?;
            Some(pair.strip_prefix("kbs-session-id=")?.to_owned())
        });
        Answer {
            status: parts.status.as_u16(),
            json: serde_json::from_str(&text).unwrap_or_default(),
            text,
            cookie,
            set_cookie,
        }
    }
}

/// `cloak-kbs serve` in a process of its own.
pub struct Process {
    pub child: Child,
    pub port: u16,
    pub lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    pub fn serve(folder: &Folder) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_cloak-kbs"));
        Self::start(command, folder).expect("a broker that serves")
    }

    /// The same, killed (SIGKILL) when one of its threads is about to make the system call `call` for the `count`th
    /// time; `None` if that is before it serves.
    pub fn serve_until(folder: &Folder, call: &str, count: u32) -> Option<Self> {
        let mut command = Command::new("strace");
        // -D: the broker stays this process's child, strace is beside it.
        command
            .args(["-D", "-f", "-qq", "-o", "/dev/null", "-e"])
            .arg(format!("trace={call}"))
            .arg("-e")
            .arg(format!("inject={call}:signal=KILL:when={count}"))
            .arg(env!("CARGO_BIN_EXE_cloak-kbs"));
        Self::start(command, folder)
    }

    fn start(mut command: Command, folder: &Folder) -> Option<Self> {
        let mut child = command
            .args(["serve", "--config"])
            .arg(folder.file("kbs.toml"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let Some(line) = lines.next() else {
            child.wait().expect("its end");
            return None;
        };
        let port = line
            .expect("text")
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .expect("a port");
        Some(Self { child, port, lines })
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    pub fn line(&mut self) -> String {
        self.lines.next().expect("a line").expect("text")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
