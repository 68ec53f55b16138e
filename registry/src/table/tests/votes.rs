//! Instances that others are asked to look at.

use super::*;
use crate::panel::{Ballot, QUORUM_KEY, VANTAGE_KEY};

/// The index as it should be.
pub(super) fn watched(table: &Table) -> BTreeMap<Name, BTreeSet<(ServiceKey, InstanceId)>> {
    let mut all = BTreeMap::<Name, BTreeSet<(ServiceKey, InstanceId)>>::new();
    for (key, _, entries) in table.services() {
        for entry in entries {
            for name in entry.ballot.iter().flat_map(|b: &Arc<Ballot>| b.agents()) {
                all.entry(name.clone()).or_default().insert((key.clone(), entry.record.id.clone()));
            }
        }
    }
    all
}

const EDGE: &str = "edge-0a1b2c3d";

fn seen_by(vantages: &str, quorum: &str, ephemeral: bool) -> Command {
    let metadata = [(VANTAGE_KEY, vantages), (QUORUM_KEY, quorum)].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let instance = Instance { ephemeral, metadata: metadata.into(), ..Instance::new(id(1)) };
    Command::Register { service: service("web"), instance }
}

fn up(agent: &str, session: u64) -> Command {
    Command::AgentUp { agent: Name::from(agent), session, exposed: Vec::new() }
}

fn gone(agent: &str, session: u64) -> Command {
    Command::AgentGone { agent: Name::from(agent), session }
}

fn witnessed(agent: &str, session: u64, health: Health) -> Command {
    Command::Witnessed { agent: Name::from(agent), session, deltas: vec![delta("web", id(1), health)] }
}

fn heard(health: Health) -> Command {
    Command::Heard { deltas: vec![delta("web", id(1), health)] }
}

fn now(table: &Table) -> (Health, &'static str) {
    health(table, &id(1)).map(|(h, r)| (h, r.as_str())).expect("it is there")
}

/// What an agent alone can see is as it says, unknown as soon as it is gone, and nobody else's word counts.
#[test]
fn an_agent_alone_decides() {
    let mut table = Table::default();
    table.apply(at(0), seen_by("agent:edge", "1", false)).unwrap();
    assert_eq!(now(&table), (Health::Unknown, "AGENTGONE"));
    table.apply(at(1), heard(Health::Up)).unwrap();
    assert_eq!(now(&table).0, Health::Unknown, "the registry was not asked");
    table.apply(at(2), up(EDGE, 7)).unwrap();
    assert_eq!(now(&table), (Health::Unknown, "UNSEEN"));
    table.apply(at(3), up("other-0a1b2c3d", 1)).unwrap();
    table.apply(at(3), witnessed("other-0a1b2c3d", 1, Health::Up)).unwrap();
    assert_eq!(now(&table).0, Health::Unknown, "another agent was not asked");
    table.apply(at(4), witnessed(EDGE, 7, Health::Up)).unwrap();
    assert_eq!(now(&table).0, Health::Up);
    table.apply(at(5), witnessed(EDGE, 7, Health::Down)).unwrap();
    assert_eq!(now(&table), (Health::Down, "L4CON"));
    let stale = table.apply(at(6), witnessed(EDGE, 6, Health::Up)).unwrap_err();
    assert!(matches!(stale, Refusal::StaleSession { latest: 7, .. }));
    table.apply(at(6), witnessed(EDGE, 7, Health::Up)).unwrap();
    table.apply(at(7), gone(EDGE, 7)).unwrap();
    assert_eq!(now(&table), (Health::Unknown, "AGENTGONE"));
    assert!(table.apply(at(8), witnessed(EDGE, 7, Health::Up)).is_err(), "its session is over");
    table.apply(at(9), up(EDGE, 8)).unwrap();
    assert_eq!(now(&table), (Health::Unknown, "UNSEEN"), "what it said in another life is not known");
}

/// A newer session takes over without a gap: what the older one found stands until the newer one has looked.
#[test]
fn a_session_that_takes_over_keeps_what_was_found() {
    let mut table = Table::default();
    table.apply(at(0), up(EDGE, 1)).unwrap();
    table.apply(at(0), seen_by("agent:edge", "1", false)).unwrap();
    table.apply(at(1), witnessed(EDGE, 1, Health::Up)).unwrap();
    table.apply(at(2), up(EDGE, 2)).unwrap();
    assert_eq!(now(&table).0, Health::Up);
    table.apply(at(3), witnessed(EDGE, 2, Health::Down)).unwrap();
    assert_eq!(now(&table).0, Health::Down);
}

