//! Who an agent is: a name for people, a key pair of its own, and the bridge it has enrolled at.
//! Kept in `identity.json` in the agent's state folder (mode 0600), so that the join token can be spent and thrown away.
//! Uses `keys`, `private_file`.

use crate::address::Address;
use crate::fingerprint::Trust;
use crate::keys::{PublicKey, SigningKey, from_base64, to_base64};
use crate::private_file;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where in the state folder.
const FILE: &str = "identity.json";

/// The format this code writes, and the newest it reads.
const VERSION: u32 = 1;

/// Bytes of an agent id: to make a key with somebody else's id takes 2^80 tries, and would not help, because the
/// bridge compares the whole key.
const ID_BYTES: usize = 10;

/// Longest name of an agent, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// The first 80 bits of SHA-256 of an agent's public key, as 20 hex digits: the agent's name among machines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId([u8; ID_BYTES]);

impl AgentId {
    /// The id of the agent with this key.
    pub fn of(key: &PublicKey) -> AgentId {
        let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
        AgentId(digest.as_ref()[..ID_BYTES].try_into().expect("a SHA-256 digest is longer than an id"))
    }

    /// A number, for spreading agents over workers: always the same of one, and evenly of many.
    pub(crate) fn spread(&self) -> usize {
        self.0[0].into()
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The text is no agent id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an agent id is 20 lower-case hex digits")]
pub struct NotAnAgentId;

impl FromStr for AgentId {
    type Err = NotAnAgentId;

    fn from_str(text: &str) -> Result<Self, NotAnAgentId> {
        let lower_hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if text.len() != ID_BYTES * 2 || !text.as_bytes().iter().all(lower_hex) {
            return Err(NotAnAgentId);
        }
        let mut id = [0; ID_BYTES];
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).map_err(|_| NotAnAgentId)?;
        }
        Ok(AgentId(id))
    }
}

impl Serialize for AgentId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What people call an agent: 1 to 64 bytes without control characters. Not unique; the id is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentName(String);

/// The text cannot be an agent's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an agent's name is 1 to {NAME_BYTES_MAX} bytes without control characters")]
pub struct NotAName;

impl TryFrom<String> for AgentName {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        let good = (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if good { Ok(AgentName(text)) } else { Err(NotAName) }
    }
}

impl From<AgentName> for String {
    fn from(name: AgentName) -> String {
        name.0
    }
}

impl AgentName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The bridge an agent belongs to: from its token, then remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its link port.
    pub address: Address,
    /// How to know it.
    pub trust: Trust,
}

/// An agent's identity. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct AgentKey {
    /// The name for people.
    pub name: AgentName,
    /// Where it has enrolled; `None` before the first welcome.
    pub bridge: Option<Bridge>,
    key: SigningKey,
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    id: AgentId,
    name: AgentName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bridge: Option<Bridge>,
    seed: String,
}

impl AgentKey {
    /// A new identity, not yet saved.
    pub fn generate(name: AgentName) -> AgentKey {
        AgentKey { name, bridge: None, key: SigningKey::generate() }
    }

    /// The agent's id.
    pub fn id(&self) -> AgentId {
        AgentId::of(&self.key.public())
    }

    /// The key it signs with.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The identity kept in `state_dir`, if there is one.
    ///
    /// # Errors
    /// [`IdentityError`]: unreadable, readable by others, damaged, or written by a newer version.
    pub fn load(state_dir: &Path) -> Result<Option<AgentKey>, IdentityError> {
        let path = state_dir.join(FILE);
        let Some(bytes) = private_file::read(&path).map_err(IdentityError::File)? else { return Ok(None) };
        let damaged = |why: String| IdentityError::Damaged { path: path.clone(), why };
        // The error of serde_json names line, column and field; it does not show values of this shape.
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if stored.version > VERSION {
            return Err(IdentityError::Newer { path, version: stored.version });
        }
        let seed =
            from_base64(&stored.seed).ok_or_else(|| damaged("the seed is not 43 characters of base64url".into()))?;
        let key = AgentKey { name: stored.name, bridge: stored.bridge, key: SigningKey::from_seed(seed) };
        if key.id() != stored.id {
            return Err(damaged(format!("the id {} does not belong to the seed", stored.id)));
        }
        Ok(Some(key))
    }

