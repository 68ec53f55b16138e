//! Two muxes and a wire between them, against a model that knows for every stream which byte comes next.
//! Bytes are not carried but named: a payload is (stream, first, count), so that any mix-up shows at once.

use super::*;
use crate::memory::MemoryLimits;
use std::collections::{BTreeMap, VecDeque};

const SEEDS: u64 = 64;
const STEPS: usize = 3_000;

type Payload = Option<(u16, u64, u32)>;

/// One direction of one stream, as the model sees it.
#[derive(Debug, Default, Clone)]
struct Flow {
    /// Bytes the source has produced, and how many of them were sent.
    made: u64,
    sent: u64,
    source_closed: bool,
    fin_sent: bool,
    /// Bytes that arrived, and how many of them were delivered.
    arrived: u64,
    delivered: u64,
    fin_arrived: bool,
}

#[derive(Debug, Default, Clone)]
struct Model {
    /// From opener to accepter, and back.
    flows: [Flow; 2],
    ids: [Option<u32>; 2],
    /// One side has reset it: bytes may be lost from now on.
    reset: bool,
    /// Who was told of its end by a reset, or made it.
    dead: [bool; 2],
}

struct World {
    rng: fastrand::Rng,
    muxes: [Mux<u16>; 2],
    wires: [VecDeque<(Header, Payload)>; 2],
    streams: BTreeMap<u16, Model>,
    next_tag: u16,
    pongs: usize,
    now: Instant,
    budget: Arc<Budget>,
}

impl World {
    fn new(seed: u64, limits: Limits) -> World {
        // Little enough that windows compete for growth, and that waiting bytes make it tight now and then.
        let memory = MemoryLimits { growth_bytes_max: 6 << 20, held_bytes_max: 2 << 20, ..MemoryLimits::default() };
        let budget = Arc::new(Budget::new(memory));
        World {
            rng: fastrand::Rng::with_seed(seed),
            muxes: [Side::Opener, Side::Accepter].map(|side| Mux::within(side, limits, budget.clone())),
            wires: Default::default(),
            streams: BTreeMap::new(),
            next_tag: 0,
            pongs: 0,
            now: Instant::ZERO,
            budget,
        }
    }

    fn pick(&mut self) -> Option<u16> {
        let n = self.streams.len();
        (n > 0).then(|| *self.streams.keys().nth(self.rng.usize(..n)).expect("within the count"))
    }

    fn step(&mut self, limits: Limits) {
        let side = self.rng.usize(..2);
        self.now = self.now + Duration::from_micros(self.rng.u64(..1000));
        match self.rng.u32(..100) {
            0..8 => self.open(limits),
            8..30 => self.make(side),
            30..33 => self.close_source(side),
            33..35 => self.reset(side),
            35..60 => self.transmit(side),
            60..80 => self.receive(side),
            80..99 => self.deliver(side),
            _ => self.muxes[side].ping(self.now),
        }
    }

    fn open(&mut self, limits: Limits) {
        let tag = self.next_tag;
        let busy = self.muxes[0].streams();
        match self.muxes[0].open(tag, tag) {
            Some(id) => {
                self.next_tag += 1;
                self.streams.insert(tag, Model { ids: [Some(id), None], ..Model::default() });
            }
            None => assert_eq!(busy, usize::from(limits.streams_max), "refused only when full"),
        }
    }

    fn make(&mut self, side: usize) {
        let Some(tag) = self.pick() else { return };
        let n = self.rng.u64(1..200_000);
        let stream = self.streams.get_mut(&tag).expect("picked");
        let (Some(id), flow) = (stream.ids[side], &mut stream.flows[side]) else { return };
        if !stream.dead[side] && !flow.source_closed {
            flow.made += n;
            self.muxes[side].source_ready(id);
        }
    }

