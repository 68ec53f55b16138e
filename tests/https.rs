//! Claim: https listeners end TLS with the right certificate, or lead it through unread.
//! Method: bridge, agent and nginx as processes; curl and openssl as visitors.

mod common;

use common::origin::{Origin, ask, head, noise, talk, value};
use common::site::{certificate, curl, digest_of, free, site, status};
use common::world::{Nginx, World};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Each name has its certificate; new files are used at once and cost nobody a connection; http is sent to https.
#[test]
fn certificates_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["one", "two"] {
        certificate(folder.path(), name, &format!("DNS:{name}.example,DNS:*.{name}.example"));
    }
    let at = folder.path().display();
    let world = World::start_with(&format!(
        "[[listener]]\nname = \"tls\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\nservice = \"web\"\n\
         tls = [{{ cert = \"{at}/one.pem\", key = \"{at}/one.key\" }}, {{ cert = \"{at}/two.pem\", key = \"{at}/two.key\" }}]\n{}",
        site("[listener.http]\nredirect_https = 443\n")
    ));
    let origin = Origin::mirror();
    let _agent = world.agent_of(&[("web", origin.address)]);
    let (tls, site) = (world.listener("tls"), world.listener("site"));
    let get = |name: &str, cert: &Path| {
        let resolve = format!("{name}:{}:127.0.0.1", tls.port());
        let url = format!("https://{name}:{}/", tls.port());
        curl(&["--http2", "--cacert", cert.to_str().expect("UTF-8"), "--resolve", &resolve, &url])
    };
    let (one, two) = (folder.path().join("one.pem"), folder.path().join("two.pem"));
    for (name, cert, works) in [
        ("one.example", &one, true),
        ("two.example", &two, true),
        ("x.two.example", &two, true),
        ("two.example", &one, false),
    ] {
        let (code, seen, err) = get(name, cert);
        assert_eq!(code == 0, works, "{name}: {err}");
        assert!(!works || value(&seen, "x-forwarded-proto") == Some("https"), "{seen}");
    }
    // TLS 1.1 is none.
    let old = curl(&["-k", "--tls-max", "1.1", &format!("https://{tls}/")]);
    assert_ne!(old.0, 0);

    let old = folder.path().join("old.pem");
    std::fs::copy(&two, &old).expect("copied");
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &tls.to_string(), "-servername", "two.example"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("openssl is installed: scripts/setup");
    let mut to = client.stdin.take().expect("piped");
    let mut from = BufReader::new(client.stdout.take().expect("piped"));
    let mut again = || {
        to.write_all(b"GET /kept HTTP/1.1\r\nHost: two.example\r\n\r\n").expect("it runs");
        let answer = head(&mut from).expect("a head");
        let bytes: usize = value(&answer, "content-length").and_then(|l| l.parse().ok()).expect("a length");
        from.read_exact(&mut vec![0; bytes]).expect("whole");
    };
    again();
    certificate(folder.path(), "two", "DNS:two.example");
    world.bridge.wait_line(&["certificates renewed", "listener=\"tls\""]);
    assert_eq!(get("two.example", &two).0, 0);
    assert_ne!(get("two.example", &old).0, 0);
    again();
    let _ = client.kill();
    let _ = client.wait();
    // A file that is no certificate changes nothing.
    std::fs::write(&one, "rubbish").expect("written");
    world.bridge.wait_line(&["the certificates stay as they were", "one.pem"]);
    assert_eq!(get("two.example", &two).0, 0);

    let (head, _) = ask(site, "GET /a?b=c", "Host: two.example:80\r\n");
    assert_eq!((status(&head), value(&head, "location")), (308, Some("https://two.example/a?b=c")));
    let answer = talk(tls, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("speaks https only"), "{answer}");
}

