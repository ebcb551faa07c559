//! Servers under load from the host: redis and nginx.

use cloak_tests::server::free_port;
use cloak_tests::{Case, Launcher, Scratch, Server, Status, needs};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

fn client(program: &Path, arguments: &[&str]) -> String {
    let done = Command::new(program)
        .args(arguments)
        .env_clear()
        .output()
        .expect("the client runs");
    let (out, error) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(
        done.status.success(),
        "{} {arguments:?}\n{out}\n{error}",
        program.display()
    );
    out.into_owned()
}

fn redis(folder: &Path, port: u16, program: &Path) -> Case {
    Case::new(program)
        .args([
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            "127.0.0.1",
            "--port",
        ])
        .arg(port.to_string())
        .arg("--dir")
        .arg(folder)
        .volume(folder)
}

/// What a client that says `word` is told, to the end of the connection.
fn told(port: u16, word: &str) -> std::io::Result<Vec<u8>> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.write_all(word.as_bytes())?;
    let mut all = Vec::new();
    connection.read_to_end(&mut all).map(|_| all)
}

#[test]
fn clients_meet_the_semantics_of_a_connection() {
    let Some(python) = needs::cloaked_program("/usr/bin/python3") else {
        return;
    };
    for launcher in [Launcher::Native, Launcher::under_test()] {
        let port = free_port();
        let case = Case::new(&python).args(["-c", include_str!("../data/clients.py")]);
        let server = Server::start(&case.arg(port.to_string()), &launcher, port);
        let turns: String = (0..300).map(|n| format!("parent {n}\nchild {n}\n")).collect();
        assert!(
            told(port, "turns.").expect("an end") == turns.as_bytes(),
            "in turn"
        );
        assert_eq!(
            told(port, "looks.first second").expect("an end"),
            b"fir|12|first second|first| secon|more"
        );
        let left = told(port, "leave.something");
        let reset = std::io::ErrorKind::ConnectionReset;
        assert_eq!(left.expect_err("unread data resets").kind(), reset);
        // The last one: it does not outlive its answer, which nobody has read by then.
        let mut slow = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        slow.write_all(b"exits.").expect("sends");
        let mut all = vec![0; 16];
        slow.read_exact(&mut all).expect("the beginning");
        std::thread::sleep(std::time::Duration::from_millis(300));
        slow.read_to_end(&mut all).expect("the rest");
        let right: Vec<u8> = (0..200u16).flat_map(|n| n.to_be_bytes().repeat(8192)).collect();
        assert!(all == right, "{} bytes of {}", all.len(), right.len());
        assert_eq!(server.stop_asked().status, Status::Exit(7));
    }
}

#[test]
fn redis_server_with_redis_benchmark() {
    let (Some(program), Some(benchmark), Some(cli)) = (
        needs::cloaked_program("redis-server"),
        needs::host_program("redis-benchmark"),
        needs::host_program("redis-cli"),
    ) else {
        return;
    };
    let scratch = Scratch::new();
    let session = |launcher: &Launcher| {
        let port = free_port();
        let server = Server::start(&redis(scratch.path(), port, &program), launcher, port);
        let port = port.to_string();
        for pipeline in ["1", "16"] {
            let load = [
                "-p",
                &port,
                "-t",
                "set,get,incr,lpush,lrange_100,mset",
                "-n",
                "5000",
                "-c",
                "50",
                "-P",
                pipeline,
                "--csv",
            ];
            let table = client(&benchmark, &load);
            assert!(table.lines().count() >= 7, "a test is missing:\n{table}");
        }
        let script = "for i = 1, 1000 do redis.call('zadd', 'z', i * 7919 % 1000, 'm' .. i) end return redis.call('zrange', 'z', 0, 9)";
        let answers = [
            client(&cli, &["-p", &port, "ping"]),
            client(&cli, &["-p", &port, "get", "counter:__rand_int__"]),
            client(&cli, &["-p", &port, "eval", script, "0"]),
            client(&cli, &["-p", &port, "dbsize"]),
        ];
        let _ = Command::new(&cli)
            .args(["-p", &port, "shutdown", "nosave"])
            .output();
        (answers, server.stop_asked().status)
    };
    let native = session(&Launcher::Native);
    assert_eq!(native.1, Status::Exit(0));
    assert_eq!(session(&Launcher::under_test()), native);
}

#[test]
fn nginx_with_wrk() {
    let (Some(program), Some(wrk), Some(curl)) = (
        needs::cloaked_program("nginx"),
        needs::host_program("wrk"),
        needs::host_program("curl"),
    ) else {
        return;
    };
    let scratch = Scratch::new();
    scratch.write("one", "x".repeat(1024));
    scratch.write("large", "0123456789abcdef".repeat(100_000));
    let session = |launcher: &Launcher| {
        let port = free_port();
        let server = Server::start(&nginx(&scratch, port, &program), launcher, port);
        let url = |path: &str| format!("http://127.0.0.1:{port}/{path}");
        let table = client(&wrk, &["-t1", "-c32", "-d2s", &url("one")]);
        assert!(
            table.contains("Requests/sec") && !table.contains("Non-2xx"),
            "{table}"
        );
        let fetch = |path: &str| client(&curl, &["-s", "--noproxy", "*", "-w", "%{http_code}", &url(path)]);
        let answers = [fetch("one"), fetch("large"), fetch("absent")];
        (answers, server.stop(Signal::QUIT).status)
    };
    let native = session(&Launcher::Native);
    assert!(native.0[1].len() > 1_600_000);
    let cloaked = session(&Launcher::under_test());
    assert!(
        cloaked.0 == native.0,
        "the cloaked server answers otherwise than the native one"
    );
    assert_eq!(cloaked.1.shell_code(), native.1.shell_code());
}

/// One process, in the foreground, with all of its files in `scratch`.
fn nginx(scratch: &Scratch, port: u16, program: &Path) -> Case {
    let root = scratch.path().display();
    let settings = format!(
        "daemon off; master_process off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; sendfile on; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    );
    let file = scratch.write("nginx.conf", settings);
    // Its start-up log is opened before the configuration is read.
    Case::new(program)
        .arg("-e")
        .arg(scratch.join("error.log"))
        .arg("-c")
        .arg(file)
        .volume(scratch.path())
}

#[test]
fn tokio_echo_serves_the_host() {
    use std::io::{Read, Write};
    if !needs::kvm() {
        return;
    }
    let port = free_port();
    let case = Case::new(env!("CARGO_BIN_EXE_tokio-echo")).arg(port.to_string());
    let server = Server::start(&case, &Launcher::under_test(), port);
    let mut streams: Vec<_> = (0..20)
        .map(|_| std::net::TcpStream::connect(server.address()).expect("it listens"))
        .collect();
    for round in 0..50_usize {
        for (number, stream) in streams.iter_mut().enumerate() {
            let sent = vec![(round * 20 + number) as u8; 1 + round * 97];
            let mut back = vec![0; sent.len()];
            stream
                .write_all(&sent)
                .and_then(|()| stream.read_exact(&mut back))
                .expect("it echoes");
            assert_eq!(sent, back);
        }
    }
    drop(streams);
    assert_eq!(server.stop(Signal::TERM).status.shell_code(), 143);
}
