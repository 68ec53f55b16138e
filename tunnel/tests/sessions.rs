//! An agent that comes back with other backends while its visitors are carried: no visitor is refused, each gets the
//! backend that it asked for whichever session's list its number is from, and the older session ends with its last
//! visitor.

mod rig;

use rig::backend::{self, Order, ask};
use rig::{PATIENCE, SHAPES};
use ringspan_tunnel::identity::{AgentKey, AgentName};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// A backend that answers each connection with its letter.
fn letter(letter: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A visitor of a test that is over may be gone.
            let _ = stream.unwrap().write_all(&[letter]);
        }
    });
    address
}

/// What a visitor of this listener hears, all of it.
fn heard(address: SocketAddr) -> Result<Vec<u8>, std::io::Error> {
    let mut visitor = TcpStream::connect(address)?;
    visitor.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    visitor.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Five sessions of one agent follow each other, each with the same three services in another order, while four
/// visitors come as fast as they can, and one stays from the first session on.
#[test]
fn sessions_follow_each_other() {
    for shape in SHAPES {
        let (a, b, (long, _reports)) = (letter(b'a'), letter(b'b'), backend::start());
        let bridge = rig::bridge(shape, &["a", "b", "long"]);
        let identity = AgentKey::generate(AgentName::try_from("test".to_owned()).unwrap());
        let orders = [
            [("a", a), ("b", b), ("long", long)],
            [("b", b), ("a", a), ("long", long)],
            [("long", long), ("b", b), ("a", a)],
        ];
        let start = |round: usize| {
            bridge.agent_as(identity.clone(), shape, bridge.handle.link_address(), &orders[round % orders.len()])
        };
        let mut agent = start(0);
        for backend in 0..3 {
            bridge.log.wait_for(&format!("health {} {backend} Up", agent.id), 1);
        }
        let mut stays = bridge.visit(2);
        ask(&mut stays, Order::Send, 1, 4 << 20);
        stays.read_exact(&mut [0; 1000]).unwrap();

        let (stop, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let visitors: Vec<_> = (0..4)
            .map(|n| {
                let (stop, visits) = (stop.clone(), visits.clone());
                let address = bridge.handle.addresses()[n % 2].1;
                thread::spawn(move || {
                    while !stop.load(Ordering::Acquire) {
                        let heard =
                            heard(address).unwrap_or_else(|error| panic!("{shape:?}: a visitor was lost: {error}"));
                        assert_eq!(heard, [b"ab"[n % 2]], "{shape:?}: the wrong backend");
                        visits.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut first = None;
        for round in 1..5 {
            let next = start(round);
            next.log.wait_for("up", shape.carriers.into());
            agent.handle.retire();
            bridge.log.wait_for(&format!("up {}", next.id), round + 1);
            let seen = visits.load(Ordering::Relaxed);
            rig::until(|| visits.load(Ordering::Relaxed) >= seen + 20 || visitors.iter().any(|v| v.is_finished()));
            let old = std::mem::replace(&mut agent, next);
            if round == 1 {
                first = Some(old);
            } else {
                rig::until(|| old.handle.stats().carriers_up == 0);
            }
        }
        stop.store(true, Ordering::Release);
        for visitor in visitors {
            visitor.join().unwrap();
        }
        // The one that stayed is served by the first session, which is still there for it, and goes then.
        stays.read_exact(&mut vec![0; (4 << 20) - 1000]).unwrap();
        drop(stays);
        let first = first.unwrap();
        rig::until(|| {
            first.handle.stats().streams_open == 0 && bridge.stats().carriers_up == u64::from(shape.carriers)
        });
        assert_eq!(bridge.log.count("refused"), 0, "{shape:?}");
    }
}
