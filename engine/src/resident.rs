//! What lives on a worker: a state machine that is told what happened and says what to do next.
//!
//! A worker is a thread with one [`Io`]; its residents share it and nothing else. The prober is one; the tunnel's data
//! path is another. A turn of the worker:
//!
//! ```text
//! on_turn(each resident) → io.wait(earliest deadline) → on_completion(the resident the token names) ...
//! ```

use crate::io::{Completion, Io};
use crate::time::Instant;
use crate::token::Token;

/// What a resident sees while it has the floor.
pub struct Cx<'a> {
    /// The worker's kernel.
    pub io: &'a mut dyn Io,
    /// The time at the start of this part of the turn; the same for all that happens in it.
    pub now: Instant,
    /// This resident's number on this worker, 1 to 15.
    pub resident: u8,
}

impl Cx<'_> {
    /// A token of this resident.
    pub fn token(&self, op: u8, generation: u32, index: u32) -> Token {
        Token::new(self.resident, op, generation, index)
    }
}

/// When a resident wants the floor again if nothing completes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is work left: come back after a look at the completions, without waiting.
    Now,
    /// At this time at the latest.
    At(Instant),
    /// Only when something happens.
    Event,
    /// Never: all is over, every operation has come home. The resident is dropped. The worker ends when every resident
    /// has said so after [`Resident::on_stop`].
    Done,
}

/// A state machine on a worker.
pub trait Resident: Send {
    /// Called once, on the worker's thread, before the first turn.
    fn on_start(&mut self, cx: &mut Cx<'_>);

    /// One of this resident's operations has an event.
    fn on_completion(&mut self, cx: &mut Cx<'_>, completion: Completion);

    /// Once a turn: look at mailboxes and timers, do the batched work. Must be bounded: about a millisecond, then
    /// [`Next::Now`].
    fn on_turn(&mut self, cx: &mut Cx<'_>) -> Next;

    /// The process is stopping: start no more, finish or cancel what is in flight, then answer [`Next::Done`].
    /// The worker waits 2 s at most.
    fn on_stop(&mut self, cx: &mut Cx<'_>);
}
