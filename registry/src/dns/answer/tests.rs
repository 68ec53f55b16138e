//! Questions and answers, without sockets.

use super::*;
use crate::health::{Health, Reason};
use crate::model::{Instance, InstanceId};
use crate::service::{Options as RegistryOptions, Registry};
use crate::table::{Command, Delta};
use hickory_proto::op::Query;
use proptest::prelude::*;
use std::str::FromStr;

/// A registry in memory, and a zone that shows it.
struct World {
    registry: Registry,
    zone: Zone,
    runtime: tokio::runtime::Runtime,
}

fn world() -> World {
    world_with(Options::default())
}

fn world_with(options: Options) -> World {
    World {
        registry: Registry::open(&RegistryOptions::default()).unwrap(),
        zone: Zone::new(&options, vec!["192.0.2.53".parse().unwrap()]),
        runtime: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
    }
}

impl World {
    fn submit(&self, command: Command) {
        self.runtime.block_on(self.registry.submit(command)).unwrap();
    }

    /// `place` is `namespace/group@@name`, each but the name optional.
    fn register(&self, place: &str, instance: Instance) {
        let (namespace, name) = place.split_once('/').unwrap_or(("", place));
        let service = ServiceKey::new(namespace, "", name).unwrap();
        self.submit(Command::Register { service, instance });
    }

    fn one(&self, place: &str, host: &str) {
        self.register(place, instance(host, 80));
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        let mut query = question(name, kind);
        query.metadata.recursion_desired = true;
        let reply = self.send(&query.to_vec().unwrap(), Way::Udp).expect("an answer");
        assert_eq!((reply.metadata.id, &reply.queries), (query.metadata.id, &query.queries));
        assert!(reply.metadata.recursion_desired && !reply.metadata.recursion_available);
        reply
    }

    fn send(&self, bytes: &[u8], way: Way) -> Option<Message> {
        let reply = self.zone.answer(self.registry.snapshot(), bytes, way, &mut fastrand::Rng::with_seed(1))?;
        Some(Message::from_vec(&reply.bytes).expect("what we say is DNS"))
    }

    /// The answer in words: addresses or `priority weight port target`, sorted; or why there is none.
    fn said(&self, name: &str, kind: RecordType) -> String {
        let reply = self.ask(name, kind);
        let mut answers: Vec<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
        answers.sort();
        if !answers.is_empty() {
            assert_eq!((reply.metadata.response_code, reply.metadata.authoritative), (ResponseCode::NoError, true));
            assert!(reply.answers.iter().all(|r| r.ttl == 2));
            return answers.join(", ");
        }
        let soa = reply.authorities.iter().any(|r| r.record_type() == RecordType::SOA && r.ttl == 2);
        match (reply.metadata.response_code, soa) {
            (ResponseCode::NoError, true) => "nodata".into(),
            (ResponseCode::NXDomain, true) => "nxdomain".into(),
            (code, soa) => format!("{code} soa={soa}"),
        }
    }
}

fn instance(host: &str, port: u16) -> Instance {
    Instance::new(InstanceId::new("", host, port).unwrap())
}

fn question(name: &str, kind: RecordType) -> Message {
    let name = Name::from_ascii(format!("{name}.ringspan.internal.")).unwrap();
    let mut message = Message::query();
    message.add_query(Query::query(name, kind));
    message
}

