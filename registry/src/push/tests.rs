//! Who hears what, and how often: with subscribers of paper, and over UDP.

use super::udp::{UdpPusher, understands};
use super::*;
use crate::health::{Health, Reason};
use crate::model::{Instance, InstanceId};
use crate::service::Options;
use crate::table::{Command, Delta};
use ringspan_engine::outcome::Code;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Writes down what it hears, and leaves when it is told to.
struct Paper {
    heard: mpsc::UnboundedSender<(Name, Value)>,
    stays: bool,
}

impl Subscriber for Paper {
    fn on_update(&self, update: &Update) -> bool {
        let info = serde_json::from_str(update.grouped()).unwrap();
        self.heard.send((update.clusters.clone(), info)).unwrap();
        self.stays
    }
}

fn paper(stays: bool) -> (Arc<Paper>, mpsc::UnboundedReceiver<(Name, Value)>) {
    let (heard, hears) = mpsc::unbounded_channel();
    (Arc::new(Paper { heard, stays }), hears)
}

fn web() -> ServiceKey {
    ServiceKey::public("web").unwrap()
}

fn id(port: u16) -> InstanceId {
    InstanceId::new("", "10.0.0.1", port).unwrap()
}

fn register(port: u16) -> Command {
    Command::Register { service: web(), instance: Instance::new(id(port)) }
}

fn heard(port: u16, health: Health) -> Command {
    let reason = Reason::Probe { code: Code::L4Ok, errno: 0 };
    Command::Heard { deltas: vec![Delta { service: web(), id: id(port), health, reason, rtt_ns: 1, due: None }] }
}

fn start() -> (Registry, Hub) {
    let registry = Registry::open(&Options::default()).unwrap();
    let hub = Hub::default();
    tokio::spawn(hub.clone().run(registry.clone()));
    (registry, hub)
}

/// Ports and health in a pushed list.
fn hosts(info: &Value) -> Vec<(u64, bool)> {
    let all = info["hosts"].as_array().unwrap().iter();
    all.map(|h| (h["port"].as_u64().unwrap(), h["healthy"].as_bool().unwrap())).collect()
}

/// Waits for the update that shows this; earlier ones may come before, later ones may not.
async fn until(hears: &mut mpsc::UnboundedReceiver<(Name, Value)>, want: &[(u64, bool)]) -> Name {
    loop {
        let (clusters, info) = hears.recv().await.unwrap();
        if hosts(&info) == want {
            return clusters;
        }
    }
}

/// A change is told to who subscribes to its service, in its selection; a reason that changes nothing is not.
#[tokio::test]
async fn changes_are_told() {
    let (registry, hub) = start();
    tokio::task::yield_now().await;
    let (all, mut hears_all) = paper(true);
    let (other, mut hears_other) = paper(true);
    hub.subscribe(&web(), "", "a".into(), all.clone()).unwrap();
    hub.subscribe(&web(), "other", "b".into(), other).unwrap();
    hub.subscribe(&ServiceKey::public("else").unwrap(), "", "c".into(), all).unwrap();
    assert_eq!((hub.count(), hub.labels(&web())), (3, vec!["a".to_owned(), "b".to_owned()]));
    registry.submit(register(80)).await.unwrap();
    assert_eq!(&*until(&mut hears_all, &[(80, true)]).await, "");
    assert_eq!(&*until(&mut hears_other, &[]).await, "other");
    registry.submit(heard(80, Health::Down)).await.unwrap();
    until(&mut hears_all, &[(80, false)]).await;
    let told = hub.stats().pushes.load(Ordering::Relaxed);
    registry.submit(heard(80, Health::Down)).await.unwrap();
    registry.submit(heard(80, Health::Up)).await.unwrap();
    until(&mut hears_all, &[(80, true)]).await;
    until(&mut hears_other, &[]).await;
    assert!(hub.stats().pushes.load(Ordering::Relaxed) - told <= 2, "what changes no list is not told");
    registry.stop();
}

