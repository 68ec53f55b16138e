//! What stands in the way of listening: what passes is waited for, the rest is said in words that say what to do.

use crate::config::bridge::Bridge as Config;
use crate::inherit;
use ringspan_tunnel::bridge::BridgeError;
use socket2::{Domain, Socket, Type};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A process that is killed is gone before its ports are: the kernel takes a ring down after the process (5 to 40 ms
/// measured, more on a busy machine), and the ring holds the sockets that it polls.
const PORTS_MAX: Duration = Duration::from_secs(2);
/// How often that is looked at.
const PORTS_LOOK: Duration = Duration::from_millis(10);

/// Waits until the configured addresses are free, or for [`PORTS_MAX`]: whoever binds them then says what is wrong. The
/// folder's lock is ours by now, so a bridge that ran on it before is no more. Blocks.
pub(super) fn wait_for_ports(config: &Config) {
    let until = Instant::now() + PORTS_MAX;
    let fixed = [Some(config.http_listen), config.grpc_listen, Some(config.link.listen)];
    let dns = config.dns.iter().flat_map(|dns| dns.listen.iter().copied());
    for address in fixed.into_iter().flatten().chain(dns).chain(config.listeners.iter().map(|l| l.listen)) {
        while !inherit::has(address) && is_taken(address) && Instant::now() < until {
            std::thread::sleep(PORTS_LOOK);
        }
    }
}

fn is_taken(address: SocketAddr) -> bool {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // As a listener does: connections of a process before are no obstacle, a listener is.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    address.port() != 0 && bind().is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
}

pub(super) fn bind_error(error: &BridgeError) -> String {
    match error {
        BridgeError::Bind { listener, address, error } if listener == "link" => {
            cannot_listen("[link] listen", *address, error)
        }
        BridgeError::Bind { listener, address, error } => {
            cannot_listen(&format!("[[listener]] {listener:?} listen"), *address, error)
        }
    }
}

pub(crate) fn cannot_listen(key: &str, address: SocketAddr, error: &std::io::Error) -> String {
    let remedy = match error.kind() {
        std::io::ErrorKind::AddrInUse => "stop the process that has it (ss -ltnp shows it), or take another port",
        std::io::ErrorKind::PermissionDenied => "a port above 1023, or CAP_NET_BIND_SERVICE for this program",
        std::io::ErrorKind::AddrNotAvailable => "an address that this machine has (ip address shows them)",
        _ => "ringspan doctor",
    };
    format!("{key} = \"{address}\": cannot listen: {error}. Try: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A port is taken while somebody listens on it, not before, not afterwards, and never if it is nobody's in particular.
    #[test]
    fn taken_and_free() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        assert!(is_taken(address));
        drop(listener);
        assert!(!is_taken(address) && !is_taken(([127, 0, 0, 1], 0).into()));
    }
}
