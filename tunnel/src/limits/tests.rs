//! Claim: in virtual time no more gets through than the limits allow, and no less; nobody is counted who has gone.

use super::*;
use proptest::prelude::*;

fn at(ns: u64) -> Instant {
    Instant::from_ns(SECOND + ns)
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

proptest! {
    /// A sender that always has more gets the rate, within one burst and one read, over any span.
    #[test]
    fn bytes_keep_the_rate(rate in 1_000u64..1_000_000_000, read in 1usize..70_000, streams in 1usize..4) {
        let limiter = Limiter::new(Rules { all: Limits { down_bytes: rate, ..Limits::default() }, ..Rules::default() });
        let passes: Vec<Pass> = (0..streams).map(|_| limiter.enter(at(0), None).unwrap()).collect();
        let (mut now, mut bytes, mut turn) = (at(0), 0u64, 0);
        let slice = read.min(passes[0].slice(Way::Down));
        while bytes < 100 * (rate / 10 + 16_384) {
            let pass = &passes[turn % streams];
            turn += 1;
            if let Some(until) = pass.wait(Way::Down, now) {
                prop_assert!(until > now);
                now = until;
            }
            pass.spend(Way::Down, now, slice);
            bytes += slice as u64;
            if turn > 20_000 { break; }
        }
        let allowed = (u128::from(rate) * u128::from(now.ns() - at(0).ns()) / u128::from(SECOND)) as u64;
        // Costs are whole nanoseconds.
        let rounding = turn as u64 * rate / SECOND;
        let slack = burst_bytes(rate) + slice as u64 + rounding + 2;
        prop_assert!(bytes <= allowed + slack, "{bytes} of {allowed}");
        prop_assert!(allowed <= bytes + slack, "{bytes} of {allowed}: too few");
        prop_assert!(passes[0].wait(Way::Up, now).is_none());
    }

    /// New connections: never more in any span than the rate gives and one burst.
    #[test]
    fn arrivals_keep_the_rate(rate in 1u32..1000, burst in 1u32..100, gaps in prop::collection::vec(0u64..50_000_000, 1..500)) {
        let all = Limits { rate, burst, ..Limits::default() };
        let limiter = Limiter::new(Rules { all, ..Rules::default() });
        let (mut now, mut came) = (0u64, 0u64);
        for gap in gaps {
            now += gap;
            match limiter.enter(at(now), None) {
                Ok(_) => came += 1,
                Err(reason) => prop_assert_eq!(reason, Reason::RateMax),
            }
            let allowed = u64::from(burst) + now * u64::from(rate) / SECOND;
            prop_assert!(came <= allowed, "{came} of {allowed}");
        }
        // After a pause the whole burst is there again.
        now += 100 * SECOND;
        for n in 0..burst {
            prop_assert!(limiter.enter(at(now), None).is_ok(), "{n} of {burst}");
        }
    }
}

/// Connections at once: exact, each visitor by itself and all together, and a pass that ends makes room.
#[test]
fn connections_are_counted() {
    let rules = Rules {
        all: Limits { connections_max: 3, ..Limits::default() },
        visitor: Limits { connections_max: 2, ..Limits::default() },
        ..Rules::default()
    };
    let limiter = Limiter::new(rules);
    let enter = |address| limiter.enter(at(0), ip(address));
    let first = enter("192.0.2.1").unwrap();
    let _second = enter("::ffff:192.0.2.1").unwrap();
    assert_eq!(enter("192.0.2.1").unwrap_err(), Reason::ConnectionsMax);
    let _third = enter("2001:db8::1").unwrap();
    assert_eq!(enter("2001:db8:0:1::1").unwrap_err(), Reason::ConnectionsMax, "of all together");
    drop(first);
    let _fourth = enter("2001:db8::ffff").unwrap();
    assert_eq!(enter("2001:db8::2").unwrap_err(), Reason::ConnectionsMax);
    assert_eq!(limiter.visitors.lock().unwrap().len(), 3, "a /64 is one visitor");
}

/// Other rules forget nobody: who is in is counted on, by the new number, and the same for bytes that were let through.
#[test]
fn a_change_forgets_no_count() {
    let rules = |all: u32, each: u32, down_bytes: u64| Rules {
        all: Limits { connections_max: all, down_bytes, ..Limits::default() },
        visitor: Limits { connections_max: each, ..Limits::default() },
        ..Rules::default()
    };
    let limiter = Limiter::new(rules(3, 2, 1 << 20));
    let enter = |address| limiter.enter(at(0), ip(address));
    let first = enter("192.0.2.1").unwrap();
    let second = enter("192.0.2.1").unwrap();
    limiter.change(rules(2, 5, 1 << 10));
    assert_eq!(enter("192.0.2.2").unwrap_err(), Reason::ConnectionsMax, "two are in, and two may be");
    drop(second);
    let third = enter("192.0.2.1").unwrap();
    limiter.change(rules(5, 2, 1 << 10));
    assert_eq!(enter("192.0.2.1").unwrap_err(), Reason::ConnectionsMax, "of one visitor");
    first.spend(Way::Down, at(0), 10 << 10);
    let wait = third.wait(Way::Down, at(0)).expect("ten seconds of the new rate are owed");
    assert!(wait > at(8 * SECOND), "{wait:?}");
    limiter.change(rules(5, 2, 0));
    assert_eq!(third.wait(Way::Down, at(0)), None, "no limit any more");
}

/// Many threads, one count.
#[test]
fn threads_share_the_count() {
    let limiter =
        Limiter::new(Rules { all: Limits { connections_max: 1000, ..Limits::default() }, ..Rules::default() });
    let entered: usize = std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..1000).filter_map(|_| limiter.enter(at(0), None).ok()).collect::<Vec<_>>()))
            .collect();
        let passes: Vec<_> = crowd.into_iter().map(|thread| thread.join().unwrap()).collect();
        passes.iter().map(Vec::len).sum()
    });
    assert_eq!(entered, 1000);
    assert_eq!(limiter.all.connections.load(Relaxed), 0);
}

