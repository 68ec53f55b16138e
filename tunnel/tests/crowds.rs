//! Many visitors at once: what one costs that says nothing, what many cost that do not read, and what happens at the
//! limits.

mod rig;

use rig::backend::{self, Order, ask, read_all};
use rig::{MEMORY, RING, Shape};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::memory::MemoryLimits;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

/// Memory of this process that is in RAM and its own, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < rig::PATIENCE, "it never happens that {what}");
        thread::yield_now();
    }
}

/// A backend that accepts, says one byte, and keeps what it accepted; nothing of it is on a heap but a descriptor.
fn idle_backend() -> (SocketAddr, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::with_capacity(1 << 16);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"!").unwrap();
            kept.push(stream);
            // The test may be over.
            let _ = told.send(());
        }
    });
    (address, heard)
}

/// An idle stream costs both sides together at most 4 KiB of user memory: 2 KiB each. Counted over streams that come
/// after the first few hundred, which pay for what all share.
#[test]
fn idle_streams_are_cheap() {
    const FIRST: usize = 200;
    const MORE: usize = 1500;
    for shape in [RING, Shape { tls: true, ..RING }] {
        let (address, heard) = idle_backend();
        let bridge = rig::bridge(shape, &["idle"]);
        let agent = bridge.agent(shape, &[("idle", address)]);
        let mut visitors: Vec<TcpStream> = Vec::with_capacity(FIRST + MORE);
        let mut crowd = |n: usize| {
            for _ in 0..n {
                let mut visitor = bridge.visit(0);
                visitor.write_all(b"?").unwrap();
                visitor.read_exact(&mut [0]).unwrap();
                heard.recv_timeout(rig::PATIENCE).unwrap();
                visitors.push(visitor);
            }
        };
        crowd(FIRST);
        let before = resident();
        crowd(MORE);
        let each = resident().saturating_sub(before) / MORE;
        println!("{shape:?}: {each} bytes for each idle stream, both sides together");
        assert!(each <= 4096, "{shape:?}: {each} bytes for each idle stream");
        assert_eq!(agent.handle.stats().streams_open, (FIRST + MORE) as u64);
    }
}

/// Visitors that do not read take half of the pipes at most, however many they are: who comes after them is spliced.
#[test]
fn stalled_visitors_leave_pipes_to_others() {
    let shape = Shape { workers: 1, carriers: 1, ..RING };
    let (address, _reports) = backend::start();
    let bridge = rig::bridge(shape, &["web"]);
    let agent = bridge.agent(shape, &[("web", address)]);
    let mut stalled = Vec::new();
    for seed in 0..80 {
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Flood, seed, 0);
        stalled.push(visitor);
        // It has stalled once its bytes wait.
        let before = bridge.stats().bytes_held;
        until("it stalls", || bridge.stats().bytes_held > before);
    }
    let before = bridge.stats();
    assert!(before.pipes <= 48, "{} pipes", before.pipes);
    let mut visitor = bridge.visit(0);
    ask(&mut visitor, Order::Send, 1, 32 << 20);
    assert_eq!(read_all(&mut visitor, 1).0, 32 << 20);
    let after = bridge.stats();
    let spliced = after.bytes_spliced - before.bytes_spliced;
    assert!(spliced > 16 << 20, "{spliced} of 32 MiB were spliced beside {} visitors that stalled", stalled.len());
    drop((stalled, agent));
}

/// What waits for slow receivers is bounded for the whole process: at the limit those that hold most are reset, with
/// the reason counted, and those that read notice nothing.
#[test]
fn too_much_that_waits_costs_those_that_hold_it() {
    let limits = MemoryLimits { held_bytes_max: 16 << 20, ..MEMORY };
    let shape = Shape { memory: limits, ..RING };
    let (address, _reports) = backend::start();
    let bridge = rig::bridge(shape, &["web"]);
    let _agent = bridge.agent(shape, &[("web", address)]);
    let reader = {
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 1, 48 << 20);
        thread::spawn(move || read_all(&mut visitor, 1))
    };
    let mut stalled: Vec<TcpStream> = Vec::new();
    let resets = || bridge.stats().reasons[Reason::MemoryMax as usize];
    while resets() < 8 {
        assert!(stalled.len() < 400, "no limit in sight with {} bytes", bridge.stats().bytes_held);
        let (held, count) = (bridge.stats().bytes_held, resets());
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Flood, stalled.len() as u64, 0);
        stalled.push(visitor);
        // It has stalled once its bytes wait, or cost somebody his stream.
        until("it stalls", || bridge.stats().bytes_held > held || resets() > count);
        let held = bridge.stats().bytes_held;
        // One frame of each carrier may be on its way when the limit is reached.
        assert!(held <= (16 << 20) + (4 << 20), "{held} bytes are held");
    }
    assert_eq!(reader.join().unwrap().0, 48 << 20);
    let is_reset = |mut visitor: TcpStream| {
        let mut buffer = vec![0; 1 << 20];
        visitor.set_nonblocking(true).unwrap();
        loop {
            match visitor.read(&mut buffer) {
                Ok(1..) => {}
                Ok(0) => return false,
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    };
    let reset = stalled.into_iter().map(is_reset).filter(|reset| *reset).count();
    assert!(reset >= 1, "nobody was reset");
}
