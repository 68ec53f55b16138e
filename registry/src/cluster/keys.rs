//! What is in etcd, and where. All keys begin with the prefix (`/ringspan/` by default); names are joined by NUL, as in the
//! embedded store, and values are JSON.
//!
//! | Key | Value |
//! |---|---|
//! | `s/NAMESPACE.GROUP.SERVICE` | a service's settings |
//! | `i/NAMESPACE.GROUP.SERVICE.CLUSTER.HOST.PORT` | an instance's record, its kind, and which member has it |
//! | `a/...` | accounts, which `access` keeps and follows by itself |
//! | `m/MEMBER` | a member that lives; goes with its lease |
//! | `b/MEMBER` | nothing: its event tells that member that it has seen all before it |
//! | `h/MEMBER/SHARD` | what that member believes of the instances of one shard that it judged last |
//!
//! (A dot stands for NUL.)

use crate::health::{Health, Reason};
use crate::model::{Instance, InstanceId, ServiceKey, ServiceMeta};
use crate::store::codec;
use ringspan_engine::outcome::Code;
use serde::{Deserialize, Serialize};

/// Shards of a member's verdicts: with 100 000 instances on three members a shard is about 130 verdicts, 8 KiB.
pub(crate) const SHARDS: usize = 256;

/// A key without the prefix, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) enum Key<'a> {
    Service(&'a [u8]),
    Instance(&'a [u8]),
    Member(&'a str),
    Health {
        member: &'a str,
    },
    Barrier,
    /// Accounts: not the table's to read.
    Access,
}

impl<'a> Key<'a> {
    pub(crate) fn read(key: &'a [u8]) -> Option<Key<'a>> {
        let (kind, rest) = key.split_at_checked(2)?;
        let text = || std::str::from_utf8(rest).ok();
        match kind {
            b"s/" => Some(Key::Service(rest)),
            b"i/" => Some(Key::Instance(rest)),
            b"m/" => Some(Key::Member(text()?)),
            b"h/" => Some(Key::Health { member: text()?.split_once('/')?.0 }),
            b"b/" => Some(Key::Barrier),
            ACCESS => Some(Key::Access),
            _ => None,
        }
    }
}

/// What the keys of accounts begin with.
pub(crate) const ACCESS: &[u8] = b"a/";

pub(crate) fn barrier_key(member: &str) -> Vec<u8> {
    format!("b/{member}").into_bytes()
}

pub(crate) fn service_key(service: &ServiceKey) -> Vec<u8> {
    [b"s/", &codec::service_key(service)[..]].concat()
}

pub(crate) fn instance_key(service: &ServiceKey, id: &InstanceId) -> Vec<u8> {
    [b"i/", &codec::instance_key(service, id)[..]].concat()
}

/// Where all instances of a service are, and nothing else.
pub(crate) fn instances_of(service: &ServiceKey) -> Vec<u8> {
    [b"i/", &codec::service_key(service)[..], b"\0"].concat()
}

pub(crate) fn member_key(member: &str) -> Vec<u8> {
    format!("m/{member}").into_bytes()
}

pub(crate) fn health_key(member: &str, shard: usize) -> Vec<u8> {
    format!("h/{member}/{shard:03}").into_bytes()
}

pub(crate) fn health_of(member: &str) -> Vec<u8> {
    format!("h/{member}/").into_bytes()
}

/// Which shard an instance's verdict is in.
pub(crate) fn shard(service: &ServiceKey, id: &InstanceId) -> usize {
    let key = codec::instance_key(service, id);
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 32)) as usize % SHARDS
}

/// An instance's value.
#[derive(Serialize, Deserialize)]
struct StoredInstance {
    #[serde(flatten)]
    record: codec::StoredInstance,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ephemeral: bool,
    /// The member that listens for its beats, or to whom its agent is connected; of others, nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

pub(crate) fn instance(record: &Instance, owner: Option<&str>) -> Vec<u8> {
    let (ephemeral, owner) = (record.ephemeral, owner.map(str::to_owned));
    codec::json(&StoredInstance { record: codec::stored_instance(record), ephemeral, owner })
}

pub(crate) fn read_instance(key: &[u8], value: &[u8]) -> Result<(ServiceKey, Instance, Option<String>), String> {
    let StoredInstance { record, ephemeral, owner } = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    let (service, instance) = codec::instance_of(key, record, ephemeral)?;
    Ok((service, instance, owner))
}

pub(crate) fn read_instance_key(key: &[u8]) -> Result<(ServiceKey, InstanceId), String> {
    codec::read_instance_key(key)
}

pub(crate) fn service(meta: &ServiceMeta) -> Vec<u8> {
    codec::service(meta)
}

pub(crate) fn read_service(key: &[u8], value: &[u8]) -> Result<(ServiceKey, ServiceMeta), String> {
    codec::read_service(key, value)
}

pub(crate) fn read_service_key(key: &[u8]) -> Result<ServiceKey, String> {
    codec::read_service_key(key)
}

/// A member's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredMember {
    /// Where its HTTP API is, for people and clients.
    pub(crate) address: String,
    /// Another one for each start: two processes of one name are told apart by it.
    pub(crate) run: u64,
}

/// A belief, and the cluster's revision at which its member came to it: of two beliefs the later one counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) health: Health,
    pub(crate) reason: Reason,
    pub(crate) rtt_ns: u64,
    pub(crate) revision: i64,
}

