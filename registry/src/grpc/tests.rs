//! Over real sockets, with a real client (tonic's), and with some that are no clients at all.

mod bad;
mod hostile;

use super::payload::{Payload, REQUEST_PATH, STREAM_PATH};
use super::*;
use crate::model::{InstanceId, ServiceKey};
use crate::push::Hub;
use crate::service::{Options, Registry};
use axum::http::uri::PathAndQuery;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt};
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Longer than any step takes on a busy machine; what does not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A registry, its pushes and its server.
struct World {
    registry: Registry,
    hub: Hub,
    clients: Clients,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

impl World {
    async fn start(limits: Limits) -> World {
        let registry = Registry::open(&Options::default()).unwrap();
        let (hub, clients) = (Hub::default(), Clients::default());
        tokio::spawn(hub.clone().run(registry.clone()));
        let server = GrpcServer::on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let address = server.address().unwrap();
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(server.serve(registry.clone(), hub.clone(), clients.clone(), limits, stopping));
        World { registry, hub, clients, address, stop }
    }

    async fn peer(&self) -> Peer {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        Peer { channel: within(endpoint.connect()).await.unwrap() }
    }

    /// The ports of a service's instances, as readers see them.
    fn ports(&self, service: &str) -> Vec<u16> {
        let view = self.registry.snapshot().service(&ServiceKey::public(service).unwrap());
        view.map_or_else(Vec::new, |v| v.instances.iter().map(|i| i.record.id.port()).collect())
    }

    /// Waits until the ports are these.
    async fn until_ports(&self, service: &str, want: &[u16]) {
        let mut changes = self.registry.subscribe();
        within(async {
            while self.ports(service) != want {
                changes.recv().await.unwrap();
            }
        })
        .await;
    }

