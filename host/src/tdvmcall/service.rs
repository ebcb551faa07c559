//! The way to the quoting service: a Unix socket on this machine, or vsock to another VM.
//!
//! One of the crate's unsafe islands: no library that is here anyway speaks vsock.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::qgs::{self, REPORT_BYTES};

/// Where Intel's package listens.
pub const DEFAULT: &str = "unix:/var/run/tdx-qgs/qgs.socket";
/// Longest wait for a quote; a service that asks Intel for certificates takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where a quoting service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `vsock:CID:PORT`.
    Vsock {
        /// The VM; 2 is the host.
        cid: u32,
        /// Its port; 4050 by custom.
        port: u32,
    },
}

impl Default for Address {
    /// [`DEFAULT`].
    fn default() -> Self {
        Self::Unix(DEFAULT.trim_start_matches("unix:").into())
    }
}

/// A text that is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected unix:PATH or vsock:CID:PORT, as {DEFAULT}")]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("vsock", rest)) => {
                let (cid, port) = rest.split_once(':').ok_or(AddressError)?;
                let number = |text: &str| text.parse().map_err(|_| AddressError);
                Ok(Self::Vsock {
                    cid: number(cid)?,
                    port: number(port)?,
                })
            }
            _ => Err(AddressError),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
pub enum QuoteError {
    /// Nobody listens.
    #[error("no quoting service at {address}: {source}; is qgsd running, and may this user connect to it?")]
    Unreachable {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the quoting service at {address} {doing}: {source}")]
    Broken {
        /// Where.
        address: Address,
        /// What it was asked for.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What came is no answer.
    #[error("not an answer of a quoting service: {0}")]
    Answer(&'static str),
    /// The process that asks for us says this.
    #[error("{text}")]
    Told {
        /// Whether nobody listens.
        unreachable: bool,
        /// Its words.
        text: String,
    },
    /// The process that asks for us does not answer.
    #[error("the process that fetches quotes does not answer: {0}")]
    Courier(io::Error),
    /// It refuses.
    #[error("the quoting service refuses, with code {code:#x}: {meaning}")]
    Service {
        /// Its own number.
        code: u32,
        /// What that is.
        meaning: &'static str,
    },
}

impl QuoteError {
    /// Whether nobody listens.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Told {
                    unreachable: true,
                    ..
                }
        )
    }
}

/// Who makes quotes of reports.
pub trait QuoteSource {
    /// A quote for a TDREPORT.
    ///
    /// # Errors
    /// [`QuoteError`].
    fn quote(&self, report: &[u8; REPORT_BYTES]) -> Result<Vec<u8>, QuoteError>;
}

impl QuoteSource for Address {
    fn quote(&self, report: &[u8; REPORT_BYTES]) -> Result<Vec<u8>, QuoteError> {
        self.ask(report, PATIENCE)
    }
}

impl Address {
    /// Fetches a quote in at most this time, however the service divides what it says.
    fn ask(&self, report: &[u8; REPORT_BYTES], patience: Duration) -> Result<Vec<u8>, QuoteError> {
        let until = Instant::now() + patience;
        let broken = |doing| {
            move |source| QuoteError::Broken {
                address: self.clone(),
                doing,
                source,
            }
        };
        let fd = self.connect().map_err(|source| QuoteError::Unreachable {
            address: self.clone(),
            source,
        })?;
        let mut stream = Stream { fd, until };
        stream
            .write_all(&qgs::request(report))
            .map_err(broken("does not take the request"))?;
        let mut prefix = [0; qgs::PREFIX];
        let no_answer = "does not answer";
        stream.read_exact(&mut prefix).map_err(broken(no_answer))?;
        let mut message = vec![0; qgs::length(prefix)?];
        stream.read_exact(&mut message).map_err(broken(no_answer))?;
        qgs::parse_response(&message)
    }

    /// Connects, with a bound for each step.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let family = match self {
            Self::Unix(_) => AddressFamily::UNIX,
            Self::Vsock { .. } => AddressFamily::VSOCK,
        };
        let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        for step in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&fd, step, Some(PATIENCE))?;
        }
        match self {
            Self::Unix(path) => rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?,
            Self::Vsock { cid, port } => connect_vsock(&fd, *cid, *port)?,
        }
        Ok(fd)
    }
}

