//! The table by cases, against a naive model, and undone.

mod naive;
mod votes;

use super::*;
use crate::model::{Checker, Cluster, Metadata};
use crate::snapshot::Snapshot;
use proptest::prelude::*;
use std::time::Duration;

pub(crate) fn at(ms: u64) -> Instant {
    Instant::from_ns(ms * 1_000_000)
}

pub(crate) fn service(name: &str) -> ServiceKey {
    ServiceKey::public(name).unwrap()
}

pub(crate) fn id(host: u8) -> InstanceId {
    InstanceId::new("", &format!("10.0.0.{host}"), 80).unwrap()
}

pub(crate) fn register(name: &str, host: u8, ephemeral: bool) -> Command {
    Command::Register { service: service(name), instance: Instance { ephemeral, ..Instance::new(id(host)) } }
}

pub(crate) fn delta(name: &str, id: InstanceId, health: Health) -> Delta {
    let reason = Reason::Probe { code: ringspan_engine::outcome::Code::L4Refused, errno: 111 };
    Delta { service: service(name), id, health, reason, rtt_ns: 7, due: None }
}

pub(super) fn exposed(name: &str, host: u8) -> Exposed {
    let (host, metadata) = (format!("10.0.0.{host}"), Metadata::new());
    Exposed { service: service(name), host, port: 80, weight: 1.0, metadata }
}

fn agent_up(session: u64, exposed: Vec<Exposed>) -> Command {
    Command::AgentUp { agent: Name::from("edge"), session, exposed }
}

fn at_agent(host: u8) -> InstanceId {
    exposed("web", host).id("edge").unwrap()
}

/// The health of an instance of service "web", if it is there.
fn health(table: &Table, id: &InstanceId) -> Option<(Health, Reason)> {
    table.entry(&service("web"), id).map(|e| (e.health.health, e.health.reason))
}

/// An ephemeral instance lives by its beats: late at 15 s, gone at 30 s, and its service with it.
#[test]
fn ephemeral_instances_live_by_their_beats() {
    let mut table = Table::default();
    let web = service("web");
    let tick = Command::Tick { max: 100 };
    table.apply(at(0), register("web", 1, true)).unwrap();
    assert_eq!(health(&table, &id(1)), Some((Health::Up, Reason::Beat)));
    table.apply(at(10_000), Command::Beat { service: web.clone(), id: id(1) }).unwrap();
    assert!(table.apply(at(24_999), tick.clone()).unwrap().is_empty());
    table.apply(at(25_000), tick.clone()).unwrap();
    assert_eq!(health(&table, &id(1)), Some((Health::Down, Reason::BeatLate)));
    assert_eq!(table.due(), Some(at(40_000)));
    table.apply(at(30_000), Command::Beat { service: web.clone(), id: id(1) }).unwrap();
    assert_eq!(health(&table, &id(1)), Some((Health::Up, Reason::Beat)));
    assert!(table.apply(at(40_000), tick.clone()).unwrap().is_empty(), "it beat since");
    table.apply(at(60_000), tick).unwrap();
    assert_eq!((table.instance_count(), table.services().count(), table.due()), (0, 0, None));
    let refusal = table.apply(at(60_001), Command::Beat { service: web, id: id(1) }).unwrap_err();
    assert!(matches!(refusal, Refusal::NoInstance { .. }));
}

/// The first registration fixes a service's kind, as long as it has instances of that kind; agents' do not count.
#[test]
fn kinds_do_not_mix() {
    let mut table = Table::default();
    table.apply(at(0), agent_up(1, vec![exposed("web", 9)])).unwrap();
    table.apply(at(0), register("web", 1, true)).unwrap();
    let refusal = table.apply(at(0), register("web", 2, false)).unwrap_err();
    assert_eq!(refusal, Refusal::Kind { service: service("web"), ephemeral: true });
    assert!(
        refusal.to_string().starts_with(
            "Current service DEFAULT_GROUP@@web is ephemeral service, can't register persistent instance."
        )
    );
    let gone = |ephemeral| Command::Deregister { service: service("web"), id: id(1), ephemeral };
    assert_eq!(table.apply(at(0), gone(Some(false))).unwrap_err(), Refusal::WrongKind { ephemeral: true });
    table.apply(at(0), gone(Some(true))).unwrap();
    table.apply(at(0), register("web", 2, false)).unwrap();
    assert!(table.apply(at(0), gone(None)).unwrap().is_empty(), "what is not there is removed already");
}

