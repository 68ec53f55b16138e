//! Answers as tables, each fed in one piece, byte by byte, and cut at every place: the finding must be the same.

use super::*;
use crate::check::CheckError;
use proptest::prelude::*;

/// What came of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Over(Code, u32),
    Again,
    /// More is wanted; at the deadline, this.
    Wants(Code, u32),
}

fn peer() -> Peer {
    Peer { address: "10.1.2.3:8080".parse().unwrap() }
}

fn settings(change: impl FnOnce(&mut HttpSettings)) -> HttpSettings {
    let mut settings = HttpSettings::default();
    change(&mut settings);
    settings
}

fn check(change: impl FnOnce(&mut HttpSettings)) -> Arc<HttpCheck> {
    Arc::new(HttpCheck::new(settings(change)).expect("a valid check"))
}

fn plain() -> Arc<HttpCheck> {
    check(|_| ())
}

/// Feeds pieces, then the end of the stream if `closes`. The conversation must not be spoken to after it is over.
fn feed(talk: &mut Asking, pieces: &[&[u8]], closes: bool) -> Came {
    let mut say = Vec::new();
    talk.open(Instant::ZERO, &peer(), &mut say);
    assert!(!say.is_empty() && say.len() <= HttpSettings::REQUEST_MAX);
    let end: &[&[u8]] = if closes { &[b""] } else { &[] };
    for piece in pieces.iter().filter(|piece| !piece.is_empty()).chain(end) {
        let mut said = Vec::new();
        match talk.hear(Instant::ZERO, piece, &mut said) {
            Next::Hear => assert!(said.is_empty()),
            Next::Over(finding) => {
                assert_eq!(finding.end, End::Reset);
                return Came::Over(finding.code, finding.detail.number);
            }
            Next::Again => return Came::Again,
            Next::Say => panic!("a request is said once"),
        }
    }
    let finding = talk.at_deadline();
    Came::Wants(finding.code, finding.detail.number)
}

/// Every way to cut: whole, single bytes, and in two at each place. A verdict that has settled may come out before or
/// after the last bytes, but it is one verdict.
fn cut(check: &Arc<HttpCheck>, answer: &[u8], closes: bool) -> Came {
    let settled = |came| match came {
        Came::Wants(code, number) if code != Code::L7Timeout => Came::Over(code, number),
        other => other,
    };
    let whole = settled(feed(&mut Asking::new(check.clone()), &[answer], closes));
    let bytes: Vec<&[u8]> = answer.chunks(1).collect();
    assert_eq!(
        settled(feed(&mut Asking::new(check.clone()), &bytes, closes)),
        whole,
        "byte by byte: {:?}",
        String::from_utf8_lossy(answer)
    );
    for place in 0..=answer.len() {
        let (first, second) = answer.split_at(place);
        let came = settled(feed(&mut Asking::new(check.clone()), &[first, second], closes));
        assert_eq!(came, whole, "cut at {place} of {:?}", String::from_utf8_lossy(answer));
    }
    whole
}

fn ok(number: u32) -> Came {
    Came::Over(Code::L7Ok, number)
}

fn status(number: u32) -> Came {
    Came::Over(Code::L7Status, number)
}

fn broken(number: u32) -> Came {
    Came::Over(Code::L7Response, number)
}

fn content(number: u32) -> Came {
    Came::Over(Code::L7Content, number)
}

fn waits() -> Came {
    Came::Wants(Code::L7Timeout, 0)
}

