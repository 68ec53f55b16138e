//! One request: where it goes, what is changed, who answers.
//!
//! A request that was sent on a kept connection which turns out to be dead is sent again on a fresh one, if nothing of
//! it was sent, or if it may be repeated and has no body (RFC 9110 §9.2.2). Nothing else is sent twice.

use super::body::{self, Body, Bounds, Fault, Flow, Progress};
use super::hosts;
use super::io::Torn;
use super::pages::wants_html;
use super::pool::{Line, NoLine};
use super::request::{BAD_HOST, authority, is_idempotent, join_cookies, origin_form, strip, to_https};
use super::rules::{self, Asker, Coding};
use super::serve::Guest;
use super::streams::Open;
use super::table::{host_name, plain_path};
use super::upgrade;
use super::{Phase, Setup, Shared, Way};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use ringspan_tunnel::frame::Reason;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What requests of one connection share.
#[derive(Clone)]
pub(super) struct Visit {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: SocketAddr,
    /// The address it connected to.
    pub(super) asked: Option<SocketAddr>,
    pub(super) is_tls: bool,
    pub(super) torn: Torn,
    pub(super) guest: Guest,
    /// Of HTTP/2: this request's, open until its answer has ended.
    pub(super) stream: Option<Arc<Open>>,
    pub(super) phase: watch::Receiver<Phase>,
}

/// A refusal of ours: a status, and a sentence for people.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    why: &'static str,
    /// Of our log; the visitor does not see it.
    detail: String,
    /// Where to go instead.
    pub(super) location: Option<HeaderValue>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, why: &'static str) -> Refusal {
        Refusal { status, why, detail: String::new(), location: None }
    }
}

/// Counted and logged when the answer has ended, or as far as it came.
struct Record {
    visit: Visit,
    setup: Arc<Setup>,
    began: Instant,
    way: Option<Arc<Way>>,
    status: StatusCode,
    method: Method,
    host: String,
    path: String,
    visitor: IpAddr,
    /// HTTP/1.0.
    is_old: bool,
    id: Option<HeaderValue>,
    detail: String,
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let route = self.way.as_ref().map_or("none", |way| way.label.as_str());
        let listener = &self.setup.name;
        self.visit.shared.hall.stats.on_request(listener, route, self.status, took);
        if self.setup.options.access_log {
            let id = self.id.as_ref().and_then(|id| id.to_str().ok());
            tracing::info!(
                target: "access",
                listener,
                route,
                visitor = %self.visitor,
                method = %self.method,
                host = self.host,
                path = self.path,
                status = self.status.as_u16(),
                ms = took.as_millis() as u64,
                id,
                "request"
            );
        }
        if !self.detail.is_empty() {
            tracing::debug!(listener, route, visitor = %self.visitor, status = self.status.as_u16(), why = self.detail, "request");
        }
    }
}

/// Answers one request.
pub(super) async fn answer(visit: Visit, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let setup = visit.shared.setup.load_full();
    let (mut parts, body) = request.into_parts();
    let mut record = Record {
        began: Instant::now(),
        way: None,
        status: StatusCode::OK,
        method: parts.method.clone(),
        host: String::new(),
        path: parts.uri.path().to_owned(),
        visitor: visit.peer.ip().to_canonical(),
        is_old: parts.version < Version::HTTP_11,
        id: None,
        detail: String::new(),
        visit,
        setup: setup.clone(),
    };
    let (is_browser, version) = (wants_html(&parts.headers), parts.version);
    let phase = record.visit.phase.clone();
    let mut answer = match forward(&mut record, &mut parts, body).await {
        Ok(answer) => {
            record.status = answer.status();
            answer.map(|flow| attach(flow, record))
        }
        Err(Refusal { status, why, detail, location }) => {
            (record.status, record.detail) = (status, detail);
            let mut answer = setup.pages.answer(status, why, is_browser);
            let headers = answer.headers_mut();
            if status == StatusCode::UNAUTHORIZED {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Basic realm=\"restricted\", charset=\"UTF-8\""),
                );
            }
            if status == StatusCode::METHOD_NOT_ALLOWED {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
            }
            if status == StatusCode::BAD_REQUEST && version < Version::HTTP_2 {
                // Whoever cannot write one request is not trusted to write another one behind it (RFC 9112 §11.2).
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some(to) = location {
                headers.insert(header::LOCATION, to);
            }
            if let (Some(name), Some(id)) = (&setup.options.request_id, &record.id) {
                headers.insert(name.parse::<HeaderName>().expect("the configuration has checked it"), id.clone());
            }
            // What a visitor still sends nobody reads: then the next request cannot be found either. hyper closes.
            answer
        }
    };
    if version < Version::HTTP_2 && *phase.borrow() != Phase::Open && answer.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    *answer.version_mut() = Version::HTTP_11;
    Ok(answer)
}

