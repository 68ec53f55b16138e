//! One visitor's connection: greeting, TLS, and HTTP/1 or HTTP/2 by what the visitor speaks.

use super::forward::{self, Visit};
use super::io::{Patient, Torn};
use super::meter::Meter;
use super::stats::Connected;
use super::streams::{Clock, Rest, Streams, Word};
use super::tls::{Greeting, UNRECOGNIZED_NAME};
use super::{Phase, Setup, Shared, Way};
use crate::config::http::Options;
use crate::doors::proxied::Who;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::Entry;
use ringspan_tunnel::limits::Pass;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::StartHandshake;

/// To a visitor whose head does not come to its end (RFC 9110 §15.5.9).
const LATE_HEAD: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nConnection: close\r\n\
    Content-Length: 59\r\n\r\n408 Request Timeout. The head of the request did not come.\n";
/// For last words: they fit any socket that is read at all.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Streams that do not move have a bit longer than each of them by itself, which has an answer of its own.
const HELD_MORE: Duration = Duration::from_secs(2);
/// A visitor who has come, or is kept, has this long to ask something when all are to finish: a request that is on its way
/// would be lost by a close, which the visitor of a first request cannot know for what it is (RFC 9112 §9.3.1).
const LAST_CALL: Duration = Duration::from_secs(1);
/// How HTTP/2 begins in the clear (RFC 9113 §3.4). No method is called so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// A visitor that sent less than four bytes of what could be either is looked at again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// TCP asks a visitor that has said nothing for this long whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A visitor's place among those a listener may have; free when dropped.
pub(super) struct Place(
    #[expect(dead_code, reason = "held, not read")] pub(super) OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held, not read")] pub(super) Connected,
);

/// A visitor that is served: its place and what it may do. Clones share both, until the last is gone.
#[derive(Clone)]
pub(super) struct Guest {
    #[expect(dead_code, reason = "held, not read")]
    place: Arc<Place>,
    meter: Option<Arc<Meter>>,
}

impl Guest {
    /// Ends when the listener's limits end its connection.
    pub(super) async fn over(&self) {
        match &self.meter {
            Some(meter) => meter.over().await,
            None => std::future::pending().await,
        }
    }
}

/// Serves one visitor to the end, or until all have to go.
pub(super) async fn visitor(
    shared: Arc<Shared>,
    stream: TcpStream,
    who: Who,
    place: Place,
    pass: Option<Pass>,
    phase: watch::Receiver<Phase>,
) {
    let mut cut = phase.clone();
    tokio::select! {
        () = serve(shared, stream, who, (place, pass), phase) => {}
        _ = cut.wait_for(|phase| *phase == Phase::Cut) => {}
    }
}

async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    who: Who,
    (place, pass): (Place, Option<Pass>),
    phase: watch::Receiver<Phase>,
) {
    let setup = shared.setup.load_full();
    let patience = setup.options.timeout_head;
    let _ = stream.set_nodelay(true);
    let (torn, peer) = (Torn::default(), who.visitor);
    let asked = who.asked.or_else(|| stream.local_addr().ok());
    let visit = |is_tls, meter| Visit {
        shared: shared.clone(),
        peer,
        asked,
        is_tls,
        torn: torn.clone(),
        guest: Guest { place: Arc::new(place), meter },
        stream: None,
        phase: phase.clone(),
    };
    let idle = setup.options.timeout_idle;
    if !setup.is_tls {
        let mut ending = phase.clone();
        let is_http2 = tokio::select! {
            is_http2 = tokio::time::timeout(patience, speaks_http2(&stream)) => is_http2,
            () = last_call(&mut ending, LAST_CALL) => return,
        };
        let Ok(Some(is_http2)) = is_http2 else { return };
        let meter = pass.map(Meter::new);
        let stream = Patient::new(stream, idle, torn.clone()).metered(meter.as_ref());
        return http(&setup, stream, is_http2, visit(false, meter)).await;
    }
    let greeting = match tokio::time::timeout(patience, Greeting::read(&mut stream)).await {
        Ok(Ok(greeting)) => greeting,
        Ok(Err(answer)) => {
            let _ = stream.write_all(&answer).await;
            return;
        }
        Err(_elapsed) => return,
    };
    let name = greeting.name();
    let way = setup.table.find(name.as_deref().unwrap_or_default(), "/");
    let Some(keeper) = setup.keeper.as_ref().filter(|_| !way.is_some_and(|way| way.passthrough)) else {
        match way {
            Some(way) => pass_through(&shared, way, stream, (who, pass), greeting.bytes),
            None => {
                tracing::debug!(listener = setup.name, visitor = %peer, name, "no route for this name");
                let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
            }
        }
        return;
    };
    let meter = pass.map(Meter::new);
    let stream = Patient::new(stream, idle, torn.clone()).metered(meter.as_ref());
    let handshake = StartHandshake::from_parts(greeting.accepted, stream).into_stream(keeper.config.clone());
    match tokio::time::timeout(patience, handshake).await {
        Ok(Ok(stream)) => {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            http(&setup, stream, is_http2, visit(true, meter)).await;
        }
        Ok(Err(error)) => tracing::debug!(listener = setup.name, visitor = %peer, %error, "TLS"),
        Err(_elapsed) => tracing::debug!(listener = setup.name, visitor = %peer, "TLS: the handshake took too long"),
    }
}