    /// Keeps the identity in `state_dir` (made with mode 0700 if missing), crash-safe.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn save(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let stored = Stored {
            version: VERSION,
            id: self.id(),
            name: self.name.clone(),
            bridge: self.bridge.clone(),
            seed: to_base64(self.key.seed()),
        };
        let mut text = serde_json::to_vec_pretty(&stored).expect("strings and numbers are always JSON");
        text.push(b'\n');
        private_file::write(&state_dir.join(FILE), &text).map_err(IdentityError::File)
    }

    /// The identity in `state_dir`, or a new one, saved before it is returned: an id that was shown to a bridge is
    /// never lost to a crash.
    ///
    /// # Errors
    /// As [`load`](AgentKey::load) and [`save`](AgentKey::save).
    pub fn load_or_create(state_dir: &Path, name: impl FnOnce() -> AgentName) -> Result<AgentKey, IdentityError> {
        if let Some(key) = AgentKey::load(state_dir)? {
            return Ok(key);
        }
        let key = AgentKey::generate(name());
        key.save(state_dir)?;
        Ok(key)
    }
}

/// Why an identity cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused, or others may read the file. The text names the path.
    #[error("{0}")]
    File(#[source] io::Error),
    /// Not what we wrote.
    #[error("{path}: damaged: {why}. Restore it from a backup, or remove it and enrol again with a new join token", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// From the future.
    #[error("{path}: format {version} was written by a newer ringspan; this one reads up to {VERSION}", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn name(text: &str) -> AgentName {
        text.to_owned().try_into().unwrap()
    }

    /// An identity survives a restart, and what the agent learns of its bridge with it.
    #[test]
    fn kept_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert!(AgentKey::load(&state).unwrap().is_none());
        let mut first = AgentKey::load_or_create(&state, || name("box-1")).unwrap();
        first.bridge = Some(Bridge { address: "[::1]:8024".parse().unwrap(), trust: Trust::Plain });
        first.save(&state).unwrap();
        let again = AgentKey::load_or_create(&state, || panic!("there is one")).unwrap();
        assert_eq!((again.id(), &again.name, &again.bridge), (first.id(), &first.name, &first.bridge));
        assert_eq!(again.id().to_string().parse(), Ok(first.id()));
        assert!(!format!("{again:?}").contains(&to_base64(again.key().seed())));
    }

    /// A damaged file is an error that names the file and the cure, never a new identity.
    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (state, path) = (folder.path(), folder.path().join(FILE));
        AgentKey::load_or_create(state, || name("box-1")).unwrap();
        let good = String::from_utf8(fs::read(&path).unwrap()).unwrap();
        let other = SigningKey::generate();
        let swapped = good.replace(&good.split('"').rev().nth(1).unwrap().to_owned(), &to_base64(other.seed()));
        for (bad, word) in [
            (String::new(), "EOF"),
            (good[..good.len() / 2].to_owned(), "line"),
            (good.replace("\"version\": 1", "\"version\": 2"), "newer"),
            (good.replace("box-1", ""), "name"),
            (swapped, "belong"),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = AgentKey::load(state).unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains(word), "{error}");
        }
    }

    #[test]
    fn names_are_printable() {
        for bad in ["", "a\nb", "\u{1b}[31m", &"x".repeat(65)] {
            assert_eq!(AgentName::try_from(bad.to_owned()), Err(NotAName));
        }
        assert_eq!(name("büro 1").as_str(), "büro 1");
    }
}
