//! Webhooks against real receivers: axum's server that takes, refuses, fails, hangs, breaks off, sends elsewhere; each a
//! bounded cost, and nothing is lost in silence.

use super::super::tests::{note, plain};
use super::*;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What a receiver does with the next delivery.
enum Do {
    Take,
    Say(u16),
    /// `Retry-After: 0`, and a status that may be tried again.
    Wait,
    SendElsewhere,
    /// Says yes, and closes before the answer is whole.
    BreakOff,
    Hang,
}

/// One delivery as it came.
struct Came {
    headers: HeaderMap,
    body: Bytes,
}

impl Came {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("{name}")).to_str().expect("text")
    }
    fn numbers(&self) -> Vec<u64> {
        let json = self.json();
        let ids = json["events"].as_array().expect("a list").iter().map(|e| e["id"].as_str().expect("an id"));
        ids.map(|id| id.split_once('-').expect("two parts").1.parse().expect("a number")).collect()
    }
}

/// A receiver on a port of its own; what it is not told what to do with it takes.
struct Receiver {
    url: String,
    came: mpsc::UnboundedReceiver<Came>,
    server: JoinHandle<()>,
}

impl Receiver {
    async fn new(todo: Vec<Do>) -> Receiver {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (tell, came) = mpsc::unbounded_channel();
        let todo = Arc::new(Mutex::new(VecDeque::from(todo)));
        let handler = move |headers: HeaderMap, body: Bytes| {
            let next = todo.lock().unwrap().pop_front().unwrap_or(Do::Take);
            let tell = tell.clone();
            async move {
                tell.send(Came { headers, body }).unwrap();
                answer(next).await
            }
        };
        let router = axum::Router::new().route("/hook", axum::routing::post(handler));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Receiver { url, came, server }
    }

    fn hook(&self) -> Hook {
        let pace = Pace {
            timeout: Duration::from_secs(20),
            retries: 3,
            backoff: Duration::from_millis(2),
            backoff_max: Duration::from_millis(10),
        };
        Hook { pace, ..Hook::new("test", Destination::new(&self.url, None).unwrap()) }
    }

