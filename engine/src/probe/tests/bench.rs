//! A bench for the prober: one prober in a simulated world, all that it says written down, and what worlds are made of.
//! Used by the sentences in `tests` and by the engine's comparison of all `Io`s.

use super::super::*;
use super::BEGIN;
use crate::engine::MassFlip;
use crate::health::Thresholds;
use crate::io::Mode;
use crate::mailbox::{NoWake, Receiver, Sender, mailbox};
use crate::sim::{Behaviour, Faults, Sim, SimIo, World};
use crate::slab::Key;
use crate::stats::Counters;
use crate::target::{Policy, Sample, Target, Transition};
use crate::time::Instant;
use arc_swap::ArcSwapOption;
use fastrand::Rng;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Setup {
    pub(crate) in_flight_max: u32,
    pub(crate) rate_max: Option<u32>,
    pub(crate) rate_per_net: Option<u32>,
    pub(crate) in_flight_per_net: Option<u32>,
    pub(crate) freeze: bool,
    pub(crate) mass_flip: MassFlip,
    pub(crate) transitions_max: usize,
    pub(crate) world: World,
    pub(crate) faults: Faults,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            in_flight_max: 4096,
            rate_max: None,
            rate_per_net: None,
            in_flight_per_net: None,
            freeze: true,
            mass_flip: MassFlip::Alarm,
            transitions_max: 1024,
            world: World::default(),
            faults: Faults::default(),
        }
    }
}

/// A prober in a world, with all that it says written down.
pub(crate) struct Bench {
    pub(crate) sim: Sim<Prober>,
    pub(crate) commands: Sender<Command>,
    pub(crate) names: Arc<Names>,
    pub(crate) changes: Receiver<Transition>,
    pub(crate) taken: Receiver<Sample>,
    /// Health changes are read at the end of a run only, not as they come.
    pub(crate) reads_seldom: bool,
    /// In order; with the time at which they were read.
    pub(crate) transitions: Vec<(Instant, Transition)>,
    pub(crate) samples: Vec<Sample>,
    /// When each sample was said, exactly.
    pub(crate) judged: Vec<Instant>,
}

impl Bench {
    pub(crate) fn new(seed: u64, setup: Setup) -> Bench {
        let (commands, commands_out) = mailbox(1 << 12, Arc::new(NoWake));
        let (_, asks) = mailbox(1, Arc::new(NoWake));
        let (transitions, changes) = mailbox(setup.transitions_max, Arc::new(NoWake));
        let (samples, taken) = mailbox(1 << 12, Arc::new(NoWake));
        let names = Arc::new(Names::new());
        let prober = Prober::new(ProberParts {
            worker: 0,
            in_flight_max: setup.in_flight_max,
            groups: 0,
            pace: Pace::new(setup.rate_max, 1),
            nets: Nets::new(setup.rate_per_net, setup.in_flight_per_net, 1),
            guard: Guard::new(setup.freeze),
            flock: Arc::new(Flock::new(setup.mass_flip, 25)),
            outbox: Outbox::new(transitions, Some(samples)),
            commands: commands_out,
            asks,
            legacy: Arc::new(ArcSwapOption::empty()),
            names: names.clone(),
        });
        let io = SimIo::new(seed, BEGIN, setup.world, setup.faults);
        let sim = Sim::start(io, prober);
        Bench {
            sim,
            commands,
            names,
            changes,
            taken,
            reads_seldom: false,
            transitions: Vec::new(),
            samples: Vec::new(),
            judged: Vec::new(),
        }
    }

    pub(crate) fn add(&self, target: Target) -> Key {
        let key = self.names.take().expect("names enough");
        self.send(Command::Add(key, target));
        key
    }

    pub(crate) fn send(&self, command: Command) {
        assert!(self.commands.send(command).is_ok(), "room for commands");
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.sim.now() + time;
        while self.sim.now() < end {
            self.turn(end);
        }
        self.read_changes();
    }

    fn read_changes(&mut self) {
        let now = self.sim.now();
        self.transitions.extend(std::iter::from_fn(|| self.changes.try_recv()).map(|change| (now, change)));
    }

    /// One turn, and all that was said in it.
    fn turn(&mut self, end: Instant) {
        let Bench { sim, changes, reads_seldom, taken, transitions, samples, judged, .. } = self;
        sim.turn_watched(end, |now| {
            if !*reads_seldom {
                transitions.extend(std::iter::from_fn(|| changes.try_recv()).map(|change| (now, change)));
            }
            samples.extend(std::iter::from_fn(|| taken.try_recv()));
            judged.resize(samples.len(), now);
        });
    }

    /// Everything that is waiting somewhere comes out.
    pub(crate) fn stop(&mut self) -> Counters {
        self.sim.stop(10_000);
        let counters = self.counters();
        for _ in 0..=counters.transitions {
            self.turn(self.sim.now());
            self.read_changes();
        }
        counters
    }

    pub(crate) fn counters(&self) -> Counters {
        self.sim.resident.counters()
    }
}

pub(crate) fn policy(interval_ms: u64, timeout_ms: u64, rise: u8, fall: u8) -> Policy {
    Policy {
        interval: Duration::from_millis(interval_ms),
        timeout: Duration::from_millis(timeout_ms),
        thresholds: Thresholds {
            rise: NonZeroU8::new(rise).expect("not 0"),
            fall: NonZeroU8::new(fall).expect("not 0"),
        },
        ..Policy::DEFAULT
    }
}

pub(crate) fn address(key: u64, rng: &mut Rng) -> SocketAddr {
    let port = 1024 + (key % 60_000) as u16;
    if rng.bool() { ([127, 0, 0, 1], port).into() } else { ([0, 0, 0, 0, 0, 0, 0, 1], port).into() }
}

pub(crate) fn any_mode(rng: &mut Rng) -> Mode {
    rng.choice([Mode::HalfOpen, Mode::Full, Mode::Graceful]).expect("three")
}

pub(crate) fn any_behaviour(rng: &mut Rng) -> Behaviour {
    let rtt = 10..rng.u64(20..400_000);
    match rng.u8(..8) {
        0 | 1 => Behaviour::Open(rtt),
        2 => Behaviour::Closed(rtt),
        3 => Behaviour::BlackHole,
        4 => Behaviour::Lossy(rng.f64(), rtt),
        5 => Behaviour::Resetting(rtt),
        6 => Behaviour::Unreachable(rtt),
        _ => Behaviour::NoPort,
    }
}

pub(crate) fn any_faults(rng: &mut Rng) -> Faults {
    let lanes_max = [None, Some(0), Some(rng.u32(1..100))];
    Faults {
        stall: rng.f64() * 0.02,
        stall_us: 1..rng.u64(2..3_000_000),
        local_errors: vec![libc::EADDRNOTAVAIL, libc::ENOBUFS, libc::ENOMEM, libc::EMFILE, libc::EPERM, libc::EINVAL],
        local_error: rng.f64() * 0.2,
        lanes_max: rng.choice(lanes_max).expect("three"),
        collect_max: rng.bool().then(|| rng.usize(16..64)),
        ..Faults::default()
    }
}
