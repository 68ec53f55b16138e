//! The listener, and each connection's life from accept to end.
//! Promise: the accept loop never ends on an error; a connection has bounded streams, headers, messages and buffers, and
//! no way to stay without saying anything.

use super::Limits;
use super::answer::answer;
use super::body::{Budget, Counted};
use super::client::{Client, Clients, House, Look, question};
use super::outbox::Out;
use super::payload::{Payload, REQUEST_PATH, STREAM_PATH};
use super::stats::End;
use super::words::Asked;
use crate::access::Access;
use crate::push::Hub;
use crate::service::Registry;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::Streaming;
use tonic::server::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

/// The largest question: a batch of a thousand instances with all the metadata they may have is 1.5 MiB.
const REQUEST_BYTES_MAX: usize = 2 << 20;
/// The largest message on the stream: a greeting, an acknowledgement.
const STREAM_BYTES_MAX: usize = 64 << 10;
/// Bytes of unfinished requests of all connections.
const ALL_BYTES_MAX: usize = 256 << 20;
/// Requests under way on one connection; more wait in the client.
const STREAMS_MAX: u32 = 64;
/// All headers of a request.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes in flight towards us, for a stream and for a connection.
const WINDOW_BYTES: (u32, u32) = (64 << 10, 1 << 20);
/// Bytes that wait for the socket, for a stream.
const SEND_BYTES_MAX: usize = 64 << 10;
/// Connections that are under way when the server stops have this long.
const STOP_MAX: Duration = Duration::from_secs(2);
/// After a failed accept (no descriptors): time for some to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound server.
pub struct GrpcServer {
    listener: TcpListener,
    access: Access,
    wrap: Option<Wrap>,
}

/// A connection's bytes, whatever they go through.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// Speaks TLS with whoever has connected, within a time of its own; `None`: it came to nothing, and was told.
pub type Wrap = Arc<dyn Fn(TcpStream, SocketAddr) -> Wrapping + Send + Sync>;
/// What a [`Wrap`] comes to.
pub type Wrapping = Pin<Box<dyn Future<Output = Option<Box<dyn Bytes>>> + Send>>;

impl GrpcServer {
    /// On a socket that listens.
    pub fn on(listener: TcpListener) -> GrpcServer {
        GrpcServer { listener, access: Access::default(), wrap: None }
    }

    /// Asks clients who they are; without this, everybody may do everything.
    #[must_use]
    pub fn with_access(self, access: Access) -> GrpcServer {
        GrpcServer { access, ..self }
    }

    /// Speaks TLS; without this, in the clear.
    #[must_use]
    pub fn with_tls(self, wrap: Option<Wrap>) -> GrpcServer {
        GrpcServer { wrap, ..self }
    }

