//! Two muxes and a link with a rate, a length and losses, in virtual time: how soon a long link is full, what a small
//! stream waits beside bulk, and what a receiver that stalls or crawls costs the others.
//!
//! ```text
//! sources ─▶ mux ─▶ socket (holds `unsent_max`) ─▶ rate ─▶ delay, losses ─▶ mux ─▶ sinks (each with its own rate)
//! ```
//! A lost piece comes a round trip later, and all that was behind it waits for it: this is what TCP does to a carrier.
//! TCP's own slow start is left out: the question is what the windows add to it.

use super::*;
use crate::credit::WINDOW_BYTES_INITIAL;
use crate::memory::MemoryLimits;

const MS: u64 = 1_000_000;
/// How often the two workers have a turn.
const TURN_NS: u64 = MS / 4;
/// What TCP hands to the reader at a time.
const PIECE_BYTES: u32 = 8 << 10;

#[derive(Clone, Copy, Debug)]
struct Link {
    mbit: u64,
    rtt_ms: u64,
    /// Pieces lost, of a million.
    lost_ppm: u32,
}

impl Link {
    fn bytes_per_s(self) -> u64 {
        self.mbit * 125_000
    }
}

enum Piece {
    Head(Header),
    Bytes(u32),
}

/// One direction of the link.
struct Wire {
    link: Link,
    rng: fastrand::Rng,
    /// When the last byte that was written has left.
    free_at: u64,
    last_arrival: u64,
    coming: VecDeque<(u64, Piece)>,
}

impl Wire {
    fn unsent(&self, now: u64) -> u64 {
        self.free_at.saturating_sub(now) * self.link.bytes_per_s() / 1_000_000_000
    }

    fn push(&mut self, now: u64, bytes: u32, piece: Piece) {
        self.free_at = self.free_at.max(now) + u64::from(bytes) * 1_000_000_000 / self.link.bytes_per_s();
        let lost = self.rng.u32(..1_000_000) < self.link.lost_ppm;
        let late = if lost { self.link.rtt_ms * MS } else { 0 };
        self.last_arrival = self.last_arrival.max(self.free_at + self.link.rtt_ms * MS / 2 + late);
        self.coming.push_back((self.last_arrival, piece));
    }
}

/// One direction of one stream.
#[derive(Clone, Debug)]
struct Flow {
    /// Bytes the source has; `u64::MAX`: for ever.
    has: u64,
    arrived: u64,
    delivered: u64,
    /// What the sink takes in a second.
    sink: u64,
    waiting_most: u64,
}

struct Sim {
    now: u64,
    unsent_max: u64,
    muxes: [Mux<usize>; 2],
    wires: [Wire; 2],
    /// In the middle of which frame each reader stands.
    reading: [Option<(u32, usize)>; 2],
    /// From opener to accepter, and back.
    flows: Vec<[Flow; 2]>,
    ids: Vec<u32>,
}

impl Sim {
    fn new(link: Link, seed: u64) -> Sim {
        let wire = |seed| Wire {
            link,
            rng: fastrand::Rng::with_seed(seed),
            free_at: 0,
            last_arrival: 0,
            coming: VecDeque::new(),
        };
        let mut muxes = [Side::Opener, Side::Accepter].map(|side| Mux::new(side, Limits::default()));
        // What the plane does with a carrier that has been busy for a second.
        let moment = crate::plane::unsent_bytes(link.bytes_per_s());
        muxes.iter_mut().for_each(|mux| mux.set_frame_bytes(moment));
        let mut sim = Sim {
            now: 0,
            unsent_max: moment.into(),
            muxes,
            wires: [wire(seed), wire(seed + 1)],
            reading: [None, None],
            flows: Vec::new(),
            ids: Vec::new(),
        };
        // As when a carrier is up: the round trip is known before there are streams.
        for side in 0..2 {
            sim.muxes[side].ping(Instant::ZERO);
        }
        sim.run(2 * link.rtt_ms * MS + MS);
        sim
    }