    fn close_source(&mut self, side: usize) {
        let Some(tag) = self.pick() else { return };
        let stream = self.streams.get_mut(&tag).expect("picked");
        let Some(id) = stream.ids[side] else { return };
        stream.flows[side].source_closed = true;
        self.muxes[side].source_ready(id);
    }

    fn reset(&mut self, side: usize) {
        let Some(tag) = self.pick() else { return };
        let stream = self.streams.get_mut(&tag).expect("picked");
        let Some(id) = stream.ids[side] else { return };
        (stream.reset, stream.dead[side]) = (true, true);
        self.muxes[side].reset(id, Reason::SocketReset);
    }

    fn transmit(&mut self, side: usize) {
        for _ in 0..self.rng.usize(1..6) {
            match self.muxes[side].next_output() {
                None => break,
                Some(Output::Control(header, _)) => self.wires[side].push_back((header, None)),
                Some(Output::Data { id, owner, len_max }) => self.transmit_data(side, id, owner, len_max),
            }
        }
    }

    fn transmit_data(&mut self, side: usize, id: u32, owner: u16, len_max: u32) {
        let stream = self.streams.get_mut(&owner).expect("the mux names streams we made");
        assert!(!stream.dead[side], "a dead stream is never asked for bytes");
        let flow = &mut stream.flows[side];
        let left = flow.made - flow.sent;
        if left == 0 && !flow.source_closed {
            self.muxes[side].dry(id);
            return;
        }
        let n = left.min(u64::from(self.rng.u32(1..=len_max))) as u32;
        let fin = flow.source_closed && left == u64::from(n);
        let header = self.muxes[side].sent(id, n, fin, left > u64::from(n));
        self.wires[side].push_back((header, Some((owner, flow.sent, n))));
        flow.sent += u64::from(n);
        flow.fin_sent |= fin;
        if !fin && left == u64::from(n) && flow.source_closed {
            self.muxes[side].source_ready(id);
        }
    }

    /// `side` sent it, the other side takes it.
    fn receive(&mut self, side: usize) {
        let Some((header, payload)) = self.wires[side].pop_front() else { return };
        let far = 1 - side;
        match self.muxes[far].on_header(&header).expect("an honest peer never breaks the protocol") {
            Input::Open { id, aux, .. } => {
                self.muxes[far].adopt(id, aux);
                self.streams.get_mut(&aux).expect("opened by us").ids[far] = Some(id);
            }
            Input::Data { id, owner, len, fin } => {
                let (tag, first, n) = payload.expect("DATA has a payload in this wire");
                let stream = self.streams.get_mut(&owner).expect("owned by us");
                assert_eq!((tag, n, stream.ids[far]), (owner, len, Some(id)), "bytes of another stream");
                assert!(!stream.dead[far], "bytes for a dead owner");
                let flow = &mut stream.flows[side];
                assert_eq!(first, flow.arrived, "bytes out of order");
                flow.arrived += u64::from(n);
                flow.fin_arrived |= fin;
                assert!(
                    flow.arrived - flow.delivered <= u64::from(MemoryLimits::default().window_bytes_max),
                    "memory of a stream is bounded"
                );
            }
            Input::Reset { owner, .. } => self.streams.get_mut(&owner).expect("owned by us").dead[far] = true,
            Input::Pong { cookie } => {
                self.pongs += 1;
                self.muxes[far].on_pong(cookie, self.now);
            }
            Input::Nothing | Input::Discard { .. } | Input::Opened { .. } => {}
            Input::Control { .. } | Input::Moved { .. } | Input::Spare { .. } => unreachable!("none was sent"),
        }
    }

    /// The socket at the far end of `side`'s flow takes some bytes.
    fn deliver(&mut self, side: usize) {
        let Some(tag) = self.pick() else { return };
        let stream = self.streams.get_mut(&tag).expect("picked");
        let flow = &mut stream.flows[side];
        let held = flow.arrived - flow.delivered;
        if let (Some(id), 1..) = (stream.ids[1 - side], held) {
            let n = self.rng.u64(1..=held);
            flow.delivered += n;
            let waiting = (flow.arrived - flow.delivered) as usize;
            let others = self.budget.held_bytes() as usize;
            self.budget.on_held(others, self.rng.usize(..2 << 20));
            self.muxes[1 - side].delivered(id, n as u32, waiting, self.now);
        }
    }

