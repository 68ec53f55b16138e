//! The agent's side of a proxy: whether a target may be reached, and the connection to it.
//! Promise: what is connected to is on the list as an address, however it was asked for; within [`DIAL_MAX`].

use super::allow::{Allow, Target, Transport};
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::frame::Reason;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Look-up and connections together: a little less than the data path waits for an answer.
const DIAL_MAX: Duration = Duration::from_millis(4500);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Look-ups at once: each holds a thread. More wait, within [`DIAL_MAX`].
static LOOKUPS: Semaphore = Semaphore::const_new(64);

/// A connection to what the bridge says that its visitor wants.
///
/// # Errors
/// [`Reason::TargetDenied`], [`Reason::TargetUnknown`], or why there is no connection.
pub(crate) async fn dial(allow: &Allow, target: &Target) -> Result<Socket, Reason> {
    let deadline = Instant::now() + DIAL_MAX;
    let mut may = allowed(allow, Transport::Tcp, target, deadline).await?.into_iter().take(ADDRESSES_MAX).peekable();
    let mut why = Reason::TargetDenied;
    while let Some(ip) = may.next() {
        // A silent address leaves time for the next one.
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = if may.peek().is_some() { left / 2 } else { left };
        why = match tokio::time::timeout(patience, TcpStream::connect(SocketAddr::new(ip, target.port()))).await {
            Ok(Ok(stream)) => {
                let stream = stream.into_std().map_err(|_| Reason::DialLocal)?;
                return Ok(Socket::from_owned(stream.into()));
            }
            Ok(Err(error)) => reason_of(&error),
            Err(_) => Reason::DialTimeout,
        };
    }
    Err(why)
}

/// Where datagrams for a target go: the first of its addresses that the list has. UDP does not say which ones answer.
///
/// # Errors
/// As [`dial`], but for what only a connection finds out.
pub(crate) async fn look_up(allow: &Allow, target: &Target) -> Result<SocketAddr, Reason> {
    let found = allowed(allow, Transport::Udp, target, Instant::now() + DIAL_MAX).await?;
    found.first().map(|ip| SocketAddr::new(*ip, target.port())).ok_or(Reason::TargetDenied)
}

/// The addresses of a target that the list has.
async fn allowed(allow: &Allow, over: Transport, target: &Target, deadline: Instant) -> Result<Vec<IpAddr>, Reason> {
    if !allow.may_ask(over, target) {
        return Err(Reason::TargetDenied);
    }
    let mut found = match tokio::time::timeout_at(deadline, addresses(target)).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => return Err(Reason::TargetUnknown),
        Err(_) => return Err(Reason::DialTimeout),
    };
    if found.is_empty() {
        return Err(Reason::TargetUnknown);
    }
    found.retain(|ip| allow.may_connect(over, target, *ip));
    Ok(found)
}

async fn addresses(target: &Target) -> io::Result<Vec<IpAddr>> {
    match target {
        Target::Address(ip, _) => Ok(vec![*ip]),
        Target::Name(name, port) => {
            let _place = LOOKUPS.acquire().await.map_err(io::Error::other)?;
            let found = tokio::net::lookup_host((name.as_str(), *port)).await?;
            let mut ips: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
            ips.dedup();
            Ok(ips)
        }
    }
}

/// What a failed connection means to the bridge.
pub(crate) fn reason_of(error: &io::Error) -> Reason {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::NotFound => Reason::DialRefused,
        ErrorKind::TimedOut => Reason::DialTimeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Reason::DialUnreachable,
        _ => Reason::DialLocal,
    }
}
