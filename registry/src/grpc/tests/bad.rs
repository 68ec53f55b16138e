//! Clients that are none: floods, and those who never read or answer. Each costs itself. (Garbage: `hostile`.)

use super::*;
use crate::table::Command;
use prost::Message;

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
