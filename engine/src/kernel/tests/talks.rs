use super::*;
use crate::io::{End, Leg, Trouble, Way};
use std::io::{Read, Write};
use std::thread::JoinHandle;

const TALK: u8 = 5;

impl Rig {
    fn lines(&mut self, way: Way, count: u32) -> Vec<Lane> {
        let kind = LaneKind { way, family: Family::V4, source: None };
        self.io.open_lanes(kind, count).expect("some lanes").map(Lane).collect()
    }

    fn call(&mut self, lane: Lane, to: SocketAddr, say: &[u8]) {
        self.io.outgoing(lane).extend_from_slice(say);
        self.io.submit(token(TALK, lane.0), Op::Call { lane, to });
    }

    fn talk(&mut self, lane: Lane, say: &[u8]) {
        self.io.outgoing(lane).extend_from_slice(say);
        self.io.submit(token(TALK, lane.0), Op::Talk { lane });
    }

    /// The end of the only operation in flight.
    fn outcome(&mut self) -> Result<usize, Trouble> {
        match self.wait_for(1).pop().expect("one").event {
            Event::Heard(result) => result,
            event => panic!("{event:?} on {}", self.tier),
        }
    }

    fn hears(&mut self, lane: Lane) -> String {
        let result = self.outcome();
        let count = result.unwrap_or_else(|trouble| panic!("{trouble:?} on {}", self.tier));
        assert_eq!(self.io.heard(lane).len(), count);
        assert!(self.io.outgoing(lane).is_empty());
        String::from_utf8(self.io.heard(lane).to_vec()).expect("text")
    }

    fn hang(&mut self, lane: Lane, end: End) {
        self.io.submit(token(TALK, lane.0), Op::Hang { lane, end });
        let end = self.wait_for(1).pop().expect("one");
        assert!(matches!(end.event, Event::Hung), "{end:?} on {}", self.tier);
    }
}

/// Serves `count` connections one after the other.
fn serve(count: usize, one: impl FnMut(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    serve_on(ELSEWHERE, count, one)
}

fn serve_on(ip: &str, count: usize, mut one: impl FnMut(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let (listener, at) = open_target_on(ip);
    (at, std::thread::spawn(move || (0..count).for_each(|_| one(listener.accept().expect("a caller").0))))
}

fn heard_by(stream: &mut TcpStream) -> String {
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

/// Nobody there, nobody who listens: the call says so, and the lane goes on.
#[test]
fn calls_that_fail() {
    on_every_io(|rig| {
        let ((_closed, closed_at), (_hole, hole_at)) = (closed_target(), black_hole());
        let lane = rig.lines(Way::Stream, 1)[0];
        for _ in 0..20 {
            rig.call(lane, closed_at, b"hello");
            let trouble = rig.outcome().expect_err("nobody listens");
            assert!(trouble.leg == Leg::Connect && matches!(trouble.errno.0, libc::ECONNREFUSED | libc::ECONNRESET));
            rig.hang(lane, End::Reset);
            rig.call(lane, hole_at, b"hello");
            rig.is_quiet();
            rig.io.cancel(token(TALK, lane.0));
            let cancelled = Trouble { leg: Leg::Connect, errno: Errno(libc::ECANCELED) };
            assert_eq!(rig.outcome(), Err(cancelled), "on {}", rig.tier);
            rig.hang(lane, End::Reset);
        }
    });
}
