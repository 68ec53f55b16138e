//! Each step of each proxy, with proxies that do it right and proxies that do not; and the pump between two WebSockets.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A proxy that reads, and answers each read with the next of these, then closes.
async fn proxy(answers: &'static [&'static [u8]]) -> (Address, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").into();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("it comes");
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        for answer in answers {
            let n = stream.read(&mut buffer).await.expect("it speaks");
            heard.extend_from_slice(&buffer[..n]);
            stream.write_all(answer).await.expect("it listens");
        }
        heard
    });
    (address, heard)
}

fn road(kind: ProxyKind, address: Address, login: bool) -> Road {
    let login = login.then(|| Login { user: "u".into(), password: Secret("hidden".into()) });
    Road { proxy: Some(Proxy { kind, address, login }), websocket: None }
}

fn bridge() -> Address {
    "bridge.test:8024".parse().expect("an address")
}

async fn error(kind: ProxyKind, login: bool, answers: &'static [&'static [u8]]) -> String {
    let (address, _heard) = proxy(answers).await;
    let error = road(kind, address, login).tcp(&bridge()).await.expect_err("it cannot be").to_string();
    assert!(!error.contains("hidden"), "{error}");
    error
}

/// A 200 makes the socket ours from the next byte on, however the head is cut; login and target are what was said.
#[tokio::test]
async fn an_http_proxy_connects() {
    let (address, heard) = proxy(&[b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nand more"]).await;
    let mut stream = road(ProxyKind::Http, address, true).tcp(&bridge()).await.expect("it connects");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("it is there");
    assert_eq!(rest, "and more");
    let heard = String::from_utf8(heard.await.expect("no panic")).expect("text");
    assert_eq!(
        heard,
        "CONNECT bridge.test:8024 HTTP/1.1\r\nHost: bridge.test:8024\r\nProxy-Authorization: Basic dTpoaWRkZW4=\r\n\r\n"
    );
}

/// A head that comes byte by byte is read to its end and no further.
#[tokio::test]
async fn a_slow_head() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").into();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("it comes");
        stream.set_nodelay(true).expect("TCP");
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.expect("it asks"));
        }
        for byte in b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n\r\n\r\nx" {
            stream.write_all(&[*byte]).await.expect("it listens");
            tokio::task::yield_now().await;
        }
    });
    let mut stream = road(ProxyKind::Http, address, false).tcp(&bridge()).await.expect("it connects");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("it is there");
    assert_eq!(rest, "\r\n\r\nx");
}

/// Whatever an HTTP proxy answers instead, the error says what, and of whom it was asked.
#[tokio::test]
async fn an_http_proxy_does_not() {
    let cases: [(bool, &'static [&'static [u8]], &str); 6] = [
        (
            false,
            &[b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"],
            "407 Proxy Authentication Required. It wants",
        ),
        (true, &[b"HTTP/1.1 407 No\r\n\r\n"], "407 No. It does not take this user and password"),
        (true, &[b"HTTP/1.1 502 Bad Gateway\r\n\r\n"], "it answered 502 Bad Gateway"),
        (false, &[b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], "its answer is no HTTP"),
        (false, &[b"HTTP/1.1 200 OK\r\n"], "it closed the connection"),
        (false, &[b""], "it closed the connection"),
    ];
    for (login, answers, say) in cases {
        let error = error(ProxyKind::Http, login, answers).await;
        assert!(error.contains(say) && error.contains("CONNECT bridge.test:8024"), "{error}");
        assert!(error.starts_with("proxy http://"), "{error}");
    }
}

/// A head without an end is given up.
#[tokio::test]
async fn an_endless_head() {
    const ENDLESS: &[u8] = &[b'x'; 32 << 10];
    let error = error(ProxyKind::Http, false, &[ENDLESS]).await;
    assert!(error.contains("no end in 16384 bytes"), "{error}");
}

