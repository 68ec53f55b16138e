//! The bridge's keyring: which join tokens it has granted and which agents have joined with them.
//! Promise: public halves only (a stolen file enrols nobody), every change is on disk before it is answered, and a
//! decision and its change are one transaction: a token with one use enrols one agent, whoever comes at the same time.
//! Uses redb: one file, `keyring.redb` in the data folder, locked by the process that has it open.

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use ringspan_tunnel::identity::{AgentId, AgentName};
use ringspan_tunnel::keys::PublicKey;
use ringspan_tunnel::token::{JoinGrant, Scope, TokenId};
use serde::{Deserialize, Serialize};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The file in the data folder.
const FILE: &str = "keyring.redb";
const GRANTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("grants");
const AGENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("agents");

/// An agent that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentRecord {
    /// Derived from its key.
    pub(crate) id: AgentId,
    /// The public half of its key.
    pub(crate) public_key: PublicKey,
    /// For people.
    pub(crate) name: AgentName,
    /// Services it may offer: its token's at the time.
    pub(crate) scope: Scope,
    /// The token it joined with.
    pub(crate) token: TokenId,
    /// Unix time in seconds.
    pub(crate) joined_at: u64,
    /// It stays out.
    pub(crate) revoked: bool,
}

/// What was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Revoked {
    /// No further agent joins with it.
    Token(TokenId),
    /// It is to be disconnected now.
    Agent(AgentId),
}

/// Why an agent may not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The token is not one of ours.
    UnknownToken,
    /// The token was revoked.
    RevokedToken,
    /// The token's time is over.
    ExpiredToken,
    /// As many agents have joined with it as it allows.
    SpentToken,
    /// This agent was revoked; a new token does not help, a new identity does.
    RevokedAgent,
}

/// Why the keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another process has it open.
    #[error(
        "data_dir {}: another ringspan process has it open. Stop that one first, or give this one a data_dir of its own",
        .0.display()
    )]
    Locked(PathBuf),
    /// The file system said no.
    #[error("data_dir {}: {why}. Try: a folder this user can write to", path.display())]
    Folder {
        /// The data folder.
        path: PathBuf,
        /// What it said.
        why: std::io::Error,
    },
    /// The file is no keyring, or reading or writing it failed.
    #[error("{}: {why}. Try: restore {FILE} from a backup, or move it away and create new tokens", path.display())]
    Store {
        /// The keyring's file.
        path: PathBuf,
        /// What redb or serde said.
        why: String,
    },
    /// No token and no agent has this id.
    #[error("no token and no agent has the id {0:?}. Try: ringspan token list")]
    NoSuchId(String),
}

/// An open keyring.
pub(crate) struct Keyring {
    db: Database,
    path: PathBuf,
}

