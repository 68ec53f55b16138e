//! One HTTP/1.1 request and its answer.

use crate::outcome::Code;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk};
use crate::time::Instant;
use std::sync::Arc;

/// The settings of the check.
#[derive(Clone, Debug, Default)]
pub struct HttpCheck {}

/// One check in progress.
pub(crate) struct Asking {
    _check: Arc<HttpCheck>,
}

impl Asking {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<HttpCheck>) -> Asking {
        Asking { _check: check }
    }
}

impl Talk for Asking {
    fn open(&mut self, _now: Instant, _peer: &Peer, _say: &mut Vec<u8>) {}

    fn hear(&mut self, _now: Instant, _heard: &[u8], _say: &mut Vec<u8>) -> Next {
        Next::Over(Finding::of(Code::L7Response))
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }
}
