//! Bulk that rests for small messages arrives whole, in frames and without, whoever encrypts; and it does rest where cores are
//! taken. When it may rest is shown in `plane/rest.rs`, by which turns in `mux/tests.rs`.

mod rig;

use rig::backend::{self, Order, Source, ask, finish, read_all};
use rig::{BridgeRig, EPOLL, RING, Shape};
use ringspan_tunnel::bridge::CarrierMode;
use std::hint::spin_loop;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bytes of one round of bulk, each way: several times what a stream of the rig carries before it leaves the mux.
const BULK_BYTES: u64 = 4 << 20;
const BULK: u64 = 3;
/// Rounds until both ends have rested. It takes one or two.
const ROUNDS_MAX: u64 = 60;

/// Sends while it reads what comes back.
fn bulk(bridge: &BridgeRig, seed: u64) {
    let mut stream = bridge.visit(0);
    let mut reader = stream.try_clone().unwrap();
    let back = thread::spawn(move || read_all(&mut reader, seed));
    ask(&mut stream, Order::Echo, seed, 0);
    let mut source = Source::new(seed);
    source.write(&mut stream, BULK_BYTES).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(back.join().unwrap(), (BULK_BYTES, finish(source.digest), None), "seed {seed}");
}

/// Asks and is answered, as fast as may be.
fn talk(bridge: &BridgeRig, over: &AtomicBool) {
    let mut stream = bridge.visit(0);
    ask(&mut stream, Order::Echo, 1, 0);
    let mut block = [7; 64];
    while !over.load(Ordering::Relaxed) {
        stream.write_all(&block).unwrap();
        stream.read_exact(&mut block).unwrap();
        assert_eq!(block, [7; 64]);
    }
}

/// Ends the others when the first of them is through, also by a failed assertion.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn bulk_that_rests_arrives() {
    let says = std::fs::read_to_string("/proc/thread-self/schedstat").is_ok();
    if !says {
        println!("SKIPPED that bulk rests: this kernel does not say how long a thread waits for its core");
    }
    for (carrier, tls, ktls, io) in [
        (CarrierMode::Mux, false, false, RING),
        (CarrierMode::Auto, false, false, EPOLL),
        (CarrierMode::Mux, true, false, EPOLL),
        (CarrierMode::Auto, true, true, RING),
    ] {
        let shape = Shape { carrier, tls, ktls, ..io };
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        let over = AtomicBool::new(false);
        let rests = || (bridge.stats().bulk_rests, agent.handle.stats().bulk_rests);
        thread::scope(|scope| {
            let _ends = Ends(&over);
            scope.spawn(|| talk(&bridge, &over));
            for _ in 0..2 * thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        spin_loop();
                    }
                });
            }
            for round in 0..ROUNDS_MAX {
                thread::scope(|scope| {
                    for n in 0..BULK {
                        let bridge = &bridge;
                        scope.spawn(move || bulk(bridge, round * BULK + n));
                    }
                });
                if !says || (rests().0 > 0 && rests().1 > 0) {
                    break;
                }
            }
        });
        println!("{carrier:?}, tls {tls}, {:?}: rests {:?}", io.io, rests());
        assert!(!says || (rests().0 > 0 && rests().1 > 0), "{shape:?}: {:?}", rests());
    }
}