/// The longest prefix decides, whatever the order.
#[test]
fn lists_decide() {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
    let rows: &[(&[&str], &[&str], &str, bool)] = &[
        (&[], &[], "192.0.2.1", true),
        (&[], &["192.0.2.0/24"], "192.0.2.1", false),
        (&[], &["192.0.2.0/24"], "192.0.3.1", true),
        (&["10.0.0.0/8"], &[], "10.1.2.3", true),
        (&["10.0.0.0/8"], &[], "11.1.2.3", false),
        (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3", false),
        (&["10.1.2.0/24"], &["10.0.0.0/8"], "10.1.2.3", true),
        (&["10.1.0.0/16"], &["10.1.0.0/16"], "10.1.2.3", false),
        (&[], &["192.0.2.0/24"], "::ffff:192.0.2.1", false),
        (&["2001:db8::/32"], &[], "2001:db8::1", true),
        (&["2001:db8::/32"], &[], "192.0.2.1", false),
    ];
    for (allow, deny, address, expected) in rows {
        let lists = Lists { allow: nets(allow), deny: nets(deny) };
        assert_eq!(lists.lets_in(address.parse().unwrap()), *expected, "{allow:?} {deny:?} {address}");
        let limiter = Limiter::new(Rules { lists, ..Rules::default() });
        assert_eq!(limiter.enter(at(0), ip(address)).is_ok(), *expected);
    }
}

/// A full table forgets whom it can and refuses newcomers otherwise.
#[test]
fn the_table_is_bounded() {
    let limiter = Limiter::new(Rules { visitor: Limits { rate: 1, ..Limits::default() }, ..Rules::default() });
    let address = |n: u32| Some(IpAddr::from(std::net::Ipv4Addr::from(n)));
    for n in 0..VISITORS_MAX as u32 {
        drop(limiter.enter(at(0), address(n)).unwrap());
    }
    assert_eq!(limiter.enter(at(0), address(1 << 30)).unwrap_err(), Reason::VisitorsMax);
    assert!(limiter.enter(at(2 * SECOND), address(1 << 30)).is_ok());
    assert_eq!(limiter.visitors.lock().unwrap().len(), 1);
}
