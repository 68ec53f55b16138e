//! What the prober promises of probes that talk, of phases, and of orders while it runs, in simulated worlds.

use super::*;
use crate::check::{Check, Expect, HttpCheck, HttpSettings, Redirects};
use crate::health::Health;
use crate::io::{End, Mode};
use crate::outcome::Code;
use crate::probe::pattern::Pattern;
use crate::probe::tests::{Bench, Setup};
use crate::sim::{Behaviour, Cut, Faults, Host, Said, Script, Speaker, Speech, Word};
use crate::target::{Policy, Proxy, Target, Timeouts};
use fastrand::Rng;
use std::net::SocketAddr;

const MS: Duration = Duration::from_millis(1);

fn place(number: u64) -> SocketAddr {
    ([127, 0, 0, 1], 2000 + number as u16).into()
}

fn target(key: u64, check: Check, policy: Policy) -> Target {
    Target { address: place(key), check, policy: policy.into(), initial: Health::Up, count: Some(5), key, group: 0 }
}

/// Says "hello" and expects "world".
fn hello() -> Check {
    let pattern = Pattern::bytes(b"world").expect("a short text");
    Check::Expect(Arc::new(
        Expect::new(b"hello".to_vec(), Some(pattern)).expect("short").leaving_with(vec![]).expect("short"),
    ))
}

/// Hears "hello" and says "world", so long later.
fn world(after: Duration) -> Script {
    Script::new().wants(*b"hello").says(after, *b"world")
}

fn speech(host: Script) -> Behaviour {
    Behaviour::Speaks(Speech { cut: Cut::Any, ..Speech::new(100..2000, host) })
}

/// A conversation has its outcome, whatever pieces it arrives in, and its phases are in order: connection, first byte,
/// verdict. Nothing stays in flight.
#[test]
fn a_conversation_has_its_outcome() {
    for seed in 0..64 {
        let mut bench = Bench::new(seed, Setup::default());
        for key in 0..20 {
            bench.sim.io.world.set(place(key), speech(world(3 * MS)));
            bench.add(target(key, hello(), Policy { interval: 200 * MS, ..Policy::DEFAULT }));
        }
        bench.run_for(3000 * MS);
        assert_eq!(bench.samples.len(), 100, "seed {seed}");
        for sample in &bench.samples {
            assert_eq!((sample.code, sample.errno), (Code::L7Ok, 0), "seed {seed}");
            let phases = sample.phases;
            assert!((100..2000).contains(&phases.connect_us), "{phases:?}");
            assert!(phases.first_byte_us >= phases.connect_us + 3000, "{phases:?}");
            assert!(sample.rtt_ns / 1000 >= u64::from(phases.first_byte_us) && phases.tls_us == 0, "{sample:?}");
        }
        let numbers = bench.sim.resident.numbers();
        assert_eq!((numbers.connect.len(), numbers.first_byte.len(), numbers.tls.len()), (100, 100, 0));
        assert_eq!(numbers.kernel_rtt.len(), 100 / 16 + 1, "one call in sixteen asks the kernel");
        assert!(numbers.kernel_rtt.max() <= 2016, "to two digits");
        let counters = bench.stop();
        assert_eq!((counters.in_flight, bench.sim.io.lanes_busy(), counters.completions_stale), (0, 0, 0));
    }
}

/// The code of a timeout says which phase lapsed, and it lapses when that phase's patience is over: the connection's
/// from the start, the answer's from the connection.
#[test]
fn a_timeout_says_which_phase() {
    let phases = Timeouts { connect: Some(50 * MS), tls: None, answer: Some(70 * MS) };
    let mute = Behaviour::Speaks(Speech::new(20_000..20_001, Script::new()));
    let slow = Behaviour::Speaks(Speech::new(20_000..20_001, world(500 * MS)));
    let table = [
        (Behaviour::BlackHole, phases, Code::L4Timeout, 50 * MS),
        (Behaviour::BlackHole, Timeouts { connect: None, ..phases }, Code::L4Timeout, 300 * MS),
        (mute.clone(), phases, Code::L7Timeout, 90 * MS),
        (slow.clone(), phases, Code::L7Timeout, 90 * MS),
        (slow, Timeouts::default(), Code::L7Timeout, 300 * MS),
        (mute.clone(), Timeouts { answer: None, ..phases }, Code::L7Timeout, 300 * MS),
        (mute, Timeouts { connect: Some(1000 * MS), answer: Some(1000 * MS), tls: None }, Code::L7Timeout, 300 * MS),
    ];
    for (number, (behaviour, timeouts, code, after)) in (0..).zip(table) {
        let mut bench = Bench::new(number, Setup::default());
        bench.sim.io.world.set(place(1), behaviour);
        bench.add(target(1, hello(), Policy { timeout: 300 * MS, timeouts, ..Policy::DEFAULT }));
        bench.run_for(8000 * MS);
        assert_eq!(bench.samples.len(), 5);
        for sample in &bench.samples {
            let late = Duration::from_nanos(sample.rtt_ns).saturating_sub(after);
            assert!(sample.code == code && sample.rtt_ns >= after.as_nanos() as u64, "{number}: {sample:?}");
            assert!(late <= 2 * MS, "{number}: {late:?} late");
        }
        let counters = bench.stop();
        assert_eq!((counters.in_flight, bench.sim.io.lanes_busy()), (0, 0));
    }
}