    async fn next(&mut self) -> Came {
        tokio::time::timeout(Duration::from_secs(30), self.came.recv()).await.expect("in time").expect("it runs")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(what: Do) -> Response {
    let status = |n: u16| StatusCode::from_u16(n).unwrap();
    match what {
        Do::Take => "thank you".into_response(),
        Do::Say(n) => status(n).into_response(),
        Do::Wait => (status(429), [("retry-after", "0")]).into_response(),
        Do::SendElsewhere => (status(307), [("location", "http://127.0.0.1:1/elsewhere")]).into_response(),
        Do::BreakOff => {
            let body = Body::from_stream(tokio_stream::iter([
                Ok(Bytes::from_static(b"thank")),
                Err(std::io::Error::other("the cable is cut")),
            ]));
            ([("content-length", "9")], body).into_response()
        }
        Do::Hang => std::future::pending().await,
    }
}

/// Runs the hook; events are told through what it gives.
fn start(hook: Hook) -> (Events, Arc<Stats>, JoinHandle<()>) {
    let events = Events::default();
    let shares = watch::Sender::new(Arc::new(Shares::default())).subscribe();
    let running = tokio::spawn(hook.run(&events, shares));
    let stats = events.hooks().pop().expect("it runs");
    (events, stats, running)
}

fn tell(events: &Events, count: usize) {
    note(events, count);
}

/// Ends the stream of events, and with it the hook, which has delivered all by then.
async fn end(events: &Events, running: JoinHandle<()>) {
    events.close();
    tokio::time::timeout(Duration::from_secs(30), running).await.expect("in time").expect("no panic");
}

/// A delivery is JSON, names its events, and is signed so that whoever has the secret can verify it.
#[tokio::test]
async fn deliveries_are_signed() {
    let mut receiver = Receiver::new(vec![]).await;
    let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_static("Bearer x"));
    let (events, stats, running) = start(Hook { secret: Some(secret.clone()), headers, ..receiver.hook() });
    tell(&events, 1);
    let came = receiver.next().await;
    let json = came.json();
    assert_eq!(
        (&json["hook"], &json["missed"], &json["events"][0]["event"]),
        (&"test".into(), &0.into(), &"service".into())
    );
    let id = came.header("webhook-id").to_owned();
    assert_eq!(id, format!("test-{}-1", json["events"][0]["id"].as_str().unwrap()));
    let timestamp: u64 = came.header("webhook-timestamp").parse().unwrap();
    assert_eq!(came.header("webhook-signature"), secret.sign(&id, timestamp, &came.body));
    assert_eq!((came.header("authorization"), came.header("content-type")), ("Bearer x", "application/json"));
    end(&events, running).await;
    assert_eq!(stats.events(), [("delivered", 1), ("dropped", 0), ("refused", 0), ("given_up", 0)]);
}

/// What may be tried again is tried again, under the same id and with the same body, until it is taken.
#[tokio::test]
async fn failures_are_tried_again() {
    for fails in [|| Do::Say(500), || Do::Say(503), || Do::Wait, || Do::BreakOff] {
        let mut receiver = Receiver::new(vec![fails(), fails()]).await;
        let (events, stats, running) = start(receiver.hook());
        tell(&events, 1);
        let (first, second, third) = (receiver.next().await, receiver.next().await, receiver.next().await);
        for (attempt, came) in [&first, &second, &third].into_iter().enumerate() {
            assert_eq!((came.header("webhook-id"), &came.body), (first.header("webhook-id"), &first.body));
            assert_eq!(came.header("webhook-attempt"), (attempt + 1).to_string());
        }
        end(&events, running).await;
        assert_eq!(stats.events()[0], ("delivered", 1));
        assert!(receiver.came.try_recv().is_err(), "taken once is enough");
    }
}

/// What will never be taken is not sent again; a redirect is not followed; the next delivery says what was missed.
#[tokio::test]
async fn what_is_refused_stays_so() {
    for refuses in [|| Do::Say(400), || Do::Say(410), || Do::SendElsewhere] {
        let mut receiver = Receiver::new(vec![refuses()]).await;
        let (events, stats, running) = start(receiver.hook());
        tell(&events, 2);
        assert_eq!(receiver.next().await.numbers(), [1, 2]);
        tell(&events, 1);
        let came = receiver.next().await;
        assert_eq!((came.numbers(), &came.json()["missed"]), (vec![3], &2.into()));
        end(&events, running).await;
        assert_eq!(stats.events(), [("delivered", 1), ("dropped", 0), ("refused", 2), ("given_up", 0)]);
    }
}

/// Tried often enough it is given up, and what came meanwhile goes on.
#[tokio::test]
async fn there_is_an_end() {
    let mut receiver = Receiver::new((0..4).map(|_| Do::Say(500)).collect()).await;
    let (events, stats, running) = start(receiver.hook());
    tell(&events, 1);
    for _ in 0..4 {
        assert_eq!(receiver.next().await.numbers(), [1]);
    }
    tell(&events, 1);
    let came = receiver.next().await;
    assert_eq!((came.numbers(), &came.json()["missed"]), (vec![2], &1.into()));
    end(&events, running).await;
    assert_eq!(stats.events(), [("delivered", 1), ("dropped", 0), ("refused", 0), ("given_up", 1)]);
    let attempts: Vec<_> = stats.attempts().filter(|(_, count)| *count > 0).collect();
    assert_eq!(attempts, [("taken", 1), ("status", 4)]);
}

/// A receiver that hangs costs its own queue: the oldest go, are counted and told, and the ring takes events as before.
#[tokio::test]
async fn a_full_queue_loses_the_oldest() {
    let mut receiver = Receiver::new(vec![Do::Hang]).await;
    let mut hook = Hook { queue_max: 3, batch_max: 2, ..receiver.hook() };
    hook.pace.timeout = Duration::from_millis(300);
    let (events, stats, running) = start(hook);
    tell(&events, 1);
    assert_eq!(receiver.next().await.numbers(), [1], "it hangs in this one");
    tell(&events, 10);
    assert_eq!(receiver.next().await.numbers(), [1], "again, after the timeout");
    let came = receiver.next().await;
    assert_eq!((came.numbers(), &came.json()["missed"]), (vec![9, 10], &7.into()));
    let came = receiver.next().await;
    assert_eq!((came.numbers(), &came.json()["missed"]), (vec![11], &0.into()));
    end(&events, running).await;
    assert_eq!(stats.events(), [("delivered", 4), ("dropped", 7), ("refused", 0), ("given_up", 0)]);
    assert_eq!(stats.attempts().find(|(end, _)| *end == "timeout"), Some(("timeout", 1)));
}

/// Takes one delivery in the plainest way there is, and closes.
async fn take_one(listener: &tokio::net::TcpListener) {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let (mut line, mut length) = (String::from("-"), 0);
    while !line.trim().is_empty() {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
}

/// Nobody listens, and then somebody does: it is delivered then. A connection that was closed while it rested is no
/// failure.
#[tokio::test]
async fn receivers_go_and_come() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let pace = Pace {
        retries: 10_000,
        backoff: Duration::from_millis(2),
        backoff_max: Duration::from_millis(2),
        ..Pace::default()
    };
    let to = Destination::new(&format!("http://{address}/"), None).unwrap();
    let (events, stats, running) = start(Hook { pace, ..Hook::new("test", to) });
    tell(&events, 1);
    let failed = || stats.attempts().find(|(end, _)| *end == "connect").map_or(0, |(_, count)| count);
    while failed() == 0 {
        tokio::task::yield_now().await;
    }
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    take_one(&listener).await;
    let before = failed();
    tell(&events, 1);
    take_one(&listener).await;
    end(&events, running).await;
    assert_eq!((stats.events()[0], failed()), (("delivered", 2), before));
    assert_eq!(stats.attempts().find(|(end, _)| *end == "broken"), Some(("broken", 0)));
}

/// A receiver's certificate is checked: by the roots that were given it is taken, by others it is not.
#[tokio::test]
async fn certificates_are_checked() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                use http_body_util::BodyExt;
                let body = request.into_body().collect().await?.to_bytes();
                assert!(!body.is_empty());
                Ok::<_, hyper::Error>(hyper::Response::new(http_body_util::Full::new(Bytes::from_static(b"ok"))))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    for (pem, want) in [(made.cert.pem(), 1), (other.cert.pem(), 0)] {
        let pace = Pace { retries: 0, ..Pace::default() };
        let to = Destination::new(&url, Some(pem.as_bytes())).unwrap();
        let (events, stats, running) = start(Hook { pace, ..Hook::new("test", to) });
        tell(&events, 1);
        end(&events, running).await;
        assert_eq!(stats.events()[0], ("delivered", want));
        assert_eq!(stats.attempts().find(|(end, _)| *end == "connect"), Some(("connect", 1 - want)));
    }
    server.abort();
}

