//! A registry of several members that share one etcd: what is in it, who has what, and how the table follows.
//! Promise: a change is acknowledged when etcd has it and this member's table shows it. Changes from elsewhere come in etcd's
//! order. What is believed of an instance is the latest verdict of whoever's turn it was; a member that goes takes no
//! verdict with it.
//! [`Cluster`] reads no clock and touches no socket: news go in, transactions come out. `feed` and `etcd` do the talking.
//!
//! ```text
//! commands ─► table (at once, unpublished) ─► plan: transactions guarded by revisions ─► etcd
//!                  ▲                               │ others were faster: revert, follow, apply again
//!                  └──────── take ◄── watch ◄──────┴── done: published when the watch has brought it back
//! ```

pub(crate) mod etcd;
pub(crate) mod feed;
pub(crate) mod keys;
mod shares;
pub(crate) mod stats;

pub use etcd::EtcdOptions;
pub use shares::Shares;
pub use stats::ClusterStats;

use crate::health::{Health, Reason};
use crate::model::{InstanceId, ServiceKey, Vantage};
use crate::table::{Change, Changes, Entry, Table};
use etcd::{Compare, KeyValue, Op, Txn, WatchEvent};
use keys::{Key, SHARDS, StoredMember, Verdict};
use ringspan_engine::time::Instant;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How to be a member of a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store that all members share.
    pub etcd: EtcdOptions,
    /// What all keys begin with; members with the same one are a cluster.
    pub prefix: String,
    /// This member's name, which no other one has.
    pub member: String,
    /// Where others find this member's HTTP API.
    pub address: String,
}

/// Operations of one transaction; etcd's own limit is 128, and each brings a comparison with it, services another.
pub(crate) const OPS_MAX: usize = 60;
/// Shards written in one go: 100 of 8 KiB are well under etcd's 1.5 MB.
const SHARDS_AT_ONCE: usize = 60;
/// The verdicts of a member that is gone are kept for as long, and by then are those of their new keepers.
const FORGET: Duration = Duration::from_secs(60);

type Which = (ServiceKey, InstanceId);

/// When a key was changed last, and when it came to be.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    revision: i64,
    created: i64,
}

/// This member's picture of the cluster.
pub(crate) struct Cluster {
    prefix: Vec<u8>,
    me: String,
    run: u64,
    /// Whether the others have been told of us.
    has_joined: bool,
    /// Services' and instances' keys, without the prefix.
    known: HashMap<Vec<u8>, Known>,
    /// Who listens for an ephemeral instance, or has an agent's session.
    owners: HashMap<Which, String>,
    members: BTreeMap<String, StoredMember>,
    shares: watch::Sender<Arc<Shares>>,
    /// The latest verdict of each instance: its revision, and whose it is.
    latest: HashMap<Which, (i64, String)>,
    /// What this member has judged last, by shard, and which shards are to be written.
    mine: Vec<BTreeMap<Which, Verdict>>,
    dirty: BTreeSet<usize>,
    /// Members that have verdicts in etcd and do not live, and since when.
    believers: HashMap<String, Option<Instant>>,
    applied: watch::Sender<i64>,
}

/// Whether agents were asked to look at it.
fn asks_agents(entry: &Entry) -> bool {
    entry.ballot.as_ref().is_some_and(|ballot| ballot.agents().next().is_some())
}

/// Whether what is known of it comes from agents.
fn is_of_agents(entry: &Entry) -> bool {
    entry.record.vantage != Vantage::Registry || asks_agents(entry)
}

impl Cluster {
    /// A member that knows nothing yet.
    pub(crate) fn new(options: &Options, run: u64) -> Cluster {
        Cluster {
            prefix: options.prefix.clone().into_bytes(),
            me: options.member.clone(),
            run,
            has_joined: false,
            known: HashMap::new(),
            owners: HashMap::new(),
            members: BTreeMap::new(),
            shares: watch::Sender::new(Arc::new(Shares::new(&options.member, []))),
            latest: HashMap::new(),
            mine: vec![BTreeMap::new(); SHARDS],
            dirty: BTreeSet::new(),
            believers: HashMap::new(),
            applied: watch::Sender::new(0),
        }
    }

    pub(crate) fn shares(&self) -> &watch::Sender<Arc<Shares>> {
        &self.shares
    }

    /// The revision up to which the table follows.
    pub(crate) fn applied(&self) -> &watch::Sender<i64> {
        &self.applied
    }

