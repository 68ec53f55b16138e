//! Streams that always have bytes share a link, whoever encrypts it: nobody, rustls, or the kernel at both ends or at one.
//! What is exact about it is shown in `mux/tests.rs`; here are the movers, the records and the windows in between.

mod rig;

use rig::backend::{self, Order, ask};
use rig::{EPOLL, RING, Shape};
use ringspan_engine::kernel::ktls;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const STREAMS: usize = 6;

/// What the fastest reads before the others are looked at: many windows, so that what waits in sockets is little of it.
const BYTES: u64 = 24 << 20;

/// Six backends never stop sending over one carrier: when the first visitor has had 24 MiB, no other has had less than an
/// eighth of that. Shares are equal where they are made (`mux/tests.rs`). The margin is the machine's, which runs twelve
/// threads beside: in a guest with one processor the least had a quarter, once in sixty, and half where all had four times
/// as much. Where a stream whose turn is used up stays at the head of the queue, somebody has a sixteenth.
#[test]
fn nobody_is_left_behind() {
    if let Err(why) = ktls::look() {
        println!("SKIPPED the kernel's part of nobody_is_left_behind: {why}");
    }
    let (off, on) = ((false, false, false), (true, true, true));
    for io in [RING, EPOLL] {
        for (tls, bridge_ktls, agent_ktls) in [off, on, (true, true, false), (true, false, true), (true, false, false)]
        {
            let shape = |ktls| Shape { tls, ktls, carriers: 1, workers: 1, ..io };
            let (address, _reports) = backend::start();
            let bridge = rig::bridge(shape(bridge_ktls), &["web"]);
            let _agent = bridge.agent(shape(agent_ktls), &[("web", address)]);
            let had: [AtomicU64; STREAMS] = Default::default();
            // All are there before the first of them reads.
            let visitors = had.each_ref().map(|_| bridge.visit(0));
            thread::scope(|scope| {
                for (seed, (mut visitor, own)) in visitors.into_iter().zip(&had).enumerate() {
                    let had = &had;
                    scope.spawn(move || {
                        ask(&mut visitor, Order::Flood, seed as u64, 0);
                        let mut buffer = vec![0; 256 << 10];
                        while had.iter().all(|had| had.load(Ordering::Relaxed) < BYTES) {
                            let n = visitor.read(&mut buffer).expect("it never ends");
                            own.fetch_add(n as u64, Ordering::Relaxed);
                        }
                    });
                }
            });
            let had = had.map(AtomicU64::into_inner);
            println!("{:?}, tls {tls}, kernel at bridge {bridge_ktls}, agent {agent_ktls}: {had:?}", io.io);
            let least = had.into_iter().min().expect("six");
            assert!(least * 8 >= BYTES, "{:?} {tls} {bridge_ktls} {agent_ktls}: {had:?}", io.io);
        }
    }
}
