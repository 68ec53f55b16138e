//! A visitor does not notice that the first backend it was meant for cannot be reached: the next one hears every byte,
//! once. And a backend that was reached, or may have been, is never replaced by another.

mod rig;

use rig::backend::{self, Order, Source, ask, finish, read_all};
use rig::cable::{self, Cable};
use rig::{BridgeRig, PATIENCE, SHAPES, Shape};
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::frame::Reason;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// An address where nothing listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An address that does not answer, while what comes with it is kept: its queue is full, and the kernel drops what comes.
fn hole() -> (SocketAddr, (Socket, Vec<TcpStream>)) {
    let silent = Socket::listen(&"127.0.0.1:0".parse().unwrap(), 0).unwrap();
    let hole = silent.local_addr().unwrap();
    let mut fillers = Vec::new();
    while let Ok(filler) = TcpStream::connect_timeout(&hole, Duration::from_millis(300)) {
        fillers.push(filler);
    }
    (hole, (silent, fillers))
}

/// Sends `bytes` for an echo, ends early, and checks that all of them come back.
fn echo(bridge: &BridgeRig, seed: u64, bytes: u64) {
    let mut visitor = bridge.visit(0);
    let mut reader = visitor.try_clone().unwrap();
    let back = thread::spawn(move || read_all(&mut reader, seed));
    let mut source = Source::new(seed);
    ask(&mut visitor, Order::Echo, seed, 0);
    source.write(&mut visitor, bytes).unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(back.join().unwrap(), (bytes, finish(source.digest), None), "visitor {seed}");
}

/// Some of a crowd are sent to a backend that refuses; all are answered in full, whatever they send first, and those
/// that come later are not sent there.
#[test]
fn a_refusing_backend_is_not_noticed() {
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let broken = bridge.agent(shape, &[("web", nobody())]);
        let _good = bridge.agent(shape, &[("web", address)]);
        thread::scope(|scope| {
            for (seed, bytes) in (0..).zip([0, 1, 1000, 60_000, 64 << 10, 70_000, 300_000, 2 << 20].repeat(4)) {
                let bridge = &bridge;
                scope.spawn(move || echo(bridge, seed, bytes));
            }
        });
        let stats = bridge.stats();
        assert!(stats.visitors_retried > 0, "{shape:?}: nobody was sent to the broken one");
        assert_eq!(stats.visitors_refused, 0, "{shape:?}");
        bridge.log.wait_for(&format!("ejected {} 0 dial_refused", broken.id), 1);
    }
}

/// A backend that does not answer the dial costs its visitor the time of the dial, no more.
#[test]
fn a_silent_backend_is_replaced() {
    let (hole, _queue) = hole();
    for shape in [rig::RING, rig::EPOLL] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _both = bridge.agent(shape, &[("web", hole), ("web", address)]);
        thread::scope(|scope| {
            for seed in 0..4 {
                let bridge = &bridge;
                scope.spawn(move || echo(bridge, seed, 100_000));
            }
        });
        assert!(bridge.stats().visitors_retried > 0, "{shape:?}");
        bridge.log.wait_for("dial_timeout", 1);
    }
}

/// An agent dies under visitors of its backend, which has not said a word: who has not either is served by another, who
/// has is reset, since nobody knows whether it was heard.
#[test]
fn a_dead_agent_is_replaced_for_the_silent() {
    for shape in SHAPES {
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let bridge = rig::bridge(shape, &["web"]);
        let cable = cable::straight(bridge.handle.link_address());
        let dying = bridge.agent_via(shape, cable.address, &[("web", mute.local_addr().unwrap())]);
        bridge.log.wait_for(&format!("health {} 0 Up", dying.id), 1);
        bridge.log.wait_for(&format!("carriers {} {}", dying.id, shape.carriers), 1);
        let (mut silent, mut speaking) = (bridge.visit(0), bridge.visit(0));
        ask(&mut speaking, Order::Send, 1, 10);
        let _reached = [mute.accept().unwrap(), mute.accept().unwrap()];
        let mut heard = _reached.iter().map(|(stream, _)| stream.try_clone().unwrap()).collect::<Vec<_>>();
        // Until the words are at the backend they may not have left the bridge.
        wait_for_words(&mut heard);
        let (address, _reports) = backend::start();
        let _good = bridge.agent(shape, &[("web", address)]);
        drop(mute);
        cut(&bridge, &cable, shape, 2);
        assert_eq!(speaking.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{shape:?}");
        ask(&mut silent, Order::Send, 1, 100_000);
        silent.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut silent, 1).0, 100_000, "{shape:?}");
        drop(dying);
    }
}