    /// The table follows up to `revision`, and readers see it.
    pub(crate) fn reach(&self, revision: i64) {
        self.applied.send_if_modified(|applied| {
            let moved = *applied < revision;
            *applied = revision.max(*applied);
            moved
        });
    }

    fn revision(&self) -> i64 {
        *self.applied.borrow()
    }

    /// Makes the table what etcd has as of one revision, whatever was missed.
    pub(crate) fn take_all(&mut self, now: Instant, table: &mut Table, kvs: Vec<KeyValue>) -> Vec<Changes> {
        let prefix = self.prefix.len();
        let there: BTreeSet<&[u8]> = kvs.iter().map(|kv| &kv.key[prefix..]).collect();
        let mut gone: Vec<Vec<u8>> = self.known.keys().filter(|k| !there.contains(&k[..])).cloned().collect();
        let absent = self.members.keys().map(|m| keys::member_key(m)).filter(|k| !there.contains(&k[..]));
        gone.extend(absent);
        let mut changes = Vec::new();
        for key in gone {
            self.take_gone(now, table, &key, &mut changes);
        }
        // Members first: who has what depends on who lives. Verdicts last: they are of instances.
        let (mut first, rest): (Vec<KeyValue>, Vec<KeyValue>) =
            kvs.into_iter().partition(|kv| kv.key[prefix..].starts_with(b"m/"));
        let (verdicts, records): (Vec<KeyValue>, Vec<KeyValue>) =
            rest.into_iter().partition(|kv| kv.key[prefix..].starts_with(b"h/"));
        first.extend(records);
        first.extend(verdicts);
        for kv in first {
            self.take_put(now, table, &kv, &mut changes);
        }
        changes
    }

    /// One change from elsewhere, or our own come back.
    pub(crate) fn take(&mut self, now: Instant, table: &mut Table, event: &WatchEvent) -> Vec<Changes> {
        let mut changes = Vec::new();
        let Some(kv) = &event.kv else { return changes };
        match event.kind {
            0 => self.take_put(now, table, kv, &mut changes),
            _ => self.take_gone(now, table, &kv.key[self.prefix.len()..], &mut changes),
        }
        changes
    }

    fn take_put(&mut self, now: Instant, table: &mut Table, kv: &KeyValue, changes: &mut Vec<Changes>) {
        let key = &kv.key[self.prefix.len()..];
        let known = Known { revision: kv.mod_revision, created: kv.create_revision };
        if self.known.get(key) == Some(&known) {
            return;
        }
        let strange = |problem: String| tracing::warn!(key = %kv.key.escape_ascii(), problem, "etcd: left out");
        match Key::read(key) {
            Some(Key::Service(rest)) => match keys::read_service(rest, &kv.value) {
                Ok((service, meta)) => {
                    self.known.insert(key.to_vec(), known);
                    changes.push(table.mirror_service(now, &service, Some(meta)));
                }
                Err(problem) => strange(problem),
            },
            Some(Key::Instance(rest)) => match keys::read_instance(rest, &kv.value) {
                Ok((service, record, owner)) => {
                    self.known.insert(key.to_vec(), known);
                    let which = (service, record.id.clone());
                    let away = self.is_away(owner.as_deref(), &which.1);
                    match owner {
                        Some(owner) => drop(self.owners.insert(which.clone(), owner)),
                        None => drop(self.owners.remove(&which)),
                    }
                    changes.push(table.mirror(now, &which.0, record, away));
                }
                Err(problem) => strange(problem),
            },
            Some(Key::Member(name)) => match serde_json::from_slice::<StoredMember>(&kv.value) {
                Ok(member) => {
                    if name == self.me {
                        // At the start it may be what an earlier process of ours has left.
                        let is_us = member.run == self.run;
                        if self.has_joined && !is_us {
                            let other = &member.address;
                            tracing::warn!(member = name, other, "another process has this member's name: stop one");
                        }
                        self.has_joined |= is_us;
                        if is_us {
                            // While we were no member nobody believed what our agents found.
                            let said = self.mine.iter().enumerate().filter(|(_, shard)| !shard.is_empty());
                            self.dirty.extend(said.map(|(shard, _)| shard));
                        }
                    }
                    self.members.insert(name.to_owned(), member);
                    self.share_out(now, table, changes);
                }
                Err(problem) => strange(problem.to_string()),
            },
            Some(Key::Health { member }) => {
                if !self.believers.contains_key(member) {
                    let since = (!self.members.contains_key(member)).then_some(now);
                    self.believers.insert(member.to_owned(), since);
                }
                for (which, verdict) in keys::read_shard(&kv.value) {
                    self.hear(now, table, member, which, verdict, changes);
                }
            }
            Some(Key::Barrier | Key::Access) => {}
            None => strange("no key of ours; is the prefix shared with something else?".into()),
        }
    }

