//! Payloads that no client sends: every one is answered or ends its own connection, and nobody panics.
//! Method: seeded; in process, where a panic is the test's own, and over a socket. See [`crate::hostile`].

use super::*;
use crate::grpc::answer::answer;
use crate::grpc::body::Budget;
use crate::grpc::client::{Client, House};
use crate::grpc::stats::End;
use crate::hostile::{Dice, Replay, panics, seeds};
use bytes::{BufMut, Bytes};
use prost::Message;
use std::sync::Arc;
use tonic::codec::{Codec, EncodeBuf, Encoder};

/// All that is served, some that is not, and some that is said on the stream.
const KINDS: [&str; 16] = [
    "ServerCheckRequest",
    "HealthCheckRequest",
    "InstanceRequest",
    "PersistentInstanceRequest",
    "BatchInstanceRequest",
    "ServiceQueryRequest",
    "ServiceListRequest",
    "SubscribeServiceRequest",
    "ConnectionSetupRequest",
    "NotifySubscriberResponse",
    "NamingFuzzyWatchRequest",
    "NamingFuzzyWatchSyncRequest",
    "ConfigQueryRequest",
    "SetupAckRequest",
    "ErrorResponse",
    "",
];

/// A request with the fields that requests have, each as it should be or not.
fn request(dice: &mut Dice) -> Value {
    let mut request =
        json!({ "headers": {}, "requestId": "1", "namespace": "", "serviceName": "web", "groupName": "" });
    request["type"] = dice.one_of(&["registerInstance", "deregisterInstance", "batchRegisterInstance"]).into();
    request["instance"] = instance(dice);
    request["instances"] = (0..dice.below(4)).map(|_| instance(dice)).collect::<Vec<_>>().into();
    request["subscribe"] = dice.one_in(2).into();
    const FIELDS: [&str; 18] = [
        "headers",
        "requestId",
        "namespace",
        "serviceName",
        "groupName",
        "type",
        "instance",
        "instances",
        "subscribe",
        "cluster",
        "clusters",
        "healthyOnly",
        "healthOnly",
        "pageNo",
        "pageSize",
        "clientVersion",
        "abilityTable",
        "labels",
    ];
    for field in FIELDS {
        if dice.one_in(8) {
            request[field] = dice.json(3);
        }
    }
    request
}

fn instance(dice: &mut Dice) -> Value {
    let mut instance = json!({ "ip": "10.0.0.1", "port": dice.below(4), "metadata": {}, "clusterName": "DEFAULT" });
    for field in ["ip", "port", "weight", "healthy", "enabled", "ephemeral", "clusterName", "metadata", "serviceName"] {
        if dice.one_in(6) {
            instance[field] = dice.json(2);
        }
    }
    if dice.one_in(4) {
        let key = dice.one_of(&[
            "preserved.checker",
            "preserved.vantage",
            "preserved.quorum",
            "preserved.heart.beat.timeout",
        ]);
        instance["metadata"] = json!({ key: dice.text() });
    }
    instance
}

/// The bytes of a payload, or of none.
fn payload(dice: &mut Dice) -> Vec<u8> {
    if dice.one_in(6) {
        return dice.bytes(200);
    }
    let json = match dice.below(6) {
        0 => dice.bytes(60),
        1 => dice.json(4).to_string().into_bytes(),
        _ => request(dice).to_string().into_bytes(),
    };
    let kind = if dice.one_in(10) { dice.text() } else { dice.one_of(&KINDS).to_owned() };
    let mut payload = Payload::new(&kind, String::new());
    let json = if dice.one_in(6) { dice.spoil(json) } else { json };
    payload.body.as_mut().expect("it has one").value = json.into();
    let bytes = payload.encode_to_vec();
    if dice.one_in(6) { dice.spoil(bytes) } else { bytes }
}

/// What every client insists on in an answer.
fn check(answer: &Payload) {
    let (kind, json) = read(answer);
    let is_good = kind != "ErrorResponse";
    assert_eq!(
        (&json["success"], json["resultCode"] == 200, json["errorCode"] == 0),
        (&is_good.into(), is_good, is_good)
    );
    assert!(
        is_good || (json["resultCode"] == 500 && json["errorCode"].as_u64() > Some(0) && json["message"].is_string())
    );
    assert!(kind.ends_with("Response"), "{kind}");
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(all) => all.iter().any(has_null),
            Value::Object(all) => all.values().any(has_null),
            _ => false,
        }
    }
    assert!(!has_null(&json), "{json}");
}

/// Whatever bytes come as a question, there is an answer that clients can read, and the registry goes on.
#[tokio::test]
async fn questions_are_answered() {
    for seed in seeds() {
        let (_replay, mut dice) = (Replay(seed), Dice::new(seed));
        let registry = Registry::open(&Options::default()).unwrap();
        let (hub, clients, limits) = (Hub::default(), Clients::default(), Limits::default());
        let (access, bytes) = (crate::access::Access::default(), Budget::new(1 << 20));
        let house = Arc::new(House { registry: registry.clone(), access, hub, limits, clients, bytes });
        let client = Client::enter(&house, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        client.introduce("Nacos-Java-Client:v2.3.0");
        for _ in 0..200 {
            if let Ok(asked) = Payload::decode(&*payload(&mut dice)) {
                check(&answer(&client, &asked).await);
            }
        }
        check(&answer(&client, &Payload::new("HealthCheckRequest", String::new())).await);
        client.leave(End::Closed).await;
        registry.stop();
    }
}

/// Sends bytes as they are.
#[derive(Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Payload;
    type Encoder = RawCodec;
    type Decoder = <ProstCodec<Payload, Payload> as Codec>::Decoder;

    fn encoder(&mut self) -> RawCodec {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<Payload, Payload>::default().decoder()
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        into.put(item);
        Ok(())
    }
}

/// The same over a socket, on both methods: nothing panics, whoever is good is served all the while, and what the hostile
/// ones had goes with their connections.
#[tokio::test]
async fn connections_bear_it() {
    let before = panics();
    let world = World::start(Limits::default()).await;
    let good = world.peer().await;
    let _line = good.set_up().await;
    for seed in seeds().take(16) {
        let (_replay, mut dice) = (Replay(seed), Dice::new(seed));
        let peer = world.peer().await;
        let line = peer.set_up().await;
        for _ in 0..20 {
            let mut grpc = peer.ready().await;
            let raw = tonic::Request::new(Bytes::from(payload(&mut dice)));
            // An answer or a status: both are one.
            let _ = within(grpc.unary(raw, PathAndQuery::from_static(REQUEST_PATH), RawCodec)).await;
            if let Ok(said) = Payload::decode(&*payload(&mut dice)) {
                let _ = line.say.try_send(said);
            }
        }
        good.done("HealthCheckRequest", json!({})).await;
        drop((peer, line));
    }
    within(async {
        while world.clients.count() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    good.done("HealthCheckRequest", json!({})).await;
    assert_eq!(panics(), before);
}
