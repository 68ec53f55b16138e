//! The same verdicts for the same world: one list of hosts, and what is to be found there, is probed in the simulator and
//! by the engine on real sockets, on every tier of this kernel. A host that talks is the same code in both: see
//! [`Host`]; only what carries its bytes differs.

use super::*;
use crate::check::{Expect, HttpCheck, MysqlCheck, TlsCheck, UdpCheck};
use crate::kernel::{TIER_VARIABLE, Tier};
use crate::probe::http::HttpSettings;
use crate::probe::mysql::Secret;
use crate::probe::pattern::Pattern;
use crate::probe::tls::{TlsSettings, Trust};
use crate::sim::{Cut, Host, Script, Speech};
use std::process::Command as Process;

mod serve;
mod tls;

use serve::{Datagrams, Streams};

/// Answers at once; and after the timeout of those for whom no answer is expected.
const NOW: Duration = Duration::ZERO;
const LATE: Duration = Duration::from_millis(1600);

/// What stands behind a target's address.
enum Door {
    /// A port that accepts and says nothing.
    Open(TcpListener),
    Closed(Closed),
    Hole(BlackHole),
    Streams(Streams),
    Datagrams(Datagrams),
    /// A UDP port of nobody.
    Nobody(SocketAddr),
}

/// What is said of one target: its probes' codes, and its changes of health.
type Said = (Vec<Code>, Vec<(Health, Health, Code, u8)>);

/// One target, and what is to be found.
struct Case {
    name: &'static str,
    check: Check,
    door: Door,
    behaviour: Behaviour,
    code: Code,
}

/// Hosts that talk, on streams.
fn streams(name: &'static str, check: Check, cut: Cut, host: impl Host + 'static, code: Code) -> Case {
    let host: Arc<dyn Host> = Arc::new(host);
    let door = Door::Streams(Streams::serve(host.clone(), cut));
    let behaviour = Behaviour::Speaks(Speech { rtt_us: 20..500, host, cut, loss: 0.0, twice: 0.0 });
    Case { name, check, door, behaviour, code }
}

fn datagrams(name: &'static str, check: Check, host: impl Host + 'static, code: Code) -> Case {
    let host: Arc<dyn Host> = Arc::new(host);
    let door = Door::Datagrams(Datagrams::serve(host.clone()));
    let behaviour = Behaviour::Speaks(Speech { rtt_us: 20..500, host, cut: Cut::Whole, loss: 0.0, twice: 0.0 });
    Case { name, check, door, behaviour, code }
}

fn knocks() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in families() {
        for mode in [Mode::HalfOpen, Mode::Full, Mode::Graceful] {
            let mut add = |name, door, behaviour, code| {
                cases.push(Case { name, check: Check::Tcp(mode), door, behaviour, code });
            };
            let (rtt, closed, hole) = (20..500, Closed::new(family), BlackHole::new(family));
            add("open", Door::Open(listen(family)), Behaviour::Open(rtt.clone()), Code::L4Ok);
            add("closed", Door::Closed(closed), Behaviour::Closed(rtt), Code::L4Refused);
            add("black hole", Door::Hole(hole), Behaviour::BlackHole, Code::L4Timeout);
        }
    }
    cases
}

fn expects() -> Vec<Case> {
    let pong = || Some(Pattern::bytes(b"+PONG").expect("a word"));
    let check = || Check::Expect(Arc::new(Expect::new(b"PING\r\n".to_vec(), pong()).expect("a question")));
    let polite = Expect::new(b"PING\r\n".to_vec(), pong()).and_then(|check| check.leaving_with(b"QUIT\r\n".to_vec()));
    let banner = Expect::new(Vec::new(), Some(Pattern::bytes(b"220 ").expect("a word"))).expect("a banner");
    let asked = || Script::new().wants(*b"PING\r\n");
    let mut cases = vec![
        streams("expect: answers", check(), Cut::Whole, asked().says(NOW, *b"+PONG\r\n"), Code::L7Ok),
        streams("expect: byte by byte", check(), Cut::Pieces(1, 0), asked().says(NOW, *b"+PONG\r\n"), Code::L7Ok),
        streams("expect: answers otherwise", check(), Cut::Whole, asked().says(NOW, *b"-NOAUTH\r\n"), Code::L7Content),
        streams("expect: says nothing", check(), Cut::Whole, asked(), Code::L7Timeout),
        streams("expect: answers late", check(), Cut::Whole, asked().says(LATE, *b"+PONG\r\n"), Code::L7Timeout),
        streams("expect: closes", check(), Cut::Whole, asked().says(NOW, *b"+PO").closes(NOW), Code::L7Response),
        streams("expect: resets", check(), Cut::Whole, asked().resets(NOW), Code::L7Response),
    ];
    let leaves = asked().says(NOW, *b"+PONG\r\n").wants(*b"QUIT\r\n").says(NOW, *b"+OK\r\n").closes(NOW);
    let polite = Check::Expect(Arc::new(polite.expect("a polite question")));
    cases.push(streams("expect: says goodbye", polite, Cut::Whole, leaves, Code::L7Ok));
    let greets = Script::new().says(NOW, *b"220 here\r\n");
    cases.push(streams("expect: greets", Check::Expect(Arc::new(banner)), Cut::Pieces(3, 0), greets, Code::L7Ok));
    for family in families() {
        let closed = Closed::new(family);
        let (door, behaviour) = (Door::Closed(closed), Behaviour::Closed(20..500));
        cases.push(Case { name: "expect: closed", check: check(), door, behaviour, code: Code::L4Refused });
        let (door, behaviour) = (Door::Hole(BlackHole::new(family)), Behaviour::BlackHole);
        cases.push(Case { name: "expect: black hole", check: check(), door, behaviour, code: Code::L4Timeout });
    }
    cases
}