/// Each form of a name leads to its service; what is not there is NXDOMAIN, what is there otherwise NODATA: table.
#[test]
fn names_lead_to_services() {
    let w = world();
    w.one("web", "10.0.0.1");
    w.one("web", "fd00::1");
    w.one("g@@web", "10.0.0.2");
    w.one("dev/web", "10.0.0.3");
    w.one("dev/G@@com.acme.Api", "10.0.0.4");
    w.one("default_group@@web", "10.0.0.5");
    w.one("Case", "10.0.0.6");
    w.one("case", "10.0.0.7");
    w.one("Upper", "10.0.0.8");
    w.one("TWO", "10.0.0.9");
    w.one("Two", "10.0.0.10");
    w.register("web", Instance::new(InstanceId::new("Bj", "10.0.1.1", 80).unwrap()));
    use RecordType::{A, AAAA, MX, SRV};
    let cases = [
        ("web.svc", A, "10.0.0.1, 10.0.1.1"),
        ("WEB.SVC", AAAA, "fd00::1"),
        ("web.svc", MX, "nodata"),
        ("web.default_group.svc", A, "10.0.0.1, 10.0.1.1"),
        ("web.DEFAULT_GROUP.public.svc", A, "10.0.0.1, 10.0.1.1"),
        ("default_group_x40_x40web.svc", A, "10.0.0.5"),
        ("web.g.svc", A, "10.0.0.2"),
        ("web.g.svc", AAAA, "nodata"),
        ("web.DEFAULT_GROUP.dev.svc", A, "10.0.0.3"),
        ("com.acme.Api.G.dev.svc", A, "10.0.0.4"),
        ("com_x2eacme_x2e_x41pi._x47.dev.svc", A, "10.0.0.4"),
        ("com_x2eacme_x2e_x41_x50i._x47.dev.svc", A, "nxdomain"),
        ("web._x64efault_group.svc", A, "10.0.0.5"),
        ("case.svc", A, "10.0.0.7"),
        ("Case.svc", A, "10.0.0.7"),
        ("_x43ase.svc", A, "10.0.0.6"),
        ("upper.svc", A, "10.0.0.8"),
        ("UPPER.svc", A, "10.0.0.8"),
        ("two.svc", A, "nxdomain"),
        ("_x54wo.svc", A, "10.0.0.10"),
        ("bj._cluster.web.svc", A, "10.0.1.1"),
        ("default._cluster.web.svc", A, "10.0.0.1"),
        ("_x62j._cluster.web.svc", A, "10.0.1.1"),
        ("_x42_x4a._cluster.web.svc", A, "nxdomain"),
        ("other._cluster.web.svc", A, "nxdomain"),
        ("_cluster.web.svc", A, "nodata"),
        ("_web._tcp.g.svc", SRV, "0 100 80 10-0-0-2.web.g.host.ringspan.internal."),
        ("web.g.svc", SRV, "0 100 80 10-0-0-2.web.g.host.ringspan.internal."),
        ("_web._tcp.g.svc", A, "nodata"),
        ("_tcp.svc", A, "nodata"),
        ("10-0-0-2.web.g.host", A, "10.0.0.2"),
        ("10-0-0-2.web.g.host", AAAA, "nodata"),
        ("10-0-0-3.web.g.host", A, "nxdomain"),
        ("dev.svc", A, "nodata"),
        ("G.dev.svc", A, "nxdomain"),
        ("DEFAULT_GROUP.dev.svc", A, "nodata"),
        ("nobody.svc", A, "nxdomain"),
        ("svc", A, "nodata"),
        ("ns", A, "192.0.2.53"),
        ("other", A, "nxdomain"),
        ("g_x40_x40web.svc", A, "10.0.0.2"),
        ("a_x40_x40b_x40_x40c.svc", A, "nxdomain"),
    ];
    for (name, kind, want) in cases {
        assert_eq!(w.said(name, kind), want, "{name} {kind}");
    }
    w.registry.stop();
}

/// Whoever is down, disabled, weightless, or reached through a tunnel alone is not shown; the threshold shows the down ones,
/// and never those.
#[test]
fn who_is_shown() {
    let w = world();
    w.one("web", "10.0.0.1");
    w.one("web", "10.0.0.2");
    w.register("web", Instance { enabled: false, ..instance("10.0.0.3", 80) });
    w.register("web", Instance { weight: 0.0, ..instance("10.0.0.4", 80) });
    w.register("web", Instance { claims_healthy: false, ..instance("10.0.0.5", 80) });
    let service = ServiceKey::public("web").unwrap();
    let hear = |host: &str, health: Health| {
        let delta = Delta {
            service: service.clone(),
            id: InstanceId::new("", host, 80).unwrap(),
            health,
            reason: Reason::Manual,
            rtt_ns: 0,
            due: None,
        };
        w.submit(Command::Heard { deltas: vec![delta] });
    };
    assert_eq!(w.said("web.svc", RecordType::A), "10.0.0.1, 10.0.0.2");
    hear("10.0.0.2", Health::Down);
    assert_eq!(w.said("web.svc", RecordType::A), "10.0.0.1");
    hear("10.0.0.1", Health::Down);
    assert_eq!(w.said("web.svc", RecordType::A), "nodata");
    assert_eq!(w.said("web.svc", RecordType::SRV), "nodata");
    assert_eq!(w.said("10-0-0-1.web.host", RecordType::A), "10.0.0.1", "whoever has the name may find the address");
    assert_eq!(w.said("10-0-0-3.web.host", RecordType::A), "nxdomain", "disabled is out of every list");
    w.registry.stop();
}

