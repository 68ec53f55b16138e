//! Two ends in memory: whatever one writes the other reads, over any chunking; the pin holds; garbage is an error;
//! buffers stay bounded; the channel binding is the one rustls computes.

use super::*;
use proptest::prelude::*;
use std::fs;

fn server() -> (tempfile::TempDir, ServerTls) {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerTls::self_signed(folder.path()).unwrap();
    (folder, server)
}

/// Moves what `from` wants to send, at most `chunk` bytes per step and as far as `to` takes it. Returns the bytes.
fn pump(from: &mut Tls, to: &mut Tls, chunk: usize) -> Result<usize, TlsError> {
    let mut moved = 0;
    while !from.outgoing().is_empty() {
        let space = to.receive_space();
        let n = space.len().min(from.outgoing().len()).min(chunk);
        if n == 0 {
            break;
        }
        space[..n].copy_from_slice(&from.outgoing()[..n]);
        from.on_sent(n);
        moved += n;
        to.on_received(n)?;
    }
    Ok(moved)
}

fn shake_hands(agent: &mut Tls, bridge: &mut Tls, chunk: usize) -> Result<(), TlsError> {
    while agent.is_handshaking() || bridge.is_handshaking() {
        let there = pump(agent, bridge, chunk);
        let back = pump(bridge, agent, chunk);
        assert!(there? + back? > 0, "the handshake has stalled");
    }
    Ok(())
}

fn pair(server: &ServerTls, chunk: usize) -> (Tls, Tls) {
    let mut agent = ClientTls::pinned(server.fingerprint()).connect("127.0.0.1").unwrap();
    let mut bridge = server.accept().unwrap();
    shake_hands(&mut agent, &mut bridge, chunk).unwrap();
    (agent, bridge)
}

fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| random.u8(..)).collect()
}

/// 3 MB each way at once, over every kind of chunk, with a reader that lets its plaintext pile up: all arrives, in
/// order, and no buffer passes its bound.
#[test]
fn bytes_arrive_whatever_the_chunks() {
    let (_folder, server) = server();
    for (seed, chunk) in [(1, 1460), (2, 16 * 1024 + 22), (3, 65_536), (4, 997), (5, usize::MAX)] {
        let mut random = fastrand::Rng::with_seed(seed);
        let (agent, bridge) = pair(&server, chunk);
        let mut ends = [agent, bridge];
        let sent = [bytes(3_000_000, seed), bytes(3_000_000, seed + 100)];
        let (mut taken, mut got) = ([0, 0], [Vec::new(), Vec::new()]);
        while got[0].len() < sent[1].len() || got[1].len() < sent[0].len() {
            for me in [0, 1] {
                let rest = &sent[me][taken[me]..];
                taken[me] += ends[me].write(&rest[..rest.len().min(random.usize(0..100_000))]).unwrap();
                let [a, b] = &mut ends;
                if me == 0 { pump(a, b, chunk) } else { pump(b, a, chunk) }.unwrap();
                let peer = &mut ends[1 - me];
                let n = random.usize(0..=peer.plaintext().len());
                got[1 - me].extend_from_slice(&peer.plaintext()[..n]);
                peer.consume(n);
                assert!(peer.plaintext().len() <= 2 * PLAINTEXT_BYTES_HIGH + 20_000);
                assert!(ends[me].outgoing().len() <= OUTGOING_BYTES_MAX);
            }
        }
        assert!(got[0] == sent[1] && got[1] == sent[0], "chunk {chunk}");
    }
}

/// A reader that does not consume stops the sender after a bounded amount, and loses nothing.
#[test]
fn a_full_reader_stops_the_sender() {
    let (_folder, server) = server();
    let (mut agent, mut bridge) = pair(&server, usize::MAX);
    let data = bytes(2_000_000, 7);
    let mut taken = 0;
    loop {
        let n = agent.write(&data[taken..]).unwrap();
        taken += n;
        if pump(&mut agent, &mut bridge, usize::MAX).unwrap() + n == 0 {
            break;
        }
    }
    assert!(bridge.receive_space().is_empty() && taken < 400_000, "{taken} bytes were taken");
    // It can still talk back: a full reader does not stop its own writes.
    assert_eq!(bridge.write(b"slow down").unwrap(), 9);
    pump(&mut bridge, &mut agent, usize::MAX).unwrap();
    assert_eq!(agent.plaintext(), b"slow down");
    let mut got = Vec::new();
    while got.len() < taken {
        got.extend_from_slice(bridge.plaintext());
        bridge.consume(bridge.plaintext().len());
        pump(&mut agent, &mut bridge, usize::MAX).unwrap();
    }
    assert!(got == data[..taken]);
}

