//! Handshakes with rustls' own server in memory: each verdict on certificates, each way to end, whatever the pieces.

use super::*;
use crate::check::{Content, HttpCheck, HttpSettings, Statuses};
use crate::probe::http::Asking;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{Read, Write};

fn peer() -> Peer {
    Peer { address: "10.1.2.3:443".parse().unwrap() }
}

/// A certificate authority of the test's own.
struct Authority {
    pem: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    fn trust(&self) -> Trust {
        Trust::CaPem(self.pem.clone())
    }
}

/// A certificate and its key.
struct Leaf {
    certificate: CertificateDer<'static>,
    pem: Vec<u8>,
    key: KeyPair,
}

impl Leaf {
    /// For these names, valid from `days.0` to `days.1`, counted from today, signed by `authority` or by itself.
    fn new(names: &[&str], days: (i64, i64), authority: Option<&Authority>) -> Leaf {
        let mut params = CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).unwrap();
        let today = i64::try_from(rustls::pki_types::UnixTime::now().as_secs()).unwrap();
        // An hour of slack: the test may run across the second in which a day ends.
        let at = |days: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs((today + days * 86_400 + 3600) as u64)
        };
        (params.not_before, params.not_after) = (at(days.0), at(days.1));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = match authority {
            Some(authority) => params.signed_by(&key, &authority.issuer).unwrap(),
            None => {
                // As `openssl req -x509` makes them.
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.self_signed(&key).unwrap()
            }
        };
        Leaf { certificate: certificate.der().clone(), pem: certificate.pem().into_bytes(), key }
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    fn server(&self) -> ServerConnection {
        self.server_of(&[&rustls::version::TLS12, &rustls::version::TLS13], None)
    }

    fn server_of(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        clients: Option<&Authority>,
    ) -> ServerConnection {
        let builder =
            ServerConfig::builder_with_provider(settings::crypto().clone()).with_protocol_versions(versions).unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates([authority.issuer_der()]);
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), settings::crypto().clone());
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(vec![self.certificate.clone()], self.private()).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        ServerConnection::new(Arc::new(config)).unwrap()
    }
}

impl Authority {
    fn issuer_der(&self) -> CertificateDer<'static> {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::from_pem_slice(&self.pem).unwrap()
    }
}

/// How a conversation went.
struct Went {
    finding: Finding,
    /// What the server heard inside.
    asked: String,
    /// The server saw a close_notify, or a reason not to go on.
    parted: bool,
}

/// Lets a conversation talk to a server that answers `answer` once it has heard an empty line; `piece` bytes at a time
/// reach the conversation.
fn converse(talk: &mut dyn Talk, server: &mut ServerConnection, answer: &[u8], piece: usize) -> Went {
    let (mut say, mut asked, mut parted) = (Vec::new(), Vec::new(), false);
    talk.open(Instant::ZERO, &peer(), &mut say);
    for step in 1..100 {
        let mut wire = &say[..];
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            match server.process_new_packets() {
                Ok(state) => parted |= state.peer_has_closed(),
                Err(_) => parted = true,
            }
        }
        let before = asked.len();
        let _would_block = server.reader().read_to_end(&mut asked);
        if asked.len() > before && asked.ends_with(b"\r\n\r\n") {
            server.writer().write_all(answer).unwrap();
            server.send_close_notify();
        }
        say.clear();
        let mut heard = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut heard).unwrap();
        }
        let now = Instant::from_ns(step);
        let mut pieces: Vec<&[u8]> = heard.chunks(piece).collect();
        if pieces.is_empty() {
            pieces.push(b"");
        }
        for piece in pieces {
            match talk.hear(now, piece, &mut say) {
                Next::Hear => assert!(say.is_empty()),
                Next::Say => assert!(!say.is_empty()),
                Next::Over(finding) => return Went { finding, asked: String::from_utf8(asked).unwrap(), parted },
                Next::Again => panic!("nothing redirects"),
            }
        }
    }
    panic!("it goes on for ever");
}

fn settings(trust: Trust) -> TlsSettings {
    TlsSettings { name: Some("a.example".into()), trust, ..TlsSettings::default() }
}

/// A handshake in every size of pieces, with one verdict.
fn shake(settings: TlsSettings, server: impl Fn() -> ServerConnection) -> (Code, u32, Option<i16>) {
    let check = Arc::new(TlsCheck::new(settings).expect("valid"));
    let verdicts = [1, 7, 1000, usize::MAX].map(|piece| {
        let mut talk = Handshaking::new(check.clone());
        let went = converse(&mut talk, &mut server(), b"", piece);
        assert!(went.parted, "the server is told");
        assert_eq!(talk.tls_at().is_some(), went.finding.code == Code::L6Ok);
        (went.finding.code, went.finding.detail.number, went.finding.detail.cert_days)
    });
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    verdicts[0]
}

