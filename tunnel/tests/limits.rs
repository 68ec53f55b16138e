//! Limits hold over real sockets: as many at once as allowed on all workers together, nobody who is denied, no more bytes
//! a second than allowed and each of them, and who is silent or old is ended. And services spread their visitors as they
//! are told to.

mod rig;

use rig::backend::{self, Source, finish, read_all};
use rig::{BridgeRig, EPOLL, RING, Shape};
use ringspan_tunnel::bridge::{CarrierMode, Gate, Inherited, Listener};
use ringspan_tunnel::limits::{Limiter, Limits, Lists, Rules};
use ringspan_tunnel::routes::{Balance, Policy};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn shapes() -> impl Iterator<Item = Shape> {
    let carriers = [CarrierMode::Mux, CarrierMode::Direct, CarrierMode::Auto];
    [RING, EPOLL].into_iter().flat_map(move |shape| carriers.map(|carrier| Shape { carrier, ..shape }))
}

/// A bridge whose only listener keeps these rules.
fn limited(shape: Shape, rules: Rules) -> BridgeRig {
    let gate =
        Gate { carrier: shape.carrier, limiter: Some(Limiter::new(rules)), ..Gate::new("public", rig::service("web")) };
    let listener = Listener { address: "127.0.0.1:0".parse().unwrap(), gate: Arc::new(gate) };
    let bridge = rig::bridge_inheriting(shape, vec![listener], Inherited::default());
    bridge.handle.hold_visitors(false);
    bridge
}

/// A visitor that has reached a backend, and which; `None`: it was turned away.
fn come(bridge: &BridgeRig) -> Option<(TcpStream, u8)> {
    let mut visitor = bridge.visit(0);
    let mut name = [0];
    visitor.read_exact(&mut name).ok()?;
    Some((visitor, name[0]))
}

/// Three at once, whichever workers accept them; a fourth when one has gone. The same for a service.
#[test]
fn as_many_as_allowed() {
    for shape in shapes() {
        let rules = Rules { all: Limits { connections_max: 3, ..Limits::default() }, ..Rules::default() };
        for is_service in [false, true] {
            let bridge = if is_service { rig::bridge(shape, &["web"]) } else { limited(shape, rules.clone()) };
            if is_service {
                let limiter = Some(Limiter::new(rules.clone()));
                bridge.set_policy("web", Policy { limiter, ..Policy::default() });
            }
            let _agent = bridge.agent(shape, &[("web", backend::mirror(b'm'))]);
            let mut inside: Vec<_> = (0..3).map(|_| come(&bridge).expect("there is room").0).collect();
            for _ in 0..5 {
                assert!(come(&bridge).is_none(), "{shape:?}: one too many");
            }
            bridge.log.wait_for("connections_max", 5);
            // Those inside notice nothing.
            for visitor in &mut inside {
                visitor.write_all(b"?").unwrap();
                visitor.read_exact(&mut [0]).unwrap();
            }
            inside.pop();
            rig::until(|| match come(&bridge) {
                Some((visitor, _)) => {
                    inside.push(visitor);
                    true
                }
                None => false,
            });
            assert!(come(&bridge).is_none(), "{shape:?}: full again");
        }
    }
}

/// The longest prefix decides.
#[test]
fn the_denied_stay_out() {
    let net = |text: &str| text.parse().unwrap();
    let cases = [
        (vec![], vec![net("127.0.0.0/8")], false),
        (vec![net("127.0.0.1/32")], vec![net("127.0.0.0/8")], true),
        (vec![net("192.0.2.0/24")], vec![], false),
        (vec![], vec![net("192.0.2.0/24")], true),
    ];
    for shape in [RING, EPOLL] {
        for (allow, deny, is_welcome) in cases.clone() {
            let lists = Lists { allow, deny };
            let bridge = limited(shape, Rules { lists: lists.clone(), ..Rules::default() });
            let _agent = bridge.agent(shape, &[("web", backend::mirror(b'm'))]);
            assert_eq!(come(&bridge).is_some(), is_welcome, "{shape:?} {lists:?}");
            if !is_welcome {
                bridge.log.wait_for("refused public denied", 1);
                assert_eq!(bridge.stats().streams_total, 0);
            }
        }
    }
}

