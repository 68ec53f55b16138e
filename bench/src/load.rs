//! The load generators, each a child process of its own so that its CPU is nobody else's: a server that accepts and
//! closes, an echo, a sink, a source. Driven by tokio-uring: what a Rust user would reach for, and not our own engine,
//! so that a mistake there does not measure itself.
//! Promise: bounded. A server ends by itself after `LIFETIME_MAX`, a stream after `STREAM_BYTES_MAX`.

use crate::process::Failure;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};
use tokio_uring::net::{TcpListener, TcpStream};

/// No child serves longer than this, whatever became of its parent: an hour is longer than any scenario.
const LIFETIME_MAX: Duration = Duration::from_secs(3600);

/// No bulk stream is longer: 1 TB takes minutes at loopback speed, and the figure is steady after seconds.
pub(crate) const STREAM_BYTES_MAX: u64 = 1_000_000_000_000;

/// One read or write of a bulk stream: large enough that the load generator's own system calls do not show.
const BLOCK_BYTES: usize = 1 << 20;

/// One read of an echoed stream: many of them live at once.
const ECHO_BYTES: usize = 64 << 10;

/// What a source found, as its line of JSON.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Sent {
    /// Payload bytes that the sink has confirmed.
    pub(crate) bytes: u64,
    /// From the first byte to the confirmation.
    pub(crate) seconds: f64,
}

/// Runs a future on a fresh tokio-uring runtime, under a watchdog.
fn serve<F: Future<Output = io::Result<()>>>(future: F) -> Result<(), Failure> {
    thread::spawn(|| {
        thread::sleep(LIFETIME_MAX);
        eprintln!("load generator: an hour is over");
        std::process::exit(3);
    });
    tokio_uring::start(future).map_err(|e| format!("load generator: {e}. It needs io_uring"))
}

/// A listening socket for [`echo`] or [`sink`].
///
/// # Errors
/// The address cannot be had.
pub(crate) fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    // std sets SO_REUSEADDR alone; tokio-uring also SO_REUSEPORT, and would share a port with a forgotten server.
    std::net::TcpListener::bind(address).map_err(|e| format!("listen on {address}: {e}"))
}

/// Accepts and closes, on each address, for ever.
///
/// # Errors
/// An address cannot be had, or the kernel refuses io_uring.
pub(crate) fn accept_and_close(addresses: &[SocketAddr]) -> Result<(), Failure> {
    serve(async {
        // Bound by tokio-uring for its backlog of 1024; std asks for 128, too few for half-open probes by the thousand.
        let bind =
            |a: &SocketAddr| TcpListener::bind(*a).map_err(|e| io::Error::new(e.kind(), format!("listen on {a}: {e}")));
        let listeners = addresses.iter().map(bind).collect::<io::Result<Vec<_>>>()?;
        let tasks: Vec<_> = listeners.into_iter().map(|l| tokio_uring::spawn(accept_loop(l))).collect();
        for task in tasks {
            let _ = task.await;
        }
        Ok(())
    })
}

async fn accept_loop(listener: TcpListener) {
    loop {
        // A visitor that reset before it was accepted is an error of accept; the listener is none the worse.
        if let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    }
}

/// Gives back what it reads, and a clean end for a clean end.
///
/// # Errors
/// The kernel refuses io_uring.
pub(crate) fn echo(listener: std::net::TcpListener) -> Result<(), Failure> {
    serve(async move {
        let listener = TcpListener::from_std(listener);
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio_uring::spawn(echo_one(stream));
            }
        }
    })
}

async fn echo_one(stream: TcpStream) {
    let mut buffer = Vec::with_capacity(ECHO_BYTES);
    loop {
        buffer.clear();
        let (read, filled) = stream.read(buffer).await;
        match read {
            Ok(0) => break,
            Ok(_) => {
                let (written, back) = stream.write_all(filled).await;
                buffer = back;
                if written.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Reads as many bytes as each visitor announced (8 bytes, little-endian, ahead of them), then answers with the count.
/// The count, not the end of the stream, ends it: so a peer that cannot half-close is measured too.
///
/// # Errors
/// The kernel refuses io_uring.
pub(crate) fn sink(listener: std::net::TcpListener) -> Result<(), Failure> {
    serve(async move {
        let listener = TcpListener::from_std(listener);
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio_uring::spawn(async move {
                    if let Err(e) = sink_one(stream).await {
                        eprintln!("sink: {e}");
                    }
                });
            }
        }
    })
}

async fn read_u64(stream: &TcpStream) -> io::Result<u64> {
    let mut bytes = Vec::with_capacity(8);
    while bytes.len() < 8 {
        let (read, part) = stream.read(Vec::with_capacity(8 - bytes.len())).await;
        if read? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part);
    }
    Ok(u64::from_le_bytes(bytes.try_into().expect("the loop ends at 8 bytes")))
}

async fn sink_one(stream: TcpStream) -> io::Result<()> {
    let announced = read_u64(&stream).await?.min(STREAM_BYTES_MAX);
    let mut seen = 0;
    let mut buffer = Vec::with_capacity(BLOCK_BYTES);
    while seen < announced {
        buffer.clear();
        let (read, back) = stream.read(buffer).await;
        buffer = back;
        match read? {
            0 => return Err(io::Error::other(format!("the stream ended after {seen} of {announced} bytes"))),
            n => seen += n as u64,
        }
    }
    stream.write_all(seen.to_le_bytes().to_vec()).await.0
}

/// Sends `bytes` to a [`sink`], through whatever listens at `address`, and waits for its answer.
///
/// # Errors
/// The stream broke, or the sink saw another number of bytes.
pub(crate) fn source(address: SocketAddr, bytes: u64) -> Result<Sent, Failure> {
    let bytes = bytes.min(STREAM_BYTES_MAX);
    let run = async {
        let stream = Rc::new(TcpStream::connect(address).await?);
        stream.write_all(bytes.to_le_bytes().to_vec()).await.0?;
        let started = Instant::now();
        let mut block = vec![7u8; BLOCK_BYTES];
        let mut left = bytes;
        while left > 0 {
            block.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES));
            let (written, back) = stream.write_all(block).await;
            written?;
            block = back;
            left -= block.len() as u64;
        }
        let confirmed = read_u64(&stream).await?;
        Ok::<_, io::Error>(Sent { bytes: confirmed, seconds: started.elapsed().as_secs_f64() })
    };
    let sent = tokio_uring::start(run).map_err(|e| format!("source to {address}: {e}"))?;
    if sent.bytes == bytes { Ok(sent) } else { Err(format!("the sink saw {} of {bytes} bytes", sent.bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visitor;

    fn on_a_thread(server: fn(std::net::TcpListener) -> Result<(), Failure>) -> SocketAddr {
        let listener = listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || server(listener));
        address
    }

    /// A sink confirms every byte of a source, whether or not they fill whole blocks.
    #[test]
    fn a_sink_counts_what_a_source_sends() {
        let address = on_a_thread(sink);
        for bytes in [0, 1, BLOCK_BYTES as u64, 3 * BLOCK_BYTES as u64 + 17] {
            assert_eq!(source(address, bytes).expect("io_uring is there").bytes, bytes);
        }
    }

    /// An echo gives back every byte and the clean end.
    #[test]
    fn an_echo_echoes() {
        let address = on_a_thread(echo);
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..50 {
            visitor::echo(address, &mut rng).expect("all bytes and a clean end");
        }
    }
}