    /// Everybody stops making bytes; whatever is left runs to its end.
    fn drain(&mut self) {
        let tags: Vec<u16> = self.streams.keys().copied().collect();
        for _ in 0..100_000 {
            let mut rested = true;
            for &tag in &tags {
                for side in 0..2 {
                    let stream = self.streams.get_mut(&tag).expect("known");
                    let Some(id) = stream.ids[side] else { continue };
                    let fresh = !std::mem::replace(&mut stream.flows[side].source_closed, true);
                    if fresh {
                        rested = false;
                        self.muxes[side].source_ready(id);
                    }
                    let flow = &mut self.streams.get_mut(&tag).expect("known").flows[1 - side];
                    let held = flow.arrived - flow.delivered;
                    flow.delivered = flow.arrived;
                    self.muxes[side].delivered(id, held as u32, 0, self.now);
                }
            }
            for side in 0..2 {
                self.transmit(side);
                while !self.wires[side].is_empty() {
                    self.receive(side);
                }
            }
            if rested && !self.muxes[0].has_output() && !self.muxes[1].has_output() {
                return;
            }
        }
        panic!("the muxes never come to rest");
    }
}

/// Whatever opens, sends, stalls, ends and resets in whatever order: no honest peer is blamed, no byte is lost, doubled
/// or given to another stream unless the stream was reset, and in the end both sides have freed everything.
#[test]
fn streams_keep_their_bytes() {
    for seed in 0..SEEDS {
        let limits = Limits { streams_max: if seed % 2 == 0 { 3 } else { 200 }, ..Limits::default() };
        let mut world = World::new(seed, limits);
        for _ in 0..STEPS {
            world.step(limits);
        }
        world.drain();
        for (tag, stream) in &world.streams {
            for flow in &stream.flows {
                let whole = flow.fin_arrived && flow.arrived == flow.made;
                assert!(stream.reset || whole, "seed {seed}: stream {tag} lost bytes: {stream:?}");
            }
        }
        assert_eq!((world.muxes[0].streams(), world.muxes[1].streams()), (0, 0), "seed {seed}: streams are left");
        assert_eq!((world.muxes[0].growth, world.muxes[1].growth), (0, 0), "seed {seed}: window growth leaked");
        assert_eq!(world.budget.growth_bytes(), 0, "seed {seed}: window growth of the process leaked");
        assert!(world.next_tag > 3 && world.pongs > 0, "seed {seed}: the run tried nothing");
    }
}

/// Alone, a stream gets whole frames, as long as the carrier's rate allows; with another, a turn.
#[test]
fn frames_are_as_long_as_they_may_be() {
    let mut writer = Writer::new(2);
    let len_max = |writer: &mut Writer| loop {
        if let Some(Output::Data { id, len_max, .. }) = writer.mux.next_output() {
            writer.mux.sent(id, len_max, false, true);
            return len_max;
        }
    };
    writer.mux.source_ready(writer.ids[0]);
    assert_eq!(len_max(&mut writer), FRAME_BYTES_START);
    for (bytes, want) in [(512 << 10, 256 << 10), (48 << 10, 48 << 10), (1, FRAME_BYTES_MIN), (1 << 20, 256 << 10)] {
        writer.mux.set_frame_bytes(bytes);
        assert_eq!((0..9).map(|_| len_max(&mut writer)).collect::<Vec<_>>(), [want; 9], "{bytes}");
    }
    writer.mux.source_ready(writer.ids[1]);
    assert!((0..50).all(|_| len_max(&mut writer) <= TURN_BYTES));
}