/// Every byte goes both ways, none before its time.
#[test]
fn bytes_are_paced_and_whole() {
    const RATE: u64 = 400_000;
    const BYTES: u64 = 500_000;
    for shape in shapes() {
        for (up_bytes, down_bytes) in [(RATE, 0), (0, RATE)] {
            let all = Limits { up_bytes, down_bytes, ..Limits::default() };
            let bridge = limited(shape, Rules { all, ..Rules::default() });
            let _agent = bridge.agent(shape, &[("web", backend::mirror(b'm'))]);
            let (visitor, _) = come(&bridge).unwrap();
            let (mut reader, mut writer) = (visitor.try_clone().unwrap(), visitor);
            let started = Instant::now();
            std::thread::scope(|scope| {
                let back = scope.spawn(move || read_all(&mut reader, 1));
                let mut source = Source::new(1);
                source.write(&mut writer, BYTES).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
                let (bytes, digest, error) = back.join().unwrap();
                assert_eq!((bytes, error), (BYTES, None), "{shape:?}");
                assert_eq!(digest, finish(source.digest), "{shape:?}");
            });
            // A burst, and one piece that overdraws it; the rest takes its time, which no busy machine shortens.
            let least = Duration::from_millis((BYTES - 2 * RATE / 10) * 1000 / RATE);
            assert!(started.elapsed() >= least, "{shape:?}: {:?} for {BYTES} bytes", started.elapsed());
        }
    }
}

/// Silence ends a stream, and age ends one that is never silent.
#[test]
fn the_silent_and_the_old_are_ended() {
    for shape in shapes() {
        let short = Some(Duration::from_millis(200));
        let bridge = limited(shape, Rules { idle: short, ..Rules::default() });
        let _agent = bridge.agent(shape, &[("web", backend::mirror(b'm'))]);
        let (mut visitor, _) = come(&bridge).unwrap();
        assert!(!matches!(visitor.read(&mut [0]), Ok(1..)), "{shape:?}: nothing was said");
        rig::until(|| bridge.stats().streams_open == 0);

        let bridge = limited(shape, Rules { total: short, idle: Some(Duration::from_secs(3600)), ..Rules::default() });
        let _agent = bridge.agent(shape, &[("web", backend::mirror(b'm'))]);
        let (mut visitor, _) = come(&bridge).unwrap();
        while visitor.write_all(b"?").is_ok() && matches!(visitor.read(&mut [0]), Ok(1..)) {}
        rig::until(|| bridge.stats().streams_open == 0);
    }
}

/// Whoever has fewer gets the next, whatever came before: five of ten leave one backend, and the next five go there.
#[test]
fn the_least_loaded_is_visited() {
    for shape in shapes() {
        let bridge = rig::bridge(shape, &["web"]);
        bridge.set_policy("web", Policy { balance: Balance::LeastConnections, ..Policy::default() });
        let both = [("web", backend::mirror(b'a')), ("web", backend::mirror(b'b'))];
        let _agent = bridge.agent(shape, &both);
        let mut inside: Vec<_> = (0..10).map(|_| come(&bridge).unwrap()).collect();
        let of = |inside: &[(TcpStream, u8)], name| inside.iter().filter(|visitor| visitor.1 == name).count();
        assert_eq!((of(&inside, b'a'), of(&inside, b'b')), (5, 5), "{shape:?}");
        inside.retain(|visitor| visitor.1 == b'b');
        rig::until(|| bridge.stats().streams_open == 5);
        let next: Vec<_> = (0..5).map(|_| come(&bridge).unwrap()).collect();
        assert_eq!(of(&next, b'a'), 5, "{shape:?}");
    }
}

/// One address meets one backend, each time, on every worker; many addresses meet all of them.
#[test]
fn an_address_has_a_home() {
    for shape in shapes() {
        let gate = Gate {
            carrier: shape.carrier,
            proxy_from: Some(vec!["127.0.0.0/8".parse().unwrap()]),
            ..Gate::new("public", rig::service("web"))
        };
        let listener = Listener { address: "127.0.0.1:0".parse().unwrap(), gate: Arc::new(gate) };
        let bridge = rig::bridge_inheriting(shape, vec![listener], Inherited::default());
        bridge.handle.hold_visitors(false);
        bridge.set_policy("web", Policy { balance: Balance::SourceHash, ..Policy::default() });
        let backends = [("web", backend::mirror(b'a')), ("web", backend::mirror(b'b')), ("web", backend::mirror(b'c'))];
        let _agent = bridge.agent(shape, &backends);
        let home = |n: u8, port: u16| {
            let mut visitor = bridge.visit(0);
            write!(visitor, "PROXY TCP4 203.0.113.{n} 198.51.100.1 {port} 80\r\n").unwrap();
            let mut name = [0];
            visitor.read_exact(&mut name).unwrap();
            name[0]
        };
        let homes: Vec<u8> = (0..40).map(|n| home(n, 1000)).collect();
        for port in 2000..2003 {
            let again: Vec<u8> = (0..40).map(|n| home(n, port)).collect();
            assert_eq!(homes, again, "{shape:?}");
        }
        assert_eq!(homes.iter().collect::<HashSet<_>>().len(), 3, "{shape:?}: 40 addresses meet all");
    }
}
