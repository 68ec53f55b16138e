//! The whole engine on loopback, on io_uring and on epoll: real sockets, real verdicts. Where io_uring is refused the
//! tests say so and go on with epoll alone.

use super::*;
use crate::check::Check;
use crate::health::{Health, Thresholds};
use crate::io::{Family, Mode};
use crate::kernel::Socket;
use crate::outcome::Code;
use crate::probe::tests::{Bench, Setup};
use crate::sim::{Behaviour, World};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU8;
use std::sync::{Condvar, Mutex};

mod batches;
mod worlds;

/// A wake that a test can wait for.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock().expect("no test panics while it holds this") = true;
        self.ring.notify_all();
    }
}

impl Bell {
    /// Waits for the next ring. Panics after a minute: whatever was to happen does not.
    fn wait(&self) {
        let rung = self.rung.lock().expect("no test panics while it holds this");
        let minute = Duration::from_secs(60);
        let (mut rung, late) =
            self.ring.wait_timeout_while(rung, minute, |rung| !*rung).expect("no test panics while it holds this");
        assert!(!late.timed_out(), "nothing happened for a minute");
        *rung = false;
    }
}

/// Runs `claim` on every backend that this kernel gives.
fn on_each_backend(claim: impl Fn(Backend)) {
    for backend in [Backend::Ring, Backend::Epoll] {
        match Engine::start(
            &Options { workers: 1, backend, ..Options::default() },
            Arc::new(Bell::default()),
            |_| vec![],
        ) {
            Ok((engine, _)) => {
                eprintln!("on {}", engine.capabilities());
                drop(engine);
                claim(backend);
            }
            Err(error) if backend == Backend::Ring => eprintln!("not on io_uring: {error}"),
            Err(error) => panic!("epoll must always run: {error}"),
        }
    }
}

/// An engine, and everything it has said.
struct Run {
    engine: Engine,
    feed: Feed,
    bell: Arc<Bell>,
    samples: Vec<Sample>,
    transitions: Vec<Transition>,
}

impl Run {
    fn start(options: Options) -> Run {
        let bell = Arc::new(Bell::default());
        let (engine, feed) =
            Engine::start(&Options { samples_max: 1 << 16, ..options }, bell.clone(), |_| vec![]).expect("an engine");
        Run { engine, feed, bell, samples: Vec::new(), transitions: Vec::new() }
    }

    fn add(&self, target: Target) -> TargetId {
        self.engine.probes().add(target).expect("room for a few")
    }

    /// Reads until `enough`.
    fn until(&mut self, enough: impl Fn(&Run) -> bool) {
        loop {
            self.feed.transitions(&mut self.transitions);
            self.feed.samples(&mut self.samples);
            if enough(self) {
                return;
            }
            self.bell.wait();
        }
    }

    fn last_samples(&self) -> usize {
        self.samples.iter().filter(|sample| sample.last).count()
    }
}

/// For whom an answer is expected: long enough for any machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);
/// For whom none is: a prober that stalls for half of this says LATE.
const IMPATIENCE: Duration = Duration::from_secs(1);

fn target(key: u64, address: SocketAddr, mode: Mode, count: u32) -> Target {
    let two = NonZeroU8::new(2).expect("2 is not 0");
    Target {
        address,
        check: Check::Tcp(mode),
        policy: Policy {
            interval: Duration::from_millis(100),
            timeout: PATIENCE,
            thresholds: Thresholds { rise: two, fall: two },
            ..Policy::DEFAULT
        }
        .into(),
        initial: Health::Up,
        count: Some(count),
        key,
        group: 0,
    }
}

/// An address that no other test listens on, with a port of the kernel's choice: in 127.0.0.0/8 each call has its own.
fn own_address(family: Family) -> SocketAddr {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let (process, call) = (std::process::id() as u8, CALLS.fetch_add(1, Ordering::Relaxed));
    match family {
        Family::V4 => ([127, 99, process, 1 + (call % 250) as u8], 0).into(),
        Family::V6 => ([0, 0, 0, 0, 0, 0, 0, 1], 0).into(),
    }
}

fn listen(family: Family) -> TcpListener {
    let listener = TcpListener::bind(own_address(family)).expect("a loopback address");
    listener.set_nonblocking(true).expect("a listener");
    listener
}

