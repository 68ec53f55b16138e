//! One message in, one message out: what DNS is told of services.
//! Promise: whatever the bytes are, there is no panic and no recursion; nothing is said of names outside of the zone; an answer
//! is never longer than the asker can take; and a message that is no query is not answered, so that two servers cannot be set
//! at each other.
//! Uses `names`, `pick`. Pure but for the snapshot: chance comes in.
//!
//! A name is looked for as it is written, capitals only where they are escaped. If there is no such service, and no capital was
//! escaped, the one service that differs in the case of letters alone is meant; if there are several, none is.

use super::Options;
use super::names::{Meaning, Path, Word, host_label, meaning, service_labels};
use super::pick::{by_address, draw, shown, srv_weights};
use super::stats::{Kind, Outcome};
use crate::model::{GROUP_DEFAULT, NAMESPACE_DEFAULT, ServiceKey, Vantage};
use crate::snapshot::{ServiceView, Snapshot};
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;
use std::sync::Arc;

/// Longest answer over UDP, whatever the asker says that he can take: it fits a packet on any path (DNS Flag Day 2020).
const UDP_BYTES_MAX: u16 = 1232;
/// The same without EDNS: RFC 1035, section 4.2.1.
const PLAIN_BYTES_MAX: u16 = 512;
/// A message's head.
const HEAD_BYTES: usize = 12;
/// Records a query may bring: OPT, and a signature that is not looked at.
const EXTRAS_MAX: u16 = 3;
/// What secondaries, of which there are none, would go by. Seconds.
const SOA_TIMES: (i32, i32, i32) = (3600, 600, 86_400);

/// What is sent back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) outcome: Outcome,
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Udp,
    Tcp,
}

/// What stands under a name.
enum Found {
    Records { answers: Vec<RData>, extras: Vec<(Name, RData)> },
    NoData,
    NoName,
}

impl Found {
    fn records(answers: Vec<RData>) -> Found {
        if answers.is_empty() { Found::NoData } else { Found::Records { answers, extras: Vec::new() } }
    }
}

/// Answers for one zone.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    apex: Name,
    /// Labels of `apex`.
    depth: usize,
    ttl: u32,
    answers_max: usize,
    /// `None`: all.
    namespaces: Option<Vec<String>>,
    /// Where we are, for who asks who answers here.
    server: Vec<IpAddr>,
}

impl Zone {
    pub(super) fn new(options: &Options, server: Vec<IpAddr>) -> Zone {
        let apex = options.zone.0.clone();
        let ttl = u32::try_from(options.ttl.as_secs()).unwrap_or(u32::MAX);
        let Options { answers_max, namespaces, .. } = options;
        Zone {
            depth: apex.iter().count(),
            apex,
            ttl,
            answers_max: (*answers_max).into(),
            namespaces: namespaces.clone(),
            server,
        }
    }

    /// The answer to a message; `None`: it is no query.
    pub(super) fn answer(
        &self,
        snapshot: &Snapshot,
        bytes: &[u8],
        way: Way,
        chance: &mut fastrand::Rng,
    ) -> Option<Reply> {
        let head = Head::read(bytes)?;
        if head.op_code != 0 {
            return Some(head.reply(ResponseCode::NotImp, Outcome::NotImplemented));
        }
        let query = if head.is_plain() { Message::from_vec(bytes).ok() } else { None };
        let Some(query) = query else { return Some(head.reply(ResponseCode::FormErr, Outcome::Malformed)) };
        Some(self.answer_query(snapshot, &query, way, chance))
    }

    /// What says TC and nothing else, for a query that is not answered now.
    pub(super) fn slip(bytes: &[u8]) -> Option<Vec<u8>> {
        Head::read(bytes).filter(|head| head.op_code == 0 && head.is_plain())?;
        let mut message = response(&Message::from_vec(bytes).ok()?);
        message.metadata.truncation = true;
        message.to_vec().ok()
    }

    fn answer_query(&self, snapshot: &Snapshot, query: &Message, way: Way, chance: &mut fastrand::Rng) -> Reply {
        let mut message = response(query);
        let question = &query.queries[0];
        let (name, asked) = (question.name(), question.query_type());
        let kind = Kind::of(asked);
        let edns = query.edns.as_ref();
        let size_max = match way {
            Way::Tcp => u16::MAX,
            Way::Udp => edns.map_or(PLAIN_BYTES_MAX, |e| e.max_payload().clamp(PLAIN_BYTES_MAX, UDP_BYTES_MAX)),
        };
        let refuse = |mut message: Message, code: ResponseCode, outcome: Outcome| {
            message.metadata.response_code = code;
            reply(message, size_max, kind, outcome)
        };
        if edns.is_some_and(|e| e.version() > 0) {
            return refuse(message, ResponseCode::BADVERS, Outcome::BadVersion);
        }
        let is_transfer = matches!(asked, RecordType::AXFR | RecordType::IXFR);
        let is_ours = question.query_class() == DNSClass::IN && self.apex.zone_of(name);
        if !is_ours || is_transfer || query.signature.is_some() {
            return refuse(message, ResponseCode::Refused, Outcome::Refused);
        }
        message.metadata.authoritative = true;
        let found = self.find(snapshot, name, asked, chance);
        let outcome = match found {
            Found::Records { answers, extras } => {
                let record = |data| Record::from_rdata(name.clone(), self.ttl, data);
                message.add_answers(answers.into_iter().map(record));
                message.add_additionals(extras.into_iter().map(|(n, data)| Record::from_rdata(n, self.ttl, data)));
                Outcome::Answered
            }
            Found::NoData => Outcome::NoData,
            Found::NoName => {
                message.metadata.response_code = ResponseCode::NXDomain;
                Outcome::NoName
            }
        };
        if outcome != Outcome::Answered {
            // RFC 2308: how long this may be remembered.
            message.add_authority(Record::from_rdata(self.apex.clone(), self.ttl, self.soa()));
        }
        reply(message, size_max, kind, outcome)
    }