/// Two agents of one name: neither is believed, until the name says which.
#[test]
fn a_name_of_two_is_nobodys() {
    let mut table = Table::default();
    table.apply(at(0), up(EDGE, 1)).unwrap();
    table.apply(at(0), seen_by("agent:edge", "1", false)).unwrap();
    table.apply(at(1), witnessed(EDGE, 1, Health::Up)).unwrap();
    table.apply(at(2), up("edge-ffffffff", 1)).unwrap();
    assert_eq!(now(&table), (Health::Unknown, "AGENTTWICE"));
    table.apply(at(3), witnessed("edge-ffffffff", 1, Health::Up)).unwrap();
    assert_eq!(now(&table).0, Health::Unknown);
    table.apply(at(4), seen_by(&format!("agent:{EDGE}"), "1", false)).unwrap();
    table.apply(at(4), witnessed("edge-ffffffff", 1, Health::Up)).unwrap();
    assert_eq!(now(&table), (Health::Unknown, "UNSEEN"));
    table.apply(at(5), witnessed(EDGE, 1, Health::Up)).unwrap();
    assert_eq!(now(&table).0, Health::Up);
}

/// With a quorum of two out of three one vantage may be wrong or away, two may not.
#[test]
fn a_quorum_bears_one_that_is_wrong() {
    let mut table = Table::default();
    table.apply(at(0), up("a", 1)).unwrap();
    table.apply(at(0), up("b", 1)).unwrap();
    table.apply(at(0), seen_by("registry,agent:a,agent:b", "2", false)).unwrap();
    table.apply(at(1), heard(Health::Up)).unwrap();
    assert_eq!(now(&table).0, Health::Unknown);
    table.apply(at(2), witnessed("a", 1, Health::Up)).unwrap();
    assert_eq!(now(&table).0, Health::Up);
    table.apply(at(3), witnessed("b", 1, Health::Down)).unwrap();
    assert_eq!(now(&table).0, Health::Up);
    table.apply(at(4), gone("b", 1)).unwrap();
    assert_eq!(now(&table).0, Health::Up);
    table.apply(at(5), gone("a", 1)).unwrap();
    assert_eq!(now(&table).0, Health::Unknown, "one vote, and nobody who could give another");
    table.apply(at(6), up("a", 2)).unwrap();
    table.apply(at(6), up("b", 2)).unwrap();
    table.apply(at(7), witnessed("a", 2, Health::Down)).unwrap();
    table.apply(at(7), witnessed("b", 2, Health::Down)).unwrap();
    assert_eq!(now(&table), (Health::Down, "L4CON"));
}

/// An ephemeral instance that is checked lives by its beats and is well by its checks.
#[test]
fn ephemeral_instances_can_be_checked() {
    let mut table = Table::default();
    table.apply(at(0), seen_by("registry", "1", true)).unwrap();
    assert_eq!(now(&table).0, Health::Unknown, "it says that it is well; nobody has seen it");
    let beat = Command::Beat { service: service("web"), id: id(1) };
    table.apply(at(1), beat.clone()).unwrap();
    assert_eq!(now(&table).0, Health::Unknown);
    table.apply(at(2), heard(Health::Up)).unwrap();
    table.apply(at(3), beat.clone()).unwrap();
    table.apply(at(4), heard(Health::Down)).unwrap();
    table.apply(at(5), beat.clone()).unwrap();
    assert_eq!(now(&table), (Health::Down, "L4CON"), "a beat does not make it well");
    table.apply(at(6), heard(Health::Up)).unwrap();
    table.apply(at(15_006), Command::Tick { max: 9 }).unwrap();
    assert_eq!(now(&table), (Health::Down, "BEATLATE"));
    table.apply(at(15_007), heard(Health::Up)).unwrap();
    assert_eq!(now(&table), (Health::Down, "BEATLATE"), "an answer is no beat");
    table.apply(at(15_008), beat).unwrap();
    assert_eq!(now(&table).0, Health::Up);
    table.apply(at(60_000), Command::Tick { max: 9 }).unwrap();
    assert_eq!(table, Table::default());
}

