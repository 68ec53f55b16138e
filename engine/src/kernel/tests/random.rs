use super::*;
use std::collections::HashSet;

/// Turns of one run.
const TURNS: u32 = 150;

/// Whatever is submitted, cancelled and waited for, in any order: every operation ends exactly once, nothing ends that
/// was not asked for, and afterwards everything still works. Random operations against the set of those in flight.
/// SIM_SEED=... replays a run.
#[test]
fn every_operation_ends_once() {
    let given = std::env::var("SIM_SEED").ok().map(|s| s.parse::<u64>().expect("SIM_SEED is a number"));
    for seed in given.map_or(0..4, |seed| seed..seed + 1) {
        on_every_io(|rig| {
            eprintln!("SIM_SEED={seed}");
            run(rig, fastrand::Rng::with_seed(seed));
        });
    }
}

/// The pieces that operations are made on.
struct Scene {
    lanes: Vec<Lane>,
    pairs: Vec<(Socket, TcpStream)>,
    targets: [SocketAddr; 3],
    in_flight: HashSet<Token>,
    generation: u32,
}

fn run(rig: &mut Rig, mut rng: fastrand::Rng) {
    let ((_open, open_at), (_closed, closed_at), (_hole, hole_at)) = (open_target(), closed_target(), black_hole());
    let (listener, listener_at) = open_target();
    let mut lanes = rig.lanes(Mode::HalfOpen, 20);
    lanes.extend(rig.lanes(Mode::Full, 5));
    lanes.extend(rig.lanes(Mode::Graceful, 5));
    let call = |_| {
        let far = TcpStream::connect(listener_at).expect("it listens");
        (Socket::from_owned(listener.accept().expect("it called").0.into()), far)
    };
    let pairs: Vec<_> = (0..10).map(call).collect();
    for (near, _) in &pairs {
        super::super::socket::set_nonblocking(near.raw(), true).expect("a flag");
    }
    let targets = [open_at, closed_at, hole_at];
    let mut scene = Scene { lanes, pairs, targets, in_flight: HashSet::new(), generation: 0 };
    let mut completions = Vec::new();
    for _ in 0..TURNS {
        for _ in 0..rng.u32(0..40) {
            scene.step(rig, &mut rng);
        }
        let until = match rng.u32(0..3) {
            0 => Instant::ZERO,
            1 => rig.io.now() + Duration::from_micros(rng.u64(0..300)),
            _ if scene.in_flight.is_empty() => Instant::ZERO,
            _ => rig.io.now() + Duration::from_millis(1),
        };
        rig.io.wait(Some(until), &mut completions);
        scene.take(&mut completions, rig.tier);
    }
    for token in scene.in_flight.clone() {
        rig.io.cancel(token);
    }
    let deadline = rig.io.now() + FAR;
    while !scene.in_flight.is_empty() {
        assert!(rig.io.now() < deadline, "never ended on {}: {:?}", rig.tier, scene.in_flight);
        rig.io.wait(Some(deadline), &mut completions);
        scene.take(&mut completions, rig.tier);
    }
    rig.is_quiet();
    for lane in &scene.lanes {
        rig.knock(*lane, open_at);
    }
    assert!(knocked(rig.wait_for(scene.lanes.len())).values().all(Result::is_ok), "on {}", rig.tier);
}

impl Scene {
    /// The token in flight for this place, if there is one.
    fn busy(&self, op: u8, index: u32) -> Option<Token> {
        self.in_flight.iter().copied().find(|t| t.op() == op && t.index() == index)
    }

    fn step(&mut self, rig: &mut Rig, rng: &mut fastrand::Rng) {
        let lane = self.lanes[rng.usize(..self.lanes.len())];
        let pair = rng.usize(..self.pairs.len());
        let (near, far) = &self.pairs[pair];
        self.generation += 1;
        let (op, index, what) = match rng.u32(0..10) {
            0..5 => (KNOCK, lane.0, Op::Knock { lane, to: self.targets[rng.usize(..3)], look: false }),
            5 => (READ, pair as u32, Op::Poll { fd: near.fd(), interest: Interest::Read }),
            6 => (WRITE, pair as u32, Op::Poll { fd: near.fd(), interest: Interest::Write }),
            7 => {
                std::io::Write::write_all(&mut &*far, b"x").expect("room for a byte");
                return;
            }
            8 => {
                // Never 0: the far end is open.
                let _ = near.recv(&mut [0; 64]);
                return;
            }
            _ => {
                let all: Vec<_> = self.in_flight.iter().copied().collect();
                if let Some(token) = rng.choice(all) {
                    rig.io.cancel(token);
                }
                return;
            }
        };
        match self.busy(op, index) {
            Some(token) => {
                if rng.bool() {
                    rig.io.cancel(token);
                }
            }
            None => {
                let token = Token::new(1, op, self.generation, index);
                self.in_flight.insert(token);
                rig.io.submit(token, what);
            }
        }
    }

    fn take(&mut self, completions: &mut Vec<Completion>, tier: Tier) {
        for Completion { token, event } in completions.drain(..) {
            assert!(self.in_flight.remove(&token), "{token:?} ended, but was not in flight, on {tier}");
            match (token.op(), event) {
                (KNOCK, Event::Knocked(Ok(()))) | (READ | WRITE, Event::Ready) => {}
                (KNOCK, Event::Knocked(Err(Errno(errno)))) => {
                    let known = [libc::ECONNREFUSED, libc::ECONNRESET, libc::ECANCELED];
                    assert!(known.contains(&errno), "{} on {tier}", Errno(errno));
                }
                (_, event) => panic!("{token:?} ended as {event:?} on {tier}"),
            }
        }
    }
}
