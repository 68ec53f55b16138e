//! When bridge and agent are gone, so is everything they opened. Alone in its program: descriptors are the process's.

mod rig;

use rig::backend::{self, Order, ask, read_all};
use rig::{EPOLL, RING, Shape};
use std::io::Read;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Floods cut short, echoes, idle visitors, refused ones, a lost agent: not one descriptor stays, on either `Io`.
#[test]
fn no_descriptor_is_left() {
    let (address, reports) = backend::start();
    for shape in [RING, EPOLL, Shape { tls: true, ..RING }] {
        let before = descriptors();
        let mut served = 0;
        {
            let bridge = rig::bridge(shape, &["web", "nothing"]);
            for _ in 0..3 {
                let _agent = bridge.agent(shape, &[("web", address)]);
                let _idle: Vec<_> = (0..50).map(|_| bridge.visit(0)).collect();
                for round in 0..10 {
                    let mut visitor = bridge.visit(0);
                    ask(&mut visitor, Order::Send, round, 500_000);
                    visitor.shutdown(std::net::Shutdown::Write).unwrap();
                    assert_eq!(read_all(&mut visitor, round).0, 500_000);
                    let mut visitor = bridge.visit(0);
                    ask(&mut visitor, Order::Flood, round, 0);
                    visitor.read_exact(&mut [0; 1_000_000]).unwrap();
                    drop(bridge.visit(1));
                    served += 2;
                }
                served += 50;
            }
            // What was counted as opened is counted as closed: the gauge tells of sockets, not of streams.
            bridge.log.wait_for("gone", 3);
            assert_eq!((bridge.stats().streams_open, bridge.stats().carriers_up), (0, 0), "{shape:?}");
        }
        // The backend's own descriptors are closed before it reports.
        for _ in 0..served {
            reports.recv_timeout(rig::PATIENCE).unwrap();
        }
        assert_eq!(descriptors(), before, "{shape:?}");
    }
}
