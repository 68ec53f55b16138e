//! What happens in one random world, all of it from one seed: the targets and their fates, the prober's own troubles,
//! and a record of everything that was said. The sentences about it are in `invariants`.

use super::bench::{any_behaviour, any_faults, any_mode, policy};
use super::{BEGIN, Bench, Setup};
use crate::check::{Check, Expect, HttpCheck, MysqlCheck, UdpCheck};
use crate::engine::MassFlip;
use crate::health::Health;
use crate::outcome::Code;
use crate::probe::Command;
use crate::probe::mysql::Secret;
use crate::probe::pattern::Pattern;
use crate::sim::{Behaviour, Cut, Faults, Script, Speech};
use crate::slab::Key;
use crate::stats::Counters;
use crate::target::{Policy, Sample, Target};
use crate::time::Instant;
use fastrand::Rng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What the prober has to put up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Nothing: every promise about time holds to the tick.
    Calm,
    /// Too little room and too low a rate for its targets, but no trouble.
    Crowded,
    /// Stalls, local errors, missing descriptors, answers handed out piecemeal.
    Rough,
    /// All of it, and targets that come, go and change.
    Wild,
    /// Short stalls after waits, with many answers at a time that are handed out piecemeal.
    Drowsy,
}

impl Weather {
    /// No trouble but what limits make.
    pub(crate) fn is_calm(self) -> bool {
        matches!(self, Weather::Calm | Weather::Crowded)
    }
}

/// What becomes of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Always answers well within a quarter of its timeout.
    Well,
    /// Always answers a knock late, but in time.
    Slow,
    /// As `Well` until about this moment, dead from then on.
    Dies(Instant),
    /// Whatever it likes.
    Any,
}

/// One target's life.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) target: Target,
    /// Where it really is probed.
    pub(crate) door: SocketAddr,
    pub(crate) fate: Fate,
    pub(crate) name: Key,
    /// When its host died.
    pub(crate) died: Option<Instant>,
    /// Its policy was changed: its slots are judged only where it never was.
    pub(crate) updated: bool,
    /// When it was removed.
    pub(crate) removed: Option<Instant>,
}

impl Life {
    /// Its slots are its interval apart, always.
    pub(crate) fn is_plain(&self) -> bool {
        let policy = &self.target.policy;
        let modified = (policy.interval_fast, policy.interval_down, policy.jitter_percent, policy.backoff_max);
        !self.updated && modified == (None, None, 0, 1)
    }
}

/// A whole world's record.
pub(crate) struct Story {
    pub(crate) weather: Weather,
    pub(crate) in_flight_max: u32,
    pub(crate) rate_max: Option<u32>,
    pub(crate) rate_per_net: Option<u32>,
    pub(crate) in_flight_per_net: Option<u32>,
    pub(crate) mass_flip: MassFlip,
    /// Many targets with short intervals.
    is_crowd: bool,
    pub(crate) lives: Vec<Life>,
    pub(crate) bench: Bench,
    /// The counters now and then: when, as they were, and how many samples and targets there were.
    pub(crate) ledger: Vec<(Instant, Counters, usize, usize)>,
    /// When it was told to stop, and the counters afterwards.
    pub(crate) stopped: Instant,
    pub(crate) counters: Counters,
}

const HTTP_OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// A server that takes whom it does not know: protocol 10, version 8, mysql_native_password (MySQL's documentation,
/// Protocol::HandshakeV10); then OK.
const MYSQL_GREETING: &[u8] = b"\x49\0\0\0\x0a8.0.0\0\x01\0\0\x0012345678\0\x09\x82\x2d\x02\0\x08\0\x15\
    \0\0\0\0\0\0\0\0\0\x00123456789012\0mysql_native_password\0";
const MYSQL_OK: &[u8] = b"\x07\0\0\x02\0\0\0\x02\0\0\0";

/// A word that no other target's host knows.
fn word(kind: &str, key: u64) -> Vec<u8> {
    format!("{kind} {key:08}\n").into_bytes()
}

/// A check of any kind, which says and expects words of its own.
fn any_check(key: u64, rng: &mut Rng) -> Check {
    let answer = || Some(Pattern::bytes(&word("answer", key)).expect("a short word"));
    match rng.u8(..10) {
        0..3 => Check::Tcp(any_mode(rng)),
        8 => Check::Http(Arc::new(HttpCheck::default())),
        9 => Check::Mysql(Arc::new(MysqlCheck::new("watcher", Secret::new("")).expect("a name"))),
        3 => Check::Udp(Arc::new(UdpCheck::new(word("ask", key), answer(), false).expect("short words"))),
        4 => Check::Ping,
        _ => {
            let check = Expect::new(word("ask", key), answer()).expect("short words");
            let bye = if rng.bool() { word("bye", key) } else { Vec::new() };
            Check::Expect(Arc::new(check.leaving_with(bye).expect("a short word")))
        }
    }
}

