//! The copy against the table, over carriers that lose, delay and repeat: it is always a state the table once had, it
//! never goes back, and once the carriers are quiet it is equal.

use super::*;
use proptest::prelude::*;

const BACKENDS: u16 = 4;

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(1_000_000 + ms)
}

fn state(health: Health, ms: u64) -> BackendHealth {
    let code = match health {
        Health::Up => Some(Code::L4Ok),
        Health::Down => Some(Code::L4Refused),
        Health::Unknown => None,
    };
    BackendHealth { health, code, since: at(ms), rtt_us: (health == Health::Up).then_some(120) }
}

/// What must be equal: `since` travels as an age, so only to the millisecond and the delay.
type Essence = Vec<(Health, Option<Code>, Option<u32>)>;

fn essence(all: &[BackendHealth]) -> Essence {
    all.iter().map(|s| (s.health, s.code, s.rtt_us)).collect()
}

/// A snapshot first, then changes; ages become points in time on the reader's own clock.
#[test]
fn snapshot_then_changes() {
    let mut source = HealthSource::new(BACKENDS, at(0));
    source.set(1, state(Health::Up, 5));
    assert!(source.next_message(at(6)).is_none(), "nobody listens");
    source.on_welcome(7);
    let mut view = HealthView::new(7, BACKENDS, at(500));
    let snapshot = source.next_message(at(10)).unwrap();
    let Ok(Heard::Changes(changes)) = view.on_message(&snapshot, at(510)) else { panic!() };
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (changes[0].backend, changes[0].before.health, changes[0].after.health),
        (1, Health::Unknown, Health::Up)
    );
    assert_eq!(changes[0].after.since, at(505));
    source.set(1, state(Health::Down, 20));
    source.set(2, state(Health::Up, 21));
    let both = source.next_message(at(22)).unwrap();
    let Ok(Heard::Changes(changes)) = view.on_message(&both, at(530)) else { panic!() };
    assert_eq!(changes.iter().map(|c| c.backend).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(changes[0].after.code, Some(Code::L4Refused));
    assert!(source.next_message(at(23)).is_none());
    assert_eq!(view.on_message(&both, at(540)), Ok(Heard::Ignored), "a repeat");
    let lost = view.on_link_lost(at(600));
    assert_eq!(lost.len(), 2);
    assert!(view.backends().iter().all(|s| s.health == Health::Unknown));
    source.set(3, state(Health::Up, 30));
    let late = source.next_message(at(31)).unwrap();
    assert_eq!(view.on_message(&late, at(610)), Ok(Heard::Ignored), "said before the loss, heard after it");
}

/// A gap is asked about once, and the snapshot closes it.
#[test]
fn a_gap_is_asked_about() {
    let mut source = HealthSource::new(BACKENDS, at(0));
    let mut view = HealthView::new(1, BACKENDS, at(0));
    source.on_welcome(1);
    drop(source.next_message(at(0)));
    source.set(0, state(Health::Up, 1));
    let first = source.next_message(at(1)).unwrap();
    let Ok(Heard::Gap(resync)) = view.on_message(&first, at(1)) else { panic!() };
    source.set(0, state(Health::Down, 2));
    let second = source.next_message(at(2)).unwrap();
    assert_eq!(view.on_message(&second, at(2)), Ok(Heard::Ignored));
    source.on_message(&resync).unwrap();
    let snapshot = source.next_message(at(3)).unwrap();
    assert!(matches!(view.on_message(&snapshot, at(3)), Ok(Heard::Changes(_))));
    assert_eq!(essence(view.backends()), essence(source.backends()));
    assert_eq!(view.on_message(&first, at(4)), Ok(Heard::Ignored), "older than the snapshot");
    // The same with a copy that knows something: number 3 without number 2.
    source.set(1, state(Health::Up, 4));
    drop(source.next_message(at(4)));
    source.set(2, state(Health::Up, 5));
    let third = source.next_message(at(5)).unwrap();
    let before = essence(view.backends());
    assert!(matches!(view.on_message(&third, at(5)), Ok(Heard::Gap(_))));
    assert_eq!(essence(view.backends()), before);
    // A resync for a session that is over asks for nothing.
    source.on_welcome(2);
    drop(source.next_message(at(5)));
    source.on_message(&resync).unwrap();
    assert!(source.next_message(at(6)).is_none());
}

