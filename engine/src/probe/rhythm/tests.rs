//! Sentences about rhythm: the table of states, slots that keep their grid, jitter within its bounds, and Nacos' formula
//! against values worked out by hand.

use super::*;
use crate::health::Thresholds;
use crate::outcome::Fault;
use proptest::prelude::*;

fn verdict(health: Health, against: u8) -> Verdict {
    let mut verdict = Verdict::new(health);
    let code = if health == Health::Up { Code::L4Timeout } else { Code::L4Ok };
    let many = std::num::NonZeroU8::new(255).expect("not 0");
    (0..against).for_each(|_| assert_eq!(verdict.on_outcome(code, Thresholds { rise: many, fall: many }), None));
    verdict
}

/// Every belief, with and without outcomes against it, with every interval given and not.
#[test]
fn every_state_has_its_interval() {
    use Health::{Down, Unknown, Up};
    use Tempo::{FromSlot, Grid};
    let secs = Duration::from_secs;
    let plain = Policy { interval: secs(5), ..Policy::DEFAULT };
    let three = Policy { interval_fast: Some(secs(1)), interval_down: Some(secs(10)), ..plain };
    let back = Policy { backoff_max: 10, ..plain };
    let both = Policy { backoff_max: 3, ..three };
    let table = [
        (plain, Up, 0, 0, Grid(5000)),
        (plain, Up, 1, 0, Grid(5000)),
        (plain, Unknown, 0, 0, Grid(5000)),
        (plain, Down, 0, 9, Grid(5000)),
        (three, Up, 0, 0, Grid(5000)),
        (three, Up, 2, 0, FromSlot(1000)),
        (three, Unknown, 0, 0, FromSlot(1000)),
        (three, Down, 0, 0, FromSlot(10_000)),
        (three, Down, 0, 200, FromSlot(10_000)),
        (three, Down, 1, 3, FromSlot(1000)),
        (back, Down, 0, 0, Grid(5000)),
        (back, Down, 0, 1, FromSlot(10_000)),
        (back, Down, 0, 3, FromSlot(40_000)),
        (back, Down, 0, 4, FromSlot(50_000)),
        (back, Down, 0, 255, FromSlot(50_000)),
        (back, Down, 1, 4, Grid(5000)),
        (back, Up, 0, 4, Grid(5000)),
        (both, Down, 0, 1, FromSlot(20_000)),
        (both, Down, 0, 2, FromSlot(30_000)),
    ];
    for (policy, health, against, failures, tempo) in table {
        let says = Tempo::of(&policy, verdict(health, against), failures, None);
        assert_eq!(says, tempo, "{health:?} {against} against, {failures} failures");
    }
    assert_eq!(Tempo::of(&three, verdict(Down, 0), 9, Some(1234)), FromSlot(1234), "adaptive goes before all");
    let most = Policy { interval_down: Some(INTERVAL_MAX), backoff_max: 255, ..plain };
    assert_eq!(Tempo::of(&most, verdict(Down, 0), 255, None), FromSlot(64 * 3_600_000));
}

proptest! {
    /// However a target's tempo changes and however late its probes are: slots are whole milliseconds, later than the
    /// last, not before `now`; what is skipped is counted; on the grid, without jitter, each is a slot of the grid and
    /// no further than one interval from the last; with jitter, no further than the interval and twice the jitter.
    #[test]
    fn slots_follow_their_tempo(
        hash: u64,
        jitter_percent in prop_oneof![Just(0u8), 0..=50u8],
        start_ms in 1..1u64 << 40,
        steps in prop::collection::vec((any::<bool>(), 100..10_000u32, 0..30_000_000_000u64), 1..50),
    ) {
        let mut place = Place { slot: Instant::from_ns(start_ms * MS), hash, jitter_percent };
        for (on_grid, ms, delay) in steps {
            let tempo = if on_grid { Tempo::Grid(ms) } else { Tempo::FromSlot(ms) };
            let (interval, before) = (u64::from(ms) * MS, place.slot.ns());
            let now = Instant::from_ns(before + delay);
            let (next, missed) = place.next(tempo, now);
            let reach = u64::from(ms) * u64::from(jitter_percent) / 100 * MS;
            prop_assert!(next > place.slot && next >= now);
            prop_assert_eq!(next.ns() % MS, 0);
            prop_assert!(next.ns() <= before + interval * (missed + 1) + 2 * reach);
            prop_assert!(missed == 0 || now.ns() + interval > before + missed * interval, "skipped what had not passed");
            if on_grid && jitter_percent == 0 {
                prop_assert_eq!(next.ns() % interval, hash % u64::from(ms) * MS);
                prop_assert!(next.ns() > before + missed * interval);
            }
            if !on_grid && jitter_percent == 0 {
                prop_assert_eq!(next.ns(), before + interval * (missed + 1));
            }
            place.slot = next;
        }
    }

    /// With jitter alone, each slot stays with its place on the grid for ever: no drift, none left out, none twice.
    #[test]
    fn jitter_does_not_drift(hash: u64, ms in 100..10_000u32, jitter_percent in 1..=50u8, start in 1..1u64 << 40) {
        let (interval, phase) = grid(ms, hash);
        let mut place = Place { slot: Instant::ZERO, hash, jitter_percent };
        place.slot = place.first(Tempo::Grid(ms), Instant::from_ns(start));
        let (first, mut moved) = (place.slot.ns(), 0);
        prop_assert_eq!(first % interval, phase);
        for k in 1..200u64 {
            let (next, missed) = place.next(Tempo::Grid(ms), place.slot);
            prop_assert_eq!(missed, 0);
            let off = next.ns().abs_diff(first + k * interval);
            prop_assert!(off <= interval * u64::from(jitter_percent) / 100);
            moved += u32::from(off > 0);
            place.slot = next;
        }
        prop_assert!(moved > 100, "slots are moved");
    }
}