fn connect_vsock(fd: &OwnedFd, cid: u32, port: u32) -> io::Result<()> {
    // SAFETY: all zeros are a valid value of this structure of numbers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an address of this family and its size, for the duration of the call.
    let result = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

struct Stream {
    fd: OwnedFd,
    until: Instant,
}

impl Stream {
    /// Bounds the next step by the time that is left.
    fn bound(&self, step: Timeout) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(set_socket_timeout(&self.fd, step, Some(left))?)
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.bound(Timeout::Recv)?;
        Ok(rustix::io::retry_on_intr(|| {
            rustix::io::read(&self.fd, &mut *into)
        })?)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bound(Timeout::Send)?;
        let flags = rustix::net::SendFlags::NOSIGNAL;
        Ok(rustix::io::retry_on_intr(|| {
            rustix::net::send(&self.fd, bytes, flags)
        })?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A service for one connection, which does this with the request.
    fn service(answer: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static) -> (tempfile::TempDir, Address) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("qgs.socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = vec![0; qgs::PREFIX + 24 + REPORT_BYTES];
            stream.read_exact(&mut request).expect("a request");
            // In two parts, as a stream may.
            let bytes = answer(&request[qgs::PREFIX..]);
            let (one, two) = bytes.split_at(bytes.len() / 2);
            let _ = stream.write_all(one).and_then(|()| stream.write_all(two));
        });
        (folder, Address::Unix(path))
    }

    #[test]
    fn a_quote_comes_back_over_a_unix_socket() {
        let (_folder, address) = service(|request| {
            let report = qgs::parse_request(request).expect("a request");
            qgs::response(0, &report[..50])
        });
        assert_eq!(address.quote(&[6; REPORT_BYTES]).expect("a quote"), [6; 50]);
    }

    #[test]
    fn a_service_that_misbehaves_is_named() {
        let told = |answer: fn(&[u8]) -> Vec<u8>| {
            let (_folder, address) = service(answer);
            address
                .quote(&[0; REPORT_BYTES])
                .expect_err("no quote")
                .to_string()
        };
        assert!(told(|_| vec![0xff; 8]).contains("its length"));
        assert!(told(|_| Vec::new()).contains("does not answer"));
        assert!(told(|_| qgs::response(0, &[1; 99])[..60].to_vec()).contains("does not answer"));
        assert!(told(|_| qgs::response(0x1_2001, &[])).contains("journalctl"));
        let nobody: Address = "unix:/nowhere/qgs.socket".parse().expect("an address");
        let text = nobody.quote(&[0; REPORT_BYTES]).expect_err("nobody").to_string();
        assert!(
            text.contains("/nowhere/qgs.socket") && text.contains("qgsd"),
            "{text}"
        );
    }

    /// One that says nothing, and one that goes on saying a little: each step would be in time.
    #[test]
    fn a_service_that_never_comes_to_an_end_is_given_up() {
        for chatty in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("qgs.socket");
            let listener = UnixListener::bind(&path).expect("a socket");
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a connection");
                // The length of the longest message, and then a byte of it at a time until nobody listens.
                let _ = stream.write_all(&(qgs::MOST as u32).to_be_bytes());
                while chatty && stream.write_all(&[0]).is_ok() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                let _ = stream.read_to_end(&mut Vec::new());
            });
            let asked = Address::Unix(path).ask(&[0; REPORT_BYTES], Duration::from_millis(100));
            let error = asked.expect_err("no quote");
            assert!(matches!(error, QuoteError::Broken { .. }), "{error}");
        }
    }

    #[test]
    fn a_vsock_that_nobody_serves_is_unreachable() {
        // CID 1 is this machine's own, where the kernel has that; port 1 is no service's.
        let address: Address = "vsock:1:1".parse().expect("an address");
        let error = address.quote(&[0; REPORT_BYTES]).expect_err("nobody");
        assert!(matches!(error, QuoteError::Unreachable { .. }), "{error}");
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        assert_eq!(Address::default().to_string(), DEFAULT);
        for text in [DEFAULT, "vsock:2:4050"] {
            let address: Address = text.parse().expect("an address");
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "unix:qgs",
            "vsock:2",
            "vsock:host:4050",
            "tcp:1:2",
            "/var/run/tdx-qgs/qgs.socket",
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError), "{text}");
        }
    }
}
