//! Claim: http and https listeners carry HTTP as it is meant: to the right service, whole or visibly broken, and
//! nothing that could be read in two ways. Method: bridge, agent and nginx as processes, other backends by script,
//! curl, openssl and a WebSocket library as visitors.

mod common;

use common::origin::{Origin, ask, body, head, hex, noise, talk, value};
use common::site::{certificate, curl, digest_of, free, site, status};
use common::world::{Nginx, World};
use common::{PATIENCE, until};
use ring::digest::{Context, SHA256};
use ringspan_engine::kernel::Socket;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Host and path choose the service; what the backend sees is changed as the route says, and tells who asked.
#[test]
fn routes_and_rules() {
    let world = World::start_with(&site(
        "service = \"rest\"\n\
         [listener.http]\nrequest_id = \"X-Request-Id\"\ntrusted = [\"127.0.0.2\"]\nforwarded = true\naccess_log = true\n\
         [[listener.route]]\nhost = \"a.example\"\nservice = \"one\"\nresponse_headers = { set = [\"X-Door: yes\"], remove = [\"X-Origin\"] }\n\
         [[listener.route]]\nhost = \"*.example\"\npath = \"/api\"\nservice = \"two\"\nstrip_prefix = true\n\
         rewrite_host = \"inner:81\"\nrequest_headers = { remove = [\"Cookie\"], set = [\"X-Set: 1\"], add = [\"X-Add: 2\"] }\n",
    ));
    let one = Origin::saying("HTTP/1.1 200 OK\r\nX-Origin: secret\r\nKeep-Alive: x\r\nContent-Length: 3\r\n\r\none");
    let (two, rest) = (Origin::mirror(), Origin::mirror());
    let _agent = world.agent_of(&[("one", one.address), ("two", two.address), ("rest", rest.address)]);
    let site = world.listener("site");

    let (head, body) = ask(site, "GET /x", "Host: A.example:80\r\n");
    assert_eq!((status(&head), body.as_str(), value(&head, "x-door")), (200, "one", Some("yes")), "{head}");
    assert!(value(&head, "x-origin").is_none() && value(&head, "keep-alive").is_none(), "{head}");
    assert_eq!(value(&head, "x-request-id").map(str::len), Some(32));

    let lines = "Host: b.example\r\nCookie: a=b\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=evil\r\nTE: trailers, x\r\nX-Hop: 1\r\n\
        Connection: x-hop, x-request-id, x-forwarded-for, x-real-ip, forwarded, x-set\r\n";
    let (_, seen) = ask(site, "GET /x/../api/y?q=/../z HTTP/1.1\r\nHost: b.example\r\n\r\nGET /", "");
    assert!(
        seen.contains("leads nowhere") || !seen.contains("X-Set"),
        "a path that hides its prefix is not stripped: {seen}"
    );
    let (_, seen) = ask(site, "GET /api/y?q=/../z", lines);
    assert!(seen.starts_with("GET /y?q=/../z HTTP/1.1\r\n"), "{seen}");
    assert_eq!(value(&seen, "x-request-id").map(str::len), Some(32), "nobody names it away: {seen}");
    for (name, is) in [
        ("host", Some("inner:81")),
        ("cookie", None),
        ("x-set", Some("1")),
        ("x-add", Some("2")),
        ("x-hop", None),
        ("te", Some("trailers")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-real-ip", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("b.example")),
        ("forwarded", Some("for=127.0.0.1;host=\"b.example\";proto=http")),
        ("connection", Some("te")),
    ] {
        assert_eq!(value(&seen, name), is, "{name} in {seen}");
    }
    let (_, seen) = ask(site, "GET /apix", "Host: b.example\r\n");
    assert!(seen.starts_with("GET /apix") && value(&seen, "host") == Some("b.example"), "{seen}");
    let (_, seen) = ask(site, "GET http://b.example/api", "Host: other\r\n");
    assert!(seen.starts_with("GET / ") && value(&seen, "x-forwarded-host") == Some("b.example"), "{seen}");

    // A proxy that is trusted is believed.
    let trusted = ["--interface", "127.0.0.2", "-H", "X-Forwarded-For: 192.0.2.7", "-H", "X-Forwarded-Proto: https"];
    let url = format!("http://{site}/");
    let (code, seen, err) = curl(&[&trusted[..], &["-H", "X-Request-Id: mine", &url]].concat());
    assert_eq!(code, 0, "{err}");
    assert_eq!(value(&seen, "x-forwarded-for"), Some("192.0.2.7, 127.0.0.2"));
    assert_eq!((value(&seen, "x-real-ip"), value(&seen, "x-forwarded-proto")), (Some("192.0.2.7"), Some("https")));
    assert_eq!(value(&seen, "x-request-id"), Some("mine"));

    world.bridge.wait_line(&[
        "access",
        "listener=\"site\"",
        "route=\"*\"",
        "visitor=192.0.2.7",
        "status=200",
        "path=\"/\"",
    ]);
    let metrics = common::world::get(world.http, "/metrics").expect("it serves").1;
    let series = "ringspan_http_visits_total{listener=\"site\",route=\"a.example\",class=\"2xx\"} 1";
    assert!(metrics.contains(series) && metrics.contains("ringspan_http_visit_seconds_bucket{"), "{metrics}");
}

/// Where there is no answer of a backend's there is one of ours, and it says which.
#[test]
fn pages_of_our_own() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("gone.html"), "<p>own 404</p>").expect("written");
    let gone = folder.path().join("gone.html");
    let world = World::start_with(&site(&format!(
        "[listener.http]\ntimeout_answer = \"1s\"\nbody_bytes_max = 10\npages = {{ \"404\" = \"{}\" }}\n\
         [[listener.route]]\nhost = \"silent\"\nservice = \"silent\"\n\
         [[listener.route]]\nhost = \"rude\"\nservice = \"rude\"\n\
         [[listener.route]]\nhost = \"nobody\"\nservice = \"nobody\"\n\
         [[listener.route]]\nhost = \"mirror\"\nservice = \"mirror\"\n\
         [[listener.route]]\nhost = \"secret\"\nservice = \"mirror\"\nbasic_auth = [{{ user = \"alice\", password = \"s3cret\" }}]\n",
        gone.display()
    )));
    let silent = Origin::start(|mut from, _| drop(std::io::copy(&mut from, &mut std::io::sink())));
    let rude = Origin::start(|mut from, _| drop(head(&mut from)));
    let mirror = Origin::mirror();
    let exposes = [("silent", silent.address), ("rude", rude.address), ("mirror", mirror.address)];
    let _agent = world.agent_of(&exposes);
    let site = world.listener("site");
    for (line, headers, is, says) in [
        ("GET /", "Host: other\r\n", 404, "own 404"),
        ("GET /", "Host: nobody\r\n", 503, "No server for this address is up"),
        ("GET /", "Host: nobody\r\nAccept: text/html\r\n", 503, "<p class=\"code\">503</p>"),
        ("GET /", "Host: rude\r\n", 502, "broke off"),
        ("GET /", "Host: silent\r\n", 504, "did not answer in time"),
        ("GET /", "Host: secret\r\n", 401, "name and a password"),
        ("GET /", "Host: secret\r\nAuthorization: Basic YWxpY2U6d3Jvbmc=\r\n", 401, "name and a password"),
        ("GET /", "Host: secret\r\nAuthorization: Basic YWxpY2U6czNjcmV0\r\n", 200, "GET / HTTP/1.1"),
        ("POST /", "Host: mirror\r\nContent-Length: 11\r\n", 413, "larger than"),
        ("CONNECT a:1", "Host: a:1\r\n", 405, "no proxy"),
        ("GET /..", "Host: mirror\r\n", 400, "leads nowhere"),
    ] {
        let (head, body) = ask(site, line, headers);
        assert!(status(&head) == is && body.contains(says), "{line} {headers}: {head}\n{body}");
        assert_eq!(value(&head, "retry-after").is_some(), is == 503, "{head}");
        assert_eq!(value(&head, "www-authenticate").is_some(), is == 401, "{head}");
    }
    let (_, seen) = ask(site, "GET /", "Host: secret\r\nAuthorization: Basic YWxpY2U6czNjcmV0\r\n");
    assert!(value(&seen, "authorization").is_none(), "the password is ours: {seen}");
    // Too long without saying so.
    let chunked = "POST / HTTP/1.1\r\nHost: mirror\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n";
    let answer = talk(site, chunked.as_bytes()).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // The last byte of a body begins the wait for the answer, and not what bounds the body.
    let silent = "POST / HTTP/1.1\r\nHost: silent\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    let answer = talk(site, silent.as_bytes()).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(!world.bridge.text().contains("s3cret"));
}