/// A PROXY header goes before the first word, of both versions; a port of the policy's is called in place of the
/// target's own.
#[test]
fn the_proxy_header_comes_first() {
    let v2: &[u8] = &[13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 10, 0x20, 0, 0, 0];
    for (proxy, header) in [(None, &b""[..]), (Some(Proxy::V1), b"PROXY UNKNOWN\r\n"), (Some(Proxy::V2), v2)] {
        let mut bench = Bench::new(1, Setup::default());
        let host = Script::new().wants([header, b"hello"].concat()).says(MS, *b"world");
        bench.sim.io.world.set(place(7), Behaviour::Speaks(Speech::new(1..2, host)));
        bench.add(target(1, hello(), Policy { proxy, port: Some(place(7).port()), ..Policy::DEFAULT }));
        bench.run_for(6000 * MS);
        assert_eq!(bench.counters().outcome(Code::L7Ok), 5, "{proxy:?}");
    }
}

/// In the middle of a conversation: a removed target says nothing any more, one with a new check is asked that, and
/// both leave no lane behind.
#[test]
fn conversations_are_broken_off() {
    for seed in 0..64 {
        let mut rng = Rng::with_seed(seed);
        let mut bench = Bench::new(seed, Setup::default());
        let slow = Speech { cut: Cut::Pieces(1, 20_000), ..Speech::new(50_000..100_000, world(50 * MS)) };
        let names: Vec<_> = (0..40)
            .map(|key| {
                bench.sim.io.world.set(place(key), Behaviour::Speaks(slow.clone()));
                bench.add(Target {
                    count: None,
                    ..target(key, hello(), Policy { interval: 500 * MS, ..Policy::DEFAULT })
                })
            })
            .collect();
        bench.run_for(rng.u32(500..1500) * MS);
        for (number, name) in names.iter().enumerate() {
            match number % 3 {
                0 => bench.send(Command::Remove(*name)),
                1 => bench.send(Command::Recheck(*name, Check::Tcp(Mode::HalfOpen))),
                _ => bench.send(Command::Recheck(*name, Check::None)),
            }
        }
        bench.run_for(MS);
        bench.samples.clear();
        bench.run_for(2000 * MS);
        assert!(bench.samples.iter().all(|sample| sample.key % 3 == 1 && sample.code == Code::L4Ok), "seed {seed}");
        assert!(bench.samples.len() >= 3 * 13, "seed {seed}: {}", bench.samples.len());
        assert!(bench.counters().abandoned > 0, "seed {seed}");
        let counters = bench.stop();
        assert_eq!(counters.started, counters.finished() + counters.abandoned);
        assert_eq!((counters.in_flight, bench.sim.io.lanes_busy(), counters.targets), (0, 0, 26));
    }
}

/// A target without a check is kept, and nothing is sent; given one it is probed.
#[test]
fn without_a_check_nothing_is_sent() {
    let mut bench = Bench::new(1, Setup::default());
    bench.sim.io.world.set(place(1), Behaviour::Open(1..2));
    let name = bench.add(Target { count: None, ..target(1, Check::None, Policy::DEFAULT) });
    bench.send(Command::ProbeNow(name));
    bench.run_for(5000 * MS);
    assert_eq!((bench.counters().targets, bench.counters().started, bench.sim.io.visits().len()), (1, 0, 0));
    bench.send(Command::Recheck(name, Check::Tcp(Mode::Full)));
    bench.run_for(5000 * MS);
    assert_eq!(bench.counters().outcome(Code::L4Ok), 5);
    bench.send(Command::Recheck(name, Check::None));
    bench.run_for(5000 * MS);
    assert_eq!((bench.counters().started, bench.counters().targets), (5, 1));
}