/// The socket itself goes to the backend, with what was read of it before.
fn pass_through(shared: &Shared, way: &Way, stream: TcpStream, (who, pass): (Who, Option<Pass>), prefix: Vec<u8>) {
    let Ok(stream) = stream.into_std() else { return };
    let socket = Socket::from_owned(OwnedFd::from(stream));
    let _ = socket.set_keepalive(KEEPALIVE_IDLE);
    let (visitor, asked) = (Some(who.visitor), who.asked);
    let entry = Entry { visitor, asked, pass, prefix, ..Entry::new(socket, way.gate.clone()) };
    shared.hall.stats.on_dial(&way.gate.name);
    if let Err(entry) = shared.hall.handle.admit(entry) {
        // The worker is overwhelmed: the visitor is told so, as the tunnel would.
        let _ = entry.socket.reset_on_close();
    }
}

/// Ends when all are to finish, and have had this long to ask something.
async fn last_call(phase: &mut watch::Receiver<Phase>, time: Duration) {
    let _ = phase.wait_for(|phase| *phase != Phase::Open).await;
    tokio::time::sleep(time).await;
}

/// By the first bytes, which stay where they are. `None`: the visitor went away.
async fn speaks_http2(stream: &TcpStream) -> Option<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut first).await.ok().filter(|n| *n > 0)?;
        if first[..n] != PREFACE[..n] {
            return Some(false);
        }
        if n >= 4 {
            return Some(true);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Answers requests until the connection ends.
async fn http<S>(setup: &Setup, stream: S, is_http2: bool, visit: Visit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut drain = visit.phase.clone();
    let (listener, peer, guest, shared) = (&setup.name, visit.peer, visit.guest.clone(), visit.shared.clone());
    let io = TokioIo::new(stream);
    // One connection future or the other; both drain and end alike. hyper has a clock for HTTP/1 alone.
    macro_rules! to_the_end {
        ($connection:ident, $clock:expr, $drained:expr) => {{
            let mut clock: Option<Clock> = $clock;
            let mut drained = pin!($drained);
            let mut is_draining = false;
            loop {
                tokio::select! {
                    result = &mut $connection => break result,
                    () = guest.over() => {
                        return tracing::debug!(listener, visitor = %peer, "silent or here for longer than the limits say");
                    }
                    word = next(&mut clock) => match word {
                        Word::Finish => Pin::new(&mut $connection).graceful_shutdown(),
                        Word::Go => return tracing::debug!(listener, visitor = %peer, "without a request, or a byte of an answer taken, for too long"),
                    },
                    () = &mut drained, if !is_draining => {
                        is_draining = true;
                        Pin::new(&mut $connection).graceful_shutdown();
                    }
                }
            }
        }};
    }
    let result = if is_http2 {
        let streams = Streams::new();
        let Options { timeout_head: empty, timeout_idle: idle, timeout_answer, .. } = setup.options;
        // A backend may take so long to answer when the request no longer moves.
        let clock = Clock::new(streams.clone(), Rest { empty, idle, held: idle.max(timeout_answer) + HELD_MORE });
        let service = service_fn(move |request| {
            let stream = Some(Arc::new(streams.open()));
            forward::answer(Visit { stream, ..visit.clone() }, request)
        });
        let mut connection = setup.http2.serve_connection(io, service);
        // Its GOAWAY leaves what is on its way its place (RFC 9113 §6.8).
        to_the_end!(connection, Some(clock), last_call(&mut drain, Duration::ZERO))
    } else {
        let service = service_fn(move |request| forward::answer(visit.clone(), request));
        let mut connection = setup.http1.serve_connection(io, service).with_upgrades();
        // Until then it is told by the answer to what it asks; hyper would close it at once if it has asked nothing yet.
        let result = to_the_end!(connection, None, last_call(&mut drain, LAST_CALL));
        // hyper answers these by itself: no request of them comes to us.
        let is_unread = |e: &hyper::Error| e.is_parse() || e.is_parse_too_large();
        if result.as_ref().is_err_and(is_unread) {
            shared.hall.stats.on_unread(listener);
        }
        if result.as_ref().is_err_and(hyper::Error::is_timeout)
            && let Some(parts) = connection.into_parts()
            && !parts.read_buf.is_empty()
        {
            // Part of a head, and then nothing for too long. Whoever has said nothing has asked nothing.
            shared.hall.stats.on_unread(listener);
            let mut stream = parts.io.into_inner();
            let last = async {
                stream.write_all(LATE_HEAD).await?;
                stream.shutdown().await
            };
            let _ = tokio::time::timeout(LAST_WORDS, last).await;
        }
        result
    };
    if let Err(error) = result {
        tracing::debug!(listener, visitor = %peer, %error, "connection");
    }
}

async fn next(clock: &mut Option<Clock>) -> Word {
    match clock {
        Some(clock) => clock.next().await,
        None => std::future::pending().await,
    }
}
