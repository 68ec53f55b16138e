use super::*;

/// Open, closed and black-holed targets get their verdicts, side by side and in every mode, and the lanes can be used
/// again at once, many times over. The black-holed ones end by cancel.
#[test]
fn verdicts_are_right() {
    on_every_io(|rig| {
        let modes = [Mode::HalfOpen, Mode::Full, Mode::Graceful];
        for (ip, mode) in [ELSEWHERE, AT_HOME].into_iter().flat_map(|ip| modes.map(|mode| (ip, mode))) {
            let (_open, open_at) = open_target_on(ip);
            let (_closed, closed_at) = closed_target_on(ip);
            let (_hole, hole_at) = black_hole_on(ip);
            let lanes = rig.lanes(mode, 60);
            for round in 0..10 {
                let kind = |lane: &Lane| (lane.0 + round) % 3;
                for lane in &lanes {
                    rig.knock(*lane, [open_at, closed_at, hole_at][kind(lane) as usize]);
                }
                let mut said = rig.wait_for(40);
                rig.is_quiet();
                for lane in lanes.iter().filter(|l| kind(l) == 2) {
                    rig.io.cancel(token(KNOCK, lane.0));
                }
                said.extend(rig.wait_for(20));
                let said = knocked(said);
                for lane in &lanes {
                    let expected = [Ok(()), Err(Errno(libc::ECONNREFUSED)), Err(Errno(libc::ECANCELED))];
                    let result = match said[&lane.0] {
                        // Kernels 6.14 to 6.15.7 say that a refused connect was reset.
                        Err(Errno(libc::ECONNRESET)) => Err(Errno(libc::ECONNREFUSED)),
                        result => result,
                    };
                    assert_eq!(
                        result,
                        expected[kind(lane) as usize],
                        "{mode:?} at {ip} on {}, round {round}",
                        rig.tier
                    );
                }
            }
        }
    });
}

/// A half-open knock never reaches the application, and the kernel says why: the connection was reset as an embryo.
#[test]
fn half_open_knocks_are_not_seen() {
    on_every_io(|rig| {
        let (listener, at) = open_target();
        listener.set_nonblocking(true).expect("a flag");
        let before = embryonic_resets();
        let lanes = rig.lanes(Mode::HalfOpen, 50);
        for _ in 0..20 {
            for lane in &lanes {
                rig.knock(*lane, at);
            }
            assert!(knocked(rig.wait_for(50)).values().all(Result::is_ok));
        }
        let seen = listener.accept();
        assert!(seen.is_err(), "the application saw {seen:?} on {}", rig.tier);
        assert!(embryonic_resets() - before >= 1000, "{} on {}", embryonic_resets() - before, rig.tier);
    });
}

/// A socket that the kernel gives the very port it knocks at is connected to itself, and that is not somebody who listens.
/// More knocks than there are ports to choose from: each comes up at least once.
#[test]
fn nobody_meets_himself() {
    on_every_io(|rig| {
        // connect(2) draws even ports, as long as there are any (net/ipv4/inet_hashtables.c).
        let free = |port: &u16| TcpListener::bind((AT_HOME, *port)).is_ok();
        let port = (50_000..60_000).step_by(2).find(free).expect("a free port");
        let at = SocketAddr::new(AT_HOME.parse().expect("an address"), port);
        let lanes = rig.lanes(Mode::HalfOpen, 250);
        for _ in 0..160 {
            for lane in &lanes {
                rig.knock(*lane, at);
            }
            assert!(knocked(rig.wait_for(250)).values().all(Result::is_err), "somebody at {at} on {}", rig.tier);
        }
    });
}

/// A full knock is seen by the application as a connection that was reset, a graceful one as one that ended.
#[test]
fn full_and_graceful_knocks_are_seen() {
    on_every_io(|rig| {
        for (mode, ended) in [(Mode::Full, false), (Mode::Graceful, true)] {
            let (listener, at) = open_target();
            let lane = rig.lanes(mode, 1)[0];
            rig.knock(lane, at);
            assert_eq!(knocked(rig.wait_for(1))[&lane.0], Ok(()));
            let (mut seen, _) = listener.accept().expect("a connection");
            let read = std::io::Read::read(&mut seen, &mut [0; 8]);
            assert_eq!(read.ok(), ended.then_some(0), "{mode:?} on {}", rig.tier);
        }
    });
}

/// Thousands of knocks leave no TIME_WAIT, whatever they met; a graceful one does, which shows that we would see it.
#[test]
fn no_time_wait_is_left() {
    // Addresses of this test's own: another's TIME_WAIT may hold the number of a port given out here.
    const IP: &str = "127.41.0.1";
    on_every_io(|rig| {
        for mode in [Mode::HalfOpen, Mode::Full] {
            let (_listener, at) = open_target_on(IP);
            let lanes = rig.lanes(mode, 64);
            for _ in 0..50 {
                for lane in &lanes {
                    rig.knock(*lane, at);
                }
                assert!(knocked(rig.wait_for(64)).values().all(Result::is_ok));
            }
            assert_eq!(time_waits(at), 0, "{mode:?} on {}", rig.tier);
        }
        let (listener, at) = open_target_on(IP);
        let lane = rig.lanes(Mode::Graceful, 1)[0];
        rig.knock(lane, at);
        knocked(rig.wait_for(1));
        drop(listener.accept().expect("a connection"));
        // The last FIN is on its way through the loopback.
        while time_waits(at) == 0 {
            std::thread::yield_now();
        }
    });
}

