//! Subscribers by the thousand, in a process of their own: each told of changes by UDP (Nacos v1) or over a gRPC connection
//! of its own (Nacos 2), and timed from the moment before the change was asked for.
//! Promise: who is not told within [`PUSH_MAX`] is counted, not waited for; each push is acknowledged as clients do.

use super::api::Api;
use crate::process::{self, Failure};
use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UdpSocket};

/// How long a change may take to reach the last subscriber before it is given up.
const PUSH_MAX: Duration = Duration::from_secs(8);
/// A client that understands pushes over UDP, by its name.
const AGENT: &str = "Nacos-Java-Client:v1.4.6";
/// Who watches the service.
const SERVICE: &str = "serviceName=pushed";
/// UDP subscribers renew themselves by listing; a server forgets who has not for 30 s.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How they are told.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    /// Datagrams.
    Udp,
    /// A stream of a connection each.
    Grpc,
}

/// What to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// The HTTP API, where changes are asked for.
    pub(crate) http: SocketAddr,
    /// Where gRPC is spoken.
    pub(crate) grpc: SocketAddr,
    /// How they are told.
    pub(crate) by: By,
    /// How many there are.
    pub(crate) subscribers: usize,
    /// Changes, one after the other.
    pub(crate) changes: usize,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Found {
    /// Half were told within this.
    pub(crate) p50_ms: f64,
    /// 99 of 100.
    pub(crate) p99_ms: f64,
    /// The last one.
    pub(crate) max_ms: f64,
    /// Never told.
    pub(crate) missed: usize,
}

/// The change that everybody waits for.
struct Current {
    mark: Mutex<(String, Instant)>,
    told: AtomicUsize,
    times: Mutex<Histogram<u64>>,
}

impl Current {
    fn is_in(&self, text: &[u8]) -> bool {
        let (mark, since) = self.mark.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = text.windows(mark.len()).any(|window| window == mark.as_bytes());
        if found {
            let took = since.elapsed().as_micros() as u64;
            self.times.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took);
            self.told.fetch_add(1, Ordering::SeqCst);
        }
        found
    }
}

/// Runs the plan in a child, so that its threads are nobody's account.
///
/// # Errors
/// It fails, or does not end.
pub(crate) fn in_a_child(plan: &Plan) -> Result<Found, Failure> {
    let plan = serde_json::to_string(plan).expect("plain figures make JSON");
    let own = process::own_program().to_string_lossy().into_owned();
    let args = ["-s", "KILL", "900", &own, "child", "subscribers", &plan];
    let finished = process::run("subscribers", process::command(Path::new("timeout"), &args, None), &[0])?;
    serde_json::from_str(finished.stdout.trim()).map_err(|e| format!("the subscribers printed no result: {e}"))
}