    fn find(&self, snapshot: &Snapshot, name: &Name, asked: RecordType, chance: &mut fastrand::Rng) -> Found {
        let labels: Vec<&[u8]> = name.iter().collect();
        let front = &labels[..labels.len().saturating_sub(self.depth)];
        let found = match meaning(front) {
            Meaning::Apex => match asked {
                RecordType::SOA => Found::records(vec![self.soa()]),
                RecordType::NS => Found::records(self.below(&["ns"]).map(|ns| RData::NS(NS(ns))).into_iter().collect()),
                _ => Found::NoData,
            },
            Meaning::Server => Found::records(self.server.iter().filter_map(|ip| address(*ip, asked)).collect()),
            Meaning::Parent => Found::NoData,
            Meaning::Nothing => Found::NoName,
            Meaning::Service(path) => self.find_service(snapshot, &path, asked, chance),
            Meaning::Host(ip, path) => match self.service(snapshot, &path) {
                Some(view) if has_host(&view, ip) => Found::records(address(ip, asked).into_iter().collect()),
                _ => Found::NoName,
            },
        };
        match found {
            // RFC 8482: who asks for everything is told that there is something.
            Found::Records { .. } | Found::NoData if asked == RecordType::ANY => {
                Found::records(vec![RData::HINFO(HINFO::new("RFC8482".into(), String::new()))])
            }
            found => found,
        }
    }

    fn find_service(&self, snapshot: &Snapshot, path: &Path, asked: RecordType, chance: &mut fastrand::Rng) -> Found {
        let Some(view) = self.service(snapshot, path) else {
            return if self.is_parent(snapshot, path) { Found::NoData } else { Found::NoName };
        };
        let cluster = match &path.cluster {
            None => None,
            Some(word) => match cluster_of(&view, word) {
                Some(cluster) => Some(cluster),
                None => return Found::NoName,
            },
        };
        match asked {
            RecordType::A | RecordType::AAAA if !path.is_srv => {
                let choices = by_address(shown(&view, cluster.as_deref()), asked == RecordType::A);
                let drawn = draw(choices, self.answers_max, chance);
                Found::records(drawn.iter().filter_map(|c| address(c.address, asked)).collect())
            }
            RecordType::SRV => self.srv(&view, cluster.as_deref(), chance),
            _ => Found::NoData,
        }
    }

    fn srv(&self, view: &ServiceView, cluster: Option<&str>, chance: &mut fastrand::Rng) -> Found {
        let drawn = draw(shown(view, cluster), self.answers_max, chance);
        // A name that leads to the service but would be too long with an address before it has no targets.
        let Some(service) = service_labels(&view.key) else { return Found::NoData };
        let (mut answers, mut extras) = (Vec::new(), Vec::<(Name, RData)>::new());
        for (choice, weight) in drawn.iter().zip(srv_weights(&drawn)) {
            let mut labels = vec![host_label(choice.address)];
            labels.extend(service.iter().cloned());
            labels.push("host".into());
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let Some(target) = self.below(&labels) else { return Found::NoData };
            answers.push(RData::SRV(SRV::new(0, weight, choice.record.id.port(), target.clone())));
            if extras.iter().all(|(name, _)| *name != target) {
                let data = match choice.address {
                    IpAddr::V4(ip) => RData::A(A(ip)),
                    IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
                };
                extras.push((target, data));
            }
        }
        if answers.is_empty() { Found::NoData } else { Found::Records { answers, extras } }
    }

    /// The service that is meant.
    fn service(&self, snapshot: &Snapshot, path: &Path) -> Option<Arc<ServiceView>> {
        let namespace = path.namespace.as_ref().map_or(NAMESPACE_DEFAULT, |w| &w.text);
        let group = group_of(path.group.as_ref());
        let key = ServiceKey::new(namespace, group, &path.service.text).ok()?;
        let words = [Some(&path.service), path.group.as_ref(), path.namespace.as_ref()];
        let is_exact = words.into_iter().flatten().any(|w| w.exact);
        let view = snapshot.service(&key).or_else(|| snapshot.service_alike(&key).filter(|_| !is_exact))?;
        let is_served = |all: &Vec<String>| all.iter().any(|n| **n == **view.key.namespace());
        self.namespaces.as_ref().is_none_or(is_served).then_some(view)
    }

