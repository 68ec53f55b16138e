//! A client as Nacos' SDKs are over gRPC: one connection, questions, and pushes that it acknowledges. Not part of `common`:
//! who needs it includes it, so that the others do not build a gRPC client.

use super::common::PATIENCE;
use prost::bytes::Bytes;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "3")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(string, tag = "3")]
    kind: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

fn payload(kind: &str, json: &Value) -> Payload {
    let body = Body { value: json.to_string().into() };
    Payload { metadata: Some(Metadata { kind: kind.to_owned() }), body: Some(body) }
}

fn read(payload: Payload) -> (String, Value) {
    let json = serde_json::from_slice(&payload.body.expect("a body").value).expect("JSON");
    (payload.metadata.expect("a kind").kind, json)
}

/// Connected and introduced.
pub(crate) struct Nacos {
    runtime: Runtime,
    channel: Channel,
    say: mpsc::Sender<Payload>,
    hear: Streaming<Payload>,
}

impl Nacos {
    pub(crate) fn connect(to: SocketAddr) -> Nacos {
        let runtime = Runtime::new().expect("a runtime");
        let (channel, say, hear) = runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("http://{to}")).expect("an address");
            let channel = timeout(PATIENCE, endpoint.connect()).await.expect("in time").expect("it listens");
            let (say, receiver) = mpsc::channel::<Payload>(16);
            let setup = json!({ "clientVersion": "Nacos-Java-Client:v2.3.0", "abilityTable": {}, "labels": {} });
            say.send(payload("ConnectionSetupRequest", &setup)).await.expect("room");
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await.expect("it is ready");
            let path = "/BiRequestStream/requestBiStream".parse().expect("a path");
            let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
            let opened = grpc.streaming(tonic::Request::new(outbound), path, ProstCodec::default());
            let hear = timeout(PATIENCE, opened).await.expect("in time").expect("it opens").into_inner();
            (channel, say, hear)
        });
        let mut nacos = Nacos { runtime, channel, say, hear };
        assert_eq!(nacos.hear().0, "SetupAckRequest");
        nacos
    }

    fn hear(&mut self) -> (String, Value) {
        let next = self.runtime.block_on(async { timeout(PATIENCE, self.hear.message()).await });
        read(next.expect("in time").expect("well").expect("the stream goes on"))
    }

    /// The answer, which must be a good one.
    pub(crate) fn ask(&self, kind: &str, question: &Value) -> Value {
        let answer = self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.expect("it is ready");
            let path = "/Request/request".parse().expect("a path");
            let codec = ProstCodec::<Payload, Payload>::default();
            let asked = grpc.unary(tonic::Request::new(payload(kind, question)), path, codec);
            timeout(PATIENCE, asked).await.expect("in time").expect("answered").into_inner()
        });
        let (answer, said) = read(answer);
        assert_eq!((&answer.contains("Error"), &said["resultCode"]), (&false, &200.into()), "{answer} {said}");
        said
    }

    /// The service that the next push tells of. It is acknowledged.
    pub(crate) fn pushed(&mut self) -> Value {
        let (kind, push) = self.hear();
        assert_eq!(kind, "NotifySubscriberRequest", "{push}");
        let ack = json!({ "requestId": push["requestId"], "resultCode": 200 });
        let said = self.runtime.block_on(self.say.send(payload("NotifySubscriberResponse", &ack)));
        said.expect("the stream is open");
        push["serviceInfo"].clone()
    }
}