/// A table that changes faster than the carrier takes it is told as a snapshot, and memory stays bounded.
#[test]
fn a_flood_becomes_a_snapshot() {
    let mut source = HealthSource::new(BACKENDS, at(0));
    let mut view = HealthView::new(1, BACKENDS, at(0));
    source.on_welcome(1);
    view.on_message(&source.next_message(at(0)).unwrap(), at(0)).unwrap();
    for n in 0..10_000 {
        source.set(n % BACKENDS, state(if n % 3 == 0 { Health::Up } else { Health::Down }, n.into()));
        assert!(source.pending.len() <= PENDING_MAX);
    }
    let mut messages = 0;
    while let Some(payload) = source.next_message(at(20_000)) {
        assert!(payload.len() < 64 * 1024);
        assert!(matches!(view.on_message(&payload, at(20_000)), Ok(Heard::Changes(_))));
        messages += 1;
    }
    assert_eq!((messages, essence(view.backends())), (1, essence(source.backends())));
}

/// What breaks the protocol is an error, in both directions.
#[test]
fn nonsense_is_an_error() {
    let mut view = HealthView::new(1, 2, at(0));
    let mut source = HealthSource::new(2, at(0));
    source.on_welcome(1);
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"resync":{"generation":1}}"#,
        r#"{"snapshot":{"generation":1,"sequence":1,"backends":[]}}"#,
        r#"{"snapshot":{"generation":1,"sequence":1,"backends":[{"backend":1,"health":"up","age_ms":0},{"backend":1,"health":"up","age_ms":0}]}}"#,
        r#"{"changes":{"generation":1,"first":1,"changes":[{"backend":2,"health":"up","age_ms":0}]}}"#,
        r#"{"changes":{"generation":1,"first":-1,"changes":[]}}"#,
        r#"{"snapshot":{"generation":1,"sequence":18446744073709551615,"backends":[]}}"#,
    ] {
        assert!(view.on_message(bad.as_bytes(), at(0)).is_err(), "{bad}");
    }
    assert!(source.on_message(&Message::Snapshot { generation: 1, sequence: 0, backends: vec![] }.encode()).is_err());
    assert!(source.on_message(b"garbage").is_err());
    // Extremes are only numbers; a health nobody knows is not up.
    let far = r#"{"snapshot":{"generation":1,"sequence":9223372036854775807,"backends":[{"backend":0,"health":"sparkling","code":"L9","age_ms":18446744073709551615},{"backend":1,"health":"up","age_ms":0}],"x":1}}"#;
    assert!(matches!(view.on_message(far.as_bytes(), at(0)), Ok(Heard::Changes(_))));
    assert_eq!(view.backends()[0].health, Health::Unknown);
    let first = r#"{"changes":{"generation":1,"first":0,"changes":[]}}"#;
    assert_eq!(view.on_message(first.as_bytes(), at(0)), Ok(Heard::Ignored));
}