/// What the prober says counts for persistent instances that it checks, and for nothing else.
#[test]
fn who_may_judge() {
    let mut table = Table::default();
    table.apply(at(0), register("web", 1, false)).unwrap();
    table.apply(at(0), register("beats", 1, true)).unwrap();
    table.apply(at(0), agent_up(1, vec![exposed("web", 9)])).unwrap();
    let deltas = vec![
        delta("web", id(1), Health::Up),
        delta("beats", id(1), Health::Down),
        delta("web", at_agent(9), Health::Up),
        delta("nowhere", id(1), Health::Up),
    ];
    let changes = table.apply(at(5), Command::Heard { deltas }).unwrap();
    assert_eq!(changes.list.len(), 1, "{changes:?}");
    let heard = table.entry(&service("web"), &id(1)).unwrap().health;
    assert_eq!((heard.health, heard.since, heard.rtt_ns), (Health::Up, at(5), 7));
    // Registering again changes the record and keeps the belief.
    table.apply(at(6), register("web", 1, false)).unwrap();
    assert_eq!(table.entry(&service("web"), &id(1)).unwrap().health, heard);
}

/// Where no checker works, people judge; and a new checker starts from nothing.
#[test]
fn a_cluster_without_a_checker_is_judged_by_hand() {
    let mut table = Table::default();
    let web = service("web");
    let put = |checker| {
        let settings = Cluster { checker, ..Cluster::default() };
        Command::PutCluster { service: service("web"), cluster: Name::from("DEFAULT"), settings }
    };
    let none = Checker::none();
    assert_eq!(table.apply(at(0), put(none.clone())).unwrap_err(), Refusal::NoService { service: web.clone() });
    table.apply(at(0), register("web", 1, false)).unwrap();
    table.apply(at(0), Command::Heard { deltas: vec![delta("web", id(1), Health::Down)] }).unwrap();
    let set = Command::SetHealth { service: web.clone(), id: id(1), healthy: true };
    assert_eq!(table.apply(at(0), set.clone()).unwrap_err(), Refusal::StillChecked { id: id(1) });
    table.apply(at(1), put(none.clone())).unwrap();
    assert_eq!(health(&table, &id(1)), Some((Health::Unknown, Reason::Unseen)));
    table.apply(at(2), Command::Heard { deltas: vec![delta("web", id(1), Health::Down)] }).unwrap();
    assert_eq!(health(&table, &id(1)), Some((Health::Unknown, Reason::Unseen)), "late news of the old checker");
    table.apply(at(3), set).unwrap();
    assert_eq!(health(&table, &id(1)), Some((Health::Up, Reason::Manual)));
    // A configured service stays when it is empty, and goes only then.
    let delete = Command::DeleteService { service: web.clone() };
    assert_eq!(table.apply(at(4), delete.clone()).unwrap_err(), Refusal::NotEmpty { service: web.clone() });
    table.apply(at(4), Command::Deregister { service: web.clone(), id: id(1), ephemeral: None }).unwrap();
    assert!(table.meta(&web).is_some());
    table.apply(at(5), delete).unwrap();
    assert_eq!(table, Table::default());
}

