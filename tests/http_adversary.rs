//! Claim: a visitor of an http listener that breaks rules, or keeps none, costs itself an answer and nobody else anything.
//! Method: bridge and agent as processes, visitors byte by byte.

mod common;

use common::frames::{BAD_REQUEST, Framed, GOAWAY, HEADERS, OK};
use common::origin::{Origin, ask, head, talk, value};
use common::site::{curl, site, status};
use common::world::World;
use common::{PATIENCE, raise_nofile};
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;

/// What two readers could take for two different things reaches no backend as it came; each row is one connection.
#[test]
fn nothing_is_smuggled() {
    let world = World::start_with(&site("service = \"mirror\"\n"));
    let mirror = Origin::mirror();
    let _agent = world.agent_of(&[("mirror", mirror.address)]);
    let site = world.listener("site");
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = |headers: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}");
    for request in [
        post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Content-Length: 5\r\nContent-Length: 6\r\n", &format!("01234{hidden}")),
        post("Content-Length: 5, 6\r\n", &format!("01234{hidden}")),
        post("Content-Length: +5\r\n", &format!("01234{hidden}")),
        post("Content-Length: 0x5\r\n", &format!("01234{hidden}")),
        post("Content-Length: 5 \x0b\r\n", &format!("01234{hidden}")),
        post("Content-Length : 5\r\n", &format!("01234{hidden}")),
        post("Transfer-Encoding: chunked, identity\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked, chunked\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: identity, chunked\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: xchunked\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding : chunked\r\n", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("5;\nGET \r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("-1\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("ffffffffffffffff1\r\n{hidden}")),
        post("X: y\r\n Content-Length: 5\r\n", &format!("01234{hidden}")),
        post("X: a\rb\r\n", hidden),
        post("X: a\0b\r\n", hidden),
        format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{hidden}"),
        format!("GET / HTTP/1.1\r\n\r\n{hidden}"),
        format!("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n{hidden}"),
        format!("GET / HTTP/1.1\r\nHost: a b\r\n\r\n{hidden}"),
        format!("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n{hidden}"),
        format!("GET / HTTP/9.9\r\nHost: a\r\n\r\n{hidden}"),
    ] {
        let answer = talk(site, request.as_bytes()).unwrap_or_else(|text| text);
        assert!(!answer.contains("GET /hidden"), "{request:?}\n{answer}");
        if request.contains("Content-Length: 4\r\n") {
            // Chunks count, and nothing after them does.
            assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{request:?}\n{answer}");
            assert_eq!(value(answer.split_once("\r\n\r\n").expect("a head").1, "content-length"), None);
            continue;
        }
        assert!(!answer.contains("HTTP/1.1 200"), "{request:?}\n{answer}");
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"),
            "{request:?}\n{answer}"
        );
    }
    // A body is a body, whatever it looks like; and a cleartext HTTP/2 does not hide behind an upgrade.
    let request = post(&format!("Content-Length: {}\r\nConnection: close\r\n", hidden.len()), hidden);
    let seen = talk(site, request.as_bytes()).expect("an answer");
    assert!(seen.starts_with("HTTP/1.1 200") && !seen.contains("/hidden"), "{seen}");
    let answer = ask(site, "GET /", "Host: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nX: y\r\n").1;
    assert!(value(&answer, "upgrade").is_none() && value(&answer, "http2-settings").is_none(), "{answer}");
    // HTTP/2 may name the host twice, but not two hosts (RFC 9113 §8.3.1).
    let mut visitor = Framed::connect(site);
    for (n, (authority, host, status)) in [
        ("a", "a", OK),
        ("a", "A", OK),
        ("a:80", "a", OK),
        ("a", "b", BAD_REQUEST),
        ("a:80", "a:81", BAD_REQUEST),
        ("a", "a:81", BAD_REQUEST),
        ("a", "a b", BAD_REQUEST),
        ("a", "", BAD_REQUEST),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * u32::try_from(n).expect("few") + 1;
        visitor.get(stream, &[(":authority", authority), ("host", host)]);
        assert_eq!(visitor.wait(HEADERS).bytes.first(), Some(&status), "{authority} and {host}");
        visitor.body();
    }
    assert_eq!(world.bridge.text().matches("panicked").count(), 0);
}

/// Reads to the end, however it comes.
fn rest(mut stream: &TcpStream) -> String {
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read);
    String::from_utf8_lossy(&read).into_owned()
}

