//! The prober with an engine of paper, and with a real one on loopback.

use super::*;
use crate::checker::{Codes, Kind, Manner};
use crate::health::HealthRecord;
use crate::model::{Checker, Cluster, Instance, Name};
use crate::service::Options;
use ringspan_engine::outcome::Code;
use std::net::SocketAddr;
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
            due: ringspan_engine::time::Instant::ZERO,
            streak: 1,
        };
        self.0.lock().unwrap().news.push(transition);
    }
}

struct World {
    registry: Registry,
    paper: Paper,
    prober: Prober<Paper, NoVantages>,
    changes: tokio::sync::broadcast::Receiver<Arc<Changes>>,
}

impl World {
    fn new() -> World {
        let registry = Registry::open(&Options::default()).unwrap();
        let paper = Paper::default();
        let prober = Prober::new(paper.clone(), NoVantages, policy_default());
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
            self.prober.listen(self.registry.now());
            let news = self.prober.news();
            let is_over = news.is_empty();
            for (agent, command) in news {
                self.registry.submit(command).await.unwrap();
                self.prober.told(agent.as_ref());
            }
            self.prober.settle();
            if is_over {
                return;
            }
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

/// What is switched off is not asked, whether for a service or for all; when it is on again, what was believed is what the
/// engine starts from.
#[tokio::test]
async fn checks_are_switched() {
    let mut world = World::new();
    for name in ["web", "db"] {
        let service = ServiceKey::public(name).unwrap();
        let port = if name == "web" { 80 } else { 90 };
        world.submit(Command::Register { service, instance: Instance::new(id(port)) }).await;
    }
    let both = world.paper.addresses();
    let key = world.paper.key(&both[0]);
    world.paper.says(key, Health::Down);
    world.turn().await;
    let steer = |value: &str| Command::Steer {
        service: ServiceKey::public("web").unwrap(),
        cluster: None,
        key: crate::checker::CHECKS_KEY,
        value: Some(value.to_owned()),
    };
    world.submit(steer("off")).await;
    assert_eq!(world.paper.addresses(), both[1..]);
    assert_eq!(world.health("web", 80).health, Health::Down);
    world.submit(steer("on")).await;
    assert_eq!(world.paper.addresses(), both);
    let initial = world.paper.0.lock().unwrap().targets.iter().find(|t| t.1.address.port() == 80).unwrap().1.initial;
    assert_eq!(initial, Health::Down);
    for (on, count) in [(false, 0), (true, 2)] {
        world.prober.is_on = on;
        world.prober.look_at_all(&world.registry);
        world.turn().await;
        assert_eq!(world.paper.addresses().len(), count);
    }
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
    world.submit(check("a", Checker::tcp(Some(9)))).await;
    assert_eq!(world.paper.addresses(), ["127.0.0.1:9"]);
    assert_eq!(world.health("a", 1).health, Health::Unknown);
    world.submit(check("a", Checker::none())).await;
    assert_eq!(world.paper.addresses(), [""; 0]);
    // To the same address by another name: the engine has nothing new to say, so the prober says it again.
    world.submit(check("a", Checker::default())).await;
    world.paper.says(world.paper.key("127.0.0.1:1"), Health::Up);
    world.turn().await;
    world.submit(check("a", Checker::tcp(Some(1)))).await;
    assert_eq!(world.health("a", 1).health, Health::Up);
}

/// What one address is asked is found out for each question by itself, and in its own manner.
#[tokio::test]
async fn two_questions_are_two_targets() {
    let mut world = World::new();
    let http = || Kind::Http { path: "/health".into(), headers: String::new(), expected: Codes::default() };
    for (name, checker) in [
        ("a", Checker::default()),
        ("b", Checker::new(http(), None, None).unwrap()),
        ("c", Checker::new(http(), Some(Manner::Nacos), None).unwrap()),
        ("d", Checker::new(http(), None, None).unwrap()),
    ] {
        world.submit(register(name, 1, false)).await;
        world.submit(check(name, checker)).await;
    }
    let targets: Vec<(String, bool, u64)> = {
        let sheet = world.paper.0.lock().unwrap();
        let of = |t: &Target| (t.check.as_str().to_owned(), t.policy.adaptive.is_some(), t.key);
        let mut targets: Vec<_> = sheet.targets.iter().map(|(_, t)| of(t)).collect();
        targets.sort();
        targets
    };
    let kinds: Vec<(&str, bool)> = targets.iter().map(|t| (t.0.as_str(), t.1)).collect();
    assert_eq!(kinds, [("http", false), ("http", true), ("tcp", false)], "b and d ask the same");
    world.paper.says(targets[0].2, Health::Down);
    world.turn().await;
    let down: Vec<_> = ["a", "b", "c", "d"].map(|name| world.health(name, 1).health == Health::Down).into();
    assert_eq!(down, [false, true, false, true]);
}

/// Agents as the prober sees them: what each is asked, by session.
#[derive(Clone, Default)]
struct Scouts(Arc<Mutex<ScoutsSheet>>);

#[derive(Default)]
struct ScoutsSheet {
    asked: BTreeMap<(Name, u64, u64), String>,
    seen: Vec<Sighting>,
}

impl Vantages for Scouts {
    fn watch(&mut self, agent: &Name, session: u64, key: u64, asked: &Asked) -> bool {
        let old = self.0.lock().unwrap().asked.insert((agent.clone(), session, key), asked.address.to_string());
        assert_eq!(old, None, "a key is used once");
        true
    }
    fn unwatch(&mut self, agent: &Name, session: u64, key: u64) -> bool {
        self.0.lock().unwrap().asked.remove(&(agent.clone(), session, key)).expect("it was asked");
        true
    }
    fn sightings(&mut self, into: &mut Vec<Sighting>) {
        into.append(&mut self.0.lock().unwrap().seen);
    }
}

/// An agent is asked to look for as long as it is connected and an instance names it; a newer session is asked anew.
#[tokio::test]
async fn agents_are_asked_to_look() {
    let (registry, paper, scouts) = (Registry::open(&Options::default()).unwrap(), Paper::default(), Scouts::default());
    let mut changes = registry.subscribe();
    let mut prober = Prober::new(paper.clone(), scouts.clone(), policy_default());
    macro_rules! turn {
        () => {
            loop {
                while let Ok(changes) = changes.try_recv() {
                    prober.on_changes(&registry, &changes);
                }
                prober.press_on();
                prober.listen(registry.now());
                let news = prober.news();
                if news.is_empty() {
                    break;
                }
                for (agent, command) in news {
                    registry.submit(command).await.unwrap();
                    prober.told(agent.as_ref());
                }
            }
        };
    }
    let asked = || -> Vec<(String, u64, String)> {
        let sheet = scouts.0.lock().unwrap();
        sheet.asked.iter().map(|((agent, session, _), at)| (agent.to_string(), *session, at.clone())).collect()
    };
    let metadata = [("preserved.vantage".to_owned(), "agent:edge".to_owned())];
    let instance = Instance { metadata: metadata.into(), ..Instance::new(id(1)) };
    registry.submit(Command::Register { service: ServiceKey::public("a").unwrap(), instance }).await.unwrap();
    turn!();
    assert_eq!((paper.addresses(), asked()), (vec![], vec![]), "not the registry, and there is no agent");
    registry.agent_up("edge-00000001", 5, Vec::new()).await.unwrap();
    turn!();
    let edge = |session| vec![("edge-00000001".to_owned(), session, "127.0.0.1:1".to_owned())];
    assert_eq!(asked(), edge(5));
    let health =
        || registry.snapshot().service(&ServiceKey::public("a").unwrap()).unwrap().instance(&id(1)).unwrap().health();
    let say = |session, key, to| {
        let reason = Reason::Probe { code: Code::L4Ok, errno: 0 };
        let finding = Finding { health: to, reason, rtt_ns: 9, due: None };
        scouts.0.lock().unwrap().seen.push(Sighting { agent: Name::from("edge-00000001"), session, key, finding });
    };
    let key = scouts.0.lock().unwrap().asked.keys().next().unwrap().2;
    say(5, key, Health::Up);
    turn!();
    assert_eq!((health().health, health().rtt_ns), (Health::Up, 9));
    registry.agent_up("edge-00000001", 6, Vec::new()).await.unwrap();
    turn!();
    say(5, key, Health::Down);
    turn!();
    assert_eq!(health().health, Health::Up, "an older session's word");
    assert!(asked().contains(&edge(6)[0]), "{:?}", asked());
    registry.agent_gone("edge-00000001", 6).await.unwrap();
    turn!();
    assert_eq!(health().health, Health::Unknown);
    registry.agent_up("edge-00000001", 7, Vec::new()).await.unwrap();
    turn!();
    scouts.0.lock().unwrap().asked.retain(|k, _| k.1 == 7);
    registry.submit(deregister("a", 1)).await.unwrap();
    turn!();
    assert_eq!(asked(), vec![]);
    registry.stop();
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

/// With a real engine: an HTTP answer other than the expected one is down with its code, though the port is open.
#[tokio::test]
async fn a_real_engine_asks_http() {
    use ringspan_engine::engine::{Engine, Options as EngineOptions};
    use std::io::{Read, Write};
    let registry = Registry::open(&Options::default()).unwrap();
    let bell = Bell::default();
    let options = EngineOptions { workers: 1, pin: false, ..EngineOptions::default() };
    let (mut engine, feed) = Engine::start(&options, Arc::new(bell.clone()), |_| Vec::new()).unwrap();
    let policy = Policy { interval: Duration::from_millis(100), ..policy_default() };
    let run = tokio::spawn(run(registry.clone(), (engine.probes(), feed), bell, policy));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let status = Arc::new(Mutex::new("204 No Content"));
    let answered = status.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 512];
            let n = stream.read(&mut head).unwrap_or(0);
            // The registry's first look, before the cluster is configured, is a bare handshake.
            if n > 0 {
                assert!(head.starts_with(b"GET /up?now=1 HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
                let status = *answered.lock().unwrap();
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
            }
        }
    });
    let kind = Kind::Http {
        path: "/up?now=1".into(),
        headers: "X-Asked-By: ringspan".into(),
        expected: Codes::of(204).unwrap(),
    };
    registry.submit(register("web", port, false)).await.unwrap();
    let mut changes = registry.subscribe();
    registry.submit(check("web", Checker::new(kind, None, None).unwrap())).await.unwrap();
    let mut verdicts = Vec::new();
    while verdicts.len() < 2 {
        for change in &changes.recv().await.unwrap().list {
            if let Change::Health { after, .. } = change
                && matches!(after.reason, Reason::Probe { code, .. } if code != Code::L4Ok)
            {
                verdicts.push((after.health, after.reason.as_str()));
                *status.lock().unwrap() = "200 OK";
            }
        }
    }
    assert_eq!(verdicts, [(Health::Up, "L7OK"), (Health::Down, "L7STS")]);
    run.abort();
    engine.stop();
    registry.stop();
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

/// Whoever cannot wait for an instance's turn has it asked once, at the shortest interval; what comes of it counts at once,
/// for all who are at that address, and the steady question goes on from there. Whoever asks meanwhile shares the answer.
#[tokio::test]
async fn out_of_turn() {
    let mut world = World::new();
    world.submit(register("a", 1, false)).await;
    world.submit(register("b", 1, false)).await;
    world.submit(register("e", 2, true)).await;
    let (asks, mut orders) = now::probe_now();
    let ask = |name: &str, port| {
        let (asks, service) = (asks.clone(), ServiceKey::public(name).unwrap());
        tokio::spawn(async move { asks.ask(service, id(port)).await })
    };
    let steady = world.paper.key("127.0.0.1:1");
    world.paper.0.lock().unwrap().full = true;
    let (one, two) = (ask("a", 1), ask("b", 1));
    for _ in 0..2 {
        let order = orders.0.recv().await.unwrap();
        world.prober.on_order(&world.registry, order);
    }
    world.turn().await;
    assert!(!world.prober.is_settled(), "it waits for room");
    world.paper.0.lock().unwrap().full = false;
    world.turn().await;
    let urgent = {
        let sheet = world.paper.0.lock().unwrap();
        let [(_, first), (_, urgent)] = sheet.targets.as_slice() else { panic!("one question out of turn") };
        assert_eq!((first.key, first.address, urgent.initial), (steady, urgent.address, Health::Unknown));
        let Policy { interval, timeout, thresholds, .. } = *urgent.policy;
        assert_eq!((interval.as_millis(), timeout, thresholds.rise.get()), (100, first.policy.timeout, 1));
        urgent.key
    };
    assert!(!one.is_finished() && !two.is_finished());
    world.paper.says(urgent, Health::Up);
    world.turn().await;
    for answer in [one, two] {
        let found = answer.await.unwrap().unwrap();
        let [found] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((&found.vantage, found.health, found.rtt_ns), (&Vantage::Registry, Health::Up, 1_000));
    }
    assert_eq!((world.health("a", 1).health, world.health("b", 1).health), (Health::Up, Health::Up));
    let now = world.paper.0.lock().unwrap().targets.clone();
    let [(_, target)] = now.as_slice() else { panic!("the steady question alone is left") };
    assert_eq!((target.key == steady, target.initial), (false, Health::Up));
    // Late words on the two that are gone are nobody's; those on the third count.
    world.paper.says(steady, Health::Down);
    world.paper.says(urgent, Health::Down);
    world.turn().await;
    assert_eq!(world.health("a", 1).health, Health::Up);
    world.paper.says(target.key, Health::Down);
    world.turn().await;
    assert_eq!(world.health("a", 1).health, Health::Down);

    for (name, port, why) in [("e", 2, now::NotNow::Nobody), ("a", 3, now::NotNow::NoInstance)] {
        let answer = ask(name, port);
        let order = orders.0.recv().await.unwrap();
        world.prober.on_order(&world.registry, order);
        assert_eq!(answer.await.unwrap(), Err(why));
    }
    // Enough is enough.
    let waiting: Vec<_> = (0..now::ERRANDS_MAX).map(|_| ask("a", 1)).collect();
    for _ in &waiting {
        let order = orders.0.recv().await.unwrap();
        world.prober.on_order(&world.registry, order);
    }
    let one_more = ask("b", 1);
    let order = orders.0.recv().await.unwrap();
    world.prober.on_order(&world.registry, order);
    assert_eq!(one_more.await.unwrap(), Err(now::NotNow::Busy));
    drop(orders);
    assert_eq!(ask("a", 1).await.unwrap(), Err(now::NotNow::Stopped));
}
