//! `http` and `https` listeners: visitors speak HTTP with us, and each request goes to the service its host and path
//! say; or, where TLS is passed through, the whole connection goes by the name in its greeting, spliced as a tcp
//! listener's would be.
//!
//! ```text
//! accept ─▶ serve: greeting, TLS, HTTP/1 or 2 ─▶ forward: route, rules ─▶ pool: a kept connection, or a pair ─▶ tunnel
//!                └─ passthrough: the socket itself and the bytes read ────────────────────────────────────────▶ tunnel
//! ```
//! Promises: bodies stream, both ways, and wait for whoever is slow; an answer that breaks off breaks off at the
//! visitor too; what a visitor can make us hold is bounded by the listener's limits; a change of configuration closes
//! nobody's connection.

mod body;
mod forward;
pub(crate) mod fuzzing;
pub(crate) mod hosts;
mod io;
pub(crate) mod link;
mod login;
mod meter;
mod pages;
mod pool;
mod request;
mod rules;
mod serve;
mod stats;
mod streams;
mod table;
pub(crate) mod tls;
mod upgrade;

use super::listening::{self, Closing, Ear};
use super::threshold::Threshold;
use crate::config::http::{CARRIER, HttpListener, Options, Route};
use arc_swap::ArcSwap;
use hyper::header::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pool::{Manner, Pool};
use ringspan_tunnel::bridge::{BridgeHandle, CarrierMode, Gate};
use ringspan_tunnel::frame::Reason;
pub(crate) use stats::HttpStats;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use table::Table;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

/// After a failed accept (no descriptors): time for some to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Visitors that are told at once why they may not come in; more are reset: words take a socket for up to 2 s.
const LAST_WORDS_MAX: usize = 256;
/// Kept connections are looked through so often.
const SWEEP: Duration = Duration::from_secs(5);
/// Streams of one HTTP/2 connection at once: what browsers use, and servers allow (RFC 9113 §6.5.2).
const STREAMS_MAX: u32 = 100;
/// Bytes of one HTTP/2 request body, and of all of a connection, that may wait here for a slow backend.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What hyper reads and writes at once on an HTTP/1 connection: bounds what one visitor makes us hold.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// What all doors of a bridge share.
#[derive(Clone)]
pub(crate) struct Hall {
    /// Where visitors are brought.
    pub(crate) handle: BridgeHandle,
    /// Where they are counted.
    pub(crate) stats: HttpStats,
    /// Who may come, how many, how fast.
    pub(crate) threshold: Arc<Threshold>,
    /// Agents that come this way.
    pub(crate) links: link::Links,
    /// Hosts that agents have asked for.
    pub(crate) hosts: hosts::Hosts,
}

/// A listener that runs.
pub(crate) struct HttpDoor {
    shared: Arc<Shared>,
    address: SocketAddr,
    closing: Closing,
    phase: watch::Sender<Phase>,
    task: JoinHandle<()>,
}

/// How a door comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Visitors come.
    Open,
    /// None come any more; those who are here finish what they have begun.
    Drain,
    /// All go.
    Cut,
}

/// What a door's tasks share.
struct Shared {
    hall: Hall,
    setup: ArcSwap<Setup>,
    /// By service: kept from one configuration to the next.
    pools: Mutex<HashMap<String, Arc<Pool>>>,
}

/// A configuration, ready to be carried out.
struct Setup {
    name: String,
    is_tls: bool,
    options: Options,
    table: Table<Arc<Way>>,
    agents_ways: hosts::Ways,
    pages: pages::Pages,
    keeper: Option<tls::Keeper>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    manner: Manner,
}

/// A route, ready.
struct Way {
    label: String,
    gate: Arc<Gate>,
    pool: Arc<Pool>,
    passthrough: bool,
    /// Taken away from the path.
    strip: Option<String>,
    rewrite_host: Option<HeaderValue>,
    request: rules::Ready,
    response: rules::Ready,
    guard: Option<login::Guard>,
    body_bytes_max: Option<u64>,
}

impl HttpDoor {
    /// Serves what comes to `listener`. Needs a runtime.
    ///
    /// # Errors
    /// A sentence: a file that cannot be read, a service without a name.
    pub(super) fn start(listener: Ear, config: &HttpListener, hall: Hall) -> Result<HttpDoor, String> {
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let closing = listener.closing();
        let pools = Mutex::default();
        let setup = Setup::new(config, &hall, &pools)?;
        let shared = Arc::new(Shared { hall, setup: ArcSwap::from_pointee(setup), pools });
        let (phase, phases) = watch::channel(Phase::Open);
        let task = tokio::spawn(accept(listener, shared.clone(), phases));
        Ok(HttpDoor { shared, address, closing, phase, task })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells when its socket is closed.
    pub(crate) fn closing(&self) -> Closing {
        self.closing.clone()
    }

    /// Another configuration from the next request on; nobody's connection is closed. Limits of connections hold from
    /// the next connection on, except `connections_max`, which stays what it was at the start.
    ///
    /// # Errors
    /// As [`start`](HttpDoor::start); then the old one stays.
    pub(crate) fn reload(&self, config: &HttpListener) -> Result<(), String> {
        let setup = Setup::new(config, &self.shared.hall, &self.shared.pools)?;
        let mut pools = self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|service, _| config.routes.iter().any(|route| route.service == *service));
        drop(pools);
        self.shared.setup.store(Arc::new(setup));
        Ok(())
    }

    /// Takes no more visitors, lets those who are here finish for `drain`, then ends.
    pub(crate) async fn stop(self, drain: Duration) {
        let _ = self.phase.send(Phase::Drain);
        let mut task = self.task;
        if tokio::time::timeout(drain, &mut task).await.is_err() {
            let _ = self.phase.send(Phase::Cut);
            let _ = task.await;
        }
    }
}

