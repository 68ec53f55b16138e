//! A MySQL login, or a question.

use crate::outcome::Code;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk};
use crate::time::Instant;
use std::sync::Arc;

/// The settings of the check.
#[derive(Clone, Debug, Default)]
pub struct MysqlCheck {}

/// One check in progress.
pub(crate) struct LoggingIn {
    _check: Arc<MysqlCheck>,
}

impl LoggingIn {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<MysqlCheck>) -> LoggingIn {
        LoggingIn { _check: check }
    }
}

impl Talk for LoggingIn {
    fn open(&mut self, _now: Instant, _peer: &Peer, _say: &mut Vec<u8>) {}

    fn hear(&mut self, _now: Instant, _heard: &[u8], _say: &mut Vec<u8>) -> Next {
        Next::Over(Finding::of(Code::L7Response))
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }
}
