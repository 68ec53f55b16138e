//! The simulated kernel keeps its promises and notices who breaks theirs.

use super::*;
use crate::io::{Completion, End, Errno, Event, Family, HEAR_MAX, Io, Lane, LaneKind, Leg, Mode, Op, SAY_MAX, Way};
use crate::time::Instant;
use crate::token::Token;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

const BEGIN: Instant = Instant::from_ns(1_000_000_000);
const NOW: Duration = Duration::ZERO;
const CALL: Token = Token::new(1, 0, 0, 0);
const HANG: Token = Token::new(1, 1, 0, 0);

fn to() -> SocketAddr {
    ([127, 0, 0, 1], 80).into()
}

fn kind(way: Way) -> LaneKind {
    LaneKind { way, family: Family::V4, source: None }
}

fn world(behaviour: Behaviour) -> World {
    let mut world = World::default();
    world.set(to(), behaviour);
    world
}

/// One caller on one lane.
struct Caller {
    io: SimIo,
    lane: Lane,
}

impl Caller {
    fn new(seed: u64, way: Way, behaviour: Behaviour) -> Caller {
        let mut io = SimIo::new(seed, BEGIN, world(behaviour), Faults::default());
        let lane = Lane(io.open_lanes(kind(way), 1).expect("a lane").start);
        Caller { io, lane }
    }

    /// What comes within a minute.
    fn wait(&mut self) -> Option<Event> {
        let (end, mut completions) = (self.io.now() + Duration::from_secs(60), Vec::new());
        while completions.is_empty() && self.io.now() < end {
            self.io.wait(Some(end), &mut completions);
        }
        completions.pop().map(|Completion { event, .. }| event)
    }

    fn hear(&mut self, op: Op) -> Result<Vec<u8>, (Leg, Errno)> {
        self.io.submit(CALL, op);
        match self.wait() {
            Some(Event::Heard(Ok(bytes))) => {
                assert_eq!(self.io.heard(self.lane).len(), bytes);
                assert!(self.io.outgoing(self.lane).is_empty(), "emptied when the operation ends");
                Ok(self.io.heard(self.lane).to_vec())
            }
            Some(Event::Heard(Err(trouble))) => Err((trouble.leg, trouble.errno)),
            other => panic!("{op:?} ended in {other:?}"),
        }
    }

    fn call(&mut self, say: &[u8]) -> Result<Vec<u8>, (Leg, Errno)> {
        self.io.outgoing(self.lane).extend_from_slice(say);
        self.hear(Op::Call { lane: self.lane, to: to() })
    }

    fn talk(&mut self, say: &[u8]) -> Result<Vec<u8>, (Leg, Errno)> {
        self.io.outgoing(self.lane).extend_from_slice(say);
        self.hear(Op::Talk { lane: self.lane })
    }

    fn hang(&mut self) {
        self.io.submit(HANG, Op::Hang { lane: self.lane, end: End::Reset });
        assert!(matches!(self.wait(), Some(Event::Hung)));
        assert_eq!((self.io.lanes_busy(), self.io.in_flight(), self.io.connected_at(self.lane)), (0, 0, None));
    }
}

