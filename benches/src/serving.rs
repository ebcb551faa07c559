//! Servers under load: the server runs under a peer, the load generator always on the host.

use crate::measure::{Figure, MeasureError, World, run};
use crate::peer::Peer;
use cloak_tests::server::free_port;
use cloak_tests::{Case, Scratch, Server};
use std::path::Path;

/// GET and SET by 50 clients, each request alone and 16 at a time.
///
/// # Errors
/// When the server or its client fails.
pub fn redis(_: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let port = free_port();
    let case = Case::new("/usr/bin/redis-server");
    let case = case
        .args([
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            "127.0.0.1",
            "--port",
        ])
        .arg(port.to_string());
    let mut started = peer.start(&case)?;
    let _server = Server::attach(started.running.take().expect("it was just started"), port)?;
    let port = port.to_string();
    let mut figures = Vec::new();
    for (pipeline, requests) in [("1", "100000"), ("16", "600000")] {
        let load = [
            "-p", &port, "-t", "get,set", "-c", "50", "-P", pipeline, "-n", requests, "--csv",
        ];
        let table = client("/usr/bin/redis-benchmark", &load)?;
        for name in ["GET", "SET"] {
            let row = table
                .lines()
                .find_map(|line| line.strip_prefix(&format!("\"{name}\",\"")));
            let figure = row
                .and_then(|row| row.split('"').next())
                .and_then(|figure| figure.parse().ok());
            let figure = figure.ok_or_else(|| MeasureError::NoFigure {
                what: "redis",
                output: table.clone(),
            })?;
            figures.push((format!("redis-{}-{pipeline}", name.to_lowercase()), figure));
        }
    }
    // An orderly end, so that a container runtime sees its program leave.
    let _ = client("/usr/bin/redis-cli", &["-p", &port, "shutdown", "nosave"]);
    Ok(figures)
}

/// What nginx may do with the files that it serves.
#[derive(Debug, Clone, Copy)]
enum Files {
    /// Read them, as it is deployed as a rule.
    ReadOnly,
    /// They are shared for writing, so that nothing of them is cached.
    Shared,
}

/// A file of 1 KiB, by 32 connections.
///
/// # Errors
/// When the server or its client fails.
pub fn nginx(world: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    let processes = "master_process off;";
    let read = nginx_with(world, peer, Files::ReadOnly, processes)?;
    let shared = nginx_with(world, peer, Files::Shared, processes)?;
    Ok(vec![
        ("nginx-1k".into(), read),
        ("nginx-1k-shared".into(), shared),
    ])
}

/// The same with two worker processes, as a distribution sets it up.
///
/// # Errors
/// When the server or its client fails.
pub fn nginx_workers(world: &World, peer: &Peer) -> Result<Vec<Figure>, MeasureError> {
    // Its own user may not reach the files.
    let processes = "user root root; worker_processes 2;";
    let read = nginx_with(world, peer, Files::ReadOnly, processes)?;
    let shared = nginx_with(world, peer, Files::Shared, processes)?;
    Ok(vec![
        ("nginx-1k-workers".into(), read),
        ("nginx-1k-workers-shared".into(), shared),
    ])
}

fn nginx_with(world: &World, peer: &Peer, files: Files, processes: &str) -> Result<f64, MeasureError> {
    let (port, own) = (free_port(), Scratch::new());
    let (root, served) = (own.path().display(), world.folder().display());
    let settings = format!(
        "daemon off; {processes} pid {root}/pid; error_log {root}/error.log; events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3;\n\
         uwsgi_temp_path {root}/4; scgi_temp_path {root}/5; sendfile on; keepalive_requests 1000000;\n\
         server {{ listen 127.0.0.1:{port}; root {served}; }} }}\n"
    );
    let file = own.write("nginx.conf", settings);
    let case = Case::new("/usr/sbin/nginx")
        .arg("-e")
        .arg(own.join("error.log"))
        .arg("-c")
        .arg(file)
        .volume(own.path());
    let case = match files {
        Files::ReadOnly => case.option("--volume").option(&format!("{served}:{served}:ro")),
        Files::Shared => case.volume(world.folder()),
    };
    let mut started = peer.start(&case)?;
    let _server = Server::attach(started.running.take().expect("it was just started"), port)?;
    let table = client(
        "/usr/bin/wrk",
        &["-t1", "-c32", "-d4s", &format!("http://127.0.0.1:{port}/1k")],
    )?;
    let figure = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let figure = figure.and_then(|figure| figure.trim().parse().ok());
    figure.ok_or(MeasureError::NoFigure {
        what: "nginx",
        output: table,
    })
}

/// A load generator on the host, the same for every peer.
///
/// # Errors
/// When it fails.
pub fn client(program: impl AsRef<Path>, arguments: &[&str]) -> Result<String, MeasureError> {
    let case = Case::new(program.as_ref()).args(arguments.iter().copied());
    Ok(run("client", &Peer::native(), &case)?.0.text())
}