/// With and without a login, and with each form of address in the answer.
#[tokio::test]
async fn a_socks_proxy_connects() {
    type Case<'a> = (bool, &'static [&'static [u8]], &'a [u8]);
    let cases: [Case<'_>; 3] = [
        (
            false,
            &[&[5, 0], b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50rest"],
            b"\x05\x01\x00\x05\x01\x00\x03\x0bbridge.test\x1f\x58",
        ),
        (
            true,
            &[&[5, 2], &[1, 0], b"\x05\x00\x00\x03\x03abc\x00\x50rest"],
            b"\x05\x02\x00\x02\x01\x01u\x06hidden\x05\x01\x00\x03\x0bbridge.test\x1f\x58",
        ),
        (
            true,
            &[&[5, 0], b"\x05\x00\x00\x04................\x00\x50rest"],
            b"\x05\x02\x00\x02\x05\x01\x00\x03\x0bbridge.test\x1f\x58",
        ),
    ];
    for (login, answers, said) in cases {
        let (address, heard) = proxy(answers).await;
        let mut stream = road(ProxyKind::Socks5, address, login).tcp(&bridge()).await.expect("it connects");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("it is there");
        assert_eq!((rest.as_str(), heard.await.expect("no panic").as_slice()), ("rest", said));
    }
}

/// Whatever a SOCKS proxy answers instead, the error says what.
#[tokio::test]
async fn a_socks_proxy_does_not() {
    let cases: [(bool, &'static [&'static [u8]], &str); 8] = [
        (false, &[&[5, 0xff]], "greeting: it wants a user and a password"),
        (false, &[&[5, 2]], "login method 2, which was not offered"),
        (true, &[&[5, 0xff]], "it takes no user and password"),
        (true, &[&[5, 2], &[1, 1]], "login: it does not take this user and password"),
        (false, &[&[5, 0], &[5, 5, 0, 1]], "connect bridge.test:8024: it answered 5, connection refused"),
        (false, &[&[5, 0], &[5, 0, 0, 9]], "its answer is no SOCKS 5"),
        (false, &[b"HT"], "its answer is no SOCKS 5"),
        (false, &[&[5, 0], &[5]], "it closed the connection"),
    ];
    for (login, answers, say) in cases {
        let error = error(ProxyKind::Socks5, login, answers).await;
        assert!(error.contains(say) && error.starts_with("proxy socks5://"), "{say}: {error}");
    }
}

/// A proxy that nobody answers at, and one that says nothing.
#[tokio::test]
async fn a_silent_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address: Address = listener.local_addr().expect("bound").into();
    for kind in [ProxyKind::Http, ProxyKind::Socks5] {
        let error = road(kind, address.clone(), false);
        let error = error.tcp_within(&bridge(), Duration::from_millis(100)).await.expect_err("it is silent");
        assert!(error.text.ends_with("asked for bridge.test:8024: no answer in time"), "{error}");
        assert_eq!(error.reason, Reason::DialTimeout);
    }
    drop(listener);
    let error = road(ProxyKind::Http, address, false).tcp(&bridge()).await.expect_err("it is gone");
    assert!(error.text.contains("connect: Connection refused"), "{error}");
}

/// Two data paths, the pumps between them, and a wire in the middle that holds `wire_bytes`.
async fn pumped(wire_bytes: usize) -> (UnixStream, UnixStream) {
    let (near, far) = tokio::io::duplex(wire_bytes);
    let (a, a_pump) = UnixStream::pair().expect("descriptors");
    let (b, b_pump) = UnixStream::pair().expect("descriptors");
    let client = WebSocketStream::from_raw_socket(near, Role::Client, Some(pump::config())).await;
    let server = WebSocketStream::from_raw_socket(far, Role::Server, Some(pump::config())).await;
    tokio::spawn(pump::pump(client, a_pump, Some(pump::PING_EVERY)));
    tokio::spawn(pump::pump(server, b_pump, None));
    (a, b)
}