    /// Waits until this many connections ended for this reason.
    async fn until_ended(&self, reason: &str, count: u64) {
        let is_so = || self.clients.stats().ends().any(|(r, n)| r == reason && n >= count);
        within(async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.registry.stop();
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it comes in time")
}

/// A client as SDKs are: one connection.
struct Peer {
    channel: Channel,
}

impl Peer {
    async fn ready(&self) -> Grpc<Channel> {
        let mut grpc = Grpc::new(self.channel.clone());
        within(grpc.ready()).await.unwrap();
        grpc
    }

    async fn send(&self, payload: Payload) -> Result<Payload, tonic::Status> {
        let request = tonic::Request::new(payload);
        let codec = ProstCodec::<Payload, Payload>::default();
        let answer = within(self.ready().await.unary(request, PathAndQuery::from_static(REQUEST_PATH), codec)).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn ask(&self, kind: &str, json: Value) -> (String, Value) {
        read(&self.send(Payload::new(kind, json.to_string())).await.unwrap())
    }

    /// As [`Peer::ask`], which must be answered well.
    async fn done(&self, kind: &str, json: Value) -> Value {
        let (answer, json) = self.ask(kind, json).await;
        assert_eq!((&json["resultCode"], &json["errorCode"], &json["success"]), (&200.into(), &0.into(), &true.into()));
        assert_ne!(answer, "ErrorResponse");
        json
    }

    async fn stream(&self) -> Result<(mpsc::Sender<Payload>, Streaming<Payload>), tonic::Status> {
        let (sender, receiver) = mpsc::channel(16);
        let codec = ProstCodec::<Payload, Payload>::default();
        let outbound = tonic::Request::new(Receiving(receiver));
        let opened =
            within(self.ready().await.streaming(outbound, PathAndQuery::from_static(STREAM_PATH), codec)).await;
        opened.map(|answer| (sender, answer.into_inner()))
    }

    /// Introduces itself as Java does, and has its answer.
    async fn set_up(&self) -> Line {
        let (say, hear) = self.stream().await.unwrap();
        let mut line = Line { say, hear };
        let setup = json!({ "clientVersion": "Nacos-Java-Client:v2.3.0", "abilityTable": {}, "labels": {} });
        line.say("ConnectionSetupRequest", setup).await;
        let (kind, ack) = line.hear().await.unwrap();
        assert_eq!(
            (&*kind, &ack["abilityTable"]["supportPersistentInstanceByGrpc"]),
            ("SetupAckRequest", &true.into())
        );
        assert_eq!(ack["abilityTable"]["fuzzyWatch"], false, "what is not served is not announced");
        line
    }
}

fn read(payload: &Payload) -> (String, Value) {
    (payload.kind().to_owned(), serde_json::from_slice(payload.json()).unwrap())
}

struct Receiving(mpsc::Receiver<Payload>);

impl Stream for Receiving {
    type Item = Payload;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Payload>> {
        self.0.poll_recv(cx)
    }
}

/// The stream of a client that has introduced itself.
struct Line {
    say: mpsc::Sender<Payload>,
    hear: Streaming<Payload>,
}

impl Line {
    async fn say(&self, kind: &str, json: Value) {
        self.say.send(Payload::new(kind, json.to_string())).await.unwrap();
    }

    /// What comes next; `None`: the stream has ended.
    async fn hear(&mut self) -> Option<(String, Value)> {
        within(self.hear.next()).await.and_then(Result::ok).map(|payload| read(&payload))
    }

    /// The ports that the next push tells of; it is acknowledged.
    async fn pushed(&mut self) -> Vec<u64> {
        let (kind, push) = self.hear().await.unwrap();
        assert_eq!(
            (&*kind, &push["headers"], &push["module"]),
            ("NotifySubscriberRequest", &json!({}), &"naming".into())
        );
        self.say("NotifySubscriberResponse", json!({ "requestId": push["requestId"], "resultCode": 200 })).await;
        ports(&push["serviceInfo"])
    }
}

fn ports(info: &Value) -> Vec<u64> {
    assert_eq!((&info["name"], &info["groupName"]), (&"web".into(), &"DEFAULT_GROUP".into()), "the bare name: {info}");
    info["hosts"].as_array().unwrap().iter().map(|h| h["port"].as_u64().unwrap()).collect()
}

fn of_service(kind: &str, port: u16) -> Value {
    let instance = json!({ "ip": "10.0.0.1", "port": port, "metadata": { "zone": "a" }, "clusterName": null });
    json!({ "requestId": "7", "namespace": "", "serviceName": "web", "groupName": "", "type": kind, "instance": instance })
}

fn subscription(subscribe: bool) -> Value {
    json!({ "serviceName": "web", "groupName": "DEFAULT_GROUP", "clusters": "", "subscribe": subscribe })
}

/// The life of a client, from its first question to the loss of its connection: what one registers, another is told of,
/// and it is gone with its connection.
#[tokio::test]
async fn a_life() {
    let world = World::start(Limits::default()).await;
    let (one, two) = (world.peer().await, world.peer().await);
    let check = one.done("ServerCheckRequest", json!({})).await;
    assert_eq!(check["supportAbilityNegotiation"], true);
    let (kind, sorry) = one.ask("ServiceListRequest", json!({ "requestId": "1" })).await;
    assert_eq!((&*kind, &sorry["errorCode"], &sorry["requestId"]), ("ErrorResponse", &301.into(), &"1".into()));
    let (kind, sorry) = one.ask("HealthCheckRequest", json!({})).await;
    assert_eq!((&*kind, &sorry["errorCode"]), ("ErrorResponse", &500.into()), "to a 3xx clients say: well, go on");
    let (_line_one, mut line) = (one.set_up().await, two.set_up().await);
    one.done("HealthCheckRequest", json!({})).await;
    let watch = json!({ "groupKeyPattern": "public>>*>>web*", "watchType": "WATCH", "initializing": true });
    let (kind, sorry) = one.ask("NamingFuzzyWatchRequest", watch).await;
    assert_eq!((&*kind, &sorry["errorCode"]), ("ErrorResponse", &302.into()), "asked for all the same");

    let subscribed = two.done("SubscribeServiceRequest", subscription(true)).await;
    assert_eq!(ports(&subscribed["serviceInfo"]), [0_u64; 0], "clients subscribe before servers register");
    assert_eq!(line.pushed().await, [0_u64; 0], "clients that throw the answer away are told, too");
    let done = one.done("InstanceRequest", of_service("registerInstance", 80)).await;
    assert_eq!((&done["type"], &done["requestId"]), (&"registerInstance".into(), &"7".into()));
    assert_eq!(line.pushed().await, [80]);
    one.done("InstanceRequest", of_service("registerInstance", 81)).await;
    assert_eq!(line.pushed().await, [80, 81]);
    let info =
        two.done("ServiceQueryRequest", json!({ "serviceName": "web", "cluster": "", "healthOnly": true })).await;
    assert_eq!(ports(&info["serviceInfo"]), [80, 81]);
    let host = &info["serviceInfo"]["hosts"][0];
    assert_eq!(
        (&host["healthy"], &host["ephemeral"], &host["metadata"]["zone"]),
        (&true.into(), &true.into(), &"a".into())
    );
    let names =
        two.done("ServiceListRequest", json!({ "pageNo": 1, "pageSize": 10, "groupName": "DEFAULT_GROUP" })).await;
    assert_eq!((&names["count"], &names["serviceNames"]), (&1.into(), &json!(["web"])));
    one.done("InstanceRequest", of_service("deregisterInstance", 80)).await;
    assert_eq!(line.pushed().await, [81]);
    assert_eq!(world.hub.count(), 1);
    let shown: Vec<_> = world.clients.list().iter().map(|c| (c.version.clone(), c.subscriptions)).collect();
    assert_eq!(shown, [("Nacos-Java-Client:v2.3.0".to_owned(), 0), ("Nacos-Java-Client:v2.3.0".to_owned(), 1)]);

    drop((one, _line_one));
    assert_eq!(line.pushed().await, [0_u64; 0], "gone with its connection");
    two.done("SubscribeServiceRequest", subscription(false)).await;
    assert_eq!(world.hub.count(), 0);
    let stats = world.clients.stats();
    within(async {
        while stats.acks() < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((stats.pushes(), stats.unacked()), (5, 0));
}

/// A client that is back on a new connection before the old one is known to be dead is there once, and stays.
#[tokio::test]
async fn who_comes_back_is_there_once() {
    let world = World::start(Limits::default()).await;
    let (old, new) = (world.peer().await, world.peer().await);
    let old_line = old.set_up().await;
    old.done("InstanceRequest", of_service("registerInstance", 80)).await;
    old.done("InstanceRequest", of_service("registerInstance", 81)).await;
    let _line = new.set_up().await;
    new.done("InstanceRequest", of_service("registerInstance", 80)).await;
    assert_eq!(world.ports("web"), [80, 81]);
    drop((old, old_line));
    world.until_ports("web", &[80]).await;
    new.done("InstanceRequest", of_service("deregisterInstance", 80)).await;
    assert_eq!(world.ports("web"), [0_u16; 0]);
}

/// A batch is all that a connection has in a service; ending the stream alone ends the client.
#[tokio::test]
async fn batches_replace() {
    let world = World::start(Limits::default()).await;
    let peer = world.peer().await;
    let line = peer.set_up().await;
    for ports in [[80, 81], [81, 82]] {
        let instances: Vec<_> =
            ports.iter().map(|port| json!({ "ip": "10.0.0.1", "port": port, "weight": 2 })).collect();
        let batch = json!({ "serviceName": "web", "type": "batchRegisterInstance", "instances": instances });
        peer.done("BatchInstanceRequest", batch).await;
        assert_eq!(world.ports("web"), ports);
    }
    drop(line);
    world.until_ports("web", &[]).await;
    world.until_ended("closed", 1).await;
}

/// Persistent instances outlive the connection, and answers to what cannot be carry Nacos' codes.
#[tokio::test]
async fn persistent_ones_stay_and_mistakes_are_answered() {
    let world = World::start(Limits::default()).await;
    let peer = world.peer().await;
    let line = peer.set_up().await;
    peer.done("PersistentInstanceRequest", of_service("registerInstance", 80)).await;
    let mut nameless = of_service("registerInstance", 80);
    nameless["serviceName"] = "".into();
    let mistakes = [
        ("InstanceRequest", of_service("registerInstance", 81), 400, "is persistent service"),
        ("InstanceRequest", nameless, 400, "serviceName"),
        ("InstanceRequest", of_service("dance", 80), 400, "dance"),
        ("InstanceRequest", json!({ "serviceName": "web" }), 400, "instance"),
        ("InstanceRequest", json!({ "serviceName": ["web"] }), 400, "JSON"),
        ("BatchInstanceRequest", json!({ "serviceName": "web" }), 400, "instances"),
        ("ConfigQueryRequest", json!({ "dataId": "d", "group": "g" }), 302, "configuration"),
        ("NoSuchRequest", json!({}), 302, "NoSuchRequest"),
    ];
    for (kind, asked, code, word) in mistakes {
        let (answer, sorry) = peer.ask(kind, asked).await;
        assert_eq!((&*answer, &sorry["errorCode"], &sorry["success"]), ("ErrorResponse", &code.into(), &false.into()));
        assert!(sorry["message"].as_str().unwrap().contains(word), "{sorry}");
    }
    drop((peer, line));
    world.until_ended("closed", 1).await;
    assert_eq!(world.ports("web"), [80]);
    let back = world.peer().await;
    let _line = back.set_up().await;
    back.done("PersistentInstanceRequest", of_service("deregisterInstance", 80)).await;
    assert_eq!(world.ports("web"), [0_u16; 0]);
}

/// A silent client is asked whether it is there: who answers stays, who does not is gone, with what it published.
#[tokio::test]
async fn silence_is_asked_about() {
    let limits =
        Limits { silence_max: Duration::from_millis(100), answer_max: Duration::from_secs(1), ..Limits::default() };
    let world = World::start(limits).await;
    let (alive, dead) = (world.peer().await, world.peer().await);
    let (mut line, mut dead_line) = (alive.set_up().await, dead.set_up().await);
    alive.done("InstanceRequest", of_service("registerInstance", 80)).await;
    dead.done("InstanceRequest", of_service("registerInstance", 81)).await;
    let living = tokio::spawn(async move {
        while let Some((kind, asked)) = line.hear().await {
            assert_eq!(kind, "ClientDetectionRequest");
            line.say("ClientDetectionResponse", json!({ "requestId": asked["requestId"], "resultCode": 200 })).await;
        }
    });
    assert_eq!(dead_line.hear().await.unwrap().0, "ClientDetectionRequest");
    world.until_ports("web", &[80]).await;
    assert!(dead_line.hear().await.is_none_or(|(kind, _)| kind == "ClientDetectionRequest"));
    world.until_ended("silent", 1).await;
    assert!(!living.is_finished());
    assert_eq!(world.ports("web"), [80]);
    living.abort();
}

/// A server that stops tells its clients to go elsewhere, and ends their streams.
#[tokio::test]
async fn a_stop_is_told() {
    let world = World::start(Limits::default()).await;
    let peer = world.peer().await;
    let mut line = peer.set_up().await;
    world.stop.send(true).unwrap();
    assert_eq!(line.hear().await.unwrap().0, "ConnectResetRequest");
    assert!(line.hear().await.is_none());
}

/// One connection too many is closed, one subscription too many refused, and both are counted.
#[tokio::test]
async fn limits_hold() {
    let world = World::start(Limits { connections_max: 2, subscriptions_max: 1, ..Limits::default() }).await;
    let peer = world.peer().await;
    let _line = peer.set_up().await;
    peer.done("SubscribeServiceRequest", subscription(true)).await;
    peer.done("SubscribeServiceRequest", subscription(true)).await;
    let (_, sorry) = peer.ask("SubscribeServiceRequest", json!({ "serviceName": "db", "subscribe": true })).await;
    assert_eq!(sorry["errorCode"], 503);
    let second = world.peer().await;
    second.done("ServerCheckRequest", json!({})).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", world.address)).unwrap();
    let third = match within(endpoint.connect()).await {
        Ok(channel) => Peer { channel }.send(Payload::new("ServerCheckRequest", "{}".into())).await.is_err(),
        Err(_) => true,
    };
    assert!(third);
    assert!(world.clients.stats().refused() >= 1);
    assert_eq!(world.clients.count(), 2);
    peer.done("HealthCheckRequest", json!({})).await;
    let id = InstanceId::new("", "10.0.0.1", 80).unwrap();
    assert!(world.registry.snapshot().service(&ServiceKey::public("web").unwrap()).is_none(), "{id}");
}