fn https() -> Vec<Case> {
    let check = || Check::Http(Arc::new(HttpCheck::default()));
    let asked = || Script::new().until(*b"\r\n\r\n");
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec();
    let bad = b"HTTP/1.1 500 Oh no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
    let half = b"HTTP/1.1 200 OK\r\nContent-Le".to_vec();
    let inside = tls::TlsHost::new(true, asked().says(NOW, ok.clone()));
    let settings =
        TlsSettings { name: Some(tls::NAME.into()), trust: Trust::CaPem(inside.ca_pem()), ..TlsSettings::default() };
    let secure = HttpCheck::new(HttpSettings { tls: Some(settings), ..HttpSettings::default() });
    let secure = Check::Http(Arc::new(secure.expect("a check")));
    vec![
        streams("http: 200", check(), Cut::Whole, asked().says(NOW, ok.clone()).closes(NOW), Code::L7Ok),
        streams("http: byte by byte", check(), Cut::Pieces(1, 0), asked().says(NOW, ok.clone()), Code::L7Ok),
        streams("http: chunked", check(), Cut::Pieces(9, 0), asked().says(NOW, chunked), Code::L7Ok),
        streams("http: 500", check(), Cut::Whole, asked().says(NOW, bad).closes(NOW), Code::L7Status),
        streams("http: slow", check(), Cut::Whole, asked().says(LATE, ok), Code::L7Timeout),
        streams("http: garbage", check(), Cut::Whole, Script::new().says(NOW, *b"SSH-2.0-x\r\n"), Code::L7Response),
        streams("http: breaks off", check(), Cut::Whole, asked().says(NOW, half.clone()).closes(NOW), Code::L7Response),
        streams("http: resets", check(), Cut::Whole, asked().says(NOW, half).resets(NOW), Code::L7Response),
        streams("https: 200", secure, Cut::Pieces(100, 0), inside, Code::L7Ok),
    ]
}

fn handshakes() -> Vec<Case> {
    let good = tls::TlsHost::new(true, Script::new());
    let expired = tls::TlsHost::new(false, Script::new());
    let check = |host: &tls::TlsHost| {
        let settings =
            TlsSettings { name: Some(tls::NAME.into()), trust: Trust::CaPem(host.ca_pem()), ..TlsSettings::default() };
        Check::Tls(Arc::new(TlsCheck::new(settings).expect("a check")))
    };
    let (trusting, doomed) = (check(&good), check(&expired));
    let garbage = Script::new().expects(1).says(NOW, *b"HTTP/1.1 400 Bad Request\r\n\r\n").closes(NOW);
    vec![
        streams("tls: not tls", trusting.clone(), Cut::Whole, garbage, Code::L6Response),
        streams("tls: silent", trusting.clone(), Cut::Whole, Script::new(), Code::L6Timeout),
        streams("tls: expired", doomed, Cut::Whole, expired, Code::L6Certificate),
        streams("tls: good", trusting, Cut::Whole, good, Code::L6Ok),
    ]
}

fn databases() -> Vec<Case> {
    let check = || Check::Mysql(Arc::new(MysqlCheck::new("watcher", Secret::new("")).expect("a check")));
    let error = |number: u16, text: &str| {
        let payload = [&[0xff][..], &number.to_le_bytes(), text.as_bytes()].concat();
        [&[payload.len() as u8, 0, 0, 0][..], &payload].concat()
    };
    let (full, blocked) = (error(1040, "Too many connections"), error(1129, "Host is blocked"));
    vec![
        streams("mysql: full", check(), Cut::Whole, Script::new().says(NOW, full).closes(NOW), Code::L7Status),
        streams(
            "mysql: blocked",
            check(),
            Cut::Pieces(2, 0),
            Script::new().says(NOW, blocked).closes(NOW),
            Code::L7Status,
        ),
        streams("mysql: silent", check(), Cut::Whole, Script::new(), Code::L7Timeout),
        streams("mysql: closes", check(), Cut::Whole, Script::new().closes(NOW), Code::L7Response),
    ]
}

