//! A backend that wants a PROXY header hears who its visitor is before anything else, whichever carrier the stream takes
//! and however many backends were tried; and a listener that expects headers believes those whom it trusts and nobody
//! else. Method: a backend that sends back all it hears; what it should hear is written here by hand, from HAProxy's
//! doc/proxy-protocol.txt.

mod rig;

use rig::{BridgeRig, EPOLL, PATIENCE, RING, Shape, backend};
use ringspan_tunnel::bridge::{CarrierMode, Gate, Inherited, Listener};
use ringspan_tunnel::hello::Expose;
use ringspan_tunnel::limits::{Limiter, Lists, Rules};
use ringspan_tunnel::proxy_header::Version;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v1(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
}

fn v2(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let (source, destination) = (from.ip().octets(), to.ip().octets());
    let (source_port, destination_port) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    [SIGNATURE, &[0x21, 0x11, 0, 12], &source, &destination, &source_port, &destination_port].concat()
}

fn four(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("{address} is IPv6") };
    address
}

fn expose(address: SocketAddr, version: Option<Version>) -> Expose {
    Expose { proxy_protocol: version, ..Expose::new(rig::service("web"), address.to_string()) }
}

/// Says the pieces one by one, ends, and hears all that comes back.
fn talk(mut visitor: TcpStream, pieces: &[&[u8]]) -> Vec<u8> {
    visitor.set_nodelay(true).unwrap();
    for piece in pieces {
        visitor.write_all(piece).unwrap();
    }
    visitor.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    visitor.read_to_end(&mut heard).unwrap();
    heard
}

fn shapes() -> impl Iterator<Item = Shape> {
    let carriers = [CarrierMode::Mux, CarrierMode::Direct, CarrierMode::Auto];
    [RING, EPOLL].into_iter().flat_map(move |shape| carriers.map(|carrier| Shape { carrier, ..shape }))
}

/// Version 1, version 2, none: each before the first byte, and once. A visitor whose first backend refused is announced
/// to the second in the version that this one wants.
#[test]
fn backends_hear_who_comes() {
    // Nobody listens at the near end of a connection, and nobody else can get its port meanwhile.
    let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = TcpStream::connect(somebody.local_addr().unwrap()).unwrap();
    let nobody = taken.local_addr().unwrap();
    let body = vec![b'x'; 100_000];
    for shape in shapes() {
        for version in [Some(Version::V1), Some(Version::V2), None] {
            let bridge = rig::bridge(shape, &["web"]);
            let refusing = expose(nobody, Some(Version::V1));
            let _agent = bridge.agent_exposing(shape, vec![expose(backend::mirror(b'm'), version), refusing]);
            for n in 0..6 {
                let visitor = bridge.visit(0);
                let (from, to) = (four(visitor.local_addr().unwrap()), four(visitor.peer_addr().unwrap()));
                let header = match version {
                    Some(Version::V1) => v1(from, to),
                    Some(Version::V2) => v2(from, to),
                    None => Vec::new(),
                };
                let heard = talk(visitor, &[b"hello", &body]);
                assert_eq!(heard, [b"m", &header[..], b"hello", &body].concat(), "{shape:?} {version:?} {n}");
            }
            assert!(bridge.stats().visitors_retried > 0, "{shape:?}: nobody met the one that refuses");
        }
    }
}

fn expecting(shape: Shape, trusted: &str, limiter: Option<Arc<Limiter>>) -> BridgeRig {
    let gate = Gate {
        carrier: shape.carrier,
        limiter,
        proxy_from: Some(vec![trusted.parse().unwrap()]),
        ..Gate::new("public", rig::service("web"))
    };
    let listener = Listener { address: "127.0.0.1:0".parse().unwrap(), gate: Arc::new(gate) };
    let bridge = rig::bridge_inheriting(shape, vec![listener], Inherited::default());
    bridge.handle.hold_visitors(false);
    bridge
}

const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 1234);
const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 80);

