//! What the probers have counted since the engine started. Numbers only grow, but for those that say "now".

use crate::histogram::{Histogram, Summary, histogram, histogram_coarse, record};
use crate::outcome::Code;
use std::sync::Arc;
use std::time::Duration;

/// One worker's counters, or all workers' together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Probes started. Always `outcomes` + `abandoned` + those without an outcome yet.
    pub started: u64,
    /// Probes that came out, by [`Code`] in the order of [`Code::ALL`].
    pub outcomes: [u64; Code::COUNT],
    /// Probes whose target was removed, or whose engine was stopped, before they came out.
    pub abandoned: u64,
    /// Targets that have had all the probes of their count.
    pub ended: u64,
    /// Slots of the schedule that were skipped because the target's last probe was not over, or not even started.
    /// Never made up for.
    pub missed: u64,
    /// Answers that came after their probe had timed out.
    pub answers_late: u64,
    /// Completions that belonged to no probe in flight. Always 0, or an `Io` broke its promise.
    pub completions_stale: u64,
    /// Health changes published.
    pub transitions: u64,
    /// Samples dropped because nobody read them in time.
    pub samples_dropped: u64,
    /// Probes whose SYN had to be sent again, as far as is known: measured where the kernel was asked, else inferred.
    pub syn_retransmitted: u64,
    /// Those of them that were inferred from a connection that took 1, 3, 7 s and a little (RFC 6298: the first
    /// retransmission after 1 s, the next ones after twice the time).
    pub syn_inferred: u64,
    /// Times the prober held back because the kernel had no descriptor or memory for it.
    pub pauses: u64,
    /// Times the worker came to its work 5 ms or more after it meant to.
    pub stalls: u64,
    /// Failures that were not believed because the prober itself was sick.
    pub frozen: u64,
    /// Times a worker's prober was found sick.
    pub freezes: u64,
    /// How long workers have been frozen, summed up, nanoseconds; what goes on now included.
    pub frozen_ns: u64,
    /// Times that too many targets at once wanted to go down.
    pub alarms: u64,
    /// Failures that would have turned their target down and did not: held until confirmed.
    pub held: u64,
    /// Now: workers whose verdicts are frozen.
    pub workers_frozen: u64,
    /// Now: 1 while too many targets at once want to go down.
    pub alarm: u64,
    /// Now: targets that are due and wait because their network has its share of probes.
    pub capped: u64,
    /// Now: targets.
    pub targets: u64,
    /// Now: probes in flight, those included that have timed out and wait for the kernel to give their socket back.
    pub in_flight: u64,
    /// Now: targets that are due and wait for their turn.
    pub waiting: u64,
    /// Sockets opened for probes; they are kept and used again.
    pub lanes: u64,
}

impl Counters {
    /// Probes that came out with this code.
    pub fn outcome(&self, code: Code) -> u64 {
        self.outcomes[code as usize]
    }

    /// Probes that came out.
    pub fn finished(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    fn add(&mut self, other: &Counters) {
        self.started += other.started;
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(mine, theirs)| *mine += theirs);
        self.abandoned += other.abandoned;
        self.ended += other.ended;
        self.missed += other.missed;
        self.answers_late += other.answers_late;
        self.completions_stale += other.completions_stale;
        self.transitions += other.transitions;
        self.samples_dropped += other.samples_dropped;
        self.syn_retransmitted += other.syn_retransmitted;
        self.syn_inferred += other.syn_inferred;
        self.pauses += other.pauses;
        self.stalls += other.stalls;
        self.frozen += other.frozen;
        self.freezes += other.freezes;
        self.frozen_ns += other.frozen_ns;
        self.alarms += other.alarms;
        self.held += other.held;
        self.workers_frozen += other.workers_frozen;
        self.alarm += other.alarm;
        self.capped += other.capped;
        self.targets += other.targets;
        self.in_flight += other.in_flight;
        self.waiting += other.waiting;
        self.lanes += other.lanes;
    }
}

/// One worker's numbers, or all workers' together. Histograms count microseconds; those with two digits tell 100 µs from
/// 101 µs.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// Counts.
    pub counters: Counters,
    /// From start to outcome of the probes that were answered, well or badly: all but timeouts, unreachable hosts and
    /// the prober's own trouble.
    pub rtt: Histogram,
    /// Actual minus scheduled start of every probe: the prober's own lateness.
    pub lateness: Histogram,
    /// What the kernel measured from SYN to SYN/ACK (tcpi_rtt), of a sample of the probes, and of those that look slow.
    /// Two digits.
    pub kernel_rtt: Histogram,
    /// Until the connection was made, of talking checks. Two digits.
    pub connect: Histogram,
    /// Until the TLS handshake was over, of checks that make one. Two digits.
    pub tls: Histogram,
    /// Until the first byte of the answer, of talking checks. Two digits.
    pub first_byte: Histogram,
    /// By group, 1 first; `None`: nothing was counted in it.
    pub groups: Vec<Option<Arc<GroupNumbers>>>,
}