fn udps() -> Vec<Case> {
    let check = || {
        let expect = Some(Pattern::bytes(b"pong").expect("a word"));
        Check::Udp(Arc::new(UdpCheck::new(b"ping".to_vec(), expect, false).expect("a question")))
    };
    let asked = || Script::new().wants(*b"ping");
    let nobody = Door::Nobody(serve::nobody());
    let (name, behaviour, code) = ("udp: closed", Behaviour::Closed(20..500), Code::L4Refused);
    vec![
        datagrams("udp: answers", check(), asked().says(NOW, *b"pong"), Code::L7Ok),
        datagrams("udp: says nothing", check(), asked(), Code::L7Timeout),
        datagrams("udp: answers otherwise", check(), asked().says(NOW, *b"pang"), Code::L7Content),
        Case { name, check: check(), door: nobody, behaviour, code },
    ]
}

impl Case {
    fn address(&self) -> SocketAddr {
        match &self.door {
            Door::Open(listener) => listener.local_addr().expect("bound"),
            Door::Closed(closed) => closed.address(),
            Door::Hole(hole) => hole.address(),
            Door::Streams(streams) => streams.address,
            Door::Datagrams(datagrams) => datagrams.address,
            Door::Nobody(address) => *address,
        }
    }

    fn target(&self, key: u64) -> Target {
        let mut target = Target { check: self.check.clone(), ..target(key, self.address(), Mode::Full, 2) };
        if matches!(self.code, Code::L4Timeout | Code::L6Timeout | Code::L7Timeout | Code::L7Content) {
            Arc::make_mut(&mut target.policy).timeout = IMPATIENCE;
        }
        target
    }

    fn verdict(&self) -> Said {
        let change = (!self.code.is_up()).then_some((Health::Up, Health::Down, self.code, 2));
        (vec![self.code; 2], change.into_iter().collect())
    }
}

/// The world, and what is to be found in it.
struct Everything {
    cases: Vec<Case>,
    expected: Verdicts,
}

impl Everything {
    fn new() -> Everything {
        let cases: Vec<_> =
            [knocks(), expects(), https(), handshakes(), databases(), udps()].into_iter().flatten().collect();
        let expected = (0..).zip(cases.iter().map(Case::verdict)).collect();
        Everything { cases, expected }
    }

    fn targets(&self) -> impl Iterator<Item = Target> {
        (0..).zip(&self.cases).map(|(key, case)| case.target(key))
    }

    /// What was said is what was to be found, host by host.
    fn compare(&self, on: &str, found: &Verdicts) {
        for (key, case) in (0..).zip(&self.cases) {
            assert_eq!(
                found.get(&key),
                self.expected.get(&key),
                "{on}: {}, {:?} {}",
                case.name,
                case.check,
                case.address()
            );
        }
    }
}

/// Probes this world on the best `Io` that the kernel and the environment give, and in the simulator: the verdicts are
/// the expected ones in both.
#[test]
fn this_tier_gives_the_same_verdicts() {
    let world = Everything::new();
    for seed in 0..8 {
        let mut hosts = World::default();
        world.cases.iter().for_each(|case| hosts.set(case.address(), case.behaviour.clone()));
        let mut bench = Bench::new(seed, Setup { world: hosts, ..Setup::default() });
        for target in world.targets() {
            bench.add(target);
        }
        bench.run_for(Duration::from_secs(10));
        let found = verdicts(bench.samples.iter(), bench.transitions.iter().map(|(_, change)| change));
        world.compare(&format!("simulator, seed {seed}"), &found);
    }
    undisturbed(|| {
        let mut run = Run::start(Options { workers: 1, ..Options::default() });
        let on = run.engine.capabilities().to_string();
        println!("\nprobed on {on}");
        for target in world.targets() {
            run.add(target);
        }
        run.until(|run| run.last_samples() == world.cases.len());
        run.engine.stop();
        let counters = run.engine.stats().total.counters;
        if counters.outcome(Code::Late) > 0 {
            return false;
        }
        world.compare(&on, &verdicts(run.samples.iter(), run.transitions.iter()));
        assert_eq!((counters.in_flight, counters.completions_stale, counters.samples_dropped), (0, 0, 0));
        true
    });
}

/// Every tier gives them: each in a process of its own, which the environment holds at that tier.
#[test]
fn every_tier_gives_the_same_verdicts() {
    let this = std::env::current_exe().expect("the test's own program");
    for tier in Tier::ALL {
        let name = "engine::tests::worlds::this_tier_gives_the_same_verdicts";
        let mut child = Process::new(&this);
        child.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(TIER_VARIABLE, tier.as_str());
        let output = child.output().expect("a process");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "held at {tier}:\n{text}");
        let on = text.lines().find(|line| line.starts_with("probed on ")).expect("the child says what it got");
        println!("held at {tier}: {on}");
    }
}