/// A probe at once is made at once and besides: the schedule's slots stay where they were and none counts as missed.
#[test]
fn a_probe_at_once_keeps_the_schedule() {
    let mut bench = Bench::new(1, Setup::default());
    bench.sim.io.world.set(place(1), Behaviour::Open(1..2));
    let name = bench.add(Target { count: None, ..target(1, Check::Tcp(Mode::HalfOpen), Policy::DEFAULT) });
    bench.run_for(1500 * MS);
    let slot = bench.sim.io.visits()[0].at.ns() % 1_000_000_000;
    for _ in 0..5 {
        bench.run_for(300 * MS);
        let (before, now) = (bench.sim.io.visits().len(), bench.sim.now());
        bench.send(Command::ProbeNow(name));
        bench.send(Command::ProbeNow(name));
        bench.run_for(2 * MS);
        assert_eq!(bench.sim.io.visits().len(), before + 1, "one under way is enough");
        assert!(bench.sim.io.visits()[before].at.since(now) <= MS);
    }
    bench.run_for(3000 * MS);
    let counters = bench.counters();
    let scheduled = bench.sim.io.visits().iter().filter(|visit| visit.at.ns() % 1_000_000_000 == slot).count();
    assert_eq!((bench.sim.io.visits().len(), scheduled, counters.missed), (scheduled + 5, scheduled, 0));
    assert!((5..=7).contains(&scheduled) && bench.samples.iter().all(|sample| sample.lateness_ns <= 1_000_000));
}

/// The kernel's own round trip is asked for of one knock in 64 and of the one after a slow one, and SYNs that were sent
/// again are seen in both ways: measured, and by the time they took.
#[test]
fn lost_syns_are_seen() {
    let mut bench = Bench::new(3, Setup::default());
    let policy = Policy { interval: 20_000 * MS, timeout: 10_000 * MS, ..Policy::DEFAULT };
    for key in 0..100 {
        bench.sim.io.world.set(place(key), Behaviour::Lossy(0.4, 100..1000));
        bench.add(Target { count: Some(10), ..target(key, Check::Tcp(Mode::HalfOpen), policy) });
    }
    bench.run_for(220_000 * MS);
    let (mut measured, mut inferred, mut followed) = (0, 0, 0);
    for key in 0..100 {
        let mut slow = false;
        for sample in bench.samples.iter().filter(|sample| sample.key == key) {
            let is_up = sample.code == Code::L4Ok;
            let lost = match sample.rtt_ns / 1_000_000_000 {
                0 => 0,
                1 => 1,
                3 => 2,
                7 => 3,
                _ => 9,
            };
            if is_up {
                assert_eq!(sample.syn_retransmits, lost, "{sample:?}");
                assert!(!slow || sample.kernel_rtt_us > 0, "whoever was slow is looked at: {sample:?}");
                followed += u32::from(slow);
                (measured, inferred) = match (lost, sample.kernel_rtt_us) {
                    (0, _) => (measured, inferred),
                    (_, 0) => (measured, inferred + 1),
                    (_, _) => (measured + 1, inferred),
                };
            }
            slow = sample.code.fault() != crate::outcome::Fault::Prober && sample.rtt_ns >= 900_000_000;
        }
    }
    assert!(measured > 50 && inferred > 50 && followed > 100, "{measured} {inferred} {followed}");
    let counters = bench.counters();
    assert_eq!((counters.syn_retransmitted, counters.syn_inferred), (measured + inferred, inferred));
}

/// How a conversation leaves is what its finding says, and one that is broken off is left by reset.
#[test]
fn a_finding_says_how_to_leave() {
    let mut bench = Bench::new(1, Setup::default());
    bench.sim.io.world.set(place(1), speech(world(MS)));
    bench.sim.io.world.set(place(2), speech(Script::new()));
    for key in [1, 2] {
        bench.add(target(key, hello(), Policy { timeout: 100 * MS, ..Policy::DEFAULT }));
    }
    bench.run_for(7000 * MS);
    let ends = |to| bench.sim.io.visits().iter().filter(move |visit| visit.to == to).map(|visit| visit.end);
    assert!(ends(place(1)).count() == 5 && ends(place(1)).all(|end| end == Some(End::Fin)));
    assert!(ends(place(2)).count() == 5 && ends(place(2)).all(|end| end == Some(End::Reset)));
}

/// More kinds of lanes than the prober keeps: whoever comes too late has no outcome against it, and is told.
#[test]
fn kinds_of_lanes_are_bounded() {
    use crate::probe::lanes::KINDS_MAX;
    let mut bench = Bench::new(1, Setup { faults: Faults::default(), ..Setup::default() });
    for key in 0..KINDS_MAX as u64 + 20 {
        bench.sim.io.world.set(place(key), Behaviour::Open(1..2));
        let source = [127, 9, (key / 256) as u8, key as u8].into();
        let policy = Policy { source: Some(source), ..Policy::DEFAULT };
        bench.add(Target { count: Some(1), ..target(key, Check::Tcp(Mode::HalfOpen), policy) });
    }
    bench.run_for(10_000 * MS);
    let counters = bench.counters();
    assert_eq!((counters.outcome(Code::L4Ok), counters.ended), (KINDS_MAX as u64, KINDS_MAX as u64 + 20));
    assert!(counters.outcome(Code::SockErr) > 20 && bench.transitions.is_empty());
}