/// Subscribes, changes, and reports.
///
/// # Errors
/// The server refuses.
pub(crate) fn run(plan: &Plan) -> Result<Found, Failure> {
    let times = Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants");
    let current = Arc::new(Current {
        mark: Mutex::new(("no mark yet".into(), Instant::now())),
        told: AtomicUsize::new(0),
        times: Mutex::new(times),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| format!("runtime: {e}"))?;
    let mut api = Api::connect(plan.http)?;
    change(&mut api, "first")?;
    let ports = runtime.block_on(subscribe(plan, &current))?;
    let renew = |api: &mut Api| {
        let list = |port| format!("/nacos/v1/ns/instance/list?{SERVICE}&clientIP=127.0.0.1&udpPort={port}");
        ports.iter().try_for_each(|&port| api.call_as(AGENT, "GET", &list(port)).map(drop))
    };
    renew(&mut api)?;
    // What follows a subscription: a first push to each.
    thread::sleep(Duration::from_secs(2));
    let (mut missed, mut renewed) = (0, Instant::now());
    for n in 0..plan.changes {
        if renewed.elapsed() > RENEW_EVERY {
            renew(&mut api)?;
            renewed = Instant::now();
        }
        let mark = format!("mark-{n:06}");
        current.told.store(0, Ordering::SeqCst);
        let asked = Instant::now();
        *current.mark.lock().unwrap_or_else(PoisonError::into_inner) = (mark.clone(), asked);
        change(&mut api, &mark)?;
        while current.told.load(Ordering::SeqCst) < plan.subscribers && asked.elapsed() < PUSH_MAX {
            thread::sleep(Duration::from_millis(1));
        }
        missed += plan.subscribers.saturating_sub(current.told.load(Ordering::SeqCst));
        // Somebody who is told twice is not told twice as fast.
        *current.mark.lock().unwrap_or_else(PoisonError::into_inner) = ("no mark".into(), asked);
        thread::sleep(Duration::from_millis(50));
    }
    let times = current.times.lock().unwrap_or_else(PoisonError::into_inner);
    let [p50_ms, p99_ms] = [0.5, 0.99].map(|quantile| times.value_at_quantile(quantile) as f64 / 1e3);
    Ok(Found { p50_ms, p99_ms, max_ms: times.max() as f64 / 1e3, missed })
}

/// An ephemeral instance that says something else than before: the same in every server, and no disk in the way.
fn change(api: &mut Api, mark: &str) -> Result<(), Failure> {
    let metadata = format!("%7B%22mark%22%3A%22{mark}%22%7D");
    let path = format!("/nacos/v1/ns/instance?{SERVICE}&ip=127.0.0.1&port=80&ephemeral=true&metadata={metadata}");
    api.call("POST", &path).map(drop)
}

/// Starts them all; returns the ports of those that listen for datagrams.
async fn subscribe(plan: &Plan, current: &Arc<Current>) -> Result<Vec<u16>, Failure> {
    let mut ports = Vec::new();
    for n in 0..plan.subscribers {
        match plan.by {
            By::Udp => {
                let failed = |e: std::io::Error| format!("subscriber {n}: {e}");
                let socket = UdpSocket::bind("127.0.0.1:0").await.map_err(failed)?;
                ports.push(socket.local_addr().map_err(failed)?.port());
                tokio::spawn(hear_datagrams(socket, current.clone()));
            }
            By::Grpc => {
                let failed = |e: h2::Error| format!("gRPC subscriber {n} at {}: {e}", plan.grpc);
                let stream = join(plan.grpc, n).await?;
                let (mut send, incoming, outgoing) = stream;
                let asked = ask(&mut send, plan.grpc, "SubscribeServiceRequest", &subscription(n, "pushed")).await;
                let answer = asked.map_err(failed)?;
                if !contains(&answer, b"\"serviceInfo\"") {
                    return Err(format!("gRPC subscriber {n}: {}", String::from_utf8_lossy(&answer)));
                }
                let current = current.clone();
                tokio::spawn(hear_stream(send, incoming, outgoing, move |push| {
                    current.is_in(push);
                }));
            }
        }
    }
    Ok(ports)
}

/// Subscribes to one service over gRPC, and hears each push of it until the connection ends.
///
/// # Errors
/// The server refuses.
pub(crate) async fn hear_service(to: SocketAddr, service: &str, hear: impl Fn(&[u8])) -> Result<(), Failure> {
    let (mut send, incoming, outgoing) = join(to, 0).await?;
    let asked = ask(&mut send, to, "SubscribeServiceRequest", &subscription(0, service)).await;
    hear(&asked.map_err(|e| format!("subscription at {to}: {e}"))?);
    hear_stream(send, incoming, outgoing, hear).await;
    Ok(())
}

async fn hear_datagrams(socket: UdpSocket, current: Arc<Current>) {
    let mut datagram = vec![0; 65_536];
    while let Ok((n, from)) = socket.recv_from(&mut datagram).await {
        let mut text = datagram[..n].to_vec();
        // gzip's magic (RFC 1952).
        if text.starts_with(&[0x1f, 0x8b]) {
            let mut plain = Vec::new();
            let _ = flate2::read::GzDecoder::new(text.as_slice()).read_to_end(&mut plain);
            text = plain;
        }
        current.is_in(&text);
        if let Some(reference) = digits_after(&text, "\"lastRefTime\":") {
            let ack = format!("{{\"type\":\"push-ack\",\"lastRefTime\":\"{reference}\",\"data\":\"\"}}");
            let _ = socket.send_to(ack.as_bytes(), from).await;
        }
    }
}

/// The digits behind a key, whether or not they stand in quotes.
fn digits_after(text: &[u8], key: &str) -> Option<String> {
    let at = text.windows(key.len()).position(|window| window == key.as_bytes())? + key.len();
    let digits: String = text[at..]
        .iter()
        .skip_while(|byte| matches!(byte, b' ' | b'"'))
        .map_while(|&byte| byte.is_ascii_digit().then_some(char::from(byte)))
        .collect();
    (!digits.is_empty()).then_some(digits)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

type Outgoing = h2::SendStream<Bytes>;

/// A connection with its stream set up, as a client of Nacos 2 does it.
async fn join(to: SocketAddr, n: usize) -> Result<(SendRequest<Bytes>, h2::RecvStream, Outgoing), Failure> {
    let tcp = TcpStream::connect(to).await.map_err(|e| format!("gRPC subscriber {n} at {to}: {e}"))?;
    let _ = tcp.set_nodelay(true);
    let failed = |e: h2::Error| format!("gRPC subscriber {n} at {to}: {e}");
    let (send, connection) = h2::client::handshake(tcp).await.map_err(failed)?;
    tokio::spawn(connection);
    let mut send = send.ready().await.map_err(failed)?;
    ask(&mut send, to, "ServerCheckRequest", "{\"headers\":{},\"requestId\":\"1\",\"module\":\"internal\"}")
        .await
        .map_err(failed)?;
    let (answer, mut outgoing) =
        send.send_request(request(to, "/BiRequestStream/requestBiStream"), false).map_err(failed)?;
    let setup = "{\"headers\":{},\"requestId\":\"2\",\"module\":\"internal\",\"clientVersion\":\"Nacos-Java-Client:v2.3.2\",\
                 \"tenant\":\"\",\"labels\":{\"source\":\"sdk\",\"module\":\"naming\"}}";
    outgoing.send_data(message("ConnectionSetupRequest", setup), false).map_err(failed)?;
    let incoming = answer.await.map_err(failed)?.into_body();
    // A server takes the set-up when it comes to it; nothing of the protocol says when.
    tokio::time::sleep(Duration::from_millis(if n == 0 { 200 } else { 2 })).await;
    Ok((send, incoming, outgoing))
}

fn subscription(n: usize, service: &str) -> String {
    format!(
        "{{\"headers\":{{}},\"requestId\":\"{}\",\"module\":\"naming\",\"namespace\":\"public\",\"serviceName\":\"{service}\",\
         \"groupName\":\"DEFAULT_GROUP\",\"subscribe\":true,\"clusters\":\"\"}}",
        n + 3
    )
}

fn request(to: SocketAddr, path: &str) -> http::Request<()> {
    let request = http::Request::post(format!("http://{to}{path}"))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(()).expect("these are valid headers")
}

/// One call; returns the answer's bytes.
async fn ask(send: &mut SendRequest<Bytes>, to: SocketAddr, kind: &str, json: &str) -> Result<Vec<u8>, h2::Error> {
    let (answer, mut body) = send.send_request(request(to, "/Request/request"), false)?;
    body.send_data(message(kind, json), true)?;
    let mut incoming = answer.await?.into_body();
    let mut all = Vec::new();
    while let Some(piece) = incoming.data().await {
        let piece = piece?;
        incoming.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// Keeps the connection, and acknowledges each push.
async fn hear_stream(
    send: SendRequest<Bytes>,
    mut incoming: h2::RecvStream,
    mut outgoing: Outgoing,
    hear: impl Fn(&[u8]),
) {
    // Dropped, it would end the connection.
    let _send = send;
    let mut bytes = BytesMut::new();
    while let Some(Ok(piece)) = incoming.data().await {
        let _ = incoming.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
        while let Some(message) = take_message(&mut bytes) {
            if !contains(&message, b"NotifySubscriberRequest") {
                continue;
            }
            hear(&message);
            let id = digits_after(&message, "\"requestId\":").unwrap_or_default();
            let answer = format!("{{\"resultCode\":200,\"errorCode\":0,\"success\":true,\"requestId\":\"{id}\"}}");
            if outgoing.send_data(self::message("NotifySubscriberResponse", &answer), false).is_err() {
                return;
            }
        }
    }
}

/// A length-prefixed message of gRPC (a byte of flags, four of length), if it has come whole.
fn take_message(bytes: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().expect("four bytes")) as usize;
    if bytes.len() < 5 + length {
        return None;
    }
    bytes.advance(5);
    Some(bytes.split_to(length).freeze())
}

/// A message of Nacos' one type: `Payload { metadata = 2 { type = 3, clientIp = 8 }, body = 3 Any { value = 2 } }`.
fn message(kind: &str, json: &str) -> Bytes {
    let metadata = [field(3, kind.as_bytes()), field(8, b"127.0.0.1")].concat();
    let payload = [field(2, &metadata), field(3, &field(2, json.as_bytes()))].concat();
    let mut framed = vec![0];
    framed.extend((payload.len() as u32).to_be_bytes());
    framed.extend(payload);
    framed.into()
}

/// A field of bytes in Protocol Buffers' encoding: key, length, bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message is what protoc makes of the same fields, and is taken out again however it is cut.
    #[test]
    fn messages_are_framed() {
        let whole = message("T", "{}");
        let payload = b"\x12\x0e\x1a\x01T\x42\x09127.0.0.1\x1a\x04\x12\x02{}";
        assert_eq!(&whole[..5], [0, 0, 0, 0, payload.len() as u8]);
        assert_eq!(&whole[5..], payload);
        assert_eq!(field(3, &[7; 300])[..3], [0x1a, 0xac, 0x02]);
        let mut bytes = BytesMut::new();
        let twice = [&whole[..], &whole[..]].concat();
        let mut taken = 0;
        for byte in &twice {
            bytes.extend_from_slice(&[*byte]);
            while let Some(message) = take_message(&mut bytes) {
                assert_eq!(&message[..], payload);
                taken += 1;
            }
        }
        assert_eq!((taken, bytes.len()), (2, 0));
    }

    /// References are found quoted and bare.
    #[test]
    fn references_are_found() {
        assert_eq!(digits_after(b"{\"lastRefTime\":1700,\"x\":1}", "\"lastRefTime\":").as_deref(), Some("1700"));
        assert_eq!(digits_after(b"{\"lastRefTime\":\"1700\"}", "\"lastRefTime\":").as_deref(), Some("1700"));
        assert_eq!(digits_after(b"{}", "\"lastRefTime\":"), None);
    }

    /// Who is told of the mark is counted and timed; who is told of something else is not.
    #[test]
    fn only_the_current_mark_counts() {
        let current = Current {
            mark: Mutex::new(("mark-000007".into(), Instant::now())),
            told: AtomicUsize::new(0),
            times: Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants")),
        };
        assert!(!current.is_in(b"... mark-000006 ..."));
        assert!(current.is_in(b"{\\\"mark\\\":\\\"mark-000007\\\"}"));
        assert_eq!((current.told.load(Ordering::SeqCst), current.times.lock().expect("fine").len()), (1, 1));
    }
}
