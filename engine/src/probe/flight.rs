//! One probe in flight: what its answers, its deadline or the end of its target make of it.
//! Pure: an event goes in, a step comes out. Its lane and its slot are free when the kernel has let go, never before.
//!
//! ```text
//! Knocking ──knocked───────────────► judged, over
//!    │ ──deadline──► judged ──┐
//!    └──withdrawn──► no word ─┴► Cancelling ──knocked──► over (an answer other than "cancelled" was late)
//!
//!        ┌──────────more──────────┐
//!        ▼                        │
//! ─► Talking ──heard──► (the conversation says what it wants) ──again──► Redialling ──hung──► Talking
//!    │   │                        └──over──► judged ─────────┐            │
//!    │   └──deadline──► judged ──┐                           │            ├──deadline──► judged ──┐
//!    └──────withdrawn──► no word ┴► Silencing ──heard──► hang┴► Hanging ◄─┴──withdrawn──► no word─┘
//!                                                                  └──hung──► over
//! ```

use crate::io::{End, Errno, Lane, TcpFacts};
use crate::outcome::Code;
use crate::probe::nets::Ticket;
use crate::probe::patience::Patience;
use crate::probe::talk::{Finding, Next, Talk};
use crate::slab::Key;
use crate::time::Instant;
use std::time::Duration;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A knock is under way; nobody knows yet.
    Knocking,
    /// A call or a talk is under way; nobody knows yet.
    Talking,
    /// The call is being ended, for another one to the same address.
    Redialling,
    /// The verdict is out; the knock is being cancelled.
    Cancelling,
    /// The verdict is out; the call or talk is being cancelled.
    Silencing,
    /// The verdict is out; the call is being ended.
    Hanging,
}

/// What happens to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The kernel is through with the socket.
    Knocked(Result<(), Errno>),
    /// A call or a talk is over, and this is what the conversation wants now.
    Heard(Next),
    /// A call or a talk is over that nobody waits for any more; `late`: it was not the cancel that ended it.
    Silent {
        /// See above.
        late: bool,
    },
    /// The call has ended.
    Hung,
    /// Its time is up. `stalled`: the prober itself was away for more than half of that time, or is as late as that in
    /// looking, so an answer may have been missed.
    Deadline {
        /// See above.
        stalled: bool,
    },
    /// Nobody wants to know any more: the target is removed or changed, or the engine stops.
    Withdrawn,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Say this of the target, and free lane and slot.
    JudgeAndFree(Code, Option<Errno>),
    /// Say this of the target, and end the call.
    JudgeAndHang(Finding),
    /// Say that its time is up; `late`: that we do not know. `cancel`: and cancel the operation.
    GiveUp {
        /// See above.
        late: bool,
        /// See above.
        cancel: bool,
    },
    /// Say nothing of the target. `cancel`: cancel the operation.
    Abandon {
        /// See above.
        cancel: bool,
    },
    /// Say what lies in the outgoing buffer, if anything, and listen.
    Talk,
    /// End the call, and come back.
    Redial,
    /// Open the conversation anew and call.
    Call,
    /// End the call; `late`: an answer came after the verdict.
    Hang {
        /// See above.
        late: bool,
    },
    /// Free lane and slot; `late`: the answer came after the verdict.
    Free {
        /// See above.
        late: bool,
    },
    /// Nothing.
    Nothing,
    /// Nothing: this cannot come in this stage, or an `Io` broke its promise.
    Stale,
}

