//! The bridge's keyring: which join tokens it has granted and which agents have joined with them.
//! Promise: public halves only (a stolen file enrols nobody), every change is on disk before it is answered, and a
//! decision and its change are one transaction: a token with one use enrols one agent, whoever comes at the same time.
//! Uses redb: one file, `keyring.redb` in the data folder, locked by the process that has it open.

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use ringspan_tunnel::hello::{Admission, AgentRecord, Applicant, Refusal, admit, admit_visit};
use ringspan_tunnel::token::{JoinGrant, TokenId};
use serde::Serialize;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// The answer of a closed one.
const CLOSED: &str = "another process has taken over";
/// The file in the data folder.
const FILE: &str = "keyring.redb";
const GRANTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("grants");
const AGENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("agents");

/// What was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Revoked {
    /// No further agent joins with it.
    Token(TokenId),
    /// It is to be disconnected now.
    Agent(Box<AgentRecord>),
}

/// An agent that may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// What is kept of it.
    pub(crate) record: AgentRecord,
    /// It has just spent a use of its token.
    pub(crate) enrolled_now: bool,
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

/// How long a bridge that starts waits for whoever has its data folder: a command beside it is done sooner, another bridge
/// is not.
const PATIENCE: Duration = Duration::from_secs(2);

/// An open keyring.
pub(crate) struct Keyring {
    /// `None`: closed.
    db: RwLock<Option<Database>>,
    path: PathBuf,
}

impl Keyring {
    /// Opens the keyring in `data_dir`; makes folder (mode 0700) and file if they are not there.
    pub(crate) fn open(data_dir: &Path) -> Result<Keyring, Error> {
        let folder = |why| Error::Folder { path: data_dir.to_owned(), why };
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(folder)?;
        let path = data_dir.join(FILE);
        let failed = |e| match e {
            DatabaseError::DatabaseAlreadyOpen => Error::Locked(data_dir.to_owned()),
            DatabaseError::Storage(redb::StorageError::Io(why)) if why.kind() != ErrorKind::InvalidData => folder(why),
            other => Error::Store { path: path.clone(), why: other.to_string() },
        };
        if !path.try_exists().map_err(folder)? {
            // One process at a time: a token may be asked for while a bridge starts for the first time.
            let making = File::open(data_dir).map_err(folder)?;
            making.lock().map_err(folder)?;
            // Under another name until it is whole, so that a process that is killed half-way leaves no half file; a link,
            // not a renaming, so that it never takes the place of one that another process has just made.
            let fresh = data_dir.join(format!("{FILE}.new"));
            let _ = std::fs::remove_file(&fresh);
            drop(Database::create(&fresh).map_err(failed)?);
            match std::fs::hard_link(&fresh, &path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(folder(e)),
                Ok(()) | Err(_) => {}
            }
            let _ = std::fs::remove_file(&fresh);
        }
        let db = Database::create(&path).map_err(failed)?;
        let keyring = Keyring { db: RwLock::new(Some(db)), path };
        // Both tables are there from now on, so that a reader needs no special case.
        keyring.write(|_, _| Ok(()))?;
        Ok(keyring)
    }