/// Every verdict on a certificate, with the days it is good for, in TLS 1.2 and 1.3.
#[test]
fn certificates() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let good = Leaf::new(&["a.example"], (-1, 30), Some(&authority));
    let expired = Leaf::new(&["a.example"], (-30, -2), Some(&authority));
    let future = Leaf::new(&["a.example"], (2, 30), Some(&authority));
    let other = Leaf::new(&["b.example"], (-1, 30), Some(&authority));
    let own = Leaf::new(&["a.example"], (-1, 30), None);
    let own_expired = Leaf::new(&["a.example"], (-30, -2), None);
    let own_future = Leaf::new(&["a.example"], (2, 30), None);
    let own_other = Leaf::new(&["b.example"], (-1, 30), None);
    let pin = |leaf: &Leaf| Pin::Certificate(digest(&SHA256, &leaf.certificate).as_ref().try_into().unwrap());
    let key_pin =
        |leaf: &Leaf| Pin::Key(digest(&SHA256, &leaf.key.subject_public_key_info()).as_ref().try_into().unwrap());
    let refused = |fault: CertificateFault, days| (Code::L6Certificate, fault.number(), Some(days));
    let well = |days| (Code::L6Ok, 0, Some(days));
    let itself = |leaf: &Leaf| Trust::CaPem(leaf.pem.clone());
    let table = [
        (authority.trust(), &good, well(30)),
        (authority.trust(), &expired, refused(CertificateFault::Expired, -2)),
        (authority.trust(), &future, refused(CertificateFault::NotYetValid, 30)),
        (authority.trust(), &other, refused(CertificateFault::WrongName, 30)),
        (authority.trust(), &own, refused(CertificateFault::UnknownIssuer, 30)),
        (stranger.trust(), &good, refused(CertificateFault::UnknownIssuer, 30)),
        (itself(&own), &own, well(30)),
        (itself(&own_expired), &own_expired, refused(CertificateFault::Expired, -2)),
        (itself(&own_future), &own_future, refused(CertificateFault::NotYetValid, 30)),
        (itself(&own_other), &own_other, refused(CertificateFault::WrongName, 30)),
        (itself(&good), &good, well(30)),
        (Trust::Pinned(vec![pin(&own)]), &own, well(30)),
        (Trust::Pinned(vec![key_pin(&own)]), &own, well(30)),
        (Trust::Pinned(vec![pin(&good), key_pin(&expired)]), &expired, well(-2)),
        (Trust::Pinned(vec![pin(&good), key_pin(&other)]), &own, refused(CertificateFault::NotPinned, 30)),
        (Trust::Insecure, &expired, well(-2)),
        (Trust::Insecure, &own, well(30)),
    ];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (trust, leaf, expected) in &table {
            let came = shake(settings(trust.clone()), || leaf.server_of(&[version], None));
            assert_eq!(came, *expected, "{version:?}");
        }
    }
}

/// A certificate that runs out sooner than it may fails, whoever vouches for it; one that is refused anyway keeps its
/// first reason.
#[test]
fn days_left() {
    let authority = Authority::new();
    let leaf = Leaf::new(&["a.example"], (-1, 14), Some(&authority));
    let with = |trust: Trust, min| TlsSettings { cert_days_min: Some(min), ..settings(trust) };
    assert_eq!(shake(with(authority.trust(), 14), || leaf.server()), (Code::L6Ok, 0, Some(14)));
    let too_few = (Code::L6Certificate, CertificateFault::TooFewDays.number(), Some(14));
    assert_eq!(shake(with(authority.trust(), 15), || leaf.server()), too_few);
    assert_eq!(shake(with(Trust::Insecure, 15), || leaf.server()), too_few);
    let stranger = (Code::L6Certificate, CertificateFault::UnknownIssuer.number(), Some(14));
    assert_eq!(shake(with(Authority::new().trust(), 15), || leaf.server()), stranger);
}

/// Where no name is given the certificate must be the address's own.
#[test]
fn without_a_name_the_address_counts() {
    let authority = Authority::new();
    let by_address = Leaf::new(&["10.1.2.3"], (-1, 30), Some(&authority));
    let by_name = Leaf::new(&["a.example"], (-1, 30), Some(&authority));
    let nameless = || TlsSettings { trust: authority.trust(), ..TlsSettings::default() };
    assert_eq!(shake(nameless(), || by_address.server()), (Code::L6Ok, 0, Some(30)));
    let wrong = (Code::L6Certificate, CertificateFault::WrongName.number(), Some(30));
    assert_eq!(shake(nameless(), || by_name.server()), wrong);
}

