//! The sentences of `invariants`, checked on one story.

use super::invariants::Tally;
use super::story::{Fate, Life, Story, Weather};
use super::{TICKS, counted};
use crate::engine::MassFlip;
use crate::health::{Health, Held, Thresholds};
use crate::outcome::{Code, Fault};
use crate::probe::nets::Net;
use crate::sim::Visit;
use crate::target::Sample;
use crate::time::Instant;
use std::collections::HashMap;
use std::time::Duration;

/// The wheel's tick: what is due between two of them waits for the later one.
const TICK: Duration = Duration::from_millis(1);
/// Tokens a rate limiter may have saved up.
const BURST: Duration = Duration::from_millis(5);
/// A stopping worker waits so long for its residents.
const STOP_MAX: Duration = Duration::from_secs(2);

/// One target's outcome, and when it was said.
type Said<'a> = (Instant, &'a Sample);

/// Checks all that can be checked on one story.
pub(crate) fn verify(story: &Story, tally: &mut Tally) {
    let mut said: Vec<Vec<Said<'_>>> = vec![Vec::new(); story.lives.len()];
    for (at, sample) in story.bench.judged.iter().zip(&story.bench.samples) {
        said[sample.key as usize].push((*at, sample));
    }
    let mut missed = Some(0);
    for (life, said) in story.lives.iter().zip(&said) {
        healthy_is_never_blamed(life, said, tally);
        if story.weather == Weather::Calm {
            dead_is_found(story, life, tally);
            times_are_kept(story, life, said, tally);
        }
        let skipped = slots_are_kept(life, said, tally);
        missed = missed.zip(skipped).map(|(sum, skipped)| sum + skipped);
        health_follows(story, life, said, tally);
        if let Some(removed) = life.removed {
            let silent = said.last().is_none_or(|(at, _)| *at <= removed);
            tally.hold(15, silent, || format!("{life:?} said {:?} after its removal", said.last()));
        }
        count_is_kept(life, said, tally);
    }
    if let Some(missed) = missed {
        let counted = story.counters.missed;
        tally.hold(6, counted == missed, || format!("{counted} slots counted as missed, not {missed}"));
    }
    limits_hold(story, tally);
    frozen_is_frozen(story, tally);
    stop_is_clean(story, tally);
    counters_add_up(story, tally);
}