#[derive(Clone, Debug)]
enum Step {
    /// The prober changes its mind.
    Set(u16, u8),
    /// The agent sends what it has.
    Send,
    /// The oldest message under way arrives, on carrier 0 or 1.
    Arrive(bool),
    /// A carrier dies: of what is under way the first so many still arrive some time (the bridge reads late), the rest
    /// never. The feed moves to the other one.
    CarrierLost(bool, usize),
    /// The whole link dies; what was under way may still arrive (a late read); a new session begins.
    Reconnect,
    /// The agent process is replaced by a new one.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..BACKENDS, 0u8..3).prop_map(|(b, h)| Step::Set(b, h)),
        3 => Just(Step::Send),
        5 => any::<bool>().prop_map(Step::Arrive),
        1 => (any::<bool>(), 0usize..4).prop_map(|(which, arrive)| Step::CarrierLost(which, arrive)),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

/// The table's states by (process, sequence), two carriers with what is on them, and the copy.
struct World {
    source: HealthSource,
    view: HealthView,
    carriers: [VecDeque<Vec<u8>>; 2],
    feed_on: usize,
    generation: u64,
    /// The state after each sequence of the current process; the first is the state at its start.
    history: Vec<Essence>,
    ms: u64,
}

impl World {
    fn new() -> World {
        let mut world = World {
            source: HealthSource::new(BACKENDS, at(0)),
            view: HealthView::new(1, BACKENDS, at(0)),
            carriers: Default::default(),
            feed_on: 0,
            generation: 1,
            history: Vec::new(),
            ms: 0,
        };
        world.source.on_welcome(1);
        world.history.push(essence(world.source.backends()));
        world
    }

    fn run(&mut self, step: Step) {
        self.ms += 1;
        match step {
            Step::Set(backend, health) => {
                let health = [Health::Up, Health::Down, Health::Unknown][usize::from(health)];
                self.source.set(backend, state(health, self.ms));
                self.history.push(essence(self.source.backends()));
            }
            Step::Send => {
                if let Some(payload) = self.source.next_message(at(self.ms)) {
                    self.carriers[self.feed_on].push_back(payload);
                }
            }
            Step::Arrive(which) => {
                if let Some(payload) = self.carriers[usize::from(which)].pop_front() {
                    self.hear(&payload);
                }
            }
            Step::CarrierLost(which, arrive) => {
                self.carriers[usize::from(which)].truncate(arrive);
                if self.feed_on == usize::from(which) {
                    self.feed_on = 1 - self.feed_on;
                    self.source.on_welcome(self.generation);
                }
            }
            Step::Reconnect | Step::Restart => {
                if matches!(step, Step::Restart) {
                    self.source = HealthSource::new(BACKENDS, at(self.ms));
                    self.history = vec![essence(self.source.backends())];
                }
                self.generation += 1;
                self.source.on_link_lost();
                self.view = HealthView::new(self.generation, BACKENDS, at(self.ms));
                self.source.on_welcome(self.generation);
            }
        }
    }

    fn hear(&mut self, payload: &[u8]) {
        let before = self.view.sequence;
        match self.view.on_message(payload, at(self.ms)).expect("the agent keeps to the protocol") {
            Heard::Gap(resync) => self.source.on_message(&resync).unwrap(),
            Heard::Changes(changes) => {
                for change in &changes {
                    assert_ne!(change.before, change.after);
                }
            }
            Heard::Ignored => assert_eq!(self.view.sequence, before),
        }
        assert!(self.view.sequence >= before, "went back");
        match self.view.sequence {
            Some(n) => assert_eq!(essence(self.view.backends()), self.history[n as usize], "never was so"),
            None => assert!(self.view.backends().iter().all(|s| s.health == Health::Unknown)),
        }
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.run(Step::Send);
            let arrived = self.carriers.iter().any(|carrier| !carrier.is_empty());
            self.run(Step::Arrive(false));
            self.run(Step::Arrive(true));
            if !arrived {
                return;
            }
        }
        panic!("does not settle");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_copy_follows_the_table(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        world.settle();
        prop_assert_eq!(essence(world.view.backends()), essence(world.source.backends()));
    }

    /// Bytes of any kind are an error or ignored, and leave what is known alone.
    #[test]
    fn garbage_changes_nothing(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut world = World::new();
        world.run(Step::Set(1, 0));
        world.settle();
        let before = world.view.backends().to_vec();
        prop_assert!(world.view.on_message(&payload, at(9)).is_err());
        prop_assert!(world.source.on_message(&payload).is_err());
        prop_assert_eq!(world.view.backends(), &before[..]);
    }
}
