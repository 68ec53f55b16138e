//! Every byte arrives, once and in order: more than a gigabyte in all, in pieces of every size, with readers that stop
//! and ends in every order, on both kinds of `Io`, with and without TLS. Judged by SHA-256 at both ends.

mod rig;

use rig::backend::{self, Order, Source, ask, finish, read_all};
use rig::cable;
use rig::{BridgeRig, EPOLL, RING, SHAPES, Shape};
use ringspan_engine::kernel::ktls;
use ringspan_tunnel::memory::MemoryLimits;
use socket2::SockRef;
use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

/// Bytes of one visitor, each way.
const VISITOR_BYTES: u64 = 24 << 20;
const VISITORS: u64 = 8;

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

/// Eight visitors at once send 24 MiB each and get them back: 384 MiB for each of the four shapes, 1.6 GB in all.
#[test]
fn every_byte_comes_back() {
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        thread::scope(|scope| {
            for visitor in 0..VISITORS {
                let bridge = &bridge;
                scope.spawn(move || echo(bridge, visitor, VISITOR_BYTES));
            }
        });
        let (there, here) = (bridge.stats(), agent.handle.stats());
        let carried = VISITORS * (VISITOR_BYTES + backend::ORDER_BYTES as u64);
        assert_eq!((there.bytes_to_link, here.bytes_from_link), (carried, carried), "{shape:?}");
        let back = VISITORS * VISITOR_BYTES;
        assert_eq!((here.bytes_to_link, there.bytes_from_link), (back, back), "{shape:?}");
        let splices = !shape.tls || ktls::look().as_ref().is_ok_and(|kernel| kernel.splice_out || kernel.splice_in);
        assert_eq!(there.bytes_spliced > 0, splices, "the splice mover is used where it can be: {there:?}");
    }
}

/// The backend ends first and goes on reading: its end reaches the visitor while the visitor's bytes still reach it.
#[test]
fn either_side_may_end_first() {
    for shape in SHAPES {
        let (address, reports): (_, Receiver<_>) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        for (seed, down, up) in [(1, 0, 0), (2, 1, 1), (3, 3 << 20, 100), (4, 100, 3 << 20), (5, 0, 70_000)] {
            let mut stream = bridge.visit(0);
            ask(&mut stream, Order::Send, seed, down);
            let mut sent = Source::new(seed);
            regenerate(&mut sent, down);
            let read = read_all(&mut stream, seed);
            assert_eq!(read, (down, finish(sent.digest), None), "{shape:?} seed {seed}");
            // Only now, with the backend's end read, does the visitor send.
            let mut source = Source::new(seed + 100);
            source.write(&mut stream, up).unwrap();
            drop(stream);
            let report = reports.recv_timeout(rig::PATIENCE).unwrap();
            assert_eq!((report.bytes, report.error), (up, None), "{shape:?} seed {seed}");
            assert_eq!(report.digest, finish(source.digest));
        }
    }
}

/// Bytes whose end comes with them are read together with it: all of them, also behind urgent data, at which a read stops
/// short (the urgent byte itself is carried by nobody); and bytes with a reset behind them do not end cleanly.
#[test]
fn bytes_and_their_end_come_together() {
    for shape in SHAPES {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", listener.local_addr().unwrap())]);
        let speaks = |speaker: &mut TcpStream, how: u32| {
            let socket = SockRef::from(&*speaker);
            socket.send(b"first").unwrap();
            if how == 1 {
                socket.send_out_of_band(b"!").unwrap();
            }
            socket.send(b"second").unwrap();
            if how == 2 {
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
        };
        for n in 0..60 {
            let (how, backend_speaks) = (n % 3, n % 2 == 0);
            let (visitor, backend) = (bridge.visit(0), listener.accept().unwrap().0);
            let (mut speaker, mut hears) = if backend_speaks { (backend, visitor) } else { (visitor, backend) };
            speaks(&mut speaker, how);
            drop(speaker);
            let mut heard = Vec::new();
            match hears.read_to_end(&mut heard) {
                Ok(_) => assert!(how < 2 && heard == b"firstsecond", "{shape:?} {n}: {heard:?}"),
                Err(error) => assert!(how == 2, "{shape:?} {n}: {error}"),
            }
        }
    }
}

/// Thousands of short visits, some with no byte at all.
#[test]
fn short_visits_are_whole() {
    for shape in [RING, EPOLL, Shape { carriers: 1, ..RING }, Shape { workers: 1, ..EPOLL }] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        thread::scope(|scope| {
            for visitor in 0..4u64 {
                let bridge = &bridge;
                scope.spawn(move || (0..250).for_each(|n| echo(bridge, visitor << 32 | n, n * n % 5_000)));
            }
        });
        assert_eq!(agent.handle.stats().streams_total, 1000, "{shape:?}");
        let across = (shape.workers, shape.carriers) == (2, 1);
        assert_eq!(bridge.stats().handovers > 0, across, "{shape:?}: one carrier serves the visitors of both workers");
    }
}

/// A link whose bytes arrive in pieces of 1 to 60 bytes and in bursts: headers, HELLOs and TLS records are cut
/// everywhere, and nothing is lost.
#[test]
fn bytes_survive_any_split() {
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let cable = cable::choppy(bridge.handle.link_address());
        let agent = bridge.agent_via(shape, cable.address, &[("web", address)]);
        bridge.log.wait_for(&format!("health {} 0 Up", agent.id), 1);
        thread::scope(|scope| {
            for visitor in 0..4 {
                let bridge = &bridge;
                scope.spawn(move || echo(bridge, visitor, 700_000 + visitor));
            }
        });
        assert_eq!(agent.log.count("down"), 0, "{shape:?}");
    }
}

/// A visitor that reads nothing, of a backend that never stops, holds at most its window; beside it 64 MiB pass. When
/// it reads at last, its bytes are all there.
#[test]
fn a_stalled_visitor_stops_nobody_else() {
    for shape in [RING, EPOLL, Shape { tls: true, ..RING }] {
        let memory = MemoryLimits { window_bytes_max: 4 << 20, ..rig::MEMORY };
        let shape = Shape { carriers: 1, workers: 1, memory, ..shape };
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        let bytes = 48 << 20;
        let mut stalled = bridge.visit(0);
        ask(&mut stalled, Order::Send, 7, bytes);
        echo(&bridge, 8, 32 << 20);
        let held = bridge.stats().bytes_held;
        assert!(held > 0, "{shape:?}: the stalled visitor did not stall");
        assert!(held <= 4 << 20, "{shape:?}: {held} bytes are held for one visitor");
        let (read, digest, error) = read_all(&mut stalled, 7);
        assert_eq!((read, error), (bytes, None), "{shape:?}");
        let mut sent = Source::new(7);
        regenerate(&mut sent, bytes);
        assert_eq!(digest, finish(sent.digest), "{shape:?}");
        assert_eq!(bridge.stats().bytes_held, 0, "{shape:?}");
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