/// One request brings an instance and its cluster's checker, or neither; the checker is not left in the metadata.
#[test]
fn a_registration_brings_its_checker() {
    let mut table = Table::default();
    let with = |checker: &str, weight: f64| {
        let metadata = [(crate::checker::CHECKER_KEY.to_owned(), checker.to_owned())].into();
        Command::Register { service: service("web"), instance: Instance { metadata, weight, ..Instance::new(id(1)) } }
    };
    let empty = table.clone();
    let refusal = table.apply(at(0), with(r#"{"type":"FTP"}"#, 1.0)).unwrap_err();
    assert!(refusal.to_string().contains("healthChecker"), "{refusal}");
    assert!(table.apply(at(0), with(r#"{"type":"NONE"}"#, -1.0)).is_err());
    assert_eq!(table, empty, "neither");
    let changes = table.apply(at(0), with(r#"{"type":"HTTP","path":"/up","checkPort":81}"#, 1.0)).unwrap();
    assert!(changes.is_durable());
    let checker = table.meta(&service("web")).unwrap().checker("DEFAULT");
    assert_eq!((checker.port, format!("{:?}", checker.how.kind).contains("/up")), (Some(81), true));
    assert!(table.entry(&service("web"), &id(1)).unwrap().record.metadata.is_empty());
    assert!(table.apply(at(1), with(r#"{"type":"HTTP","path":"/up","checkPort":81}"#, 1.0)).unwrap().is_empty());
    let mut undone = table.clone();
    undone.revert(&changes);
    assert_eq!(undone, empty);
}

/// A service's manner is that of all its clusters that have none of their own, and can be changed as it runs.
#[test]
fn a_service_has_a_manner() {
    use crate::checker::{MANNER_KEY, Manner};
    let mut table = Table::default();
    table.apply(at(0), register("web", 1, false)).unwrap();
    table.apply(at(1), heard(Health::Up)).unwrap();
    let mut put = |manner: &str| {
        let metadata = Some([(MANNER_KEY.to_owned(), manner.to_owned())].into());
        let command = Command::PutService {
            service: service("web"),
            protect_threshold: None,
            metadata,
            selector: None,
            create: false,
        };
        table.apply(at(2), command).map(|_| {
            let meta = table.meta(&service("web")).unwrap();
            (meta.checker("DEFAULT").how.manner, table.entry(&service("web"), &id(1)).unwrap().health.health)
        })
    };
    assert_eq!(put("nacos"), Ok((Some(Manner::Nacos), Health::Unknown)));
    assert_eq!(put("own"), Ok((None, Health::Unknown)));
    assert!(put("consul").unwrap_err().to_string().contains(MANNER_KEY));
}

/// Checks that are off ask nothing and hear nothing: what was believed stands, until somebody says otherwise or they are on
/// again. A cluster's switch goes before its service's, and the rest of the metadata is left as it is.
#[test]
fn checks_are_switched() {
    use crate::checker::CHECKS_KEY;
    let mut table = Table::default();
    let steer = |cluster: Option<&str>, value: Option<&str>| Command::Steer {
        service: service("web"),
        cluster: cluster.map(Name::from),
        key: CHECKS_KEY,
        value: value.map(str::to_owned),
    };
    assert!(matches!(table.apply(at(0), steer(None, Some("off"))), Err(Refusal::NoService { .. })));
    table.apply(at(0), register("web", 1, false)).unwrap();
    table.apply(at(1), heard(Health::Down)).unwrap();
    let by_hand = Command::SetHealth { service: service("web"), id: id(1), healthy: true };
    assert!(matches!(table.apply(at(2), by_hand.clone()), Err(Refusal::StillChecked { .. })));
    assert!(table.apply(at(2), steer(None, Some("off"))).unwrap().is_durable());
    assert_eq!(now(&table), (Health::Down, "L4CON"), "it stands");
    table.apply(at(3), heard(Health::Up)).unwrap();
    assert_eq!(now(&table), (Health::Down, "L4CON"), "late news");
    table.apply(at(4), by_hand).unwrap();
    assert_eq!(now(&table), (Health::Up, "MANUAL"));
    table.apply(at(5), steer(Some("DEFAULT"), Some("on"))).unwrap();
    assert!(table.meta(&service("web")).unwrap().asked(&id(1)).is_some());
    table.apply(at(6), heard(Health::Down)).unwrap();
    assert_eq!(now(&table), (Health::Down, "L4CON"));
    table.apply(at(7), steer(Some("DEFAULT"), None)).unwrap();
    assert!(table.meta(&service("web")).unwrap().asked(&id(1)).is_none());
    assert!(table.apply(at(8), steer(None, Some("perhaps"))).unwrap_err().to_string().contains(CHECKS_KEY));
}

/// Conversion makes all of a service's instances of the other kind, and keeps what is believed of them.
#[test]
fn kinds_are_converted() {
    let mut table = Table::default();
    table.apply(at(0), register("web", 1, true)).unwrap();
    table.apply(at(0), register("web", 2, true)).unwrap();
    let convert = |ephemeral| Command::Convert { service: service("web"), ephemeral };
    let changes = table.apply(at(1), convert(false)).unwrap();
    assert!(changes.is_durable());
    assert_eq!((table.due(), now(&table)), (None, (Health::Up, "BEAT")));
    table.apply(at(2), register("web", 3, false)).unwrap();
    table.apply(at(3), heard(Health::Down)).unwrap();
    assert_eq!(now(&table), (Health::Down, "L4CON"), "checked from now on");
    table.apply(at(4), convert(true)).unwrap();
    assert_eq!(now(&table), (Health::Down, "L4CON"));
    table.apply(at(5), Command::Beat { service: service("web"), id: id(1) }).unwrap();
    assert_eq!(now(&table), (Health::Up, "BEAT"));
    assert_eq!(table.due(), Some(at(15_004)));
    assert!(table.apply(at(6), convert(true)).unwrap().is_empty());
}
