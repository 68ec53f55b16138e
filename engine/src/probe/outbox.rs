//! What leaves a worker: transitions, which are never lost, and samples, which are dropped and counted when nobody
//! reads them. Promise: the reader is woken at once for a transition, for samples at most every [`SAMPLES_WAKE`] (or
//! when their mailbox is half full), and never once per message.

use crate::mailbox::{Full, Sender};
use crate::target::{Sample, Transition};
use crate::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// How long samples may lie before their reader is woken: no eye sees 10 ms, and a wake costs as much as a probe.
const SAMPLES_WAKE: Duration = Duration::from_millis(10);
/// How soon to try again with transitions that found the mailbox full.
const SPILL_RETRY: Duration = Duration::from_millis(5);

/// See the module.
pub(crate) struct Outbox {
    transitions: Sender<Transition>,
    samples: Option<Sender<Sample>>,
    /// Transitions that found the mailbox full, in order. At most as many as targets change their health while nobody
    /// reads; each is about 80 bytes.
    spill: VecDeque<Transition>,
    transitions_new: bool,
    /// Samples lie in the mailbox and the reader was not told.
    samples_since: Option<Instant>,
    /// Samples that found the mailbox full.
    pub(crate) samples_dropped: u64,
    /// Transitions handed in.
    pub(crate) transitions_made: u64,
}

impl Outbox {
    /// `samples`: `None` when nobody wants any.
    pub(crate) fn new(transitions: Sender<Transition>, samples: Option<Sender<Sample>>) -> Outbox {
        Outbox {
            transitions,
            samples,
            spill: VecDeque::new(),
            transitions_new: false,
            samples_since: None,
            samples_dropped: 0,
            transitions_made: 0,
        }
    }

    pub(crate) fn wants_samples(&self) -> bool {
        self.samples.is_some()
    }

    pub(crate) fn transition(&mut self, transition: Transition) {
        self.transitions_made += 1;
        self.spill.push_back(transition);
    }

    pub(crate) fn sample(&mut self, now: Instant, sample: Sample) {
        let Some(samples) = &self.samples else { return };
        match samples.post(sample) {
            Ok(()) => {
                self.samples_since.get_or_insert(now);
            }
            Err(Full(_)) => self.samples_dropped += 1,
        }
    }

    /// Once a turn: hands over what lies here and wakes the reader if it is time.
    pub(crate) fn flush(&mut self, now: Instant) {
        while let Some(transition) = self.spill.pop_front() {
            if let Err(Full(transition)) = self.transitions.post(transition) {
                self.spill.push_front(transition);
                break;
            }
            self.transitions_new = true;
        }
        let Some(since) = self.samples_since else {
            if self.transitions_new {
                self.wake();
            }
            return;
        };
        let half_full = self.samples.as_ref().is_some_and(|samples| samples.len() * 2 > samples.capacity());
        if self.transitions_new || half_full || now >= since + SAMPLES_WAKE {
            self.wake();
        }
    }

    /// When `flush` wants to be called again, if nothing else happens.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let spill = (!self.spill.is_empty()).then(|| now + SPILL_RETRY);
        let samples = self.samples_since.map(|since| since + SAMPLES_WAKE);
        spill.into_iter().chain(samples).min()
    }

    /// The last turn: tells the reader of all that lies in the mailboxes. Transitions that still find no room are
    /// lost with the worker; nobody has read for thousands of them.
    pub(crate) fn close(&mut self, now: Instant) {
        self.flush(now);
        if !self.spill.is_empty() {
            tracing::warn!(transitions = self.spill.len(), "stopped with health changes that nobody came to read");
        }
        self.wake();
    }

    fn wake(&mut self) {
        (self.transitions_new, self.samples_since) = (false, None);
        self.transitions.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Health, Held};
    use crate::mailbox::{Wake, mailbox};
    use crate::outcome::Code;
    use crate::target::TargetId;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn change(key: u64) -> Transition {
        Transition {
            id: TargetId(key),
            key,
            from: Health::Up,
            to: Health::Down,
            held: Held::No,
            code: Code::L4Refused,
            errno: 111,
            detail: crate::check::Detail::default(),
            rtt_ns: 1,
            due: crate::time::Instant::ZERO,
            streak: 3,
        }
    }

    fn sample(key: u64) -> Sample {
        Sample {
            id: TargetId(key),
            key,
            code: Code::L4Ok,
            errno: 0,
            detail: crate::check::Detail::default(),
            rtt_ns: 1,
            lateness_ns: 0,
            phases: crate::check::Phases::default(),
            kernel_rtt_us: 0,
            syn_retransmits: 0,
            health: Health::Up,
            held: Held::No,
            last: false,
        }
    }

    /// Transitions that find the mailbox full come later, all of them and in order; samples are dropped and counted.
    #[test]
    fn transitions_wait_and_samples_drop() {
        let bell = Arc::new(Bell(AtomicUsize::new(0)));
        let (transitions, changes) = mailbox(2, bell.clone());
        let (samples, taken) = mailbox(2, bell.clone());
        let (mut outbox, now) = (Outbox::new(transitions, Some(samples)), Instant::from_ns(1));
        for key in 0..5 {
            outbox.transition(change(key));
            outbox.sample(now, sample(key));
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            outbox.flush(now);
            seen.extend(std::iter::from_fn(|| changes.try_recv()).map(|t| t.key));
        }
        assert_eq!((seen, outbox.spill.is_empty()), (vec![0, 1, 2, 3, 4], true));
        assert_eq!((taken.len(), outbox.samples_dropped, outbox.transitions_made), (2, 3, 5));
    }

    /// One wake for many samples, when their time has come; one at once for a transition.
    #[test]
    fn wakes_are_few() {
        let bell = Arc::new(Bell(AtomicUsize::new(0)));
        let rung = || bell.0.load(Ordering::Relaxed);
        let (transitions, _changes) = mailbox(100, bell.clone());
        let (samples, _taken) = mailbox(100, bell.clone());
        let (mut outbox, now) = (Outbox::new(transitions, Some(samples)), Instant::from_ns(1));
        (0..10).for_each(|key| outbox.sample(now, sample(key)));
        outbox.flush(now);
        assert_eq!((rung(), outbox.next(now)), (0, Some(now + SAMPLES_WAKE)));
        outbox.flush(now + SAMPLES_WAKE);
        assert_eq!((rung(), outbox.next(now)), (1, None));
        outbox.transition(change(1));
        outbox.flush(now);
        assert_eq!(rung(), 2);
        (0..60).for_each(|key| outbox.sample(now, sample(key)));
        outbox.flush(now);
        assert_eq!(rung(), 3, "more than half full");
    }
}