    /// Where it listens, with the real port if 0 was asked for.
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` says true (or its sender is gone), then asks the clients to go elsewhere and ends.
    pub async fn serve(
        self,
        registry: Registry,
        hub: Hub,
        clients: Clients,
        limits: Limits,
        mut stop: watch::Receiver<bool>,
    ) {
        let max = limits.connections_max;
        let places = Arc::new(Semaphore::new(max));
        let access = self.access;
        let house = Arc::new(House { registry, access, hub, limits, clients, bytes: Budget::new(ALL_BYTES_MAX) });
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stopped(&mut stop) => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "grpc: accept. Try: raise the limit on open files");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Clients stay: one that waited in the listen queue would wait for ever, so it is told at once.
            let Ok(place) = places.clone().try_acquire_owned() else {
                house.clients.stats().on_refused();
                tracing::debug!(%peer, max, "grpc: a connection too many");
                continue;
            };
            let (house, stop, wrap) = (house.clone(), stop.clone(), self.wrap.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let stream: Box<dyn Bytes> = match wrap {
                    None => Box::new(stream),
                    Some(wrap) => match wrap(stream, peer).await {
                        Some(stream) => stream,
                        None => return,
                    },
                };
                let client = Client::enter(&house, peer);
                let end = converse(stream, &client, stop).await;
                client.leave(end).await;
                drop(place);
            });
        }
        // Every place that comes back is a connection that has ended.
        let all = u32::try_from(max).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(STOP_MAX, places.acquire_many(all)).await;
    }
}

/// Ends when the flag says true, or nobody can raise it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn converse(stream: Box<dyn Bytes>, client: &Arc<Client>, mut stop: watch::Receiver<bool>) -> End {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES.0)
        .initial_connection_window_size(WINDOW_BYTES.1)
        .max_send_buf_size(SEND_BYTES_MAX);
    let service = {
        let client = client.clone();
        service_fn(move |request| route(client.clone(), request))
    };
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut look = client.look(Instant::now());
    loop {
        let at = match look {
            Look::Wait(at) => at,
            Look::End(end) => return end,
        };
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::trace!(%error, connection = client.name, "grpc: connection");
                }
                return End::Closed;
            }
            () = tokio::time::sleep_until(at.into()) => look = client.look(Instant::now()),
            () = client.outbox.hung_up() => return End::Closed,
            () = stopped(&mut stop) => {
                let reset = question("ConnectResetRequest", "");
                client.outbox.say(Instant::now(), reset);
                client.outbox.close();
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(STOP_MAX, connection).await;
                return End::Stopped;
            }
        }
    }
}

async fn route(client: Arc<Client>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let codec = ProstCodec::<Payload, Payload>::default;
    Ok(match request.uri().path() {
        REQUEST_PATH => {
            let budgets = [client.bytes.clone(), client.house.bytes.clone()];
            let request = request.map(|body| Counted::new(body, budgets));
            let unary = tower::service_fn(move |request: tonic::Request<Payload>| {
                let client = client.clone();
                async move { Ok::<_, Status>(tonic::Response::new(answer(&client, request.get_ref()).await)) }
            });
            Grpc::new(codec()).max_decoding_message_size(REQUEST_BYTES_MAX).unary(unary, request).await
        }
        STREAM_PATH => {
            let open = tower::service_fn(move |request: tonic::Request<Streaming<Payload>>| {
                std::future::ready(open_stream(&client, request.into_inner()))
            });
            Grpc::new(codec()).max_decoding_message_size(STREAM_BYTES_MAX).streaming(open, request).await
        }
        path => Status::unimplemented(format!("no such method: {path}")).into_http(),
    })
}

/// The one stream of a connection.
fn open_stream(client: &Arc<Client>, inbound: Streaming<Payload>) -> Result<tonic::Response<Outbound>, Status> {
    if !client.take_stream() {
        return Err(Status::resource_exhausted("a connection has one stream, and this one has it already"));
    }
    tokio::spawn(listen(client.clone(), inbound));
    Ok(tonic::Response::new(Outbound { client: client.clone() }))
}

/// The answer to a push, or to a question.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Acknowledgement {
    request_id: String,
}

/// Takes what the client says on its stream, until that ends; the connection ends with it.
async fn listen(client: Arc<Client>, mut inbound: Streaming<Payload>) {
    loop {
        let said = match inbound.next().await {
            Some(Ok(said)) => said,
            Some(Err(status)) if status.code() == Code::Cancelled => break,
            Some(Err(status)) => {
                tracing::debug!(connection = client.name, %status, "grpc: stream");
                break;
            }
            None => break,
        };
        let now = Instant::now();
        client.on_heard(now);
        match said.kind() {
            "ConnectionSetupRequest" => greet(&client, now, said.json()),
            "NotifySubscriberResponse" => {
                let ack: Option<Acknowledgement> = serde_json::from_slice(said.json()).ok();
                let number = ack.and_then(|a| a.request_id.parse().ok());
                if let Some(after) = number.and_then(|n| client.outbox.on_ack(n, now)) {
                    client.stats().on_ack(after);
                }
            }
            // Answers to questions whose only purpose was that there is one, and whatever newer clients say.
            _ => {}
        }
    }
    client.outbox.close();
}

/// Who names its abilities is told ours, and waits for it; who does not would take our answer for an error.
fn greet(client: &Client, now: Instant, json: &[u8]) {
    let asked = Asked::read(json).unwrap_or_default();
    client.introduce(asked.client_version.as_deref().unwrap_or("unknown"));
    if asked.ability_table.is_some() {
        const ABILITIES: &str =
            r#","abilityTable":{"supportPersistentInstanceByGrpc":true,"fuzzyWatch":false,"lock":false,"mcp":false}"#;
        client.outbox.say(now, question("SetupAckRequest", ABILITIES));
    }
}

/// What the client is told, in its turn.
struct Outbound {
    client: Arc<Client>,
}

impl Stream for Outbound {
    type Item = Result<Payload, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Payload, Status>>> {
        let client = &self.client;
        let out = std::task::ready!(client.outbox.poll(cx, Instant::now()));
        Poll::Ready(out.map(|out| {
            Ok(match out {
                Out::Message(message) => message,
                Out::Push(number, topic, info) => {
                    client.stats().on_push();
                    let (service, _) = &*topic;
                    let quoted = |text: &str| serde_json::Value::from(text).to_string();
                    let (namespace, group, name) =
                        (quoted(service.namespace()), quoted(service.group()), quoted(service.name()));
                    let json = format!(
                        r#"{{"headers":{{}},"requestId":"{number}","module":"naming","namespace":{namespace},"groupName":{group},"serviceName":{name},"serviceInfo":{info}}}"#
                    );
                    Payload::new("NotifySubscriberRequest", json)
                }
            })
        }))
    }
}

impl Drop for Outbound {
    /// The client has reset its stream, or the connection is gone.
    fn drop(&mut self) {
        self.client.outbox.close();
    }
}