/// Heads, well formed and not, of servers that then keep the connection open.
#[test]
fn heads() {
    let table: &[(&[u8], Came)] = &[
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", ok(200)),
        (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\nok", ok(200)),
        (b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nbody until close", ok(200)),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", ok(200)),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", ok(200)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ok(204)),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", ok(302)),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nnot", status(404)),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", status(503)),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", status(999)),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05", status(101)),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ok(200)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", ok(200)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", broken(0)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", broken(0)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nok", broken(0)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok", broken(0)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ok(200)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Length: 7\r\n\r\n0\r\n\r\n", ok(200)),
        (b"HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 0\r\n\r\n", ok(200)),
        (b"HTTP/1.1 20 OK\r\n\r\n", broken(0)),
        (b"HTTP/1.1 099 OK\r\n\r\n", broken(0)),
        (b"HTTP/1.1 2000 OK\r\n\r\n", broken(0)),
        (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", broken(0)),
        (b"HTTP/2 200\r\n\r\n", broken(0)),
        (b"HTTP/3.1 200 OK\r\n\r\n", broken(0)),
        (b"SSH-2.0-OpenSSH_9.2\r\n", broken(0)),
        (b"\x15\x03\x01\x00\x02\x02\x16", broken(0)),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", broken(0)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2", waits()),
        (b"HTTP/1.", waits()),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Came::Wants(Code::L7Timeout, 100)),
        (b"", waits()),
    ];
    for (answer, expected) in table {
        assert_eq!(cut(&plain(), answer, false), *expected, "{}", String::from_utf8_lossy(answer));
    }
}