/// Key (as in the embedded store, in text), 'U' 'D' or '?', reason, errno, round trip in microseconds, revision.
#[derive(Serialize, Deserialize)]
struct StoredVerdict(String, char, String, i32, u64, i64);

pub(crate) fn shard_value<'a>(verdicts: impl Iterator<Item = (&'a (ServiceKey, InstanceId), &'a Verdict)>) -> Vec<u8> {
    let stored = verdicts.map(|((service, id), v)| {
        let key = String::from_utf8(codec::instance_key(service, id)).expect("names are text");
        let health = match v.health {
            Health::Up => 'U',
            Health::Down => 'D',
            Health::Unknown => '?',
        };
        let errno = if let Reason::Probe { errno, .. } = v.reason { errno } else { 0 };
        StoredVerdict(key, health, v.reason.as_str().to_owned(), errno, v.rtt_ns / 1_000, v.revision)
    });
    codec::json(&stored.collect::<Vec<_>>())
}

/// What cannot be read is of a newer version, and left out.
pub(crate) fn read_shard(value: &[u8]) -> Vec<((ServiceKey, InstanceId), Verdict)> {
    let stored: Vec<StoredVerdict> = serde_json::from_slice(value).unwrap_or_default();
    let read = |StoredVerdict(key, health, reason, errno, rtt_us, revision): StoredVerdict| {
        let key = codec::read_instance_key(key.as_bytes()).ok()?;
        let health = match health {
            'U' => Health::Up,
            'D' => Health::Down,
            _ => Health::Unknown,
        };
        Some((key, Verdict { health, reason: read_reason(&reason, errno)?, rtt_ns: rtt_us * 1_000, revision }))
    };
    stored.into_iter().filter_map(read).collect()
}

fn read_reason(text: &str, errno: i32) -> Option<Reason> {
    let words = [Reason::Unseen, Reason::Beat, Reason::Connected, Reason::BeatLate, Reason::Manual, Reason::AgentGone];
    let code = || Code::ALL.iter().find(|code| code.as_str() == text);
    words.into_iter().find(|word| word.as_str() == text).or_else(|| code().map(|&code| Reason::Probe { code, errno }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys and values come back as they were, and none is taken for another kind.
    #[test]
    fn there_and_back() {
        let service = ServiceKey::new("dev", "g", "a/b").unwrap();
        let id = InstanceId::new("c", "::1", 80).unwrap();
        let record = Instance { ephemeral: true, weight: 0.5, ..Instance::new(id.clone()) };
        let key = instance_key(&service, &id);
        assert!(key.starts_with(&instances_of(&service)));
        let Some(Key::Instance(rest)) = Key::read(&key) else { panic!("{key:?}") };
        let back = read_instance(rest, &instance(&record, Some("n1"))).unwrap();
        assert_eq!(back, (service.clone(), record, Some("n1".to_owned())));
        assert_eq!(read_instance_key(rest).unwrap(), (service.clone(), id.clone()));
        assert_eq!(Key::read(&member_key("n1")), Some(Key::Member("n1")));
        assert_eq!(Key::read(&health_key("n1", 7)), Some(Key::Health { member: "n1" }));
        assert_eq!(Key::read(b"x/"), None);
        let reason = Reason::Probe { code: Code::L4Refused, errno: 111 };
        let verdict = Verdict { health: Health::Down, reason, rtt_ns: 5_000, revision: 9 };
        let all = [((service, id), verdict)];
        assert_eq!(read_shard(&shard_value(all.iter().map(|(k, v)| (k, v)))), all);
        assert!(read_shard(b"nonsense").is_empty());
    }
}
