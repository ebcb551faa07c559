//! A TCP echo server and its clients in one tokio runtime of several threads: 50 connections at once, each sending its
//! own bytes in pieces and checking what comes back. With a port as argument it only serves, until it is killed.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time;

const CLIENTS: u64 = 50;
const PIECES: u64 = 40;

#[tokio::main(worker_threads = 4)]
async fn main() -> io::Result<()> {
    let port = std::env::args()
        .nth(1)
        .map_or(0, |text| text.parse().expect("the argument is a port"));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(serve(listener));
    if port != 0 {
        return server.await?;
    }
    let (done, mut results) = mpsc::channel(16);
    for client in 0..CLIENTS {
        let done = done.clone();
        tokio::spawn(async move {
            let stream = TcpStream::connect(address).await?;
            done.send(talk(stream, client).await?)
                .await
                .map_err(io::Error::other)
        });
    }
    drop(done);
    let (mut finished, mut total) = (0, 0_u64);
    while let Some(sum) = results.recv().await {
        finished += 1;
        total = total.wrapping_add(sum);
    }
    time::sleep(Duration::from_millis(5)).await;
    println!("clients {finished} sum {total:016x}");
    Ok(())
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await
        });
    }
}

/// Gives a checksum of what came back, which is what was sent.
async fn talk(mut stream: TcpStream, client: u64) -> io::Result<u64> {
    let mut sum = 0_u64;
    for piece in 0..PIECES {
        let sent: Vec<u8> = (0..1000 + piece * 37)
            .map(|i| (i * 31 + client * 7 + piece) as u8)
            .collect();
        stream.write_all(&sent).await?;
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).await?;
        assert_eq!(sent, back);
        sum = back.iter().fold(sum, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
        });
    }
    Ok(sum)
}