/// The same heads' peers close too early.
#[test]
fn answers_that_break_off() {
    let body = check(|s| s.content = Some(Content::Contains("ready".into())));
    let table: &[(&Arc<HttpCheck>, &[u8], Came)] = &[
        (&plain(), b"", broken(0)),
        (&plain(), b"HTTP/1.1 200 OK\r\nConte", broken(0)),
        (&plain(), b"HTTP/1.1 100 Continue\r\n\r\n", broken(100)),
        // The status was what was asked for, and it is known.
        (&plain(), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", ok(200)),
        (&body, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", broken(200)),
        (&body, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nready", ok(200)),
        (&body, b"HTTP/1.1 200 OK\r\n\r\nit is ready", ok(200)),
        (&body, b"HTTP/1.1 200 OK\r\n\r\nit is not", content(200)),
        (&body, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nrea", broken(200)),
    ];
    for (check, answer, expected) in table {
        assert_eq!(cut(check, answer, true), *expected, "{}", String::from_utf8_lossy(answer));
    }
}

/// Conditions on bodies, in each framing, found across cuts and chunks.
#[test]
fn bodies() {
    let when = |content: Content| check(|s| (s.content, s.body_max) = (Some(content), 32));
    let contains = when(Content::Contains("ready".into()));
    let lacks = when(Content::Lacks("error".into()));
    let matches = when(Content::Matches(r"^\{.*ready.*\}$".into()));
    let avoids = when(Content::Avoids("(?i)error".into()));
    let chunked = |parts: &[&str]| {
        let mut text = String::from("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for part in parts {
            text += &format!("{:X};ext=\"1\"\r\n{part}\r\n", part.len());
        }
        text + "0\r\nTrailer: x\r\n\r\n"
    };
    let length = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let long = "x".repeat(40);
    let table = [
        (&contains, length("is ready now"), ok(200)),
        (&contains, length("is not"), content(200)),
        (&contains, length(""), content(200)),
        (&contains, chunked(&["is re", "ady now"]), ok(200)),
        (&contains, chunked(&["is re", "-ady"]), content(200)),
        (&contains, chunked(&[]), content(200)),
        (&contains, length(&format!("ready{long}")), ok(200)),
        (&contains, length(&format!("{long}ready")), broken(200)),
        (&contains, chunked(&["ready", &long]), ok(200)),
        (&lacks, length("fine"), ok(200)),
        (&lacks, length("an error"), content(200)),
        (&lacks, chunked(&["an er", "ror"]), content(200)),
        (&lacks, length(&long), broken(200)),
        (&matches, length("{ready}"), ok(200)),
        (&matches, chunked(&["{rea", "dy}"]), ok(200)),
        (&matches, length("{ready} "), content(200)),
        (&matches, chunked(&["{ready}", &long]), broken(200)),
        (&avoids, length("fine"), ok(200)),
        (&avoids, length("an Error"), content(200)),
        (&contains, "HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nready".into(), status(500)),
        (&contains, "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nready".into(), content(204)),
        (&contains, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nnot".into(), Came::Wants(Code::L7Timeout, 200)),
    ];
    for (check, answer, expected) in table {
        assert_eq!(cut(check, answer.as_bytes(), false), expected, "{answer}");
    }
}

/// Chunked bodies that are not.
#[test]
fn malformed_chunks() {
    let check = check(|s| s.content = Some(Content::Contains("ready".into())));
    let endless = format!("5;{}", "x".repeat(5000));
    for chunks in
        ["\r\n", "g\r\n", "-1\r\n", "5 5\nrea\0y", "5\r\nhellos\r\n", "ffffffffffffffffff\r\n", "0\r\n\rx", &endless]
    {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let expected = if chunks.starts_with("5 5") { Came::Wants(Code::L7Timeout, 200) } else { broken(200) };
        assert_eq!(feed(&mut Asking::new(check.clone()), &[answer.as_bytes()], false), expected, "{chunks:.20}");
        let bytes: Vec<&[u8]> = answer.as_bytes().chunks(1).collect();
        assert_eq!(feed(&mut Asking::new(check.clone()), &bytes, false), expected, "{chunks:.20}");
    }
}

/// No answer makes the conversation hold more than its settings allow, and a head one byte too long is too long.
#[test]
fn heads_are_bounded() {
    let small = check(|s| s.head_max = 256);
    let head = |length: usize| {
        let start = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(length - start.len() - 4))
    };
    assert_eq!(cut(&small, head(256).as_bytes(), false), ok(200));
    assert_eq!(cut(&small, head(257).as_bytes(), false), broken(0));
    assert_eq!(cut(&small, head(5000).as_bytes(), false), broken(0));
    let mut talk = Asking::new(small);
    talk.open(Instant::ZERO, &peer(), &mut Vec::new());
    assert_eq!(talk.hear(Instant::ZERO, b"HTTP/1.1 200 OK\r\n", &mut Vec::new()), Next::Hear);
    while talk.hear(Instant::ZERO, b"X: y\r\n", &mut Vec::new()) == Next::Hear {
        assert!(talk.held.len() <= 256);
    }
    let interims = "HTTP/1.1 102 Processing\r\n\r\n".repeat(9);
    assert_eq!(cut(&plain(), interims.as_bytes(), false), broken(102));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(101));
    assert_eq!(cut(&plain(), many.as_bytes(), false), broken(0));
}

/// A small answer in one piece takes one piece; the rest of a small body is heard; a large or endless one is not.
#[test]
fn it_leaves_as_soon_as_is_decent() {
    let pieces = |pieces: &[&str]| {
        let mut talk = Asking::new(plain());
        talk.open(Instant::ZERO, &peer(), &mut Vec::new());
        pieces
            .iter()
            .map(|piece| talk.hear(Instant::ZERO, piece.as_bytes(), &mut Vec::new()))
            .take_while(|next| *next == Next::Hear)
            .count()
    };
    assert_eq!(pieces(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]), 0);
    assert_eq!(pieces(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", "ok", "ok"]), 2);
    assert_eq!(pieces(&["HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n"]), 0);
    assert_eq!(pieces(&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", "0\r\n\r\n"]), 1);
    assert_eq!(pieces(&["HTTP/1.1 200 OK\r\n\r\n", "a", "b"]), 1);
    assert_eq!(pieces(&["HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"]), 0);
    let head = check(|s| s.method = Method::Head);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
    assert_eq!(feed(&mut Asking::new(head), &[answer], false), ok(200));
}

fn asked(talk: &mut Asking) -> String {
    let mut say = b"PROXY UNKNOWN\r\n".to_vec();
    talk.open(Instant::ZERO, &peer(), &mut say);
    String::from_utf8(say).unwrap().strip_prefix("PROXY UNKNOWN\r\n").expect("what was there stays").to_owned()
}

/// The request, letter by letter.
#[test]
fn requests() {
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "GET / HTTP/1.1\r\nHost: 10.1.2.3:8080\r\nUser-Agent: ringspan/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(asked(&mut Asking::new(plain())), expected);
    let post = check(|s| {
        s.method = Method::Post;
        s.path = "/a?b=c".into();
        s.host = Some("db.example:81".into());
        s.headers = vec![
            ("user-agent".into(), "me".into()),
            ("X-Key".into(), "k".into()),
            ("Connection".into(), "keep-alive".into()),
        ];
        s.body = b"{}".to_vec();
    });
    let expected = "POST /a?b=c HTTP/1.1\r\nHost: db.example:81\r\nAccept: */*\r\nuser-agent: me\r\nX-Key: k\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(asked(&mut Asking::new(post)), expected);
    let mut v6 = Vec::new();
    settings::put_address("[fe80::1%3]:80".parse().unwrap(), 80, &mut v6);
    assert_eq!(v6, b"[fe80::1]");
}

/// Where redirects lead: what is asked next, or the verdict.
#[test]
fn redirects() {
    let follow = |any_host| {
        move |s: &mut HttpSettings| {
            s.redirects = Redirects::Follow { max: 2, any_host };
            s.host = Some("a.example".into());
            s.path = "/x/y?q=1".into();
        }
    };
    let first = |any_host, status: u16, location: &str| {
        let mut talk = Asking::new(check(follow(any_host)));
        let answer = format!("HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        match feed(&mut talk, &[answer.as_bytes()], false) {
            Came::Again => {
                let asked = asked(&mut talk);
                let mut lines = asked.lines();
                let (line, host) = (lines.next().unwrap(), lines.next().unwrap());
                format!("{} {}", line.strip_suffix(" HTTP/1.1").unwrap(), host.strip_prefix("Host: ").unwrap())
            }
            came => format!("{came:?}"),
        }
    };
    let judged = format!("{:?}", ok(302));
    let table = [
        (false, "/z", "GET /z a.example"),
        (false, "z", "GET /x/z a.example"),
        (false, "?r=2", "GET /x/y?r=2 a.example"),
        (false, "/z#part", "GET /z a.example"),
        (false, "HTTP://A.example:80/z", "GET /z a.example"),
        (false, "//a.example", "GET / a.example"),
        (false, "http://a.example?z", "GET /?z a.example"),
        (false, "http://b.example/z", &judged),
        (false, "http://a.example:81/z", &judged),
        (true, "http://b.example:81/z", "GET /z b.example:81"),
        (true, "https://a.example/z", &judged),
        (true, "http://b example/z", &judged),
        (true, "http:///z", &judged),
        (false, "mailto:a@b", &judged),
        (false, "/with space", &judged),
    ];
    for (any_host, location, expected) in table {
        assert_eq!(first(any_host, 302, location), expected, "{location}");
    }
    assert_eq!(first(false, 304, "/z"), format!("{:?}", ok(304)));
    assert_eq!(first(false, 308, "/z"), "GET /z a.example");
    let post = check(|s| {
        follow(false)(s);
        (s.method, s.body) = (Method::Post, b"x".to_vec());
    });
    for (status, method) in [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")] {
        let mut talk = Asking::new(post.clone());
        let answer = format!("HTTP/1.1 {status} Moved\r\nLocation: /z\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(feed(&mut talk, &[answer.as_bytes()], false), Came::Again);
        assert!(asked(&mut talk).starts_with(&format!("{method} /z ")), "{status}");
    }
}

/// Who sends on for ever fails with his status; a redirect that arrives in pieces is followed all the same.
#[test]
fn redirects_end() {
    let check = check(|s| s.redirects = Redirects::Follow { max: 2, any_host: false });
    let moved: &[u8] = b"HTTP/1.1 301 Moved\r\nLocation: /again\r\nContent-Length: 3\r\n\r\nno!";
    let mut talk = Asking::new(check.clone());
    assert_eq!(feed(&mut talk, &[moved], false), Came::Again);
    assert_eq!(feed(&mut talk, &[moved], false), Came::Again);
    assert_eq!(feed(&mut talk, &[moved], false), status(301));
    assert_eq!(cut(&check, moved, false), Came::Again);
    // Found by fuzzing: a body of unknown length was waited for, or not, as the pieces fell.
    assert_eq!(cut(&check, b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\nbody", false), Came::Again);
    assert_eq!(
        cut(&check, b"HTTP/1.1 302 Found\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbo", false),
        Came::Again
    );
    let mut talk = Asking::new(check);
    assert_eq!(feed(&mut talk, &[&moved[..30], &moved[30..]], false), Came::Again);
    assert_eq!(feed(&mut talk, &[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], false), ok(200));
}

/// Trouble of the connection: after the verdict it changes nothing.
#[test]
fn trouble() {
    use crate::io::{Errno, Leg};
    let reset = Trouble { leg: Leg::Hear, errno: Errno(libc::ECONNRESET) };
    let mut talk = Asking::new(plain());
    feed(&mut talk, &[b"HTTP/1.1 200 OK\r\nCont"], false);
    assert_eq!(talk.on_trouble(reset).code, Code::L7Response);
    let mut talk = Asking::new(plain());
    feed(&mut talk, &[b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\n"], false);
    assert_eq!((talk.on_trouble(reset).code, talk.at_deadline().code), (Code::L7Status, Code::L7Status));
}

/// Nacos: 200 is well, 302 and 503 are failures, all others are final.
#[test]
fn as_nacos_asks() {
    let check = HttpCheck::nacos("health", "X-A: 1|X-B:2").expect("valid");
    let well: Vec<u16> = (100..1000).filter(|status| check.settings().status.contains(*status)).collect();
    let counted: Vec<u16> = (100..1000).filter(|status| !check.settings().status_final.contains(*status)).collect();
    assert_eq!((well, counted), (vec![200], vec![200, 302, 503]));
    let text = asked(&mut Asking::new(Arc::new(check)));
    assert!(text.starts_with("GET /health HTTP/1.1\r\n") && text.contains("\r\nX-A: 1\r\nX-B: 2\r\n"), "{text}");
    assert_eq!(
        HttpCheck::nacos("/", "secret").unwrap_err().to_string(),
        "headers = \"***\": must be Name:value pairs separated by |"
    );
}

/// Settings that cannot be right name themselves and the way out; secrets stay hidden.
#[test]
fn bad_settings_are_named() {
    let error = |change: fn(&mut HttpSettings)| -> String {
        HttpCheck::new(settings(change)).map(|_| ()).map_err(|error: CheckError| error.to_string()).unwrap_err()
    };
    let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    assert!(error(|s| s.path = "x".into()).starts_with("path = \"x\": must begin with /"));
    assert!(error(|s| s.path = "/a b".into()).starts_with("path"));
    assert!(error(|s| s.path = "/a\r\nX: y".into()).starts_with("path"));
    assert!(error(|s| s.host = Some("a\r\nb".into())).starts_with("host"));
    assert!(error(|s| s.host = Some(String::new())).starts_with("host"));
    assert!(error(|s| s.body = b"x".to_vec()).contains("only POST"));
    assert!(error(|s| s.head_max = 1).starts_with("head_max = \"1\": must be from 256 to 262144"));
    assert!(error(|s| s.body_max = 0).starts_with("body_max"));
    assert!(error(|s| s.status = Statuses::none()).starts_with("status"));
    assert!(error(|s| s.redirects = Redirects::Follow { max: 0, any_host: false }).starts_with("redirects"));
    assert!(error(|s| s.content = Some(Content::Matches("(".into()))).contains("is not a regular expression"));
    assert!(
        error(|s| s.content = Some(Content::Matches("a{1000}{1000}".into()))).contains("is not a regular expression")
    );
    assert!(error(|s| s.content = Some(Content::Contains(String::new()))).starts_with("content"));
    assert!(error(|s| (s.method, s.content) = (Method::Head, Some(Content::Lacks("x".into())))).starts_with("method"));
    for (name, value) in [("X:", "v"), ("", "v"), ("X", "v\r\nY: z"), ("Host", "v"), ("content-length", "1")] {
        let error = HttpCheck::new(settings(|s| s.headers = header(name, value))).unwrap_err();
        assert_eq!(error.key, "headers");
    }
    let long = HttpCheck::new(settings(|s| s.headers = header("X", &"v".repeat(13_000)))).unwrap_err();
    assert!(long.to_string().ends_with("path, headers and body may have 12288 bytes together"));
    for bad in ["", "99", "200-", "300-200", "200,,201", "1000", "abc"] {
        assert_eq!(bad.parse::<Statuses>().unwrap_err().key, "status", "{bad}");
    }
    assert_eq!("200, 204,300-399".parse::<Statuses>().unwrap().to_string(), "200,204,300-399");
    assert_eq!("post".parse::<Method>(), Ok(Method::Post));
    let secret = check(|s| s.headers = header("Authorization", "Basic c2VjcmV0"));
    assert!(!format!("{secret:?}").contains("c2VjcmV0"));
    HttpCheck::default();
}

proptest! {
    /// Whatever is made of the pieces that answers consist of, and wherever it is cut, the finding is the same, and no
    /// more is held than may be.
    #[test]
    fn cuts_do_not_matter(
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "HTTP/1.1 200 OK\r\n", "HTTP/1.0 404 Gone\n", "HTTP/1.1 302 Found\r\nLocation: /x\r\n", "HTTP/1.1 100 \r\n",
                "HTTP/1.1 204 No\r\n", "Content-Length: 5\r\n", "Content-Length: 400\r\n", "Transfer-Encoding: chunked\r\n",
                "Content-Type: text/event-stream\r\n", "\r\n", "\n", "ready", "error", "5\r\nready\r\n", "3\r\nrea\r\n",
                "2;x\r\ndy\r\n", "0\r\n", "0\r\n\r\n", "X: y\r\n", "\r", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..4),
        ], 0..12),
        cuts in prop::collection::vec(1usize..20, 1..60),
        closes: bool,
        which in 0usize..5,
    ) {
        let content = [
            None,
            Some(Content::Contains("ready".into())),
            Some(Content::Lacks("error".into())),
            Some(Content::Matches("^ready$".into())),
            None,
        ];
        let check = check(|s| {
            (s.head_max, s.body_max, s.content) = (256, 64, content[which].clone());
            if which == 4 {
                s.redirects = Redirects::Follow { max: 3, any_host: false };
            }
        });
        // Most random answers begin as answers do, or nothing but the first line is ever looked at.
        let mut answer = if cuts[0] > 3 { b"HTTP/1.1 200 OK\r\n".to_vec() } else { Vec::new() };
        answer.extend(parts.concat());
        let settled = |came| match came {
            Came::Wants(code, number) if code != Code::L7Timeout => Came::Over(code, number),
            other => other,
        };
        let (mut pieces, mut rest) = (Vec::new(), &answer[..]);
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at(rest.len().min(*cut));
            pieces.push(piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let whole = settled(feed(&mut Asking::new(check.clone()), &[&answer], closes));
        let mut talk = Asking::new(check);
        prop_assert_eq!(settled(feed(&mut talk, &pieces, closes)), whole);
        prop_assert!(talk.held.len() <= 256);
    }
}