impl Keyring {
    /// Opens the keyring in `data_dir`; makes folder (mode 0700) and file if they are not there.
    pub(crate) fn open(data_dir: &Path) -> Result<Keyring, Error> {
        let folder = |why| Error::Folder { path: data_dir.to_owned(), why };
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(folder)?;
        let path = data_dir.join(FILE);
        let db = Database::create(&path).map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => Error::Locked(data_dir.to_owned()),
            DatabaseError::Storage(redb::StorageError::Io(why)) => folder(why),
            other => Error::Store { path: path.clone(), why: other.to_string() },
        })?;
        let keyring = Keyring { db, path };
        // Both tables are there from now on, so that a reader needs no special case.
        keyring.write(|_, _| Ok(()))?;
        Ok(keyring)
    }

    /// Keeps a new grant.
    pub(crate) fn add(&self, grant: &JoinGrant) -> Result<(), Error> {
        self.write(|grants, _| put(grants, &grant.id.to_string(), grant))
    }

    /// All grants, oldest first.
    pub(crate) fn grants(&self) -> Result<Vec<JoinGrant>, Error> {
        let mut all: Vec<JoinGrant> = self.all(GRANTS)?;
        all.sort_by_key(|g| (g.created_at, g.id));
        Ok(all)
    }

    /// All agents, oldest first.
    pub(crate) fn agents(&self) -> Result<Vec<AgentRecord>, Error> {
        let mut all: Vec<AgentRecord> = self.all(AGENTS)?;
        all.sort_by_key(|a| (a.joined_at, a.id));
        Ok(all)
    }

    /// Lets an agent join that has proved that it holds the token and the key. An agent that has joined before gets
    /// its record again, with the token's services, and costs no use.
    pub(crate) fn enrol(
        &self,
        token: TokenId,
        key: &PublicKey,
        name: &AgentName,
        now: u64,
    ) -> Result<Result<AgentRecord, Refusal>, Error> {
        self.write(|grants, agents| {
            let id = AgentId::of(key);
            let Some(mut grant) = get::<JoinGrant>(grants, &token.to_string())? else {
                return Ok(Err(Refusal::UnknownToken));
            };
            let known = get::<AgentRecord>(agents, &id.to_string())?.filter(|a| a.public_key == *key);
            match admits(&grant, known.as_ref(), now) {
                Err(refusal) => return Ok(Err(refusal)),
                Ok(Admission::Again) => {}
                Ok(Admission::Anew) => {
                    grant.uses_left = grant.uses_left.map(|n| n - 1);
                    put(grants, &token.to_string(), &grant)?;
                }
            }
            let record = AgentRecord {
                id,
                public_key: *key,
                name: name.clone(),
                scope: grant.scope,
                token,
                joined_at: known.map_or(now, |a| a.joined_at),
                revoked: false,
            };
            put(agents, &id.to_string(), &record)?;
            Ok(Ok(record))
        })
    }

    /// Revokes the token or the agent with this id.
    pub(crate) fn revoke(&self, id: &str) -> Result<Revoked, Error> {
        self.write(|grants, agents| {
            if let Some(mut grant) = get::<JoinGrant>(grants, id)? {
                grant.revoked = true;
                put(grants, id, &grant)?;
                return Ok(Some(Revoked::Token(grant.id)));
            }
            if let Some(mut agent) = get::<AgentRecord>(agents, id)? {
                agent.revoked = true;
                put(agents, id, &agent)?;
                return Ok(Some(Revoked::Agent(agent.id)));
            }
            Ok(None)
        })?
        .ok_or_else(|| Error::NoSuchId(id.to_owned()))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Rows<'_>, &mut Rows<'_>) -> Result<T, String>) -> Result<T, Error> {
        let all = || -> Result<T, String> {
            let tx = self.db.begin_write().map_err(|e| e.to_string())?;
            let result = {
                let mut grants = tx.open_table(GRANTS).map_err(|e| e.to_string())?;
                let mut agents = tx.open_table(AGENTS).map_err(|e| e.to_string())?;
                change(&mut grants, &mut agents)?
            };
            tx.commit().map_err(|e| e.to_string())?;
            Ok(result)
        };
        all().map_err(|why| Error::Store { path: self.path.clone(), why })
    }

    fn all<T: serde::de::DeserializeOwned>(&self, table: TableDefinition<'_, &str, &[u8]>) -> Result<Vec<T>, Error> {
        let read = || -> Result<Vec<T>, String> {
            let tx = self.db.begin_read().map_err(|e| e.to_string())?;
            let rows = tx.open_table(table).map_err(|e| e.to_string())?;
            rows.iter()
                .map_err(|e| e.to_string())?
                .map(|row| serde_json::from_slice(row.map_err(|e| e.to_string())?.1.value()).map_err(|e| e.to_string()))
                .collect()
        };
        read().map_err(|why| Error::Store { path: self.path.clone(), why })
    }
}

/// How an agent comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// It has joined before: no use is spent.
    Again,
    /// One use is spent.
    Anew,
}

/// The rule. A known agent comes in again with any token of ours that is neither revoked nor expired.
fn admits(grant: &JoinGrant, known: Option<&AgentRecord>, now: u64) -> Result<Admission, Refusal> {
    if grant.revoked {
        return Err(Refusal::RevokedToken);
    }
    if known.is_some_and(|a| a.revoked) {
        return Err(Refusal::RevokedAgent);
    }
    if grant.expires_at.is_some_and(|at| now >= at) {
        return Err(Refusal::ExpiredToken);
    }
    match known {
        Some(agent) if agent.token == grant.id => Ok(Admission::Again),
        Some(_) | None if grant.uses_left == Some(0) => Err(Refusal::SpentToken),
        Some(_) | None => Ok(Admission::Anew),
    }
}

type Rows<'a> = redb::Table<'a, &'static str, &'static [u8]>;

fn get<T: serde::de::DeserializeOwned>(rows: &Rows<'_>, key: &str) -> Result<Option<T>, String> {
    match rows.get(key).map_err(|e| e.to_string())? {
        None => Ok(None),
        Some(bytes) => serde_json::from_slice(bytes.value()).map(Some).map_err(|e| format!("{key}: {e}")),
    }
}