    /// Whether services lie below what would be a service's name: then the name is there, and has no records.
    fn is_parent(&self, snapshot: &Snapshot, path: &Path) -> bool {
        if path.is_srv || path.cluster.is_some() || path.namespace.is_some() {
            return false;
        }
        let is_served = |name: &str| self.namespaces.as_ref().is_none_or(|all| all.iter().any(|n| n == name));
        match &path.group {
            None => is_served(&path.service.text) && snapshot.has(&path.service.text, None),
            Some(namespace) => {
                is_served(&namespace.text) && snapshot.has(&namespace.text, Some(group_of(Some(&path.service))))
            }
        }
    }

    fn below(&self, labels: &[&str]) -> Option<Name> {
        Name::from_labels(labels.iter().map(|l| l.as_bytes())).ok()?.append_domain(&self.apex).ok()
    }

    fn soa(&self) -> RData {
        let name = |label| self.below(&[label]).unwrap_or_else(|| self.apex.clone());
        let (refresh, retry, expire) = SOA_TIMES;
        RData::SOA(SOA::new(name("ns"), name("hostmaster"), 1, refresh, retry, expire, self.ttl))
    }
}

/// The head of a message, read by hand: the one part of one that is no DNS otherwise which can be answered.
struct Head {
    id: u16,
    op_code: u8,
    recursion_desired: bool,
    questions: u16,
    answers: u16,
    authorities: u16,
    extras: u16,
}

impl Head {
    /// `None`: it is too short, or an answer.
    fn read(bytes: &[u8]) -> Option<Head> {
        let head = bytes.get(..HEAD_BYTES)?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        (head[2] & 0x80 == 0).then(|| Head {
            id: word(0),
            op_code: head[2] >> 3 & 15,
            recursion_desired: head[2] & 1 != 0,
            questions: word(4),
            answers: word(6),
            authorities: word(8),
            extras: word(10),
        })
    }

    /// Looked at before the library makes room for what the counts promise. IXFR brings an authority.
    fn is_plain(&self) -> bool {
        self.questions == 1 && self.answers == 0 && self.authorities <= 1 && self.extras <= EXTRAS_MAX
    }

    fn reply(&self, code: ResponseCode, outcome: Outcome) -> Reply {
        let mut message = Message::response(self.id, OpCode::from_u8(self.op_code));
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.response_code = code;
        reply(message, PLAIN_BYTES_MAX, Kind::Other, outcome)
    }
}

fn response(query: &Message) -> Message {
    let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.checking_disabled = false;
    message.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        message.set_edns(edns);
    }
    message
}

/// The message in as many bytes as there may be: without its extras if they do not fit, and without its answers, and marked so,
/// if these do not.
fn reply(mut message: Message, size_max: u16, kind: Kind, outcome: Outcome) -> Reply {
    let fits = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(size_max));
    let bytes = fits(&message).or_else(|| {
        message.additionals.clear();
        fits(&message)
    });
    let bytes = bytes.or_else(|| {
        message.metadata.truncation = true;
        message.answers.clear();
        message.authorities.clear();
        fits(&message)
    });
    // A question alone is 271 bytes at most, and fits; if the library thinks otherwise, nothing is sent.
    Reply { bytes: bytes.unwrap_or_default(), kind, outcome }
}

fn address(ip: IpAddr, asked: RecordType) -> Option<RData> {
    match (ip, asked) {
        (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(ip))),
        (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(ip))),
        _ => None,
    }
}

/// A group's label: the default one's name is in capitals, and nobody should have to escape it.
fn group_of(word: Option<&Word>) -> &str {
    match word {
        None => GROUP_DEFAULT,
        Some(word) if !word.escaped && word.text.eq_ignore_ascii_case(GROUP_DEFAULT) => GROUP_DEFAULT,
        Some(word) => &word.text,
    }
}

/// The cluster that is meant: as it is written, or the one that differs in the case of letters alone.
fn cluster_of(view: &ServiceView, word: &Word) -> Option<String> {
    let configured = view.meta.iter().flat_map(|m| m.clusters.keys());
    let mut names: Vec<&str> =
        view.instances.iter().map(|i| i.record.id.cluster()).chain(configured).map(|n| &**n).collect();
    if names.contains(&&*word.text) {
        return Some(word.text.clone());
    }
    names.retain(|name| !word.exact && name.eq_ignore_ascii_case(&word.text));
    names.sort_unstable();
    names.dedup();
    match names[..] {
        [one] => Some(one.to_owned()),
        _ => None,
    }
}

fn has_host(view: &ServiceView, ip: IpAddr) -> bool {
    let is_it = |i: &crate::model::Instance| i.enabled && i.vantage == Vantage::Registry && i.id.ip() == Some(ip);
    view.instances.iter().any(|i| is_it(&i.record))
}

#[cfg(test)]
mod tests;