    /// As [`Keyring::open`], but waits up to [`PATIENCE`] for a command that has the file for a moment.
    pub(crate) fn open_patiently(data_dir: &Path) -> Result<Keyring, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            match Keyring::open(data_dir) {
                Err(Error::Locked(_)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                opened => return opened,
            }
        }
    }

    /// Lets another process open the file: everything asked from now on is an error.
    pub(crate) fn close(&self) {
        drop(self.db.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn db(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
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
        all.sort_by_key(|a| (a.enrolled_at, a.id));
        Ok(all)
    }

    /// Decides whether an agent that has proved its own key may come in ([`admit`] is the rule), and keeps what that
    /// changes before it answers. One that is known, or refused, costs no write: a thousand agents that come back at
    /// once do not wait for the disk.
    pub(crate) fn admit(&self, applicant: &Applicant, now: u64) -> Result<Result<Admitted, Refusal>, Error> {
        let look = || -> Result<Answer, String> {
            let db = self.db();
            let tx = db.as_ref().ok_or(CLOSED)?.begin_read().map_err(|e| e.to_string())?;
            let grants = tx.open_table(GRANTS).map_err(|e| e.to_string())?;
            let agents = tx.open_table(AGENTS).map_err(|e| e.to_string())?;
            decide(applicant, &grants, &agents, now)
        };
        match look().map_err(|why| Error::Store { path: self.path.clone(), why })? {
            Answer::Refused(refusal) => Ok(Err(refusal)),
            Answer::Known(record) => Ok(Ok(Admitted { record, enrolled_now: false })),
            // Asked again where nobody else can change the answer before it is kept.
            Answer::Enrols(..) => self.write(|grants, agents| {
                Ok(match decide(applicant, grants, agents, now)? {
                    Answer::Refused(refusal) => Err(refusal),
                    Answer::Known(record) => Ok(Admitted { record, enrolled_now: false }),
                    Answer::Enrols(record, grant) => {
                        put(grants, &grant.id.to_string(), &grant)?;
                        put(agents, &record.id.to_string(), &record)?;
                        Ok(Admitted { record, enrolled_now: true })
                    }
                })
            }),
        }
    }

    /// Decides whether an agent may visit a secret service ([`admit_visit`] is the rule). Changes nothing.
    pub(crate) fn admit_visit(&self, applicant: &Applicant, service: &str) -> Result<Result<(), Refusal>, Error> {
        let look = || -> Result<Result<(), Refusal>, String> {
            let db = self.db();
            let tx = db.as_ref().ok_or(CLOSED)?.begin_read().map_err(|e| e.to_string())?;
            let agents = tx.open_table(AGENTS).map_err(|e| e.to_string())?;
            let record = get::<AgentRecord>(&agents, &applicant.agent.to_string())?;
            Ok(admit_visit(applicant, record.as_ref(), service))
        };
        look().map_err(|why| Error::Store { path: self.path.clone(), why })
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
                return Ok(Some(Revoked::Agent(Box::new(agent))));
            }
            Ok(None)
        })?
        .ok_or_else(|| Error::NoSuchId(id.to_owned()))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Table<'_>, &mut Table<'_>) -> Result<T, String>) -> Result<T, Error> {
        let all = || -> Result<T, String> {
            let db = self.db();
            let tx = db.as_ref().ok_or(CLOSED)?.begin_write().map_err(|e| e.to_string())?;
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
            let db = self.db();
            let tx = db.as_ref().ok_or(CLOSED)?.begin_read().map_err(|e| e.to_string())?;
            let rows = tx.open_table(table).map_err(|e| e.to_string())?;
            rows.iter()
                .map_err(|e| e.to_string())?
                .map(|row| serde_json::from_slice(row.map_err(|e| e.to_string())?.1.value()).map_err(|e| e.to_string()))
                .collect()
        };
        read().map_err(|why| Error::Store { path: self.path.clone(), why })
    }
}

/// What the tables say of an applicant.
enum Answer {
    Refused(Refusal),
    Known(AgentRecord),
    Enrols(AgentRecord, JoinGrant),
}

fn decide(applicant: &Applicant, grants: &impl Rows, agents: &impl Rows, now: u64) -> Result<Answer, String> {
    let record = get::<AgentRecord>(agents, &applicant.agent.to_string())?;
    let grant = match applicant.token {
        Some(token) => get::<JoinGrant>(grants, &token.to_string())?,
        None => None,
    };
    match (admit(applicant, record.as_ref(), grant.as_ref(), now), record) {
        (Err(refusal), _) => Ok(Answer::Refused(refusal)),
        (Ok(Admission::Known), Some(record)) => Ok(Answer::Known(record)),
        (Ok(Admission::Known), None) => Err(format!("agent {} was admitted without a record", applicant.agent)),
        (Ok(Admission::Enrols { record, grant }), _) => Ok(Answer::Enrols(record, grant)),
    }
}

/// A table of ids and JSON, open for reading or writing.
trait Rows: ReadableTable<&'static str, &'static [u8]> {}

impl<T: ReadableTable<&'static str, &'static [u8]>> Rows for T {}

type Table<'a> = redb::Table<'a, &'static str, &'static [u8]>;

fn get<T: serde::de::DeserializeOwned>(rows: &impl Rows, key: &str) -> Result<Option<T>, String> {
    match rows.get(key).map_err(|e| e.to_string())? {
        None => Ok(None),
        Some(bytes) => serde_json::from_slice(bytes.value()).map(Some).map_err(|e| format!("{key}: {e}")),
    }
}

