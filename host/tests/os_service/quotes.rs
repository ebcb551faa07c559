//! The process that fetches a domain's quotes, as the monitor starts it: in its jail, over a real socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use cloak_host::tdvmcall::courier::Courier;
use cloak_host::tdvmcall::qgs::{self, REPORT_BYTES};
use cloak_host::tdvmcall::service::{Address, QuoteSource};

pub const TESTS: &[(&str, fn())] = &[
    ("quotes_are_fetched_by_a_process_of_its_own", quotes_are_fetched),
    ("a_quoting_service_that_comes_later_is_found", service_comes_later),
    ("what_a_quoting_service_says_wrong_is_named", wrong_answers),
    ("a_vsock_is_tried", vsock),
];

/// What a service sends for a report.
type Answer = fn(&[u8; REPORT_BYTES]) -> Vec<u8>;

/// Serves connections one by one, each with one answer.
fn serve(listener: UnixListener, answers: Vec<Answer>) {
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = vec![0; qgs::PREFIX + 24 + REPORT_BYTES];
            stream.read_exact(&mut request).expect("a request");
            let report = qgs::parse_request(&request[qgs::PREFIX..]).expect("a request");
            stream.write_all(&answer(report)).expect("heard");
        }
    });
}

fn started() -> (tempfile::TempDir, std::path::PathBuf, Courier) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("qgs.socket");
    let courier = Courier::start(&Address::Unix(path.clone())).expect("a process");
    (folder, path, courier)
}

fn quotes_are_fetched() {
    let (_folder, path, courier) = started();
    let listener = UnixListener::bind(path).expect("a socket");
    serve(listener, vec![|report| qgs::response(0, &report[..100]); 3]);
    for byte in 1..=3 {
        assert_eq!(
            courier.quote(&[byte; REPORT_BYTES]).expect("a quote"),
            [byte; 100]
        );
    }
}

fn service_comes_later() {
    let (_folder, path, courier) = started();
    let error = courier.quote(&[0; REPORT_BYTES]).expect_err("nobody");
    assert!(
        error.is_unreachable() && error.to_string().contains("is qgsd running"),
        "{error}"
    );
    serve(
        UnixListener::bind(path).expect("a socket"),
        vec![|_| qgs::response(0, &[5; 9])],
    );
    assert_eq!(courier.quote(&[0; REPORT_BYTES]).expect("a quote"), [5; 9]);
}

fn wrong_answers() {
    let (_folder, path, courier) = started();
    let listener = UnixListener::bind(path).expect("a socket");
    serve(
        listener,
        vec![
            |_| vec![0xff; 8],
            |_| Vec::new(),
            |_| qgs::response(0x1_2003, &[]),
            |_| qgs::response(0, &[1; 99])[..60].to_vec(),
        ],
    );
    for named in [
        "its length",
        "does not answer",
        "none of this machine's",
        "does not answer",
    ] {
        let error = courier.quote(&[0; REPORT_BYTES]).expect_err("no quote");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

fn vsock() {
    // This machine's own, where the kernel has that; port 1 is no service's.
    let address: Address = "vsock:1:1".parse().expect("an address");
    let courier = Courier::start(&address).expect("a process");
    let error = courier.quote(&[0; REPORT_BYTES]).expect_err("nobody");
    assert!(
        error.is_unreachable() && error.to_string().contains("vsock:1:1"),
        "{error}"
    );
}
