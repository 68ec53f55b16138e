//! The three protobuf messages of Nacos' gRPC, and the two paths. All else is JSON inside of them.
//!
//! ```text
//! /Request/request                    Payload -> Payload                   a question of the client's
//! /BiRequestStream/requestBiStream    stream Payload -> stream Payload     what the server has to say, and the answers
//! ```

use bytes::Bytes;
use std::collections::HashMap;

/// The path of a client's questions.
pub(super) const REQUEST_PATH: &str = "/Request/request";
/// The path of the stream, one for a connection.
pub(super) const STREAM_PATH: &str = "/BiRequestStream/requestBiStream";

/// Anything that is said.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Payload {
    #[prost(message, optional, tag = "2")]
    pub(super) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "3")]
    pub(super) body: Option<Body>,
}

/// What kind of thing it is.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Metadata {
    /// The simple name of a class of Nacos'.
    #[prost(string, tag = "3")]
    pub(super) kind: String,
    #[prost(string, tag = "8")]
    pub(super) client_ip: String,
    #[prost(map = "string, string", tag = "7")]
    pub(super) headers: HashMap<String, String>,
}

/// google.protobuf.Any, whose type_url Nacos leaves empty.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Body {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    /// JSON.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

impl Payload {
    /// A JSON object of a kind.
    pub(super) fn new(kind: &str, json: String) -> Payload {
        let metadata = Metadata { kind: kind.to_owned(), ..Metadata::default() };
        let body = Body { type_url: String::new(), value: json.into() };
        Payload { metadata: Some(metadata), body: Some(body) }
    }

    /// Its kind; empty if it says none.
    pub(super) fn kind(&self) -> &str {
        self.metadata.as_ref().map_or("", |m| &m.kind)
    }

    /// The token that it brings: Nacos' clients say `accessToken`, others the header of HTTP.
    pub(super) fn token(&self) -> Option<&str> {
        let headers = &self.metadata.as_ref()?.headers;
        let bearer =
            || ["Authorization", "authorization"].iter().find_map(|h| headers.get(*h)?.strip_prefix("Bearer "));
        headers.get("accessToken").map(String::as_str).or_else(bearer)
    }

    /// Its JSON; empty if it has none.
    pub(super) fn json(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], |b| &b.value)
    }
}
