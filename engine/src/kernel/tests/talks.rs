use super::*;
use crate::io::{End, HEAR_MAX, Leg, SAY_MAX, Trouble};
use crate::kernel::socket::set_option;
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

impl Rig {
    pub(super) fn lines(&mut self, way: Way, count: u32) -> Vec<Lane> {
        self.lines_of(LaneKind { way, family: Family::V4, source: None }, count)
    }

    pub(super) fn lines_of(&mut self, kind: LaneKind, count: u32) -> Vec<Lane> {
        self.io.open_lanes(kind, count).expect("some lanes").map(Lane).collect()
    }

    pub(super) fn call(&mut self, lane: Lane, to: SocketAddr, say: &[u8]) {
        self.io.outgoing(lane).extend_from_slice(say);
        self.io.submit(token(TALK, lane.0), Op::Call { lane, to });
    }

    pub(super) fn talk(&mut self, lane: Lane, say: &[u8]) {
        self.io.outgoing(lane).extend_from_slice(say);
        self.io.submit(token(TALK, lane.0), Op::Talk { lane });
    }

    /// The end of the only operation in flight.
    pub(super) fn outcome(&mut self) -> Result<usize, Trouble> {
        match self.wait_for(1).pop().expect("one").event {
            Event::Heard(result) => result,
            event => panic!("{event:?} on {}", self.tier),
        }
    }

    pub(super) fn hears(&mut self, lane: Lane) -> String {
        let result = self.outcome();
        let count = result.unwrap_or_else(|trouble| panic!("{trouble:?} on {}", self.tier));
        assert_eq!(self.io.heard(lane).len(), count);
        assert!(self.io.outgoing(lane).is_empty());
        String::from_utf8(self.io.heard(lane).to_vec()).expect("text")
    }

    pub(super) fn hang(&mut self, lane: Lane, end: End) {
        self.io.submit(token(TALK, lane.0), Op::Hang { lane, end });
        let end = self.wait_for(1).pop().expect("one");
        assert!(matches!(end.event, Event::Hung), "{end:?} on {}", self.tier);
    }
}