/// Requests of many visitors share the connections to a backend; one that died unused costs nobody an answer, and a
/// request that may not be repeated is not.
#[test]
fn connections_are_kept() {
    let world = World::start_with(&site("service = \"web\"\n"));
    // Each connection serves two requests and is gone without a word.
    let origin = Origin::start(|mut from, _| {
        for _ in 0..2 {
            let Some(head) = head(&mut from) else { return };
            let Some(_) = body(&mut from, &head) else { return };
            let _ = from.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        // What comes now is not answered.
        let _ = head(&mut from);
    });
    let _agent = world.agent_of(&[("web", origin.address)]);
    let site = world.listener("site");
    for n in 0..12 {
        let (head, body) = ask(site, "GET /", "Host: a\r\n");
        assert_eq!((status(&head), body.as_str()), (200, "ok"), "request {n}");
    }
    assert!(origin.connections() <= 10, "12 requests made {} connections", origin.connections());
    // A POST on such a connection may have been heard: it is not sent again.
    let posts: Vec<u16> = (0..6).map(|_| status(&ask(site, "POST /", "Host: a\r\nContent-Length: 0\r\n").0)).collect();
    assert!(posts.iter().all(|s| [200, 502].contains(s)), "{posts:?}");
}

/// A service's lists hold for each request, although visitors share connections otherwise: who is denied gets 403 and
/// the backend hears nothing, also when a proxy that is trusted says who it is.
#[test]
fn the_denied_are_told_so() {
    let text = "service = \"web\"\n[listener.http]\ntrusted = [\"127.0.0.3\"]\n\
                [[service]]\nname = \"web\"\nlimits = { deny = [\"127.0.0.2\", \"192.0.2.0/24\"] }\n";
    let world = World::start_with(&site(text));
    let origin = Origin::mirror();
    let _agent = world.agent_of(&[("web", origin.address)]);
    let site = world.listener("site");
    let url = format!("http://{site}/");
    let ask_from = |from: &str, header: &str| {
        let wants = ["--interface", from, "-H", header, "-o", "/dev/null", "-w", "%{http_code}", &url];
        let (code, status, err) = curl(&wants);
        assert_eq!(code, 0, "{err}");
        status
    };
    for round in 0..3 {
        assert_eq!(status(&ask(site, "GET /", "Host: a\r\n").0), 200, "round {round}");
        let heard = origin.connections();
        assert_eq!(ask_from("127.0.0.2", "X-Forwarded-For: 127.0.0.1"), "403", "round {round}");
        assert_eq!(ask_from("127.0.0.3", "X-Forwarded-For: 192.0.2.7"), "403", "round {round}");
        assert_eq!(origin.connections(), heard, "round {round}: nobody knocked at the backend");
        assert_eq!(ask_from("127.0.0.3", "X-Forwarded-For: 198.51.100.7"), "200", "round {round}");
    }
}

/// An answer that breaks off at the backend breaks off at the visitor, however it was framed.
#[test]
fn broken_stays_broken() {
    let world = World::start_with(&site(
        "service = \"measured\"\n\
         [[listener.route]]\nhost = \"chunked\"\nservice = \"chunked\"\n[[listener.route]]\nhost = \"open\"\nservice = \"open\"\n\
         [[listener.route]]\nhost = \"whole\"\nservice = \"whole\"\n",
    ));
    // Breaks when the visitor has seen the beginning.
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Arc::new(std::sync::Mutex::new(released));
    let breaking = |answer: &'static str| {
        let released = released.clone();
        Origin::start(move |mut from, _| {
            let Some(_) = head(&mut from) else { return };
            let _ = from.get_mut().write_all(answer.as_bytes());
            let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
            Socket::from_owned(from.into_inner().into()).reset_on_close().expect("a live socket");
        })
    };
    let measured = breaking("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart");
    let chunked = breaking("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n");
    let open = breaking("HTTP/1.1 200 OK\r\n\r\npart");
    let whole = Origin::start(|mut from, _| {
        let Some(_) = head(&mut from) else { return };
        let _ = from.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\nall");
    });
    let _agent = world.agent_of(&[
        ("measured", measured.address),
        ("chunked", chunked.address),
        ("open", open.address),
        ("whole", whole.address),
    ]);
    let site = world.listener("site");
    for (version, host) in
        [("1.1", "measured"), ("1.1", "chunked"), ("1.1", "open"), ("1.0", "chunked"), ("1.0", "open")]
    {
        let mut stream = BufReader::new(TcpStream::connect(site).expect("it listens"));
        stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a live socket");
        let request = format!("GET / HTTP/{version}\r\nHost: {host}\r\n\r\n");
        stream.get_mut().write_all(request.as_bytes()).expect("it listens");
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains("part") {
            let piece = stream.fill_buf().expect("not broken yet").to_vec();
            assert!(!piece.is_empty(), "{host} ended early");
            stream.consume(piece.len());
            read.extend_from_slice(&piece);
        }
        release.send(()).expect("somebody waits");
        let ended = stream.read_to_end(&mut read);
        let text = String::from_utf8_lossy(&read).to_lowercase();
        // Chunks without the last one, or fewer bytes than announced, or a reset.
        let is_framed =
            text.contains("\r\ntransfer-encoding: chunked\r\n") || text.contains("\r\ncontent-length: 10\r\n");
        let is_broken = ended.is_err() || is_framed && !text.ends_with("0\r\n\r\n");
        assert!(is_broken, "HTTP/{version} {host}: {text:?}");
    }
    let answer = talk(site, b"GET / HTTP/1.0\r\nHost: whole\r\n\r\n").expect("a clean end");
    assert!(answer.ends_with("\r\n\r\nall"), "{answer}");
}

