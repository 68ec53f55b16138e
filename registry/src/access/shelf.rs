//! Where accounts are kept: a file of their own beside the registry's, or etcd under the registry's prefix.
//! Promise: a change is whole and stored before it is believed; two at once never undo each other; what cannot be read is
//! not guessed at.
//! A file of their own, so that an export, a snapshot or a copy of the registry's records holds no hash. It is opened for
//! each change and closed again: changes are rare, and a process that takes over finds it free.

use super::book::{Book, Pair};
use crate::cluster::etcd::{Compare, Etcd, KeyValue, Op, Txn};
use crate::cluster::{EtcdOptions, feed, keys};
use arc_swap::ArcSwap;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// In the data folder.
const FILE: &str = "accounts.redb";
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("accounts");
/// How long a start waits for an etcd that answers.
const START_TIME_MAX: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);
/// Others were faster so many times in a row.
const ATTEMPTS_MAX: u32 = 16;
/// etcd's limit on operations is 128, and on comparisons; one of those is for all.
const WRITES_MAX: usize = 120;

/// Where accounts are kept.
#[derive(Clone)]
pub enum Kept {
    /// Nowhere: they end with the process.
    InMemory,
    /// In this file.
    File(PathBuf),
    /// In etcd; all members with the same prefix have the same.
    Etcd {
        /// How to reach it.
        etcd: EtcdOptions,
        /// The registry's prefix.
        prefix: String,
    },
}

/// Why accounts cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened or read.
    #[error("accounts {}: {problem}. Try: restore it from a backup; or move it away, and make the accounts anew", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// etcd does not answer, or has something else there.
    #[error("accounts: etcd: {0}. Try: [registry] endpoints, user and password; etcdctl endpoint health")]
    Etcd(String),
    /// A thread cannot be started.
    #[error("accounts: cannot start a thread: {0}")]
    Thread(io::Error),
}