/// Who comes later reads the present and hears the future; who goes, by itself or by its answer, hears no more.
#[tokio::test]
async fn who_leaves_hears_no_more() {
    let (registry, hub) = start();
    tokio::task::yield_now().await;
    let (once, mut hears_once) = paper(false);
    let (gone, mut hears_gone) = paper(true);
    let (stays, mut hears) = paper(true);
    hub.subscribe(&web(), "", "once".into(), once).unwrap();
    let ticket = hub.subscribe(&web(), "", "gone".into(), gone).unwrap();
    hub.subscribe(&web(), "", "stays".into(), stays).unwrap();
    hub.unsubscribe(&web(), ticket);
    hub.unsubscribe(&web(), ticket);
    registry.submit(register(80)).await.unwrap();
    until(&mut hears, &[(80, true)]).await;
    registry.submit(register(81)).await.unwrap();
    until(&mut hears, &[(80, true), (81, true)]).await;
    assert_eq!(hub.labels(&web()), ["stays"]);
    assert!(hears_once.recv().await.is_some() && hears_once.try_recv().is_err());
    assert!(hears_gone.try_recv().is_err());
    let now = Update::read(&registry, &web(), &Name::from(""));
    let (grouped, bare): (Value, Value) =
        (serde_json::from_str(now.grouped()).unwrap(), serde_json::from_str(now.bare()).unwrap());
    assert_eq!((&grouped["name"], &bare["name"]), (&"DEFAULT_GROUP@@web".into(), &"web".into()));
    assert_eq!(hosts(&bare).len(), 2);
    registry.stop();
}

/// Many changes at once are told in far fewer updates, and the last one is the latest.
#[tokio::test]
async fn a_deployment_is_told_together() {
    let (registry, hub) = start();
    tokio::task::yield_now().await;
    let (all, mut hears) = paper(true);
    hub.subscribe(&web(), "", "a".into(), all).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for port in 1..=500 {
        let registry = registry.clone();
        tasks.spawn(async move { registry.submit(register(port)).await.unwrap() });
    }
    tasks.join_all().await;
    let want: Vec<(u64, bool)> = (1..=500).map(|port| (port, true)).collect();
    until(&mut hears, &want).await;
    assert!(hub.stats().pushes.load(Ordering::Relaxed) < 250);
    registry.stop();
}

/// Over UDP: to the port that was named, packed if it is long, acknowledged or not.
#[tokio::test]
async fn datagrams() {
    use std::io::Read;
    let (registry, hub) = start();
    tokio::task::yield_now().await;
    let pusher = UdpPusher::bind("127.0.0.1:0".parse().unwrap(), hub.clone()).unwrap();
    tokio::spawn(pusher.clone().run());
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = client.local_addr().unwrap();
    for _ in 0..3 {
        pusher.renew(&web(), "", to, "Nacos-Java-Client:v1.0.0").unwrap();
    }
    assert_eq!(hub.labels(&web()), [format!("{to} Nacos-Java-Client:v1.0.0")], "renewed, not subscribed again");
    let mut buffer = vec![0; 65_536];
    for count in [1, 20] {
        for port in 1..=count {
            registry.submit(register(port)).await.unwrap();
        }
        loop {
            let (n, from) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!(from, pusher.address().unwrap());
            let mut text = String::new();
            if buffer.starts_with(&[0x1f, 0x8b]) {
                flate2::read::GzDecoder::new(&buffer[..n]).read_to_string(&mut text).unwrap();
                assert!(text.len() >= 1024);
            } else {
                text = String::from_utf8(buffer[..n].to_vec()).unwrap();
                assert!(n < 1024);
            }
            let pushed: Value = serde_json::from_str(&text).unwrap();
            let info: Value = serde_json::from_str(pushed["data"].as_str().unwrap()).unwrap();
            assert_eq!((&pushed["type"], &info["name"]), (&"dom".into(), &"DEFAULT_GROUP@@web".into()));
            let ack = json!({ "type": "push-ack", "lastRefTime": pushed["lastRefTime"], "data": "" }).to_string();
            client.send_to(ack.as_bytes(), from).await.unwrap();
            if hosts(&info).len() == usize::from(count) {
                break;
            }
        }
    }
    for (agent, want) in [("Nacos-Java-Client:v1.0.0", true), ("Nacos-Python-Client:v1", false), ("curl/8", false)] {
        assert_eq!(understands(agent), want, "{agent}");
    }
    registry.stop();
}
