//! A tiny HTTP backend that can be killed and brought back on the same address.

use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Longest request looked at.
const REQUEST_BYTES_MAX: usize = 4096;

/// See the module.
pub(super) struct Backend {
    /// What it answers with.
    pub(super) name: &'static str,
    /// Where it listens, dead or alive.
    pub(super) address: SocketAddr,
    running: Option<AbortHandle>,
}

impl Backend {
    /// Starts one on a free loopback port.
    pub(super) async fn start(name: &'static str) -> io::Result<Backend> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let running = Some(tokio::spawn(serve(listener, name)).abort_handle());
        Ok(Backend { name, address, running })
    }

    /// Closes the listener and every connection at once, as a crash does.
    pub(super) fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    /// Listens again on the same address.
    pub(super) async fn bring_back(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.running = Some(tokio::spawn(serve(listener, self.name)).abort_handle());
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Dropped with its task: the set aborts every connection in it.
async fn serve(listener: TcpListener, name: &'static str) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(answer(stream, name));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, name: &'static str) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if request.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let body = format!("hello from backend {name}\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    stream.shutdown().await
}
