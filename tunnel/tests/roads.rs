//! Links that the control planes of both ends make and bring: connections that it has dialed, and pairs that it carries.
//! Every byte arrives, and a road that is closed for a while costs no more than that while.

mod rig;

use rig::backend::{self, Order, Source, ask, finish, read_all};
use rig::{BridgeRig, SHAPES, Shape, until};
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::CarrierMode;
use ringspan_tunnel::frame::Reason;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn echo(bridge: &BridgeRig, seed: u64, bytes: u64) {
    let mut stream = bridge.visit(0);
    let mut reader = stream.try_clone().unwrap();
    let back = std::thread::spawn(move || read_all(&mut reader, seed));
    ask(&mut stream, Order::Echo, seed, 0);
    let mut source = Source::new(seed);
    source.write(&mut stream, bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(back.join().unwrap(), (bytes, finish(source.digest), None), "seed {seed}");
}

fn shapes() -> impl Iterator<Item = Shape> {
    let modes = [CarrierMode::Mux, CarrierMode::Direct, CarrierMode::Auto];
    modes.into_iter().flat_map(|carrier| SHAPES.map(|shape| Shape { carrier, ..shape }))
}

/// The control plane dials: carriers of all kinds come up, and carry.
#[test]
fn the_control_plane_dials() {
    for shape in shapes() {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let link = bridge.handle.link_address();
        let dial = move || match TcpStream::connect(link) {
            Ok(stream) => Ok(Socket::from_owned(stream.into())),
            Err(error) => Err((Reason::LinkLost, error.to_string())),
        };
        let agent = bridge.agent_reaching(shape, &[("web", address)], Box::new(dial));
        bridge.wait_for(&agent, shape, 1);
        echo(&bridge, 1, 4 << 20);
        if shape.carrier != CarrierMode::Mux {
            until(|| bridge.stats().direct_spare > 0);
        }
        echo(&bridge, 2, 4 << 20);
        assert_eq!(agent.log.count("down"), 0, "{shape:?}");
    }
}

/// Both ends of a pair are brought: one to the agent, one to the bridge, which takes it for an accepted agent.
#[test]
fn a_pair_is_a_link() {
    for shape in shapes() {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let handle = bridge.handle.clone();
        let peer: SocketAddr = "192.0.2.7:7".parse().unwrap();
        let connect = move || {
            let (ours, theirs) = Socket::pair().unwrap();
            assert!(handle.admit_link(theirs, Some(peer)).is_ok());
            Ok(ours)
        };
        let agent = bridge.agent_reaching(shape, &[("web", address)], Box::new(connect));
        bridge.wait_for(&agent, shape, 1);
        for seed in 1..4 {
            echo(&bridge, seed, 4 << 20);
        }
        assert_eq!(agent.log.count("down"), 0, "{shape:?}");
    }
}

/// A road that is closed at first is tried again, with the reason told; then the link is there.
#[test]
fn a_closed_road_is_tried_again() {
    let shape = SHAPES[0];
    let (address, _reports) = backend::start();
    let bridge = rig::bridge(shape, &["web"]);
    let (link, tries) = (bridge.handle.link_address(), Arc::new(AtomicU32::new(0)));
    let connect = move || {
        if tries.fetch_add(1, Ordering::Relaxed) < 4 {
            return Err((Reason::LinkLost, "the road is closed".into()));
        }
        Ok(Socket::from_owned(TcpStream::connect(link).unwrap().into()))
    };
    let agent = bridge.agent_reaching(shape, &[("web", address)], Box::new(connect));
    bridge.wait_for(&agent, shape, 1);
    agent.log.wait_for("the road is closed", 4);
    echo(&bridge, 1, 1 << 20);
}