fn families() -> Vec<Family> {
    if TcpListener::bind("[::1]:0").is_ok() {
        return vec![Family::V4, Family::V6];
    }
    eprintln!("not on IPv6: this machine has no ::1");
    vec![Family::V4]
}

/// A port that answers nothing: its accept queue of one is full, and Linux then drops every SYN.
struct BlackHole {
    listener: Socket,
    _filler: TcpStream,
}

impl BlackHole {
    fn new(family: Family) -> BlackHole {
        let listener = Socket::listen(&own_address(family), 0).expect("a loopback address");
        let filler = TcpStream::connect(listener.local_addr().expect("bound")).expect("room for one");
        BlackHole { listener, _filler: filler }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }
}

/// A port that refuses, and that nobody can come to listen on meanwhile: the server's end of a connection holds it.
/// In 127.0.0.0/8 its address is not the probes' own, or one in 28,000 would draw the port itself and meet itself
/// (TCP's simultaneous open).
struct Closed {
    held: TcpStream,
    _peer: TcpStream,
}

impl Closed {
    fn new(family: Family) -> Closed {
        let listener = TcpListener::bind(own_address(family)).expect("a loopback address");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("a listener of ours");
        Closed { held: listener.accept().expect("a connection of ours").0, _peer: peer }
    }

    fn address(&self) -> SocketAddr {
        self.held.local_addr().expect("connected")
    }
}

/// Sockets in TIME_WAIT on this machine whose peer has the port of `to` (proc(5), /proc/net/tcp: state 06). Some may be
/// there from an earlier life of the port.
fn time_waits(to: SocketAddr) -> BTreeSet<String> {
    let file = if to.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let port = format!(":{:04X}", to.port());
    let pair_if_ours = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().take(4).collect();
        let ours = fields.len() == 4 && fields[2].ends_with(&port) && fields[3] == "06";
        ours.then(|| format!("{} {}", fields[1], fields[2]))
    };
    std::fs::read_to_string(file).expect("procfs").lines().filter_map(pair_if_ours).collect()
}

/// Runs `attempt` until it says that the prober was not disturbed: on a machine that is busy with other tests a worker
/// may lose the CPU for longer than a promise about time allows.
fn undisturbed(attempt: impl Fn() -> bool) {
    let calm = (0..10).any(|_| {
        attempt() || {
            eprintln!("the worker was disturbed; again");
            false
        }
    });
    assert!(calm, "this machine is too busy for promises about time");
}

/// What was said of each key: its probes' codes and its changes of health.
type Verdicts = BTreeMap<u64, (Vec<Code>, Vec<(Health, Health, Code, u8)>)>;

fn verdicts<'a>(
    samples: impl Iterator<Item = &'a Sample>,
    transitions: impl Iterator<Item = &'a Transition>,
) -> Verdicts {
    let mut verdicts = Verdicts::new();
    samples.for_each(|sample| verdicts.entry(sample.key).or_default().0.push(sample.code));
    for change in transitions {
        verdicts.entry(change.key).or_default().1.push((change.from, change.to, change.code, change.streak));
    }
    verdicts
}