/// The probe's transitions.
pub(crate) fn on_event(stage: Stage, event: Event) -> (Stage, Step) {
    use Event::{Deadline, Heard, Hung, Knocked, Silent, Withdrawn};
    use Stage::{Cancelling, Hanging, Knocking, Redialling, Silencing, Talking};
    match (stage, event) {
        (Knocking, Knocked(Ok(()))) => (Knocking, Step::JudgeAndFree(Code::L4Ok, None)),
        (Knocking, Knocked(Err(errno))) => (Knocking, Step::JudgeAndFree(Code::of_connect(errno), Some(errno))),
        (Knocking, Deadline { stalled }) => (Cancelling, Step::GiveUp { late: stalled, cancel: true }),
        (Knocking, Withdrawn) => (Cancelling, Step::Abandon { cancel: true }),
        (Knocking, Heard(_) | Silent { .. } | Hung) => (Knocking, Step::Stale),

        (Talking, Heard(Next::Hear | Next::Say)) => (Talking, Step::Talk),
        (Talking, Heard(Next::Again)) => (Redialling, Step::Redial),
        (Talking, Heard(Next::Over(finding))) => (Hanging, Step::JudgeAndHang(finding)),
        (Talking, Deadline { stalled }) => (Silencing, Step::GiveUp { late: stalled, cancel: true }),
        (Talking, Withdrawn) => (Silencing, Step::Abandon { cancel: true }),
        (Talking, Knocked(_) | Silent { .. } | Hung) => (Talking, Step::Stale),

        (Redialling, Hung) => (Talking, Step::Call),
        (Redialling, Deadline { stalled }) => (Hanging, Step::GiveUp { late: stalled, cancel: false }),
        (Redialling, Withdrawn) => (Hanging, Step::Abandon { cancel: false }),
        (Redialling, Knocked(_) | Heard(_) | Silent { .. }) => (Redialling, Step::Stale),

        (Cancelling, Knocked(Err(Errno(libc::ECANCELED)))) => (Cancelling, Step::Free { late: false }),
        (Cancelling, Knocked(_)) => (Cancelling, Step::Free { late: true }),
        (Cancelling, Heard(_) | Silent { .. } | Hung) => (Cancelling, Step::Stale),

        (Silencing, Silent { late }) => (Hanging, Step::Hang { late }),
        (Silencing, Knocked(_) | Heard(_) | Hung) => (Silencing, Step::Stale),

        (Hanging, Hung) => (Hanging, Step::Free { late: false }),
        (Hanging, Knocked(_) | Heard(_) | Silent { .. }) => (Hanging, Step::Stale),

        (Cancelling | Silencing | Hanging, Deadline { .. } | Withdrawn) => (stage, Step::Nothing),
    }
}

/// One probe and what it needs of the kernel.
pub(crate) struct Flight {
    /// Whose. That target may be gone by now.
    pub(crate) target: Key,
    pub(crate) stage: Stage,
    /// When it started.
    pub(crate) started: Instant,
    /// What the prober's stalls summed up to at that time.
    pub(crate) stalled_before: Duration,
    /// How long its answers, all but the last, may have lain unread: no more than the turns took that found them.
    pub(crate) delayed: Duration,
    /// Which socket, of which pool.
    pub(crate) lane: Lane,
    pub(crate) pool: u8,
    /// Its place among its network's probes.
    pub(crate) ticket: Ticket,
    /// Counts its operations: part of each one's token, so that a repeated completion is not taken for the next.
    pub(crate) op: u8,
    /// How its call ends once it has been silenced.
    pub(crate) end: End,
    /// What the kernel measured is wanted.
    pub(crate) look: bool,
    pub(crate) patience: Patience,
    /// Only of those that talk.
    pub(crate) call: Option<Call>,
}