/// Whoever is trusted says who comes, whole or in pieces, and the backend hears that; what follows the header is the
/// visitor's own.
#[test]
fn the_trusted_are_believed() {
    for shape in shapes() {
        let bridge = expecting(shape, "127.0.0.0/8", None);
        let _agent = bridge.agent_exposing(shape, vec![expose(backend::mirror(b'm'), Some(Version::V2))]);
        let said = [b"m", &v2(FROM, TO)[..], b"hello"].concat();
        for header in [v1(FROM, TO), v2(FROM, TO)] {
            let whole = [&header[..], b"hello"].concat();
            assert_eq!(talk(bridge.visit(0), &[&whole]), said, "{shape:?}");
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            assert_eq!(talk(bridge.visit(0), &bytes), said, "{shape:?}: byte by byte");
        }
        // LOCAL: the peer speaks for itself.
        let visitor = bridge.visit(0);
        let (from, to) = (four(visitor.local_addr().unwrap()), four(visitor.peer_addr().unwrap()));
        let local = [SIGNATURE, &[0x20, 0, 0, 0], b"hello"].concat();
        assert_eq!(talk(visitor, &[&local]), [b"m", &v2(from, to)[..], b"hello"].concat(), "{shape:?}");
    }
}

/// Whether the visitor is turned away without a byte.
fn is_refused(mut visitor: TcpStream, said: &[u8]) -> bool {
    // It may be over before this is said: then the reset is told here, and what is read is the end.
    let _ = visitor.write_all(said);
    visitor.set_read_timeout(Some(PATIENCE)).unwrap();
    !matches!(visitor.read(&mut [0; 1]), Ok(1..))
}

/// A stranger's header, no header, a wrong one, half of one: no backend hears of these.
#[test]
fn nobody_else_is_believed() {
    for shape in [RING, EPOLL] {
        let address = backend::mirror(b'm');
        let bridge = expecting(shape, "192.0.2.0/24", None);
        let _agent = bridge.agent_exposing(shape, vec![expose(address, None)]);
        assert!(is_refused(bridge.visit(0), &v1(FROM, TO)), "{shape:?}: a stranger");
        bridge.log.wait_for("refused public proxy_header", 1);
        assert_eq!(bridge.stats().streams_total, 0);

        let bridge = expecting(shape, "127.0.0.1/32", None);
        let _agent = bridge.agent_exposing(shape, vec![expose(address, None)]);
        assert!(is_refused(bridge.visit(0), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "{shape:?}: no header");
        assert!(is_refused(bridge.visit(0), b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 80\r\n"), "{shape:?}: no port");
        assert!(is_refused(bridge.visit(0), &[b'P'; 2000]), "{shape:?}: too long");
        // Half of one, until there is no more patience.
        assert!(is_refused(bridge.visit(0), &v2(FROM, TO)[..20]), "{shape:?}: half of one");
        bridge.log.wait_for("refused public proxy_header", 4);
        assert_eq!(bridge.stats().streams_total, 0);
        // One that is still waiting when the bridge ends does not hold it up.
        let _waiting = bridge.visit(0);
    }
}

/// The list is asked about the address in the header, not about the peer's.
#[test]
fn lists_look_at_the_header() {
    for shape in [RING, EPOLL] {
        let lists = Lists { deny: vec!["203.0.113.7/32".parse().unwrap()], allow: Vec::new() };
        let bridge = expecting(shape, "127.0.0.0/8", Some(Limiter::new(Rules { lists, ..Rules::default() })));
        let _agent = bridge.agent_exposing(shape, vec![expose(backend::mirror(b'm'), None)]);
        assert!(is_refused(bridge.visit(0), &v1(FROM, TO)), "{shape:?}");
        bridge.log.wait_for("refused public denied", 1);
        let neighbour = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 8), 1234);
        let whole = [&v1(neighbour, TO)[..], b"hello"].concat();
        assert_eq!(talk(bridge.visit(0), &[&whole]), b"mhello", "{shape:?}");
    }
}