/// One world of open, closed and black-holed ports, in every mode and family, gets the same verdicts from io_uring,
/// from epoll and from the simulator, and they are the right ones.
#[test]
fn every_kernel_gives_the_same_verdicts() {
    let families = families();
    let open: Vec<_> = families.iter().map(|family| listen(*family)).collect();
    let holes: Vec<_> = families.iter().map(|family| BlackHole::new(*family)).collect();
    let closed: Vec<_> = families.iter().map(|family| Closed::new(*family)).collect();
    let mut world = World::default();
    let (mut targets, mut expected) = (Vec::new(), Verdicts::new());
    let mut add = |address: SocketAddr, behaviour: Behaviour, code: Code| {
        world.set(address, behaviour);
        for mode in [Mode::HalfOpen, Mode::Full, Mode::Graceful] {
            let key = targets.len() as u64;
            let mut target = target(key, address, mode, 3);
            if code == Code::L4Timeout {
                Arc::make_mut(&mut target.policy).timeout = IMPATIENCE;
            }
            targets.push(target);
            let change = if code.is_up() { vec![] } else { vec![(Health::Up, Health::Down, code, 2)] };
            expected.insert(key, (vec![code; 3], change));
        }
    };
    for number in 0..families.len() {
        add(open[number].local_addr().expect("bound"), Behaviour::Open(10..500), Code::L4Ok);
        add(closed[number].address(), Behaviour::Closed(10..500), Code::L4Refused);
        add(holes[number].address(), Behaviour::BlackHole, Code::L4Timeout);
    }
    let mut bench = Bench::new(1, Setup { world, ..Setup::default() });
    targets.iter().for_each(|target| {
        bench.add(target.clone());
    });
    bench.run_for(Duration::from_secs(10));
    assert_eq!(verdicts(bench.samples.iter(), bench.transitions.iter().map(|(_, change)| change)), expected);
    let attempt = |backend| {
        let mut run = Run::start(Options { backend, workers: 2, ..Options::default() });
        targets.iter().for_each(|target| {
            run.add(target.clone());
        });
        run.until(|run| run.last_samples() == targets.len());
        run.engine.stop();
        let counters = run.engine.stats().total.counters;
        if counters.outcome(Code::Late) > 0 {
            return false;
        }
        assert_eq!(verdicts(run.samples.iter(), run.transitions.iter()), expected, "{backend:?}");
        assert_eq!((counters.started, counters.finished()), (3 * targets.len() as u64, 3 * targets.len() as u64));
        assert_eq!((counters.in_flight, counters.completions_stale, counters.samples_dropped), (0, 0, 0));
        true
    };
    on_each_backend(|backend| undisturbed(|| attempt(backend)));
}

/// What the server's application sees of a probe is what its mode promises, and no half-open or full probe leaves a
/// TIME_WAIT behind.
#[test]
fn the_server_sees_what_the_mode_promises() {
    on_each_backend(|backend| {
        for family in families() {
            for mode in [Mode::HalfOpen, Mode::Full, Mode::Graceful] {
                undisturbed(|| server_sees_what_is_promised(backend, family, mode));
            }
        }
    });
}

/// Returns whether the prober was awake enough for its promise: after 200 ms Linux sends the ACK that a half-open
/// probe holds back (TCP_DELACK_MAX).
fn server_sees_what_is_promised(backend: Backend, family: Family, mode: Mode) -> bool {
    let listener = listen(family);
    let address = listener.local_addr().expect("bound");
    let before = time_waits(address);
    let mut run = Run::start(Options { backend, workers: 1, ..Options::default() });
    (0..20).for_each(|key| {
        run.add(target(key, address, mode, 2));
    });
    run.until(|run| run.last_samples() == 20);
    assert!(run.samples.iter().all(|sample| sample.code == Code::L4Ok), "{:?}", run.samples);
    run.engine.stop();
    if run.engine.stats().total.rtt.max() > 100_000 {
        return false;
    }
    let mut accepted = 0;
    while let Ok((mut stream, _)) = listener.accept() {
        accepted += 1;
        stream.set_nonblocking(false).expect("a stream");
        let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        let promised = if mode == Mode::Graceful { Ok(0) } else { Err(ErrorKind::ConnectionReset) };
        assert_eq!(end, promised, "{backend:?} {mode:?}");
    }
    assert_eq!(accepted, if mode == Mode::HalfOpen { 0 } else { 40 }, "{backend:?} {mode:?} {family:?}");
    if mode != Mode::Graceful {
        let left: Vec<_> = time_waits(address).difference(&before).cloned().collect();
        assert!(left.is_empty(), "{backend:?} {mode:?} {family:?}: {left:?}");
    }
    true
}

