//! ICMP echo.

use crate::outcome::Code;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk};
use crate::time::Instant;

/// One check in progress.
pub(crate) struct Echoing {}

impl Echoing {
    /// A check that has not begun.
    pub(crate) fn new() -> Echoing {
        Echoing {}
    }
}

impl Talk for Echoing {
    fn open(&mut self, _now: Instant, _peer: &Peer, _say: &mut Vec<u8>) {}

    fn hear(&mut self, _now: Instant, _heard: &[u8], _say: &mut Vec<u8>) -> Next {
        Next::Over(Finding::of(Code::L7Response))
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }
}
