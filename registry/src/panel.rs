//! Who checks an instance, and what is believed when several do.
//! Promise: up takes as many vantages as the quorum; down takes so many that the quorum cannot be had any more; whatever
//! is between is unknown. A vantage that is gone knows nothing: it is neither for nor against.
//! Pure: no socket, no clock.
//!
//! ```text
//! metadata of instance, else cluster, else service          votes, one for each vantage          what is believed
//! preserved.vantage = registry,agent:edge-7        ─────►   registry  up    L4OK      ─┐
//! preserved.quorum  = 2                                     agent:…   down  L4CON     ─┴─ 2 ─►   down L4CON
//! ```

use crate::health::{Health, HealthRecord, Reason};
use crate::model::{Instance, Invalid, Metadata, ServiceMeta, Vantage, cluster_name};
use ringspan_engine::time::Instant;
use std::num::NonZeroU8;
use std::sync::Arc;

/// Metadata key of an instance, a cluster or a service: who checks. `registry` and `agent:NAME`, separated by commas.
pub const VANTAGE_KEY: &str = "preserved.vantage";
/// Metadata key beside it: how many of them must find it well. Default: more than half.
pub const QUORUM_KEY: &str = "preserved.quorum";
/// Vantages of one instance: each is a probe of its own.
pub const VANTAGES_MAX: usize = 8;

/// Who checks, and how many of them have to agree that it is well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Panel {
    vantages: Vec<Vantage>,
    quorum: NonZeroU8,
}

impl Panel {
    /// A panel of these, in this order. `quorum`: 1 to as many as there are; `None`: more than half.
    ///
    /// # Errors
    /// [`Invalid`] for none, more than [`VANTAGES_MAX`], one twice, or a quorum that cannot be had.
    pub fn new(vantages: Vec<Vantage>, quorum: Option<u8>) -> Result<Panel, Invalid> {
        if vantages.is_empty() || vantages.len() > VANTAGES_MAX {
            return Err(Invalid::new(VANTAGE_KEY, format!("it should name 1 to {VANTAGES_MAX} vantages.")));
        }
        if let Some(twice) = (1..vantages.len()).find(|&i| vantages[..i].contains(&vantages[i])) {
            return Err(Invalid::new(VANTAGE_KEY, format!("{} is named twice.", vantages[twice])));
        }
        let count = u8::try_from(vantages.len()).expect("at most 8");
        let quorum = quorum.unwrap_or(count / 2 + 1);
        match NonZeroU8::new(quorum).filter(|q| q.get() <= count) {
            Some(quorum) => Ok(Panel { vantages, quorum }),
            None => {
                Err(Invalid::new(QUORUM_KEY, format!("{quorum} is not from 1 to {count}, the vantages there are.")))
            }
        }
    }

    /// What metadata asks for, if it does.
    ///
    /// # Errors
    /// [`Invalid`] if it asks for what cannot be.
    pub fn of(metadata: &Metadata) -> Result<Option<Panel>, Invalid> {
        let quorum = metadata.get(QUORUM_KEY).map(|text| text.trim());
        let Some(text) = metadata.get(VANTAGE_KEY) else {
            return match quorum {
                None => Ok(None),
                Some(_) => Err(Invalid::new(QUORUM_KEY, format!("it needs {VANTAGE_KEY} beside it."))),
            };
        };
        let vantages = text.split(',').map(|one| parse(one.trim())).collect::<Result<_, _>>()?;
        let number = |text: &str| text.parse().map_err(|_| Invalid::new(QUORUM_KEY, format!("{text:?} is no number.")));
        Panel::new(vantages, quorum.map(number).transpose()?).map(Some)
    }

    /// Who checks this instance, if others do than would without being asked: the registry a persistent one, its
    /// beats an ephemeral one, its agent what an agent exposes.
    pub fn effective(record: &Instance, meta: Option<&ServiceMeta>) -> Option<Panel> {
        if record.vantage != Vantage::Registry {
            return None;
        }
        // What is stored has been checked.
        let of = |metadata: &Metadata| Panel::of(metadata).ok().flatten();
        let cluster = || meta.and_then(|m| m.clusters.get(record.id.cluster())).and_then(|c| of(&c.metadata));
        let service = || meta.and_then(|m| of(&m.metadata));
        let panel = of(&record.metadata).or_else(cluster).or_else(service)?;
        let is_default = !record.ephemeral && panel.vantages == [Vantage::Registry];
        let is_checked = meta.is_none_or(|m| m.checker(record.id.cluster()).asked(&record.id).is_some());
        (is_checked && !is_default).then_some(panel)
    }

    /// Writes it where [`Panel::of`] reads it.
    pub fn write(&self, metadata: &mut Metadata) {
        let names: Vec<String> = self.vantages.iter().map(Vantage::to_string).collect();
        metadata.insert(VANTAGE_KEY.into(), names.join(","));
        metadata.insert(QUORUM_KEY.into(), self.quorum.to_string());
    }