/// A target that dies and comes back is told so both times, with the streak that decided.
#[test]
fn death_and_return_are_told() {
    on_each_backend(|backend| {
        let listener = listen(Family::V4);
        let address = listener.local_addr().expect("bound");
        let mut run = Run::start(Options { backend, workers: 1, ..Options::default() });
        let id = run.add(Target { count: None, initial: Health::Unknown, ..target(9, address, Mode::HalfOpen, 1) });
        run.until(|run| run.transitions.len() == 1);
        drop(listener);
        run.until(|run| run.transitions.len() == 2);
        let listener = TcpListener::bind(address).expect("the port is still ours: half-open leaves nothing behind");
        run.until(|run| run.transitions.len() == 3);
        let told: Vec<_> = run
            .transitions
            .iter()
            .map(|change| (change.id, change.key, change.to, change.code, change.streak))
            .collect();
        assert_eq!(
            told,
            [
                (id, 9, Health::Up, Code::L4Ok, 1),
                (id, 9, Health::Down, Code::L4Refused, 2),
                (id, 9, Health::Up, Code::L4Ok, 2),
            ]
        );
        drop(listener);
    });
}

/// Stopping does not wait for what will never answer, and the numbers stay: each probe is finished or abandoned.
#[test]
fn a_stop_abandons_what_is_in_flight() {
    on_each_backend(|backend| {
        let hole = BlackHole::new(Family::V4);
        let mut run = Run::start(Options { backend, workers: 2, in_flight_max: 8, ..Options::default() });
        let mut patient = target(0, hole.address(), Mode::HalfOpen, 5);
        Arc::make_mut(&mut patient.policy).timeout = crate::target::TIMEOUT_MAX;
        for key in 0..40 {
            run.add(Target { key, ..patient.clone() });
        }
        let mut in_flight = 0;
        while in_flight < 16 {
            std::thread::yield_now();
            let counters = run.engine.stats().total.counters;
            assert!(counters.in_flight <= 16, "at most 8 on each of 2 workers");
            in_flight = counters.in_flight;
        }
        run.engine.stop();
        let counters = run.engine.stats().total.counters;
        assert_eq!((counters.started, counters.abandoned, counters.in_flight, counters.finished()), (16, 16, 0, 0));
    });
}

/// Samples that nobody reads are dropped and counted; transitions are not, though there are more than their mailbox
/// holds.
#[test]
fn nothing_that_matters_is_lost_unread() {
    let bell = Arc::new(Bell::default());
    let options = Options { workers: 2, samples_max: 10, ..Options::default() };
    let (engine, mut feed) = Engine::start(&options, bell.clone(), |_| vec![]).expect("an engine");
    let (probes, count) = (engine.probes(), TRANSITIONS_MAX + 2000);
    let closed = Closed::new(Family::V4);
    let address = closed.address();
    for key in 0..count as u64 {
        let mut target = target(key, address, Mode::HalfOpen, 2);
        while let Err(Full(back)) = probes.add(target) {
            target = back;
            std::thread::yield_now();
        }
    }
    let minute = Instant::now() + Duration::from_secs(60);
    while engine.stats().total.counters.transitions < count as u64 {
        assert!(Instant::now() < minute, "{:?}", engine.stats().total.counters);
        std::thread::yield_now();
    }
    let mut transitions = Vec::new();
    while transitions.len() < count {
        feed.transitions(&mut transitions);
        if transitions.len() < count {
            bell.wait();
        }
    }
    let mut keys: Vec<_> = transitions.iter().map(|change| change.key).collect();
    keys.sort_unstable();
    assert!(keys.into_iter().eq(0..count as u64), "each once");
    let counters = engine.stats().total.counters;
    assert_eq!(counters.samples_dropped, counters.finished() - 10);
}

/// Targets are shared out evenly, and removed ones are gone.
#[test]
fn targets_are_shared_out_and_removed() {
    let options = Options { workers: 3, ..Options::default() };
    let (engine, _feed) = Engine::start(&options, Arc::new(Bell::default()), |_| vec![]).expect("an engine");
    let probes = engine.probes();
    let closed = Closed::new(Family::V4);
    let address = closed.address();
    let ids: Vec<_> =
        (0..30).map(|key| probes.add(target(key, address, Mode::HalfOpen, 1)).expect("room for a few")).collect();
    let on = |stats: &Stats| stats.workers.iter().map(|worker| worker.counters.targets).collect::<Vec<_>>();
    // A worker that has not had a turn for half a second answers with what it said before.
    let settled = |want: [u64; 3]| {
        let deadline = Instant::now() + PATIENCE;
        std::iter::repeat_with(|| on(&engine.stats())).find(|now| *now == want || Instant::now() > deadline)
    };
    assert_eq!(settled([10; 3]), Some(vec![10; 3]));
    for id in &ids {
        probes.remove(*id).expect("room for a few");
        probes.remove(*id).expect("room for a few");
        probes.update(*id, Policy::DEFAULT.into()).expect("room for a few");
    }
    assert_eq!(settled([0; 3]), Some(vec![0; 3]));
}