/// Bodies of any length, framed either way, arrive whole in both directions, over HTTP/1 and HTTP/2, from and to a real
/// nginx; and a visitor who reads slowly is waited for.
#[test]
fn bodies_arrive_whole() {
    const BYTES: usize = 24 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "site", "DNS:site.example");
    let at = folder.path().display();
    let plain = site("service = \"nginx\"\n[[listener.route]]\nhost = \"mirror\"\nservice = \"mirror\"\n");
    let tls = format!(
        "[[listener]]\nname = \"tls\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\nservice = \"nginx\"\n\
         tls = [{{ cert = \"{at}/site.pem\", key = \"{at}/site.key\" }}]\n\
         [[listener.route]]\nhost = \"mirror.example\"\nservice = \"mirror\"\n"
    );
    let world = World::start_with(&format!("{plain}{tls}"));
    let nginx = Nginx::start_server(free(), "client_max_body_size 0; location / { root files; }");
    let (noise, sum) = noise(BYTES);
    std::fs::create_dir(nginx.folder().join("files")).expect("made");
    std::fs::write(nginx.folder().join("files/noise"), &noise).expect("written");
    let (up, down) = (folder.path().join("up"), folder.path().join("down"));
    std::fs::write(&up, &noise).expect("written");
    let mirror = Origin::mirror();
    let _agent = world.agent_of(&[("nginx", nginx.address), ("mirror", mirror.address)]);
    let (site, tls) = (world.listener("site"), world.listener("tls"));
    let resolve = format!("site.example:{}:127.0.0.1", tls.port());
    let resolve_mirror = format!("mirror.example:{}:127.0.0.1", tls.port());
    let (up, down) = (up.to_str().expect("UTF-8"), down.to_str().expect("UTF-8"));
    let cert = folder.path().join("site.pem");
    let tls_args = ["--cacert", cert.to_str().expect("UTF-8"), "--resolve", &resolve, "--resolve", &resolve_mirror];
    let ways: [(&[&str], String, String); 3] = [
        (&["--http1.1"], format!("http://{site}/noise"), format!("http://{site}/")),
        (
            &["--http1.1"],
            format!("https://site.example:{}/noise", tls.port()),
            format!("https://mirror.example:{}/", tls.port()),
        ),
        (
            &["--http2"],
            format!("https://site.example:{}/noise", tls.port()),
            format!("https://mirror.example:{}/", tls.port()),
        ),
    ];
    for (flags, from, to) in &ways {
        let always = [flags, &tls_args[..]].concat();
        let (code, version, err) = curl(&[&always[..], &["-o", down, "-w", "%{http_version}", from]].concat());
        assert_eq!(code, 0, "{flags:?} {from}: {err}");
        assert_eq!(version.starts_with('2'), flags[0] == "--http2", "{version}");
        assert_eq!(digest_of(down), sum, "{flags:?} {from}");
        let is_tls = to.starts_with("https");
        // The certificate has one name: the mirror's own is asked for without a check.
        let to_mirror: &[&str] = if is_tls { &["-k"] } else { &["-H", "Host: mirror"] };
        for framing in [&[][..], &["-H", "Transfer-Encoding: chunked"]] {
            if flags[0] == "--http2" && !framing.is_empty() {
                continue;
            }
            let (code, said, err) = curl(&[&always[..], to_mirror, framing, &["-T", up, to]].concat());
            assert_eq!(code, 0, "{flags:?} {to}: {err}");
            assert!(said.ends_with(&format!("{BYTES} {sum}")), "{flags:?} {framing:?} {to}: {said}");
            assert_eq!(value(&said, "expect"), None);
        }
    }
    // Slowly, by a visitor whose buffer is small: what it has not read waits at the backend, not here.
    let mut stream = TcpStream::connect(site).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.write_all(b"GET /noise HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("it listens");
    let mut from = BufReader::with_capacity(1 << 20, stream);
    head(&mut from).expect("a head");
    until("the answer to be held back", || from.get_ref().peek(&mut [0]).is_ok().then_some(()));
    let (mut slow, mut piece) = (Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        let n = from.read(&mut piece).expect("a whole answer");
        if n == 0 {
            break;
        }
        slow.update(&piece[..n]);
    }
    assert_eq!(hex(slow), sum);
}