    fn take_gone(&mut self, now: Instant, table: &mut Table, key: &[u8], changes: &mut Vec<Changes>) {
        self.known.remove(key);
        match Key::read(key) {
            Some(Key::Service(rest)) => {
                if let Ok(service) = keys::read_service_key(rest) {
                    changes.push(table.mirror_service(now, &service, None));
                }
            }
            Some(Key::Instance(rest)) => {
                if let Ok(which) = keys::read_instance_key(rest) {
                    changes.push(table.mirror_gone(&which.0, &which.1));
                    self.forget(&which);
                }
            }
            Some(Key::Member(name)) => {
                if self.members.remove(name).is_some() {
                    tracing::info!(member = name, "member has left");
                    if let Some(since) = self.believers.get_mut(name) {
                        *since = Some(now);
                    }
                    self.share_out(now, table, changes);
                }
            }
            Some(Key::Health { .. } | Key::Barrier | Key::Access) | None => {}
        }
    }

    /// Whether somebody else listens for an instance. One whose owner is gone falls to its keeper.
    fn is_away(&self, owner: Option<&str>, id: &InstanceId) -> bool {
        match owner {
            None => false,
            Some(owner) if owner == self.me => false,
            Some(owner) if self.members.contains_key(owner) => true,
            Some(_) => !self.shares.borrow().is_ours(id),
        }
    }

    /// Members have come or gone: whoever has what now.
    fn share_out(&mut self, now: Instant, table: &mut Table, changes: &mut Vec<Changes>) {
        let shares = Arc::new(Shares::new(&self.me, self.members.keys().cloned()));
        let old = self.shares.borrow().clone();
        if *old == *shares {
            return;
        }
        for (name, since) in &mut self.believers {
            if self.members.contains_key(name) {
                *since = None;
            }
        }
        tracing::info!(members = shares.members().join(","), "shares are dealt anew");
        self.shares.send_replace(shares.clone());
        // Beliefs about what is ours now, and was not, are ours to keep from here on.
        let mut adopted = Vec::new();
        for (service, _, entries) in table.services() {
            for entry in entries.filter(|e| e.record.vantage == Vantage::Registry && !e.record.ephemeral) {
                let id = &entry.record.id;
                // What agents found is for the member to keep that they are connected to.
                if asks_agents(entry) {
                    continue;
                }
                if shares.is_ours(id) && !old.is_ours(id) && entry.health.reason != Reason::Unseen {
                    adopted.push(((service.clone(), id.clone()), entry.health));
                }
            }
        }
        for (which, health) in adopted {
            self.judge(which, health);
        }
        let owned: Vec<(Which, String)> = self.owners.iter().map(|(w, o)| (w.clone(), o.clone())).collect();
        for ((service, id), owner) in owned {
            table.set_away(now, &service, &id, self.is_away(Some(&owner), &id));
            let of_agent = table.entry(&service, &id).is_some_and(|e| e.record.vantage != Vantage::Registry);
            if of_agent && owner != self.me && !self.members.contains_key(&owner) {
                let gone = (Health::Unknown, Reason::AgentGone, 0);
                changes.push(table.mirror_health(now, (&service, &id), gone));
            }
        }
        // With a member went its agents, and with them what they found.
        let lives = |member: &str| member == self.me || self.members.contains_key(member);
        let judged = self.latest.iter().filter(|(_, (_, member))| !lives(member)).map(|(which, _)| which.clone());
        for (service, id) in judged.collect::<Vec<_>>() {
            if table.entry(&service, &id).is_some_and(asks_agents) {
                let gone = (Health::Unknown, Reason::AgentGone, 0);
                changes.push(table.mirror_health(now, (&service, &id), gone));
            }
        }
    }