/// What is counted of one group of targets.
#[derive(Clone, Debug)]
pub struct GroupNumbers {
    /// Probes that came out, by [`Code`] in the order of [`Code::ALL`].
    pub outcomes: [u64; Code::COUNT],
    /// As [`Numbers::rtt`], with two digits.
    pub rtt: Histogram,
}

impl Default for GroupNumbers {
    fn default() -> Self {
        GroupNumbers { outcomes: [0; Code::COUNT], rtt: histogram_coarse() }
    }
}

impl GroupNumbers {
    /// Probes that came out with this code.
    pub fn outcome(&self, code: Code) -> u64 {
        self.outcomes[code as usize]
    }

    /// Probes that came out.
    pub fn finished(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    fn add(&mut self, other: &GroupNumbers) {
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(mine, theirs)| *mine += theirs);
        self.rtt.add(&other.rtt).expect("all groups' histograms have the same bounds");
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Numbers {
            counters: Counters::default(),
            rtt: histogram(),
            lateness: histogram(),
            kernel_rtt: histogram_coarse(),
            connect: histogram_coarse(),
            tls: histogram_coarse(),
            first_byte: histogram_coarse(),
            groups: Vec::new(),
        }
    }
}

impl Numbers {
    /// Nothing counted, with room for so many groups.
    pub(crate) fn with_groups(groups: usize) -> Numbers {
        Numbers { groups: vec![None; groups], ..Numbers::default() }
    }

    /// Counts an outcome in its group, if it has one. A group's numbers are made when its first outcome comes, and
    /// copied only after somebody has asked for them.
    pub(crate) fn on_group(&mut self, group: u16, code: Code, rtt: Option<Duration>) {
        let Some(place) = usize::from(group).checked_sub(1).and_then(|place| self.groups.get_mut(place)) else {
            return;
        };
        let numbers = Arc::make_mut(place.get_or_insert_with(Arc::default));
        numbers.outcomes[code as usize] += 1;
        if let Some(rtt) = rtt {
            record(&mut numbers.rtt, rtt);
        }
    }

    /// The round trips' summary.
    pub fn rtt_summary(&self) -> Summary {
        Summary::of(&self.rtt)
    }

    /// The lateness' summary.
    pub fn lateness_summary(&self) -> Summary {
        Summary::of(&self.lateness)
    }

    fn add(&mut self, other: &Numbers) {
        self.counters.add(&other.counters);
        let pairs = [
            (&mut self.rtt, &other.rtt),
            (&mut self.lateness, &other.lateness),
            (&mut self.kernel_rtt, &other.kernel_rtt),
            (&mut self.connect, &other.connect),
            (&mut self.tls, &other.tls),
            (&mut self.first_byte, &other.first_byte),
        ];
        for (mine, theirs) in pairs {
            mine.add(theirs).expect("all workers' histograms have the same bounds");
        }
        self.groups.resize(self.groups.len().max(other.groups.len()), None);
        for (mine, theirs) in self.groups.iter_mut().zip(&other.groups) {
            match (mine, theirs) {
                (_, None) => {}
                (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
                (Some(mine), Some(theirs)) => Arc::make_mut(mine).add(theirs),
            }
        }
    }
}

/// Since the engine started.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// All workers together.
    pub total: Numbers,
    /// Each worker, by its number.
    pub workers: Vec<Numbers>,
}

impl Stats {
    /// Adds the workers up.
    pub fn of(workers: Vec<Numbers>) -> Stats {
        let mut total = Numbers::default();
        workers.iter().for_each(|numbers| total.add(numbers));
        Stats { total, workers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The total is the sum of the workers, counters and histograms alike.
    #[test]
    fn the_total_is_the_sum() {
        let mut one = Numbers::default();
        one.counters.started = 3;
        one.counters.outcomes[Code::L4Timeout as usize] = 2;
        one.rtt.record(10).expect("in range");
        one.groups = vec![None; 3];
        one.on_group(2, Code::L7Status, Some(Duration::from_micros(10)));
        one.on_group(2, Code::L7Timeout, None);
        one.on_group(0, Code::L7Ok, None);
        one.on_group(4, Code::L7Ok, None);
        let stats = Stats::of(vec![one.clone(), one]);
        assert_eq!((stats.total.counters.started, stats.total.counters.outcome(Code::L4Timeout)), (6, 4));
        assert_eq!((stats.total.counters.finished(), stats.total.rtt.len()), (4, 2));
        let groups = &stats.total.groups;
        assert!(groups.len() == 3 && groups[0].is_none() && groups[2].is_none());
        let two = groups[1].as_deref().expect("counted in");
        assert_eq!((two.outcome(Code::L7Status), two.outcome(Code::L7Timeout), two.rtt.len()), (2, 2, 2));
        assert_eq!((two.finished(), two.outcome(Code::L7Ok)), (4, 0), "groups that do not exist count nothing");
    }
}