impl Setup {
    fn new(config: &HttpListener, hall: &Hall, pools: &Mutex<HashMap<String, Arc<Pool>>>) -> Result<Setup, String> {
        let options = &config.options;
        let keeper = match config.certs.is_empty() {
            true => None,
            false => Some(tls::Keeper::start(&config.name, &config.certs)?),
        };
        let mut pools = pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ways = Vec::new();
        for route in &config.routes {
            let service: ringspan_tunnel::hello::ServiceName =
                route.service.clone().try_into().map_err(|e| format!("service {:?}: {e}", route.service))?;
            // What is passed through is a stream like any other; the others keep connections for many visitors.
            let gate = |carrier| Arc::new(Gate { carrier, ..Gate::new(config.name.clone(), service.clone()) });
            let pool = pools.entry(route.service.clone());
            let pool = pool.or_insert_with(|| Arc::new(Pool::new(hall.handle.clone(), gate(CARRIER)))).clone();
            let gate = gate(if route.passthrough { CarrierMode::default() } else { CARRIER });
            ways.push((route.host.clone(), route.path.clone(), Arc::new(Way::new(route, options, gate, pool))));
        }
        let head_bytes_max = options.head_bytes_max as usize;
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(options.timeout_head)
            .max_header_size(head_bytes_max)
            .max_headers(options.headers_max as usize)
            .max_buf_size(head_bytes_max.max(BUFFER_BYTES_MAX));
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(options.head_bytes_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(BUFFER_BYTES_MAX)
            // A visitor that has vanished is found out without a request.
            .keep_alive_interval(options.timeout_head)
            .keep_alive_timeout(options.timeout_head);
        Ok(Setup {
            name: config.name.clone(),
            is_tls: config.is_tls,
            options: options.clone(),
            table: Table::new(ways),
            agents_ways: hosts::Ways::default(),
            pages: pages::Pages::read(&options.pages)?,
            keeper,
            http1,
            http2,
            manner: Manner {
                idle_max: options.idle_max as usize,
                idle_time: options.idle_time,
                timeout_idle: options.timeout_idle,
                head_bytes_max,
                headers_max: options.headers_max as usize,
            },
        })
    }
}

impl Way {
    fn new(route: &Route, options: &Options, gate: Arc<Gate>, pool: Arc<Pool>) -> Way {
        let host = |host: &String| HeaderValue::try_from(host).expect("the configuration has checked hosts");
        Way {
            label: route.label.clone(),
            gate,
            pool,
            passthrough: route.passthrough,
            strip: route.strip_prefix.then(|| route.path.clone()),
            rewrite_host: route.rewrite_host.as_ref().map(host),
            request: rules::Ready::new(&route.request_headers),
            response: rules::Ready::new(&route.response_headers),
            guard: login::Guard::new(&route.logins),
            body_bytes_max: route.body_bytes_max.or(options.body_bytes_max),
        }
    }
}

/// Accepts until the door drains, then waits for the last visitor.
async fn accept(listener: Ear, shared: Arc<Shared>, mut phase: watch::Receiver<Phase>) {
    let setup = shared.setup.load_full();
    let (name, places_max) = (setup.name.clone(), setup.options.connections_max);
    drop(setup);
    let places = Arc::new(Semaphore::new(places_max as usize));
    let mut sweep = tokio::time::interval(SWEEP);
    let last_words = Arc::new(Semaphore::new(LAST_WORDS_MAX));
    let mut was_full = false;
    let mut draining = phase.clone();
    loop {
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_full) => {
                if !was_full {
                    tracing::warn!(
                        listener = name,
                        connections_max = places_max,
                        "as many visitors as there may be: more wait in the kernel's queue"
                    );
                }
                was_full = true;
                tokio::select! {
                    place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
                    _ = draining.wait_for(|phase| *phase != Phase::Open) => break,
                }
            }
        };
        was_full &= places.available_permits() == 0;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = sweep.tick() => {
                shared.sweep();
                continue;
            }
            _ = phase.wait_for(|phase| *phase != Phase::Open) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (shared, phase, last_words) = (shared.clone(), phase.clone(), last_words.clone());
                tokio::spawn(come_in(shared, stream, peer, place, phase, last_words));
            }
            Err(error) => {
                tracing::warn!(listener = name, %error, "accept. Try: raise the limit on open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Every place that comes back is a visitor who has gone.
    let _ = places.acquire_many(places_max).await;
}

/// Serves a visitor who is let in, and tells one who is not why.
async fn come_in(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    phase: watch::Receiver<Phase>,
    last_words: Arc<Semaphore>,
) {
    let reason = match shared.hall.threshold.visitor(&mut stream, peer).await {
        Ok((who, pass)) => {
            let connected = shared.hall.stats.on_connected(&shared.setup.load().name);
            return serve::visitor(shared, stream, who, serve::Place(place, connected), pass, phase).await;
        }
        Err(reason) => reason,
    };
    let setup = shared.setup.load();
    shared.hall.stats.on_refused(&setup.name);
    // Before TLS there are no words, and to the denied none, and to those who spoke something else.
    let hears = !setup.is_tls && !matches!(reason, Reason::Denied | Reason::ProxyHeader);
    drop((setup, place));
    match last_words.try_acquire() {
        Ok(_turn) if hears => listening::linger_away(stream, &pages::limited(reason)).await,
        _ => drop(stream.set_zero_linger()),
    }
}

impl Shared {
    fn sweep(&self) {
        let idle_time = self.setup.load().manner.idle_time;
        for pool in self.pools.lock().unwrap_or_else(PoisonError::into_inner).values() {
            pool.sweep(idle_time);
        }
    }
}
