//! What one who looks is asked, for which instances, and what it found last.
//! Promise: a question is asked once, however many instances it is for; who comes later hears what is known. A key is
//! never used twice, so that late news of a target that was removed are not taken for its successor's.
//! Pure: no socket, no clock.

use super::{Finding, Key};
use crate::checker::Asked;
use crate::health::Health;
use crate::table::Delta;
use ringspan_engine::target::TargetId;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

/// Who is asked.
pub(super) trait Asker {
    /// Starts to ask; `believed` is what is known so far. `None`: no room now, try again.
    fn ask(&mut self, key: u64, asked: &Asked, believed: Health) -> Option<TargetId>;
    /// Stops. `false`: no room now, try again.
    fn leave_off(&mut self, id: TargetId) -> bool;
}

/// See the module.
#[derive(Default)]
pub(super) struct Keeper {
    /// What each instance is asked, and where.
    asked: HashMap<Key, Asked>,
    targets: HashMap<Asked, Probed>,
    /// A target's key, to what it is.
    keys: HashMap<u64, Asked>,
    key_last: u64,
    /// What could not be added yet, and targets that could not be removed yet.
    to_add: Vec<Asked>,
    to_remove: Vec<TargetId>,
    /// What the registry is to hear.
    pub(super) news: Vec<Delta>,
}

/// One address that is asked something.
struct Probed {
    key: u64,
    /// `None`: not asked yet.
    id: Option<TargetId>,
    last: Option<Finding>,
    instances: Here,
}

/// The instances at one address. Nearly always there is one, and a set of one takes ten times its room.
enum Here {
    One(Key),
    More(Box<BTreeSet<Key>>),
}

impl Here {
    fn insert(&mut self, key: Key) {
        match self {
            Here::One(known) if *known == key => {}
            Here::One(known) => *self = Here::More(Box::new(BTreeSet::from([known.clone(), key]))),
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
        self.to_add.is_empty() && self.to_remove.is_empty() && self.news.is_empty()
    }

    /// Instances for which something is asked.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Key> {
        self.asked.keys()
    }

    /// What is to be asked for an instance from now on (`None`: nothing), and what somebody else has found there.
    pub(super) fn set(&mut self, key: &Key, wanted: Option<Asked>, believed: Option<Finding>) {
        if self.asked.get(key) != wanted.as_ref() {
            self.leave(key);
            if let Some(asked) = wanted {
                self.join(key.clone(), asked, believed);
            }
        }
    }

    fn join(&mut self, key: Key, asked: Asked, believed: Option<Finding>) {
        // Equal questions are one, also in memory.
        let asked = self.targets.get_key_value(&asked).map_or(asked, |(known, _)| known.clone());
        match self.targets.entry(asked.clone()) {
            Entry::Occupied(mut target) => target.get_mut().instances.insert(key.clone()),
            Entry::Vacant(place) => {
                self.key_last += 1;
                self.keys.insert(self.key_last, asked.clone());
                self.to_add.push(asked.clone());
                place.insert(Probed {
                    key: self.key_last,
                    id: None,
                    last: believed,
                    instances: Here::One(key.clone()),
                });
            }
        }
        self.asked.insert(key, asked);
    }

    fn leave(&mut self, key: &Key) {
        let Some(asked) = self.asked.remove(key) else { return };
        let target = self.targets.get_mut(&asked).expect("what an instance is asked is probed");
        if target.instances.remove(key) {
            let target = self.targets.remove(&asked).expect("it was there a moment ago");
            self.keys.remove(&target.key);
            match target.id {
                Some(id) => self.to_remove.push(id),
                None => self.to_add.retain(|a| *a != asked),
            }
        }
    }

    /// Says again what was found at an instance's address.
    pub(super) fn remind(&mut self, key: &Key) {
        let target = self.asked.get(key).and_then(|asked| self.targets.get(asked));
        if let Some(finding) = target.and_then(|t| t.last) {
            self.news.push(finding.delta(key));
        }
    }

    /// Adds and removes what could not be so far. Removals first: they make room.
    pub(super) fn press_on(&mut self, asker: &mut impl Asker) {
        let mut room = true;
        self.to_remove.retain(|id| {
            room = room && asker.leave_off(*id);
            !room
        });
        while let Some(asked) = self.to_add.last() {
            let target = self.targets.get_mut(asked).expect("what is to be added is wanted");
            target.id = asker.ask(target.key, asked, target.last.map_or(Health::Unknown, |finding| finding.health));
            if target.id.is_none() {
                break;
            }
            self.to_add.pop();
        }
    }

    /// Something was found out.
    pub(super) fn found(&mut self, key: u64, finding: Finding) {
        let target = self.keys.get(&key).and_then(|asked| self.targets.get_mut(asked));
        let Some(target) = target else { return };
        target.last = Some(finding);
        self.news.extend(target.instances.iter().map(|key| finding.delta(key)));
    }
}