/// A stream arrives whole and in order whatever the pieces and the losses, then its end; the lane serves again.
#[test]
fn a_stream_keeps_its_order() {
    let answer: Vec<u8> = (0..3 * HEAR_MAX).map(|n| n as u8).collect();
    let script = Script::new().says(NOW, *b"hello").wants(*b"who?").says(Duration::from_millis(3), answer.clone());
    for seed in 0..64 {
        let cut = [Cut::Whole, Cut::Pieces(700, 50), Cut::Any][seed as usize % 3];
        let speech = Speech { cut, loss: 0.05, ..Speech::new(10..20_000, script.clone().closes(NOW)) };
        let mut caller = Caller::new(seed, Way::Stream, Behaviour::Speaks(speech));
        for _ in 0..2 {
            let mut heard = caller.call(b"").expect("a greeting");
            while heard.len() < 5 {
                heard.extend(caller.talk(b"").expect("more of it"));
            }
            assert_eq!(heard, b"hello");
            let facts = caller.io.tcp_facts(caller.lane).expect("connected");
            assert!(caller.io.connected_at(caller.lane).is_some() && (1..20_000).contains(&facts.rtt_us));
            let mut heard = caller.talk(b"who?").expect("an answer");
            loop {
                let more = caller.talk(b"").expect("more, or the end");
                heard.extend(&more);
                if more.is_empty() {
                    break;
                }
            }
            assert_eq!(heard, answer);
            assert_eq!(caller.talk(b"still there?").expect("closed is closed"), b"");
            caller.hang();
        }
        assert!(caller.io.visits().iter().all(|visit| visit.over.is_some() && visit.end == Some(End::Reset)));
    }
}

/// Each host's manner of failing, on each kind of lane.
#[test]
fn failures_have_a_leg() {
    let (refused, reset, unreachable) = (libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH);
    let table = [
        (Way::Stream, Behaviour::Closed(1..9), Leg::Connect, refused),
        (Way::Stream, Behaviour::Resetting(1..9), Leg::Connect, reset),
        (Way::Stream, Behaviour::Unreachable(1..9), Leg::Connect, unreachable),
        (Way::Stream, Behaviour::NoPort, Leg::Connect, libc::EADDRNOTAVAIL),
        (Way::Stream, Behaviour::Speaks(Speech::new(1..9, Script::new().wants(*b"x"))), Leg::Hear, reset),
        (Way::Datagram, Behaviour::Closed(1..9), Leg::Hear, refused),
        (Way::Datagram, Behaviour::Unreachable(1..9), Leg::Hear, unreachable),
        (Way::Datagram, Behaviour::NoPort, Leg::Connect, libc::EAGAIN),
        (Way::Ping, Behaviour::Unreachable(1..9), Leg::Hear, unreachable),
    ];
    for (way, behaviour, leg, errno) in table {
        let mut caller = Caller::new(1, way, behaviour.clone());
        assert_eq!(caller.call(&[8, 0]), Err((leg, Errno(errno))), "{way:?} {behaviour:?}");
        caller.hang();
    }
}

/// Datagrams are lost and doubled; what arrives is whole. Echoes come back as replies. Silence lasts until cancelled.
#[test]
fn datagrams_and_echoes() {
    let host = Script::new().expects(1).says(NOW, *b"pong").expects(1).says(NOW, *b"pong");
    let speech = Speech { loss: 0.3, twice: 0.3, ..Speech::new(10..2000, host) };
    let (mut lost, mut doubled) = (0, 0);
    for seed in 0..64 {
        let mut caller = Caller::new(seed, Way::Datagram, Behaviour::Speaks(speech.clone()));
        caller.io.outgoing(caller.lane).push(b'?');
        caller.io.submit(CALL, Op::Call { lane: caller.lane, to: to() });
        match caller.wait() {
            Some(Event::Heard(Ok(4))) => {
                assert_eq!(caller.io.heard(caller.lane), b"pong");
                caller.io.submit(CALL, Op::Talk { lane: caller.lane });
                doubled += u32::from(caller.wait().is_some());
            }
            None => {
                lost += 1;
                caller.io.cancel(CALL);
                let Some(Event::Heard(Err(trouble))) = caller.wait() else { panic!("cancelled") };
                assert_eq!((trouble.leg, trouble.errno), (Leg::Hear, Errno(libc::ECANCELED)));
                caller.hang();
            }
            other => panic!("{other:?}"),
        }
        let mut caller = Caller::new(seed, Way::Ping, Behaviour::Open(1..9));
        assert_eq!(caller.call(&[8, 0, 7]).expect("a reply"), [0, 0, 7]);
    }
    assert!(lost > 5 && doubled > 5, "{lost} lost, {doubled} doubled");
}