/// An agent's backends are what its latest session exposes, and unknown whenever it is not there.
#[test]
fn agents_come_and_go() {
    let mut table = Table::default();
    let heard = |session, host| {
        let deltas = vec![delta("web", at_agent(host), Health::Up)];
        Command::AgentHeard { agent: Name::from("edge"), session, deltas }
    };
    let gone = |session| Command::AgentGone { agent: Name::from("edge"), session };
    let stale = |session, latest| Refusal::StaleSession { agent: Name::from("edge"), session, latest };
    assert_eq!(table.apply(at(0), heard(1, 1)).unwrap_err(), stale(1, 0));
    table.apply(at(0), agent_up(1, vec![exposed("web", 1), exposed("web", 2)])).unwrap();
    assert_eq!(health(&table, &at_agent(1)), Some((Health::Unknown, Reason::Unseen)));
    table.apply(at(1), heard(1, 1)).unwrap();
    assert_eq!(health(&table, &at_agent(1)).unwrap().0, Health::Up);
    assert!(table.apply(at(1), heard(1, 7)).unwrap().is_empty(), "news of what it does not expose");

    // A second session takes over before the first is known to be dead.
    table.apply(at(2), agent_up(2, vec![exposed("web", 2), exposed("db", 3)])).unwrap();
    assert_eq!(health(&table, &at_agent(1)), None, "not exposed any more");
    assert_eq!(table.apply(at(3), heard(1, 2)).unwrap_err(), stale(1, 2));
    assert_eq!(table.apply(at(3), agent_up(1, vec![])).unwrap_err(), stale(1, 2));
    assert!(table.apply(at(3), gone(1)).unwrap().is_empty(), "the end of an old session ends nothing");
    table.apply(at(4), heard(2, 2)).unwrap();
    assert_eq!(health(&table, &at_agent(2)).unwrap().0, Health::Up);
    table.apply(at(5), gone(2)).unwrap();
    assert_eq!(health(&table, &at_agent(2)), Some((Health::Unknown, Reason::AgentGone)));
    assert_eq!(table.apply(at(6), heard(2, 2)).unwrap_err(), stale(2, 2), "a session that is over is silent");
    // Nobody else may touch them.
    let id = at_agent(2);
    let of_agent = Refusal::OfAgent { agent: Name::from("edge") };
    let take = Command::Deregister { service: service("web"), id: id.clone(), ephemeral: None };
    assert_eq!(table.apply(at(6), take).unwrap_err(), of_agent);
    let over = Command::Register { service: service("web"), instance: Instance::new(id.clone()) };
    assert_eq!(table.apply(at(6), over).unwrap_err(), of_agent);
    let patch = Command::Update { service: service("web"), id, patch: Patch::default() };
    assert_eq!(table.apply(at(6), patch).unwrap_err(), of_agent);
    table.apply(at(7), Command::AgentForget { agent: Name::from("edge") }).unwrap();
    assert_eq!(table, Table::default());
}

/// What a client publishes lives as long as its connection, without beats, and is whose connection registered it last:
/// the end of an old connection takes nothing from a new one.
#[test]
fn clients_instances_live_as_long_as_their_connection() {
    let mut table = Table::default();
    let publish = |client, hosts: &[u8], only| {
        let instances = hosts.iter().map(|h| Instance::new(id(*h))).collect();
        Command::ClientPublish { client: ClientId(client), service: service("web"), instances, only }
    };
    let gone = |client| Command::ClientGone { client: ClientId(client) };
    let hosts =
        |table: &Table| -> Vec<u8> { (1..9).filter(|h| table.entry(&service("web"), &id(*h)).is_some()).collect() };
    table.apply(at(0), publish(1, &[1, 2], false)).unwrap();
    assert_eq!(health(&table, &id(1)), Some((Health::Up, Reason::Connected)));
    assert_eq!(table.due(), None, "no beats, no deadline");
    assert!(table.apply(at(1), publish(1, &[1], false)).unwrap().is_empty(), "nothing new");
    table.apply(at(1), publish(1, &[2, 3], true)).unwrap();
    assert_eq!(hosts(&table), [2, 3], "only these");
    // The client is there anew before its old connection is known to have ended.
    table.apply(at(2), publish(2, &[2], false)).unwrap();
    let withdraw = Command::ClientWithdraw { client: ClientId(1), service: service("web"), id: id(2) };
    assert!(table.apply(at(2), withdraw).unwrap().is_empty(), "it is another's by now");
    table.apply(at(3), gone(1)).unwrap();
    assert_eq!(hosts(&table), [2]);
    // Registered over HTTP, it lives by beats.
    table.apply(at(4), register("web", 2, true)).unwrap();
    assert_eq!(table.due(), Some(at(15_004)));
    assert!(table.apply(at(5), gone(2)).unwrap().is_empty());
    table.apply(at(6), publish(3, &[2], false)).unwrap();
    assert_eq!(table.due(), None);
    table.apply(at(7), gone(3)).unwrap();
    assert_eq!(table, Table::default());
}