/// Serves `count` connections one after the other.
pub(super) fn serve(count: usize, one: impl FnMut(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    serve_on(ELSEWHERE, count, one)
}

pub(super) fn serve_on(
    ip: &str,
    count: usize,
    mut one: impl FnMut(TcpStream) + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let (listener, at) = open_target_on(ip);
    (at, std::thread::spawn(move || (0..count).for_each(|_| one(listener.accept().expect("a caller").0))))
}

pub(super) fn heard_by(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 256];
    let count = stream.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// A question, its answer, a second question, its answer, many times over on one socket.
#[test]
fn calls_are_answered() {
    on_every_io(|rig| {
        // An address of this test's own, for the sake of the TIME_WAITs that others leave.
        let (at, server) = serve_on("127.41.0.2", 100, |mut stream| {
            for _ in 0..2 {
                let said = heard_by(&mut stream);
                stream.write_all(format!("you said {said}").as_bytes()).expect("it listens");
            }
            assert!(stream.read(&mut [0]).is_err(), "a reset");
        });
        let lane = rig.lines(Way::Stream, 1)[0];
        for round in 0..100 {
            let before = rig.io.now();
            rig.call(lane, at, format!("{round}").as_bytes());
            assert_eq!(rig.hears(lane), format!("you said {round}"), "on {}", rig.tier);
            assert!(rig.io.connected_at(lane).is_some_and(|at| at > before && at <= rig.io.now()));
            assert!(rig.io.tcp_facts(lane).expect("connected").rtt_us > 0);
            rig.talk(lane, format!("{round} again").as_bytes());
            assert_eq!(rig.hears(lane), format!("you said {round} again"), "on {}", rig.tier);
            rig.hang(lane, End::Reset);
            assert_eq!((rig.io.heard(lane), rig.io.connected_at(lane)), (&b""[..], None));
        }
        server.join().expect("as above");
        assert_eq!(time_waits(at), 0);
    });
}

/// Somebody to call, and what is known of him.
struct World {
    name: &'static str,
    at: SocketAddr,
    /// Lets a server that waits go on.
    go: Option<Sender<()>>,
    /// What is said, and what must come of it; `None` beside it: only after `go`.
    script: Vec<(&'static str, bool, Said)>,
}

enum Said {
    /// These bytes, and no others.
    Bytes(&'static str),
    /// A failure of this leg with one of these numbers.
    Fails(Leg, &'static [i32]),
    /// A clean end, or a failure with one of these numbers: what he had not read makes his end a reset.
    Ends(&'static [i32]),
}

/// Every kind of peer, each on a listener of its own that serves as long as the test runs.
fn worlds() -> (Vec<World>, Vec<Box<dyn std::any::Any>>) {
    const GONE: &[i32] = &[libc::ECONNRESET, libc::EPIPE];
    // Kernels 6.14 to 6.15.7 say that a refused connect was reset.
    const REFUSED: &[i32] = &[libc::ECONNREFUSED, libc::ECONNRESET];
    const CANCELED: &[i32] = &[libc::ECANCELED];
    type Serve = fn(&mut TcpStream, &Receiver<()>);
    let serving = |name, script, serve: Serve| {
        let (go, may_go) = channel();
        let (listener, at) = open_target();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                serve(&mut stream, &may_go);
            }
        });
        World { name, at, go: Some(go), script }
    };
    fn say(stream: &mut TcpStream, bytes: &[u8]) {
        stream.write_all(bytes).expect("it listens");
    }
    let ((closed, closed_at), (hole, hole_at)) = (closed_target(), black_hole());
    let worlds = vec![
        serving("answers", vec![("one?", false, Said::Bytes("one!")), ("two?", false, Said::Bytes("two!"))], |s, _| {
            heard_by(s);
            say(s, b"one!");
            heard_by(s);
            say(s, b"two!");
            heard_by(s);
        }),
        serving("answers late", vec![("late?", true, Said::Bytes("late!"))], |s, go| {
            heard_by(s);
            go.recv().expect("the test says when");
            say(s, b"late!");
            heard_by(s);
        }),
        serving(
            "in pieces",
            vec![("all?", false, Said::Bytes("half ")), ("", true, Said::Bytes("and half"))],
            |s, go| {
                heard_by(s);
                say(s, b"half ");
                go.recv().expect("the test says when");
                say(s, b"and half");
                heard_by(s);
            },
        ),
        serving("closes without a word", vec![("", false, Said::Bytes(""))], |_, _| {}),
        serving("closes without listening", vec![("hm?", false, Said::Ends(GONE))], |_, _| {}),
        serving(
            "resets",
            vec![("all?", false, Said::Bytes("half ")), ("", true, Said::Fails(Leg::Hear, GONE))],
            |s, go| {
                heard_by(s);
                say(s, b"half ");
                go.recv().expect("the test says when");
                set_option(s.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, libc::linger { l_onoff: 1, l_linger: 0 })
                    .expect("a live socket");
            },
        ),
        serving(
            "answers and closes",
            vec![("bye?", false, Said::Bytes("bye!")), ("", false, Said::Bytes(""))],
            |s, _| {
                heard_by(s);
                say(s, b"bye!");
            },
        ),
        serving("speaks first", vec![("", false, Said::Bytes("who?")), ("me", false, Said::Bytes("ok"))], |s, _| {
            say(s, b"who?");
            heard_by(s);
            say(s, b"ok");
            heard_by(s);
        }),
        serving("has more to say", vec![("?", false, Said::Bytes("!"))], |s, _| {
            heard_by(s);
            say(s, b"!");
            // Unread when the call is hung up, or on its way.
            let _ = s.write_all(&[b'x'; 100_000]);
        }),
        World {
            name: "refuses",
            at: closed_at,
            go: None,
            script: vec![("?", false, Said::Fails(Leg::Connect, REFUSED))],
        },
        World {
            name: "black hole",
            at: hole_at,
            go: None,
            script: vec![("?", true, Said::Fails(Leg::Connect, CANCELED))],
        },
    ];
    (worlds, vec![Box::new(closed), Box::new(hole)])
}

/// Every kind of peer gets the answers that its script says, whatever peer the lane has called before: in every order of
/// two. What has to wait waits, and `go` or a cancel ends it. Both ways to hang up.
#[test]
fn every_peer_after_every_other() {
    on_every_io(|rig| {
        let (worlds, _held) = worlds();
        let lane = rig.lines(Way::Stream, 1)[0];
        let pairs = worlds.iter().flat_map(|first| worlds.iter().flat_map(move |second| [first, second]));
        for (round, world) in pairs.enumerate() {
            for (step, (say, waits, said)) in world.script.iter().enumerate() {
                match step {
                    0 => rig.call(lane, world.at, say.as_bytes()),
                    _ => rig.talk(lane, say.as_bytes()),
                }
                if *waits {
                    rig.is_quiet();
                    match &world.go {
                        Some(go) => go.send(()).expect("it serves"),
                        None => rig.io.cancel(token(TALK, lane.0)),
                    }
                }
                let result = rig.outcome();
                let heard = String::from_utf8_lossy(rig.io.heard(lane)).into_owned();
                let is_right = match (said, result) {
                    // One byte of many.
                    (Said::Bytes("!"), Ok(count)) => count > 0 && heard.starts_with('!'),
                    (Said::Bytes(bytes), Ok(count)) => heard == *bytes && count == bytes.len(),
                    (Said::Fails(leg, errnos), Err(trouble)) => {
                        trouble.leg == *leg && errnos.contains(&trouble.errno.0)
                    }
                    (Said::Ends(_), Ok(count)) => count == 0,
                    (Said::Ends(errnos), Err(trouble)) => errnos.contains(&trouble.errno.0),
                    (Said::Bytes(_) | Said::Fails(..), _) => false,
                };
                assert!(is_right, "{}, step {step}: {result:?} \"{heard}\" on {}", world.name, rig.tier);
            }
            rig.hang(lane, if round % 5 == 4 { End::Fin } else { End::Reset });
        }
        rig.is_quiet();
    });
}

/// Wherever a call is when it is cancelled, it ends there, and the lane calls again: before the connect is answered, while
/// nobody reads what it says, and while nobody answers.
#[test]
fn calls_are_cancelled_at_each_leg() {
    on_every_io(|rig| {
        let (_hole, hole_at) = black_hole();
        let lane = rig.lines(Way::Stream, 1)[0];
        let (go, may_go) = channel::<()>();
        let (at, server) = serve(3, move |mut stream| {
            may_go.recv().expect("the test says when");
            let (mut bytes, mut all) = ([0; 1 << 16], Vec::new());
            while !all.ends_with(b".") {
                let count = stream.read(&mut bytes).expect("it talks");
                assert!(count > 0, "an end before the full stop");
                all.extend_from_slice(&bytes[..count]);
            }
            stream.write_all(b"heard all").expect("it listens");
            heard_by(&mut stream);
        });
        for _ in 0..3 {
            rig.call(lane, hole_at, b"hello");
            rig.io.cancel(token(TALK, lane.0));
            let cancelled = |leg| Err(Trouble { leg, errno: Errno(libc::ECANCELED) });
            assert_eq!(rig.outcome(), cancelled(Leg::Connect), "on {}", rig.tier);
            rig.hang(lane, End::Reset);
            rig.call(lane, at, b"");
            while rig.io.connected_at(lane).is_none() {
                rig.is_quiet();
            }
            let mut talks = 0;
            loop {
                rig.is_quiet();
                rig.io.cancel(token(TALK, lane.0));
                let trouble = rig.outcome().expect_err("nobody answers");
                if trouble.leg == Leg::Say {
                    break;
                }
                assert_eq!(Err(trouble), cancelled(Leg::Hear), "on {}", rig.tier);
                talks += 1;
                assert!(talks < 10_000, "everything is taken, and nobody reads");
                rig.talk(lane, &[b'-'; SAY_MAX]);
            }
            // The buffers are full. What is said now goes out piece by piece, once he reads.
            let mut rest = vec![b'-'; SAY_MAX];
            *rest.last_mut().expect("not empty") = b'.';
            rig.talk(lane, &rest);
            rig.is_quiet();
            go.send(()).expect("it serves");
            assert_eq!(rig.hears(lane), "heard all", "on {}", rig.tier);
            rig.hang(lane, End::Reset);
        }
        server.join().expect("as above");
    });
}

/// Calls, all cancelled at a random moment, against a server that answers: each has one end, the answer to its own
/// question or ECANCELED, and the next call on the lane hears nothing of it.
#[test]
fn late_answers_reach_nobody() {
    on_every_io(|rig| {
        let at = echo();
        let lanes = rig.lines(Way::Stream, 16);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut answers = 0;
        for round in 0..20 {
            for lane in &lanes {
                rig.call(*lane, at, format!("{round}/{}", lane.0).as_bytes());
            }
            let (mut said, mut turns) = (Vec::new(), rng.u32(0..6));
            while turns > 0 && said.len() < lanes.len() {
                rig.io.wait(Some(rig.io.now()), &mut said);
                turns -= 1;
            }
            lanes.iter().for_each(|lane| rig.io.cancel(token(TALK, lane.0)));
            said.extend(rig.wait_for(lanes.len() - said.len()));
            for completion in said {
                let lane = Lane(completion.token.index());
                match completion.event {
                    Event::Heard(Ok(_)) => {
                        answers += 1;
                        assert_eq!(rig.io.heard(lane), format!("{round}/{}", lane.0).as_bytes(), "on {}", rig.tier);
                    }
                    Event::Heard(Err(trouble)) => assert_eq!(trouble.errno, Errno(libc::ECANCELED), "on {}", rig.tier),
                    event => panic!("{event:?}"),
                }
                rig.io.submit(token(TALK, lane.0), Op::Hang { lane, end: End::Reset });
            }
            assert!(rig.wait_for(lanes.len()).iter().all(|c| matches!(c.event, Event::Hung)));
        }
        eprintln!("{answers} were faster than their cancel");
    });
}

/// Says back what it hears, on any number of connections, as long as the process runs.
pub(super) fn echo() -> SocketAddr {
    let (listener, at) = open_target();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

/// A FIN is a clean end for the peer and leaves a TIME_WAIT here; a reset is none and leaves none.
#[test]
fn calls_end_as_asked() {
    const IP: &str = "127.41.0.3";
    on_every_io(|rig| {
        for (end, is_clean) in [(End::Reset, false), (End::Fin, true)] {
            let (at, server) = serve_on(IP, 3, move |mut stream| {
                heard_by(&mut stream);
                // The last of it stays unread.
                stream.write_all(&[b'x'; HEAR_MAX + 5]).expect("it listens");
                assert_eq!(stream.read(&mut [0; 8]).ok(), is_clean.then_some(0));
            });
            let lane = rig.lines(Way::Stream, 1)[0];
            for _ in 0..3 {
                rig.call(lane, at, b"hello");
                rig.hears(lane);
                rig.hang(lane, end);
            }
            server.join().expect("as above");
            while is_clean && time_waits(at) < 3 {
                std::thread::yield_now();
            }
            assert_eq!(time_waits(at) > 0, is_clean, "on {}", rig.tier);
        }
    });
}

/// A socket that the kernel gives the very port it calls talks to itself, and that is nobody who answers. In a network of
/// our own there are few ports to choose from, and it happens soon; else more calls are made than there are ports.
#[test]
fn nobody_talks_to_himself() {
    on_every_io(|rig| {
        let tier = rig.tier;
        std::thread::spawn(move || {
            let few = super::ways::own_network().is_ok()
                && std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40031").is_ok();
            let waker = Waker::new().expect("an eventfd");
            let (io, _) = open_tier(tier, &waker).expect("it opened before");
            let mut rig = Rig { io, waker, tier };
            // connect(2) draws even ports, as long as there are any (net/ipv4/inet_hashtables.c).
            let free = |port: &u16| few || TcpListener::bind((AT_HOME, *port)).is_ok();
            let port = (40_000..50_000).step_by(2).find(free).expect("a free port");
            let at = SocketAddr::new(AT_HOME.parse().expect("an address"), port);
            let (count, rounds) = if few { (8, 100) } else { (250, 160) };
            let lanes = rig.lines(Way::Stream, count);
            for _ in 0..rounds {
                lanes.iter().for_each(|lane| rig.call(*lane, at, b"anybody?"));
                for completion in rig.wait_for(lanes.len()) {
                    let Event::Heard(Err(trouble)) = completion.event else {
                        panic!("somebody at {at}: {completion:?} on {tier}")
                    };
                    assert_eq!(trouble.leg, Leg::Connect);
                    let lane = Lane(completion.token.index());
                    rig.io.submit(token(TALK, lane.0), Op::Hang { lane, end: End::Reset });
                }
                rig.wait_for(lanes.len());
            }
        })
        .join()
        .expect("as above");
    });
}

/// What makes no sense says so through `wait`, and disturbs nobody.
#[test]
fn mistaken_calls_end_in_an_errno() {
    on_every_io(|rig| {
        let (_hole, at) = black_hole();
        let (lane, knocker) = (rig.lines(Way::Stream, 1)[0], rig.lanes(Mode::Full, 1)[0]);
        let fails = |rig: &mut Rig, op, leg, errno| {
            rig.io.submit(token(READ, 9), op);
            assert_eq!(rig.outcome(), Err(Trouble { leg, errno: Errno(errno) }), "{op:?} on {}", rig.tier);
        };
        fails(rig, Op::Call { lane: Lane(77), to: at }, Leg::Connect, libc::EBADF);
        fails(rig, Op::Talk { lane: Lane(77) }, Leg::Say, libc::EBADF);
        fails(rig, Op::Call { lane: knocker, to: at }, Leg::Connect, libc::EOPNOTSUPP);
        fails(rig, Op::Talk { lane: knocker }, Leg::Say, libc::EOPNOTSUPP);
        fails(rig, Op::Talk { lane }, Leg::Say, libc::ENOTCONN);
        fails(rig, Op::Call { lane, to: SocketAddr::from(([0; 16], 1)) }, Leg::Connect, libc::EAFNOSUPPORT);
        rig.io.outgoing(lane).resize(SAY_MAX + 1, 0);
        fails(rig, Op::Call { lane, to: at }, Leg::Connect, libc::EMSGSIZE);
        assert!(rig.io.outgoing(lane).is_empty());
        // Nothing was begun, so there is nothing to end; and twice is once.
        rig.hang(lane, End::Reset);
        rig.hang(lane, End::Fin);
        rig.call(lane, at, b"");
        fails(rig, Op::Call { lane, to: at }, Leg::Connect, libc::EBUSY);
        fails(rig, Op::Talk { lane }, Leg::Say, libc::EBUSY);
        rig.io.cancel(token(TALK, lane.0));
        assert!(rig.outcome().is_err());
        fails(rig, Op::Call { lane, to: at }, Leg::Connect, libc::EISCONN);
        fails(rig, Op::Talk { lane }, Leg::Say, libc::ENOTCONN);
        rig.hang(lane, End::Reset);
        rig.io.submit(token(KNOCK, 3), Op::Knock { lane, to: at, look: false });
        assert_eq!(knocked(rig.wait_for(1))[&3], Err(Errno(libc::EOPNOTSUPP)));
        rig.is_quiet();
    });
}
