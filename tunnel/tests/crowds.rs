//! Many visitors that do not read: what they cost the others, and what happens at the limits.

mod rig;

use rig::backend::{self, Order, ask, read_all};
use rig::{MEMORY, RING, Shape};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::memory::MemoryLimits;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < rig::PATIENCE, "it never happens that {what}");
        thread::yield_now();
    }
}

/// A visitor that does not read holds at least this in the end, whatever else happens: its window, but for less than a
/// quarter that is not worth a grant.
const STALLED_BYTES: u64 = (RING.window_bytes / 4 * 3) as u64;

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
        // Not "more than before": what those before it hold may still become less.
        until("they stall", || bridge.stats().bytes_held >= stalled.len() as u64 * STALLED_BYTES);
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
/// the reason counted; who reads hears all of it, or that it was reset, and never a short end.
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
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Flood, stalled.len() as u64, 0);
        stalled.push(visitor);
        // Not "more than before": what the reader holds comes and goes, and what is reset goes a moment after it is
        // counted. Those that are left hold theirs in the end.
        until("they stall", || {
            let left = (stalled.len() as u64).saturating_sub(resets());
            bridge.stats().bytes_held >= left * STALLED_BYTES
        });
        let held = bridge.stats().bytes_held;
        // One frame of each carrier may be on its way when the limit is reached.
        assert!(held <= (16 << 20) + (4 << 20), "{held} bytes are held");
    }
    // Who reads holds little, unless its thread does not get to run: then it may be the one that holds most.
    match reader.join().unwrap() {
        (bytes, _, None) => assert_eq!(bytes, 48 << 20, "a clean end that is none"),
        (_, _, error) => assert_eq!(error, Some(ErrorKind::ConnectionReset)),
    }
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
