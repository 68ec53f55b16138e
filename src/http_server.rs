//! Serves a router over HTTP/1.1 on one address, over HTTP/2 too where it is TLS, with the bounds that axum's own loop
//! has not: a cap on connections and a time within which a request's head must have come.
//! Promise: idle and slow clients cost themselves; the accept loop never ends on an error.

use crate::http_tls::Front;
use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::{Service, service_fn};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Connections at a time: more wait in the listen queue until one ends. Each costs a descriptor and some KiB.
const CONNECTIONS_MAX: usize = 8192;
/// From the end of one answer (or the connect) to the end of the next request's head; past it the connection is closed.
/// Nacos' clients beat each 5 s on a kept connection.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Requests under way on one connection of HTTP/2; more wait in the client.
const STREAMS_MAX: u32 = 64;
/// All headers of a request of HTTP/2.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// A peer that does not answer a ping for so long is gone.
const PING_TIME_MAX: Duration = Duration::from_secs(10);
/// Requests under way when the server stops have this long.
const STOP_MAX: Duration = Duration::from_secs(2);
/// Who was let in, or is kept, has this long to ask when the server stops: a request that lies unread when a connection is
/// closed would be answered by a reset. At a takeover whoever comes meanwhile waits in the queue, so it is short.
const LAST_CALL: Duration = Duration::from_millis(200);
/// After a failed accept (no descriptors): time for some to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound server.
pub(crate) struct HttpServer {
    listener: TcpListener,
    tls: Option<Arc<Front>>,
}

impl HttpServer {
    /// Binds. Needs a runtime.
    pub(crate) fn bind(address: SocketAddr, tls: Option<Arc<Front>>) -> io::Result<HttpServer> {
        Ok(HttpServer { listener: listener(address)?, tls })
    }

    /// Where it listens, with the real port if 0 was asked for.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` says true, then finishes what is under way.
    pub(crate) async fn serve(self, router: Router, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stopped(&mut stop) => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "http: accept. Try: raise the limit on open files");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (router, stop, tls) = (router.clone(), stop.clone(), self.tls.clone());
            tokio::spawn(async move {
                serve_one((stream, peer), tls, router, stop).await;
                drop(place);
            });
        }
        // Every place that comes back is a connection that has ended.
        let all = u32::try_from(CONNECTIONS_MAX).expect("it fits");
        let _ = tokio::time::timeout(STOP_MAX, places.acquire_many(all)).await;
    }
}

/// A listener at an address: one that was inherited, or a new one. Needs a runtime.
pub(crate) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = match crate::inherit::tcp(address) {
        Some(inherited) => inherited.into(),
        None => std::net::TcpListener::bind(address)?,
    };
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve_one(
    (stream, peer): (tokio::net::TcpStream, SocketAddr),
    tls: Option<Arc<Front>>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let server = auto::Builder::new(TokioExecutor::new());
    let Some(tls) = tls else { return serve_stream(server.http1_only(), stream, peer, router, stop).await };
    let Some(stream) = tls.greet(stream, peer).await else { return };
    let server = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => server.http2_only(),
        _ => server.http1_only(),
    };
    serve_stream(server, stream, peer, router, stop).await;
}

async fn serve_stream(
    mut server: auto::Builder<TokioExecutor>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let router = TowerToHyperService::new(router);
    let stops = stop.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        // Who asks: pushes go to that address and to no other.
        request.extensions_mut().insert(ConnectInfo(peer));
        let is_kept = request.version() < Version::HTTP_2;
        let (answer, stops) = (router.call(request), stops.clone());
        async move {
            let mut answer = answer.await?;
            if is_kept && *stops.borrow() {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(HEAD_TIME_MAX)
        .keep_alive_timeout(PING_TIME_MAX);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let last_call = async {
        stopped(&mut stop).await;
        tokio::time::sleep(LAST_CALL).await;
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = last_call => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::trace!(%error, "http: connection");
    }
}

/// Ends when the flag says true, or nobody can raise it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// What was asked before the server stops is answered, also where nobody has read it yet, and whoever would be kept is
    /// told that it is not.
    #[tokio::test]
    async fn requests_on_their_way_are_answered() {
        let server = HttpServer::bind(([127, 0, 0, 1], 0).into(), None).expect("a free port");
        let address = server.address().expect("bound");
        let (stop, stops) = watch::channel(false);
        let router = Router::new().route("/", axum::routing::get(async || "ok"));
        let serving = tokio::spawn(server.serve(router, stops));
        let mut kept = Vec::new();
        for _ in 0..8 {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.write_all(ASK).await.expect("it reads");
            let mut answer = vec![0; 4096];
            let n = stream.read(&mut answer).await.expect("an answer");
            assert!(answer[..n].starts_with(b"HTTP/1.1 200") && answer[..n].ends_with(b"ok"));
            kept.push(stream);
        }
        // Nobody else runs between these.
        for stream in &kept {
            assert_eq!(stream.try_write(ASK).expect("room for it"), ASK.len());
        }
        stop.send(true).expect("it runs");
        for mut stream in kept {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("a clean end");
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer:?}");
        }
        serving.await.expect("no panic");
    }
}