/// The table of Nacos' three checkers, worked out by hand from
/// `clamp(factor x normalized + (1 - factor) x rt, min, max)`: settling, growth per timeout (x 1.25, 1.15, 1.35), the
/// jump after a refusal, and both ends.
#[test]
fn nacos_formula() {
    let ms = Duration::from_millis;
    let (ok, out, refused, status) = (Code::L4Ok, Code::L4Timeout, Code::L4Refused, Code::L7Status);
    let table = [
        // TCP: 0.75 x 4000 + 0.25 x 200 = 3050
        (Adaptive::NACOS_TCP, 4000, ok, 0, ms(200), 3050),
        // 0.75 x 1001 + 0.25 x 3 = 751.5 → min
        (Adaptive::NACOS_TCP, 1001, ok, 0, ms(3), 1000),
        // 0.75 x 1333 + 0.25 x 10 = 1002.25 → rounded down
        (Adaptive::NACOS_TCP, 1333, ok, 0, ms(10), 1002),
        // a timeout: 0.75 n + 0.25 x 2n = 1.25 n
        (Adaptive::NACOS_TCP, 1000, out, 0, ms(500), 1250),
        (Adaptive::NACOS_TCP, 1250, out, 0, ms(500), 1562),
        (Adaptive::NACOS_TCP, 4500, out, 0, ms(500), 5000),
        // a refusal: 0.75 x 1000 + 0.25 x 5000 = 2000
        (Adaptive::NACOS_TCP, 1000, refused, 0, ms(1), 2000),
        // recovery of a long-dead one: 5000, 3750 + 0.25 x 0 = 3750, 2812.5
        (Adaptive::NACOS_TCP, 5000, ok, 0, ms(0), 3750),
        (Adaptive::NACOS_TCP, 3750, ok, 0, ms(0), 2812),
        // HTTP: 0.85 x 5000 = 4250; 503 and 302 are busy: 1.15 n; 404: 0.85 x 1000 + 0.15 x 5000 = 1600
        (Adaptive::NACOS_HTTP, 5000, Code::L7Ok, 0, ms(0), 4250),
        (Adaptive::NACOS_HTTP, 1000, status, 503, ms(9), 1150),
        (Adaptive::NACOS_HTTP, 1000, status, 302, ms(9), 1150),
        (Adaptive::NACOS_HTTP, 1000, status, 404, ms(9), 1600),
        (Adaptive::NACOS_HTTP, 500, Code::L7Ok, 200, ms(1), 500),
        // MySQL: 1.35 n per timeout, held between 2000 and 3000; an SQL error: 0.65 x 2000 + 0.35 x 5000 = 3050 → 3000
        (Adaptive::NACOS_MYSQL, 2000, Code::L7Timeout, 0, ms(500), 2700),
        (Adaptive::NACOS_MYSQL, 2700, Code::L7Timeout, 0, ms(500), 3000),
        (Adaptive::NACOS_MYSQL, 3000, Code::L7Ok, 0, ms(20), 2000),
        (Adaptive::NACOS_MYSQL, 2000, Code::L7Response, 1045, ms(5), 3000),
        // the prober's own trouble says nothing
        (Adaptive::NACOS_TCP, 1777, Code::SockErr, 0, ms(0), 1777),
        (Adaptive::NACOS_TCP, 1777, Code::Late, 0, ms(900), 1777),
    ];
    for (adaptive, before, code, number, rtt, after) in table {
        assert_eq!(adaptive.next_ms(before, code, number, rtt), after, "{before} ms, {code:?} {number}, {rtt:?}");
    }
}

/// The first interval is 2000 to 7000 ms with a mean of about 3250, as two nested draws give it; and a healthy TCP
/// target settles at one probe a second.
#[test]
fn nacos_beginning_and_end() {
    let firsts: Vec<u32> = (0..100_000).map(|target| Adaptive::NACOS_TCP.first_ms(mix(target))).collect();
    assert!(firsts.iter().all(|ms| (2000..7000).contains(ms)));
    let mean = firsts.iter().map(|ms| f64::from(*ms)).sum::<f64>() / firsts.len() as f64;
    assert!((3230.0..3270.0).contains(&mean), "{mean}");
    let (mut ms, mut probes) = (firsts[0], 0);
    while ms > 1000 {
        ms = Adaptive::NACOS_TCP.next_ms(ms, Code::L4Ok, 0, Duration::from_millis(1));
        probes += 1;
    }
    assert!(probes <= 7, "{probes}");
}

/// Every code tells the interval something, or nothing where the prober is to blame.
#[test]
fn every_code_is_read() {
    for code in Code::ALL {
        let next = Adaptive::NACOS_TCP.next_ms(2000, *code, 0, Duration::from_millis(400));
        let expected = match code.fault() {
            Fault::Nobody => 1600,
            Fault::Prober => 2000,
            Fault::Target if code.as_str().ends_with("TOUT") => 2500,
            Fault::Target => 2750,
        };
        assert_eq!(next, expected, "{code:?}");
    }
}
