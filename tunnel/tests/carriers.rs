//! Streams on connections of their own, from the start or after a move: every byte arrives, once and in order, and every
//! end is the end it was, whatever is on the mux, on the way, or already over when the stream moves.

mod rig;

use rig::backend::{self, Order, Source, ask, finish, read_all};
use rig::cable::{self, Cable};
use rig::{AgentRig, BridgeRig, EPOLL, PATIENCE, RING, SHAPES, Shape};
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::CarrierMode;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

const MODES: [CarrierMode; 2] = [CarrierMode::Direct, CarrierMode::Auto];

fn shapes() -> impl Iterator<Item = Shape> {
    MODES.into_iter().flat_map(|carrier| SHAPES.map(|shape| Shape { carrier, ..shape }))
}

/// A visitor that sends while it reads what comes back.
fn echo(bridge: &BridgeRig, seed: u64, bytes: u64) {
    let mut stream = bridge.visit(0);
    let mut reader = stream.try_clone().unwrap();
    let back = thread::spawn(move || read_all(&mut reader, seed));
    ask(&mut stream, Order::Echo, seed, 0);
    let mut source = Source::new(seed);
    source.write(&mut stream, bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(back.join().unwrap(), (bytes, finish(source.digest), None), "seed {seed}");
}

/// Waits for what happens on workers' threads without a word.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        thread::yield_now();
    }
}

/// A direct carrier waits: the first stream asks for one, and this one ends when it is there.
fn warm(bridge: &BridgeRig) {
    echo(bridge, 1, 2 << 20);
    until("a direct carrier waits", || bridge.stats().direct_spare > 0);
}

/// A bridge and an agent of one carrier with a cable between them, and a direct carrier waits.
fn cabled(shape: Shape, address: SocketAddr) -> (BridgeRig, Cable, AgentRig) {
    let bridge = rig::bridge(shape, &["web"]);
    let cable = cable::straight(bridge.handle.link_address());
    let agent = bridge.agent_via(shape, cable.address, &[("web", address)]);
    bridge.log.wait_for(&format!("health {} 0 Up", agent.id), 1);
    warm(&bridge);
    (bridge, cable, agent)
}

