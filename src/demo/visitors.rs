//! Visitors: several at a time, each a fresh connection with one HTTP request, counted by who answered.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Visitors at a time.
const VISITORS: usize = 4;
/// Between a visitor's requests: some 150 a second together, enough to notice a gap of 10 ms.
const PAUSE: Duration = Duration::from_millis(25);
/// A visitor's patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    /// When the visitor began to connect.
    pub(super) started: Instant,
    /// When it had its answer or its error.
    pub(super) ended: Instant,
    /// Which backend answered, or what went wrong.
    pub(super) result: Result<String, String>,
}

/// Visits since they were last taken.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Visit>>>);

impl Log {
    /// Takes what has come in.
    pub(super) fn take(&self) -> Vec<Visit> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, visit: Visit) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(visit);
    }
}

/// Sends visitors until dropped.
pub(super) fn send(to: SocketAddr, log: &Log) -> JoinSet<()> {
    let mut visitors = JoinSet::new();
    for _ in 0..VISITORS {
        let log = log.clone();
        visitors.spawn(async move {
            loop {
                log.push(visit(to).await);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    visitors
}

async fn visit(to: SocketAddr) -> Visit {
    let started = Instant::now();
    let result = match tokio::time::timeout(PATIENCE, ask(to)).await {
        Ok(Ok(name)) => Ok(name),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {PATIENCE:?}")),
    };
    Visit { started, ended: Instant::now(), result }
}

async fn ask(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let name = answer.rsplit_once("hello from backend ").map(|(_, name)| name.trim().to_owned());
    match name {
        Some(name) if answer.starts_with("HTTP/1.1 200 ") => Ok(name),
        Some(_) | None => Err(io::Error::other("the answer was cut off")),
    }
}
