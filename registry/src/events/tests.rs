//! Events as they are kept, and as a reader gets them over a real connection.

use super::*;
use crate::health::{Health, Reason};
use crate::http;
use crate::model::Instance;
use crate::service::Options;
use crate::table::{Command, Delta};
use ringspan_engine::outcome::Code;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

fn service(name: &str) -> ServiceKey {
    ServiceKey::public(name).unwrap()
}

fn id(port: u16) -> InstanceId {
    InstanceId::new("", "127.0.0.1", port).unwrap()
}

fn register(name: &str, port: u16) -> Command {
    Command::Register { service: service(name), instance: Instance::new(id(port)) }
}

pub(super) fn plain(number: u64) -> Event {
    Event { number, event: "service", at_ms: 0, place: None, instance: None, health: None, agent: None }
}

/// So many events happen at once.
pub(super) fn note(events: &Events, count: usize) {
    let change = Change::Service { service: service("web"), before: None, after: None };
    events.add(Arc::new(Changes { list: vec![change; count] }), Instant::ZERO, 0);
}

/// A reader goes on where it was, as long as that is kept; further behind, and ahead of all, it has lost its place.
#[test]
fn the_ring_is_bounded() {
    let events = Events::default();
    assert_eq!(events.after(0, 9), News::Events(vec![]));
    assert_eq!(events.read_id(&events.id(0)), Some(0));
    assert_eq!(events.read_id(&events.id(1)), None, "nothing that we ever said");
    assert_eq!(events.read_id("1-0"), None, "of another run");
    note(&events, 3);
    let numbers = |next| match next {
        News::Events(events) => events.iter().map(|e| e.number).collect::<Vec<_>>(),
        News::Missed(_) => panic!("it is kept"),
    };
    assert_eq!(numbers(events.after(1, 9)), [2, 3]);
    assert_eq!(numbers(events.after(0, 1)), [1]);
    note(&events, KEPT);
    assert_eq!(events.after(2, 9), News::Missed(1));
    assert_eq!(numbers(events.after(3, 2)), [4, 5]);
    events.skip(7);
    let missed = KEPT as u64 + 7;
    assert_eq!(events.after(3, 2), News::Missed(missed), "the registry was faster than we");
    assert_eq!(events.counts(), (KEPT as u64 + 10, 2));
    assert_eq!(events.after(3 + missed, 2), News::Events(vec![]));
}

/// Over a connection: a reader hears of its service alone, why, and how late; it comes back with the last id and misses
/// nothing; with an id of another run it is told to look anew.
#[tokio::test]
async fn readers_come_back() {
    let registry = Registry::open(&Options::default()).unwrap();
    let events = Events::default();
    let running = tokio::spawn(events.clone().run(registry.clone()));
    let options = http::Options { events: events.clone(), ..http::Options::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, http::router(registry_of(), options)).await });
    // The router's registry is another one: events come from ours.
    fn registry_of() -> Registry {
        Registry::open(&Options::default()).unwrap()
    }
    let read = |last: Option<String>| async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let head = format!("GET /api/v1/events?service=web HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{last}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        while !lines.next_line().await.unwrap().unwrap().is_empty() {}
        lines
    };
    // `event`, `id` and `data` of the next event; chunk sizes between them are skipped.
    macro_rules! next {
        ($lines:expr) => {{
            let mut found = std::collections::BTreeMap::new();
            while !found.contains_key("data") {
                let line = $lines.next_line().await.unwrap().expect("the stream goes on");
                if let Some((key, value)) = line.split_once(": ") {
                    found.insert(key.to_owned(), value.to_owned());
                }
            }
            (found["event"].clone(), found["id"].clone(), found["data"].clone())
        }};
    }
    let mut reader = read(None).await;
    registry.submit(register("other", 1)).await.unwrap();
    registry.submit(register("web", 1)).await.unwrap();
    let (event, first, _) = next!(reader);
    assert_eq!(event, "registered");
    let reason = Reason::Probe { code: Code::L4Refused, errno: 111 };
    let due = Some(registry.now());
    let delta = Delta { service: service("web"), id: id(1), health: Health::Down, reason, rtt_ns: 9_000, due };
    registry.submit(Command::Heard { deltas: vec![delta] }).await.unwrap();
    let (event, _, data) = next!(reader);
    let data: serde_json::Value = serde_json::from_str(&data).unwrap();
    assert_eq!((event.as_str(), &data["was"], &data["is"]), ("health", &"unknown".into(), &"down".into()));
    assert_eq!((&data["reason"], &data["port"], &data["rtt_us"]), (&"L4CON".into(), &1.into(), &9.into()));
    assert!(data["latency_us"].is_u64(), "{data}");
    drop(reader);
    registry.submit(Command::Deregister { service: service("web"), id: id(1), ephemeral: None }).await.unwrap();
    let mut reader = read(Some(first)).await;
    assert_eq!(next!(reader).0, "health");
    let (event, last, _) = next!(reader);
    assert_eq!(event, "removed");
    let mut stranger = read(Some(format!("1-{}", last.split_once('-').unwrap().1))).await;
    let (event, _, data) = next!(stranger);
    assert_eq!(event, "missed");
    assert!(data.starts_with("{\"missed\":null,"), "{data}");
    events.close();
    while stranger.next_line().await.unwrap().is_some() {}
    server.abort();
    running.abort();
    registry.stop();
}

/// A reader that does not read is told how many it missed, in their place: what it got and what it missed are all there
/// were, in order.
#[tokio::test]
async fn slow_readers_are_told() {
    let events = Events::default();
    let options = http::Options { events: events.clone(), ..http::Options::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let registry = Registry::open(&Options::default()).unwrap();
    let router = http::router(registry.clone(), options);
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !lines.next_line().await.unwrap().unwrap().is_empty() {}
    // More than the sockets between us hold, and in one step more than is kept.
    let total = 40 * KEPT as u64;
    for _ in 0..4 {
        note(&events, 10 * KEPT);
        tokio::task::yield_now().await;
    }
    let (mut at, mut got, mut missed) = (0, 0, 0);
    while at < total {
        let line = lines.next_line().await.unwrap().expect("the stream goes on");
        if let Some(id) = line.strip_prefix("id: ") {
            let number: u64 = id.split_once('-').unwrap().1.parse().unwrap();
            assert!(number > at, "{number} comes behind {at}");
            at = number;
        } else if let Some(rest) = line.strip_prefix("data: {\"missed\":") {
            missed += rest.split_once(',').unwrap().0.parse::<u64>().unwrap();
        } else if line.starts_with("event: service") {
            got += 1;
        }
    }
    assert!(missed >= 9 * KEPT as u64 && got >= KEPT as u64, "{got} {missed}");
    assert_eq!(got + missed, total);
    server.abort();
    registry.stop();
}
