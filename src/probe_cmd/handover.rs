//! Targets on their way to the engine: what waits because a worker's mailbox is full, or a name is not known yet.
//! Promise: nothing blocks; what did not fit goes with the next [`Handover::pump`].

use super::roster::{Roster, Step};
use ringspan_engine::engine::Probes;
use ringspan_engine::mailbox::Full;
use ringspan_engine::target::{INTERVAL_MIN, Target, TargetId};
use std::collections::VecDeque;
use std::time::Duration;

/// Spread of a single round: 20 µs a target is 50 000 probes a second, about what two cores do.
const SPREAD_EACH: Duration = Duration::from_micros(20);

/// See the module.
pub(super) struct Handover {
    probes: Probes,
    count: Option<u32>,
    /// Rows of the first reading are added in order; up to here it has come.
    cursor: u32,
    /// Where the first reading ends.
    end: u32,
    queue: VecDeque<Step>,
    /// Targets that the engine has been given.
    pub(super) added: u64,
}

impl Handover {
    /// Of all rows there are.
    pub(super) fn new(probes: Probes, roster: &mut Roster, count: Option<u32>) -> Handover {
        // A single round has no rhythm to keep: it is spread just enough not to be a burst.
        if count == Some(1) {
            roster.cap_intervals((SPREAD_EACH * roster.len()).max(INTERVAL_MIN));
        }
        Handover { probes, count, cursor: 0, end: roster.len(), queue: VecDeque::new(), added: 0 }
    }

    /// More to do.
    pub(super) fn push(&mut self, step: Step) {
        self.queue.push_back(step);
    }

    /// Whether the engine has all that it can be given.
    pub(super) fn is_idle(&self) -> bool {
        self.cursor == self.end && self.queue.is_empty()
    }

    /// Hands over until the engine has had enough.
    pub(super) fn pump(&mut self, roster: &mut Roster) {
        while let Some(step) = self.queue.front().copied() {
            let is_done = match step {
                Step::Remove(id) => self.probes.remove(id).is_ok(),
                Step::Add(row) => self.add(roster, row),
                Step::Update(row) => match roster.id(row) {
                    Some(id) => self.probes.update(id, roster.sheet_of(row).policy.clone()).is_ok(),
                    None => true,
                },
            };
            if !is_done {
                return;
            }
            self.queue.pop_front();
        }
        if self.cursor < self.end {
            self.pump_rows(roster);
        }
    }

    /// The rows of the first reading, by the thousand.
    fn pump_rows(&mut self, roster: &mut Roster) {
        let (mut rows, mut ids) = (Vec::new(), Vec::new());
        let mut targets = (self.cursor..self.end).filter_map(|row| {
            let target = self.target(roster, row)?;
            rows.push(row);
            Some(target)
        });
        let is_full = self.probes.add_all(&mut targets, &mut ids).is_err();
        drop(targets);
        // The row after the last that went is the one that did not.
        self.cursor = if is_full { rows[ids.len()] } else { self.end };
        self.added += ids.len() as u64;
        rows.into_iter().zip(ids).for_each(|(row, id)| roster.set_id(row, Some(id)));
    }

    /// What to give the engine; `None`: it has the row, nobody knows its address yet, or it is gone.
    fn target(&self, roster: &Roster, row: u32) -> Option<Target> {
        if !roster.is_live(row) || roster.id(row).is_some() {
            return None;
        }
        let address = roster.address(row)?;
        let sheet = roster.sheet_of(row);
        Some(Target {
            address,
            check: roster.check(row).clone(),
            policy: sheet.policy.clone(),
            initial: roster.health(row),
            count: self.count,
            key: row.into(),
            group: sheet.group,
        })
    }

    /// Whether the row needs no more care.
    fn add(&mut self, roster: &mut Roster, row: u32) -> bool {
        let Some(target) = self.target(roster, row) else { return true };
        match self.probes.add(target) {
            Ok(id) => {
                roster.set_id(row, Some(id));
                self.added += 1;
                true
            }
            Err(Full(_)) => false,
        }
    }

    /// Takes a target back, to be added anew.
    pub(super) fn renew(&mut self, roster: &mut Roster, row: u32, id: TargetId) {
        roster.set_id(row, None);
        self.push(Step::Remove(id));
        self.push(Step::Add(row));
    }
}