fn connected(to: std::net::SocketAddr, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.write_all(words.as_bytes()).expect("it is open");
    stream
}

/// A head, or a body, that does not come to its end is answered 408; who has said nothing is let go without a word; a
/// head that is too long or has too many lines is answered 431.
#[test]
fn heads_end_in_time_and_size() {
    let world = World::start_with(&site(
        "service = \"mirror\"\n[listener.http]\ntimeout_head = \"1s\"\ntimeout_idle = \"1s\"\nhead_bytes_max = 8192\nheaders_max = 10\n",
    ));
    let mirror = Origin::mirror();
    let _agent = world.agent_of(&[("mirror", mirror.address)]);
    let site = world.listener("site");
    let late = rest(&connected(site, "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "));
    assert!(late.starts_with("HTTP/1.1 408 ") && late.ends_with("did not come.\n"), "{late}");
    assert_eq!(value(&late, "content-length"), Some("59"), "{late}");
    let body = rest(&connected(site, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"));
    assert!(body.starts_with("HTTP/1.1 408 ") && body.contains("rest of the request"), "{body}");
    assert_eq!(rest(&connected(site, "")), "");
    // A connection that is kept ends without a word, too.
    let kept = connected(site, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let text = rest(&kept);
    assert!(text.starts_with("HTTP/1.1 200 ") && !text.contains("408"), "{text}");
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(status(&rest(&connected(site, &long))), 431);
    let many: String = (0..20).map(|n| format!("X-{n}: y\r\n")).collect();
    assert_eq!(status(&ask(site, "GET /", &format!("Host: a\r\n{many}")).0), 431);
    assert_eq!(status(&rest(&connected(site, "GET / HTTP/1.1\r\nHost a\r\n\r\n"))), 400);
    // What never became a request is counted by itself.
    common::until("four of them to be counted", || {
        let metrics = common::world::get(world.http, "/metrics").expect("it serves").1;
        metrics.contains("ringspan_http_bad_heads_total{listener=\"site\"} 4\n").then_some(())
    });
    let (url, lines) = (format!("http://{site}/"), many.replace("\r\n", "\n"));
    let mut wants = vec!["--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", &url];
    wants.extend(lines.lines().flat_map(|line| ["-H", line]));
    assert_eq!(curl(&wants).1, "2 431");
    assert_eq!(mirror.connections(), 2, "none but the unfinished body and the whole request came through");
}

/// Who speaks HTTP/2 and asks nothing is let go, wherever it stops and whatever else it says; who waits for a long answer, or
/// asks again and again, is not.
#[test]
fn silent_http2_ends_in_time() {
    let world = World::start_with(&site(
        "service = \"mirror\"\n[listener.http]\ntimeout_head = \"1s\"\n[[listener.route]]\nhost = \"slow\"\nservice = \"slow\"\n",
    ));
    let mirror = Origin::mirror();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let slow = Origin::start(move |mut from, _| {
        let Some(_) = head(&mut from) else { return };
        let _ = from.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
        let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
        let _ = from.get_mut().write_all(b"done");
    });
    let _agent = world.agent_of(&[("mirror", mirror.address), ("slow", slow.address)]);
    let site = world.listener("site");
    let mut waits = Framed::connect(site);
    waits.get(1, &[(":authority", "slow")]);
    assert_eq!(waits.wait(HEADERS).bytes.first(), Some(&OK));
    // All of them read, so that they answer PING.
    let waits = std::thread::spawn(move || (waits.body(), waits.rest()));
    let told = std::thread::spawn(move || Framed::connect(site).rest());
    let silent = std::thread::spawn(move || rest(&connected(site, "PRI * HTTP")));
    let mut asks = Framed::connect(site);
    for stream in (1..).step_by(2) {
        asks.get(stream, &[(":authority", "mirror")]);
        assert_eq!(asks.wait(HEADERS).bytes.first(), Some(&OK), "stream {stream}");
        asks.body();
        if silent.is_finished() {
            break;
        }
    }
    silent.join().expect("no panic");
    assert!(told.join().expect("no panic").contains(&GOAWAY), "who is there reads that it is to go");
    assert!(asks.rest().contains(&GOAWAY), "it has asked nothing more");
    release.send(()).expect("the backend waits");
    let (body, then) = waits.join().expect("no panic");
    assert_eq!(body, b"done", "after several times timeout_head");
    assert!(then.contains(&GOAWAY), "it has nothing open any more");
}

/// Who answers every PING and takes none of what it has asked for is let go, and the backend with it; who lets one answer
/// wait and reads others is not.
#[test]
fn http2_that_takes_nothing_ends_in_time() {
    let world = World::start_with(&site(
        "service = \"mirror\"\n[listener.http]\ntimeout_idle = \"1s\"\ntimeout_answer = \"1s\"\n[[listener.route]]\nhost = \"big\"\nservice = \"big\"\n",
    ));
    let mirror = Origin::mirror();
    let (tell, told) = std::sync::mpsc::channel();
    let big = Origin::start(move |mut from, _| {
        let Some(_) = head(&mut from) else { return };
        let _ = from.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        while from.get_mut().write_all(&[b'x'; 65_536]).is_ok() {}
        let _ = tell.send(());
    });
    let _agent = world.agent_of(&[("mirror", mirror.address), ("big", big.address)]);
    let site = world.listener("site");
    // The window of a stream is 64 KiB (RFC 9113 §6.9.2), and neither grants more of it.
    let stuck = |first: u32| {
        let mut visitor = Framed::connect(site);
        visitor.get(first, &[(":authority", "big")]);
        assert_eq!(visitor.wait(HEADERS).bytes.first(), Some(&OK));
        visitor
    };
    let mut reads = stuck(1);
    let mut holds = stuck(1);
    let holds = std::thread::spawn(move || holds.rest());
    for stream in (3..).step_by(2) {
        reads.get(stream, &[(":authority", "mirror")]);
        assert_eq!(reads.wait(HEADERS).bytes.first(), Some(&OK));
        if told.try_recv().is_ok() {
            break;
        }
    }
    assert!(holds.join().expect("no panic").contains(&GOAWAY), "it is told");
    // Nor does that one stay when it has nothing else any more.
    assert!(reads.rest().contains(&GOAWAY));
    told.recv_timeout(PATIENCE).expect("its backend is let go, too");
}

/// Five thousand visitors that send a head byte by byte, and never its end, keep nobody out; they are all let go.
#[test]
fn the_slow_do_not_stop_others() {
    raise_nofile();
    let world = World::start_with(&site("service = \"mirror\"\n[listener.http]\ntimeout_head = \"20s\"\n"));
    let mirror = Origin::mirror();
    let _agent = world.agent_of(&[("mirror", mirror.address)]);
    let site = world.listener("site");
    let slow: Vec<TcpStream> = (0..5000).map(|_| connected(site, "GET / HTTP/1.1\r\nHost: a\r\nX: ")).collect();
    for round in 0..20 {
        for mut stream in slow.iter().skip(round * 250).take(250) {
            let _ = stream.write_all(b"x");
        }
        assert_eq!(status(&ask(site, "GET /", "Host: a\r\n").0), 200, "round {round}");
    }
    for stream in &slow {
        let text = rest(stream);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 408 "), "{text}");
    }
    assert_eq!(status(&ask(site, "GET /", "Host: a\r\n").0), 200);
    assert!(mirror.connections() <= 21 && !world.bridge.text().contains("panicked"));
}

/// A body in chunks with Expect: 100-continue: the word comes when the backend takes the body, and the body arrives whole.
#[test]
fn expectations_are_met() {
    let world = World::start_with(&site("service = \"mirror\"\n"));
    let mirror = Origin::mirror();
    let _agent = world.agent_of(&[("mirror", mirror.address)]);
    let head_of = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    let mut stream = BufReader::new(connected(world.listener("site"), head_of));
    assert!(head(&mut stream).expect("a head").starts_with("HTTP/1.1 100 "));
    for piece in ["3\r\nabc\r\n", "1;name=value\r\nd\r\n", "0\r\nX-Trailer: 1\r\n\r\n"] {
        stream.get_mut().write_all(piece.as_bytes()).expect("it is open");
    }
    let answer = head(&mut stream).expect("a head");
    let bytes: usize = value(&answer, "content-length").and_then(|l| l.parse().ok()).expect("a length");
    let mut seen = vec![0; bytes];
    stream.read_exact(&mut seen).expect("whole");
    let seen = String::from_utf8(seen).expect("text");
    assert!(seen.contains("\r\n\r\n4 88d4266f") && value(&seen, "expect").is_none(), "{seen}");
}