/// TLS that is passed through ends at the backend, with the backend's certificate; other hosts of the same listener
/// end here; a name that nobody has is told so.
#[test]
fn tls_is_passed_through() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "inner", "DNS:inner.example");
    certificate(folder.path(), "outer", "DNS:outer.example");
    let at = folder.path().display();
    let world = World::start_with(&format!(
        "[[listener]]\nname = \"tls\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\n\
         tls = [{{ cert = \"{at}/outer.pem\", key = \"{at}/outer.key\" }}]\n\
         [[listener.route]]\nhost = \"*.example\"\nservice = \"nginx\"\npassthrough = true\n\
         [[listener.route]]\nhost = \"outer.example\"\nservice = \"mirror\"\n\
         [[listener]]\nname = \"through\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\npassthrough = true\n\
         [[listener.route]]\nhost = \"inner.example\"\nservice = \"nginx\"\n"
    ));
    let address = free();
    let nginx = Nginx::start_server(
        address,
        &format!(
            "listen 127.0.0.1:{} ssl http2; ssl_certificate {at}/inner.pem; ssl_certificate_key {at}/inner.key;\n\
             root files;",
            free().port()
        ),
    );
    let config = std::fs::read_to_string(nginx.folder().join("nginx.conf")).expect("it was written");
    let secure = config.split("listen ").nth(2).and_then(|l| l.split(' ').next()).expect("an address");
    let secure: SocketAddr = secure.parse().expect("an address");
    std::fs::create_dir(nginx.folder().join("files")).expect("made");
    let (noise, sum) = noise(8 << 20);
    std::fs::write(nginx.folder().join("files/noise"), &noise).expect("written");
    let mirror = Origin::mirror();
    let _agent = world.agent_of(&[("nginx", secure), ("mirror", mirror.address)]);
    let down = folder.path().join("down");
    let down = down.to_str().expect("UTF-8");
    for (listener, name, path) in
        [("tls", "inner.example", "/noise"), ("tls", "outer.example", "/"), ("through", "inner.example", "/noise")]
    {
        let to = world.listener(listener);
        let stem = name.split('.').next().expect("a name");
        let cert = folder.path().join(format!("{stem}.pem"));
        let resolve = format!("{name}:{}:127.0.0.1", to.port());
        let url = format!("https://{name}:{}{path}", to.port());
        let (code, _, err) =
            curl(&["--cacert", cert.to_str().expect("UTF-8"), "--resolve", &resolve, "-o", down, &url]);
        assert_eq!(code, 0, "{listener} {name}: {err}");
        if path == "/noise" {
            assert_eq!(digest_of(down), sum, "{listener} {name}");
        }
    }
    let to = world.listener("through");
    let (code, _, err) = curl(&[
        "-k",
        "--resolve",
        &format!("x.test:{}:127.0.0.1", to.port()),
        &format!("https://x.test:{}/", to.port()),
    ]);
    assert!(code != 0 && err.contains("unrecognized name"), "{err}");
}

/// Who speaks HTTP/2 gets what it asked for, many at once on one connection, and sees none of the backend's hop-by-hop
/// headers.
#[test]
fn http2_visitors() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "one", "DNS:one.example");
    let at = folder.path().display();
    let world = World::start_with(&format!(
        "[[listener]]\nname = \"tls\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\nservice = \"web\"\n\
         tls = [{{ cert = \"{at}/one.pem\", key = \"{at}/one.key\" }}]\n"
    ));
    let text = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
                Content-Length: 2\r\nX-End: 1\r\n\r\nok";
    let origin = Origin::start(move |mut from, _| {
        while head(&mut from).is_some() {
            if from.get_mut().write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    });
    let _agent = world.agent_of(&[("web", origin.address)]);
    let tls = world.listener("tls");
    let resolve = format!("one.example:{}:127.0.0.1", tls.port());
    let url = format!("https://one.example:{}/[1-40]", tls.port());
    let cert = folder.path().join("one.pem");
    let args = ["--http2", "--parallel", "--parallel-immediate", "--cacert", cert.to_str().expect("UTF-8")];
    let (code, text, err) = curl(&[&args[..], &["--resolve", &resolve, "-i", &url]].concat());
    assert_eq!(code, 0, "{err}");
    assert_eq!((text.matches("HTTP/2 200").count(), text.matches("x-end: 1").count()), (40, 40), "{text}");
    for gone in ["x-hop", "keep-alive", "connection:"] {
        assert!(!text.to_lowercase().contains(gone), "{gone} in {text}");
    }
}

