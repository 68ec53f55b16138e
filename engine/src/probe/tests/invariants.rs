//! What must hold in every world, sentence by sentence, and the machine that tries worlds until one of them breaks.
//!
//! | No. | Invariant | Where |
//! |----:|-----------|-------|
//! |  1 | Each probe started has exactly one outcome, unless its target was removed or the engine stopped. | always |
//! |  2 | A healthy target, one that answers within a quarter of its timeout, is never blamed, whatever the prober suffers; nor is one whose answer was there in time when the prober came late to read it. | always |
//! |  3 | A dead target is down within `fall` intervals, a timeout and the ticks; one interval later where mass falls are held. | calm, unless frozen |
//! |  4 | No lane carries two calls, and no byte of one call reaches another. | always |
//! |  5 | Never more probes in flight than allowed, in all and towards one network. | always |
//! |  6 | Missed slots are counted and never made up for; each probe starts for the slot that the schedule gives it. | plain intervals |
//! |  7 | Health changes are those that a naive reading of the outcomes gives: each once, in order, none lost. | always |
//! |  8 | After a stop everything is idle, within 2 s: no lane busy, no operation in flight. | always; 2 s: calm |
//! |  9 | A timeout is judged at its time, within a tick: never before, and nothing is judged later. | calm |
//! | 10 | While verdicts are frozen no target turns down. | always |
//! | 11 | Stale completions change nothing, and each is counted. | always; change nothing: calm |
//! | 12 | The counters add up: started = outcomes + abandoned + in flight; samples and targets are as many as counted. | always |
//! | 13 | Never more probes started in any stretch of time than the rates allow, in all and towards one network. | always |
//! | 14 | A target that is due is probed at once when there is room, and no port or descriptor was missing. | calm |
//! | 15 | A removed target is silent. | always |
//! | 16 | A target with a count has that many outcomes, those the prober spoilt left out, and the last says so. | always |
//! | 17 | The same seed tells the same story. | always |
//!
//! "Calm" is one in five worlds: see [`Weather`](super::story::Weather). `SIM_SEED=n` replays one seed,
//! `RINGSPAN_SEEDS=10000` tries so many; `scripts/simulate` does so on all cores, and `scripts/mutants` shows for each
//! sentence that breaking the code it guards is noticed.

use super::story::Story;
use super::verify::verify;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Worlds tried where nobody asks for more: some seconds.
const SEEDS: u64 = 300;
/// How often a rogue repeats a completion, where there is one.
const ROGUE: f64 = 0.05;
/// Every so many worlds are told twice.
const TWICE: u64 = 16;

/// Worlds that break something new before it is enough.
const BROKEN_MAX: u32 = 8;

/// The table's sentences, in few words, by number.
pub(crate) const SENTENCES: [&str; 18] = [
    "no panic",
    "one outcome for each probe",
    "a healthy target is never blamed",
    "a dead target is found in time",
    "calls and lanes do not mix",
    "never more in flight than allowed",
    "missed slots are counted, not made up for",
    "health changes as rise and fall have it",
    "after a stop all is idle",
    "timeouts are judged at their time",
    "frozen verdicts do not change",
    "stale completions change nothing",
    "the counters add up",
    "never more started than the rate allows",
    "who is due is probed at once",
    "a removed target is silent",
    "a count is kept",
    "a seed tells one story",
];

/// How often each sentence was checked, and where it did not hold.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) checks: [u64; SENTENCES.len()],
    /// By number, the first of each: the seed, and what was found. 0: something else went wrong.
    broken: BTreeMap<usize, (u64, String)>,
    seed: u64,
}

impl Tally {
    /// Whether the sentence `number` holds here is noted.
    pub(crate) fn hold(&mut self, number: usize, holds: bool, why: impl FnOnce() -> String) {
        self.checks[number] += 1;
        if !holds {
            self.broken.entry(number).or_insert_with(|| (self.seed, why()));
        }
    }

    /// A panic: the simulator's rules for lanes are the fourth sentence.
    fn on_panic(&mut self, panic: &(dyn Any + Send)) {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned())).unwrap_or_default();
        let number = if said.contains("lane rule: ") { 4 } else { 0 };
        self.broken.entry(number).or_insert((self.seed, format!("panic: {said}")));
    }

    fn add(&mut self, other: Tally) {
        self.checks.iter_mut().zip(other.checks).for_each(|(sum, checks)| *sum += checks);
        for (number, found) in other.broken {
            self.broken.entry(number).or_insert(found);
        }
    }
}

/// Tells the story of one seed and checks every sentence on it.
fn try_seed(seed: u64, tally: &mut Tally) {
    let rogue = if (seed / 5).is_multiple_of(2) { 0.0 } else { ROGUE };
    let story = Story::tell(seed, rogue);
    verify(&story, tally);
    if seed.is_multiple_of(TWICE) {
        tally.hold(17, story.said() == Story::tell(seed, rogue).said(), || "told twice, not the same".to_owned());
    }
    if rogue > 0.0 && story.weather.is_calm() {
        let honest = Story::tell(seed, 0.0);
        tally.hold(11, story.said() == honest.said(), || "not as without stale completions".to_owned());
    }
}

/// The seeds to try: one, if the environment says so.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGSPAN_SEEDS").unwrap_or(SEEDS),
    }
}

/// Every sentence of the table holds in every world.
#[test]
fn invariants_hold() {
    let seeds = seeds();
    let (next, broken) = (AtomicU64::new(seeds.start), AtomicU32::new(0));
    let total = Mutex::new(Tally::default());
    let work = || {
        let mut tally = Tally::default();
        // Some more worlds after the first broken one: which other sentences they break tells where to look.
        while broken.load(Ordering::Relaxed) < BROKEN_MAX {
            tally.seed = next.fetch_add(1, Ordering::Relaxed);
            if tally.seed >= seeds.end {
                break;
            }
            let found = tally.broken.len();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| try_seed(tally.seed, &mut tally))) {
                tally.on_panic(&*panic);
            }
            broken.fetch_add(u32::from(tally.broken.len() > found), Ordering::Relaxed);
        }
        total.lock().expect("no panic while it is held").add(tally);
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().expect("no panic while it is held");
    for (number, checks) in total.checks.iter().enumerate().skip(1) {
        println!("{number:3}  {:<44} {checks:>12} checks", SENTENCES[number]);
    }
    for (number, (seed, found)) in &total.broken {
        println!("broken: {number} ({}), replay with SIM_SEED={seed}: {found}", SENTENCES[*number]);
    }
    assert!(total.broken.is_empty(), "broken: {:?}", total.broken.keys());
}