/// The answer's body, and what is to be done at its end.
enum Answered {
    Whole(Body),
    Flowing(Incoming, Bounds, Option<Torn>),
}

fn attach(body: Answered, record: Record) -> Body {
    match body {
        Answered::Whole(body) => body,
        Answered::Flowing(inner, bounds, torn) => {
            let progress = Progress::new(record.visit.stream.clone());
            Flow::new(inner, bounds, progress, torn, Box::new(record)).boxed_unsync()
        }
    }
}

async fn forward(record: &mut Record, parts: &mut Parts, body: Incoming) -> Result<Response<Answered>, Refusal> {
    let (setup, visit) = (record.setup.clone(), record.visit.clone());
    let options = &setup.options;
    // hyper counts those of HTTP/1 alone. HTTP/2 may cut the one Cookie header up.
    let cookies = parts.headers.get_all(header::COOKIE).iter().count();
    if parts.headers.len() - cookies.saturating_sub(1) > options.headers_max as usize {
        return Err(Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "The request has too many headers."));
    }
    let authority = authority(parts)?;
    let coded = |status, why| Err(Refusal::new(status, why));
    match rules::coding_of(&parts.headers) {
        Coding::Plain => {}
        Coding::Unclear => return coded(StatusCode::BAD_REQUEST, "The request does not say clearly where it ends."),
        Coding::Foreign => {
            return coded(StatusCode::NOT_IMPLEMENTED, "The body comes in a coding that is not known here.");
        }
    }
    record.host = host_name(&authority);
    let id_header = options.request_id.as_ref().and_then(|name| name.parse::<HeaderName>().ok());
    record.id = id_header.as_ref().map(|name| request_id(record, parts, name));
    if options.agents.as_ref().is_some_and(|path| *path == parts.uri.path()) {
        let asker = Asker { ip: visit.peer.ip(), is_tls: visit.is_tls, host: &authority };
        let ip = rules::tell_asker(&mut parts.headers.clone(), &asker, &options.trusted, false);
        // Behind a proxy that is trusted the port is not known.
        let port = if ip == visit.peer.ip().to_canonical() { visit.peer.port() } else { 0 };
        record.visitor = ip;
        let taken = visit.shared.hall.links.take_in(parts, &setup.name, SocketAddr::new(ip, port));
        let answer = taken.map_err(|(status, why)| Refusal::new(status, why))?;
        return Ok(answer.map(|()| Answered::Whole(body::empty())));
    }
    if let Some(port) = options.redirect_https {
        return Err(to_https(&record.host, port, &parts.uri));
    }
    let bad_path = || Refusal::new(StatusCode::BAD_REQUEST, "The path of this address leads nowhere.");
    // "*" is the server as a whole (RFC 9110 §9.3.7): it has the rules of its root.
    let path = match parts.uri.path() {
        "*" => "/".into(),
        path => plain_path(path).ok_or_else(bad_path)?,
    };
    // A host of the file is never an agent's; one of a pattern may be.
    let asked = options.agent_hosts.then(|| hosts::way(&visit.shared, &setup, &record.host)).flatten();
    let Some(way) = asked.as_ref().or_else(|| setup.table.find(&record.host, &path)).filter(|way| !way.passthrough)
    else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "There is nothing at this address."));
    };
    record.way = Some(way.clone());
    if let Some(guard) = &way.guard {
        if !guard.admits(&parts.headers) {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "This address wants a name and a password."));
        }
        parts.headers.remove(header::AUTHORIZATION);
    }
    let length = body.size_hint().lower();
    if way.body_bytes_max.is_some_and(|max| length > max) {
        return Err(too_long());
    }
    if let Some(prefix) = &way.strip {
        strip(&mut parts.uri, prefix).ok_or_else(bad_path)?;
    }

    // From here on the request is the backend's.
    let protocol = match parts.version {
        Version::HTTP_11 => rules::upgrade_of(&parts.headers),
        _ => None,
    };
    rules::remove_hop_by_hop(&mut parts.headers);
    // What is ours is set after that, or a visitor could name it away.
    if let (Some(name), Some(id)) = (&id_header, &record.id) {
        parts.headers.insert(name.clone(), id.clone());
    }
    // We answer it ourselves, when a backend has been reached and the body is asked for (RFC 9110 §10.1.1).
    parts.headers.remove(header::EXPECT);
    let asker = Asker { ip: visit.peer.ip(), is_tls: visit.is_tls, host: &authority };
    record.visitor = rules::tell_asker(&mut parts.headers, &asker, &options.trusted, options.forwarded);
    join_cookies(&mut parts.headers);
    let host = way.rewrite_host.clone().or_else(|| HeaderValue::try_from(&authority).ok());
    parts.headers.insert(header::HOST, host.ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, BAD_HOST))?);
    way.request.apply(&mut parts.headers);
    let mut from_visitor = None;
    if let Some(protocol) = &protocol {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
        parts.headers.remove(header::TE);
        from_visitor = parts.extensions.remove::<OnUpgrade>();
    }
    parts.uri = origin_form(&parts.uri);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();

    let until = options.timeout_total.map(|total| record.began + total);
    let bounds = Bounds { idle: options.timeout_idle, until, bytes_max: way.body_bytes_max };
    let progress = Progress::new(visit.stream.clone());
    let repeats = body.is_end_stream() && is_idempotent(&parts.method);
    let body = if body.is_end_stream() {
        progress.end();
        body::empty()
    } else {
        Flow::new(body, bounds, progress.clone(), None, ()).boxed_unsync()
    };
    let request = head(parts, body);
    let spare = repeats.then(|| parts.clone());
    let asks_who = way.pool.asks_who();
    let alone = (!options.reuse || protocol.is_some() || asks_who).then(|| {
        // Behind a proxy that is trusted the port is not known.
        let port = if record.visitor == visit.peer.ip().to_canonical() { visit.peer.port() } else { 0 };
        SocketAddr::new(record.visitor, port)
    });
    let sent = send(&setup, &visit, way, request, spare, alone);
    let (mut response, line) = in_time(sent, &progress, options, until).await?;

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(from_visitor), true) = (from_visitor, protocol.is_some()) else {
            return Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                "The server changed to a protocol that nobody asked for.",
            ));
        };
        let to_backend = hyper::upgrade::on(&mut response);
        let protocol = response.headers_mut().remove(header::UPGRADE).or(protocol);
        let idle = options.timeout_idle;
        tokio::spawn(upgrade::carry(from_visitor, to_backend, idle, visit.clone()));
        let mut answer = response.map(|_| Answered::Whole(body::empty()));
        rules::remove_hop_by_hop(answer.headers_mut());
        way.response.apply(answer.headers_mut());
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        answer.headers_mut().insert(header::UPGRADE, protocol.expect("the request had one"));
        return Ok(answer);
    }
    if rules::coding_of(response.headers()) != Coding::Plain {
        // The line goes with the answer: what follows on it cannot be found.
        return Err(Refusal::new(
            StatusCode::BAD_GATEWAY,
            "The server behind this address answered in an unknown coding.",
        ));
    }
    if alone.is_none() {
        way.pool.keep(line, setup.manner);
    }
    rules::remove_hop_by_hop(response.headers_mut());
    let is_measured = response.headers().contains_key(header::CONTENT_LENGTH);
    way.response.apply(response.headers_mut());
    if let (Some(name), Some(id)) = (id_header, &record.id) {
        response.headers_mut().insert(name, id.clone());
    }
    // To an HTTP/1.0 visitor the end of the connection may be the end of the answer: one that broke must look broken.
    let torn = (!is_measured && record.is_old).then(|| visit.torn.clone());
    Ok(response.map(|inner| Answered::Flowing(inner, Bounds { bytes_max: None, ..bounds }, torn)))
}