fn healthy_is_never_blamed(life: &Life, said: &[Said<'_>], tally: &mut Tally) {
    let well_until = match life.fate {
        Fate::Well | Fate::Slow => Instant::from_ns(u64::MAX),
        Fate::Dies(_) => life.died.unwrap_or(Instant::from_ns(u64::MAX)),
        Fate::Any => return,
    };
    for (_, sample) in said.iter().filter(|(at, _)| *at <= well_until) {
        tally.hold(2, sample.code.fault() != Fault::Target, || format!("{life:?}: {sample:?}"));
    }
}

fn dead_is_found(story: &Story, life: &Life, tally: &mut Tally) {
    let Some(died) = life.died else { return };
    let policy = &life.target.policy;
    let held = u32::from(story.mass_flip == MassFlip::Hold);
    let bound = died + policy.interval * (u32::from(policy.thresholds.fall.get()) + held) + policy.timeout + TICKS;
    // Worlds full of targets that can never be probed, or of unreachable networks, look like a sick prober.
    if bound > story.stopped || story.counters.freezes > 0 {
        return;
    }
    let changes = story.bench.transitions.iter().filter(|(_, change)| change.key == life.target.key);
    let after: Vec<_> = changes.filter(|(at, _)| *at > died).map(|(at, change)| (*at, change.to)).collect();
    // The first may be a probe that was under way.
    let found = after.iter().find(|(_, to)| *to == Health::Down);
    tally.hold(3, found.is_some_and(|(at, _)| *at <= bound), || format!("{life:?} by {bound:?}: {after:?}"));
    let last = after.last().map(|(_, to)| *to);
    tally.hold(3, last == Some(Health::Down), || format!("{life:?} came back: {after:?}"));
}

fn times_are_kept(story: &Story, life: &Life, said: &[Said<'_>], tally: &mut Tally) {
    let timeout = life.target.policy.timeout;
    for (_, sample) in said {
        let rtt = Duration::from_nanos(sample.rtt_ns);
        let is_timeout = matches!(sample.code, Code::L4Timeout | Code::L6Timeout | Code::L7Timeout);
        let in_time = rtt <= timeout + TICK && (!is_timeout || sample.errno != 0 || rtt >= timeout);
        tally.hold(9, in_time, || format!("{life:?}: {sample:?}"));
        let lateness = Duration::from_nanos(sample.lateness_ns);
        // A port that is not to be had makes the prober hold back, even in calm weather.
        let may_wait = story.counters.pauses > 0;
        tally.hold(14, lateness.is_zero() || may_wait, || format!("{life:?}: {sample:?}"));
    }
}

/// Returns how many slots must have been skipped; `None` where the policy changed.
fn slots_are_kept(life: &Life, said: &[Said<'_>], tally: &mut Tally) -> Option<u64> {
    if !life.is_plain() {
        return None;
    }
    let interval = life.target.policy.interval.as_nanos() as u64;
    let (mut missed, mut next) = (0, None);
    for (at, sample) in said {
        let slot = at.ns() - sample.rtt_ns - sample.lateness_ns;
        tally.hold(6, next.is_none_or(|next| next == slot), || {
            format!("{life:?}: {sample:?} is for slot {slot}, not {next:?}")
        });
        if !sample.last {
            let skipped = at.ns().saturating_sub(slot + interval).div_ceil(interval);
            missed += skipped;
            next = Some(slot + interval * (1 + skipped));
        }
    }
    Some(missed)
}

/// The plainest reading of rise and fall.
fn health_follows(story: &Story, life: &Life, said: &[Said<'_>], tally: &mut Tally) {
    let Thresholds { rise, fall } = life.target.policy.thresholds;
    let (mut health, mut run) = (life.target.initial, 0u8);
    let (mut expected, mut unconfirmed) = (Vec::new(), false);
    for (_, sample) in said {
        let says = if sample.code.is_up() { Health::Up } else { Health::Down };
        if sample.held == Held::Frozen {
            let may = sample.code.fault() == Fault::Target && health != Health::Down;
            tally.hold(10, may && sample.health == health, || format!("{life:?}: {sample:?}"));
        } else if sample.code.fault() != Fault::Prober {
            run = if says == health { 0 } else { run + 1 };
            let is_final = life.target.policy.refusal_is_final && sample.code == Code::L4Refused;
            let needed = match (health, says) {
                (Health::Unknown, _) => 1,
                (_, Health::Up) => rise.get(),
                _ if is_final => 1,
                _ => fall.get(),
            };
            let changes = says != health && run >= needed;
            if sample.held == Held::Unconfirmed {
                let may = changes && !unconfirmed && story.mass_flip == MassFlip::Hold;
                tally.hold(7, may, || format!("{life:?}: nothing to hold in {sample:?}"));
                unconfirmed = true;
            } else if changes {
                expected.push((health, says, sample.code, run));
                (health, run) = (says, 0);
            }
            unconfirmed &= run > 0;
        }
        tally.hold(7, sample.health == health, || format!("{life:?}: {sample:?}, not {health:?}"));
    }
    let changes = story.bench.transitions.iter().filter(|(_, change)| change.key == life.target.key);
    let told: Vec<_> = changes.map(|(_, change)| (change.from, change.to, change.code, change.streak)).collect();
    tally.hold(7, told == expected, || format!("{life:?}: told {told:?}, expected {expected:?}"));
}

fn count_is_kept(life: &Life, said: &[Said<'_>], tally: &mut Tally) {
    let Some(count) = life.target.count else { return };
    let faults: Vec<_> = said.iter().map(|(_, sample)| sample.code.fault()).collect();
    let made = counted(&faults);
    let lasts = said.iter().filter(|(_, sample)| sample.last).count();
    let is_last = said.last().is_some_and(|(_, sample)| sample.last);
    let kept =
        made <= count as usize && lasts == usize::from(is_last) && is_last == (count > 0 && made == count as usize);
    tally.hold(16, kept, || format!("{life:?}: {made} of {count} made, {lasts} said to be the last: {faults:?}"));
}

fn limits_hold(story: &Story, tally: &mut Tally) {
    let io = &story.bench.sim.io;
    tally.checks[4] += io.visits().len() as u64;
    let most = io.lanes_busy_most();
    tally.hold(5, most <= story.in_flight_max as usize, || format!("{most} in flight, not {}", story.in_flight_max));
    let mut nets: HashMap<Net, Vec<Visit>> = HashMap::new();
    io.visits().iter().for_each(|visit| nets.entry(Net::of(visit.to.ip())).or_default().push(*visit));
    for visits in nets.values() {
        if let Some(max) = story.in_flight_per_net {
            let most = most_at_a_time(visits);
            tally.hold(5, most <= max as usize, || format!("{most} in flight to one network, not {max}"));
        }
        if let Some(rate) = story.rate_per_net {
            rate_holds(rate, visits, tally);
        }
    }
    if let Some(rate) = story.rate_max {
        rate_holds(rate, io.visits(), tally);
    }
}

/// The most of these visits that were under way together. One that begins when another is over takes its place.
fn most_at_a_time(visits: &[Visit]) -> usize {
    let ends = visits.iter().map(|visit| (visit.over.unwrap_or(Instant::from_ns(u64::MAX)), -1));
    let mut steps: Vec<_> = visits.iter().map(|visit| (visit.at, 1)).chain(ends).collect();
    steps.sort_unstable();
    let most = steps.iter().scan(0i32, |now, (_, step)| {
        *now += step;
        Some(*now)
    });
    most.max().unwrap_or(0) as usize
}

fn rate_holds(rate: u32, visits: &[Visit], tally: &mut Tally) {
    for stretch in [1, 10, 100, 1000] {
        for ends in visits.windows(stretch + 1) {
            let time = ends[stretch].at.since(ends[0].at) + BURST;
            let allowed = f64::from(rate) * time.as_secs_f64() + 1.01;
            tally.hold(13, stretch as f64 <= allowed, || format!("{stretch} started in {time:?}, at {rate} a second"));
        }
    }
}

/// Between two looks in which it was frozen all the time.
fn frozen_is_frozen(story: &Story, tally: &mut Tally) {
    for ends in story.ledger.windows(2) {
        let [(from, before, ..), (to, after, ..)] = ends else { unreachable!("two") };
        if after.frozen_ns - before.frozen_ns < to.since(*from).as_nanos() as u64 {
            continue;
        }
        let said = story.bench.judged.iter().zip(&story.bench.samples);
        for (_, sample) in said.filter(|(at, _)| *at > from && *at < to) {
            let is_fall = sample.code.fault() == Fault::Target && sample.health == Health::Down;
            let was_down = || story.was_down(sample, *from);
            tally.hold(10, !is_fall || was_down(), || format!("frozen from {from:?} to {to:?}: {sample:?}"));
        }
    }
}

fn stop_is_clean(story: &Story, tally: &mut Tally) {
    let io = &story.bench.sim.io;
    let left = (story.counters.in_flight, io.in_flight(), io.lanes_busy());
    tally.hold(8, left == (0, 0, 0), || format!("flights, operations, lanes still busy: {left:?}"));
    let took = story.bench.sim.now().since(story.stopped);
    tally.hold(8, !story.weather.is_calm() || took <= STOP_MAX, || format!("stopping took {took:?}"));
}

fn counters_add_up(story: &Story, tally: &mut Tally) {
    for (_, counters, samples, targets) in &story.ledger {
        let open = counters.started - counters.finished() - counters.abandoned;
        tally.hold(12, open <= counters.in_flight, || format!("{open} without an outcome: {counters:?}"));
        let seen = (*samples as u64 + counters.samples_dropped, *targets as u64);
        tally.hold(12, seen == (counters.finished(), counters.targets), || format!("{seen:?}: {counters:?}"));
    }
    let counters = &story.counters;
    let over = counters.finished() + counters.abandoned;
    tally.hold(1, counters.started == over, || format!("started {}, over {over}", counters.started));
    tally.checks[1] += counters.started;
    for code in Code::ALL {
        let samples = story.bench.samples.iter().filter(|sample| sample.code == *code).count() as u64;
        tally.hold(1, samples == counters.outcome(*code), || format!("{code:?}: {samples} samples, {counters:?}"));
    }
    let told = story.bench.transitions.len() as u64;
    tally.hold(12, told == counters.transitions, || format!("{told} changes told: {counters:?}"));
    let repeats = story.bench.sim.io.repeats();
    tally.hold(11, counters.completions_stale == repeats, || format!("{repeats} stale completions: {counters:?}"));
}