    fn open(&mut self, down: u64, sink: u64) -> usize {
        let owner = self.flows.len();
        self.ids.push(self.muxes[0].open(owner, owner as u16).expect("room"));
        let flow = |has, sink| Flow { has, arrived: 0, delivered: 0, sink, waiting_most: 0 };
        self.flows.push([flow(0, u64::MAX), flow(down, sink)]);
        owner
    }

    fn give(&mut self, owner: usize, side: usize, bytes: u64) {
        self.flows[owner][side].has += bytes;
        self.muxes[side].source_ready(self.ids[owner]);
    }

    fn run(&mut self, ns: u64) {
        let until = self.now + ns;
        while self.now < until {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.now += TURN_NS;
        for side in 0..2 {
            while self.wires[side].coming.front().is_some_and(|(at, _)| *at <= self.now) {
                let (_, piece) = self.wires[side].coming.pop_front().expect("looked at");
                self.receive(side, piece);
            }
        }
        for owner in 0..self.flows.len() {
            for side in 0..2 {
                self.deliver(owner, side);
            }
        }
        for side in 0..2 {
            self.transmit(side);
        }
    }

    fn transmit(&mut self, side: usize) {
        while self.wires[side].unsent(self.now) < self.unsent_max {
            match self.muxes[side].next_output() {
                None => return,
                Some(Output::Control(header, _)) => self.wires[side].push(self.now, 16, Piece::Head(header)),
                Some(Output::Data { id, owner, len_max }) => {
                    let flow = &mut self.flows[owner][side];
                    let n = flow.has.min(len_max.into()) as u32;
                    if n == 0 {
                        self.muxes[side].dry(id);
                        continue;
                    }
                    if flow.has != u64::MAX {
                        flow.has -= u64::from(n);
                    }
                    let header = self.muxes[side].sent(id, n, false, flow.has > 0);
                    self.wires[side].push(self.now, 16, Piece::Head(header));
                    for at in (0..n).step_by(PIECE_BYTES as usize) {
                        let bytes = PIECE_BYTES.min(n - at);
                        self.wires[side].push(self.now, bytes, Piece::Bytes(bytes));
                    }
                }
            }
        }
    }

    /// `side` sent it, the other side takes it.
    fn receive(&mut self, side: usize, piece: Piece) {
        let far = 1 - side;
        let now = Instant::from_ns(self.now);
        match piece {
            Piece::Head(header) => match self.muxes[far].on_header(&header).expect("nobody breaks the protocol") {
                Input::Open { id, aux, .. } => {
                    self.muxes[far].adopt(id, aux.into());
                    self.muxes[far].source_ready(id);
                }
                Input::Data { id, owner, .. } => self.reading[far] = Some((id, owner)),
                Input::Pong { cookie } => self.muxes[far].on_pong(cookie, now),
                _ => {}
            },
            Piece::Bytes(n) => {
                let (_, owner) = self.reading[far].expect("bytes come behind their header");
                self.flows[owner][side].arrived += u64::from(n);
                if self.flows[owner][side].sink == u64::MAX {
                    self.deliver(owner, side);
                }
            }
        }
    }

    fn deliver(&mut self, owner: usize, side: usize) {
        let flow = &mut self.flows[owner][side];
        let can = if flow.sink == u64::MAX { u64::MAX } else { flow.sink * TURN_NS / 1_000_000_000 };
        let n = can.min(flow.arrived - flow.delivered);
        flow.delivered += n;
        let waiting = flow.arrived - flow.delivered;
        flow.waiting_most = flow.waiting_most.max(waiting);
        if n > 0 {
            let now = Instant::from_ns(self.now);
            self.muxes[1 - side].delivered(self.ids[owner], n as u32, waiting as usize, now);
        }
    }

    fn down(&self, owner: usize) -> u64 {
        self.flows[owner][1].delivered
    }
}

/// Round trips from the OPEN until a round trip passes in which the link is nine tenths full; and how full it is in the
/// twenty round trips after.
fn fill(link: Link, seed: u64) -> (u32, f64) {
    let mut sim = Sim::new(link, seed);
    let owner = sim.open(u64::MAX, u64::MAX);
    let full = link.bytes_per_s() as f64 * link.rtt_ms as f64 / 1e3;
    for round in 1..100 {
        let before = sim.down(owner);
        sim.run(link.rtt_ms * MS);
        if (sim.down(owner) - before) as f64 >= 0.9 * full {
            let before = sim.down(owner);
            sim.run(20 * link.rtt_ms * MS);
            return (round, (sim.down(owner) - before) as f64 / (20.0 * full));
        }
    }
    panic!("{link:?}: never full");
}

/// One stream fills a long link within a few round trips of its first byte, from 256 KiB on, by growth alone; and keeps
/// it full. 100 Mbit/s at 200 ms is 2.5 MB; 1 Gbit/s at 60 ms is 7.5 MB.
#[test]
fn long_links_are_filled() {
    // The first of them is OPEN's: nothing comes in it.
    for (mbit, rtt_ms, rounds_max) in
        [(100, 200, 4), (100, 50, 4), (10, 600, 4), (1000, 60, 8), (300, 200, 8), (1000, 20, 8), (100, 2, 4)]
    {
        let link = Link { mbit, rtt_ms, lost_ppm: 0 };
        let (rounds, share) = fill(link, 1);
        println!("{mbit} Mbit/s, {rtt_ms} ms: full after {rounds} round trips, then {:.1} %", share * 100.0);
        assert!(rounds <= rounds_max, "{link:?}: full only after {rounds} round trips");
        assert!(share > 0.97, "{link:?}: {share} of the link");
    }
}

/// With one piece of a thousand lost (12 KB each: more than one loss a round trip), all that is behind it comes a round
/// trip later: then twice as much must be in flight, and is.
#[test]
fn lossy_links_are_filled() {
    for seed in 0..8 {
        let link = Link { mbit: 100, rtt_ms: 200, lost_ppm: 1000 };
        let mut sim = Sim::new(link, seed);
        let owner = sim.open(u64::MAX, u64::MAX);
        sim.run(4_000 * MS);
        let before = sim.down(owner);
        sim.run(20_000 * MS);
        let share = (sim.down(owner) - before) as f64 / (20.0 * link.bytes_per_s() as f64);
        println!("seed {seed}: {:.1} %", share * 100.0);
        assert!(share > 0.9, "seed {seed}: {share} of the link");
    }
}

/// How long requests of 200 bytes with answers of 2 KiB take beside `bulk` endless streams: the 99th of a hundred, ms.
fn request_ms(link: Link, bulk: usize) -> f64 {
    let mut sim = Sim::new(link, 3);
    for _ in 0..bulk {
        sim.open(u64::MAX, u64::MAX);
    }
    sim.run(20 * link.rtt_ms * MS + 1_000 * MS);
    let owner = sim.open(0, u64::MAX);
    sim.run(2 * link.rtt_ms * MS + 100 * MS);
    let mut took: Vec<u64> = (0..200u64)
        .map(|n| {
            let (start, want) = (sim.now, (sim.flows[owner][0].delivered + 200, sim.down(owner) + 2048));
            sim.give(owner, 0, 200);
            while sim.flows[owner][0].delivered < want.0 {
                sim.turn();
            }
            sim.give(owner, 1, 2048);
            while sim.down(owner) < want.1 {
                sim.turn();
            }
            let took = sim.now - start;
            sim.run(n % 7 * MS);
            took
        })
        .collect();
    took.sort_unstable();
    took[197] as f64 / MS as f64
}

/// The 99th percentile of small requests beside four bulk streams on the same carrier is at most five times what it is
/// alone, on links of every kind.
#[test]
fn small_requests_do_not_wait_for_bulk() {
    for (mbit, rtt_ms) in [(1000, 1), (1000, 20), (100, 5), (100, 20), (100, 200), (20, 40)] {
        let link = Link { mbit, rtt_ms, lost_ppm: 0 };
        let (alone, beside) = (request_ms(link, 0), request_ms(link, 4));
        println!("{mbit} Mbit/s, {rtt_ms} ms: p99 {alone:.1} ms alone, {beside:.1} ms beside four bulk streams");
        assert!(beside <= 5.0 * alone, "{link:?}: {alone} ms alone, {beside} ms beside bulk");
    }
}

/// Of a hundred endless streams one never reads: it costs the others nothing and holds no more than it was granted at
/// the start.
#[test]
fn who_does_not_read_stops_nobody() {
    let link = Link { mbit: 1000, rtt_ms: 20, lost_ppm: 0 };
    let rate = |stalled: bool| {
        let mut sim = Sim::new(link, 5);
        for n in 0..100 {
            sim.open(u64::MAX, if stalled && n == 50 { 0 } else { u64::MAX });
        }
        sim.run(1_000 * MS);
        let before: u64 = (0..100).map(|n| sim.down(n)).sum();
        sim.run(2_000 * MS);
        assert!(!stalled || sim.flows[50][1].waiting_most <= u64::from(WINDOW_BYTES_INITIAL));
        (0..100).map(|n| sim.down(n)).sum::<u64>() - before
    };
    let (all, others) = (rate(false), rate(true));
    println!("a hundred: {all} bytes, ninety-nine beside one that stalls: {others}");
    assert!(others * 100 >= all * 99, "{others} of {all}");
}

/// A window does not grow for a receiver that is slower than its link, and does for the one beside it.
#[test]
fn slow_receivers_stay_small() {
    let link = Link { mbit: 100, rtt_ms: 100, lost_ppm: 0 };
    let mut sim = Sim::new(link, 9);
    let (slow, quick) = (sim.open(u64::MAX, 500_000), sim.open(u64::MAX, u64::MAX));
    sim.run(5_000 * MS);
    let most = sim.flows[slow][1].waiting_most;
    assert!(most <= u64::from(2 * WINDOW_BYTES_INITIAL), "{most} bytes wait for a slow receiver");
    let before = (sim.down(slow), sim.down(quick));
    sim.run(5_000 * MS);
    let (slow, quick) = (sim.down(slow) - before.0, sim.down(quick) - before.1);
    println!("in 5 s: slow {slow} of 2,500,000 bytes, quick {quick} of 60,000,000; {most} bytes waited at most");
    assert!(slow > 2_400_000, "the slow one has {slow}, less than it takes");
    assert!(quick > 57_000_000, "the quick one has {quick}, less than the rest of the link");
}

/// However many streams want to grow, they share what there is: the carrier's growth is bounded, and what a stream that
/// ended had is for the next.
#[test]
fn growth_is_bounded() {
    let limits = MemoryLimits { carrier_growth_bytes_max: 3 << 20, ..MemoryLimits::default() };
    let mut sim = Sim::new(Link { mbit: 1000, rtt_ms: 100, lost_ppm: 0 }, 11);
    let budget = Arc::new(Budget::new(limits));
    for mux in &mut sim.muxes {
        mux.budget = budget.clone();
    }
    for _ in 0..20 {
        sim.open(u64::MAX, u64::MAX);
    }
    sim.run(3_000 * MS);
    assert!(sim.muxes[0].growth > 2 << 20, "{} bytes: nothing grew", sim.muxes[0].growth);
    assert!(sim.muxes[0].growth <= 3 << 20 && budget.growth_bytes() == sim.muxes[0].growth);
    for owner in 0..20 {
        sim.muxes[0].reset(sim.ids[owner], Reason::Other);
    }
    sim.run(1_000 * MS);
    assert_eq!((sim.muxes[0].streams(), sim.muxes[0].growth, budget.growth_bytes()), (0, 0, 0));
}