/// Whoever breaks the rules of lanes is told so at once.
#[test]
fn misuse_panics() {
    let speech = || Behaviour::Speaks(Speech::new(10..20, Script::new().says(NOW, *b"hi")));
    let lane = Lane(0);
    let (call, talk) = (Op::Call { lane, to: to() }, Op::Talk { lane });
    let (hang, six) = (Op::Hang { lane, end: End::Fin }, SocketAddr::from(([0; 8], 80)));
    let knock = Op::Knock { lane, to: to(), look: false };
    type Crime = (&'static str, fn(&mut SimIo, [Op; 4]));
    let crimes: [Crime; 10] = [
        ("talk to nobody", |io, [_, talk, ..]| io.submit(HANG, talk)),
        ("hang up on nobody", |io, [_, _, hang, _]| io.submit(HANG, hang)),
        ("knock on a talking lane", |io, [.., knock]| io.submit(HANG, knock)),
        ("two operations on one lane", |io, [call, talk, ..]| {
            io.submit(CALL, call);
            io.submit(HANG, talk);
        }),
        ("write into what is lent", |io, [call, ..]| {
            io.submit(CALL, call);
            io.outgoing(Lane(0)).push(1);
        }),
        ("read what is lent", |io, [call, ..]| {
            io.submit(CALL, call);
            let _ = io.heard(Lane(0));
        }),
        ("call in a call", |io, [call, ..]| {
            io.submit(CALL, call);
            io.wait(Some(BEGIN + Duration::from_secs(1)), &mut Vec::new());
            io.wait(Some(BEGIN + Duration::from_secs(1)), &mut Vec::new());
            io.submit(HANG, call);
        }),
        ("hang up twice", |io, [call, _, hang, _]| {
            io.submit(CALL, call);
            io.wait(Some(BEGIN + Duration::from_secs(1)), &mut Vec::new());
            io.wait(Some(BEGIN + Duration::from_secs(1)), &mut Vec::new());
            io.submit(HANG, hang);
            io.submit(CALL, hang);
        }),
        ("say too much", |io, [call, ..]| {
            io.outgoing(Lane(0)).resize(SAY_MAX + 1, 0);
            io.submit(CALL, call);
        }),
        ("use a token twice", |io, [call, ..]| {
            io.submit(CALL, call);
            io.submit(CALL, Op::Call { lane: Lane(1), to: ([127, 0, 0, 1], 80).into() });
        }),
    ];
    let panics = |crime: &dyn Fn(&mut SimIo)| {
        let mut io = SimIo::new(3, BEGIN, world(speech()), Faults::default());
        assert_eq!(io.open_lanes(kind(Way::Stream), 2).expect("lanes"), 0..2);
        catch_unwind(AssertUnwindSafe(|| crime(&mut io))).is_err()
    };
    for (name, crime) in crimes {
        assert!(panics(&|io| crime(io, [call, talk, hang, knock])), "{name}");
    }
    assert!(panics(&|io| io.submit(CALL, Op::Call { lane, to: six })), "the other family");
    assert!(!panics(&|io| io.submit(CALL, call)));
}

/// Lanes are refused as a kernel refuses them.
#[test]
fn lanes_are_refused() {
    let source = [10, 9, 8, 7].into();
    let faults =
        Faults { lanes_max: Some(2), pings_forbidden: true, sources_unknown: vec![source], ..Faults::default() };
    let mut io = SimIo::new(1, BEGIN, World::default(), faults);
    let mut open = |way, source| {
        let kind = LaneKind { way, family: Family::V4, source };
        io.open_lanes(kind, 3).map_err(|error| error.raw_os_error().expect("an errno"))
    };
    assert_eq!(open(Way::Ping, None), Err(libc::EACCES));
    assert_eq!(open(Way::Stream, Some(source)), Err(libc::EADDRNOTAVAIL));
    assert_eq!(open(Way::Knock(Mode::Full), None), Ok(0..2));
    assert_eq!(open(Way::Datagram, None), Err(libc::EMFILE));
}