    /// Who.
    pub fn vantages(&self) -> &[Vantage] {
        &self.vantages
    }

    /// How many of them.
    pub fn quorum(&self) -> u8 {
        self.quorum.get()
    }
}

/// Reads one vantage: `registry`, or `agent:NAME`.
///
/// # Errors
/// [`Invalid`] for anything else.
pub fn parse(text: &str) -> Result<Vantage, Invalid> {
    let wrong = |_| Invalid::new(VANTAGE_KEY, format!("{text:?} is neither \"registry\" nor \"agent:NAME\"."));
    match text.strip_prefix("agent:") {
        _ if text == "registry" => Ok(Vantage::Registry),
        Some(name) => cluster_name(name).map(Vantage::Agent).map_err(wrong),
        None => Err(wrong(Invalid::new(VANTAGE_KEY, ""))),
    }
}

/// Whether the agent that the registry calls `agent` answers to `name`: the same, or without the digits of its id.
pub fn answers_to(agent: &str, name: &str) -> bool {
    let digits = agent.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    agent == name || digits.is_some_and(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What one vantage found.
#[derive(Clone, Debug, PartialEq)]
pub struct Vote {
    /// Who.
    pub vantage: Vantage,
    /// What, why, since when.
    pub health: HealthRecord,
}

/// What each vantage of a panel found.
#[derive(Clone, Debug, PartialEq)]
pub struct Ballot {
    /// In the panel's order.
    pub votes: Vec<Vote>,
    /// How many must find it well.
    pub quorum: u8,
}

impl Ballot {
    /// What is believed: the verdict, and the vote that made it so: the last that had to come.
    pub fn verdict(&self) -> (Health, HealthRecord) {
        let of = |health| self.votes.iter().map(|v| v.health).filter(move |h| h.health == health);
        let (up, down) = (of(Health::Up).count(), of(Health::Down).count());
        let against = self.votes.len() - usize::from(self.quorum);
        let latest = |health| of(health).max_by_key(|h| h.since);
        match (up >= usize::from(self.quorum), down > against) {
            (true, _) => (Health::Up, latest(Health::Up).expect("a quorum is at least one")),
            (false, true) => (Health::Down, latest(Health::Down).expect("one more than some is at least one")),
            // Why it is not known: rather who cannot tell than who has not looked yet.
            (false, false) => {
                let told = of(Health::Unknown).find(|h| h.reason != Reason::Unseen);
                (Health::Unknown, told.or_else(|| of(Health::Unknown).next()).expect("somebody does not know"))
            }
        }
    }

    /// Whether this vantage has a vote.
    pub fn has(&self, vantage: &Vantage) -> bool {
        self.votes.iter().any(|v| v.vantage == *vantage)
    }

    /// Agents that have a vote, as they are named.
    pub fn agents(&self) -> impl Iterator<Item = &crate::model::Name> {
        self.votes.iter().filter_map(|v| match &v.vantage {
            Vantage::Agent(name) => Some(name),
            Vantage::Registry => None,
        })
    }

    /// Whether the vantages are the same, and the quorum.
    pub(crate) fn is_of(&self, panel: &Panel) -> bool {
        self.quorum == panel.quorum() && self.votes.iter().map(|v| &v.vantage).eq(panel.vantages())
    }

    /// A ballot for `panel`; who voted before keeps what it said, of the others `fresh` says why they do not know.
    pub(crate) fn new(
        panel: &Panel,
        before: Option<&Ballot>,
        now: Instant,
        fresh: impl Fn(&Vantage) -> Reason,
    ) -> Arc<Ballot> {
        let vote = |vantage: &Vantage| {
            let known = before.and_then(|b| b.votes.iter().find(|v| v.vantage == *vantage));
            known.cloned().unwrap_or_else(|| {
                let health = HealthRecord { reason: fresh(vantage), ..HealthRecord::unseen(now) };
                Vote { vantage: vantage.clone(), health }
            })
        };
        Arc::new(Ballot { votes: panel.vantages().iter().map(vote).collect(), quorum: panel.quorum() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Checker, Cluster, InstanceId, Name};

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// What is taken for a panel and what is refused, naming the key: table.
    #[test]
    fn panels() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Result<&'a str, &'a str>);
        let cases: &[Case<'_>] = &[
            (&[], Ok("none")),
            (&[(VANTAGE_KEY, "registry")], Ok("registry 1")),
            (&[(VANTAGE_KEY, "registry, agent:edge-7")], Ok("registry,agent:edge-7 2")),
            (&[(VANTAGE_KEY, "agent:a,agent:b,agent:c")], Ok("agent:a,agent:b,agent:c 2")),
            (&[(VANTAGE_KEY, "agent:a,registry"), (QUORUM_KEY, "1")], Ok("agent:a,registry 1")),
            (&[(VANTAGE_KEY, "")], Err(VANTAGE_KEY)),
            (&[(VANTAGE_KEY, "agent:")], Err(VANTAGE_KEY)),
            (&[(VANTAGE_KEY, "agent:a/b")], Err(VANTAGE_KEY)),
            (&[(VANTAGE_KEY, "moon")], Err(VANTAGE_KEY)),
            (&[(VANTAGE_KEY, "registry,registry")], Err(VANTAGE_KEY)),
            (
                &[(VANTAGE_KEY, "agent:1,agent:2,agent:3,agent:4,agent:5,agent:6,agent:7,agent:8,agent:9")],
                Err(VANTAGE_KEY),
            ),
            (&[(VANTAGE_KEY, "registry"), (QUORUM_KEY, "0")], Err(QUORUM_KEY)),
            (&[(VANTAGE_KEY, "registry"), (QUORUM_KEY, "2")], Err(QUORUM_KEY)),
            (&[(VANTAGE_KEY, "registry"), (QUORUM_KEY, "all")], Err(QUORUM_KEY)),
            (&[(QUORUM_KEY, "1")], Err(QUORUM_KEY)),
        ];
        for (pairs, want) in cases {
            let got = Panel::of(&metadata(pairs)).map_err(|e| e.param).map(|panel| {
                panel.map_or("none".to_owned(), |p| {
                    let names: Vec<String> = p.vantages().iter().map(Vantage::to_string).collect();
                    format!("{} {}", names.join(","), p.quorum())
                })
            });
            assert_eq!(got, want.map(str::to_owned), "{pairs:?}");
        }
    }

    /// An instance's word goes before its cluster's, that before its service's; what everybody has is no panel.
    #[test]
    fn the_nearest_word_counts() {
        let id = InstanceId::new("", "10.0.0.1", 80).unwrap();
        let says = |vantage: &str| metadata(&[(VANTAGE_KEY, vantage)]);
        let mut record = Instance::new(id);
        let mut meta = ServiceMeta { metadata: says("agent:service"), ..ServiceMeta::default() };
        let first = |record: &Instance, meta: &ServiceMeta| {
            Panel::effective(record, Some(meta)).map(|p| p.vantages()[0].to_string())
        };
        assert_eq!(first(&record, &meta).as_deref(), Some("agent:service"));
        let cluster = Cluster { metadata: says("agent:cluster"), ..Cluster::default() };
        meta.clusters.insert(Name::from("DEFAULT"), cluster);
        assert_eq!(first(&record, &meta).as_deref(), Some("agent:cluster"));
        record.metadata = says("agent:own");
        assert_eq!(first(&record, &meta).as_deref(), Some("agent:own"));
        record.metadata = says("registry");
        assert_eq!(first(&record, &meta), None, "the registry checks a persistent one anyway");
        record.ephemeral = true;
        assert_eq!(first(&record, &meta).as_deref(), Some("registry"), "an ephemeral one only if asked");
        meta.clusters.insert(Name::from("DEFAULT"), Cluster { checker: Checker::none(), ..Cluster::default() });
        assert_eq!(first(&record, &meta), None, "nothing is asked, so nobody asks");
    }

    /// Every ballot of up to three votes: up takes the quorum, down takes that it cannot be had, the rest is unknown.
    #[test]
    fn verdicts() {
        const ALL: [Health; 3] = [Health::Up, Health::Down, Health::Unknown];
        for n in 1..=3usize {
            for quorum in 1..=n {
                for code in 0..3usize.pow(n as u32) {
                    let of = |i: usize| ALL[code / 3usize.pow(i as u32) % 3];
                    let vote = |i: usize| Vote {
                        vantage: Vantage::Agent(Name::from(format!("a{i}"))),
                        health: HealthRecord { health: of(i), ..HealthRecord::unseen(Instant::from_ns(i as u64)) },
                    };
                    let ballot = Ballot { votes: (0..n).map(vote).collect(), quorum: quorum as u8 };
                    let count = |h| (0..n).filter(|&i| of(i) == h).count();
                    let (up, unknown) = (count(Health::Up), count(Health::Unknown));
                    let want = if up >= quorum {
                        Health::Up
                    } else if up + unknown < quorum {
                        Health::Down
                    } else {
                        Health::Unknown
                    };
                    let (got, decided) = ballot.verdict();
                    assert_eq!((got, decided.health), (want, want), "{ballot:?}");
                }
            }
        }
    }

    /// An agent answers to its name with and without its id.
    #[test]
    fn names() {
        for (name, want) in [("edge-7", true), ("edge-7-0a1b2c3d", true), ("edge", false), ("edge-7-0a1b2c3", false)] {
            assert_eq!(answers_to("edge-7-0a1b2c3d", name), want, "{name}");
        }
        assert!(!answers_to("edge-7-quitelon", "edge-7"));
    }
}
