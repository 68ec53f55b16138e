//! What one who looks is asked, for which instances, and what it found last.
//! Promise: a question is asked once, however many instances it is for; who comes later hears what is known. A key is
//! never used twice, so that late news of a target that was removed are not taken for its successor's.
//! Pure: no socket, no clock.

use super::{Finding, Key};
use crate::checker::Asked;
use crate::health::Health;
use crate::table::Delta;
use ringspan_engine::target::TargetId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Who is asked.
pub(super) trait Asker {
    /// Starts to ask; `believed` is what is known so far. `None`: no room now, try again.
    fn ask(&mut self, key: u64, asked: &Asked, believed: Health) -> Option<TargetId>;
    /// Asks out of turn; the first outcome is the answer. `None`: no room now, try again.
    fn ask_once(&mut self, key: u64, asked: &Asked) -> Option<TargetId>;
    /// Stops. `false`: no room now, try again.
    fn leave_off(&mut self, id: TargetId) -> bool;
}

/// With std's hash `Keeper::set` took 5.5 % of a registration's CPU time, with this one 3.9. These keys are names that whoever may register has
/// chosen; the seeds are this process's.
type Table<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// See the module.
#[derive(Default)]
pub(super) struct Keeper {
    /// Each instance's target.
    asked: Table<Key, u64>,
    /// The target of each question.
    known: Table<Asked, u64>,
    /// By its key.
    targets: Table<u64, Probed>,
    key_last: u64,
    /// What could not be added yet, and targets that could not be removed yet.
    to_add: Vec<u64>,
    to_remove: Vec<TargetId>,
    /// What is asked out of turn, and not answered yet; `None`: not asked yet.
    urgent: BTreeMap<u64, (Asked, Option<TargetId>)>,
    /// What came of it.
    done: HashMap<u64, Finding>,
    /// What the registry is to hear.
    pub(super) news: Vec<Delta>,
}

/// One address that is asked something.
struct Probed {
    asked: Asked,
    /// `None`: not asked yet.
    id: Option<TargetId>,
    last: Option<Finding>,
    instances: Here,
}

/// The instances at one address. Nearly always there is one, and a set of one takes ten times its room.
enum Here {
    One(Key),
    More(BTreeSet<Key>),
}

impl Here {
    fn insert(&mut self, key: Key) {
        match self {
            Here::One(known) if *known == key => {}
            Here::One(known) => *self = Here::More(BTreeSet::from([known.clone(), key])),
            Here::More(all) => drop(all.insert(key)),
        }
    }

