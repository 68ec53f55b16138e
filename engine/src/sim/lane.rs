//! A lane as its user must treat it: which operation it may be given, and who may touch its buffers when.
//!
//! ```text
//! Idle ─Knock─► Knocking ─Knocked─► Idle
//! Idle ─Call──► Speaking ─Heard(Ok)──► Quiet ─Talk─► Speaking
//!                        ─Heard(Err)─► Failed
//! Quiet | Failed ─Hang─► Hanging ─Hung─► Idle
//! ```
//! Everything else is a mistake of the user and a panic.

use crate::io::{Family, Lane, LaneKind, Op, SAY_MAX, TcpFacts, Way};
use crate::sim::call::Call;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Idle,
    Knocking,
    Speaking,
    Quiet,
    Failed,
    Hanging,
}

pub(crate) struct SimLane {
    kind: LaneKind,
    pub(crate) state: State,
    /// Which call this is: what belongs to an earlier one finds another number.
    pub(crate) serial: u64,
    pub(crate) call: Option<Call>,
    /// Where the present visit stands in the list of all.
    pub(crate) visit: usize,
    /// What the kernel measured at the last knock that was told to look.
    pub(crate) facts: Option<TcpFacts>,
    pub(crate) say: Vec<u8>,
    pub(crate) heard: Vec<u8>,
}

impl SimLane {
    pub(crate) fn new(kind: LaneKind) -> SimLane {
        SimLane {
            kind,
            state: State::Idle,
            serial: 0,
            call: None,
            visit: 0,
            facts: None,
            say: Vec::new(),
            heard: Vec::new(),
        }
    }

    pub(crate) fn way(&self) -> Way {
        self.kind.way
    }

    /// Whether the kernel has it.
    fn is_lent(&self) -> bool {
        matches!(self.state, State::Knocking | State::Speaking | State::Hanging)
    }

    /// The operation begins. Panics if it may not.
    pub(crate) fn on_submit(&mut self, op: &Op) {
        let state = self.state;
        assert!(!self.is_lent(), "lane rule: {op:?}: the lane's last operation is in flight ({state:?})");
        let (may, next) = match op {
            Op::Knock { lane, to, .. } => {
                assert!(
                    matches!(self.kind.way, Way::Knock(_)),
                    "lane rule: {op:?}: {lane:?} is for {:?}",
                    self.kind.way
                );
                self.fits(*lane, Family::of(to));
                (state == State::Idle, State::Knocking)
            }
            Op::Call { lane, to } => {
                assert!(self.talks(), "lane rule: {op:?}: {lane:?} is for {:?}", self.kind.way);
                self.fits(*lane, Family::of(to));
                (state == State::Idle, State::Speaking)
            }
            Op::Talk { .. } => (state == State::Quiet, State::Speaking),
            Op::Hang { .. } => (matches!(state, State::Quiet | State::Failed), State::Hanging),
            op => panic!("the simulated network has lanes only, not {op:?}"),
        };
        assert!(may, "lane rule: {op:?}: the lane is {state:?}");
        assert!(
            self.say.len() <= SAY_MAX,
            "lane rule: {op:?}: {} bytes to say are more than {SAY_MAX}",
            self.say.len()
        );
        self.state = next;
    }

    fn fits(&self, lane: Lane, family: Family) {
        assert_eq!(self.kind.family, family, "lane rule: {lane:?} is of the other family than its target");
    }

    fn talks(&self) -> bool {
        !matches!(self.kind.way, Way::Knock(_))
    }

    /// Its user wants to write. Panics if the kernel has the buffer.
    pub(crate) fn outgoing(&mut self, lane: Lane) -> &mut Vec<u8> {
        assert!(self.talks(), "lane rule: {lane:?} does not talk");
        assert!(!self.is_lent(), "lane rule: {lane:?}: the outgoing buffer is lent to the kernel ({:?})", self.state);
        &mut self.say
    }

    /// Its user wants to read. Panics if there is nothing that was heard.
    pub(crate) fn heard(&self, lane: Lane) -> &[u8] {
        assert_eq!(self.state, State::Quiet, "lane rule: {lane:?} has heard nothing");
        &self.heard
    }
}
