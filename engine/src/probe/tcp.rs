//! One TCP probe in flight: what its answer, its deadline or the end of its target makes of it.
//! Pure: an event goes in, a step comes out. Its lane and its slot are free when the kernel has answered, never before.
//!
//! ```text
//! Flying ──answer──────────────────► judged, over
//!    │ ──deadline──► judged ──┐
//!    └──withdrawn──► no word ─┴► Cancelling ──answer──► over (an answer other than "cancelled" was late)
//! ```

use crate::io::Errno;
use crate::outcome::Code;
use crate::slab::Key;
use crate::time::Instant;
use std::time::Duration;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nobody knows yet.
    Flying,
    /// The verdict is out; the kernel still has the socket.
    Cancelling,
}

/// What happens to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The kernel is through with the socket.
    Answer(Result<(), Errno>),
    /// Its time is up. `stalled`: the prober itself was away for more than half of that time, or is as late as that in
    /// looking, so an answer may have been missed.
    Deadline {
        /// See above.
        stalled: bool,
    },
    /// Nobody wants to know any more: the target is removed or the engine stops.
    Withdrawn,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Say this of the target, and free lane and slot.
    Judge(Code, Option<Errno>),
    /// Say this of the target, and cancel the operation.
    JudgeAndCancel(Code),
    /// Cancel the operation.
    Cancel,
    /// Free lane and slot; `late`: the answer came after the verdict.
    Free {
        /// See above.
        late: bool,
    },
    /// Nothing.
    Nothing,
}

/// The probe's transitions.
pub(crate) fn on_event(stage: Stage, event: Event) -> (Stage, Step) {
    use Stage::{Cancelling, Flying};
    match (stage, event) {
        (Flying, Event::Answer(Ok(()))) => (Flying, Step::Judge(Code::L4Ok, None)),
        (Flying, Event::Answer(Err(errno))) => (Flying, Step::Judge(Code::of_connect(errno), Some(errno))),
        (Flying, Event::Deadline { stalled: false }) => (Cancelling, Step::JudgeAndCancel(Code::L4Timeout)),
        (Flying, Event::Deadline { stalled: true }) => (Cancelling, Step::JudgeAndCancel(Code::Late)),
        (Flying, Event::Withdrawn) => (Cancelling, Step::Cancel),
        (Cancelling, Event::Answer(Err(Errno(libc::ECANCELED)))) => (Cancelling, Step::Free { late: false }),
        (Cancelling, Event::Answer(_)) => (Cancelling, Step::Free { late: true }),
        (Cancelling, Event::Deadline { .. } | Event::Withdrawn) => (Cancelling, Step::Nothing),
    }
}

/// Whether the kernel is short of something that every probe needs, so that waiting helps. A missing port is not such
/// a thing: ports are counted per destination (net/ipv4/inet_hashtables.c), and other targets may have plenty.
pub(crate) fn is_shortage(errno: Errno) -> bool {
    matches!(errno.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN)
}

/// Whether a code says that the target's host answered, so that the probe's time is a round trip.
pub(crate) fn is_answer(code: Code) -> bool {
    matches!(code, Code::L4Ok | Code::L4Refused | Code::L4Reset)
}

/// One probe and what it needs of the kernel.
pub(crate) struct Flight {
    /// Whose. That target may be gone by now.
    pub(crate) target: Key,
    /// When it started.
    pub(crate) started: Instant,
    /// What the prober's stalls summed up to at that time.
    pub(crate) stalled_before: Duration,
    /// Which socket, of which pool.
    pub(crate) lane: u32,
    pub(crate) pool: u8,
    pub(crate) stage: Stage,
    /// How long it may take.
    pub(crate) timeout_ms: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Cancelling, Flying};

    /// Every state meets every event.
    #[test]
    fn every_state_and_event() {
        let refused = Errno(libc::ECONNREFUSED);
        let cancelled = Errno(libc::ECANCELED);
        let no_port = Errno(libc::EADDRNOTAVAIL);
        let table = [
            (Flying, Event::Answer(Ok(())), Flying, Step::Judge(Code::L4Ok, None)),
            (Flying, Event::Answer(Err(refused)), Flying, Step::Judge(Code::L4Refused, Some(refused))),
            (Flying, Event::Answer(Err(no_port)), Flying, Step::Judge(Code::SockErr, Some(no_port))),
            (Flying, Event::Answer(Err(cancelled)), Flying, Step::Judge(Code::SockErr, Some(cancelled))),
            (Flying, Event::Deadline { stalled: false }, Cancelling, Step::JudgeAndCancel(Code::L4Timeout)),
            (Flying, Event::Deadline { stalled: true }, Cancelling, Step::JudgeAndCancel(Code::Late)),
            (Flying, Event::Withdrawn, Cancelling, Step::Cancel),
            (Cancelling, Event::Answer(Ok(())), Cancelling, Step::Free { late: true }),
            (Cancelling, Event::Answer(Err(refused)), Cancelling, Step::Free { late: true }),
            (Cancelling, Event::Answer(Err(no_port)), Cancelling, Step::Free { late: true }),
            (Cancelling, Event::Answer(Err(cancelled)), Cancelling, Step::Free { late: false }),
            (Cancelling, Event::Deadline { stalled: false }, Cancelling, Step::Nothing),
            (Cancelling, Event::Deadline { stalled: true }, Cancelling, Step::Nothing),
            (Cancelling, Event::Withdrawn, Cancelling, Step::Nothing),
        ];
        for (stage, event, next, step) in table {
            assert_eq!(on_event(stage, event), (next, step), "{stage:?} {event:?}");
        }
    }
}