/// What no receiver can be is refused, with what would be right; what is shown of one has no path.
#[test]
fn destinations() {
    for (url, problem) in [
        ("localhost:80", "http://"),
        ("ftp://localhost/", "http://"),
        ("http:///x", ""),
        ("http://me:pw@localhost/", "Authorization"),
    ] {
        let said = Destination::new(url, None).unwrap_err();
        assert!(said.contains(problem) && !said.contains("pw@"), "{url}: {said}");
    }
    assert!(Destination::new("https://localhost/", Some(b"no pem")).unwrap_err().contains("root"));
    let shown = format!("{:?}", Destination::new("http://[::1]:8/secret?x", None).unwrap());
    assert_eq!(shown, "http://::1:8/***");
}

/// Waits grow from half the first to the longest, and never beyond.
#[test]
fn waits() {
    let pace = Pace::default();
    let ms = |failures, part| pace.wait(failures, part).as_millis();
    assert_eq!((ms(1, 0.0), ms(1, 1.0), ms(2, 1.0), ms(3, 0.0)), (250, 500, 1000, 1000));
    assert_eq!((ms(8, 1.0), ms(9, 1.0), ms(1000, 1.0), ms(u32::MAX, 0.0)), (60_000, 60_000, 60_000, 30_000));
}

/// In a cluster each event is told by exactly one member, whichever has it.
#[test]
fn members_share() {
    let members = ["a", "b", "c"].map(str::to_owned);
    for port in 1..50 {
        let which = super::super::Which { cluster: "DEFAULT".into(), host: "10.0.0.1".into(), port };
        let of_instance = Event { instance: Some(which), ..plain(1) };
        for event in [of_instance, plain(1)] {
            let tellers = members.iter().filter(|me| is_ours(&Shares::new(me, members.clone()), &event)).count();
            assert_eq!(tellers, 1, "{event:?}");
        }
    }
    assert!(is_ours(&Shares::default(), &plain(1)), "without a cluster everything is ours");
}
