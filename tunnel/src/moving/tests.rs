//! Two ends, a mux wire and a direct wire between them, each way; everything that can happen happens in any order.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    Byte(u32),
    Marker,
    End,
    /// The first word on a direct carrier.
    Open,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The source of an end has a byte; it goes out at once.
    Send(usize),
    /// The source of an end has ended.
    End(usize),
    /// The bridge takes a direct carrier.
    Bind,
    /// The oldest word of a wire arrives: mux or direct, towards this end.
    Mux(usize),
    Direct(usize),
    /// The sink of an end takes one byte of those it held back.
    Drain(usize),
    /// The sink is slow from now on, or no longer.
    Slow(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = 0..2usize;
    let step = prop_oneof![
        6 => end.clone().prop_map(Step::Send),
        1 => end.clone().prop_map(Step::End),
        1 => Just(Step::Bind),
        5 => end.clone().prop_map(Step::Mux),
        5 => end.clone().prop_map(Step::Direct),
        3 => end.clone().prop_map(Step::Drain),
        1 => end.prop_map(Step::Slow),
    ];
    prop::collection::vec(step, 0..200)
}

/// End 0 is the bridge, end 1 the agent. Wires are named by the end they lead to.
struct World {
    ends: [Moving; 2],
    mux: [VecDeque<Said>; 2],
    direct: [VecDeque<Said>; 2],
    sent: [u32; 2],
    held: [VecDeque<u32>; 2],
    got: [Vec<u32>; 2],
    slow: [bool; 2],
    ended: [bool; 2],
    saw_end: [bool; 2],
}

impl World {
    fn new() -> World {
        World {
            ends: [Moving::MUX; 2],
            mux: Default::default(),
            direct: Default::default(),
            sent: [0; 2],
            held: Default::default(),
            got: Default::default(),
            slow: [false; 2],
            ended: [false; 2],
            saw_end: [false; 2],
        }
    }

    fn say(&mut self, from: usize, way: Way, said: Said) {
        match way {
            Way::Mux => self.mux[1 - from].push_back(said),
            Way::Direct => self.direct[1 - from].push_back(said),
            Way::Over => {}
        }
    }

    fn bind(&mut self, end: usize) {
        if self.ends[end].bind() == Ok(true) {
            self.say(end, Way::Mux, Said::Marker);
        }
    }

    fn take(&mut self, end: usize, byte: u32) {
        if self.slow[end] || !self.held[end].is_empty() {
            self.held[end].push_back(byte);
        } else {
            self.got[end].push(byte);
        }
    }

    /// Returns whether anything happened.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Send(from) if !self.ended[from] => {
                let (way, byte) = (self.ends[from].out(), self.sent[from]);
                self.sent[from] += 1;
                self.say(from, way, Said::Byte(byte));
            }
            Step::End(from) if !self.ended[from] => {
                self.ended[from] = true;
                let way = self.ends[from].end();
                self.say(from, way, Said::End);
            }
            Step::Bind if !self.ends[0].is_bound() && !self.ends[0].is_over() => {
                self.direct[1].push_back(Said::Open);
                self.bind(0);
            }
            Step::Mux(to) => match self.mux[to].pop_front() {
                None => return false,
                Some(Said::Byte(byte)) => self.take(to, byte),
                Some(Said::Marker) => self.ends[to].on_marker(to == 1).expect("an honest peer"),
                Some(Said::End) => self.on_end(to),
                Some(Said::Open) => unreachable!("said on direct carriers"),
            },
            Step::Direct(to) => match self.direct[to].front() {
                None => return false,
                Some(Said::Open) => {
                    self.direct[to].pop_front();
                    self.bind(to);
                }
                Some(_) if !self.ends[to].reads_direct(!self.held[to].is_empty()) => return false,
                Some(&Said::Byte(_)) if self.slow[to] => return false,
                // Straight to the socket: past what is held, if the way is open too early.
                Some(&Said::Byte(byte)) => {
                    self.direct[to].pop_front();
                    self.got[to].push(byte);
                }
                Some(Said::End) => {
                    self.direct[to].pop_front();
                    self.on_end(to);
                }
                Some(Said::Marker) => unreachable!("said on the mux"),
            },
            Step::Drain(to) => match self.held[to].pop_front() {
                None => return false,
                Some(byte) => self.got[to].push(byte),
            },
            Step::Slow(to) => self.slow[to] = !self.slow[to],
            _ => return false,
        }
        true
    }

    fn on_end(&mut self, to: usize) {
        assert!(!self.saw_end[to], "one end each way");
        self.saw_end[to] = true;
        self.ends[to].on_end();
    }

    /// Both sources end, and everything arrives, in the order that `first` prefers.
    fn finish(&mut self, first: &[Step]) {
        self.slow = [false; 2];
        self.step(Step::End(0));
        self.step(Step::End(1));
        while first.iter().any(|step| self.step(*step)) {}
    }
}

proptest! {
    /// Whatever is sent, held, moved and ended in whatever order, and whichever connection is ahead: every byte arrives
    /// once and in order, both ends see both ends, and nothing is left on a wire.
    #[test]
    fn bytes_keep_their_order(
        steps in steps(),
        first in Just(vec![Step::Mux(0), Step::Mux(1), Step::Direct(0), Step::Direct(1), Step::Drain(0), Step::Drain(1)])
            .prop_shuffle(),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.finish(&first);
        for end in 0..2 {
            let all: Vec<u32> = (0..world.sent[1 - end]).collect();
            prop_assert_eq!(&world.got[end], &all);
            prop_assert!(world.saw_end[end] && world.ends[end].is_over());
            prop_assert!(world.mux[end].is_empty() && world.direct[end].is_empty());
        }
        prop_assert_eq!(world.ends[0].is_bound(), world.ends[1].is_bound());
    }
}

/// What a peer cannot mean is told.
#[test]
fn confusion_is_told() {
    let mut bridge = Moving::MUX;
    assert_eq!(bridge.on_marker(false), Err(Confusion::Marker), "no direct carrier was taken");
    assert_eq!(bridge.bind(), Ok(true));
    assert_eq!(bridge.bind(), Err(Confusion::Twice));
    assert_eq!((bridge.on_marker(false), bridge.on_marker(false)), (Ok(()), Err(Confusion::Marker)));
    let mut agent = Moving::MUX;
    agent.on_end();
    assert_eq!(agent.on_marker(true), Err(Confusion::Marker), "it has ended");
    agent.end();
    assert_eq!(agent.bind(), Ok(false), "nothing of ours is left to move");
    assert!(!agent.needs_direct() && bridge.needs_direct());
}