fn put<T: Serialize>(rows: &mut Rows<'_>, key: &str, value: &T) -> Result<(), String> {
    let bytes = serde_json::to_vec(value).expect("strings, numbers and lists are JSON");
    rows.insert(key, bytes.as_slice()).map_err(|e| e.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_tunnel::fingerprint::Trust;
    use ringspan_tunnel::keys::SigningKey;
    use ringspan_tunnel::token::{GrantTerms, JoinToken};

    fn grant(terms: GrantTerms) -> JoinGrant {
        JoinToken::create("127.0.0.1:8024".parse().expect("an address"), Trust::Plain, terms, 100).1
    }

    fn name() -> AgentName {
        "box".to_owned().try_into().expect("a name")
    }

    /// Every state of a token and of an agent, and who comes in.
    #[test]
    fn the_rule() {
        let fresh = grant(GrantTerms { expires_at: Some(200), uses: Some(1), ..GrantTerms::default() });
        let other = grant(GrantTerms::default());
        let key = SigningKey::generate().public();
        let known = |token: &JoinGrant, revoked| AgentRecord {
            id: AgentId::of(&key),
            public_key: key,
            name: name(),
            scope: Scope::All,
            token: token.id,
            joined_at: 100,
            revoked,
        };
        let spent = JoinGrant { uses_left: Some(0), ..fresh.clone() };
        let revoked = JoinGrant { revoked: true, ..fresh.clone() };
        use {Admission::*, Refusal::*};
        for (grant, agent, now, answer) in [
            (&fresh, None, 199, Ok(Anew)),
            (&fresh, None, 200, Err(ExpiredToken)),
            (&fresh, Some(known(&fresh, false)), 199, Ok(Again)),
            (&fresh, Some(known(&other, false)), 199, Ok(Anew)),
            (&fresh, Some(known(&fresh, true)), 199, Err(RevokedAgent)),
            (&spent, None, 199, Err(SpentToken)),
            (&spent, Some(known(&fresh, false)), 199, Ok(Again)),
            (&spent, Some(known(&other, false)), 199, Err(SpentToken)),
            (&revoked, None, 199, Err(RevokedToken)),
            (&revoked, Some(known(&fresh, false)), 199, Err(RevokedToken)),
            (&other, None, u64::MAX, Ok(Anew)),
        ] {
            assert_eq!(admits(grant, agent.as_ref(), now), answer, "{grant:?} {agent:?} {now}");
        }
    }

    /// What was answered is still there after a restart; a use is spent once; a second process is kept out.
    #[test]
    fn kept_over_restarts() {
        let folder = tempfile::tempdir().expect("a folder");
        let (a, b) = (SigningKey::generate().public(), SigningKey::generate().public());
        let once = grant(GrantTerms { uses: Some(1), ..GrantTerms::default() });
        {
            let ring = Keyring::open(folder.path()).expect("a new one");
            assert!(matches!(Keyring::open(folder.path()), Err(Error::Locked(_))));
            ring.add(&once).expect("kept");
            assert!(ring.enrol(once.id, &a, &name(), 150).expect("stored").is_ok());
        }
        let ring = Keyring::open(folder.path()).expect("again");
        assert_eq!(ring.enrol(once.id, &b, &name(), 150).expect("read"), Err(Refusal::SpentToken));
        assert!(ring.enrol(once.id, &a, &name(), 160).expect("stored").is_ok(), "it has joined before");
        let agents = ring.agents().expect("read");
        assert_eq!((agents.len(), agents[0].joined_at, agents[0].public_key), (1, 150, a));
        assert_eq!(ring.revoke(&agents[0].id.to_string()).expect("it is there"), Revoked::Agent(agents[0].id));
        assert_eq!(ring.enrol(once.id, &a, &name(), 170).expect("read"), Err(Refusal::RevokedAgent));
        assert_eq!(ring.revoke(&once.id.to_string()).expect("it is there"), Revoked::Token(once.id));
        assert_eq!(ring.enrol(once.id, &b, &name(), 170).expect("read"), Err(Refusal::RevokedToken));
        assert!(matches!(ring.revoke("nobody"), Err(Error::NoSuchId(_))));
        let unknown = grant(GrantTerms::default()).id;
        assert_eq!(ring.enrol(unknown, &b, &name(), 170).expect("read"), Err(Refusal::UnknownToken));
    }

    /// A file that is no keyring is an error that names it, and is left as it was.
    #[test]
    fn garbage_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        std::fs::write(&path, "not a database, and longer than any header would be ".repeat(200)).expect("written");
        let error = Keyring::open(folder.path()).err().expect("no keyring").to_string();
        assert!(error.contains(FILE) || error.contains("data_dir"), "{error}");
    }
}