/// The talking part of a flight.
pub(crate) struct Call {
    pub(crate) talk: Box<dyn Talk>,
    /// When the present connection was begun.
    pub(crate) called: Instant,
    /// When the present connection was made, as far as is known.
    pub(crate) connected: Option<Instant>,
    /// When its first bytes were heard.
    pub(crate) first_heard: Option<Instant>,
    /// What the kernel measured, if it was asked.
    pub(crate) facts: Option<TcpFacts>,
    /// What the connection failed of.
    pub(crate) trouble: Option<Errno>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Cancelling, Hanging, Knocking, Redialling, Silencing, Talking};

    /// Every stage meets every event.
    #[test]
    fn every_stage_and_event() {
        let (refused, cancelled) = (Errno(libc::ECONNREFUSED), Errno(libc::ECANCELED));
        let no_port = Errno(libc::EADDRNOTAVAIL);
        let finding = Finding { end: End::Fin, ..Finding::of(Code::L7Ok) };
        let over = Event::Heard(Next::Over(finding));
        let (hear, say, again) = (Event::Heard(Next::Hear), Event::Heard(Next::Say), Event::Heard(Next::Again));
        let (silent, loud) = (Event::Silent { late: false }, Event::Silent { late: true });
        let (lapsed, away) = (Event::Deadline { stalled: false }, Event::Deadline { stalled: true });
        let knocked = |answer| Event::Knocked(answer);
        let give_up = |late, cancel| Step::GiveUp { late, cancel };
        let stale = |stage, events: &[Event]| -> Vec<_> {
            events.iter().map(|event| (stage, *event, stage, Step::Stale)).collect()
        };
        let nothing = |stage| -> Vec<_> {
            [lapsed, away, Event::Withdrawn].map(|event| (stage, event, stage, Step::Nothing)).to_vec()
        };
        let knocks = [Ok(()), Err(refused), Err(no_port), Err(cancelled)].map(knocked);
        let heard = [hear, say, again, over];
        let table = [
            vec![
                (Knocking, knocked(Ok(())), Knocking, Step::JudgeAndFree(Code::L4Ok, None)),
                (Knocking, knocked(Err(refused)), Knocking, Step::JudgeAndFree(Code::L4Refused, Some(refused))),
                (Knocking, knocked(Err(no_port)), Knocking, Step::JudgeAndFree(Code::SockErr, Some(no_port))),
                (Knocking, knocked(Err(cancelled)), Knocking, Step::JudgeAndFree(Code::SockErr, Some(cancelled))),
                (Knocking, lapsed, Cancelling, give_up(false, true)),
                (Knocking, away, Cancelling, give_up(true, true)),
                (Knocking, Event::Withdrawn, Cancelling, Step::Abandon { cancel: true }),
            ],
            stale(Knocking, &heard),
            stale(Knocking, &[silent, loud, Event::Hung]),
            vec![
                (Talking, hear, Talking, Step::Talk),
                (Talking, say, Talking, Step::Talk),
                (Talking, again, Redialling, Step::Redial),
                (Talking, over, Hanging, Step::JudgeAndHang(finding)),
                (Talking, lapsed, Silencing, give_up(false, true)),
                (Talking, away, Silencing, give_up(true, true)),
                (Talking, Event::Withdrawn, Silencing, Step::Abandon { cancel: true }),
            ],
            stale(Talking, &knocks),
            stale(Talking, &[silent, loud, Event::Hung]),
            vec![
                (Redialling, Event::Hung, Talking, Step::Call),
                (Redialling, lapsed, Hanging, give_up(false, false)),
                (Redialling, away, Hanging, give_up(true, false)),
                (Redialling, Event::Withdrawn, Hanging, Step::Abandon { cancel: false }),
            ],
            stale(Redialling, &knocks),
            stale(Redialling, &heard),
            stale(Redialling, &[silent, loud]),
            vec![
                (Cancelling, knocked(Ok(())), Cancelling, Step::Free { late: true }),
                (Cancelling, knocked(Err(refused)), Cancelling, Step::Free { late: true }),
                (Cancelling, knocked(Err(no_port)), Cancelling, Step::Free { late: true }),
                (Cancelling, knocked(Err(cancelled)), Cancelling, Step::Free { late: false }),
            ],
            stale(Cancelling, &heard),
            stale(Cancelling, &[silent, loud, Event::Hung]),
            nothing(Cancelling),
            vec![
                (Silencing, silent, Hanging, Step::Hang { late: false }),
                (Silencing, loud, Hanging, Step::Hang { late: true }),
            ],
            stale(Silencing, &knocks),
            stale(Silencing, &heard),
            stale(Silencing, &[Event::Hung]),
            nothing(Silencing),
            vec![(Hanging, Event::Hung, Hanging, Step::Free { late: false })],
            stale(Hanging, &knocks),
            stale(Hanging, &heard),
            stale(Hanging, &[silent, loud]),
            nothing(Hanging),
        ]
        .concat();
        for (stage, event, next, step) in &table {
            assert_eq!(on_event(*stage, *event), (*next, *step), "{stage:?} {event:?}");
        }
        assert_eq!(table.len(), 6 * (knocks.len() + heard.len() + 2 + 1 + 3), "every stage and event, once");
    }
}
