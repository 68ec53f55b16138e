//! What happens in one random world, all of it from one seed: the targets and their fates, the prober's own troubles,
//! and a record of everything that was said. The sentences about it are in `invariants`.

use super::bench::{any_behaviour, any_faults, any_mode, policy};
use super::{BEGIN, Bench, Setup};
use crate::check::{Check, Expect, UdpCheck};
use crate::health::Health;
use crate::outcome::Code;
use crate::probe::Command;
use crate::probe::pattern::Pattern;
use crate::sim::{Behaviour, Cut, Faults, Script, Speech};
use crate::slab::Key;
use crate::stats::Counters;
use crate::target::{Policy, Target};
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

/// A whole world's record.
pub(crate) struct Story {
    pub(crate) weather: Weather,
    pub(crate) in_flight_max: u32,
    pub(crate) rate_max: Option<u32>,
    pub(crate) lives: Vec<Life>,
    pub(crate) bench: Bench,
    /// The counters now and then: as they were, and how many samples and targets there were.
    pub(crate) ledger: Vec<(Counters, usize, usize)>,
    /// When it was told to stop, and the counters afterwards.
    pub(crate) stopped: Instant,
    pub(crate) counters: Counters,
}

/// A word that no other target's host knows.
fn word(kind: &str, key: u64) -> Vec<u8> {
    format!("{kind} {key:08}\n").into_bytes()
}

/// A check of any kind, which says and expects words of its own.
fn any_check(key: u64, rng: &mut Rng) -> Check {
    let answer = || Some(Pattern::bytes(&word("answer", key)).expect("a short word"));
    match rng.u8(..8) {
        0..3 => Check::Tcp(any_mode(rng)),
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
        Check::Udp(_) => Behaviour::Speaks(Speech::new(rtt_us, Script::new().wants(ask).says(after, answer))),
        _ => Behaviour::Open(1..2 + timeout_us / 4),
    }
}

fn any_cut(rng: &mut Rng) -> Cut {
    let apart_us = rng.u64(..100);
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

fn any_target(weather: Weather, fate: Fate, key: u64, rng: &mut Rng) -> (Target, SocketAddr) {
    let (interval_ms, calm) = (rng.u64(100..2000), weather.is_calm());
    let timeout_ms = if calm { rng.u64(100..=interval_ms) } else { rng.u64(100..1500) };
    let timeout_ms = if fate == Fate::Any { rng.u64(1..1500) } else { timeout_ms };
    let initial = match fate {
        Fate::Any => rng.choice([Health::Unknown, Health::Up, Health::Down]).expect("three"),
        Fate::Well | Fate::Dies(_) => rng.choice([Health::Unknown, Health::Up]).expect("two"),
    };
    // Some share a network, and no two a door.
    let (net, host, port) = (rng.u8(..4), 1 + (key % 250) as u8, 1024 + key as u16);
    let door: SocketAddr = match rng.u8(..4) {
        0 => ([0x2001, 0xdb8, 0, u16::from(net), 0, 0, 0, u16::from(host)], port).into(),
        _ => ([10, 0, net, host], port).into(),
    };
    let mut policy = policy(interval_ms, timeout_ms, rng.u8(1..5), rng.u8(1..5));
    let mut address = door;
    if rng.u8(..4) == 0 {
        policy.port = Some(port);
        address.set_port(1);
    }
    let count = (fate == Fate::Any && rng.bool()).then(|| rng.u32(..6));
    let target = Target { address, check: any_check(key, rng), policy: policy.into(), initial, count, key, group: 0 };
    (target, door)
}

impl Story {
    /// Tells the story of `seed`, with this much of what no `Io` may do.
    pub(crate) fn tell(seed: u64, rogue: f64) -> Story {
        let mut rng = Rng::with_seed(seed);
        let weather = [Weather::Calm, Weather::Crowded, Weather::Rough, Weather::Wild][(seed % 4) as usize];
        let mut setup = Setup::default();
        if let Weather::Crowded | Weather::Wild = weather {
            setup.in_flight_max = rng.u32(1..60);
            setup.rate_max = rng.bool().then(|| rng.u32(50..2000));
        }
        setup.transitions_max = if weather == Weather::Wild { rng.usize(1..20) } else { 1024 };
        setup.faults = match weather {
            Weather::Calm | Weather::Crowded => Faults::default(),
            Weather::Rough | Weather::Wild => any_faults(&mut rng),
        };
        setup.faults.rogue = rogue;
        let (in_flight_max, rate_max) = (setup.in_flight_max, setup.rate_max);
        let mut story = Story {
            weather,
            in_flight_max,
            rate_max,
            lives: Vec::new(),
            bench: Bench::new(seed, setup),
            ledger: Vec::new(),
            stopped: BEGIN,
            counters: Counters::default(),
        };
        for _ in 0..rng.usize(1..30) {
            story.add(&mut rng);
        }
        for _ in 0..rng.u32(10..40) {
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

    fn add(&mut self, rng: &mut Rng) {
        let (now, key) = (self.bench.sim.now(), self.lives.len() as u64);
        let fate = match rng.u8(..3) {
            0 => Fate::Well,
            1 => Fate::Dies(now + Duration::from_millis(rng.u64(..4000))),
            _ => Fate::Any,
        };
        let (target, door) = any_target(self.weather, fate, key, rng);
        let behaviour = match fate {
            Fate::Well | Fate::Dies(_) => well(&target, rng),
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
        self.ledger.push((self.bench.counters(), self.bench.samples.len(), live));
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