/// An answer has as many as the zone says, heavier ones more often, and SRV says weight and port and brings addresses.
#[test]
fn bounded_and_weighted() {
    let w = world();
    for n in 0..100_u16 {
        w.register(
            "many",
            Instance { weight: if n == 0 { 100.0 } else { 1.0 }, ..instance(&format!("10.0.1.{n}"), 1000 + n) },
        );
    }
    let reply = w.ask("many.svc", RecordType::A);
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (8, false));
    let mut query = question("many.svc", RecordType::SRV);
    query.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(1400);
    let reply = w.send(&query.to_vec().unwrap(), Way::Udp).unwrap();
    assert_eq!((reply.answers.len(), reply.additionals.len(), reply.metadata.truncation), (8, 8, false));
    assert_eq!(reply.edns.as_ref().map(Edns::max_payload), Some(1232));
    for record in &reply.answers {
        let RData::SRV(srv) = &record.data else { panic!("{record}") };
        assert_eq!(srv.weight, if srv.port == 1000 { 10_000 } else { 100 });
        let extra = reply.additionals.iter().find(|e| e.name == srv.target).expect("its address");
        assert_eq!(extra.data.to_string(), format!("10.0.1.{}", srv.port - 1000));
    }
    let mut chance = fastrand::Rng::with_seed(3);
    let bytes = question("many.svc", RecordType::A).to_vec().unwrap();
    let first = |chance: &mut fastrand::Rng| {
        let reply = w.zone.answer(w.registry.snapshot(), &bytes, Way::Udp, chance).unwrap();
        Message::from_vec(&reply.bytes).unwrap().answers[0].data.to_string()
    };
    let heavy = (0..1000).filter(|_| first(&mut chance) == "10.0.1.0").count();
    assert!((430..=580).contains(&heavy), "100 of 199 parts: {heavy} of 1000");
    w.registry.stop();
}

/// What does not fit is cut and marked, and comes whole over TCP.
#[test]
fn cut_answers() {
    let w = world_with(Options { answers_max: 60, ..Options::default() });
    for n in 0..60 {
        w.one("many", &format!("10.0.1.{n}"));
    }
    let mut query = question("many.svc", RecordType::A);
    let cut = w.send(&query.to_vec().unwrap(), Way::Udp).unwrap();
    assert_eq!((cut.answers.len(), cut.metadata.truncation), (0, true));
    let whole = w.send(&query.to_vec().unwrap(), Way::Tcp).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
    query.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(4096);
    let fits = w.send(&query.to_vec().unwrap(), Way::Udp).unwrap();
    assert_eq!((fits.answers.len(), fits.metadata.truncation), (60, false));
    let srv = question("many.svc", RecordType::SRV).to_vec().unwrap();
    let reply = w.zone.answer(w.registry.snapshot(), &srv, Way::Udp, &mut fastrand::Rng::new()).unwrap();
    assert!(reply.bytes.len() <= 512);
    let slipped = Message::from_vec(&Zone::slip(&srv).unwrap()).unwrap();
    assert!(slipped.metadata.truncation && slipped.answers.is_empty() && slipped.queries.len() == 1);
    w.registry.stop();
}