    /// Somebody's verdict, which counts if none is later, and if it is of the instance that is there now.
    fn hear(
        &mut self,
        now: Instant,
        table: &mut Table,
        member: &str,
        which: Which,
        verdict: Verdict,
        changes: &mut Vec<Changes>,
    ) {
        let created = self.known.get(&keys::instance_key(&which.0, &which.1)).map(|k| k.created);
        if created.is_none_or(|created| verdict.revision < created) {
            return;
        }
        if self.owners.get(&which).is_some_and(|owner| owner == &self.me && member != self.me) {
            return;
        }
        let news = match self.latest.get(&which) {
            None => true,
            Some((revision, whose)) => {
                verdict.revision > *revision || (verdict.revision == *revision && whose == member)
            }
        };
        if !news {
            return;
        }
        self.latest.insert(which.clone(), (verdict.revision, member.to_owned()));
        let shard = keys::shard(&which.0, &which.1);
        // What agents found is worth nothing without them: of a member that is gone, and of an earlier process of ours.
        let is_void = match member == self.me {
            true => !self.mine[shard].contains_key(&which),
            false => !self.members.contains_key(member),
        };
        if is_void && verdict.health != Health::Unknown && table.entry(&which.0, &which.1).is_some_and(is_of_agents) {
            let gone = (Health::Unknown, Reason::AgentGone, 0);
            changes.push(table.mirror_health(now, (&which.0, &which.1), gone));
            if let (true, Some(entry)) = (member == self.me, table.entry(&which.0, &which.1)) {
                self.judge(which, entry.health);
            }
            return;
        }
        if member == self.me {
            // What we have said since counts; what an earlier process of our name has said is ours to keep.
            self.mine[shard].entry(which.clone()).or_insert(verdict);
        } else if self.mine[shard].remove(&which).is_some() {
            self.dirty.insert(shard);
        }
        let belief = (verdict.health, verdict.reason, verdict.rtt_ns);
        changes.push(table.mirror_health(now, (&which.0, &which.1), belief));
    }

    /// What this member's own commands have changed: its beliefs are for the others to hear.
    /// Where several vantages vote, each member counts those that it hears. Without agents among them that is the keeper;
    /// with them it is whoever they are connected to, since nobody else has news of them.
    pub(crate) fn note(&mut self, table: &Table, changes: &Changes) {
        for change in &changes.list {
            match change {
                Change::Health { service, id, after, .. } => {
                    let entry = table.entry(service, id);
                    let votes = entry.is_some_and(|e| e.ballot.is_some() && !asks_agents(e));
                    if !votes || self.shares.borrow().is_ours(id) {
                        self.judge((service.clone(), id.clone()), *after);
                    }
                }
                Change::Instance { service, id, after: None, .. } => self.forget(&(service.clone(), id.clone())),
                _ => {}
            }
        }
    }

    fn judge(&mut self, which: Which, health: crate::health::HealthRecord) {
        let revision = self.revision();
        let verdict = Verdict { health: health.health, reason: health.reason, rtt_ns: health.rtt_ns, revision };
        let shard = keys::shard(&which.0, &which.1);
        self.latest.insert(which.clone(), (revision, self.me.clone()));
        self.mine[shard].insert(which, verdict);
        self.dirty.insert(shard);
    }

    fn forget(&mut self, which: &Which) {
        self.owners.remove(which);
        self.latest.remove(which);
        let shard = keys::shard(&which.0, &which.1);
        if self.mine[shard].remove(which).is_some() {
            self.dirty.insert(shard);
        }
    }