/// The fingerprint survives a restart; another bridge is refused by name, and it is told so.
#[test]
fn the_pin_holds() {
    let (folder, first) = server();
    let again = ServerTls::self_signed(folder.path()).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    pair(&again, usize::MAX);
    // The certificate may be lost, the key decides.
    fs::remove_file(folder.path().join("link-cert.pem")).unwrap();
    assert_eq!(ServerTls::self_signed(folder.path()).unwrap().fingerprint(), first.fingerprint());

    let (_other_folder, other) = server();
    let mut agent = ClientTls::pinned(first.fingerprint()).connect("bridge.example.com").unwrap();
    let mut bridge = other.accept().unwrap();
    let error = shake_hands(&mut agent, &mut bridge, usize::MAX).unwrap_err();
    assert_eq!(error, TlsError::WrongFingerprint { pinned: first.fingerprint(), found: other.fingerprint() });
    let told = pump(&mut agent, &mut bridge, usize::MAX).unwrap_err();
    assert!(matches!(told, TlsError::Alert(_)), "{told}");
    assert!(agent.receive_space().is_empty() && agent.write(b"x").is_err() && agent.binding().is_none());
}

/// A damaged or foreign key file is an error that names it; the key is never made anew.
#[test]
fn a_damaged_key_is_not_replaced() {
    let (folder, _) = server();
    let path = folder.path().join("link-key.pem");
    fs::write(&path, "nonsense").unwrap();
    let error = ServerTls::self_signed(folder.path()).unwrap_err().to_string();
    assert!(error.contains("link-key.pem") && error.contains("backup"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"nonsense");
}

/// Certificate and key files as an ACME client leaves them; swapped or missing ones are named.
#[test]
fn certificate_files() {
    let (folder, made) = server();
    let (cert, key) = (folder.path().join("link-cert.pem"), folder.path().join("link-key.pem"));
    let server = ServerTls::from_files(&cert, &key).unwrap();
    assert_eq!(server.fingerprint(), made.fingerprint());
    pair(&server, usize::MAX);
    let error =
        |cert: &std::path::Path, key: &std::path::Path| ServerTls::from_files(cert, key).unwrap_err().to_string();
    assert!(error(&key, &key).contains("link-key.pem: holds no PEM certificate"));
    assert!(error(&cert, &cert).contains("link-cert.pem: holds no PEM private key"));
    assert!(error(&cert, &folder.path().join("none")).contains("none: "));
    let other = tempfile::tempdir().unwrap();
    ServerTls::self_signed(other.path()).unwrap();
    assert!(error(&cert, &other.path().join("link-key.pem")).contains("cannot serve"));
}

/// A client made of rustls alone, with one cipher suite: what ours is compared with.
struct Oracle(rustls::ClientConnection);

impl Oracle {
    fn new(server: &ServerTls, suite: rustls::SupportedCipherSuite) -> Oracle {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites = vec![suite];
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.dangerous().set_certificate_verifier(config::pin_for_tests(server.fingerprint()));
        Oracle(rustls::ClientConnection::new(config.into(), "x".try_into().unwrap()).unwrap())
    }

    /// All that either has to say, both ways. Returns what the oracle has read.
    fn exchange(&mut self, bridge: &mut Tls) -> Vec<u8> {
        use std::io::{Read, Write};
        let mut wire = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            let n = bridge.receive_space().write(wire).unwrap();
            bridge.on_received(n).unwrap();
            wire = &wire[n..];
        }
        let mut read = Vec::new();
        while !bridge.outgoing().is_empty() {
            let n = self.0.read_tls(&mut bridge.outgoing()).unwrap();
            bridge.on_sent(n);
            self.0.process_new_packets().unwrap();
            let _ = self.0.reader().read_to_end(&mut read);
        }
        read
    }

    fn shake_hands(&mut self, bridge: &mut Tls) {
        while self.0.is_handshaking() || bridge.is_handshaking() {
            self.exchange(bridge);
        }
    }
}

fn suites() -> Vec<rustls::SupportedCipherSuite> {
    let all = rustls::crypto::ring::default_provider().cipher_suites;
    all.into_iter().filter(|suite| suite.tls13().is_some()).collect()
}

