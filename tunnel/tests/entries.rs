//! What the control plane brings in and is asked for: visitors that no listener accepted, with words before their own,
//! and backends that it connects to. On both kinds of `Io`, with and without TLS.

mod rig;

use rig::backend::{self, Order, Source, finish, read_all};
use rig::{BridgeRig, PATIENCE, SHAPES};
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::{CarrierMode, Entry, Gate};
use ringspan_tunnel::frame::Reason;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// Brings one end of a pair in; the other end, and what is heard of the placing.
fn enter(
    bridge: &BridgeRig,
    service: &str,
    prefix: &[u8],
    target: Option<String>,
) -> (UnixStream, Receiver<Result<(), Reason>>) {
    let (inside, outside) = Socket::pair().unwrap();
    let (tell, told) = channel();
    let gate = Gate { carrier: CarrierMode::Mux, ..Gate::new("door", service.to_owned().try_into().unwrap()) };
    let entry = Entry {
        prefix: prefix.to_vec(),
        target,
        on_placed: Some(Box::new(move |result| tell.send(result).unwrap())),
        ..Entry::new(inside, Arc::new(gate))
    };
    assert!(bridge.handle.admit(entry).is_ok());
    let outside = UnixStream::from(outside.into_owned());
    outside.set_nonblocking(false).unwrap();
    outside.set_read_timeout(Some(PATIENCE)).unwrap();
    (outside, told)
}

/// The backend hears the prefix, then the visitor, and both ends of the pair end as sockets do.
#[test]
fn a_prefix_comes_first() {
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        for (seed, prefix_bytes) in [(1, 100u64), (2, 300_000)] {
            let (mut order, mut source) = (Vec::new(), Source::new(seed));
            backend::ask(&mut order, Order::Echo, seed, 0);
            // As much of the echo's text as fits the prefix, the rest through the pair.
            while (order.len() as u64) < prefix_bytes {
                let left = prefix_bytes - order.len() as u64;
                order.extend_from_slice(source.next(left));
            }
            let (mut visitor, told) = enter(&bridge, "web", &order, None);
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(()), "{shape:?}");
            let mut reader = visitor.try_clone().unwrap();
            let back = std::thread::spawn(move || read_all(&mut reader, seed));
            source.write(&mut visitor, 2 << 20).unwrap();
            visitor.shutdown(Shutdown::Write).unwrap();
            let bytes = order.len() as u64 - backend::ORDER_BYTES as u64 + (2 << 20);
            assert_eq!(back.join().unwrap(), (bytes, finish(source.digest), None), "{shape:?}");
        }
        let (_visitor, told) = enter(&bridge, "nothing", b"", None);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(Reason::NoService));
    }
}

/// A backend that the control plane connects to is told where, and its failure is heard by who asked.
#[test]
fn the_control_plane_connects() {
    let asked: SocketAddr = "127.0.0.1:0".parse().unwrap();
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["any"]);
        let agent = bridge.agent(shape, &[("any", asked)]);
        let mut order = Vec::new();
        backend::ask(&mut order, Order::Echo, 7, 0);
        let (mut visitor, told) = enter(&bridge, "any", &order, Some(address.to_string()));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ok(()), "{shape:?}");
        let mut reader = visitor.try_clone().unwrap();
        let back = std::thread::spawn(move || read_all(&mut reader, 7));
        let mut source = Source::new(7);
        source.write(&mut visitor, 4 << 20).unwrap();
        visitor.shutdown(Shutdown::Write).unwrap();
        assert_eq!(back.join().unwrap(), (4 << 20, finish(source.digest), None), "{shape:?}");
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (_visitor, told) = enter(&bridge, "any", b"hello", Some(closed.to_string()));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(Reason::DialRefused), "{shape:?}");
        let (_visitor, told) = enter(&bridge, "any", b"", None);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(Reason::UnknownBackend), "{shape:?}");
        agent.log.wait_for("asked 0 None", 1);
    }
}
