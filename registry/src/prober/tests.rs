//! The prober with an engine of paper, and with a real one on loopback.

use super::*;
use crate::health::HealthRecord;
use crate::model::{Checker, Cluster, Instance, Name};
use crate::service::Options;
use ringspan_engine::outcome::Code;
use std::sync::Mutex;

/// Writes down what it is asked for, and says what it is told to.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Sheet>>);

#[derive(Default)]
struct Sheet {
    targets: Vec<(TargetId, Target)>,
    added: u64,
    full: bool,
    news: Vec<Transition>,
}

impl Probing for Paper {
    fn add(&mut self, target: Target) -> Option<TargetId> {
        let mut sheet = self.0.lock().unwrap();
        if sheet.full {
            return None;
        }
        sheet.added += 1;
        let id = TargetId(sheet.added);
        sheet.targets.push((id, target));
        Some(id)
    }
    fn remove(&mut self, id: TargetId) -> bool {
        let mut sheet = self.0.lock().unwrap();
        if !sheet.full {
            sheet.targets.retain(|t| t.0 != id);
        }
        !sheet.full
    }
    fn transitions(&mut self, into: &mut Vec<Transition>) {
        into.append(&mut self.0.lock().unwrap().news);
    }
}

impl Paper {
    fn addresses(&self) -> Vec<String> {
        let mut all: Vec<_> = self.0.lock().unwrap().targets.iter().map(|t| t.1.address.to_string()).collect();
        all.sort();
        all
    }

    fn key(&self, address: &str) -> u64 {
        let address: SocketAddr = address.parse().unwrap();
        self.0.lock().unwrap().targets.iter().find(|t| t.1.address == address).expect("it is probed").1.key
    }

    fn says(&self, key: u64, to: Health) {
        let transition = Transition {
            id: TargetId(0),
            key,
            from: Health::Unknown,
            to,
            held: ringspan_engine::health::Held::No,
            code: if to == Health::Up { Code::L4Ok } else { Code::L4Refused },
            errno: 0,
            detail: ringspan_engine::check::Detail::default(),
            rtt_ns: 1_000,
            streak: 1,
        };
        self.0.lock().unwrap().news.push(transition);
    }
}

struct World {
    registry: Registry,
    paper: Paper,
    prober: Prober<Paper>,
    changes: tokio::sync::broadcast::Receiver<Arc<Changes>>,
}

impl World {
    fn new() -> World {
        let registry = Registry::open(&Options::default()).unwrap();
        let paper = Paper::default();
        let prober = Prober::new(paper.clone(), policy_default());
        let changes = registry.subscribe();
        World { registry, paper, prober, changes }
    }

    async fn submit(&mut self, command: Command) {
        self.registry.submit(command).await.unwrap();
        self.turn().await;
    }

    /// What `run` does in a turn, until nothing moves any more.
    async fn turn(&mut self) {
        loop {
            while let Ok(changes) = self.changes.try_recv() {
                self.prober.on_changes(&self.registry, &changes);
            }
            self.prober.press_on();
            self.prober.listen();
            if self.prober.news.is_empty() {
                return;
            }
            let deltas = std::mem::take(&mut self.prober.news);
            self.registry.submit(Command::Heard { deltas }).await.unwrap();
        }
    }

    fn health(&self, name: &str, port: u16) -> HealthRecord {
        let view = self.registry.snapshot().service(&ServiceKey::public(name).unwrap()).unwrap();
        view.instance(&id(port)).unwrap().health()
    }
}

fn id(port: u16) -> InstanceId {
    InstanceId::new("", "127.0.0.1", port).unwrap()
}

fn register(name: &str, port: u16, ephemeral: bool) -> Command {
    let service = ServiceKey::public(name).unwrap();
    Command::Register { service, instance: Instance { ephemeral, ..Instance::new(id(port)) } }
}

fn deregister(name: &str, port: u16) -> Command {
    Command::Deregister { service: ServiceKey::public(name).unwrap(), id: id(port), ephemeral: None }
}

fn check(name: &str, checker: Checker) -> Command {
    let settings = Cluster { checker, ..Cluster::default() };
    Command::PutCluster { service: ServiceKey::public(name).unwrap(), cluster: Name::from("DEFAULT"), settings }
}

