//! `bench fairness`: does a visitor suffer from others?
//! Three questions. (1) 99 busy streams with and without one more whose receiver never reads, by turns, both ways: what
//! do the 99 keep? (2) Eight kept streams with a small request every 20 ms each, with and without four bulk streams
//! beside them: how much later is the answer? From when it was due, so that one that waits makes the next one late too.
//! (3) The same where bulk is held back by its readers and leaves half of the machine idle, so that who waits, waits for
//! the tunnel and not for a core.

use crate::probe::Common;
use crate::process::Failure;
use crate::report::{Goal, Section};
use crate::roles::{Plan, Way, echo_once, in_a_child};
use crate::stage::{AUTO, AUTO_TLS, FRP, MUX, NOBODY, RATHOLE, Running, Stage, Who, until_ready};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// One round of a second: does everything run?
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    who: Who,
}

const BUSY: usize = 99;
const BULK: usize = 4;
const ASKERS: u32 = 8;
/// What each bulk stream's reader takes where it is held back: 1 Gbit/s.
const HELD_BACK: u32 = 125_000_000;

const KEPT_DOWN: &str = "down: kept beside a stalled one";
const KEPT_UP: &str = "up: kept beside a stalled one";
const LATER: &str = "p99 loaded / unloaded";
const LATER_HELD: &str = "p99 held back / unloaded";

/// All of them.
///
/// # Errors
/// A contender does not work; with its log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let stage = Stage::new(&args.who, common, false);
    let (rounds, seconds) = if args.short { (1, 1.0) } else { (args.rounds, args.seconds) };
    let columns = [
        ("down: Gbit/s of 99", 2),
        (KEPT_DOWN, 3),
        ("least share", 2),
        ("up: Gbit/s of 99", 2),
        (KEPT_UP, 3),
        ("least share ", 2),
        ("broken", 0),
    ];
    let question = "what do 99 busy streams keep when one more never reads?";
    let mut stalled = Section::new("fairness-stalled", question, &columns);
    let columns = [
        ("p50 us", 0),
        ("p99 us", 0),
        ("p50 us loaded", 0),
        ("p99 us loaded", 0),
        (LATER, 2),
        ("bulk Gbit/s", 2),
        ("p99 us held back", 0),
        (LATER_HELD, 2),
        ("Gbit/s held back", 2),
    ];
    let question = format!(
        "how late are small requests, {ASKERS} every 20 ms, beside {BULK} bulk streams that take all there is, or are \
         held back to 1 Gbit/s each?"
    );
    let mut small = Section::new("fairness-small", question, &columns);
    let everybody = [NOBODY, MUX, AUTO, AUTO_TLS, RATHOLE, FRP];
    let contenders = stage.contenders(&everybody, &mut stalled);

    let backend = stage.port(3);
    let folder = stage.scratch("backend")?;
    let _backend = stage.load("backend", &["roles", &backend.to_string()], backend, folder.path())?;
    for round in 0..rounds {
        for &(name, contender) in &contenders {
            eprintln!("fairness: round {} of {rounds}, {name}", round + 1);
            // Each question on a fresh one: who breaks at the first is still asked the second.
            let ready = |running: &Running| until_ready(name, || echo_once(running.entry));
            let found = stage.with(name, contender, backend, |running, _| {
                ready(running).and_then(|()| beside_a_stalled_one(running, seconds))
            });
            stalled.record_or_fail(name, found);
            let found = stage.with(name, contender, backend, |running, _| {
                ready(running).and_then(|()| beside_bulk(running, seconds))
            });
            small.record_or_fail(name, found);
        }
    }
    for ours in [MUX, AUTO, AUTO_TLS] {
        stalled.promise(ours, KEPT_DOWN, Goal::AtLeast(0.95));
        stalled.promise(ours, KEPT_UP, Goal::AtLeast(0.95));
        stalled.promise(ours, "broken", Goal::AtMost(0.0));
        small.promise(ours, LATER, Goal::AtMost(5.0));
        small.promise(ours, LATER_HELD, Goal::AtMost(5.0));
    }
    small.note("\"no tunnel\" is what the machine does to it: bulk and small share two cores with everything");
    Ok(vec![stalled, small])
}

fn beside_a_stalled_one(running: &Running, seconds: f64) -> Result<[f64; 7], Failure> {
    let mut figures = Vec::new();
    let mut broken = 0;
    for way in [Way::Down, Way::Up] {
        let plan = Plan {
            entry: running.entry,
            way,
            busy: BUSY,
            busy_rate: None,
            stalled: 0,
            askers: 0,
            warm_up: 1.0,
            seconds,
        };
        // Before and after: what drifts meanwhile is nobody's fault.
        let before = in_a_child(&plan)?;
        let beside = in_a_child(&Plan { stalled: 1, ..plan.clone() })?;
        let after = in_a_child(&plan)?;
        let alone = (before.gbit_per_s(seconds) + after.gbit_per_s(seconds)) / 2.0;
        figures.extend([alone, beside.gbit_per_s(seconds) / alone, beside.least_share()]);
        broken += before.broken + beside.broken + after.broken;
    }
    figures.push(broken as f64);
    Ok(figures.try_into().expect("twice three and one"))
}

fn beside_bulk(running: &Running, seconds: f64) -> Result<[f64; 9], Failure> {
    let seconds = seconds * 2.0;
    let plan = Plan {
        entry: running.entry,
        way: Way::Down,
        busy: 0,
        busy_rate: None,
        stalled: 0,
        askers: ASKERS,
        warm_up: 1.0,
        seconds,
    };
    let alone = in_a_child(&plan)?;
    let loaded = in_a_child(&Plan { busy: BULK, ..plan.clone() })?;
    let held = in_a_child(&Plan { busy: BULK, busy_rate: Some(HELD_BACK), ..plan.clone() })?;
    let [p50, p99, p50_loaded, p99_loaded, p99_held] =
        [alone.p50_us, alone.p99_us, loaded.p50_us, loaded.p99_us, held.p99_us].map(|us| us as f64);
    let (bulk, bulk_held) = (loaded.gbit_per_s(seconds), held.gbit_per_s(seconds));
    let later = |late: f64| late / p99.max(1.0);
    Ok([p50, p99, p50_loaded, p99_loaded, later(p99_loaded), bulk, p99_held, later(p99_held), bulk_held])
}