/// The server's alerts are named: no version in common, no protocol in common, no client certificate.
#[test]
fn alerts() {
    let authority = Authority::new();
    let leaf = Leaf::new(&["a.example"], (-1, 30), Some(&authority));
    let only13 = TlsSettings { versions: Versions::Only13, ..settings(authority.trust()) };
    let (code, number, days) = {
        let check = Arc::new(TlsCheck::new(only13).unwrap());
        let mut server = leaf.server_of(&[&rustls::version::TLS12], None);
        let finding = converse(&mut Handshaking::new(check), &mut server, b"", usize::MAX).finding;
        (finding.code, finding.detail.number, finding.detail.cert_days)
    };
    assert_eq!((code, number, days), (Code::L6Response, 70, None), "protocol_version");
    let h2 = TlsSettings { alpn: vec!["h2".into()], ..settings(authority.trust()) };
    let mut server = leaf.server();
    let finding = converse(&mut Handshaking::new(Arc::new(TlsCheck::new(h2).unwrap())), &mut server, b"", 5).finding;
    assert_eq!((finding.code, finding.detail.number), (Code::L6Response, 120), "no_application_protocol");

    let client = Leaf::new(&["me.example"], (-1, 30), Some(&authority));
    let identity = Identity { chain_pem: client.pem.clone(), key_pem: client.key.serialize_pem().into_bytes() };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let shown = TlsSettings { identity: Some(identity.clone()), ..settings(authority.trust()) };
        let server = || leaf.server_of(&[version], Some(&authority));
        assert_eq!(shake(shown, server), (Code::L6Ok, 0, Some(30)), "{version:?}");
        let check = Arc::new(TlsCheck::new(settings(authority.trust())).unwrap());
        let finding = converse(&mut Handshaking::new(check), &mut server(), b"", usize::MAX).finding;
        assert_eq!((finding.code, finding.detail.cert_days), (Code::L6Response, Some(30)), "{version:?}");
        // RFC 8446, 6.2: certificate_required; rustls' server says handshake_failure in 1.2.
        assert!([40, 116].contains(&finding.detail.number), "{version:?} {}", finding.detail.number);
    }
}

/// What does not speak TLS, says nothing, or goes away is told apart.
#[test]
fn strangers() {
    let check = Arc::new(TlsCheck::new(settings(Trust::Insecure)).unwrap());
    let begin = || {
        let (mut talk, mut say) = (Handshaking::new(check.clone()), Vec::new());
        talk.open(Instant::ZERO, &peer(), &mut say);
        assert_eq!(say[..3], [22, 3, 1], "a ClientHello");
        talk
    };
    let broken = Next::Over(Finding::of(Code::L6Response));
    for stranger in
        [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x00\x00\x00", b""]
    {
        let mut say = Vec::new();
        assert_eq!(begin().hear(Instant::ZERO, stranger, &mut say), broken, "{stranger:?}");
        assert!(say.is_empty());
    }
    let alert = [21, 3, 3, 0, 2, 2, 40];
    let mut say = Vec::new();
    let Next::Over(finding) = begin().hear(Instant::ZERO, &alert, &mut say) else { panic!("{say:?}") };
    assert_eq!((finding.code, finding.detail.number), (Code::L6Response, 40));
    let mut talk = begin();
    assert_eq!(talk.hear(Instant::ZERO, &[22, 3, 3], &mut say), Next::Hear);
    assert_eq!((talk.at_deadline().code, talk.phase()), (Code::L6Timeout, Phase::Tls));
    let reset = Trouble { leg: crate::io::Leg::Hear, errno: crate::io::Errno(libc::ECONNRESET) };
    assert_eq!(talk.on_trouble(reset).code, Code::L6Response);
}

fn https(change: impl FnOnce(&mut HttpSettings)) -> Arc<HttpCheck> {
    let mut settings = HttpSettings::default();
    change(&mut settings);
    Arc::new(HttpCheck::new(settings).expect("valid"))
}

fn wrapped(check: &Arc<HttpCheck>) -> Wrapped<Asking> {
    Wrapped::new(check.tls().expect("https").clone(), Asking::new(check.clone()))
}

/// An HTTP conversation inside says, hears and finds what it does outside, in pieces of any size.
#[test]
fn http_inside() {
    let authority = Authority::new();
    let leaf = Leaf::new(&["a.example"], (-1, 30), Some(&authority));
    let check = https(|s| {
        s.host = Some("a.example:8443".into());
        s.content = Some(Content::Contains("ready".into()));
        s.tls = Some(TlsSettings { trust: authority.trust(), ..TlsSettings::default() });
    });
    let table: [(&[u8], Code, u32); 5] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready", Code::L7Ok, 200),
        (b"HTTP/1.1 200 OK\r\n\r\nready", Code::L7Ok, 200),
        (b"HTTP/1.1 200 OK\r\n\r\nnot", Code::L7Content, 200),
        (b"HTTP/1.1 500 Oops\r\n\r\n", Code::L7Status, 500),
        (b"SSH-2.0\r\n", Code::L7Response, 0),
    ];
    for (answer, code, number) in table {
        for piece in [1, 100, usize::MAX] {
            for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
                let mut talk = wrapped(&check);
                let went = converse(&mut talk, &mut leaf.server_of(&[version], None), answer, piece);
                let detail = Detail { number, cert_days: Some(30) };
                assert_eq!((went.finding.code, went.finding.detail), (code, detail), "{version:?} {piece}");
                assert!(went.asked.starts_with("GET / HTTP/1.1\r\nHost: a.example:8443\r\n"), "{}", went.asked);
                assert!(talk.tls_at().is_some() && talk.phase() == Phase::Answer);
            }
        }
    }
}