/// Our exporter against rustls' own at the other end, for each cipher suite; and it differs per connection.
#[test]
fn the_binding_is_rfc_9266() {
    let (_folder, server) = server();
    let mut seen = Vec::new();
    for suite in suites() {
        let (mut oracle, mut bridge) = (Oracle::new(&server, suite), server.accept().unwrap());
        assert!(bridge.binding().is_none());
        oracle.shake_hands(&mut bridge);
        let expected = oracle.0.export_keying_material([0u8; 32], b"EXPORTER-Channel-Binding", Some(&[])).unwrap();
        let got = bridge.binding().unwrap();
        assert_eq!(got.0, expected, "{suite:?}");
        assert!(!seen.contains(&got) && got != Binding::NONE);
        seen.push(got);
    }
    assert_eq!(seen.len(), 3);
    let (agent, bridge) = pair(&server, 10);
    assert_eq!(agent.binding(), bridge.binding());
    assert_eq!(Tls::plain().binding(), Some(Binding::NONE));
}

/// The peer may change its keys in the middle of anything (RFC 8446 §4.6.3), and asks us to: bytes go on both ways. One
/// that does nothing else is cut off.
#[test]
fn keys_may_change_at_any_time() {
    use std::io::Write;
    let (_folder, server) = server();
    for suite in suites() {
        let (mut oracle, mut bridge) = (Oracle::new(&server, suite), server.accept().unwrap());
        oracle.shake_hands(&mut bridge);
        for round in 0..50u8 {
            oracle.0.writer().write_all(&[round; 3000]).unwrap();
            oracle.0.refresh_traffic_keys().unwrap();
            oracle.0.writer().write_all(&[round; 20_000]).unwrap();
            assert_eq!(bridge.write(&[round; 5000]).unwrap(), 5000);
            let back = oracle.exchange(&mut bridge);
            assert_eq!(back, [round; 5000]);
            assert_eq!(bridge.plaintext(), [round; 23_000]);
            bridge.consume(23_000);
        }
    }
    let (mut oracle, mut bridge) = (Oracle::new(&server, suites()[0]), server.accept().unwrap());
    oracle.shake_hands(&mut bridge);
    let ended = (0..1000).any(|_| {
        oracle.0.refresh_traffic_keys().unwrap();
        let mut wire = Vec::new();
        oracle.0.write_tls(&mut wire).unwrap();
        bridge.receive_space()[..wire.len()].copy_from_slice(&wire);
        assert!(bridge.outgoing().len() <= OUTGOING_BYTES_MAX + 64 * 1024);
        bridge.on_received(wire.len()).is_err()
    });
    assert!(ended, "1000 key updates and nothing else");
}

/// A clean end is seen as one, after the data before it.
#[test]
fn goodbye_is_heard() {
    let (_folder, server) = server();
    let (mut agent, mut bridge) = pair(&server, usize::MAX);
    agent.write(b"last words").unwrap();
    agent.close();
    agent.close();
    pump(&mut agent, &mut bridge, usize::MAX).unwrap();
    assert_eq!(bridge.plaintext(), b"last words");
    assert!(bridge.peer_closed() && !agent.peer_closed());
    bridge.close();
    pump(&mut bridge, &mut agent, usize::MAX).unwrap();
    assert!(agent.peer_closed());
}

/// Each wrong first byte has an answer: plain frames, HTTP, a TLS 1.2 hello, a huge handshake message.
#[test]
fn strangers_are_refused() {
    let (_folder, server) = server();
    let feed = |bytes: &[u8]| -> Result<(), TlsError> {
        let mut bridge = server.accept().unwrap();
        for chunk in bytes.chunks(1000) {
            let space = bridge.receive_space();
            assert!(space.len() >= chunk.len());
            space[..chunk.len()].copy_from_slice(chunk);
            bridge.on_received(chunk.len())?;
        }
        Ok(())
    };
    assert_eq!(feed(b"GET / HTTP/1.1\r\n\r\n"), Err(TlsError::NotTls));
    assert_eq!(feed(&[0; 64]), Err(TlsError::NotTls));
    // A handshake message of 16 MiB in well-formed records.
    let mut huge = Vec::new();
    for i in 0..20 {
        huge.extend_from_slice(&[22, 3, 1, 0x40, 0]);
        let mut body = vec![0; 0x4000];
        if i == 0 {
            body[..4].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        }
        huge.extend_from_slice(&body);
    }
    assert!(feed(&huge).is_err());
    // An idle stranger costs no buffer at all; a byte costs one step.
    let mut bridge = server.accept().unwrap();
    assert!(bridge.receive_space().len() <= 16 * 1024);
}

