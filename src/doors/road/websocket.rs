//! A link, or a visit, inside a WebSocket (RFC 6455), the agent's end: for networks that let nothing else out.

use super::RoadError;
use super::pump::{self, Purpose};
use super::trust::Trust;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::address::Address;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::{SEC_WEBSOCKET_PROTOCOL, USER_AGENT};
use tokio_tungstenite::tungstenite::{Error as WsError, error::ProtocolError};

/// The outer handshake: three round trips at most.
const TLS_MAX: Duration = Duration::from_secs(6);
/// What stands in front of the bridge may have to connect to it first.
const UPGRADE_MAX: Duration = Duration::from_secs(10);

/// Where, and whom the outer TLS believes.
#[derive(Clone)]
pub(crate) struct WebSocket {
    url: String,
    address: Address,
    /// `None`: `ws://`.
    tls: Option<(Trust, Arc<ClientConfig>)>,
}

impl WebSocket {
    /// Of a URL that has been taken apart. `trust`: of `wss://` alone.
    ///
    /// # Errors
    /// A sentence: see [`Trust::client`].
    pub(crate) fn new(url: String, address: Address, trust: Option<Trust>) -> Result<WebSocket, String> {
        let tls = trust.map(|trust| trust.client().map(|config| (trust, config))).transpose()?;
        Ok(WebSocket { url, address, tls })
    }

    /// Whom to connect to.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// One end of a pair whose other end is carried in messages over `stream`.
    pub(super) async fn reach(&self, stream: TcpStream, purpose: Purpose) -> Result<Socket, RoadError> {
        let _ = stream.set_nodelay(true);
        let Some((_, config)) = &self.tls else { return self.upgrade(stream, purpose).await };
        let name = ServerName::try_from(self.address.host().trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|error| RoadError::answered(self, "TLS", error))?;
        let connecting = TlsConnector::from(config.clone()).connect(name, stream);
        let done = timeout(TLS_MAX, connecting).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        self.upgrade(done.map_err(|error| RoadError::io(self, "TLS", &error))?, purpose).await
    }

    async fn upgrade<S>(&self, stream: S, purpose: Purpose) -> Result<Socket, RoadError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        const STEP: &str = "WebSocket upgrade";
        let io = |error: &io::Error| RoadError::io(self, STEP, error);
        let mut request = self.url.as_str().into_client_request().map_err(|error| self.wrong(STEP, &error))?;
        let headers = request.headers_mut();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(purpose.protocol()));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringspan/", env!("CARGO_PKG_VERSION"))));
        let shaking = client_async_with_config(request, stream, Some(pump::config()));
        let done = timeout(UPGRADE_MAX, shaking).await.map_err(|_| io(&ErrorKind::TimedOut.into()))?;
        let (stream, _) = done.map_err(|error| self.wrong(STEP, &error))?;
        let (ours, theirs) = Socket::pair().map_err(|error| io(&error))?;
        let theirs = pump::end(theirs).map_err(|error| io(&error))?;
        let who = self.to_string();
        tokio::spawn(async move {
            let end = pump::pump(stream, theirs, Some(pump::PING_EVERY)).await;
            tracing::debug!(via = who, ?purpose, %end, "a WebSocket to the bridge is over");
        });
        Ok(ours)
    }

    fn wrong(&self, step: &str, error: &WsError) -> RoadError {
        match error {
            WsError::Io(error) => RoadError::io(self, step, error),
            WsError::Http(answer) => RoadError::answered(self, step, format!("it answered {}", answer.status())),
            WsError::Protocol(ProtocolError::HandshakeIncomplete) => {
                RoadError::io(self, step, &ErrorKind::UnexpectedEof.into())
            }
            WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
                RoadError::answered(self, step, "a WebSocket answers there, and it is no bridge's")
            }
            error => RoadError::answered(self, step, error),
        }
    }
}

impl PartialEq for WebSocket {
    fn eq(&self, other: &WebSocket) -> bool {
        let trust = |websocket: &WebSocket| websocket.tls.as_ref().map(|(trust, _)| trust.clone());
        self.url == other.url && trust(self) == trust(other)
    }
}

impl fmt::Display for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