/// What a peer may not do costs it the carrier, each with its own name.
#[test]
fn violations_are_caught() {
    let mut bridge = Mux::new(Side::Opener, Limits::default());
    let mut agent = Mux::<u8>::new(Side::Accepter, Limits { streams_max: 2, ..Limits::default() });
    let id = bridge.open('v', 0).expect("empty");
    let data = |id, len| Header { len, ..Header::new(Kind::Data, id) };
    assert_eq!(bridge.on_header(&Header::new(Kind::Open, id)), Err(Violation::Unexpected(Kind::Open)));
    assert_eq!(bridge.on_header(&data(id, (256 << 10) + 1)), Err(Violation::Length((256 << 10) + 1)));
    assert!(bridge.on_header(&data(id, 256 << 10)).is_ok());
    assert_eq!(bridge.on_header(&data(id, 1)), Err(Violation::Window(1)));
    let granted = Header { credit: u32::MAX, ..Header::new(Kind::Window, id) };
    assert_eq!(bridge.on_header(&granted), Err(Violation::Credit));
    assert!(bridge.on_header(&Header { flags: FLAG_FIN, ..data(id, 0) }).is_ok());
    assert_eq!(bridge.on_header(&data(id, 0)), Err(Violation::AfterFin));
    assert_eq!(agent.on_header(&Header::new(Kind::Open, 0)), Err(Violation::Slot));
    assert_eq!(agent.on_header(&Header::new(Kind::Open, 3)), Err(Violation::Slot));
    assert!(agent.on_header(&Header::new(Kind::Open, 2)).is_ok());
    assert_eq!(agent.on_header(&Header::new(Kind::Open, 2)), Err(Violation::Slot));
}

/// A direction that moves ends here, behind what was sent: its marker is empty, comes once, frees the slot together with
/// the other direction's end, and is no one's who has ended.
#[test]
fn a_moved_direction_has_ended_here() {
    let (mut bridge, mut agent) =
        (Mux::new(Side::Opener, Limits::default()), Mux::new(Side::Accepter, Limits::default()));
    let id = bridge.open('v', 0).expect("empty");
    let Some(Output::Control(open, _)) = bridge.next_output() else { panic!("OPEN is first") };
    assert!(agent.on_header(&open).is_ok());
    agent.adopt(id, 'b');
    bridge.source_ready(id);
    assert!(bridge.move_out(id) && !bridge.move_out(id), "once");
    let Some(Output::Control(marker, _)) = bridge.next_output() else { panic!("the marker is all there is") };
    assert_eq!((marker.flags, marker.len, bridge.next_output()), (FLAG_MOVED, 0, None));
    assert_eq!(agent.on_header(&marker), Ok(Input::Moved { owner: 'b' }));
    assert_eq!(agent.on_header(&marker), Err(Violation::AfterFin));
    assert_eq!((agent.owner(id), bridge.streams(), agent.streams()), (Some('b'), 1, 1));
    agent.sent(id, 0, true, false);
    let fin = Header { flags: FLAG_FIN, ..Header::new(Kind::Data, id) };
    assert!(matches!(bridge.on_header(&fin), Ok(Input::Data { fin: true, .. })));
    assert_eq!((bridge.streams(), agent.streams(), agent.owner(id)), (0, 0, None));
    let other = bridge.open('w', 0).expect("empty");
    for wrong in [Header { len: 1, ..marker }, Header { flags: FLAG_MOVED | FLAG_FIN, ..marker }] {
        let wrong = Header { stream: other, ..wrong };
        assert_eq!(bridge.on_header(&wrong), Err(Violation::Unexpected(Kind::Data)));
    }
    assert_eq!(bridge.on_header(&Header::new(Kind::Spare, 0)), Err(Violation::Unexpected(Kind::Spare)));
    assert_eq!(agent.on_header(&Header { aux: 3, ..Header::new(Kind::Spare, 0) }), Ok(Input::Spare { count: 3 }));
}