    /// Takes one out; whether none is left.
    fn remove(&mut self, key: &Key) -> bool {
        match self {
            Here::One(known) => known == key,
            Here::More(all) => {
                all.remove(key);
                all.is_empty()
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Key> {
        let (one, more) = match self {
            Here::One(key) => (Some(key), None),
            Here::More(all) => (None, Some(all.iter())),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

impl Finding {
    fn delta(self, (service, id): &Key) -> Delta {
        let Finding { health, reason, rtt_ns, due } = self;
        Delta { service: service.clone(), id: id.clone(), health, reason, rtt_ns, due }
    }
}

impl Keeper {
    pub(super) fn new() -> Keeper {
        Keeper::default()
    }

    /// Whether nothing waits for room somewhere.
    pub(super) fn is_settled(&self) -> bool {
        let is_asked = |(_, id): &(Asked, Option<TargetId>)| id.is_some();
        self.to_add.is_empty()
            && self.to_remove.is_empty()
            && self.news.is_empty()
            && self.urgent.values().all(is_asked)
    }

    /// Instances for which something is asked.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Key> {
        self.asked.keys()
    }

    /// What is to be asked for an instance from now on (`None`: nothing), and what somebody else has found there.
    pub(super) fn set(&mut self, key: &Key, wanted: Option<Asked>, believed: Option<Finding>) {
        let target = self.asked.get(key).and_then(|target| self.targets.get(target));
        if target.map(|t| &t.asked) != wanted.as_ref() {
            self.leave(key);
            if let Some(asked) = wanted {
                self.join(key.clone(), asked, believed);
            }
        }
    }

    fn join(&mut self, key: Key, asked: Asked, believed: Option<Finding>) {
        let target = self.known.get(&asked).and_then(|known| Some((*known, self.targets.get_mut(known)?)));
        let target = match target {
            Some((known, target)) => {
                target.instances.insert(key.clone());
                known
            }
            None => {
                self.key_last += 1;
                self.known.insert(asked.clone(), self.key_last);
                self.to_add.push(self.key_last);
                let target = Probed { asked, id: None, last: believed, instances: Here::One(key.clone()) };
                self.targets.insert(self.key_last, target);
                self.key_last
            }
        };
        self.asked.insert(key, target);
    }

    fn leave(&mut self, key: &Key) {
        let Some(target) = self.asked.remove(key) else { return };
        let known = self.targets.get_mut(&target).expect("what an instance is asked is probed");
        if known.instances.remove(key) {
            let gone = self.targets.remove(&target).expect("it was there a moment ago");
            self.known.remove(&gone.asked);
            match gone.id {
                Some(id) => self.to_remove.push(id),
                None => self.to_add.retain(|waits| *waits != target),
            }
        }
    }

    /// Says again what was found at an instance's address.
    pub(super) fn remind(&mut self, key: &Key) {
        let target = self.asked.get(key).and_then(|target| self.targets.get(target));
        if let Some(finding) = target.and_then(|t| t.last) {
            self.news.push(finding.delta(key));
        }
    }

    /// Asks what is asked for an instance once more, out of turn, if anything is. What comes of it is the answer to this key;
    /// one that is under way serves both.
    pub(super) fn hurry(&mut self, key: &Key) -> Option<u64> {
        let asked = &self.targets.get(self.asked.get(key)?)?.asked;
        if let Some((key, _)) = self.urgent.iter().find(|(_, (urgent, _))| urgent == asked) {
            return Some(*key);
        }
        self.key_last += 1;
        self.urgent.insert(self.key_last, (asked.clone(), None));
        Some(self.key_last)
    }

    /// What came of what was asked out of turn, since the last call.
    pub(super) fn take_done(&mut self) -> HashMap<u64, Finding> {
        std::mem::take(&mut self.done)
    }

    /// Adds and removes what could not be so far. Removals first: they make room.
    pub(super) fn press_on(&mut self, asker: &mut impl Asker) {
        let mut room = true;
        self.to_remove.retain(|id| {
            room = room && asker.leave_off(*id);
            !room
        });
        for (key, (asked, id)) in self.urgent.iter_mut().filter(|(_, (_, id))| id.is_none()) {
            *id = asker.ask_once(*key, asked);
            if id.is_none() {
                return;
            }
        }
        while let Some(key) = self.to_add.last() {
            let target = self.targets.get_mut(key).expect("what is to be added is wanted");
            let believed = target.last.map_or(Health::Unknown, |finding| finding.health);
            target.id = asker.ask(*key, &target.asked, believed);
            if target.id.is_none() {
                break;
            }
            self.to_add.pop();
        }
    }

    /// Something was found out.
    pub(super) fn found(&mut self, key: u64, finding: Finding) {
        if let Some((asked, id)) = self.urgent.remove(&key) {
            self.to_remove.extend(id);
            self.done.insert(key, finding);
            self.begin_anew(&asked, finding);
            return;
        }
        let Some(target) = self.targets.get_mut(&key) else { return };
        target.last = Some(finding);
        self.news.extend(target.instances.iter().map(|key| finding.delta(key)));
    }

    /// What was found out of turn counts: whoever is asked in turn goes on from there, and not from what it believes itself.
    fn begin_anew(&mut self, asked: &Asked, finding: Finding) {
        if finding.health == Health::Unknown {
            // It could not look: that says nothing.
            return;
        }
        let found = self.known.get(asked).and_then(|known| Some((*known, self.targets.remove(known)?)));
        let Some((mut key, mut target)) = found else { return };
        target.last = Some(finding);
        self.news.extend(target.instances.iter().map(|key| finding.delta(key)));
        // One that is still to be added begins so by itself.
        if let Some(id) = target.id.take() {
            self.to_remove.push(id);
            self.key_last += 1;
            key = self.key_last;
            for instance in target.instances.iter() {
                self.asked.insert(instance.clone(), key);
            }
            self.known.insert(asked.clone(), key);
            self.to_add.push(key);
        }
        self.targets.insert(key, target);
    }
}