/// The rest of HTTP/1: HEAD, 304, Expect, pipelines, HTTP/1.0, trailers, answers before the request has ended.
#[test]
fn the_rest_of_http() {
    let world = World::start_with(&site(
        "service = \"mirror\"\n[[listener.route]]\nhost = \"length\"\nservice = \"length\"\n\
         [[listener.route]]\nhost = \"unchanged\"\nservice = \"unchanged\"\n\
         [[listener.route]]\nhost = \"trailers\"\nservice = \"trailers\"\n\
         [[listener.route]]\nhost = \"early\"\nservice = \"early\"\n\
         [[listener.route]]\nhost = \"both\"\nservice = \"both\"\n\
         [[listener.route]]\nhost = \"coded\"\nservice = \"coded\"\n",
    ));
    let mirror = Origin::mirror();
    // To a HEAD: a length, and no body.
    let length = Origin::saying("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    let unchanged = Origin::saying("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n");
    let trailers = Origin::saying(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    let early = Origin::start(|mut from, _| {
        let Some(_) = head(&mut from) else { return };
        let _ = from.get_mut().write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        let _ = std::io::copy(&mut from, &mut std::io::sink());
    });
    let both = Origin::saying(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    let coded = Origin::saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let _agent = world.agent_of(&[
        ("coded", coded.address),
        ("both", both.address),
        ("mirror", mirror.address),
        ("length", length.address),
        ("unchanged", unchanged.address),
        ("trailers", trailers.address),
        ("early", early.address),
    ]);
    let site = world.listener("site");

    let (head_of, body_of) = ask(site, "HEAD /", "Host: length\r\n");
    assert_eq!((status(&head_of), value(&head_of, "content-length"), body_of.as_str()), (200, Some("1000"), ""));
    let (head_of, body_of) = ask(site, "GET /", "Host: unchanged\r\n");
    assert_eq!((status(&head_of), value(&head_of, "etag"), body_of.as_str()), (304, Some("\"x\""), ""));

    // Of a length and chunks the chunks count.
    let (head_of, body_of) = ask(site, "GET /", "Host: both\r\n");
    assert!(value(&head_of, "content-length").is_none() && body_of == "3\r\nabc\r\n0\r\n\r\n", "{head_of}\n{body_of}");

    // What we would have to decode is not passed on as if it were plain.
    assert_eq!(status(&ask(site, "GET /", "Host: coded\r\n").0), 502);
    let coded = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n0\r\n\r\n";
    assert_eq!(status(&talk(site, coded.as_bytes()).expect("an answer")), 501);

    let answer = talk(site, b"GET / HTTP/1.1\r\nHost: trailers\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n")
        .expect("whole");
    assert!(answer.to_lowercase().ends_with("3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"), "{answer}");

    // The body is asked for when somebody is there to take it.
    let mut stream = BufReader::new(TcpStream::connect(site).expect("it listens"));
    stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a live socket");
    let asks = b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    stream.get_mut().write_all(asks).expect("it listens");
    assert_eq!(status(&head(&mut stream).expect("a head")), 100);
    stream.get_mut().write_all(b"abc").expect("it listens");
    let answer = head(&mut stream).expect("a head");
    assert_eq!(status(&answer), 200);
    let bytes: usize = value(&answer, "content-length").and_then(|l| l.parse().ok()).expect("a length");
    let mut seen = vec![0; bytes];
    stream.read_exact(&mut seen).expect("whole");
    let seen = String::from_utf8(seen).expect("text");
    assert!(seen.contains("\r\n\r\n3 ba7816bf") && value(&seen, "expect").is_none(), "{seen}");
    // The same connection again, three requests at once: answers in order.
    let three: String = (1..4).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    stream.get_mut().write_all(three.as_bytes()).expect("it listens");
    for n in 1..4 {
        let answer = head(&mut stream).expect("a head");
        let bytes: usize = value(&answer, "content-length").and_then(|l| l.parse().ok()).expect("a length");
        let mut seen = vec![0; bytes];
        stream.read_exact(&mut seen).expect("whole");
        assert!(seen.starts_with(format!("GET /{n} ").as_bytes()), "{n}");
    }

    let answer = talk(site, b"GET /old HTTP/1.0\r\n\r\n").expect("a clean end");
    assert!(answer.contains("\r\n\r\nGET /old HTTP/1.1\r\n"), "{answer}");
    let answer = talk(site, b"GET / HTTP/1.0\r\nHost: trailers\r\n\r\n").expect("a clean end");
    assert!(answer.ends_with("\r\n\r\nabc") && !answer.to_lowercase().contains("transfer-encoding"), "{answer}");

    // An answer is passed on though the request has not ended.
    let mut stream = BufReader::new(TcpStream::connect(site).expect("it listens"));
    stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream
        .get_mut()
        .write_all(b"POST / HTTP/1.1\r\nHost: early\r\nContent-Length: 1000000\r\n\r\nx")
        .expect("it listens");
    assert_eq!(status(&head(&mut stream).expect("a head")), 403);
}

/// A WebSocket is one: the protocol changes, and then bytes go both ways, frames larger than any buffer too.
#[test]
fn websockets() {
    use tokio_tungstenite::tungstenite::{Message, accept, client};
    let world = World::start_with(&site("service = \"echo\"\n"));
    let origin = Origin::start(|from, _| {
        let Ok(mut socket) = accept(from.into_inner()) else { return };
        while let Ok(message) = socket.read() {
            if message.is_close() || socket.send(message).is_err() {
                break;
            }
        }
        let _ = socket.flush();
    });
    let _agent = world.agent_of(&[("echo", origin.address)]);
    let site = world.listener("site");
    let stream = TcpStream::connect(site).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    let (mut socket, answer) = client(format!("ws://{site}/chat?x=1"), stream).expect("a WebSocket");
    assert_eq!(answer.status().as_u16(), 101);
    let large = noise(1 << 20).0;
    for message in [Message::text("hello"), Message::binary(large), Message::text("")] {
        socket.send(message.clone()).expect("it is open");
        assert_eq!(socket.read().expect("it is open"), message);
    }
    socket.close(None).expect("it is open");
    while socket.read().is_ok() {}
    // Each has a connection of its own, and a refusal is an ordinary answer.
    let refusing = ask(site, "GET /", "Host: a\r\nUpgrade: websocket\r\n");
    assert!(status(&refusing.0) >= 400, "{refusing:?}");
}

/// A password in a file is read at the start, and again when the configuration is: who knows the new one comes in, who
/// knows the old one does not, and nobody's connection is closed for it.
#[test]
fn passwords_are_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("alice");
    std::fs::write(&file, "first\nnot the password\n").expect("written");
    let world = World::start_with(&site(&format!(
        "service = \"web\"\n[[listener.route]]\nhost = \"secret\"\nservice = \"web\"\n\
         basic_auth = [{{ user = \"alice\", password_file = \"{}\" }}]\n",
        file.display()
    )));
    let origin = Origin::mirror();
    let _agent = world.agent_of(&[("web", origin.address)]);
    let site = world.listener("site");
    let knock =
        |basic: &str| status(&ask(site, "GET /", &format!("Host: secret\r\nAuthorization: Basic {basic}\r\n")).0);
    // alice:first, alice:zx81fjord
    let (first, second) = ("YWxpY2U6Zmlyc3Q=", "YWxpY2U6eng4MWZqb3Jk");
    assert_eq!((knock(first), knock(second)), (200, 401));
    let mut kept = BufReader::new(TcpStream::connect(site).expect("it listens"));
    kept.get_ref().set_read_timeout(Some(PATIENCE)).expect("a live socket");
    let mut again = |basic: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: secret\r\nAuthorization: Basic {basic}\r\n\r\n");
        kept.get_mut().write_all(request.as_bytes()).expect("it is open");
        let answer = head(&mut kept).expect("a head");
        let bytes: usize = value(&answer, "content-length").and_then(|l| l.parse().ok()).expect("a length");
        kept.read_exact(&mut vec![0; bytes]).expect("whole");
        status(&answer)
    };
    assert_eq!(again(first), 200);
    std::fs::write(&file, "zx81fjord\n").expect("written");
    let before = world.bridge.line_count();
    world.bridge.signal("HUP");
    world.bridge.wait_line_from(before, &["configuration read again", "Asked"]);
    assert_eq!((knock(first), knock(second), again(second), again(first)), (401, 200, 200, 401));
    assert!(!world.bridge.text().contains("zx81fjord"), "a password is never printed");
}

/// A bridge that stops lets a request finish that has begun.
#[test]
fn a_stop_lets_requests_finish() {
    let mut world = World::start_with(&site("service = \"web\"\n"));
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let origin = Origin::start(move |mut from, _| {
        let Some(_) = head(&mut from) else { return };
        let _ = from.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
        let _ = from.get_mut().write_all(b"done");
    });
    let _agent = world.agent_of(&[("web", origin.address)]);
    let mut stream = BufReader::new(TcpStream::connect(world.listener("site")).expect("it listens"));
    stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it listens");
    head(&mut stream).expect("a head");
    let mut half = [0; 4];
    stream.read_exact(&mut half).expect("the beginning");
    world.bridge.signal("TERM");
    world.bridge.wait_line(&["bridge drains"]);
    release.send(()).expect("the backend waits");
    stream.read_exact(&mut half).expect("the end");
    assert_eq!(&half, b"done");
    assert_eq!(world.bridge.wait(), 0);
}
