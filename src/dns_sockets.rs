//! Sockets for DNS: one for datagrams and one that listens, at one address, inherited or new.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use tokio::net::{TcpListener, UdpSocket};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Asked of the kernel for a port that is free for both kinds: another program may have the other half.
const TRIES: usize = 16;

/// Binds both kinds at an address. Needs a runtime.
pub(crate) fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = if address.port() == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        match try_bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            result => return result,
        }
    }
}

fn try_bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let tcp: std::net::TcpListener = match crate::inherit::tcp(address) {
        Some(inherited) => inherited.into(),
        None => {
            let socket = socket(address, Type::STREAM, Protocol::TCP)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.into()
        }
    };
    let address = tcp.local_addr()?;
    let udp: std::net::UdpSocket = match crate::inherit::udp(address) {
        Some(inherited) => inherited.into(),
        None => {
            let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
            socket.bind(&address.into())?;
            OwnedFd::from(socket).into()
        }
    };
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // As every listener here: IPv4 has addresses of its own.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