/// What is not for us is refused, what nobody can read is malformed, and an answer is not answered: table.
#[test]
fn odd_questions() {
    let w = world();
    w.one("web", "10.0.0.1");
    let code = |message: &Message| w.send(&message.to_vec().unwrap(), Way::Udp).map(|r| r.metadata.response_code);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&question("web.svc", kind)), Some(ResponseCode::Refused));
    }
    let mut chaos = question("web.svc", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    for name in ["example.com.", ".", "internal.", "xringspan.internal."] {
        let mut other = Message::query();
        other.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
        let reply = w.send(&other.to_vec().unwrap(), Way::Udp).unwrap();
        assert_eq!(
            (reply.metadata.response_code, reply.metadata.authoritative),
            (ResponseCode::Refused, false),
            "{name}"
        );
        assert!(reply.authorities.is_empty());
    }
    let mut version = question("web.svc", RecordType::A);
    version.set_edns(Edns::new()).edns.as_mut().unwrap().set_version(1);
    // 16 is BADVERS, and BADSIG where there is a signature: the library takes it for that.
    assert_eq!(code(&version).map(u16::from), Some(16));
    let mut two = question("web.svc", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), Some(ResponseCode::FormErr));
    let mut update = question("web.svc", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&update), Some(ResponseCode::NotImp));
    let good = question("web.svc", RecordType::A).to_vec().unwrap();
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert!(w.send(&answer, Way::Udp).is_none() && w.send(&good[..11], Way::Udp).is_none());
    for cut in 12..good.len() {
        let reply = w.send(&good[..cut], Way::Udp).expect("its head can be read");
        assert_eq!(
            (reply.metadata.response_code, reply.metadata.id),
            (ResponseCode::FormErr, u16::from_be_bytes([good[0], good[1]]))
        );
    }
    let any = w.ask("web.svc", RecordType::ANY);
    assert_eq!(any.answers.len(), 1);
    assert!(matches!(any.answers[0].data, RData::HINFO(_)), "RFC 8482");
    assert_eq!(w.said("nobody.svc", RecordType::ANY), "nxdomain");
    let apex = Name::from_str("ringspan.internal.").unwrap();
    let mut soa = Message::query();
    soa.add_query(Query::query(apex.clone(), RecordType::SOA));
    let reply = w.send(&soa.to_vec().unwrap(), Way::Udp).unwrap();
    assert_eq!((&reply.answers[0].name, reply.answers[0].record_type()), (&apex, RecordType::SOA));
    w.registry.stop();
}

/// A namespace that is not served is not there.
#[test]
fn namespaces_that_are_served() {
    let w = world_with(Options { namespaces: Some(vec!["public".into()]), ..Options::default() });
    w.one("web", "10.0.0.1");
    w.one("dev/web", "10.0.0.2");
    assert_eq!(w.said("web.svc", RecordType::A), "10.0.0.1");
    for name in ["web.default_group.dev.svc", "dev.svc", "10-0-0-2.web.default_group.dev.host"] {
        assert_eq!(w.said(name, RecordType::A), "nxdomain", "{name}");
    }
    w.registry.stop();
}

/// Whatever comes in, nothing breaks, and what goes out is DNS, no longer than it may be, an answer to what was asked.
#[test]
fn any_bytes() {
    let w = world();
    w.one("web", "10.0.0.1");
    w.one("Web", "fd00::1");
    let mut good: Vec<Vec<u8>> = Vec::new();
    for name in ["web.svc", "_web._tcp.svc", "10-0-0-1.web.host", "bj._cluster.web.g.dev.svc", "svc"] {
        for kind in [RecordType::A, RecordType::SRV, RecordType::ANY, RecordType::AXFR] {
            let mut query = question(name, kind);
            query.set_edns(Edns::new());
            good.push(query.to_vec().unwrap());
        }
    }
    let mutated = (0..good.len(), proptest::collection::vec((any::<u16>(), any::<u8>()), 0..6), any::<u16>());
    let any = proptest::collection::vec(any::<u8>(), 0..600);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
    let check = |bytes: &[u8]| {
        let mut chance = fastrand::Rng::with_seed(1);
        for (way, most) in [(Way::Udp, usize::from(UDP_BYTES_MAX)), (Way::Tcp, usize::from(u16::MAX))] {
            let Some(reply) = w.zone.answer(w.registry.snapshot(), bytes, way, &mut chance) else { continue };
            assert!(reply.bytes.len() <= most && reply.bytes[..2] == bytes[..2] && reply.bytes[2] & 0x80 != 0);
            assert!(Message::from_vec(&reply.bytes).is_ok(), "{bytes:x?}");
        }
        let _ = Zone::slip(bytes);
    };
    runner
        .run(&(mutated, any), |((which, changes, length), any)| {
            check(&any);
            let mut bytes = good[which].clone();
            for (at, value) in changes {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(usize::from(length) % (4 * bytes.len()));
            check(&bytes);
            Ok(())
        })
        .unwrap();
    w.registry.stop();
}
