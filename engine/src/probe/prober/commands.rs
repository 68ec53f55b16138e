//! Orders from outside: which targets there are, and how they are probed.

use super::Prober;
use crate::check::Check;
use crate::probe::watched::{Stage, Watched};
use crate::resident::Cx;
use crate::slab::Key;
use crate::target::{Policy, Target};
use crate::time::Instant;
use std::sync::Arc;

/// Commands taken in one turn: about 0.2 ms of work.
const COMMANDS_BATCH: usize = 512;

/// What a prober is asked to do.
pub(crate) enum Command {
    /// Probe this, under this name.
    Add(Key, Target),
    /// Forget it.
    Remove(Key),
    /// Probe it by another policy from now on.
    Update(Key, Arc<Policy>),
    /// Ask it otherwise from now on.
    Recheck(Key, Check),
    /// Probe it once at once, if it is not being probed.
    ProbeNow(Key),
}

impl Prober {
    /// Returns whether there may be more.
    pub(super) fn take_commands(&mut self, cx: &mut Cx<'_>) -> bool {
        for _ in 0..COMMANDS_BATCH {
            match self.parts.commands.try_recv() {
                Some(Command::Add(key, target)) => self.on_add(cx.now, key, &target),
                Some(Command::Remove(key)) => self.on_remove(cx, key),
                Some(Command::Update(key, policy)) => self.on_update(cx.now, key, &policy),
                Some(Command::Recheck(key, check)) => self.on_recheck(cx, key, &check),
                Some(Command::ProbeNow(key)) => self.on_probe_now(cx.now, key),
                None => return false,
            }
        }
        true
    }

    fn on_add(&mut self, now: Instant, key: Key, target: &Target) {
        let watched = Watched::new(target, now);
        let (slot, stage) = (watched.slot, watched.stage);
        self.parts.flock.on_change(false, watched.is_standing());
        let fresh = self.watched.insert_at(key, watched);
        assert!(fresh, "a name is given out once at a time");
        if stage == Stage::Waiting {
            self.schedule.arm(key.index, slot);
        }
    }

    fn on_remove(&mut self, cx: &mut Cx<'_>, key: Key) {
        self.leave(cx.now, key);
        let Some((watched, next)) = self.watched.remove_at(key) else { return };
        self.parts.flock.on_change(watched.is_standing(), false);
        self.schedule.disarm(key.index);
        if let Stage::Flying(flight) = watched.stage {
            self.withdraw(cx, flight);
        }
        self.names_freed.push(next);
        // Whoever was due stays in its queue as a name that finds nothing; those must not pile up.
        if self.lanes.waiting() > 2 * self.watched.len() as usize + 1024 {
            let watched = &self.watched;
            self.lanes.retain(|key| watched.get(key).is_some());
        }
        if let Some(nets) = &mut self.parts.nets {
            let watched = &self.watched;
            nets.sweep(cx.now, watched.len() as usize, |key| watched.get(key).is_some());
        }
    }

    fn on_update(&mut self, now: Instant, key: Key, policy: &Arc<Policy>) {
        let Some(watched) = self.watched.get_mut(key) else { return };
        watched.set_policy(policy);
        if watched.stage == Stage::Waiting {
            watched.slot = watched.first_slot(now);
            self.schedule.arm(key.index, watched.slot);
        }
    }

    /// A probe in flight asks what nobody wants to know any more. Whoever is due stays in its queue and is asked the
    /// new question; if that needs another kind of lane it is sent to the other queue when its turn comes.
    fn on_recheck(&mut self, cx: &mut Cx<'_>, key: Key, check: &Check) {
        let Some(watched) = self.watched.get_mut(key) else { return };
        let stage = watched.stage;
        watched.set_check(check);
        match stage {
            Stage::Flying(flight) => {
                watched.stage = Stage::Finished;
                self.withdraw(cx, flight);
            }
            Stage::Waiting => {
                watched.stage = Stage::Finished;
                self.schedule.disarm(key.index);
            }
            Stage::Finished => {}
            Stage::Due => return,
        }
        let watched = self.watched.get_mut(key).expect("it was there a moment ago");
        if watched.is_to_be_probed() {
            watched.stage = Stage::Waiting;
            watched.slot = watched.first_slot(cx.now);
            self.schedule.arm(key.index, watched.slot);
        }
    }

    fn on_probe_now(&mut self, now: Instant, key: Key) {
        let Some(watched) = self.watched.get_mut(key) else { return };
        if watched.stage == Stage::Waiting {
            self.schedule.disarm(key.index);
            watched.force(now);
            self.admit(now, key);
        }
    }
}