/// A host that sends whoever asks for anything but `/there` there, and closes.
#[derive(Debug)]
struct Elsewhere;

struct Porter(Vec<u8>);

impl Host for Elsewhere {
    fn answer(&self) -> Box<dyn Speaker> {
        Box::new(Porter(Vec::new()))
    }
}

impl Speaker for Porter {
    fn greet(&mut self, _says: &mut Vec<Said>) {}

    fn hear(&mut self, heard: &[u8], says: &mut Vec<Said>) {
        self.0.extend_from_slice(heard);
        if !self.0.ends_with(b"\r\n\r\n") {
            return;
        }
        let answer: &[u8] = match self.0.starts_with(b"GET /there ") {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            false => b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n",
        };
        let word = |word| Said { after: 10 * MS, word };
        says.extend([word(Word::Bytes(answer.to_vec())), word(Word::Close)]);
    }
}

/// A conversation that wants another connection gets one on the same lane, as part of the same probe; one timeout counts
/// for both, while a connection's own patience begins anew; and it can be broken off between the two.
#[test]
fn a_conversation_may_call_again() {
    let follow = Redirects::Follow { max: 3, any_host: false };
    let check = HttpCheck::new(HttpSettings { redirects: follow, ..HttpSettings::default() }).expect("valid");
    let check = Check::Http(Arc::new(check));
    for (timeout, code) in [(200, Code::L7Ok), (110, Code::L7Timeout)] {
        for seed in 0..16 {
            let mut bench = Bench::new(seed, Setup::default());
            bench.sim.io.world.set(place(1), Behaviour::Speaks(Speech::new(25_000..25_001, Elsewhere)));
            // No TLS here: its patience only makes the prober look early, when the connection is not made yet.
            let timeouts = Timeouts { connect: Some(30 * MS), tls: Some(5 * MS), answer: Some(50 * MS) };
            let name = bench.add(Target {
                count: None,
                ..target(1, check.clone(), Policy { timeout: timeout * MS, timeouts, ..Policy::DEFAULT })
            });
            bench.run_for(5000 * MS);
            assert!(bench.samples.len() == 5 && bench.samples.iter().all(|sample| sample.code == code), "{code:?}");
            assert_eq!((bench.sim.io.visits().len(), bench.counters().lanes), (10, 64), "two calls for each probe");
            let slot = bench.sim.io.visits()[8].at;
            let at = Duration::from_nanos(Rng::with_seed(seed).u64(..130_000_000));
            bench.run_for((slot + 1000 * MS + at).since(bench.sim.now()));
            bench.send(Command::Remove(name));
            bench.run_for(200 * MS);
            let counters = bench.stop();
            assert_eq!((counters.in_flight, bench.sim.io.lanes_busy(), counters.completions_stale), (0, 0, 0));
        }
    }
}

/// A completion that comes twice is counted and changes nothing, also where the same flight waits for another one of the
/// same kind meanwhile.
#[test]
fn a_repeated_completion_is_not_the_next() {
    let mut bench = Bench::new(1, Setup::default());
    let slow = Speech { cut: Cut::Pieces(1, 50_000), ..Speech::new(1..2, world(MS)) };
    bench.sim.io.world.set(place(1), Behaviour::Speaks(slow));
    bench.add(Target { count: Some(1), ..target(1, hello(), Policy::DEFAULT) });
    let mut op = 0;
    for _ in 0..2000 {
        bench.run_for(MS);
        let Some(key) = bench.sim.resident.flights.keys().next() else { continue };
        let now = bench.sim.resident.flights.get(key).expect("listed").op;
        if now == op {
            continue;
        }
        let stale = bench.counters().completions_stale;
        let at = bench.sim.now();
        let mut cx = Cx { io: &mut bench.sim.io, now: at, resident: 1 };
        let token = cx.token(op, key.generation, key.index);
        let twice = Completion { token, event: IoEvent::Heard(Ok(1)) };
        bench.sim.resident.on_completion(&mut cx, twice);
        assert_eq!(bench.counters().completions_stale, stale + 1);
        op = now;
    }
    assert_eq!(bench.counters().completions_stale, 4, "one for each piece of the word but the last");
    assert_eq!((bench.samples.len(), bench.samples[0].code), (1, Code::L7Ok));
}