fn too_long() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "What was sent is larger than this address takes.")
}

/// A number for the request, or the one that a trusted proxy gave it.
fn request_id(record: &Record, parts: &Parts, name: &HeaderName) -> HeaderValue {
    let trusted = &record.setup.options.trusted;
    let is_trusted = trusted.iter().any(|net| net.contains(&record.visitor));
    let given = parts.headers.get(name).filter(|id| is_trusted && !id.is_empty() && id.len() <= 128).cloned();
    given.unwrap_or_else(|| {
        HeaderValue::try_from(format!("{:032x}", fastrand::u128(..))).expect("hexadecimal digits are a header's value")
    })
}

fn head(parts: &Parts, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    request
}

/// Sends a request and waits for the head of its answer. `alone`: on a connection of its own, for this visitor. A
/// connection that serves many is nobody's: the visitor stands in the headers.
async fn send(
    setup: &Setup,
    visit: &Visit,
    way: &Way,
    mut request: Request<Body>,
    spare: Option<Parts>,
    alone: Option<SocketAddr>,
) -> Result<(Response<Incoming>, Line), Refusal> {
    let mut may_reuse = alone.is_none();
    loop {
        let kept = if may_reuse { way.pool.take(&setup.manner) } else { None };
        let mut line = match kept {
            Some(line) => line,
            None => {
                visit.shared.hall.stats.on_dial(&setup.name);
                way.pool.dial(&setup.manner, alone, visit.asked).await.map_err(no_line)?
            }
        };
        let mut error = match line.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, line)),
            Err(error) => error,
        };
        let unsent = error.take_message();
        let error = error.into_error();
        let repeat = spare.as_ref().filter(|_| !error.is_parse() && !is_timeout(&error));
        request = match (line.is_reused, unsent, repeat) {
            (true, Some(request), _) => request,
            (true, None, Some(parts)) => head(parts, body::empty()),
            _ => return Err(broken(&error)),
        };
        may_reuse = false;
    }
}

