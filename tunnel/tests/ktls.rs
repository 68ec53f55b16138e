//! Links whose TLS records the kernel makes, at both ends or at one: every byte arrives, and the peer's other records
//! are understood. rustls is the other end's oracle. Where the kernel has no TLS the same tests run without it, and say
//! so; scripts/kernel-matrix runs them where it has.

mod rig;

use rig::backend::{self, Order, Source, ask, finish, read_all};
use rig::{BridgeRig, EPOLL, PATIENCE, RING, Shape};
use ringspan_engine::kernel::ktls;
use ringspan_tunnel::frame::{HEADER_BYTES, Header, Kind};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned, SupportedCipherSuite,
};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of one visitor, each way.
const VISITOR_BYTES: u64 = 6 << 20;

fn kernel_has_tls(test: &str) -> bool {
    match ktls::look() {
        Ok(kernel) => {
            println!("{test}: kernel TLS with {kernel}");
            true
        }
        Err(why) => {
            println!("SKIPPED the kernel's part of {test}: {why}");
            false
        }
    }
}

/// Two visitors at once send and read several megabytes, small and large frames, while the kernel has the keys at both
/// ends, at one, or at none; each end is passed on by itself. The counters tell who encrypted.
#[test]
fn every_byte_arrives_whoever_encrypts() {
    let has = kernel_has_tls("every_byte_arrives_whoever_encrypts");
    for io in [RING, EPOLL] {
        for (bridge_ktls, agent_ktls) in [(true, true), (true, false), (false, true), (false, false)] {
            let shape = |ktls| Shape { tls: true, ktls, ..io };
            let (address, reports) = backend::start();
            let bridge = rig::bridge(shape(bridge_ktls), &["web"]);
            let agent = bridge.agent(shape(agent_ktls), &[("web", address)]);
            thread::scope(|scope| {
                for seed in 0..2 {
                    let bridge = &bridge;
                    scope.spawn(move || echo(bridge, seed));
                }
            });
            for _ in 0..2 {
                assert_eq!(reports.recv_timeout(PATIENCE).unwrap().bytes, VISITOR_BYTES);
            }
            let what = (bridge_ktls, agent_ktls, io.io);
            // The backend ends first; only then does the visitor send, and end.
            let mut stream = bridge.visit(0);
            ask(&mut stream, Order::Send, 7, 300_000);
            let (down, _, error) = read_all(&mut stream, 7);
            assert_eq!((down, error), (300_000, None), "{what:?}");
            let mut source = Source::new(107);
            source.write(&mut stream, 200_000).unwrap();
            drop(stream);
            let report = reports.recv_timeout(PATIENCE).unwrap();
            assert_eq!((report.bytes, report.error, report.digest), (200_000, None, finish(source.digest)), "{what:?}");
            let (there, here) = (bridge.stats(), agent.handle.stats());
            let carriers = u64::from(io.carriers);
            let expected = |on: bool| if has && on { carriers } else { 0 };
            assert_eq!(
                (there.carriers_ktls, here.carriers_ktls),
                (expected(bridge_ktls), expected(agent_ktls)),
                "{what:?}"
            );
            if let Ok(kernel) = ktls::look() {
                let splices = kernel.splice_in || kernel.splice_out;
                let spliced = (there.bytes_spliced > 0, here.bytes_spliced > 0);
                assert_eq!(spliced, (bridge_ktls && splices, agent_ktls && splices), "{what:?} {there:?} {here:?}");
            }
        }
    }
}

fn echo(bridge: &BridgeRig, seed: u64) {
    let mut stream = bridge.visit(0);
    let mut reader = stream.try_clone().unwrap();
    let back = thread::spawn(move || read_all(&mut reader, seed));
    ask(&mut stream, Order::Echo, seed, 0);
    let mut source = Source::new(seed);
    source.write(&mut stream, VISITOR_BYTES).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(back.join().unwrap(), (VISITOR_BYTES, finish(source.digest), None), "seed {seed}");
}

type Oracle = StreamOwned<ClientConnection, TcpStream>;

/// A stranger made of rustls that has read the bridge's first frame: by then the bridge's keys are where they will be.
fn stranger(bridge: &BridgeRig, suite: SupportedCipherSuite) -> Oracle {
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..provider::default_provider() });
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"ringspan-link/1".to_vec()];
    let socket = TcpStream::connect(bridge.handle.link_address()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("x").unwrap()).unwrap();
    let mut oracle = StreamOwned::new(connection, socket);
    let mut head = [0; HEADER_BYTES];
    oracle.read_exact(&mut head).unwrap();
    let header = Header::decode(&head).unwrap();
    assert_eq!(header.kind, Kind::Hello);
    let mut challenge = vec![0; header.len as usize];
    oracle.read_exact(&mut challenge).unwrap();
    assert!(challenge.starts_with(b"{"));
    oracle
}