/// A full table refuses what is new and takes what is not.
#[test]
fn limits_hold() {
    let mut table = Table::new(Limits { instances_max: 2, services_max: 2 });
    table.apply(at(0), register("a", 1, false)).unwrap();
    table.apply(at(0), register("b", 1, false)).unwrap();
    let full = Refusal::TooMany { what: "instances", max: 2 };
    assert_eq!(table.apply(at(0), register("a", 2, false)).unwrap_err(), full);
    assert_eq!(table.apply(at(0), agent_up(1, vec![exposed("a", 9)])).unwrap_err(), full);
    table.apply(at(1), register("a", 1, false)).unwrap();
    table.apply(at(1), Command::Deregister { service: service("a"), id: id(1), ephemeral: None }).unwrap();
    table.apply(at(1), register("c", 1, false)).unwrap();
    let create = Command::PutService {
        service: service("d"),
        protect_threshold: None,
        metadata: None,
        selector: None,
        create: true,
    };
    assert_eq!(table.apply(at(1), create).unwrap_err(), Refusal::TooMany { what: "services", max: 2 });
}

/// Random commands over a small world, so that they meet.
pub(crate) fn commands() -> impl Strategy<Value = Vec<(u64, Command)>> {
    let name = || prop::sample::select(vec!["a", "b"]);
    let healths = || prop::sample::select(vec![Health::Up, Health::Down]);
    let agent = || prop::sample::select(vec!["edge", "far"]).prop_map(Name::from);
    let checkers = vec![Checker::default(), Checker::none()];
    let exposures = prop::collection::vec((name(), 1..4_u8).prop_map(|(n, h)| exposed(n, h)), 0..4);
    let agent_deltas = prop::collection::vec((name(), 1..4_u8, healths()), 0..3);
    let instance = |name, host, ephemeral, weight, claims_healthy| {
        let instance = Instance { ephemeral, weight, claims_healthy, ..Instance::new(id(host)) };
        Command::Register { service: service(name), instance }
    };
    let weight = prop::sample::select(vec![0.0, 1.0, 20_000.0]);
    let weight_of_client = weight.clone();
    let command = prop_oneof![
        4 => (name(), 1..4_u8, any::<bool>(), weight.clone(), any::<bool>()).prop_map(move |(n, h, e, w, c)| instance(n, h, e, w, c)),
        2 => (name(), 1..4_u8, any::<Option<bool>>()).prop_map(|(n, h, ephemeral)|
            Command::Deregister { service: service(n), id: id(h), ephemeral }),
        1 => (name(), 1..4_u8, prop::option::of(weight), any::<Option<bool>>()).prop_map(|(n, h, weight, enabled)|
            Command::Update { service: service(n), id: id(h), patch: Patch { weight, enabled, metadata: None } }),
        3 => (1..3_u64, name(), prop::collection::vec((1..4_u8, weight_of_client, any::<bool>()), 0..3), any::<bool>())
            .prop_map(|(client, n, all, only)| {
                let instance = |(h, weight, claims_healthy)| Instance { weight, claims_healthy, ..Instance::new(id(h)) };
                let instances = all.into_iter().map(instance).collect();
                Command::ClientPublish { client: ClientId(client), service: service(n), instances, only }
            }),
        1 => (1..3_u64, name(), 1..4_u8).prop_map(|(client, n, h)|
            Command::ClientWithdraw { client: ClientId(client), service: service(n), id: id(h) }),
        1 => (1..3_u64).prop_map(|client| Command::ClientGone { client: ClientId(client) }),
        2 => (name(), 1..4_u8).prop_map(|(n, h)| Command::Beat { service: service(n), id: id(h) }),
        2 => (name(), 1..4_u8, healths()).prop_map(|(n, h, health)|
            Command::Heard { deltas: vec![delta(n, id(h), health)] }),
        2 => Just(Command::Tick { max: 100 }),
        1 => (name(), prop::option::of(prop::sample::select(vec![0.0, 0.5, 2.0])), any::<bool>())
            .prop_map(|(n, protect_threshold, create)|
                Command::PutService { service: service(n), protect_threshold, metadata: None, selector: None, create }),
        1 => name().prop_map(|n| Command::DeleteService { service: service(n) }),
        1 => (name(), prop::sample::select(checkers)).prop_map(|(n, checker)| Command::PutCluster {
            service: service(n), cluster: Name::from("DEFAULT"), settings: Cluster { checker, ..Cluster::default() } }),
        1 => (name(), 1..4_u8, any::<bool>()).prop_map(|(n, h, healthy)|
            Command::SetHealth { service: service(n), id: id(h), healthy }),
        2 => (agent(), 1..4_u64, exposures).prop_map(|(agent, session, exposed)| Command::AgentUp { agent, session, exposed }),
        1 => (agent(), 1..4_u64, agent_deltas).prop_map(|(agent, session, heard)| {
            let deltas = heard.into_iter().map(|(n, h, health)| delta(n, exposed(n, h).id(&agent).unwrap(), health));
            Command::AgentHeard { deltas: deltas.collect(), agent, session }
        }),
        1 => (agent(), 1..4_u64).prop_map(|(agent, session)| Command::AgentGone { agent, session }),
        1 => agent().prop_map(|agent| Command::AgentForget { agent }),
    ];
    prop::collection::vec((0..20_000_u64, command), 1..60)
}