/// The file of accounts in a data folder.
pub(super) fn file_in(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// A record's key and its new value; `None` removes it.
pub(super) type Write = (String, Option<Vec<u8>>);

/// Why a change was not stored.
#[derive(Debug)]
pub(super) enum NotStored<E> {
    /// Whoever decided did not want it.
    Refused(E),
    /// The store could not.
    Failed(String),
}

/// See the module.
pub(super) struct Shelf {
    book: Arc<ArcSwap<Book>>,
    /// One change at a time in this process.
    turn: tokio::sync::Mutex<()>,
    kind: Kind,
}

enum Kind {
    Memory(Mutex<std::collections::BTreeMap<String, Vec<u8>>>),
    File(PathBuf),
    Etcd { etcd: Arc<Etcd>, prefix: Vec<u8>, stop: Mutex<Option<oneshot::Sender<()>>> },
}

type Opened = (Shelf, Arc<ArcSwap<Book>>);

impl Shelf {
    pub(super) fn open(kept: &Kept) -> Result<Opened, OpenError> {
        let of = |book: Book, kind| {
            let book = Arc::new(ArcSwap::from_pointee(book));
            (Shelf { book: book.clone(), turn: tokio::sync::Mutex::default(), kind }, book)
        };
        match kept {
            Kept::InMemory => Ok(of(Book::default(), Kind::Memory(Mutex::default()))),
            Kept::File(path) => {
                let wrong = |problem| OpenError::File { path: path.clone(), problem };
                let pairs = read_file(path).map_err(wrong)?;
                Ok(of(Book::read(0, pairs).map_err(wrong)?, Kind::File(path.clone())))
            }
            Kept::Etcd { etcd, prefix } => {
                let prefix = [prefix.as_bytes(), keys::ACCESS].concat();
                follow(etcd.clone(), prefix)
            }
        }
    }

    /// Asks `decide` what to write, in view of all that is there, and writes it.
    pub(super) async fn change<E>(&self, decide: impl Fn(&Book) -> Result<Vec<Write>, E>) -> Result<(), NotStored<E>> {
        let _turn = self.turn.lock().await;
        match &self.kind {
            Kind::Memory(pairs) => {
                let writes = decide(&self.book.load()).map_err(NotStored::Refused)?;
                let mut pairs = pairs.lock().unwrap_or_else(PoisonError::into_inner);
                for (key, value) in writes {
                    match value {
                        Some(value) => drop(pairs.insert(key, value)),
                        None => drop(pairs.remove(&key)),
                    }
                }
                self.believe(0, pairs.clone()).map_err(NotStored::Failed)
            }
            Kind::File(path) => {
                let writes = decide(&self.book.load()).map_err(NotStored::Refused)?;
                let path = path.clone();
                let pairs = tokio::task::spawn_blocking(move || write_file(&path, &writes));
                let pairs = pairs.await.map_err(|e| NotStored::Failed(e.to_string()))?.map_err(NotStored::Failed)?;
                self.believe(0, pairs).map_err(NotStored::Failed)
            }
            Kind::Etcd { etcd, prefix, .. } => self.change_etcd(etcd, prefix, decide).await,
        }
    }

    fn believe(&self, revision: i64, pairs: impl IntoIterator<Item = Pair>) -> Result<(), String> {
        believe(&self.book, Book::read(revision, pairs)?);
        Ok(())
    }

    /// Reads all, decides, and writes if nothing has moved since; else again.
    async fn change_etcd<E>(
        &self,
        etcd: &Etcd,
        prefix: &[u8],
        decide: impl Fn(&Book) -> Result<Vec<Write>, E>,
    ) -> Result<(), NotStored<E>> {
        let failed = |status: tonic::Status| NotStored::Failed(format!("etcd: {}", status.message()));
        for _ in 0..ATTEMPTS_MAX {
            let (revision, kvs) = etcd.all(prefix).await.map_err(failed)?;
            let revisions: std::collections::HashMap<Vec<u8>, i64> =
                kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
            let book = Book::read(revision, pairs_of(prefix, kvs)).map_err(NotStored::Failed)?;
            let writes = decide(&book).map_err(NotStored::Refused)?;
            if writes.len() > WRITES_MAX {
                return Err(NotStored::Failed(format!("{} records at once are too many", writes.len())));
            }
            let key_of = |key: &str| [prefix, key.as_bytes()].concat();
            let mut txn = Txn { compare: vec![Compare::quiet(prefix.to_vec(), revision)], success: Vec::new() };
            for (key, value) in &writes {
                let key = key_of(key);
                txn.compare.push(Compare::unchanged(key.clone(), revisions.get(&key).copied().unwrap_or(0)));
                txn.success.push(match value {
                    Some(value) => Op::put(key, value.clone(), 0),
                    None => Op::delete(key),
                });
            }
            let answer = etcd.txn(txn).await.map_err(failed)?;
            if answer.succeeded {
                let (revision, kvs) = etcd.all(prefix).await.map_err(failed)?;
                return self.believe(revision, pairs_of(prefix, kvs)).map_err(NotStored::Failed);
            }
        }
        Err(NotStored::Failed("others change accounts all the time".into()))
    }

    /// Stops following etcd.
    pub(super) fn stop(&self) {
        if let Kind::Etcd { stop, .. } = &self.kind {
            drop(stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// The later of two counts.
fn believe(shelf: &ArcSwap<Book>, book: Book) {
    let book = Arc::new(book);
    shelf.rcu(|now| if now.revision > book.revision { now.clone() } else { book.clone() });
}

fn pairs_of(prefix: &[u8], kvs: Vec<KeyValue>) -> Vec<Pair> {
    let text = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
    kvs.into_iter().map(|kv| (text(&kv.key), kv.value)).collect()
}

fn read_file(path: &Path) -> Result<Vec<Pair>, String> {
    match path.try_exists() {
        Ok(false) => return Ok(Vec::new()),
        Err(e) => return Err(e.to_string()),
        Ok(true) => {}
    }
    read(&Database::open(path).map_err(|e| e.to_string())?).map_err(|e| e.to_string())
}

fn read(database: &Database) -> Result<Vec<Pair>, redb::Error> {
    let txn = database.begin_read()?;
    let records = match txn.open_table(RECORDS) {
        Ok(records) => records,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut all = Vec::new();
    for pair in records.iter()? {
        let (key, value) = pair?;
        all.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(all)
}

fn write_file(path: &Path, writes: &[Write]) -> Result<Vec<Pair>, String> {
    // Nobody else is to read it, from its first moment on.
    let mut fresh = std::fs::OpenOptions::new();
    fresh.write(true).create(true).truncate(false).mode(0o600).open(path).map_err(|e| e.to_string())?;
    let database = Database::create(path).map_err(|e| e.to_string())?;
    let write = || -> Result<Vec<Pair>, redb::Error> {
        let txn = database.begin_write()?;
        {
            let mut records = txn.open_table(RECORDS)?;
            for (key, value) in writes {
                match value {
                    Some(value) => drop(records.insert(&**key, &**value)?),
                    None => drop(records.remove(&**key)?),
                }
            }
        }
        txn.commit()?;
        read(&database)
    };
    write().map_err(|e| e.to_string())
}

/// Reads what is in etcd and follows it on a thread of its own.
fn follow(options: EtcdOptions, prefix: Vec<u8>) -> Result<Opened, OpenError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread)?;
    let (report, reported) = mpsc::sync_channel(1);
    let (stop, stopped) = oneshot::channel();
    let at = prefix.clone();
    let run = move || {
        runtime.block_on(async move {
            match start(&options, &at).await {
                Err(problem) => drop(report.send(Err(problem))),
                Ok((etcd, book)) => {
                    let revision = book.revision;
                    let book = Arc::new(ArcSwap::from_pointee(book));
                    if report.send(Ok((etcd.clone(), book.clone()))).is_ok() {
                        tokio::select! {
                            () = keep_up(etcd, &at, revision, &book) => {}
                            _ = stopped => {}
                        }
                    }
                }
            }
        });
    };
    std::thread::Builder::new().name("accounts".into()).spawn(run).map_err(OpenError::Thread)?;
    let ended = || OpenError::Etcd("the thread has ended".into());
    let (etcd, book) = reported.recv().map_err(|_| ended())?.map_err(OpenError::Etcd)?;
    let kind = Kind::Etcd { etcd, prefix, stop: Mutex::new(Some(stop)) };
    Ok((Shelf { book: book.clone(), turn: tokio::sync::Mutex::default(), kind }, book))
}

async fn start(options: &EtcdOptions, prefix: &[u8]) -> Result<(Arc<Etcd>, Book), String> {
    let etcd = Arc::new(Etcd::new(options)?);
    let deadline = tokio::time::Instant::now() + START_TIME_MAX;
    loop {
        match etcd.all(prefix).await {
            Ok((revision, kvs)) => return Ok((etcd, Book::read(revision, pairs_of(prefix, kvs))?)),
            Err(status) if tokio::time::Instant::now() > deadline => {
                return Err(format!("{:?}: {}", status.code(), status.message()));
            }
            Err(status) => tracing::debug!(%status, "etcd: cannot read accounts yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads all whenever something has changed: accounts are few, and change seldom.
async fn keep_up(etcd: Arc<Etcd>, prefix: &[u8], revision: i64, book: &ArcSwap<Book>) {
    let mut feed = feed::watch(etcd.clone(), prefix.to_vec(), revision);
    while feed.news.recv().await.is_some() {
        loop {
            match etcd.all(prefix).await {
                Ok((revision, kvs)) => {
                    match Book::read(revision, pairs_of(prefix, kvs)) {
                        Ok(fresh) => believe(book, fresh),
                        Err(problem) => tracing::warn!(problem, "accounts in etcd cannot be read; the old ones hold"),
                    }
                    break;
                }
                Err(status) => tracing::debug!(%status, "etcd: cannot read accounts"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