fn put<T: Serialize>(rows: &mut Table<'_>, key: &str, value: &T) -> Result<(), String> {
    let bytes = serde_json::to_vec(value).expect("strings, numbers and lists are JSON");
    rows.insert(key, bytes.as_slice()).map_err(|e| e.to_string())?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ringspan_tunnel::fingerprint::Trust;
    use ringspan_tunnel::hello::{
        AgentHello, AgentStep, BridgeHello, BridgeStep, Carrier, Expose, Introduction, Kind, RefusalCode, SessionId,
        VERSIONS,
    };
    use ringspan_tunnel::identity::AgentKey;
    use ringspan_tunnel::tls::Binding;
    use ringspan_tunnel::token::{GrantTerms, JoinToken};

    fn token(uses: Option<u32>) -> (JoinToken, JoinGrant) {
        let terms = GrantTerms { uses, ..GrantTerms::default() };
        JoinToken::create("127.0.0.1:8024".parse().expect("an address"), Trust::Plain, terms, 100)
    }

    pub(crate) fn identity() -> AgentKey {
        AgentKey::generate("box".to_owned().try_into().expect("a name"))
    }

    /// What the bridge has of an agent after an honest handshake.
    pub(crate) fn applicant(identity: &AgentKey, token: Option<&JoinToken>) -> Applicant {
        let introduction = Introduction {
            identity: identity.clone(),
            token: token.cloned(),
            session: SessionId::generate(),
            exposes: vec![Expose::new("web".to_owned().try_into().expect("a name"), "127.0.0.1:1".into())],
            watches: 0,
            software: "test".into(),
        };
        let (mut bridge, challenge) = BridgeHello::new(VERSIONS, [7; 32], Binding::NONE, "test");
        let mut agent = AgentHello::new(introduction, VERSIONS, Carrier::mux(0, 1), Binding::NONE);
        let AgentStep::Send(auth) = agent.on_message(Kind::Challenge, &challenge.payload) else { panic!("no answer") };
        match bridge.on_message(Kind::Auth, &auth.payload) {
            BridgeStep::Decide(applicant) => *applicant,
            other => panic!("{other:?}"),
        }
    }

    /// However many start at once in a folder that is not there: each has the keyring, or is told that another one has.
    #[test]
    fn many_make_it_at_once() {
        for _ in 0..5 {
            let parent = tempfile::tempdir().expect("a folder");
            let folder = parent.path().join("data");
            std::thread::scope(|scope| {
                let all: Vec<_> = (0..8).map(|_| scope.spawn(|| Keyring::open(&folder).map(drop))).collect();
                let all: Vec<_> = all.into_iter().map(|one| one.join().expect("no panic")).collect();
                assert!(all.iter().all(|one| matches!(one, Ok(()) | Err(Error::Locked(_)))), "{all:?}");
                assert!(all.iter().any(Result::is_ok), "{all:?}");
            });
            Keyring::open(&folder).map(drop).expect("it is whole");
        }
    }

    /// What was answered is still there after a restart; a use is spent once; a second process is kept out; revoked
    /// is revoked.
    #[test]
    fn kept_over_restarts() {
        let folder = tempfile::tempdir().expect("a folder");
        let (a, b) = (identity(), identity());
        let (once, grant) = token(Some(1));
        let code = |answer: Result<Admitted, Refusal>| answer.map(|a| a.record.id).map_err(|r| r.code);
        {
            let ring = Keyring::open(folder.path()).expect("a new one");
            assert!(matches!(Keyring::open(folder.path()), Err(Error::Locked(_))));
            let early = ring.admit(&applicant(&a, Some(&once)), 150).expect("read");
            assert_eq!(code(early), Err(RefusalCode::UnknownToken));
            ring.add(&grant).expect("kept");
            assert_eq!(code(ring.admit(&applicant(&a, Some(&once)), 150).expect("stored")), Ok(a.id()));
        }
        let ring = Keyring::open(folder.path()).expect("again");
        let ask =
            |who: &AgentKey, token: Option<&JoinToken>| code(ring.admit(&applicant(who, token), 160).expect("read"));
        assert_eq!(ask(&b, Some(&once)), Err(RefusalCode::TokenUsedUp));
        assert_eq!(ask(&b, None), Err(RefusalCode::UnknownAgent));
        assert_eq!(ask(&a, None), Ok(a.id()), "it has joined before");
        let agents = ring.agents().expect("read");
        assert_eq!((agents.len(), agents[0].enrolled_at, agents[0].token), (1, 150, once.id));
        let revoked = ring.revoke(&a.id().to_string()).expect("it is there");
        assert!(matches!(revoked, Revoked::Agent(record) if record.id == a.id()));
        assert_eq!(ask(&a, Some(&once)), Err(RefusalCode::AgentRevoked));
        assert_eq!(ring.revoke(&once.id.to_string()).expect("it is there"), Revoked::Token(once.id));
        assert_eq!(ask(&b, Some(&once)), Err(RefusalCode::TokenRevoked));
        assert!(matches!(ring.revoke("nobody"), Err(Error::NoSuchId(_))));
    }

    /// A file that is no keyring is an error that names it, and is left as it was.
    #[test]
    fn garbage_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let garbage = "not a database, and longer than any header would be ".repeat(200);
        std::fs::write(&path, &garbage).expect("written");
        let error = Keyring::open(folder.path()).err().expect("no keyring").to_string();
        assert!(error.contains(FILE), "{error}");
        assert_eq!(std::fs::read(&path).expect("it is there"), garbage.as_bytes());
    }
}