/// The same, with commands that ask others to look.
pub(crate) fn commands_and_votes() -> impl Strategy<Value = Vec<(u64, Command)>> {
    let name = || prop::sample::select(vec!["a", "b"]);
    let panel = || {
        let vantages =
            vec!["", "registry", "agent:edge", "registry,agent:edge", "agent:edge,agent:far", "agent:nobody"];
        prop::sample::select(vantages).prop_map(|vantages| {
            let pair = (crate::panel::VANTAGE_KEY.to_owned(), vantages.to_owned());
            if vantages.is_empty() { Metadata::new() } else { Metadata::from([pair]) }
        })
    };
    let health = prop::sample::select(vec![Health::Up, Health::Down]);
    let agent = prop::sample::select(vec!["edge", "far"]).prop_map(Name::from);
    let command = prop_oneof![
        4 => (name(), 1..4_u8, any::<bool>(), panel()).prop_map(|(n, h, ephemeral, metadata)| Command::Register {
            service: service(n), instance: Instance { ephemeral, metadata, ..Instance::new(id(h)) } }),
        1 => (name(), 1..4_u8, panel()).prop_map(|(n, h, metadata)| Command::Update {
            service: service(n), id: id(h), patch: Patch { metadata: Some(metadata), ..Patch::default() } }),
        2 => (agent, 1..4_u64, name(), 1..4_u8, health).prop_map(|(agent, session, n, h, health)|
            Command::Witnessed { agent, session, deltas: vec![delta(n, id(h), health)] }),
        1 => (name(), panel()).prop_map(|(n, metadata)| Command::PutCluster { service: service(n),
            cluster: Name::from("DEFAULT"), settings: Cluster { metadata, ..Cluster::default() } }),
        1 => (name(), any::<bool>()).prop_map(|(n, ephemeral)| Command::Convert { service: service(n), ephemeral }),
    ];
    let more = prop::collection::vec((0..20_000_u64, command), 1..60);
    (commands(), more).prop_map(|(some, more)| {
        // Woven together, so that the two kinds meet.
        let mut all = Vec::new();
        let (mut some, mut more) = (some.into_iter(), more.into_iter());
        loop {
            let before = all.len();
            all.extend(some.next());
            all.extend(more.next());
            if all.len() == before {
                return all;
            }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Whatever happens, the table holds what a naive list would, and says yes and no where it would.
    #[test]
    fn the_table_is_what_a_naive_model_is(steps in commands()) {
        let (mut table, mut naive, mut now) = (Table::default(), naive::Naive::default(), at(1));
        for (pause, command) in steps {
            now = now + Duration::from_millis(pause);
            // Deadlines are met in time, as the writer does.
            for at in [now - Duration::from_millis(1), now] {
                table.apply(at, Command::Tick { max: 1_000 }).unwrap();
                naive.apply(at, &Command::Tick { max: 1_000 });
            }
            let said = table.apply(now, command.clone());
            prop_assert_eq!(said.is_ok(), naive.apply(now, &command), "{:?}: {:?}", command, said);
            prop_assert_eq!(naive::seen(&table), naive.seen(), "after {:?}", command);
            let deadlines: Vec<_> = table.services().flat_map(|(_, _, e)| e).filter(|e| e.record.ephemeral && e.client.is_none()).collect();
            prop_assert_eq!(table.deadlines.len(), deadlines.len());
        }
    }

    /// Undoing changes in reverse makes the very table that was; a refused command changes nothing.
    #[test]
    fn revert_undoes(steps in commands_and_votes()) {
        let (mut table, mut now) = (Table::default(), at(1));
        for (pause, command) in steps {
            now = now + Duration::from_millis(pause);
            let before = table.clone();
            let volatile = command.is_volatile();
            match table.apply(now, command) {
                // Beats move a clock that no change tells of; nothing volatile is ever undone.
                Ok(_) if volatile => {}
                Ok(changes) => {
                    let mut undone = table.clone();
                    undone.revert(&changes);
                    prop_assert_eq!(&undone, &before, "{:?}", changes);
                }
                Err(refusal) => prop_assert_eq!(&table, &before, "{:?}", refusal),
            }
        }
    }

    /// Only what is not volatile has durable changes: volatile commands never wait for a disk.
    #[test]
    fn volatile_commands_store_nothing(steps in commands_and_votes()) {
        let (mut table, mut now) = (Table::default(), at(1));
        for (pause, command) in steps {
            now = now + Duration::from_millis(pause);
            let volatile = command.is_volatile();
            if let Ok(changes) = table.apply(now, command) {
                prop_assert!(!(volatile && changes.is_durable()), "{:?}", changes);
            }
        }
    }

    /// Readers who follow the changes, batch by batch, see what a reader of the whole table sees.
    #[test]
    fn the_snapshot_follows(steps in commands_and_votes(), batch_len in 1..5_usize) {
        let (mut table, mut now, snapshot) = (Table::default(), at(1), Snapshot::default());
        for batch in steps.chunks(batch_len) {
            let mut changes = Vec::new();
            for (pause, command) in batch {
                now = now + Duration::from_millis(*pause);
                changes.extend(table.apply(now, command.clone()));
            }
            snapshot.publish(&table, &changes);
            let whole = Snapshot::of(&table);
            prop_assert_eq!(shown(&snapshot), shown(&whole));
            prop_assert_eq!(snapshot.counts(), whole.counts());
            prop_assert_eq!(snapshot.agents(), whole.agents());
            prop_assert_eq!(&table.watched, &votes::watched(&table));
        }
    }
}

/// All that a snapshot shows of services.
fn shown(snapshot: &Snapshot) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
    let instances = |v: &crate::snapshot::ServiceView| -> Vec<_> {
        v.instances.iter().map(|i| (i.record.clone(), i.health(), i.ballot())).collect()
    };
    snapshot.services().iter().map(|v| (v.key.clone(), v.meta.clone(), instances(v))).collect()
}