/// The default number of probes in flight follows the limit on open files, and leaves a quarter of it alone.
#[test]
fn in_flight_follows_the_limit_on_files() {
    let table =
        [(20_000, 2, 7_500), (1024, 1, 768), (1024, 64, 64), (1 << 20, 2, IN_FLIGHT_MAX), (u64::MAX, 1, IN_FLIGHT_MAX)];
    for (files, workers, each) in table {
        assert_eq!(in_flight_of(files, workers), each, "{files} files, {workers} workers");
    }
}

/// A conversation on real sockets: it is answered, its phases are in order, and what the kernel measured is no more than
/// the connection took. A check is changed while it runs, and a probe made at once.
#[test]
fn conversations_and_orders_on_real_sockets() {
    use crate::check::Expect;
    use crate::probe::pattern::Pattern;
    use std::io::Write;
    on_each_backend(|backend| {
        let listener = TcpListener::bind(own_address(Family::V4)).expect("a loopback address");
        let address = listener.local_addr().expect("bound");
        let server = std::thread::spawn(move || {
            let mut conversations = 0;
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut heard = [0; 5];
                match stream.read_exact(&mut heard) {
                    Ok(()) if &heard == b"hello" => stream.write_all(b"world").expect("the prober listens"),
                    Ok(()) => return conversations,
                    Err(_) => continue,
                }
                conversations += 1;
            }
            unreachable!("a listener never ends")
        });
        let pattern = Pattern::bytes(b"world").expect("short");
        let hello = Arc::new(Expect::new(b"hello".to_vec(), Some(pattern)).expect("short"));
        let mut run = Run::start(Options { backend, workers: 1, groups: vec!["a".into()], ..Options::default() });
        let id = run.add(Target {
            check: Check::Expect(hello),
            initial: Health::Unknown,
            count: None,
            group: 1,
            ..target(3, address, Mode::Full, 1)
        });
        run.until(|run| run.samples.len() >= 20);
        for sample in &run.samples {
            let (phases, us) = (sample.phases, sample.rtt_ns / 1000);
            assert_eq!((sample.code, sample.errno, sample.health), (Code::L7Ok, 0, Health::Up), "{backend:?}");
            assert!(phases.connect_us > 0 && phases.connect_us <= phases.first_byte_us, "{phases:?}");
            assert!(u64::from(phases.first_byte_us) <= us.max(1), "{phases:?} {us}");
            assert!(sample.kernel_rtt_us <= phases.connect_us, "{sample:?}");
        }
        assert!(run.samples.iter().any(|sample| sample.kernel_rtt_us > 0), "one in sixteen asks the kernel");
        let before = run.samples.len();
        run.engine.probes().recheck(id, Check::Tcp(Mode::HalfOpen)).expect("room for one");
        run.until(|run| run.samples[before..].iter().any(|sample| sample.code == Code::L4Ok));
        run.engine
            .probes()
            .update(id, Arc::new(Policy { interval: Duration::from_secs(3600), ..Policy::DEFAULT }))
            .expect("room");
        run.engine.stats();
        run.feed.samples(&mut run.samples);
        let before = run.samples.len();
        run.engine.probes().probe_now(id).expect("room for one");
        run.until(|run| run.samples.len() > before);
        run.engine.stop();
        let total = run.engine.stats().total;
        let group = total.groups[0].as_deref().expect("counted in");
        assert_eq!(group.finished(), total.counters.finished());
        assert_eq!(group.outcome(Code::L7Ok), total.first_byte.len());
        TcpStream::connect(address).and_then(|mut last| last.write_all(b"enough")).expect("the server still runs");
        let (answered, heard) = (server.join().expect("the server is well"), total.counters.outcome(Code::L7Ok));
        assert!((heard..=heard + total.counters.abandoned).contains(&answered), "{answered} {heard}");
    });
}