/// A cancel that races with the answer gives one end and one only, the answer or ECANCELED, and a lane that works.
#[test]
fn cancels_race_with_answers() {
    on_every_io(|rig| {
        let (_listener, at) = open_target();
        let (_hole, hole_at) = black_hole();
        let lanes = rig.lanes(Mode::HalfOpen, 32);
        for round in 0..100u32 {
            for lane in &lanes {
                let to = if (lane.0 + round).is_multiple_of(4) { hole_at } else { at };
                rig.knock(*lane, to);
                if (lane.0 ^ round) & 1 == 0 {
                    rig.io.cancel(token(KNOCK, lane.0));
                }
            }
            let mut completions = Vec::new();
            if round % 3 == 0 {
                rig.io.wait(Some(Instant::ZERO), &mut completions);
            }
            for lane in &lanes {
                rig.io.cancel(token(KNOCK, lane.0));
                rig.io.cancel(token(KNOCK, lane.0));
            }
            completions.extend(rig.wait_for(32 - completions.len()));
            for (_, result) in knocked(completions) {
                assert!(matches!(result, Ok(()) | Err(Errno(libc::ECANCELED))), "{result:?} on {}", rig.tier);
            }
        }
        for lane in &lanes {
            rig.knock(*lane, at);
        }
        assert!(knocked(rig.wait_for(32)).values().all(Result::is_ok));
    });
}

/// More knocks than the submission queue holds, submitted in one turn and half of them cancelled in it, all end.
#[test]
fn a_flood_in_one_turn_ends() {
    on_every_io(|rig| {
        let (_listener, at) = open_target();
        let (_hole, hole_at) = black_hole();
        let lanes = rig.lanes(Mode::HalfOpen, 2000);
        for lane in &lanes {
            rig.knock(*lane, if lane.0 % 2 == 0 { at } else { hole_at });
        }
        for lane in lanes.iter().filter(|l| l.0 % 2 == 1) {
            rig.io.cancel(token(KNOCK, lane.0));
        }
        let said = knocked(rig.wait_for(2000));
        for lane in &lanes {
            let expected = if lane.0 % 2 == 0 { Ok(()) } else { Err(Errno(libc::ECANCELED)) };
            assert_eq!(said[&lane.0], expected, "on {}", rig.tier);
        }
    });
}

/// IPv6 works as IPv4 does.
#[test]
fn knocks_go_over_ipv6() {
    on_every_io(|rig| {
        let Ok(listener) = TcpListener::bind("[::1]:0") else {
            eprintln!("no IPv6 here");
            return;
        };
        for mode in [Mode::HalfOpen, Mode::Full, Mode::Graceful] {
            let lane = Lane(rig.io.open_lanes(LaneKind::knock(mode, Family::V6), 1).expect("a lane").start);
            for _ in 0..3 {
                rig.knock(lane, listener.local_addr().expect("bound"));
                assert_eq!(knocked(rig.wait_for(1))[&lane.0], Ok(()), "{mode:?} on {}", rig.tier);
            }
        }
    });
}

/// A knock that cannot be made says so as any other does, through `wait`, and disturbs nobody.
#[test]
fn mistakes_end_in_an_errno() {
    on_every_io(|rig| {
        let (_hole, at) = black_hole();
        let lane = rig.lanes(Mode::HalfOpen, 1)[0];
        rig.io.submit(token(KNOCK, 9), Op::Knock { lane: Lane(77), to: at, look: false });
        rig.io.submit(token(KNOCK, 8), Op::Knock { lane, to: SocketAddr::from(([0; 16], 1)), look: false });
        rig.knock(lane, at);
        rig.io.submit(token(KNOCK, 7), Op::Knock { lane, to: at, look: false });
        let said = knocked(rig.wait_for(3));
        assert_eq!(said[&9], Err(Errno(libc::EBADF)));
        assert_eq!(said[&8], Err(Errno(libc::EAFNOSUPPORT)));
        assert_eq!(said[&7], Err(Errno(libc::EBUSY)));
        rig.io.cancel(token(KNOCK, lane.0));
        assert_eq!(knocked(rig.wait_for(1))[&lane.0], Err(Errno(libc::ECANCELED)));
    });
}

/// Near the limit on open files `open_lanes` gives fewer lanes than asked, and an error when there is none; the lanes
/// that were given work.
#[test]
fn lanes_end_where_descriptors_do() {
    on_every_io(|rig| {
        let (_listener, at) = open_target();
        // The limit is the process's, and other tests run beside this one: fill a table of this thread's own.
        let tier = rig.tier;
        std::thread::spawn(move || {
            // SAFETY: unshare(2) takes an integer. From here on this thread has a descriptor table of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let waker = Waker::new().expect("an eventfd");
            let (io, _) = open_tier(tier, &waker).expect("it opened before");
            let mut rig = Rig { io, waker, tier };
            let mut held = Vec::new();
            while let Ok(socket) = Socket::tcp(Family::V4) {
                held.push(socket);
            }
            let error = rig.io.open_lanes(LaneKind::knock(Mode::HalfOpen, Family::V4), 1).expect_err("none is left");
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            held.truncate(held.len() - 5);
            let range = rig.io.open_lanes(LaneKind::knock(Mode::HalfOpen, Family::V4), 100).expect("a few are left");
            assert_eq!(range.len(), 5, "on {tier}");
            let graceful =
                rig.io.open_lanes(LaneKind::knock(Mode::Graceful, Family::V4), 1).expect("it takes none yet").start;
            for lane in range.clone() {
                rig.knock(Lane(lane), at);
            }
            rig.knock(Lane(graceful), at);
            let said = knocked(rig.wait_for(6));
            assert!(range.clone().all(|lane| said[&lane] == Ok(())));
            assert_eq!(said[&graceful], Err(Errno(libc::EMFILE)));
        })
        .join()
        .expect("as above");
    });
}