fn is_reset(kind: Option<ErrorKind>) -> bool {
    matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

/// Eight visitors at once send 12 MiB each and get them back, on both kinds of `Io`, with and without TLS; streams go by
/// direct carriers, and those end with them.
#[test]
fn every_byte_comes_back() {
    for shape in shapes() {
        println!("{shape:?}");
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        warm(&bridge);
        let bytes = 12 << 20;
        thread::scope(|scope| {
            for visitor in 0..8 {
                let bridge = &bridge;
                scope.spawn(move || echo(bridge, visitor, bytes));
            }
        });
        let (there, here) = (bridge.stats(), agent.handle.stats());
        let carried = 8 * (bytes + backend::ORDER_BYTES as u64) + (2 << 20) + backend::ORDER_BYTES as u64;
        assert_eq!((there.bytes_to_link, here.bytes_from_link), (carried, carried), "{shape:?}");
        if shape.carrier == CarrierMode::Auto {
            assert!(there.streams_moved > 0 && here.streams_moved > 0, "{shape:?}: {there:?}");
        }
        until("all direct carriers have ended", || bridge.stats().direct_open == 0);
        until("all direct carriers have ended", || agent.handle.stats().direct_open == 0);
        assert_eq!((bridge.stats().bytes_held, agent.handle.stats().bytes_held), (0, 0), "{shape:?}");
        assert_eq!(agent.log.count("down"), 0, "{shape:?}");
    }
}

/// Either side ends first, before the stream moves, while it does and long after; the other direction goes on, on the
/// mux or on the direct carrier, and is whole.
#[test]
fn either_side_may_end_first() {
    for shape in shapes() {
        println!("{shape:?}");
        let (address, reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        warm(&bridge);
        reports.recv_timeout(PATIENCE).unwrap();
        // Bytes down before the backend's end, bytes up after it: below, about and beyond what makes a stream move.
        let sizes = [0, 1, 300_000, 530_000, 700_000, 3 << 20];
        for (seed, (down, up)) in sizes.iter().flat_map(|d| sizes.iter().map(move |u| (*d, *u))).enumerate() {
            let seed = seed as u64;
            let mut stream = bridge.visit(0);
            ask(&mut stream, Order::Send, seed, down);
            let mut sent = Source::new(seed);
            regenerate(&mut sent, down);
            assert_eq!(read_all(&mut stream, seed), (down, finish(sent.digest), None), "{shape:?} down {down}");
            let mut source = Source::new(seed + 100);
            source.write(&mut stream, up).unwrap();
            drop(stream);
            let report = reports.recv_timeout(PATIENCE).unwrap();
            assert_eq!((report.bytes, report.error), (up, None), "{shape:?} down {down} up {up}");
            assert_eq!(report.digest, finish(source.digest));
        }
        // The visitor ends at once and then downloads: its direction never moves, the other does.
        for (seed, down) in (200..).zip([100, 600_000, 9 << 20]) {
            let mut stream = bridge.visit(0);
            ask(&mut stream, Order::Send, seed, down);
            stream.shutdown(Shutdown::Write).unwrap();
            let mut sent = Source::new(seed);
            regenerate(&mut sent, down);
            assert_eq!(read_all(&mut stream, seed), (down, finish(sent.digest), None), "{shape:?} down {down}");
            assert_eq!(reports.recv_timeout(PATIENCE).unwrap().error, None);
        }
        until("all direct carriers have ended", || bridge.stats().direct_open == 0);
    }
}

/// What would make a stream move comes with its end: then it stays, and is whole.
#[test]
fn an_end_moves_nowhere() {
    // 21 pieces up and down are not enough to move (512 KiB), and one more up is.
    let piece = vec![7; 12_200];
    for shape in shapes() {
        println!("{shape:?}");
        let (address, reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        warm(&bridge);
        reports.recv_timeout(PATIENCE).unwrap();
        let moved = bridge.stats().streams_moved;
        for n in 0..20 {
            let mut stream = bridge.visit(0);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            ask(&mut stream, Order::Echo, n, 0);
            let mut back = vec![0; piece.len()];
            for _ in 0..21 {
                stream.write_all(&piece).unwrap();
                stream.read_exact(&mut back).unwrap();
            }
            // In one segment.
            let sent = Socket::from_owned(stream.try_clone().unwrap().into()).send(&piece, true).unwrap();
            assert_eq!(sent, piece.len());
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&mut stream, n).0, piece.len() as u64, "{shape:?} {n}");
        }
        assert_eq!(bridge.stats().streams_moved, moved, "{shape:?}");
        until("all direct carriers have ended", || bridge.stats().direct_open == 0);
    }
}

/// A reset is a reset at the other end, whichever side it starts from and wherever the stream is.
#[test]
fn resets_stay_resets() {
    for shape in shapes() {
        println!("{shape:?}");
        let (address, reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        warm(&bridge);
        reports.recv_timeout(PATIENCE).unwrap();
        for round in 0..2 {
            for bytes in [3, 500_000, 700_000] {
                // The backend closes with unread bytes.
                let mut visitor = bridge.visit(0);
                ask(&mut visitor, Order::Reset, round, bytes);
                let _ = visitor.write_all(&vec![0; bytes as usize + 4000]);
                let (_, _, error) = read_all(&mut visitor, round);
                assert!(is_reset(error), "{shape:?} {bytes}: the visitor saw {error:?}");
                reports.recv_timeout(PATIENCE).unwrap();
                // The visitor does, in the middle of a flood.
                let mut visitor = bridge.visit(0);
                ask(&mut visitor, Order::Flood, round, 0);
                visitor.read_exact(&mut vec![0; bytes as usize]).unwrap();
                drop(visitor);
                let report = reports.recv_timeout(PATIENCE).unwrap();
                assert!(is_reset(report.error), "{shape:?} {bytes}: the backend saw {report:?}");
            }
        }
        until("all direct carriers have ended", || bridge.stats().direct_open == 0);
        assert_eq!(agent.log.count("down"), 0, "{shape:?}: the link did not survive");
    }
}

/// A visitor that reads nothing of a backend that never stops: what waits for it is bounded, on the mux and on the direct
/// carrier; when it reads at last, its bytes are all there, in order across the move.
#[test]
fn slow_readers_get_everything() {
    for shape in shapes() {
        println!("{shape:?}");
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        warm(&bridge);
        let bytes = 48 << 20;
        let mut stalled = bridge.visit(0);
        ask(&mut stalled, Order::Send, 7, bytes);
        echo(&bridge, 8, 16 << 20);
        let held = bridge.stats().bytes_held;
        assert!(held <= 4 << 20, "{shape:?}: {held} bytes are held for one visitor");
        let (read, digest, error) = read_all(&mut stalled, 7);
        assert_eq!((read, error), (bytes, None), "{shape:?}");
        let mut sent = Source::new(7);
        regenerate(&mut sent, bytes);
        assert_eq!(digest, finish(sent.digest), "{shape:?}");
        assert_eq!(bridge.stats().bytes_held, 0, "{shape:?}");
    }
}

/// Direct carriers whose bytes come in pieces of 1 to 60 bytes: OPEN, OPENED, markers and records are cut everywhere.
#[test]
fn bytes_survive_any_split() {
    for shape in shapes() {
        println!("{shape:?}");
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let cable = cable::choppy(bridge.handle.link_address());
        let agent = bridge.agent_via(shape, cable.address, &[("web", address)]);
        bridge.log.wait_for(&format!("health {} 0 Up", agent.id), 1);
        warm(&bridge);
        thread::scope(|scope| {
            for visitor in 0..4 {
                let bridge = &bridge;
                scope.spawn(move || echo(bridge, visitor, 900_000 + visitor));
            }
        });
        assert_eq!(agent.log.count("down"), 0, "{shape:?}");
    }
}

/// A backend that refuses is told on a direct carrier as it is on the mux, and the next visitor is served.
#[test]
fn refused_backends_are_told() {
    for io in [RING, EPOLL, Shape { tls: true, ..RING }] {
        let shape = Shape { carrier: CarrierMode::Direct, workers: 1, carriers: 1, ..io };
        let (address, _reports) = backend::start();
        let nobody: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let bridge = rig::bridge(shape, &["web", "gone"]);
        let agent = bridge.agent(shape, &[("web", address), ("gone", nobody)]);
        warm(&bridge);
        let missed = bridge.stats().direct_missed;
        let mut visitor = bridge.visit(1);
        assert!(visitor.read(&mut [0; 10]).is_err(), "{shape:?}");
        bridge.log.wait_for("dial failed 1 dial_refused", 1);
        agent.log.wait_for("dial failed 1 dial_refused", 1);
        assert_eq!(bridge.stats().direct_missed, missed, "{shape:?}: it was told on a direct carrier");
        echo(&bridge, 1, 100_000);
    }
}

/// A lost direct carrier resets its stream and nothing else: the link stays, and later streams are whole.
#[test]
fn a_lost_direct_carrier_costs_its_stream() {
    for shape in shapes() {
        println!("{shape:?}");
        let (address, reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let cable = cable::straight(bridge.handle.link_address());
        let agent = bridge.agent_via(shape, cable.address, &[("web", address)]);
        // All of the link's connections come before the direct ones, which are made when they are asked for.
        bridge.wait_for(&agent, shape, 1);
        warm(&bridge);
        reports.recv_timeout(PATIENCE).unwrap();
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Flood, 1, 0);
        visitor.read_exact(&mut vec![0; 2 << 20]).unwrap();
        until("the stream has a direct carrier", || bridge.stats().direct_open > 0);
        // All that were made after the link's own.
        cable.reset_after(shape.carriers.into());
        let (_, _, error) = read_all(&mut visitor, 1);
        assert!(is_reset(error), "{shape:?}: a cut stream ended with {error:?}");
        assert!(is_reset(reports.recv_timeout(PATIENCE).unwrap().error), "{shape:?}");
        // The carriers that waited are lost, too, and a visitor may be given one before that is known.
        until("a stream is whole again", || {
            let mut visitor = bridge.visit(0);
            ask(&mut visitor, Order::Send, 5, 1 << 20);
            read_all(&mut visitor, 5).2.is_none()
        });
        assert_eq!(agent.log.count("down"), 0, "{shape:?}: the link did not survive");
    }
}

/// The link is cut: streams on direct carriers go on, and the others are reset.
#[test]
fn a_lost_link_leaves_direct_streams() {
    for shape in shapes() {
        println!("{shape:?}");
        let shape = Shape { workers: 1, carriers: 1, ..shape };
        let (address, _reports) = backend::start();
        let (bridge, cable, agent) = cabled(shape, address);
        let bytes = 64 << 20;
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 3, bytes);
        let mut source = Source::new(3);
        let mut first = vec![0; 2 << 20];
        visitor.read_exact(&mut first).unwrap();
        let mut other = bridge.visit(0);
        until("the stream has a direct carrier", || bridge.stats().direct_open > 0);
        until("the stream has left the mux", || agent.handle.stats().direct_open > 0);
        // The markers have crossed when something behind them has come back.
        ask(&mut other, Order::Send, 4, 10);
        other.read_exact(&mut [0; 10]).unwrap();
        cable.reset_first(shape.carriers.into());
        let (rest, digest, error) = read_after(&mut visitor, &first);
        regenerate(&mut source, bytes);
        assert_eq!((rest, error), (bytes, None), "{shape:?}");
        assert_eq!(digest, finish(source.digest), "{shape:?}");
    }
}

/// The link is cut, and what is on the way of its direct streams then takes nothing and says nothing, with its TCP alive:
/// both ends of the stream hear of it.
#[test]
fn a_silent_orphan_ends() {
    let shapes = [RING, EPOLL, Shape { tls: true, ..RING }];
    let silent = |shape: Shape| {
        let shape = Shape { workers: 1, carriers: 1, carrier: CarrierMode::Auto, ..shape };
        let (address, reports) = backend::start();
        let (bridge, cable, agent) = cabled(shape, address);
        reports.recv_timeout(PATIENCE).unwrap();
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Flood, 1, 0);
        visitor.read_exact(&mut vec![0; 8 << 20]).unwrap();
        until("the stream has left the mux", || agent.handle.stats().direct_open > 0);
        cable.reset_first(1);
        cable.freeze();
        let (bytes, _, error) = read_all(&mut visitor, 1);
        assert!(is_reset(error), "{shape:?}: after {bytes} more bytes the visitor saw {error:?}");
        let report = reports.recv_timeout(PATIENCE).unwrap();
        assert!(is_reset(report.error), "{shape:?}: the backend saw {report:?}");
        // The agent has come back, and serves.
        echo(&bridge, 2, 1 << 20);
    };
    thread::scope(|scope| shapes.map(|shape| scope.spawn(move || silent(shape))).map(|it| it.join().unwrap()));
}

