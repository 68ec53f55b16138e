//! How an agent comes to its bridge when it cannot simply connect: through a proxy, inside a WebSocket, or both.
//!
//! ```text
//! TCP to the proxy ─CONNECT or SOCKS 5─▶ TCP to the bridge's link port ───────────────▶ the socket itself, spliced
//!                                   └──▶ TLS, HTTP upgrade, binary messages ──pair──▶ pumped, copied
//! ```
//! Promises: an error names the step, whom it was asked of and what came back, and never a password; each step has its
//! time; nothing that the bridge says is lost behind a proxy's answer.

mod connect;
pub(crate) mod pump;
mod socks;
pub(crate) mod trust;
mod websocket;

use crate::config::agent::Secret;
use pump::Purpose;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::address::Address;
use ringspan_tunnel::frame::Reason;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
pub(crate) use websocket::WebSocket;

/// One address that does not answer: a lost packet is sent again after a second, and after three.
const CONNECT_MAX: Duration = Duration::from_secs(4);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;
/// A proxy connects on its part, mostly with a look-up before.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// All of it: less than the data path waits ([`REACH_MAX`](ringspan_tunnel::agent::REACH_MAX)), so that the reason is
/// told by who knows it.
const ROAD_MAX: Duration = Duration::from_secs(18);

/// Straight, if it is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Road {
    /// Through this one.
    pub(crate) proxy: Option<Proxy>,
    /// To this address in place of the link port, in its messages.
    pub(crate) websocket: Option<WebSocket>,
}

/// Who connects for us.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proxy {
    pub(crate) kind: ProxyKind,
    pub(crate) address: Address,
    pub(crate) login: Option<Login>,
}

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    /// CONNECT (RFC 9110 §9.3.6).
    Http,
    /// SOCKS 5 (RFC 1928); names are looked up there.
    Socks5,
}

/// Who we are to a proxy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Login {
    /// 1 to 255 bytes, without a colon.
    pub(crate) user: String,
    /// At most 255 bytes.
    pub(crate) password: Secret,
}

/// As it is written, without the password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ProxyKind::Http => "http",
            ProxyKind::Socks5 => "socks5",
        };
        match &self.login {
            None => write!(f, "{scheme}://{}", self.address),
            Some(login) => write!(f, "{scheme}://{}:***@{}", login.user, self.address),
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RoadError {
    pub(crate) reason: Reason,
    /// Who, which step, what came back.
    pub(crate) text: String,
}

impl fmt::Display for RoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl RoadError {
    /// Somebody answered, and that was wrong.
    fn answered(who: &impl fmt::Display, step: &str, what: impl fmt::Display) -> RoadError {
        RoadError { reason: Reason::LinkLost, text: format!("{who}: {step}: {what}") }
    }

    fn io(who: &impl fmt::Display, step: &str, error: &io::Error) -> RoadError {
        let reason = match error.kind() {
            ErrorKind::TimedOut => Reason::DialTimeout,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Reason::DialUnreachable,
            _ => Reason::LinkLost,
        };
        let text = match error.kind() {
            ErrorKind::TimedOut => "no answer in time".to_owned(),
            ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        RoadError { reason, text: format!("{who}: {step}: {text}") }
    }
}

/// A connection, of whatever it is made.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// As the log has it.
impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.websocket, &self.proxy) {
            (None, None) => f.write_str("straight"),
            (Some(websocket), None) => write!(f, "{websocket}"),
            (None, Some(proxy)) => write!(f, "{proxy}"),
            (Some(websocket), Some(proxy)) => write!(f, "{websocket} through {proxy}"),
        }
    }
}

impl Road {
    /// Whether the data path cannot go it alone.
    pub(crate) fn is_detour(&self) -> bool {
        self.proxy.is_some() || self.websocket.is_some()
    }

    /// A socket on which the link port is about to be spoken to.
    pub(crate) async fn reach(&self, bridge: &Address) -> Result<Socket, RoadError> {
        let go = async {
            match &self.websocket {
                None => self.tcp(bridge).await.and_then(|stream| own(stream, bridge)),
                Some(websocket) => websocket.reach(self.tcp(websocket.address()).await?, Purpose::Link).await,
            }
        };
        timeout(ROAD_MAX, go).await.map_err(late)?
    }

    /// A connection on which a listener of visiting agents is about to be spoken to: the one at `via`, or, without that,
    /// the bridge's for the service, in a WebSocket.
    pub(crate) async fn visit(&self, via: Option<&Address>) -> Result<Box<dyn Wire>, RoadError> {
        let go = async {
            match (via, &self.websocket) {
                (Some(via), _) => {
                    let stream = self.tcp(via).await?;
                    stream.set_nodelay(true).map_err(|error| RoadError::io(via, "connect", &error))?;
                    Ok(Box::new(stream) as Box<dyn Wire>)
                }
                (None, Some(websocket)) => {
                    let socket = websocket.reach(self.tcp(websocket.address()).await?, Purpose::Visit).await?;
                    let stream = pump::end(socket).map_err(|error| RoadError::io(websocket, "connect", &error))?;
                    Ok(Box::new(stream) as Box<dyn Wire>)
                }
                (None, None) => {
                    let text = "[[visit]] without via, and [link] without websocket".to_owned();
                    Err(RoadError { reason: Reason::LinkLost, text })
                }
            }
        };
        timeout(ROAD_MAX, go).await.map_err(late)?
    }

    /// A TCP connection to somebody, through the proxy if there is one.
    pub(crate) async fn tcp(&self, to: &Address) -> Result<TcpStream, RoadError> {
        self.tcp_within(to, ANSWER_MAX).await
    }

    async fn tcp_within(&self, to: &Address, answer_max: Duration) -> Result<TcpStream, RoadError> {
        let Some(proxy) = &self.proxy else {
            return connect(to).await.map_err(|error| RoadError::io(to, "connect", &error));
        };
        let who = format!("proxy {proxy}");
        let stream = connect(&proxy.address).await.map_err(|error| RoadError::io(&who, "connect", &error))?;
        let asked = async {
            match proxy.kind {
                ProxyKind::Http => connect::ask(stream, to, proxy.login.as_ref(), &who).await,
                ProxyKind::Socks5 => socks::ask(stream, to, proxy.login.as_ref(), &who).await,
            }
        };
        let late = |_| RoadError::io(&who, &format!("asked for {to}"), &ErrorKind::TimedOut.into());
        timeout(answer_max, asked).await.map_err(late)?
    }
}

fn late(_: tokio::time::error::Elapsed) -> RoadError {
    RoadError { reason: Reason::DialTimeout, text: "the bridge was not reached in time".into() }
}

async fn connect(to: &Address) -> io::Result<TcpStream> {
    let found: Vec<SocketAddr> = match to.ip() {
        Some(known) => vec![known],
        None => tokio::net::lookup_host((to.host().as_str(), to.port())).await?.take(ADDRESSES_MAX).collect(),
    };
    let mut why = io::Error::new(ErrorKind::NotFound, "its name has no address");
    for address in found {
        match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = error,
            Err(_) => why = ErrorKind::TimedOut.into(),
        }
    }
    Err(why)
}

fn own(stream: TcpStream, who: &impl fmt::Display) -> Result<Socket, RoadError> {
    let stream = stream.into_std().map_err(|error| RoadError::io(who, "connect", &error))?;
    Ok(Socket::from_owned(stream.into()))
}

#[cfg(test)]
mod tests;