/// An address is probed once and for as long as anybody has it; who comes later hears what is known.
#[tokio::test]
async fn an_address_is_probed_once() {
    let mut world = World::new();
    world.submit(register("a", 1, false)).await;
    world.submit(register("e", 1, true)).await;
    assert_eq!(world.paper.addresses(), ["127.0.0.1:1"]);
    world.paper.says(world.paper.key("127.0.0.1:1"), Health::Down);
    world.turn().await;
    world.submit(register("b", 1, false)).await;
    assert_eq!(world.paper.addresses(), ["127.0.0.1:1"]);
    for name in ["a", "b"] {
        let heard = world.health(name, 1);
        assert_eq!((heard.health, heard.reason.as_str(), heard.rtt_ns), (Health::Down, "L4CON", 1_000), "{name}");
    }
    assert_eq!(world.health("e", 1).health, Health::Up, "an ephemeral instance is not probed");
    let key = world.paper.key("127.0.0.1:1");
    world.submit(deregister("a", 1)).await;
    assert_eq!(world.paper.addresses(), ["127.0.0.1:1"]);
    world.submit(deregister("b", 1)).await;
    assert_eq!(world.paper.addresses(), [""; 0]);
    // The engine's late word on a target that is gone is not taken for its successor's.
    world.submit(register("a", 1, false)).await;
    world.paper.says(key, Health::Down);
    world.turn().await;
    assert_eq!(world.health("a", 1).health, Health::Unknown);
}

/// A cluster's checker moves the probes, and a verdict on the old address does not follow.
#[tokio::test]
async fn the_checker_decides_what_is_probed() {
    let mut world = World::new();
    world.submit(register("a", 1, false)).await;
    world.paper.says(world.paper.key("127.0.0.1:1"), Health::Up);
    world.turn().await;
    world.submit(check("a", Checker::Tcp { check_port: Some(9) })).await;
    assert_eq!(world.paper.addresses(), ["127.0.0.1:9"]);
    assert_eq!(world.health("a", 1).health, Health::Unknown);
    world.submit(check("a", Checker::None)).await;
    assert_eq!(world.paper.addresses(), [""; 0]);
    // To the same address by another name: the engine has nothing new to say, so the prober says it again.
    world.submit(check("a", Checker::DEFAULT)).await;
    world.paper.says(world.paper.key("127.0.0.1:1"), Health::Up);
    world.turn().await;
    world.submit(check("a", Checker::Tcp { check_port: Some(1) })).await;
    assert_eq!(world.health("a", 1).health, Health::Up);
}

/// A full engine is asked again, and nobody is forgotten.
#[tokio::test]
async fn a_full_engine_is_asked_again() {
    let mut world = World::new();
    world.submit(register("a", 1, false)).await;
    world.paper.0.lock().unwrap().full = true;
    world.submit(register("a", 2, false)).await;
    world.submit(register("a", 3, false)).await;
    world.submit(deregister("a", 1)).await;
    world.submit(deregister("a", 2)).await;
    assert_eq!((world.paper.addresses(), world.prober.is_settled()), (vec!["127.0.0.1:1".to_owned()], false));
    world.paper.0.lock().unwrap().full = false;
    world.turn().await;
    assert_eq!((world.paper.addresses(), world.prober.is_settled()), (vec!["127.0.0.1:3".to_owned()], true));
}

/// Whoever missed changes looks at everything.
#[tokio::test]
async fn who_missed_changes_looks_again() {
    let mut world = World::new();
    world.submit(register("a", 1, false)).await;
    let registry = world.registry.clone();
    for command in [deregister("a", 1), register("a", 2, false), register("b", 3, false)] {
        registry.submit(command).await.unwrap();
    }
    world.changes = registry.subscribe();
    world.prober.look_at_all(&registry);
    world.turn().await;
    assert_eq!(world.paper.addresses(), ["127.0.0.1:2", "127.0.0.1:3"]);
}

/// With a real engine: a listener is found up and, when it closes, down; the reason is there.
#[tokio::test]
async fn a_real_engine_finds_out() {
    use ringspan_engine::engine::{Engine, Options as EngineOptions};
    let registry = Registry::open(&Options::default()).unwrap();
    let bell = Bell::default();
    let options = EngineOptions { workers: 1, pin: false, ..EngineOptions::default() };
    let (mut engine, feed) = Engine::start(&options, Arc::new(bell.clone()), |_| Vec::new()).unwrap();
    let policy = Policy { interval: Duration::from_millis(100), ..policy_default() };
    let probing = (engine.probes(), feed);
    let run = tokio::spawn(run(registry.clone(), probing, bell, policy));
    let mut changes = registry.subscribe();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    registry.submit(register("web", port, false)).await.unwrap();
    let mut verdicts = Vec::new();
    let mut listener = Some(listener);
    while verdicts.len() < 2 {
        for change in &changes.recv().await.unwrap().list {
            if let Change::Health { after, .. } = change {
                verdicts.push((after.health, after.reason.as_str()));
                drop(listener.take());
            }
        }
    }
    assert_eq!(verdicts, [(Health::Up, "L4OK"), (Health::Down, "L4CON")]);
    run.abort();
    engine.stop();
    registry.stop();
}
