//! What the names of targets mean: looked up at the start, again each minute, and each five seconds while they fail.
//! Promise: a target whose name has no address costs itself, and is counted; one whose name moves is probed at its new
//! place with what is believed of it.

use super::handover::Handover;
use super::resolver::{Answer, Resolver};
use super::roster::{Roster, Step};
use ringspan_engine::health::Health;
use ringspan_engine::mailbox::Wake;
use std::collections::HashMap;
use std::sync::Arc;

/// A name that is well is asked for again after so long: the resolver does not tell how long an answer is good for, and
/// a minute is what name servers of moving things say.
const AGAIN_S: u32 = 60;
/// One that has no address, or whose target is down.
const AGAIN_FAILING_S: u32 = 5;
/// The answer is on its way.
const PENDING: u32 = u32::MAX;

/// See the module.
pub(super) struct Names {
    resolver: Resolver,
    /// Names without an address at present, and why.
    failed: HashMap<String, String>,
    /// Names that have never been answered.
    unanswered: usize,
    looked_s: u32,
}

impl Names {
    /// Asks for all names.
    pub(super) fn new(bell: Arc<dyn Wake>, roster: &mut Roster) -> Names {
        let resolver = Resolver::new(bell);
        let mut names = Names { resolver, failed: HashMap::new(), unanswered: 0, looked_s: 0 };
        names.unanswered = names.ask(roster, |_, _| true);
        names
    }

    /// The roster is another: asks for the names that are new in it.
    pub(super) fn restart(&mut self, roster: &mut Roster, now_s: u32) {
        self.failed.clear();
        for named in &mut roster.names {
            // An answer that is on its way will find its rows, whoever asked.
            if named.address.is_some() && named.asked_s == PENDING {
                named.asked_s = now_s;
            }
        }
        self.unanswered += self.ask(roster, |roster, first| roster.names[first].address.is_none());
    }

    /// Whether every name has been answered once.
    pub(super) fn is_settled(&self) -> bool {
        self.unanswered == 0
    }

    /// Why a target's name means nothing, if so.
    pub(super) fn trouble(&self, roster: &Roster, row: u32) -> Option<&str> {
        if self.failed.is_empty() {
            return None;
        }
        self.failed.get(&roster.host(row)?).map(String::as_str)
    }

    /// Targets whose names have no address.
    pub(super) fn unresolved(&self, roster: &Roster) -> u64 {
        if self.failed.is_empty() {
            return 0;
        }
        roster.names.iter().filter(|named| named.address.is_none()).count() as u64
    }

    /// Takes answers, and asks again for what is due. `follows`: whether targets move with their names.
    pub(super) fn turn(&mut self, now_s: u32, roster: &mut Roster, handover: &mut Handover, follows: bool) {
        while let Some(answer) = self.resolver.answer() {
            self.unanswered = self.unanswered.saturating_sub(1);
            self.on_answer(answer, now_s, roster, handover, follows);
        }
        if now_s > self.looked_s && !roster.names.is_empty() {
            self.looked_s = now_s;
            self.ask(roster, |roster, first| {
                let named = &roster.names[first];
                let is_failing = named.address.is_none() || roster.health(named.row) == Health::Down;
                let again = if is_failing { AGAIN_FAILING_S } else { AGAIN_S };
                named.asked_s != PENDING && now_s >= named.asked_s + again
            });
        }
    }

    /// Asks for each name that is due; how many.
    fn ask(&mut self, roster: &mut Roster, is_due: impl Fn(&Roster, usize) -> bool) -> usize {
        let (mut first, mut asked) = (0, 0);
        while first < roster.names.len() {
            if roster.names[first].asked_s != PENDING
                && is_due(roster, first)
                && let Some(host) = roster.host(roster.names[first].row)
            {
                let end = end_of(roster, first, &host);
                roster.names[first..end].iter_mut().for_each(|named| named.asked_s = PENDING);
                self.resolver.ask(host);
                asked += 1;
                first = end;
            } else {
                first += 1;
            }
        }
        asked
    }

    fn on_answer(&mut self, answer: Answer, now_s: u32, roster: &mut Roster, handover: &mut Handover, follows: bool) {
        let Answer { host, found } = answer;
        let first = roster.names.partition_point(|named| roster.host(named.row).as_deref() < Some(&host));
        let end = end_of(roster, first, &host);
        for at in first..end {
            let (row, before) = (roster.names[at].row, roster.names[at].address);
            roster.names[at].asked_s = now_s;
            match &found {
                // Servers deal their addresses out in turn: one that is still among them is still right.
                Ok(all) if before.is_some_and(|ip| all.contains(&ip)) => {}
                Ok(all) => {
                    roster.names[at].address = all.first().copied();
                    match roster.id(row) {
                        None => handover.push(Step::Add(row)),
                        Some(id) if follows => {
                            tracing::info!(target = roster.shown(row), address = ?all.first(), "the name has moved");
                            handover.renew(roster, row, id);
                        }
                        Some(_) => {}
                    }
                }
                Err(_) => {}
            }
        }
        match found {
            Ok(_) => drop(self.failed.remove(&host)),
            Err(error) => {
                // What was known before is better than nothing.
                if (first..end).any(|at| roster.names[at].address.is_none()) {
                    if !self.failed.contains_key(&host) {
                        tracing::warn!(host, error, "the name has no address");
                    }
                    self.failed.insert(host, error);
                }
            }
        }
    }
}

/// Where the rows of a name end that begin at `first`.
fn end_of(roster: &Roster, first: usize, host: &str) -> usize {
    first + roster.names[first..].partition_point(|named| roster.host(named.row).as_deref() <= Some(host))
}
