//! A server under test: a case that stays up while the test's client talks to it over loopback.

use crate::case::Case;
use crate::launcher::Launcher;
use crate::outcome::Outcome;
use crate::process::Running;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
pub use rustix::process::Signal;
use rustix::process::kill_process;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(60);

/// A server that never answered.
#[derive(Debug, thiserror::Error)]
#[error("{command} {how} before port {port} answered\nstdout: {stdout}\nstderr: {stderr}")]
pub struct NoAnswer {
    command: String,
    how: &'static str,
    port: u16,
    stdout: String,
    stderr: String,
}

/// A running server; dropping it kills it.
pub struct Server {
    running: Running,
    address: SocketAddrV4,
}

impl Server {
    /// Starts `case` and waits until `port` answers on loopback.
    ///
    /// # Panics
    /// When it ends or does not answer in time; its output is shown.
    pub fn start(case: &Case, launcher: &Launcher, port: u16) -> Self {
        Server::attach(case.start(launcher), port).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Takes a process that runs already and waits until `port` answers on loopback.
    ///
    /// # Errors
    /// When it ends or does not answer in time.
    pub fn attach(running: Running, port: u16) -> Result<Self, NoAnswer> {
        let mut server = Server {
            running,
            address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
        };
        let deadline = Instant::now() + START;
        while TcpStream::connect(server.address).is_err() {
            let gone = server.running.has_ended();
            if gone || Instant::now() >= deadline {
                return Err(NoAnswer {
                    command: server.running.command().to_owned(),
                    how: if gone { "ended" } else { "ran out of time" },
                    port,
                    stdout: String::from_utf8_lossy(&server.running.stdout_so_far()).into_owned(),
                    stderr: String::from_utf8_lossy(&server.running.stderr_so_far()).into_owned(),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Its process, natively the server itself, cloaked the launcher.
    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Asks it to end with `signal` and waits until it has.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(self, signal: Signal) -> Outcome {
        kill_process(self.running.pid(), signal).expect("the server still runs");
        self.stop_asked()
    }

    /// Waits for its end, which the test has asked for through a client.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop_asked(self) -> Outcome {
        self.running
            .finish(STOP)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Below those that Linux gives to clients by itself (`net.ipv4.ip_local_port_range`). One of those could be taken by a
/// client of another test before the server has it, or answer a connection to it with itself.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A TCP port on loopback that nobody has now, another one for each call.
///
/// # Panics
/// When the machine has none left.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    // Tests that run in processes beside each other begin far apart.
    let start = std::process::id().wrapping_mul(977);
    (0..count)
        .map(|_| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count)
        .map(|at| PORTS.start + at as u16)
        .find(|port| is_free(*port))
        .expect("loopback has a free port")
}

/// Whether `port` can be bound. The socket that tries never listens: a program that another thread starts just now has a copy
/// until its `execve`, and a client would take that for the server that it waits for.
fn is_free(port: u16) -> bool {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket can be had");
    // The copy is in nobody's way then.
    set_socket_reuseaddr(&socket, true).expect("a socket's address may be used again");
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::process::Command;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_free_port_answers_nobody_while_programs_are_started() {
        let is_over = AtomicBool::new(false);
        let answered = thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        Command::new("/bin/true").status().expect("it runs");
                    }
                });
            }
            let answered = (0..2000)
                .map(|_| free_port())
                .filter(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok())
                .count();
            is_over.store(true, Ordering::Relaxed);
            answered
        });
        assert_eq!(answered, 0);
    }

    #[test]
    fn a_port_with_a_server_is_not_free() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).expect("it is free");
        assert!(!is_free(server.local_addr().expect("it has an address").port()));
    }
}