/// How a host behaves that is well by the measure of this timeout: about a quarter of it, all told.
fn well(target: &Target, rng: &mut Rng) -> Behaviour {
    let timeout_us = target.policy.timeout.as_micros() as u64;
    let rtt_us = 1..2 + timeout_us / 50;
    let after = Duration::from_micros(rng.u64(..1 + timeout_us / 20));
    let (ask, answer, bye) = (word("ask", target.key), word("answer", target.key), word("bye", target.key));
    match target.check {
        Check::Expect(_) => {
            let greeting =
                if rng.bool() { Script::new().says(after, word("hello", target.key)) } else { Script::new() };
            let script = greeting.wants(ask).says(after, answer).wants(bye).closes(after);
            Behaviour::Speaks(Speech { cut: any_cut(rng), ..Speech::new(rtt_us, script) })
        }
        Check::Http(_) => {
            let script = Script::new().until(*b"\r\n\r\n").says(after, HTTP_OK).closes(Duration::ZERO);
            Behaviour::Speaks(Speech { cut: any_cut(rng), ..Speech::new(rtt_us, script) })
        }
        Check::Mysql(_) => {
            let login = Script::new().says(after / 2, MYSQL_GREETING).hears().says(after / 2, MYSQL_OK);
            let script = login.hears().closes(Duration::ZERO);
            Behaviour::Speaks(Speech { cut: any_cut(rng), ..Speech::new(rtt_us, script) })
        }
        Check::Udp(_) => Behaviour::Speaks(Speech::new(rtt_us, Script::new().wants(ask).says(after, answer))),
        _ => Behaviour::Open(1..2 + timeout_us / 4),
    }
}

fn any_cut(rng: &mut Rng) -> Cut {
    let apart_us = rng.u64(..20);
    rng.choice([Cut::Whole, Cut::Any, Cut::Pieces(1, apart_us), Cut::Pieces(7, 0)]).expect("four")
}

/// One of the ways to be dead, by the measure of this check.
fn dead(target: &Target, rng: &mut Rng) -> Behaviour {
    let rtt = 1..rng.u64(2..400_000);
    let refusals = [Behaviour::Closed(rtt.clone()), Behaviour::Resetting(rtt.clone())];
    let silences = [Behaviour::BlackHole, Behaviour::Unreachable(rtt.clone())];
    let (ask, answer) = (word("ask", target.key), word("answer", target.key));
    let (now, late) = (Duration::ZERO, target.policy.timeout + Duration::from_millis(20));
    let half = answer[..answer.len() / 2].to_vec();
    let scripts = [
        Script::new(),
        Script::new().says(now, *b"you are not welcome\n"),
        Script::new().wants(ask.clone()).says(now, half.clone()),
        Script::new().wants(ask.clone()).says(now, half.clone()).closes(now),
        Script::new().wants(ask.clone()).says(now, half).resets(now),
        Script::new().wants(ask.clone()).says(now, word("answer", target.key + 1)).closes(now),
        Script::new().wants(ask).says(late, answer),
        Script::new().closes(now),
        Script::new().resets(now),
    ];
    let speaks = |rng: &mut Rng, scripts: &[Script]| {
        let script = rng.choice(scripts).expect("some").clone();
        Behaviour::Speaks(Speech { cut: any_cut(rng), ..Speech::new(rtt.clone(), script) })
    };
    match (&target.check, rng.u8(..4)) {
        (Check::Ping, _) | (_, 0) => rng.choice(silences).expect("two"),
        (Check::Tcp(_), _) | (_, 1) => rng.choice(refusals).expect("two"),
        (Check::Udp(_), _) => speaks(rng, &scripts[..7]),
        _ => speaks(rng, &scripts),
    }
}

/// Some behaviour, for whom nothing is promised.
fn any(target: &Target, rng: &mut Rng) -> Behaviour {
    match rng.u8(..4) {
        0 => well(target, rng),
        1 => dead(target, rng),
        2 if !matches!(target.check, Check::Tcp(_)) => match well(target, rng) {
            Behaviour::Speaks(speech) => {
                let rtt_us = 10..rng.u64(20..600_000);
                Behaviour::Speaks(Speech { loss: rng.f64() / 2.0, twice: rng.f64() / 2.0, rtt_us, ..speech })
            }
            other => other,
        },
        _ => any_behaviour(rng),
    }
}

