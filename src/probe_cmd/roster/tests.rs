//! Claim: a roster keeps what was read; another file changes what differs and nothing else.
//! Method: small files by hand, and random ones against a list of strings.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

pub(crate) fn sheet() -> Sheet {
    Sheet { settings: Settings::default(), policy: Arc::new(Policy::DEFAULT), group: 0, initial: Health::Unknown }
}

fn roster(policy: Policy, targets: &[&str]) -> Roster {
    let mut roster = Roster::default();
    let sheet = roster.sheet(Sheet { policy: Arc::new(policy), ..sheet() });
    targets.iter().for_each(|t| roster.push(t, None, sheet).expect("it is one"));
    roster.close();
    roster
}

fn shown(roster: &Roster) -> Vec<String> {
    let mut all: Vec<String> = roster.live().map(|row| roster.shown(row).to_owned()).collect();
    all.sort();
    all
}

fn transition(row: u32, id: TargetId) -> Transition {
    let (code, detail) = (Code::L7Status, Detail { number: 503, cert_days: Some(-2) });
    let (from, to) = (Health::Unknown, Health::Down);
    Transition {
        id,
        key: row.into(),
        from,
        to,
        code,
        errno: 0,
        detail,
        rtt_ns: 1_500_000,
        due: ringspan_engine::time::Instant::ZERO,
        streak: 1,
        held: ringspan_engine::health::Held::No,
    }
}

/// A row gives back what was put in, and believes only what is said of its present target.
#[test]
fn a_row_keeps_its_target() {
    let mut roster = Roster::default();
    let sheet = roster.sheet(sheet());
    roster.push("10.0.0.1:80", Some("db-1"), sheet).expect("it is one");
    roster.push("udp://localhost:53?send=x", None, sheet).expect("it is one");
    roster.close();
    assert_eq!((roster.shown(0), roster.url(0)), ("db-1", "10.0.0.1:80"));
    assert_eq!(roster.address(0), Some("10.0.0.1:80".parse().expect("an address")));
    assert_eq!((roster.address(1), roster.host(1)), (None, Some("localhost".into())));
    assert_eq!((roster.check(0).as_str(), roster.check(1).as_str()), ("tcp", "udp"));
    assert_eq!((roster.id(0), roster.belief(0).code), (None, None));
    let id = TargetId(7 << 56 | 9);
    roster.set_id(0, Some(id));
    assert_eq!(roster.on_transition(&transition(0, TargetId(1)), 5), None, "somebody else's");
    assert_eq!(roster.on_transition(&transition(9, id), 5), None, "nobody's");
    assert!(roster.on_transition(&transition(0, id), 5).is_some());
    let belief = roster.belief(0);
    assert_eq!((belief.health, belief.code, belief.since_cs), (Health::Down, Some(Code::L7Status), 5));
    assert_eq!((belief.detail, belief.rtt_us), (Detail { number: 503, cert_days: Some(-2) }, 1500));
    assert_eq!(roster.tally(), [0, 1, 1]);
}

/// Targets that are alike share one check.
#[test]
fn checks_are_shared() {
    let r =
        roster(Policy::DEFAULT, &["udp://10.0.0.1:1?send=x", "10.0.0.1:1", "udp://10.0.0.2:1?send=x", "10.0.0.2:9"]);
    assert_eq!(r.plans.len(), 2);
    let password = roster(Policy::DEFAULT, &["mysql://u:a@10.0.0.1", "mysql://u:b@10.0.0.1"]);
    assert_eq!((password.plans.len(), password.shown(0)), (2, "mysql://u:***@10.0.0.1"));
}

/// Another policy updates, another password replaces, and the rest is left alone.
#[test]
fn steps() {
    let mut old = roster(Policy::DEFAULT, &["10.0.0.1:1", "10.0.0.2:1", "mysql://u:a@10.0.0.3"]);
    (0..3).for_each(|row| old.set_id(row, Some(TargetId(100 + u64::from(row)))));
    let same = roster(Policy::DEFAULT, &["10.0.0.2:1", "10.0.0.1:1", "mysql://u:a@10.0.0.3"]);
    assert_eq!(old.become_like(same), []);
    let password = roster(Policy::DEFAULT, &["10.0.0.1:1", "mysql://u:b@10.0.0.3", "10.0.0.4:1"]);
    assert_eq!(
        old.become_like(password),
        [Step::Remove(TargetId(101)), Step::Remove(TargetId(102)), Step::Add(2), Step::Add(1)]
    );
    assert_eq!(shown(&old), ["10.0.0.1:1", "10.0.0.4:1", "mysql://u:***@10.0.0.3"]);
    let interval = Policy { interval: Duration::from_secs(9), ..Policy::DEFAULT };
    let slower = roster(interval, &["10.0.0.1:1", "mysql://u:b@10.0.0.3", "10.0.0.4:1"]);
    // Only the first is with the engine; the others will be added with the new policy anyway.
    assert_eq!(old.become_like(slower), [Step::Update(0)]);
}

proptest! {
    /// After any number of files the targets are those of the last; the steps of each, applied to a list of what the
    /// engine has, lead there too; and who stays keeps row and name.
    #[test]
    fn any_sequence_of_files(files in prop::collection::vec(prop::collection::vec(0..12u8, 0..12), 1..6)) {
        let text = |files: &[u8]| files.iter().map(|n| format!("10.0.0.{n}:1")).collect::<Vec<_>>();
        let mut roster_now = roster(Policy::DEFAULT, &[]);
        let mut engine: HashMap<TargetId, (u32, String)> = HashMap::new();
        let mut next = 0;
        for file in &files {
            let texts = text(file);
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            for step in roster_now.become_like(roster(Policy::DEFAULT, &texts)) {
                match step {
                    Step::Remove(id) => prop_assert!(engine.remove(&id).is_some()),
                    Step::Add(row) => {
                        next += 1;
                        roster_now.set_id(row, Some(TargetId(next)));
                        engine.insert(TargetId(next), (row, roster_now.shown(row).to_owned()));
                    }
                    Step::Update(_) => prop_assert!(false, "no policy has changed"),
                }
            }
            let mut wanted: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
            wanted.sort();
            prop_assert_eq!(shown(&roster_now), wanted);
            prop_assert_eq!((engine.len(), roster_now.count()), (file.len(), file.len()));
            for (id, (row, text)) in &engine {
                prop_assert_eq!((roster_now.id(*row), roster_now.shown(*row)), (Some(*id), text.as_str()));
            }
        }
    }
}