/// An HTTPS check whose certificate is refused never asks.
#[test]
fn http_is_not_asked_of_strangers() {
    let leaf = Leaf::new(&["a.example"], (-1, 30), Some(&Authority::new()));
    let check = https(|s| {
        s.host = Some("a.example".into());
        s.tls = Some(TlsSettings { trust: Authority::new().trust(), ..TlsSettings::default() });
    });
    let went = converse(&mut wrapped(&check), &mut leaf.server(), b"HTTP/1.1 200 OK\r\n\r\n", 1);
    let detail = Detail { number: CertificateFault::UnknownIssuer.number(), cert_days: Some(30) };
    assert_eq!((went.finding.code, went.finding.detail, went.asked), (Code::L6Certificate, detail, String::new()));
}

/// Any content of a body, whatever TLS makes of it: large answers do not pile up in the session.
#[test]
fn large_answers_are_bounded() {
    let leaf = Leaf::new(&["a.example"], (-1, 30), None);
    let check = https(|s| {
        (s.head_max, s.body_max, s.status) = (512, 1000, "200".parse::<Statuses>().unwrap());
        s.content = Some(Content::Matches("y$".into()));
        s.tls = Some(settings(Trust::Insecure));
    });
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n{}", "x".repeat(60_000));
    let went = converse(&mut wrapped(&check), &mut leaf.server(), answer.as_bytes(), 4096);
    assert_eq!(went.finding.code, Code::L7Response);
}

/// Settings that cannot be right name themselves; keys are never shown.
#[test]
fn bad_settings_are_named() {
    let leaf = Leaf::new(&["a.example"], (-1, 30), None);
    let other = Leaf::new(&["a.example"], (-1, 30), None);
    let identity = |chain: &[u8], key: String| Some(Identity { chain_pem: chain.to_vec(), key_pem: key.into_bytes() });
    let error = |settings: TlsSettings| TlsCheck::new(settings).map(|_| ()).unwrap_err().to_string();
    let base = || settings(Trust::Insecure);
    assert!(error(TlsSettings { name: Some("a b".into()), ..base() }).starts_with("tls.name = \"a b\": must be"));
    assert!(error(settings(Trust::CaPem(b"x".to_vec()))).starts_with("tls.ca"));
    assert!(
        error(settings(Trust::CaFile("/nowhere/ca.pem".into())))
            .starts_with("tls.ca = \"/nowhere/ca.pem\": No such file")
    );
    assert!(error(settings(Trust::Pinned(Vec::new()))).starts_with("tls.pins"));
    assert!(error(TlsSettings { alpn: vec![String::new()], ..base() }).starts_with("tls.alpn"));
    assert!(
        error(TlsSettings { identity: identity(&leaf.pem, "x".into()), ..base() }).starts_with("tls.key = \"***\"")
    );
    assert!(error(TlsSettings { identity: identity(b"", leaf.key.serialize_pem()), ..base() }).starts_with("tls.cert"));
    let foreign = identity(&leaf.pem, other.key.serialize_pem());
    assert!(error(TlsSettings { identity: foreign, ..base() }).contains("must be the key of tls.cert"));
    let shown = TlsSettings { identity: identity(&leaf.pem, leaf.key.serialize_pem()), ..base() };
    assert!(!format!("{:?}", TlsCheck::new(shown).unwrap()).contains("PRIVATE"));
    for bad in ["", "cert:", "cert:zz", "spki:00", &format!("cert:{}", "é".repeat(32))] {
        assert_eq!(bad.parse::<Pin>().unwrap_err().key, "tls.pins", "{bad}");
    }
    let pin = "cert:AB:cd".to_owned() + &":00".repeat(30);
    assert_eq!(pin.parse::<Pin>().unwrap().to_string(), "cert:abcd".to_owned() + &"00".repeat(30));
    for fault in CertificateFault::ALL {
        assert_eq!(CertificateFault::of_number(fault.number()), Some(fault));
        assert!(fault.sentence().ends_with('.'));
    }
    assert_eq!(CertificateFault::of_number(0), None);
}