/// The link is cut, and a stream that goes on in one direction, little by little, outlives it for longer than a silent one: at
/// the end that only sends as at the end that only hears.
#[test]
fn a_busy_orphan_lives() {
    for io in [RING, Shape { tls: true, ..RING }] {
        let shape = Shape { workers: 1, carriers: 1, carrier: CarrierMode::Auto, ..io };
        let (address, reports) = backend::start();
        let (bridge, cable, agent) = cabled(shape, address);
        reports.recv_timeout(PATIENCE).unwrap();
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 5, 8 << 20);
        let mut sent = Source::new(5);
        regenerate(&mut sent, 8 << 20);
        assert_eq!(read_all(&mut visitor, 5), (8 << 20, finish(sent.digest), None), "{shape:?}");
        let mut source = Source::new(105);
        // Much of it first: this direction has left the mux, too.
        source.write(&mut visitor, 8 << 20).unwrap();
        until("the stream has left the mux", || agent.handle.stats().direct_open > 0);
        cable.reset_first(1);
        agent.log.wait_for("down", 1);
        // What passes here is time: a silent orphan has 10 s at most.
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(12) {
            source.write(&mut visitor, 1000).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
            thread::sleep(Duration::from_millis(500));
        }
        visitor.shutdown(Shutdown::Write).unwrap();
        let report = reports.recv_timeout(PATIENCE).unwrap();
        assert_eq!((report.error, report.digest), (None, finish(source.digest)), "{shape:?}");
    }
}

fn read_after(stream: &mut std::net::TcpStream, first: &[u8]) -> (u64, [u8; 32], Option<ErrorKind>) {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(first);
    let (mut bytes, mut buffer) = (first.len() as u64, vec![0; 256 << 10]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (bytes, finish(digest), None),
            Ok(n) => {
                digest.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) => return (bytes, finish(digest), Some(error.kind())),
        }
    }
}

/// What [`Source::write`] would have written.
fn regenerate(source: &mut Source, count: u64) {
    let mut left = count;
    while left > 0 {
        left -= source.next(left).len() as u64;
        source.pause();
    }
}
