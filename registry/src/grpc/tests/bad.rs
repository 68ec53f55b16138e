//! Clients that are none: garbage, floods, and those who never read or answer. Each costs itself.

use super::super::answer::answer;
use super::super::body::Budget;
use super::super::client::{Client, House};
use super::*;
use crate::table::Command;
use proptest::prelude::*;
use prost::Message;

/// An introduced client without a socket.
fn client(registry: &Registry) -> std::sync::Arc<Client> {
    let (hub, clients, bytes) = (Hub::default(), Clients::default(), Budget::new(1 << 20));
    let house = House {
        registry: registry.clone(),
        access: Default::default(),
        hub,
        limits: Limits::default(),
        clients,
        bytes,
    };
    let client = Client::enter(&std::sync::Arc::new(house), SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    client.introduce("fuzz");
    client
}

const FIELDS: [&str; 16] = [
    "requestId",
    "namespace",
    "serviceName",
    "groupName",
    "type",
    "instance",
    "instances",
    "cluster",
    "clusters",
    "healthyOnly",
    "subscribe",
    "pageNo",
    "pageSize",
    "ip",
    "port",
    "metadata",
];
const KINDS: [&str; 10] = [
    "ServerCheckRequest",
    "HealthCheckRequest",
    "InstanceRequest",
    "PersistentInstanceRequest",
    "BatchInstanceRequest",
    "ServiceQueryRequest",
    "ServiceListRequest",
    "SubscribeServiceRequest",
    "ConfigQueryRequest",
    "",
];

/// JSON of the shapes that requests have, with anything in any place.
fn jsons() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["web", "10.0.0.1", "registerInstance", "deregisterInstance", "a@@b", "", "\0"])
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        (1..65_536_u32).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 8, |inner| {
        let field = prop::sample::select(FIELDS.to_vec()).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(field, inner, 0..8).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Whatever a payload holds, it is answered: with JSON that says how it went, and of a kind that clients know.
    #[test]
    fn every_payload_is_answered(
        kind in prop_oneof![4 => prop::sample::select(KINDS.to_vec()).prop_map(str::to_owned), 1 => any::<String>()],
        body in prop_oneof![4 => jsons().prop_map(|j| j.to_string().into_bytes()), 1 => any::<Vec<u8>>()],
        bytes in any::<Vec<u8>>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let registry = Registry::open(&Options::default()).unwrap();
        let client = client(&registry);
        let mut asked = Payload::new(&kind, String::new());
        asked.body.as_mut().unwrap().value = body.into();
        for asked in [Some(asked), Payload::decode(&*bytes).ok()].into_iter().flatten() {
            let answer = runtime.block_on(answer(&client, &asked));
            let (kind, json) = read(&answer);
            prop_assert!(kind.ends_with("Response"), "{}", kind);
            let good = json["resultCode"] == 200 && json["errorCode"] == 0 && json["success"] == true;
            let bad = json["resultCode"] == 500 && json["errorCode"].as_u64() > Some(0) && json["message"].is_string();
            prop_assert!(if kind == "ErrorResponse" { bad } else { good }, "{}", json);
        }
        registry.stop();
    }
}

/// What is no protobuf, too large or for nobody is refused on its own stream; the connection goes on.
#[tokio::test]
async fn nonsense_is_refused() {
    let world = World::start(Limits::default()).await;
    let peer = world.peer().await;
    let _line = peer.set_up().await;
    let huge = Payload::new("InstanceRequest", " ".repeat(3 << 20));
    assert!(peer.send(huge).await.is_err());
    let elsewhere = PathAndQuery::from_static("/Request/elsewhere");
    let codec = ProstCodec::<Payload, Payload>::default();
    let lost = within(peer.ready().await.unary(tonic::Request::new(Payload::default()), elsewhere, codec)).await;
    assert_eq!(lost.unwrap_err().code(), tonic::Code::Unimplemented);
    // A message whose bytes are none of ours: field 2 says it is longer than all there is.
    let codec = ProstCodec::<Raw, Payload>::default();
    let raw = tonic::Request::new(Raw { bytes: vec![0xff; 64].into() });
    let refused = within(peer.ready().await.unary(raw, PathAndQuery::from_static(REQUEST_PATH), codec)).await;
    assert!(refused.is_err());
    peer.done("HealthCheckRequest", json!({})).await;
}

