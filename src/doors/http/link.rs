//! Agents that come to an http listener: at one path of it a WebSocket is a connection to the link port.
//!
//! ```text
//! GET, Upgrade: websocket ─▶ 101 ─▶ pump ══ pair ══ the data path: TLS, HELLO, frames as on the link port
//! ```
//! Promises: who has not proved who it is is the data path's to bound, as on the link port; connections beyond
//! [`LINKS_MAX`] are refused with 503 and told; an agent's link outlives the listener that it came through.

use crate::doors::road::pump;
use crate::doors::tally::Few;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::BridgeHandle;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Connections of agents through all http listeners of a bridge: a thousand agents with four each. One holds two
/// descriptors and about 160 KiB.
const LINKS_MAX: usize = 4096;

/// What listeners do with agents. Clones share the bound.
#[derive(Clone)]
pub(crate) struct Links {
    handle: BridgeHandle,
    places: Arc<Semaphore>,
    few: Arc<Few>,
}

/// A status, and a sentence for people.
type Refused = (StatusCode, &'static str);

impl Links {
    /// To this bridge.
    pub(crate) fn new(handle: BridgeHandle) -> Links {
        Links { handle, places: Arc::new(Semaphore::new(LINKS_MAX)), few: Arc::default() }
    }

    /// The answer to an agent that comes from `peer`.
    pub(super) fn take_in(&self, parts: &mut Parts, listener: &str, peer: SocketAddr) -> Result<Response<()>, Refused> {
        let accept = accept(parts).ok_or((
            StatusCode::UPGRADE_REQUIRED,
            "Agents connect here, with a WebSocket: set websocket in the agent's [link].",
        ))?;
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let upgrade = upgrade.ok_or((StatusCode::INTERNAL_SERVER_ERROR, "This connection cannot be upgraded."))?;
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            if let Some(unsaid) = self.few.one_more() {
                tracing::warn!(listener, %peer, links_max = LINKS_MAX, unsaid, "agent refused: too many WebSockets");
            }
            return Err((StatusCode::SERVICE_UNAVAILABLE, "As many agents are connected as there may be."));
        };
        tokio::spawn(self.clone().carry(upgrade, listener.to_owned(), peer, place));
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(pump::PROTOCOL));
        Ok(answer)
    }

    async fn carry(self, upgrade: OnUpgrade, listener: String, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let begin = async {
            let upgraded = upgrade.await.map_err(|error| error.to_string())?;
            let (inside, outside) = Socket::pair().map_err(|error| error.to_string())?;
            let outside = pump::end(outside).map_err(|error| error.to_string())?;
            self.handle.admit_link(inside, Some(peer)).map_err(|_| "the workers have too much mail".to_owned())?;
            Ok::<_, String>((upgraded, outside))
        };
        match begin.await {
            Ok((upgraded, outside)) => {
                let io = TokioIo::new(upgraded);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(pump::config())).await;
                let end = pump::pump(socket, outside, None).await;
                tracing::debug!(listener, %peer, %end, "an agent's WebSocket is over");
            }
            Err(error) => tracing::warn!(listener, %peer, error, "an agent's WebSocket was not taken"),
        }
        drop(place);
    }
}

/// What proves to the client that we speak it (RFC 6455 §4.2); `None`: it does not ask for it.
fn accept(parts: &Parts) -> Option<HeaderValue> {
    let headers = &parts.headers;
    let is = |name, value: &str| one(headers, name).is_some_and(|text| text.eq_ignore_ascii_case(value));
    let good = parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && super::rules::upgrade_of(headers)
            .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && is(header::SEC_WEBSOCKET_VERSION, "13")
        && is(header::SEC_WEBSOCKET_PROTOCOL, pump::PROTOCOL);
    let key = one(headers, header::SEC_WEBSOCKET_KEY).filter(|_| good)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()
}

fn one(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none()).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    /// The key of RFC 6455 §1.3, and what is missing where nothing is answered.
    #[test]
    fn only_a_whole_request() {
        const ALL: [(&str, &str); 5] = [
            ("connection", "Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", pump::PROTOCOL),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let answer = |but: usize, method: Method| {
            let mut request = Request::builder().method(method).uri("/link");
            for (_, (name, value)) in ALL.iter().enumerate().filter(|(at, _)| *at != but) {
                request = request.header(*name, *value);
            }
            accept(&request.body(()).expect("a request").into_parts().0)
        };
        assert_eq!(answer(9, Method::GET).expect("an answer"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!((0..ALL.len()).all(|but| answer(but, Method::GET).is_none()));
        assert_eq!(answer(9, Method::POST), None);
    }
}
