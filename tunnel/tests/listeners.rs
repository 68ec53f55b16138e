//! Listeners change while visitors are carried: those that stay are not disturbed, those that go take nobody down with
//! them, and the address of one that has gone is free. Method: real sockets, ring and epoll.

mod rig;

use rig::backend::{self, Order, ask};
use rig::{EPOLL, PATIENCE, RING, Shape};
use ringspan_tunnel::bridge::{BridgeError, CarrierMode, Closing, Gate, Inherited, Listener};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

fn listener(name: &str, address: SocketAddr, service: &str) -> Listener {
    Listener { address, gate: Arc::new(Gate { carrier: CarrierMode::Auto, ..Gate::new(name, rig::service(service)) }) }
}

fn is_served(address: SocketAddr) -> bool {
    let Ok(mut visitor) = TcpStream::connect(address) else { return false };
    visitor.set_read_timeout(Some(PATIENCE)).unwrap();
    visitor.write_all(&backend::order(Order::Send, 1, 100)).is_ok() && visitor.read_exact(&mut [0; 100]).is_ok()
}

/// Four workers, one link: soon every visitor is accepted by the worker that has the link, and none is handed over. When the
/// agent is gone and another has come, whose link is another worker's, visitors come to that one.
#[test]
fn visitors_come_to_where_the_link_is() {
    for io in [RING, EPOLL] {
        let shape = Shape { workers: 4, carriers: 1, steers: true, ..io };
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        // By luck alone one time in 4^30.
        let nobody_is_handed_over = || {
            let before = bridge.stats().handovers;
            (0..30).for_each(|_| assert!(is_served(bridge.handle.addresses()[0].1)));
            bridge.stats().handovers == before
        };
        for _ in 0..3 {
            let agent = bridge.agent(shape, &[("web", address)]);
            rig::until(nobody_is_handed_over);
            drop(agent);
        }
    }
}

/// Added, given another service, taken away: each while a visitor of the one beside it is being served.
#[test]
fn listeners_come_and_go() {
    for shape in [RING, EPOLL] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address), ("other", address)]);
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = bridge.handle.addresses()[0].1;
        let mut long = bridge.visit(0);
        ask(&mut long, Order::Send, 7, 200_000);
        long.read_exact(&mut [0; 1000]).unwrap();

        let both = [listener("web", any, "web"), listener("more", any, "other")];
        assert!(bridge.handle.set_listeners(&both).unwrap().is_empty());
        let addresses = bridge.handle.addresses();
        assert_eq!((addresses.len(), addresses[0].1), (2, first), "{shape:?}: the first one stays where it is");
        let more = addresses[1].1;
        assert!(is_served(more) && is_served(first));

        // Another service behind the same address; nobody has it, so visitors are told by a reset.
        let changed = [listener("web", any, "web"), listener("more", any, "nobody")];
        assert!(bridge.handle.set_listeners(&changed).unwrap().is_empty());
        rig::until(|| !is_served(more));
        bridge.log.wait_for("refused more no_service", 1);
        assert!(is_served(first));

        // One that cannot be had: nothing changes.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let wrong = [listener("new", any, "web"), listener("bad", taken.local_addr().unwrap(), "web")];
        let error = bridge.handle.set_listeners(&wrong).unwrap_err();
        assert!(matches!(&error, BridgeError::Bind { listener, .. } if listener == "bad"), "{error}");
        assert_eq!(bridge.handle.addresses(), addresses);
        assert!(is_served(first));

        let closing = bridge.handle.set_listeners(&[]).unwrap();
        assert_eq!(closing.len(), 2);
        rig::until(|| closing.iter().all(Closing::is_over));
        assert!(TcpStream::connect(first).is_err(), "{shape:?}: nobody listens");
        // The address is free, and a visitor from before is served to the end.
        drop(TcpListener::bind(first).unwrap());
        let mut rest = vec![0; 199_000];
        long.read_exact(&mut rest).unwrap();
    }
}

/// A bridge that holds its visitors keeps them waiting and serves them all when it lets go; whoever waits when the
/// listener is taken away is served, too.
#[test]
fn visitors_wait_in_the_queue() {
    for shape in [RING, EPOLL] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        assert!(is_served(bridge.handle.addresses()[0].1));
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for close in [false, true] {
            // The new listener is made when the workers hold already.
            bridge.handle.hold_visitors(true);
            bridge.handle.set_listeners(&[listener(&format!("held {close}"), any, "web")]).unwrap();
            let streams = bridge.stats().streams_total;
            let mut waiting: Vec<TcpStream> = (0..20).map(|_| bridge.visit(0)).collect();
            for visitor in &mut waiting {
                ask(visitor, Order::Send, 1, 100);
            }
            assert_eq!(bridge.stats().streams_total, streams, "{shape:?}: nobody was accepted");
            if close {
                bridge.handle.set_listeners(&[]).unwrap();
            } else {
                bridge.handle.hold_visitors(false);
            }
            for visitor in &mut waiting {
                visitor.read_exact(&mut [0; 100]).unwrap();
            }
        }
    }
}

/// A socket that was bound elsewhere is used with who waits in its queue, by address, whatever its flags are; one that
/// nobody asks for is told.
#[test]
fn listening_sockets_are_inherited() {
    let (used, spare) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (at, left) = (used.local_addr().unwrap(), spare.local_addr().unwrap());
    used.set_nonblocking(true).unwrap();
    let mut early = TcpStream::connect(at).unwrap();
    let mut inherited = Inherited::default();
    for socket in [used, spare] {
        inherited.add(ringspan_engine::kernel::Socket::from_owned(socket.into())).unwrap();
    }
    let (address, _reports) = backend::start();
    let bridge = rig::bridge_inheriting(RING, vec![listener("web", at, "web")], inherited);
    let _agent = bridge.agent(RING, &[("web", address)]);
    bridge.handle.hold_visitors(false);
    assert_eq!((bridge.handle.addresses(), bridge.handle.unclaimed()), (vec![("web".to_owned(), at)], vec![left]));
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(&mut early, Order::Send, 1, 100);
    early.read_exact(&mut [0; 100]).unwrap();
    assert!(is_served(at));
}