fn is_timeout(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

fn broken(error: &hyper::Error) -> Refusal {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let mut refusal = if is_timeout(error) { late() } else { Refusal::new(StatusCode::BAD_GATEWAY, BROKEN) };
    refusal.detail = format!("{error}{source}");
    refusal
}

const BROKEN: &str = "The server behind this address broke off.";

fn late() -> Refusal {
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "The server behind this address did not answer in time.")
}

fn no_line(why: NoLine) -> Refusal {
    const DOWN: &str = "No server for this address is up at the moment.";
    const BUSY: &str = "Too much is going on here at the moment.";
    const OFTEN: &str = "Too many have come here in too short a time.";
    const DENIED: &str = "Your address may not come in here.";
    const AWAY: &str = "The server behind this address cannot be reached.";
    let (refusal, detail) = match why {
        NoLine::Ours(error) => (Refusal::new(StatusCode::SERVICE_UNAVAILABLE, BUSY), error.to_string()),
        NoLine::Refused(reason) => {
            let (status, why) = match reason {
                Reason::NoBackend | Reason::NoService => (StatusCode::SERVICE_UNAVAILABLE, DOWN),
                Reason::HandoverFull
                | Reason::StreamsMax
                | Reason::MemoryMax
                | Reason::Stopping
                | Reason::Draining
                | Reason::ConnectionsMax
                | Reason::VisitorsMax => (StatusCode::SERVICE_UNAVAILABLE, BUSY),
                Reason::RateMax => (StatusCode::TOO_MANY_REQUESTS, OFTEN),
                Reason::Denied => (StatusCode::FORBIDDEN, DENIED),
                Reason::DialTimeout => return Refusal { detail: reason.sentence().into(), ..late() },
                _ => (StatusCode::BAD_GATEWAY, AWAY),
            };
            (Refusal::new(status, why), reason.sentence().to_owned())
        }
    };
    Refusal { detail, ..refusal }
}

/// Waits for the answer's head: so long after the last of the request has gone, or, while it goes, as long as it moves.
async fn in_time<T>(
    work: impl Future<Output = Result<T, Refusal>>,
    progress: &Progress,
    options: &crate::config::http::Options,
    until: Option<Instant>,
) -> Result<T, Refusal> {
    let mut work = std::pin::pin!(work);
    let deadline = || {
        let patience = match progress.has_ended() {
            true => options.timeout_answer,
            // The body has its own bound; this one is for a backend that neither takes it nor says why.
            false => options.timeout_answer.max(options.timeout_idle) + Duration::from_secs(1),
        };
        let idle = progress.moved_at() + patience;
        until.map_or(idle, |until| until.min(idle))
    };
    loop {
        tokio::select! {
            result = work.as_mut() => return result.map_err(|refusal| blame(refusal, progress.fault())),
            // From here on the patience is another.
            () = progress.end_of(), if !progress.has_ended() => {}
            () = tokio::time::sleep_until(deadline().into()) => {
                if deadline() <= Instant::now() {
                    return Err(blame(late(), progress.fault()));
                }
            }
        }
    }
}

/// If the request's own body went wrong, that is why.
fn blame(refusal: Refusal, fault: Fault) -> Refusal {
    match fault {
        Fault::None => refusal,
        Fault::TooLong => too_long(),
        Fault::Idle => Refusal::new(StatusCode::REQUEST_TIMEOUT, "The rest of the request did not come."),
        Fault::Broken => Refusal::new(StatusCode::BAD_REQUEST, "The body of the request is damaged."),
    }
}