/// A peer that opens and resets without ever reading is cut off at a bounded queue.
#[test]
fn unread_answers_are_bounded() {
    let limits = Limits { streams_max: 2, ..Limits::default() };
    let mut agent = Mux::<u8>::new(Side::Accepter, limits);
    let flood = (0..1_000_000).find_map(|i| {
        let id = (i % 65_536) << 16 | 1;
        agent.on_header(&Header::new(Kind::Open, id)).expect("the slot is free");
        agent.on_header(&Header::new(Kind::Rst, id)).err()
    });
    assert_eq!(flood, Some(Violation::Flood));
}

/// What a stream of a writer always has: so many bytes in each piece the mover takes.
struct Writer {
    mux: Mux<usize>,
    ids: Vec<u32>,
    sent: Vec<u64>,
}

impl Writer {
    /// That many streams, with credit for ever.
    fn new(streams: usize) -> Writer {
        let mut mux = Mux::new(Side::Opener, Limits::default());
        let ids: Vec<u32> = (0..streams).map(|n| mux.open(n, 0).expect("room")).collect();
        for &id in &ids {
            let granted = Header { credit: u32::MAX - (256 << 10), ..Header::new(Kind::Window, id) };
            mux.on_header(&granted).expect("within 32 bits");
        }
        Writer { mux, ids, sent: vec![0; streams] }
    }

    /// The next DATA frame; the source gives at most `piece(owner)` and has `left(owner)` afterwards. Its owner.
    fn send(&mut self, piece: impl Fn(usize) -> u32, more: impl Fn(usize) -> bool) -> Option<usize> {
        loop {
            if let Output::Data { id, owner, len_max } = self.mux.next_output()? {
                let n = len_max.min(piece(owner));
                self.sent[owner] += u64::from(n);
                self.mux.sent(id, n, false, more(owner));
                return Some(owner);
            }
        }
    }
}

/// Streams that always have bytes get the same share of a carrier, in bytes, whatever their mover takes at a time: at any
/// moment no two are further apart than two turns and a frame.
#[test]
fn shares_are_equal_in_bytes() {
    let mut writer = Writer::new(7);
    for &id in &writer.ids {
        writer.mux.source_ready(id);
    }
    let pieces = [1 << 10, 16 << 10, 16 << 10, 64 << 10, 256 << 10, 3_000, 256 << 10];
    for _ in 0..20_000 {
        writer.send(|owner| pieces[owner], |_| true).expect("all have bytes");
        let (least, most) = (writer.sent.iter().min().expect("seven"), writer.sent.iter().max().expect("seven"));
        let apart = u64::from(2 * TURN_BYTES + FRAME_BYTES_MIN);
        assert!(most - least <= apart, "{:?}", writer.sent);
    }
}

/// Beside bulk, a stream that wakes with a request is next, once it has not had its head start in this round; one that
/// goes on sending is bulk itself after that.
#[test]
fn small_streams_go_first() {
    let mut writer = Writer::new(6);
    for &id in &writer.ids[..5] {
        writer.mux.source_ready(id);
    }
    // All are quiet before they start: their first 16 KiB count as requests, then they are bulk.
    for _ in 0..40 {
        writer.send(|_| 64 << 10, |_| true);
    }
    for request in 0..200 {
        for _ in 0..request % 7 {
            assert!(writer.send(|_| 64 << 10, |_| true).expect("bulk") < 5);
        }
        writer.mux.source_ready(writer.ids[5]);
        // Eight requests of 2 KiB in a round have the head start; in this load a round is five frames.
        assert_eq!(writer.send(|_| 2 << 10, |owner| owner < 5), Some(5), "request {request}");
    }
    writer.mux.source_ready(writer.ids[5]);
    let owners: Vec<usize> = (0..8).filter_map(|_| writer.send(|_| 16 << 10, |_| true)).collect();
    assert_eq!(owners[0], 5);
    assert!(owners[1..].iter().filter(|owner| **owner == 5).count() <= 3, "{owners:?}");
}