/// Who agrees to HTTP/2 in the handshake and then says nothing is let go.
#[test]
fn silence_after_the_handshake_ends_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "one", "DNS:one.example");
    let at = folder.path().display();
    let world = World::start_with(&format!(
        "[[listener]]\nname = \"tls\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\nservice = \"web\"\n\
         tls = [{{ cert = \"{at}/one.pem\", key = \"{at}/one.key\" }}]\n[listener.http]\ntimeout_head = \"1s\"\n"
    ));
    let to = world.listener("tls").to_string();
    // It ends when the connection does: what it is told to send never ends.
    let mut client = Command::new("openssl");
    client.args(["s_client", "-connect", &to, "-servername", "one.example", "-alpn", "h2"]);
    let mut client = client
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("openssl is installed: scripts/setup");
    let _nothing = client.stdin.take().expect("piped");
    let ended = std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = client.stdout.take().expect("piped").read_to_end(&mut said);
        let _ = client.wait();
        String::from_utf8_lossy(&said).into_owned()
    });
    common::until("the connection to end", || ended.is_finished().then_some(()));
    let said = ended.join().expect("no panic");
    assert!(said.contains("ALPN protocol: h2"), "{said}");
}

/// A WebSocket inside TLS: the visitor says its last word and closes its half; what the backend says then arrives whole.
#[test]
fn a_websocket_in_tls_closes_by_halves() {
    let folder = tempfile::tempdir().expect("a folder");
    // A client that verifies takes no authority's certificate for a server's: openssl's would be one.
    let made = rcgen::generate_simple_self_signed(vec!["one.example".to_owned()]).expect("a certificate");
    std::fs::write(folder.path().join("one.pem"), made.cert.pem()).expect("written");
    std::fs::write(folder.path().join("one.key"), made.signing_key.serialize_pem()).expect("written");
    let at = folder.path().display();
    let world = World::start_with(&format!(
        "[[listener]]\nname = \"tls\"\ntype = \"https\"\nlisten = \"127.0.0.1:0\"\nservice = \"late\"\n\
         tls = [{{ cert = \"{at}/one.pem\", key = \"{at}/one.key\" }}]\n"
    ));
    // Speaks only when the visitor has ended.
    let (words, sum) = noise(3 << 20);
    let origin = Origin::start(move |mut from, _| {
        let Some(_) = head(&mut from) else { return };
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        from.get_mut().write_all(answer.as_bytes()).expect("it is open");
        let mut said = Vec::new();
        from.read_to_end(&mut said).expect("the visitor's half ends");
        assert_eq!(said, b"last word");
        from.get_mut().write_all(&words).expect("the other half is open");
    });
    let _agent = world.agent_of(&[("late", origin.address)]);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("it is good");
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("it has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "one.example".try_into().expect("a name");
    let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
    let socket = TcpStream::connect(world.listener("tls")).expect("it listens");
    socket.set_read_timeout(Some(common::PATIENCE)).expect("a live socket");
    let mut stream = rustls::StreamOwned::new(session, socket);
    let request = "GET /chat HTTP/1.1\r\nHost: one.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it is open");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    stream.write_all(b"last word").expect("it is open");
    stream.conn.send_close_notify();
    stream.flush().expect("it is open");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("a clean end, with close_notify");
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(&heard);
    assert_eq!((heard.len(), common::origin::hex(digest)), (3 << 20, sum));
}