/// Over a real socket, which the kernel gets if it can: only when nothing is on its way, and where it cannot, the reason
/// is said and the connection goes on as if nobody had asked. Whoever encrypts, the other end reads it.
#[test]
fn the_kernel_gets_a_quiet_connection() {
    use ringspan_engine::kernel::{Socket, ktls};
    let (_folder, server) = server();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let here = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let there = listener.accept().unwrap().0;
    let (here, there) = (Socket::from_owned(here.into()), Socket::from_owned(there.into()));
    assert_eq!(Tls::plain().hand_to_kernel(&here), Err(Refused::Never("no TLS".into())));
    let mut agent = ClientTls::pinned(server.fingerprint()).connect("x").unwrap();
    let mut bridge = server.accept().unwrap();
    let off = server.clone().with_ktls(false);
    assert_eq!(off.accept().unwrap().hand_to_kernel(&here), Err(Refused::Never("ktls = \"off\"".into())));
    if ktls::look().is_ok() {
        assert_eq!(agent.hand_to_kernel(&here), Err(Refused::NotNow), "in the handshake");
    }
    shake_hands(&mut agent, &mut bridge, usize::MAX).unwrap();
    bridge.write(b"before").unwrap();
    if ktls::look().is_ok() {
        assert_eq!(bridge.hand_to_kernel(&there), Err(Refused::NotNow), "something is unsent");
    }
    pump(&mut bridge, &mut agent, usize::MAX).unwrap();
    assert_eq!(agent.plaintext(), b"before");
    if ktls::look().is_ok() {
        assert_eq!(agent.hand_to_kernel(&here), Err(Refused::NotNow), "something is unread");
    }
    agent.consume(6);
    let binding = agent.binding();
    match (ktls::look(), agent.hand_to_kernel(&here)) {
        (Ok(kernel), Ok(offload)) => {
            assert_eq!((offload.suite, offload.splice_out), (ktls::Suite::Aes128Gcm, kernel.splice_out));
            assert!(agent.is_plain() && agent.is_encrypted() && agent.binding() == binding && binding.is_some());
            assert!(agent.outgoing().is_empty() && agent.receive_space().is_empty());
            assert!(matches!(agent.hand_to_kernel(&here), Err(Refused::Never(_))), "a second time");
            here.send(b"from the kernel", false).unwrap();
            let n = there.recv(bridge.receive_space()).unwrap();
            bridge.on_received(n).unwrap();
            assert_eq!(bridge.plaintext(), b"from the kernel");
        }
        (Err(why), Err(Refused::Never(said))) => {
            assert_eq!(&said, why);
            agent.write(b"as before").unwrap();
            pump(&mut agent, &mut bridge, usize::MAX).unwrap();
            assert_eq!(bridge.plaintext(), b"as before");
            println!("SKIPPED the rest of the_kernel_gets_a_quiet_connection: {why}");
        }
        other => panic!("{other:?}"),
    }
}

/// Plain is the same interface and touches nothing.
#[test]
fn plain_is_a_pipe() {
    let (mut a, mut b) = (Tls::plain(), Tls::plain());
    assert!(a.is_plain() && !a.is_handshaking() && !a.peer_closed());
    let data = bytes(500_000, 9);
    let (mut taken, mut got) = (0, Vec::new());
    while got.len() < data.len() {
        taken += a.write(&data[taken..]).unwrap();
        pump(&mut a, &mut b, 4096).unwrap();
        assert!(b.plaintext().len() < PLAINTEXT_BYTES_HIGH + RECEIVE_BYTES);
        got.extend_from_slice(b.plaintext());
        b.consume(b.plaintext().len());
        a.release_idle();
        b.release_idle();
    }
    assert!(got == data);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Garbage, at any point of a connection's life, is an error or silence: never a panic, never plaintext.
    #[test]
    fn garbage_never_panics(
        prefix in 0usize..4000, garbage in proptest::collection::vec(any::<u8>(), 1..3000), record in any::<bool>(),
    ) {
        let (_folder, server) = server();
        let mut agent = ClientTls::pinned(server.fingerprint()).connect("x").unwrap();
        let mut bridge = server.accept().unwrap();
        // So many good bytes in one direction, then garbage.
        let n = prefix.min(agent.outgoing().len());
        bridge.receive_space()[..n].copy_from_slice(&agent.outgoing()[..n]);
        agent.on_sent(n);
        prop_assert!(bridge.on_received(n).is_ok());
        if n < prefix {
            shake_hands(&mut agent, &mut bridge, usize::MAX).unwrap();
        }
        let mut bytes = garbage;
        if record {
            let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            let kind = [20, 21, 22, 23][prefix % 4];
            bytes.splice(..0, [kind, 3, 3, len[0], len[1]]);
        }
        bridge.receive_space()[..bytes.len()].copy_from_slice(&bytes);
        let _ = bridge.on_received(bytes.len());
        prop_assert!(bridge.plaintext().is_empty());
        let _ = bridge.write(b"still here?");
        bridge.close();
        bridge.release_idle();
    }
}