/// Encodes as `metadata` that is no message.
#[derive(Clone, PartialEq, Message)]
struct Raw {
    #[prost(bytes = "bytes", tag = "2")]
    bytes: bytes::Bytes,
}

/// A thousand streams on one connection: it has one, the rest are refused, and nobody else notices.
#[tokio::test]
async fn a_thousand_streams() {
    let world = World::start(Limits::default()).await;
    let (flood, other) = (world.peer().await, world.peer().await);
    let _other_line = other.set_up().await;
    let _first = flood.set_up().await;
    let mut refused = 0;
    for _ in 0..1_000 {
        let status = flood.stream().await.map(|_| ()).unwrap_err();
        refused += usize::from(status.code() == tonic::Code::ResourceExhausted);
    }
    assert_eq!(refused, 1_000);
    other.done("HealthCheckRequest", json!({})).await;
    flood.done("HealthCheckRequest", json!({})).await;
}

/// A subscriber that never acknowledges is counted and goes on being told; one that never reads is closed, and comes back
/// to read anew. The one beside them is told of every state it has time for, and of the last one.
#[tokio::test]
async fn who_does_not_read_or_acknowledge() {
    // Long enough that a busy machine does not make the good one look deaf.
    let limits =
        Limits { stall_max: Duration::from_secs(3), answer_max: Duration::from_millis(200), ..Limits::default() };
    let world = World::start(limits).await;
    let good = world.peer().await;
    let mut good_line = good.set_up().await;
    good.done("SubscribeServiceRequest", subscription(true)).await;
    let mute = world.peer().await;
    let mut mute_line = mute.set_up().await;
    mute.done("SubscribeServiceRequest", subscription(true)).await;
    let deaf = {
        let endpoint = Endpoint::from_shared(format!("http://{}", world.address)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(2_048).initial_connection_window_size(1 << 20);
        Peer { channel: within(endpoint.connect()).await.unwrap() }
    };
    let _deaf_line = deaf.set_up().await;
    deaf.done("SubscribeServiceRequest", subscription(true)).await;
    // It never reads its stream, and goes on asking, until its connection ends: with a question under way, or between two; the
    // library then makes another connection, where nobody knows it.
    let asking = tokio::spawn(async move {
        while let Ok(answer) = deaf.send(Payload::new("HealthCheckRequest", "{}".into())).await {
            if answer.kind() != "HealthCheckResponse" {
                break;
            }
            tokio::task::yield_now().await;
        }
    });
    let hearing = tokio::spawn(async move {
        while let Some((kind, _)) = mute_line.hear().await {
            if kind == "ClientDetectionRequest" {
                mute_line.say("ClientDetectionResponse", json!({ "resultCode": 200 })).await;
            }
        }
    });
    let web = ServiceKey::public("web").unwrap();
    let register = |port| {
        let instance = crate::model::Instance::new(InstanceId::new("", "10.0.0.1", port).unwrap());
        world.registry.submit(Command::Register { service: web.clone(), instance })
    };
    for port in 1..=40 {
        register(port).await.unwrap();
        while good_line.pushed().await.last() != Some(&u64::from(port)) {}
    }
    world.until_ended("stalled", 1).await;
    within(asking).await.unwrap();
    within(async {
        while world.clients.stats().unacked() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    register(41).await.unwrap();
    while good_line.pushed().await.last() != Some(&41) {}
    assert_eq!((world.clients.count(), world.hub.count(), hearing.is_finished()), (2, 2, false));
    hearing.abort();
}
