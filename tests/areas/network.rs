//! `--network private`: what is said inside stays inside, what is published is reached, and nothing else is.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cloak_tests::os_side::{children_of, count, memory_of};
use cloak_tests::server::free_port;
use cloak_tests::{Case, Launcher, Scratch, Server, needs};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(300);

fn cloak() -> PathBuf {
    match Launcher::under_test() {
        Launcher::Cloak(binary) => binary,
        Launcher::Native => unreachable!("what is tested is Cloak"),
    }
}

fn python(script: &str) -> Case {
    Case::new("/usr/bin/python3")
        .args(["-c", script])
        .memory("512M")
        .patience(PATIENCE)
}

fn private(case: Case) -> Case {
    case.option("--network").option("private")
}

#[test]
fn processes_speak_with_each_other_and_not_with_the_host() {
    if needs::cloaked_program("/usr/bin/python3").is_none() || needs::host_program("curl").is_none() {
        return;
    }
    let real = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = real.local_addr().expect("bound").port();
    let case = private(python(include_str!("../data/private_network.py")).arg(port.to_string()));
    let case = case.option("--name").option("inside");
    let outcome = case.run(&Launcher::under_test());
    assert_eq!(
        outcome.text(),
        "name inside\nown 192.0.0.2\nlocalhost ['127.0.0.1', '::1']\ninterfaces ['lo', 'eth0']\nsys ['eth0', 'lo']\n\
         IPv4 ASKED 127.0.0.1\nall ASKED 127.0.0.1\nIPv6 ASKED ::1\ndatagrams ping pong\ncurl inside\n\
         host ECONNREFUSED\nhost by another name EHOSTUNREACH\nunknown gaierror\ntcp 2\nroute 3\n\
         hosts ['127.0.0.1', 'localhost']\n",
        "{}",
        outcome.error_text()
    );
}

#[test]
fn connections_go_out_and_names_are_found_through_the_host() {
    if needs::cloaked_program("/usr/bin/python3").is_none() || !needs::root() {
        return;
    }
    if needs::host_program("unshare").is_none() || needs::host_program("ip").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let script = scratch.write("outside.sh", include_str!("../data/private_outside.sh"));
    let output = Command::new("unshare")
        .args(["--net", "--mount", "/bin/sh"])
        .arg(script)
        .arg(cloak())
        .arg(scratch.path())
        .output()
        .expect("unshare runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "('203.0.113.5', 80) 192.0.0.2\nhello world\nb'datagram from outside' ('203.0.113.5', 7)\n\
         b'connected from outside'\nrefused\nnameserver 192.0.0.3\noptions timeout:5\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("published");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    write!(stream, "GET /{path} HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
}

fn web(folder: &Path, publish: &str) -> Case {
    let case = Case::new("/usr/bin/python3")
        .args(["-m", "http.server", "8000", "--directory"])
        .arg(folder)
        .memory("512M")
        .volume(folder);
    private(case).option("--publish").option(publish)
}

#[test]
fn two_servers_have_the_same_port_and_are_published_on_two() {
    if needs::cloaked_program("/usr/bin/python3").is_none() {
        return;
    }
    let launcher = Launcher::under_test();
    let servers = ["one", "two"].map(|text| {
        let scratch = Scratch::new();
        scratch.write("page", text);
        let port = free_port();
        let case = web(scratch.path(), &format!("127.0.0.1:{port}:8000"));
        (Server::start(&case, &launcher, port), port, scratch)
    });
    let pages = servers.each_ref().map(|(_, port, _)| get(*port, "page"));
    assert_eq!(pages, ["one", "two"]);
    for (server, ..) in servers {
        server.stop(Signal::INT);
    }
}

#[test]
fn a_port_that_is_not_published_is_not_on_the_host() {
    if needs::cloaked_program("/usr/bin/python3").is_none() {
        return;
    }
    let (published, other) = (free_port(), free_port());
    let script = format!(
        "import socket\nopen = [socket.create_server(('0.0.0.0', {other})), socket.create_server(('127.0.0.1', 8001)),\n\
         socket.create_server(('', 8000))]\nprint(*open[2].accept()[1][:1], flush=True)\n"
    );
    let case = private(python(&script))
        .option("-p")
        .option(&format!("127.0.0.1:{published}:8000"));
    // Bound after the others: when it is there, they have been.
    let server = Server::start(&case, &Launcher::under_test(), published);
    assert!(
        TcpStream::connect(("127.0.0.1", other)).is_err(),
        "it can be reached"
    );
    let outcome = server.stop_asked();
    assert_eq!(outcome.text(), "192.0.0.1\n", "{}", outcome.error_text());
}

#[test]
fn contexts_of_a_pod_have_a_network_each() {
    if needs::cloaked_program("/usr/bin/python3").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let ports = [free_port(), free_port()];
    let context = |name: &str, port: u16| {
        format!(
            "[[context]]\nname = \"{name}\"\nnetwork = \"private\"\npublish = [\"127.0.0.1:{port}:8000\"]\nmemory = \"512M\"\n\
             command = [\"/usr/bin/python3\", \"-c\", \"\"\"\nimport socket\nserver = socket.create_server(('', 8000))\n\
             taken, _ = server.accept()\nhost = socket.gethostname().encode()\ntaken.sendall(b'x\\\\r\\\\n\\\\r\\\\n' + host)\n\"\"\"]\n"
        )
    };
    let text = format!(
        "version = 1\n{}{}",
        context("first", ports[0]),
        context("second", ports[1])
    );
    let file = scratch.write("pod.toml", text);
    let mut pod = Command::new(cloak())
        .args(["pod", "run"])
        .arg(file)
        .spawn()
        .expect("cloak starts");
    let mut answers = Vec::new();
    for port in ports {
        for _ in 0..1200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
                let mut answer = String::new();
                stream.read_to_string(&mut answer).is_ok_and(|_| {
                    answers.push(answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned());
                    true
                })
            }) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert!(pod.wait().expect("it ends").success());
    assert_eq!(answers, ["first", "second"]);
}

/// The same program with the host's network shows that the test looks where such things are.
#[test]
fn the_os_side_hears_nothing_of_what_is_said_inside() {
    if needs::cloaked_program("/usr/bin/python3").is_none() || !needs::root() {
        return;
    }
    let heard = |network: &str| {
        let case = python(include_str!("../data/private_marker.py"))
            .option("--network")
            .option(network);
        let mut running = case.start(&Launcher::under_test());
        assert!(
            running.prints("under way", PATIENCE),
            "{}",
            String::from_utf8_lossy(&running.stderr_so_far())
        );
        let services = children_of(running.pid().as_raw_nonzero().get());
        assert_eq!(services.len(), 1, "one OS service");
        (0..10)
            .map(|_| count(&memory_of(services[0]), b"MARKER-OF-LOOPBACK"))
            .sum::<usize>()
    };
    assert!(
        heard("host") > 0,
        "with the host's network it is there to be found"
    );
    assert_eq!(heard("private"), 0);
}

#[test]
fn ports_are_published_of_a_private_network_only() {
    for (options, why) in [
        (&["-p", "8080:80"][..], "--network private"),
        (&["--network", "host", "-p", "8080:80"], "--network private"),
        (
            &["--network", "private", "-p", "8080:80", "-p", "8080:81"],
            "twice",
        ),
        (&["--network", "private", "-p", "80"], "HOST:GUEST"),
    ] {
        let output = Command::new(cloak())
            .arg("run")
            .args(options)
            .args(["--", "/bin/true"])
            .output()
            .expect("cloak starts");
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(why), "{options:?}: {error}");
    }
}
