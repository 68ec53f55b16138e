//! What stands in the way of listening, in words that say what to do.

use ringspan_tunnel::bridge::BridgeError;
use std::net::SocketAddr;

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
