//! Agents that come to an http listener: at one path of it a WebSocket is a connection to the link port.
//!
//! ```text
//! GET, Upgrade: websocket ─▶ 101 ─▶ pump ══ pair ══ the data path: TLS, HELLO, frames as on the link port
//!                                                 ╚═ visits: as at a listener of type visit
//! ```
//! Promises: who has not proved who it is is the data path's to bound, as on the link port; connections beyond
//! [`LINKS_MAX`] and [`VISITS_MAX`] are refused with 503 and told; an agent's link outlives the listener that it came
//! through.

use crate::doors::road::pump::{self, Purpose};
use crate::doors::secret::listener::{HANDSHAKES_MAX, House};
use crate::doors::tally::Few;
use crate::doors::threshold::Anteroom;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use ringspan_engine::kernel::Socket;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Connections of agents through all http listeners of a bridge: a thousand agents with four each. One holds two
/// descriptors and about 160 KiB.
const LINKS_MAX: usize = 4096;
/// Visits of secret services beside them: a crowd of clients keeps no agent from its bridge.
const VISITS_MAX: usize = 4096;

/// What listeners do with agents. Clones share the bounds.
#[derive(Clone)]
pub(crate) struct Links {
    house: House,
    links: Arc<Semaphore>,
    visits: Arc<Semaphore>,
    /// Visits in their handshake.
    room: Arc<Anteroom>,
    few: Arc<Few>,
}

/// A status, and a sentence for people.
type Refused = (StatusCode, &'static str);

impl Links {
    /// To this bridge.
    pub(crate) fn new(house: House) -> Links {
        Links {
            house,
            links: Arc::new(Semaphore::new(LINKS_MAX)),
            visits: Arc::new(Semaphore::new(VISITS_MAX)),
            room: Anteroom::new(HANDSHAKES_MAX),
            few: Arc::default(),
        }
    }

    /// The answer to an agent that comes from `peer`.
    pub(super) fn take_in(&self, parts: &mut Parts, listener: &str, peer: SocketAddr) -> Result<Response<()>, Refused> {
        let (accept, purpose) = accept(parts).ok_or((
            StatusCode::UPGRADE_REQUIRED,
            "Agents connect here, with a WebSocket: set websocket in the agent's [link].",
        ))?;
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let upgrade = upgrade.ok_or((StatusCode::INTERNAL_SERVER_ERROR, "This connection cannot be upgraded."))?;
        let (places, most) = match purpose {
            Purpose::Link => (&self.links, LINKS_MAX),
            Purpose::Visit => (&self.visits, VISITS_MAX),
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            if let Some(unsaid) = self.few.one_more() {
                tracing::warn!(listener, %peer, ?purpose, most, unsaid, "agent refused: too many WebSockets");
            }
            return Err((StatusCode::SERVICE_UNAVAILABLE, "As many agents are connected as there may be."));
        };
        tokio::spawn(self.clone().carry(upgrade, purpose, listener.to_owned(), peer, place));
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(purpose.protocol()));
        Ok(answer)
    }

    async fn carry(
        self,
        upgrade: OnUpgrade,
        purpose: Purpose,
        listener: String,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) {
        let begin = async {
            let upgraded = upgrade.await.map_err(|error| error.to_string())?;
            let (inside, outside) = Socket::pair().map_err(|error| error.to_string())?;
            let outside = pump::end(outside).map_err(|error| error.to_string())?;
            let visit = match purpose {
                Purpose::Link => {
                    let full = |_| "the workers have too much mail".to_owned();
                    self.house.handle.admit_link(inside, Some(peer)).map_err(full)?;
                    None
                }
                Purpose::Visit => Some(inside),
            };
            Ok::<_, String>((upgraded, outside, visit))
        };
        match begin.await {
            Ok((upgraded, outside, visit)) => {
                let io = TokioIo::new(upgraded);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(pump::config())).await;
                let take_in = async {
                    if let Some(inside) = visit {
                        self.take_in_visit(inside, &listener, peer).await;
                    }
                };
                let (end, ()) = tokio::join!(pump::pump(socket, outside, None), take_in);
                tracing::debug!(listener, %peer, ?purpose, %end, "an agent's WebSocket is over");
            }
            Err(error) => tracing::warn!(listener, %peer, error, "an agent's WebSocket was not taken"),
        }
        drop(place);
    }

    async fn take_in_visit(&self, inside: Socket, listener: &str, peer: SocketAddr) {
        let seat = self.room.sit();
        if let Err(error) = self.house.serve(inside, peer, &seat).await
            && let Some(unsaid) = self.few.one_more()
        {
            tracing::warn!(listener, %peer, %error, unsaid, "visiting agent refused");
        }
    }
}

/// What proves to the client that we speak it (RFC 6455 §4.2), and what it is for; `None`: it does not ask for it.
fn accept(parts: &Parts) -> Option<(HeaderValue, Purpose)> {
    let headers = &parts.headers;
    let is = |name, value: &str| one(headers, name).is_some_and(|text| text.eq_ignore_ascii_case(value));
    let good = parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && super::rules::upgrade_of(headers)
            .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && is(header::SEC_WEBSOCKET_VERSION, "13");
    let purpose = Purpose::ALL.into_iter().find(|p| is(header::SEC_WEBSOCKET_PROTOCOL, p.protocol()))?;
    let key = one(headers, header::SEC_WEBSOCKET_KEY).filter(|_| good)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok().map(|accept| (accept, purpose))
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
            ("sec-websocket-protocol", Purpose::Link.protocol()),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let asked = |all: &[(&str, &str)], but: usize, method: Method| {
            let mut request = Request::builder().method(method).uri("/link");
            for (_, (name, value)) in all.iter().enumerate().filter(|(at, _)| *at != but) {
                request = request.header(*name, *value);
            }
            accept(&request.body(()).expect("a request").into_parts().0)
        };
        let answer = |but, method| asked(&ALL, but, method);
        let (accepted, purpose) = answer(9, Method::GET).expect("an answer");
        assert_eq!((accepted.as_bytes(), purpose), (&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..], Purpose::Link));
        let mut visit = ALL;
        visit[3].1 = Purpose::Visit.protocol();
        assert_eq!(asked(&visit, 9, Method::GET).expect("an answer").1, Purpose::Visit);
        assert!((0..ALL.len()).all(|but| answer(but, Method::GET).is_none()));
        assert_eq!(answer(9, Method::POST), None);
    }
}
