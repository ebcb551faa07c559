//! RA-TLS between two processes: the example `ratls`, as server and as client.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// Cargo puts examples beside the folder of the tests.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let target = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("target/PROFILE/deps");
    target.join("examples/ratls")
}

struct Server {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    address: String,
}

fn start(options: &[&str]) -> Server {
    let mut child = Command::new(example())
        .args(["server", "127.0.0.1:0"])
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example is built with the tests");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
    Server { child, out, address }
}

/// What the client and what the server said.
fn talk(server: &[&str], client: &[&str]) -> (Output, bool, String) {
    let mut server = start(server);
    let client = Command::new(example())
        .args(["client", &server.address])
        .args(client)
        .output()
        .expect("the example runs");
    let mut said = String::new();
    server.out.read_to_string(&mut said).expect("text");
    server
        .child
        .stderr
        .take()
        .expect("a pipe")
        .read_to_string(&mut said)
        .expect("text");
    let well = server.child.wait().expect("it ends").success();
    (client, well, said)
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn two_processes_with_good_evidence_talk() {
    let (client, served, server) = talk(&[], &[]);
    assert!(client.status.success() && served, "{}{server}", text(&client));
    assert!(text(&client).contains("says pong"), "{}", text(&client));
    assert!(server.contains("says ping"), "{server}");
    let nonce = "5a".repeat(32);
    let fresh = ["--nonce", nonce.as_str(), "--wants", nonce.as_str()];
    let (client, served, server) = talk(&fresh, &fresh);
    assert!(client.status.success() && served, "{}{server}", text(&client));
}

#[test]
fn a_wrong_measurement_an_old_nonce_and_a_stolen_certificate_are_refused_on_either_side() {
    let other = "22".repeat(48);
    let nonce = "5a".repeat(32);
    let wrong: [&[&str]; 3] = [&["--measures", &other], &["--nonce", &nonce], &["--steal"]];
    for bad in wrong {
        let (client, _, server) = talk(bad, &[]);
        assert!(!client.status.success(), "{bad:?}: {}{server}", text(&client));
        let (client, served, server) = talk(&[], bad);
        assert!(!served, "{bad:?}: {}{server}", text(&client));
        assert!(!server.contains("says ping"), "{server}");
    }
}