fn any_target(weather: Weather, is_crowd: bool, fate: Fate, key: u64, rng: &mut Rng) -> (Target, SocketAddr) {
    let (interval_max_ms, calm) = (if is_crowd { 200 } else { 2000 }, weather.is_calm());
    let interval_ms = rng.u64(100..interval_max_ms);
    let is_short = calm || weather == Weather::Drowsy;
    let timeout_ms = if is_short { rng.u64(100..=interval_ms) } else { rng.u64(100..1500) };
    let timeout_ms = if fate == Fate::Any { rng.u64(1..1500) } else { timeout_ms };
    let initial = match fate {
        Fate::Any => rng.choice([Health::Unknown, Health::Up, Health::Down]).expect("three"),
        Fate::Well | Fate::Slow | Fate::Dies(_) => rng.choice([Health::Unknown, Health::Up]).expect("two"),
    };
    // Some share a network, and no two a door.
    let (net, host, port) = (rng.u8(..4), 1 + (key % 250) as u8, 1024 + key as u16);
    let door: SocketAddr = match rng.u8(..4) {
        0 => ([0x2001, 0xdb8, 0, u16::from(net), 0, 0, 0, u16::from(host)], port).into(),
        _ => ([10, 0, net, host], port).into(),
    };
    let mut policy = policy(interval_ms, timeout_ms, rng.u8(1..5), rng.u8(1..5));
    if fate == Fate::Any && rng.u8(..3) == 0 {
        let some_ms = |rng: &mut Rng| rng.bool().then(|| Duration::from_millis(rng.u64(100..1000)));
        (policy.interval_fast, policy.interval_down) = (some_ms(rng), some_ms(rng));
        (policy.jitter_percent, policy.backoff_max) = (rng.u8(..=50), rng.u8(1..8));
    }
    policy.refusal_is_final = fate == Fate::Any && rng.u8(..4) == 0;
    let mut address = door;
    if rng.u8(..4) == 0 {
        policy.port = Some(port);
        address.set_port(1);
    }
    let count = (fate == Fate::Any && rng.bool()).then(|| rng.u32(..6));
    let check = if fate == Fate::Slow { Check::Tcp(any_mode(rng)) } else { any_check(key, rng) };
    let target = Target { address, check, policy: policy.into(), initial, count, key, group: 0 };
    (target, door)
}

impl Story {
    /// Tells the story of `seed`, with this much of what no `Io` may do.
    pub(crate) fn tell(seed: u64, rogue: f64) -> Story {
        let mut rng = Rng::with_seed(seed);
        let weathers = [Weather::Calm, Weather::Crowded, Weather::Rough, Weather::Wild, Weather::Drowsy];
        let weather = weathers[(seed % 5) as usize];
        let mut setup = Setup::default();
        if let Weather::Crowded | Weather::Wild = weather {
            setup.in_flight_max = rng.u32(1..60);
            setup.rate_max = rng.bool().then(|| rng.u32(50..2000));
            setup.rate_per_net = rng.bool().then(|| rng.u32(20..500));
            setup.in_flight_per_net = rng.bool().then(|| rng.u32(1..20));
        }
        setup.freeze = rng.u8(..4) > 0;
        setup.mass_flip = rng.choice([MassFlip::Off, MassFlip::Alarm, MassFlip::Hold]).expect("three");
        setup.transitions_max = if weather == Weather::Wild { rng.usize(1..20) } else { 1024 };
        setup.faults = match weather {
            Weather::Calm | Weather::Crowded => Faults::default(),
            Weather::Rough | Weather::Wild if rng.u8(..4) == 0 => {
                Faults { local_error: rng.f64() / 2.0, ..any_faults(&mut rng) }
            }
            Weather::Rough | Weather::Wild => any_faults(&mut rng),
            Weather::Drowsy => {
                let stall_us = 4000..rng.u64(5000..60_000);
                Faults { stall: 0.02, stall_us, stalls_after: true, collect_max: Some(16), ..Faults::default() }
            }
        };
        setup.faults.rogue = rogue;
        let Setup { in_flight_max, rate_max, rate_per_net, in_flight_per_net, mass_flip, .. } = setup;
        let mut story = Story {
            weather,
            in_flight_max,
            rate_max,
            rate_per_net,
            in_flight_per_net,
            mass_flip,
            is_crowd: weather == Weather::Drowsy || (weather == Weather::Calm && rng.u8(..8) == 0),
            lives: Vec::new(),
            bench: Bench { reads_seldom: weather == Weather::Wild, ..Bench::new(seed, setup) },
            ledger: Vec::new(),
            stopped: BEGIN,
            counters: Counters::default(),
        };
        let targets = if story.is_crowd { 60..150 } else { 1..rng.choice([4, 30]).expect("two") };
        for _ in 0..rng.usize(targets) {
            story.add(&mut rng);
        }
        for _ in 0..rng.u32(if story.is_crowd { 3..12 } else { 10..40 }) {
            story.round(&mut rng);
        }
        story.stopped = story.bench.sim.now();
        story.counters = story.bench.stop();
        story
    }