/// While bulk rests, the control lane goes and whoever has a head start; then bulk goes on where it was.
#[test]
fn bulk_may_rest() {
    let mut writer = Writer::new(3);
    for &id in &writer.ids[..2] {
        writer.mux.source_ready(id);
    }
    for _ in 0..20 {
        writer.send(|_| 64 << 10, |_| true).expect("both have bytes");
    }
    assert!(writer.mux.has_output() && !writer.mux.has_urgent());
    assert_eq!(writer.mux.next_urgent(), None);
    writer.mux.ping(Instant::from_ns(1));
    writer.mux.source_ready(writer.ids[2]);
    assert!(writer.mux.has_urgent());
    let Some(Output::Control(ping, _)) = writer.mux.next_urgent() else { panic!("the control lane is first") };
    assert_eq!(ping.kind, Kind::Ping);
    let Some(Output::Data { id, owner: 2, .. }) = writer.mux.next_urgent() else { panic!("it has a head start") };
    writer.mux.sent(id, 64, false, true);
    for _ in 0..FRESH_BYTES / (4 << 10) {
        // Another four KiB each time, until the head start is used up and it is bulk itself.
        let Some(Output::Data { id, owner: 2, .. }) = writer.mux.next_urgent() else { panic!("some is left") };
        writer.mux.sent(id, 4 << 10, false, true);
    }
    assert_eq!(writer.mux.next_urgent(), None);
    let before = writer.sent.clone();
    for _ in 0..30 {
        writer.send(|_| 16 << 10, |_| true).expect("all have bytes");
    }
    assert!(writer.sent.iter().zip(&before).all(|(after, before)| after > before), "{:?}", writer.sent);
}

/// Streams that wake again and again, and new ones without end, leave bulk a fifth of the carrier.
#[test]
fn head_starts_starve_nobody() {
    let mut writer = Writer::new(4001);
    writer.mux.source_ready(writer.ids[0]);
    let mut next = 1;
    for _ in 0..4_000 {
        // There are always a hundred that have just woken.
        for _ in 0..100 {
            writer.mux.source_ready(writer.ids[next]);
            next = next % 4_000 + 1;
        }
        for _ in 0..20 {
            writer.send(|owner| if owner == 0 { 16 << 10 } else { 4 << 10 }, |owner| owner == 0);
        }
    }
    let (bulk, all) = (writer.sent[0], writer.sent.iter().sum::<u64>());
    assert!(bulk * 6 >= all, "bulk got {bulk} of {all}");
    assert!(bulk * 4 <= all, "bulk got {bulk} of {all}: what wakes has no head start");
}

/// Whatever waits, what has no payload goes out before the next DATA.
#[test]
fn headers_overtake_bulk() {
    let mut writer = Writer::new(50);
    while let Some(Output::Control(..)) = writer.mux.next_output() {}
    for &id in &writer.ids {
        writer.mux.source_ready(id);
    }
    for n in 0..40 {
        writer.send(|_| 64 << 10, |_| true).expect("all have bytes");
        writer.mux.ping(Instant::ZERO);
        writer.mux.reset(writer.ids[49 - n / 4], Reason::SocketReset);
        writer.mux.on_header(&Header { credit: 9, ..Header::new(Kind::Ping, 0) }).expect("a ping");
        let mut kinds = Vec::new();
        while writer.mux.pong.is_some() || !writer.mux.control.is_empty() {
            let Some(Output::Control(header, _)) = writer.mux.next_output() else { panic!("DATA before a header") };
            kinds.push(header.kind);
        }
        assert!(kinds.contains(&Kind::Ping) && kinds.contains(&Kind::Pong), "{kinds:?}");
    }
}

/// The parts of an idle stream that are kept for each.
#[test]
fn a_stream_is_small() {
    let bytes = size_of::<Stream<crate::slots::Key>>();
    assert!(bytes <= 72, "{bytes}");
}
