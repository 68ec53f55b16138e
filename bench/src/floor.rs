//! The floors: bare loops that do only the system calls, each run as a child on a core of its own.
//! They have no scheduling, no timeouts, no state and no statistics: a real engine can come close to them and cannot
//! beat them by much.

use crate::process::Failure;
use ringspan_engine::kernel::floor::{HTTP_PROBES, PROBES, message_relay, splice_relay};
use ringspan_engine::kernel::{CpuOf, Socket, cpu_time};
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

/// What a floor found, as its line of JSON.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Ran {
    /// Probes that found their target up.
    pub(crate) up: usize,
    /// Wall time.
    pub(crate) seconds: f64,
    /// User and system time of the loop.
    pub(crate) cpu_seconds: f64,
}

/// The names of the floors of TCP probes.
pub(crate) fn probes() -> impl Iterator<Item = &'static str> {
    PROBES.iter().map(|(name, _)| *name)
}

/// The names of the floors of HTTP probes.
pub(crate) fn http_probes() -> impl Iterator<Item = &'static str> {
    HTTP_PROBES.iter().map(|(name, _)| *name)
}

/// Runs a probe floor in this process.
///
/// # Errors
/// No floor of that name, or the kernel refuses what it needs.
pub(crate) fn probe(method: &str, count: usize, in_flight: usize, targets: &[SocketAddr]) -> Result<Ran, Failure> {
    let (_, floor) =
        PROBES.iter().chain(HTTP_PROBES).find(|(name, _)| *name == method).ok_or(format!("no floor \"{method}\""))?;
    let (cpu, started) = (cpu_time(CpuOf::Process), Instant::now());
    let up = floor(count, in_flight, targets).map_err(|e| format!("floor {method}: {e}"))?;
    let cpu_seconds = (cpu_time(CpuOf::Process) - cpu).as_secs_f64();
    Ok(Ran { up, seconds: started.elapsed().as_secs_f64(), cpu_seconds })
}

/// Size of the splice floor's pipe: the largest that an ordinary user may ask for (/proc/sys/fs/pipe-max-size).
const PIPE_BYTES: usize = 1 << 20;

/// Runs the splice relay in this process, for ever: one thread for each direction of each connection.
///
/// # Errors
/// The port cannot be had.
pub(crate) fn splice(listen: SocketAddr, connect: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).map_err(|e| format!("listen on {listen}: {e}"))?;
    for visitor in listener.incoming() {
        let pair = visitor.and_then(|visitor| {
            let backend = TcpStream::connect(connect)?;
            Ok((visitor.try_clone()?, backend.try_clone()?, visitor, backend))
        });
        match pair {
            Ok((visitor, backend, visitor_2, backend_2)) => {
                for (from, to) in [(visitor, backend), (backend_2, visitor_2)] {
                    thread::spawn(move || splice_relay(from, to, PIPE_BYTES));
                }
            }
            Err(e) => eprintln!("splice relay: {e}"),
        }
    }
    Ok(())
}

/// Runs the relay of small messages in this process, for ever: all connections on one thread.
///
/// # Errors
/// The port cannot be had, or the backend is not there.
pub(crate) fn messages(listen: SocketAddr, connect: SocketAddr) -> Result<(), Failure> {
    // Not std's listener: its backlog of 128 is too few for visitors who all come at once.
    let socket = Socket::listen(&listen, 4096).map_err(|e| format!("listen on {listen}: {e}"))?;
    message_relay(&socket.into_owned().into(), connect).map_err(|e| format!("relay of messages: {e}"))
}
