//! Who leaves loses nobody: a bridge or an agent that drains finishes what it carries, and what comes meanwhile is
//! carried by others.

mod rig;

use rig::backend::{self, Order, Source, ask, finish, read_all};
use rig::{BridgeRig, EPOLL, PATIENCE, RING, SHAPES, Shape};
use ringspan_tunnel::bridge::CarrierMode;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Waits until the counters say so: they are set by other threads, and nothing rings for them.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// A visitor that is in the middle of an echo, and what it has sent.
fn begin(bridge: &BridgeRig, seed: u64) -> (TcpStream, Source) {
    let (mut visitor, mut source) = (bridge.visit(0), Source::new(seed));
    ask(&mut visitor, Order::Echo, seed, 0);
    source.write(&mut visitor, 50_000).unwrap();
    visitor.read_exact(&mut [0; 10_000]).unwrap();
    (visitor, source)
}

/// It goes on as if nothing had happened.
fn finish_echo((mut visitor, mut source): (TcpStream, Source), seed: u64) {
    let mut reader = visitor.try_clone().unwrap();
    let back = std::thread::spawn(move || read_all(&mut reader, seed));
    source.write(&mut visitor, 3 << 20).unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    let (bytes, _, error) = back.join().unwrap();
    assert_eq!((bytes, error), ((3 << 20) + 40_000, None));
}

/// An agent that drains finishes its visitors; none that comes meanwhile is lost; then its links end.
#[test]
fn an_agent_leaves() {
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let staying = bridge.agent(shape, &[("web", address)]);
        let leaving = bridge.agent(shape, &[("web", address)]);
        let inside: Vec<_> = (0..8).map(|seed| begin(&bridge, seed)).collect();
        leaving.handle.drain();
        // They begin before the bridge can know and end after it must.
        for seed in 0..200 {
            let mut visitor = bridge.visit(0);
            ask(&mut visitor, Order::Send, seed, 1000);
            visitor.shutdown(Shutdown::Write).unwrap();
            let mut expected = Source::new(seed);
            expected.write(&mut std::io::sink(), 1000).unwrap();
            assert_eq!(read_all(&mut visitor, seed), (1000, finish(expected.digest), None), "{shape:?}");
        }
        // One that has no visitor of ours on it may have ended already.
        assert_eq!(leaving.log.count("down"), leaving.log.count("drained"), "{shape:?}: a link was cut");
        for (seed, visitor) in inside.into_iter().enumerate() {
            finish_echo(visitor, seed as u64);
        }
        leaving.log.wait_for("drained", shape.carriers.into());
        bridge.log.wait_for(&format!("gone {}", leaving.id), 1);
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 1, 10);
        visitor.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(staying.log.count("down"), 0, "{shape:?}");
    }
}

/// A bridge that drains lets nobody in and finishes those it has.
#[test]
fn a_bridge_leaves() {
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        let inside: Vec<_> = (0..4).map(|seed| begin(&bridge, seed)).collect();
        bridge.handle.drain();
        agent.log.wait_for("draining", shape.carriers.into());
        let door = bridge.handle.addresses()[0].1;
        until("the listener is still there", || TcpStream::connect(door).is_err());
        for (seed, visitor) in inside.into_iter().enumerate() {
            finish_echo(visitor, seed as u64);
        }
        until("a stream was left behind", || bridge.stats().streams_open == 0);
    }
}

/// Links that the control plane drains end with their visitors, and the agent is back for new ones at once.
#[test]
fn links_are_renewed() {
    for shape in [RING, EPOLL] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        let inside = begin(&bridge, 1);
        bridge.handle.drain_agent(agent.id, u64::MAX, "moving house");
        agent.log.wait_for("draining moving house", shape.carriers.into());
        agent.log.wait_for("up", 2 * usize::from(shape.carriers));
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 1, 10);
        visitor.read_exact(&mut [0; 10]).unwrap();
        finish_echo(inside, 1);
        until("the old links stay", || bridge.stats().carriers_up == u64::from(shape.carriers));
    }
}

/// An agent that is sent away hears why, even if the end of the connection comes with the goodbye.
#[test]
fn a_goodbye_is_heard() {
    for shape in SHAPES.into_iter().chain([Shape { tls: true, ktls: false, ..RING }]) {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        bridge.handle.disconnect_agent(agent.id, "not you");
        agent.log.wait_for("disconnected not you", shape.carriers.into());
    }
}

/// A stream that has left the mux is finished, too: the link stays for it, and asks for signs of life, and the agent stays
/// for the link.
#[test]
fn moved_streams_are_finished() {
    for shape in [RING, EPOLL, Shape { tls: true, ..RING }] {
        let shape = Shape { workers: 1, carriers: 1, carrier: CarrierMode::Auto, ..shape };
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let busy = bridge.agent(shape, &[("web", address)]);
        bridge.wait_for(&busy, shape, 1);
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Flood, 1, 0);
        let mut piece = vec![0; 1 << 20];
        while bridge.stats().direct_open == 0 {
            visitor.read_exact(&mut piece).unwrap();
        }
        let idle = bridge.agent(shape, &[("web", address)]);
        bridge.wait_for(&idle, shape, 1);
        busy.handle.drain();
        idle.handle.drain();
        // One worker looks at all of its links at once.
        idle.log.wait_for("drained", 1);
        assert_eq!(busy.log.count("drained"), 0, "{shape:?}");
        visitor.read_exact(&mut vec![0; 8 << 20]).unwrap();
        drop(visitor);
        busy.log.wait_for("drained", 1);
    }
}