    /// The transactions that bring what a batch has changed into etcd: each key as the table has it now, if it still is as
    /// we know it. A service that gets an instance more, or loses its settings, must not have changed at all: whether that may be
    /// depends on all that is in it. More than one: only for a single command of very many instances.
    pub(crate) fn plan<'a>(&self, table: &Table, batch: impl Iterator<Item = &'a Changes>) -> Vec<Txn> {
        let mut keys_changed = BTreeMap::<Vec<u8>, Option<Vec<u8>>>::new();
        let mut quiet = BTreeSet::<&ServiceKey>::new();
        let put = |service: &ServiceKey, id: &InstanceId| {
            let value = table.entry(service, id).map(|entry| {
                let owned = entry.record.ephemeral || entry.record.vantage != Vantage::Registry;
                keys::instance(&entry.record, owned.then_some(&*self.me))
            });
            (keys::instance_key(service, id), value)
        };
        for change in batch.flat_map(|c| &c.list) {
            match change {
                // A beating instance registers again and again: nothing that others need to know.
                Change::Instance { service, id, before: Some(before), after: Some(after) }
                    if before.record == after.record
                        && self.owners.get(&(service.clone(), id.clone())).is_none_or(|owner| *owner == self.me)
                        && self.known.contains_key(&keys::instance_key(service, id)) => {}
                Change::Instance { service, id, before, after } => {
                    keys_changed.extend([put(service, id)]);
                    let of_agent = after.as_ref().is_some_and(|e| e.record.vantage != Vantage::Registry);
                    if before.is_none() && !of_agent {
                        quiet.insert(service);
                    }
                }
                Change::Service { service, after, .. } => {
                    let value = table.meta(service).map(|meta| keys::service(meta));
                    keys_changed.insert(keys::service_key(service), value);
                    if after.is_none() {
                        quiet.insert(service);
                    }
                }
                Change::Agent { agent, after: Some((_, true)), .. } => {
                    let all = table.agents().filter(|(name, ..)| *name == agent).flat_map(|(.., instances)| instances);
                    let others = all.filter(|which| self.owners.get(*which).is_none_or(|owner| *owner != self.me));
                    keys_changed.extend(others.map(|(service, id)| put(service, id)));
                }
                _ => {}
            }
        }
        let revision_of = |key: &[u8]| self.known.get(key).map_or(0, |known| known.revision);
        keys_changed.retain(|key, value| value.is_some() || revision_of(key) > 0);
        let all: Vec<_> = keys_changed.into_iter().collect();
        let mut txns: Vec<Txn> = all
            .chunks(OPS_MAX)
            .map(|chunk| {
                let mut txn = Txn::default();
                for (key, value) in chunk {
                    let full = [&self.prefix[..], key].concat();
                    txn.compare.push(Compare::unchanged(full.clone(), revision_of(key)));
                    txn.success.push(match value {
                        Some(value) => Op::put(full, value.clone(), 0),
                        None => Op::delete(full),
                    });
                }
                txn
            })
            .collect();
        if let Some(first) = txns.first_mut() {
            let here = |service| [&self.prefix[..], &keys::instances_of(service)].concat();
            first.compare.extend(quiet.into_iter().map(|s| Compare::quiet(here(s), self.revision())));
        }
        txns
    }

    /// How many operations these changes need, about.
    pub(crate) fn cost(changes: &Changes) -> usize {
        changes.list.iter().filter(|c| !matches!(c, Change::Health { .. })).count()
    }

    /// Whether others know this process as a member, as far as we have heard.
    fn is_member(&self) -> bool {
        self.members.get(&self.me).is_some_and(|member| member.run == self.run)
    }

    /// What others are to hear of this member's beliefs, and which shards that is of. Nothing before it is a member: others
    /// hear both in etcd's order, and what agents of no member have found is void to them.
    pub(crate) fn verdicts(&mut self) -> Option<(Vec<usize>, Txn)> {
        if !self.is_member() {
            return None;
        }
        let mut shards = Vec::new();
        while shards.len() < SHARDS_AT_ONCE
            && let Some(shard) = self.dirty.pop_first()
        {
            shards.push(shard);
        }
        let put = |&shard: &usize| {
            let key = [&self.prefix[..], &keys::health_key(&self.me, shard)].concat();
            Op::put(key, keys::shard_value(self.mine[shard].iter()), 0)
        };
        let success: Vec<Op> = shards.iter().map(put).collect();
        (!shards.is_empty()).then_some((shards, Txn { compare: Vec::new(), success }))
    }

    /// They did not arrive.
    pub(crate) fn again(&mut self, shards: Vec<usize>) {
        self.dirty.extend(shards);
    }

    /// Removes the verdicts of members long gone; the first of those that live does it.
    pub(crate) fn tidy(&mut self, now: Instant) -> Option<Txn> {
        if self.shares.borrow().members().first() != Some(&self.me) {
            return None;
        }
        let is_old = |since: &Option<Instant>| since.is_some_and(|since| now >= since + FORGET);
        let gone: Vec<String> = self.believers.iter().filter(|(_, s)| is_old(s)).map(|(m, _)| m.clone()).collect();
        let success: Vec<Op> =
            gone.iter().map(|member| Op::delete_all([&self.prefix[..], &keys::health_of(member)].concat())).collect();
        for member in gone {
            self.believers.remove(&member);
        }
        (!success.is_empty()).then_some(Txn { compare: Vec::new(), success })
    }

    /// The members that live, and where.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members.iter().map(|(name, member)| (&**name, &*member.address))
    }
}
