//! TLS in front of the registry's HTTP and gRPC: TLS 1.2 and 1.3, certificates that are read again when their files change.
//! Promise: a handshake ends within [`HANDSHAKE_MAX`] and costs its own connection alone; whoever speaks plain HTTP is told
//! so. Uses what https listeners use.

use crate::config::http::CertFiles;
use crate::doors::http::tls::{Greeting, Keeper};
use ringspan_registry::grpc::{Bytes, Wrap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

/// From the connect to the end of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// The certificate, and who shows it.
pub(crate) struct Front {
    keeper: Keeper,
}

impl Front {
    /// Reads the files, and again whenever they change. Needs a runtime.
    pub(crate) fn start(files: &CertFiles) -> Result<Arc<Front>, String> {
        Ok(Arc::new(Front { keeper: Keeper::start("[http]", std::slice::from_ref(files))? }))
    }

    /// Speaks TLS with whoever has connected. `None`: it came to nothing.
    pub(crate) async fn greet(&self, mut stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let shake = async {
            let greeting = match Greeting::read(&mut stream).await {
                Ok(greeting) => greeting,
                Err(answer) => {
                    let is_plain = answer.starts_with(b"HTTP");
                    tracing::debug!(%peer, is_plain, "the registry's port: no TLS");
                    let _ = stream.write_all(&answer).await;
                    return None;
                }
            };
            let handshake = StartHandshake::from_parts(greeting.accepted, stream);
            match handshake.into_stream(self.keeper.config.clone()).await {
                Ok(stream) => Some(stream),
                Err(error) => {
                    tracing::debug!(%peer, %error, "the registry's port: TLS");
                    None
                }
            }
        };
        match tokio::time::timeout(HANDSHAKE_MAX, shake).await {
            Ok(stream) => stream,
            Err(_elapsed) => {
                tracing::debug!(%peer, "the registry's port: the TLS handshake took too long");
                None
            }
        }
    }

    /// The same, for gRPC.
    pub(crate) fn wrap(self: &Arc<Front>) -> Wrap {
        let front = self.clone();
        Arc::new(move |stream, peer| {
            let front = front.clone();
            Box::pin(async move {
                let stream = front.greet(stream, peer).await?;
                Some(Box::new(stream) as Box<dyn Bytes>)
            })
        })
    }
}