/// Believes everybody: who the bridge is, is not what is tested.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("not offered".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn suites() -> Vec<SupportedCipherSuite> {
    provider::default_provider().cipher_suites.into_iter().filter(|suite| suite.tls13().is_some()).collect()
}

/// What the peer says beside data, for each cipher suite: a key update ends the carrier with the reason where the kernel
/// has the keys, and is followed where rustls has; an end in peace, a cut inside a record and a forged record are told
/// apart in the log; and none of it is data.
#[test]
fn other_records_are_understood() {
    kernel_has_tls("other_records_are_understood");
    let shape = Shape { tls: true, workers: 1, ..EPOLL };
    for suite in suites() {
        let bridge = rig::bridge(shape, &["web"]);
        let before = bridge.stats().carriers_ktls;
        let mut oracle = stranger(&bridge, suite);
        let kernel = bridge.stats().carriers_ktls > before;
        println!("{suite:?}: {}", if kernel { "the kernel has the keys" } else { "rustls has the keys" });

        oracle.conn.refresh_traffic_keys().unwrap();
        oracle.flush().unwrap();
        if kernel {
            bridge.log.wait_for("the peer changes its TLS keys", 1);
        } else {
            oracle.conn.send_close_notify();
            oracle.flush().unwrap();
            bridge.log.wait_for("closed by the peer", 1);
        }
        until_closed(oracle);

        let ends = bridge.log.count("closed by the peer");
        let mut oracle = stranger(&bridge, suite);
        oracle.conn.send_close_notify();
        oracle.flush().unwrap();
        bridge.log.wait_for("closed by the peer", ends + 1);
        until_closed(oracle);

        let mut oracle = stranger(&bridge, suite);
        // Half of what would be a record, and the end.
        oracle.sock.write_all(&[23, 3, 3, 0, 40, 1, 2, 3]).unwrap();
        oracle.sock.shutdown(Shutdown::Write).unwrap();
        bridge.log.wait_for("closed by the peer", ends + 2);
        until_closed(oracle);

        let all = bridge.log.count("handshake ");
        let mut oracle = stranger(&bridge, suite);
        oracle.sock.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat()).unwrap();
        bridge.log.wait_for("handshake ", all + 1);
        assert_eq!(bridge.log.count("closed by the peer"), ends + 2, "a forged record is no end");
        until_closed(oracle);
    }
}

/// Half a record, and then nothing: on some kernels the socket is readable for as long as that lasts, and has nothing. It is
/// looked at now and then, and not as often as the machine can.
#[test]
fn half_a_record_keeps_nobody_busy() {
    kernel_has_tls("half_a_record_keeps_nobody_busy");
    for io in [RING, EPOLL] {
        let bridge = rig::bridge(Shape { tls: true, workers: 1, ..io }, &["web"]);
        let mut oracle = stranger(&bridge, suites()[0]);
        // Behind a whole one: whoever has read that asks the kernel for more while the half is there.
        oracle.conn.writer().write_all(&[0]).unwrap();
        let mut records = Vec::new();
        oracle.conn.write_tls(&mut records).unwrap();
        records.extend([23, 3, 3, 0, 40, 1, 2, 3]);
        oracle.sock.write_all(&records).unwrap();
        let (before, since) = (bridge.stats().link_reads, Instant::now());
        // Nothing happens that could be waited for: this is the time in which looks are counted.
        thread::sleep(Duration::from_millis(200));
        let (looks, time) = (bridge.stats().link_reads - before, since.elapsed());
        println!("{io:?}: {looks} looks in {time:?}");
        assert!(u128::from(looks) <= 3 * time.as_millis() / 2 + 20, "{io:?}: {looks} looks in {time:?}");
        // The rest of it: not a record of hers, so it is the end.
        oracle.sock.write_all(&[7; 37]).unwrap();
        bridge.log.wait_for("handshake ", 1);
        until_closed(oracle);
    }
}

fn until_closed(mut oracle: Oracle) {
    let mut sink = [0; 4096];
    loop {
        match oracle.sock.read(&mut sink) {
            Ok(1..) => {}
            Ok(0) => return,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("the bridge keeps the connection open")
            }
            Err(_) => return,
        }
    }
}