/// Megabytes both ways at once, and the end behind the last byte.
#[tokio::test]
async fn every_byte_passes() {
    let (a, b) = pumped(1 << 16).await;
    let text: Arc<[u8]> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut a_read, mut a_write) = a.into_split();
    let (mut b_read, mut b_write) = b.into_split();
    let (there, back) = (text.clone(), text.clone());
    let sending = tokio::spawn(async move {
        a_write.write_all(&there).await.expect("it listens");
        a_write
    });
    let answering = tokio::spawn(async move {
        let mut got = vec![0; back.len()];
        let (read, written) = tokio::join!(b_read.read_exact(&mut got), b_write.write_all(&back));
        assert!(read.is_ok() && written.is_ok() && got == *back);
        drop((b_read, b_write));
    });
    let mut got = Vec::new();
    a_read.read_to_end(&mut got).await.expect("a clean end");
    assert!(got == *text);
    answering.await.expect("no panic");
    drop(sending.await.expect("no panic"));
}

/// Who is not read stops who writes, within what pipe, pumps and wire hold.
#[tokio::test]
async fn nothing_piles_up() {
    let (a, _b) = pumped(1 << 16).await;
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    tokio::spawn(async move {
        let mut a = a;
        let chunk = [7; 16 << 10];
        while let Ok(n) = a.write(&chunk).await {
            count.fetch_add(n, Ordering::Relaxed);
        }
    });
    // Until it stands still: every task has had many turns.
    let (mut last, mut still) = (0, 0);
    while still < 1000 {
        tokio::task::yield_now().await;
        let now = written.load(Ordering::Relaxed);
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    assert!(last > 0 && last < 4 << 20, "{last} bytes were taken by nobody");
}

/// A message that is longer than the bound ends the connection; so does text.
#[tokio::test]
async fn nonsense_ends_it() {
    use futures_util::SinkExt;
    use tokio_tungstenite::tungstenite::Message;
    let long = Message::Binary(vec![0; pump::MESSAGE_BYTES_MAX + 1].into());
    for message in [long, Message::Text("hello".into())] {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (_kept, inside) = UnixStream::pair().expect("descriptors");
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let server = WebSocketStream::from_raw_socket(far, Role::Server, Some(pump::config())).await;
        let pumping = tokio::spawn(pump::pump(server, inside, None));
        client.send(message).await.expect("it is sent");
        let end = pumping.await.expect("no panic");
        assert!(matches!(end, pump::End::Broken(_) | pump::End::Nonsense(_)), "{end}");
    }
}

/// The outer TLS is believed by pin, by authority, and not otherwise.
#[tokio::test]
async fn outer_tls() {
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let der = key.cert.der().clone();
    let pem = key.cert.pem().into_bytes();
    let hash = ring::digest::digest(&ring::digest::SHA256, &der);
    let pin = format!("cert:{}", hash.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites")
        .with_no_client_auth()
        .with_single_cert(
            vec![der],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into(),
        )
        .expect("they fit");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address: Address = listener.local_addr().expect("bound").into();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("it comes");
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
            });
        }
    });
    let wrong = format!("cert:{}", "0".repeat(64));
    for (trust, say) in [
        (trust::Trust::Pin(pin.parse().expect("a pin")), "WebSocket upgrade: it answered 404 Not Found"),
        (trust::Trust::Ca(pem), "WebSocket upgrade: it answered 404 Not Found"),
        (trust::Trust::Pin(wrong.parse().expect("a pin")), "TLS: invalid peer certificate"),
        (trust::Trust::System, "TLS: invalid peer certificate"),
    ] {
        let websocket = WebSocket::new(format!("wss://{address}/link"), address.clone(), Some(trust));
        let Ok(websocket) = websocket else { continue };
        let road = Road { proxy: None, websocket: Some(websocket) };
        let error = road.reach(&bridge()).await.expect_err("there is no link").text;
        assert!(error.starts_with("wss://127.0.0.1:") && error.contains(say), "{say}: {error}");
    }
}

/// A stream through nothing at all.
#[tokio::test]
async fn straight() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address: Address = listener.local_addr().expect("bound").into();
    let _stream: TcpStream = Road::default().tcp(&address).await.expect("it listens");
    assert!(!Road::default().is_detour());
}