    /// Everything that was said, and when.
    pub(crate) fn said(&self) -> Vec<(Instant, u64, Code, Health)> {
        let samples = self.bench.judged.iter().zip(&self.bench.samples);
        samples.map(|(at, sample)| (*at, sample.key, sample.code, sample.health)).collect()
    }

    /// What was believed of this sample's target at a time.
    pub(crate) fn was_down(&self, sample: &Sample, at: Instant) -> bool {
        let said = self.bench.judged.iter().zip(&self.bench.samples);
        let before = said.rev().find(|(judged, other)| other.key == sample.key && **judged <= at);
        before.map_or(self.lives[sample.key as usize].target.initial, |(_, sample)| sample.health) == Health::Down
    }

    fn add(&mut self, rng: &mut Rng) {
        let (now, key) = (self.bench.sim.now(), self.lives.len() as u64);
        let fate = match rng.u8(..3) {
            _ if self.weather == Weather::Drowsy => Fate::Slow,
            0 => Fate::Well,
            1 => Fate::Dies(now + Duration::from_millis(rng.u64(..4000))),
            _ => Fate::Any,
        };
        let (target, door) = any_target(self.weather, self.is_crowd, fate, key, rng);
        let behaviour = match fate {
            Fate::Well | Fate::Dies(_) => well(&target, rng),
            Fate::Slow => {
                let timeout_us = target.policy.timeout.as_micros() as u64;
                Behaviour::Open(timeout_us / 2..timeout_us - 2000)
            }
            Fate::Any => any(&target, rng),
        };
        self.bench.sim.io.world.set(door, behaviour);
        let name = self.bench.add(target.clone());
        self.lives.push(Life { target, door, fate, name, died: None, updated: false, removed: None });
    }

    /// Some time passes; who is to die in it dies at its moment, or as soon as the prober is awake.
    fn pass(&mut self, time: Duration, rng: &mut Rng) {
        let end = self.bench.sim.now() + time;
        let dying = |life: &Life| match life.fate {
            Fate::Dies(at) if at < end && life.died.is_none() => Some(at),
            _ => None,
        };
        let mut deaths: Vec<_> =
            self.lives.iter().enumerate().filter_map(|(number, life)| Some((dying(life)?, number))).collect();
        deaths.sort_unstable();
        for (at, number) in deaths {
            self.bench.run_for(at.since(self.bench.sim.now()));
            let life = &mut self.lives[number];
            life.died = Some(self.bench.sim.now());
            self.bench.sim.io.world.set(life.door, dead(&life.target, rng));
        }
        self.bench.run_for(end.since(self.bench.sim.now()));
    }

    fn round(&mut self, rng: &mut Rng) {
        if self.weather == Weather::Wild {
            for _ in 0..rng.u8(..3) {
                self.add(rng);
            }
            for _ in 0..rng.u8(..3) {
                self.meddle(rng);
            }
        }
        let any_one = rng.usize(..self.lives.len());
        if self.lives[any_one].fate == Fate::Any {
            let Life { target, door, .. } = &self.lives[any_one];
            let behaviour = any(target, rng);
            self.bench.sim.io.world.set(*door, behaviour);
        }
        self.pass(Duration::from_millis(rng.u64(1..600)), rng);
        let live = self.lives.iter().filter(|life| life.removed.is_none()).count();
        self.ledger.push((self.bench.sim.now(), self.bench.counters(), self.bench.samples.len(), live));
    }

    /// Removes a target or changes its policy.
    fn meddle(&mut self, rng: &mut Rng) {
        let at = rng.usize(..self.lives.len());
        let life = &mut self.lives[at];
        if life.removed.is_some() {
            return;
        }
        if rng.u8(..3) == 0 {
            self.bench.send(Command::Remove(life.name));
            life.removed = Some(self.bench.sim.now());
            return;
        }
        let old = life.target.policy.clone();
        // Its host was made for the old timeout.
        let interval = Duration::from_millis(rng.u64(100..2000));
        let timeout = Duration::from_millis(rng.u64(old.timeout.as_millis() as u64..2000));
        life.target.policy = Policy { interval, timeout, ..*old }.into();
        life.updated = true;
        self.bench.send(Command::Update(life.name, life.target.policy.clone()));
    }
}