/// How long a visitor has been silent makes no difference: only words and answers tie it to a backend.
#[test]
fn silence_is_free_for_ever() {
    let (hole, _queue) = hole();
    for shape in [rig::RING, Shape { tls: true, ..rig::EPOLL }] {
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let bridge = rig::bridge(shape, &["web", "hole"]);
        let cable = cable::straight(bridge.handle.link_address());
        let dying = bridge.agent_via(shape, cable.address, &[("web", mute.local_addr().unwrap()), ("hole", hole)]);
        bridge.log.wait_for(&format!("health {} 1 Up", dying.id), 1);
        bridge.log.wait_for(&format!("carriers {} {}", dying.id, shape.carriers), 1);
        let mut silent = bridge.visit(0);
        let _reached = mute.accept().unwrap();
        // This takes longer than anything that is asked of an agent.
        let late = bridge.visit(1);
        bridge.log.wait_for("dial failed 1 dial_timeout", 1);
        let (address, _reports) = backend::start();
        let _good = bridge.agent(shape, &[("web", address)]);
        drop((mute, late));
        cut(&bridge, &cable, shape, 1);
        ask(&mut silent, Order::Send, 1, 100_000);
        silent.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut silent, 1).0, 100_000, "{shape:?}");
    }
}

/// Cuts a link with so many streams, and waits until the bridge has lost all of it: what a visitor says before that may
/// have gone to the dead agent.
fn cut(bridge: &BridgeRig, cable: &Cable, shape: Shape, streams: u64) {
    let lost = || bridge.stats().reasons[Reason::LinkLost as usize];
    let before = lost();
    cable.cut();
    rig::until(|| lost() >= before + u64::from(shape.carriers) + streams);
}

fn wait_for_words(heard: &mut [TcpStream]) {
    let (tell, told) = std::sync::mpsc::channel();
    for stream in heard {
        let (stream, tell) = (stream.try_clone().unwrap(), tell.clone());
        thread::spawn(move || {
            // One of them only ends.
            if matches!(stream.peek(&mut [0; 1]), Ok(1)) {
                let _ = tell.send(());
            }
        });
    }
    told.recv_timeout(PATIENCE).unwrap();
}

/// A backend that only listens gives no sign by itself: it is asked for one, and an upload of any size gets through.
#[test]
fn a_listening_backend_hears_it_all() {
    for shape in SHAPES {
        let (address, reports) = backend::start();
        let bridge = rig::bridge(Shape { window_bytes: 4 << 20, ..shape }, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        for (seed, bytes) in [(1, 65_519), (2, 65_520), (3, 5 << 20)] {
            let (mut visitor, mut source) = (bridge.visit(0), Source::new(seed));
            ask(&mut visitor, Order::Listen, seed, 0);
            source.write(&mut visitor, bytes).unwrap();
            visitor.shutdown(Shutdown::Write).unwrap();
            let report = reports.recv_timeout(PATIENCE).unwrap();
            assert_eq!((report.bytes, report.digest), (bytes, finish(source.digest)), "{shape:?}");
        }
    }
}

/// A backend that keeps resetting before it says a word is ejected, and while it is alone it is used all the same.
#[test]
fn resetting_backends_are_ejected() {
    for shape in [rig::RING, rig::EPOLL] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        for seed in 0..5 {
            let mut visitor = bridge.visit(0);
            ask(&mut visitor, Order::Reset, seed, 3);
            visitor.write_all(&[0; 100]).unwrap();
            assert!(read_all(&mut visitor, seed).2.is_some(), "{shape:?}");
        }
        bridge.log.wait_for(&format!("ejected {} 0 socket_reset", agent.id), 1);
        echo(&bridge, 9, 1000);
        assert_eq!(bridge.stats().visitors_retried, 0, "{shape:?}: it was reached each time");
    }
}
