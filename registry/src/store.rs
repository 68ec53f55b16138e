//! Persistent records in one file: services that somebody configured, and persistent instances.
//! Promise: when [`Store::commit`] returns `Ok`, the batch is on disk, whole. When it fails, none of it will be there once
//! a later commit succeeds, and one may: a disk that was full is used again. A process killed at any moment leaves a
//! good file. A damaged file, or one that lacks an acknowledged commit, is refused, never used with what is left of it.
//! Uses redb (a copy-on-write B-tree, two fsyncs a commit at most). Blocking: belongs on a thread of its own.

mod ahead;
pub(crate) mod codec;
#[cfg(test)]
pub(crate) mod tests;
mod witness;

use crate::table::{Change, Changes, Table};
use ahead::AheadFile;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use ringspan_engine::time::Instant;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use witness::Witness;

/// Keys are the names, joined by NUL, which no name has in it; values are JSON.
const INSTANCES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("instances");
const SERVICES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("services");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// In `META`: which format, and how many commits there have been.
const FORMAT_KEY: &str = "format";
const SEQUENCE_KEY: &str = "sequence";
/// What the two tables mean. A file of another format is refused, not guessed at.
const FORMAT: u64 = 1;
/// Pages that redb keeps in memory: the working set is written, not read, so little is enough. Bytes.
const CACHE_BYTES: usize = 16 << 20;

/// What to do about a file that cannot be used.
const RESCUE: &str = "Try: ringspan registry restore FILE, with the latest snapshot";

/// Why a store cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened: no such folder, no permission, or another process has it.
    #[error("registry store {}: {problem}. Is another ringspan using this data_dir, and may this user write there?", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the store said.
        problem: String,
    },
    /// The file cannot be read for what it is.
    #[error("registry store {}: the file is damaged: {problem}. {RESCUE}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the store said.
        problem: String,
    },
    /// The file is good, but older than what has been acknowledged.
    #[error(
        "registry store {}: it has commit {found} for its last one, and commit {acknowledged} was acknowledged: the \
         file has been damaged, or replaced by an older one. {RESCUE}; or, to go on with what is in it, remove {}",
        path.display(), witness::path(path).display()
    )]
    Lost {
        /// Which file.
        path: PathBuf,
        /// Its last commit.
        found: u64,
        /// The last one that somebody was told of.
        acknowledged: u64,
    },
    /// The file is of another version's format.
    #[error("registry store {}: format {found}, this version reads {FORMAT}. Start the version that wrote it, or move the file away", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A record cannot be read.
    #[error("registry store {}: record {key:?}: {problem}. {RESCUE}", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The cluster's store does not answer, or is not to be reached like this.
    #[error("registry: etcd: {problem}. Try: [registry] endpoints, user and password; etcdctl endpoint health")]
    Etcd {
        /// What it said.
        problem: String,
    },
    /// A thread cannot be started.
    #[error("registry: cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// What a store has done so far. Counters only grow.
#[derive(Debug, Default)]
pub struct StoreStats {
    /// Batches that are on disk.
    pub commits: AtomicU64,
    /// Commands in them.
    pub commands: AtomicU64,
    /// Batches that could not be stored.
    pub failures: AtomicU64,
    /// Commands that wait to be stored now, those under way too.
    pub waiting: AtomicU64,
    /// Time spent in commits, nanoseconds.
    pub commit_ns: AtomicU64,
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);
type Open = Box<dyn Fn() -> Result<Database, String> + Send>;

/// An open store. See the module.
pub struct Store {
    path: PathBuf,
    open: Open,
    /// `None` after a failure: redb refuses to go on then, so it is opened anew.
    database: Option<Database>,
    /// What undoes the batch that failed last: its last fsync may have failed when all of it was written. Nothing else
    /// is stored before this is.
    doubtful: Vec<Write>,
    /// How many commits the file has, at least.
    sequence: u64,
    /// `None`: not a file.
    witness: Option<Witness>,
    stats: Arc<StoreStats>,
}

/// Which of the two tables of records.
#[derive(Clone, Copy)]
enum Records {
    Instances,
    Services,
}

/// One record's new value; `None` removes it.
struct Write {
    table: Records,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Store {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be opened, is another process's, is damaged, or is of another format.
    pub fn open(path: &Path) -> Result<Store, OpenError> {
        let file = path.to_owned();
        let to_error = |error: io::Error| OpenError::Open { path: path.to_owned(), problem: error.to_string() };
        let (witness, acknowledged) = Witness::open(path).map_err(to_error)?;
        match (path.try_exists().map_err(to_error)?, acknowledged) {
            (false, 0) => create(path)?,
            (false, _) => return Err(OpenError::Lost { path: path.to_owned(), found: 0, acknowledged }),
            (true, _) => {}
        }
        let mut store = Store::with_database(path, move || match file.try_exists() {
            // Never a new one in its place: that would be an empty one.
            Ok(false) => Err(StorageError::Io(io::ErrorKind::NotFound.into()).into()),
            _ => open_ahead(&file),
        })?;
        if store.sequence < acknowledged {
            return Err(OpenError::Lost { path: path.to_owned(), found: store.sequence, acknowledged });
        }
        store.witness = Some(witness);
        Ok(store)
    }

    /// As [`Store::open`], on the database that `open` gives; it is asked again after each failure.
    pub(crate) fn with_database(
        path: &Path,
        open: impl Fn() -> Result<Database, DatabaseError> + Send + 'static,
    ) -> Result<Store, OpenError> {
        let database = open().map_err(|e| open_error(path, e.into()))?;
        let open: Open = Box::new(move || open().map_err(|e| e.to_string()));
        let (found, sequence) = claim(&database).map_err(|e| open_error(path, e))?;
        if found != FORMAT {
            return Err(OpenError::Format { path: path.to_owned(), found });
        }
        Ok(Store {
            path: path.to_owned(),
            open,
            database: Some(database),
            doubtful: Vec::new(),
            sequence,
            witness: None,
            stats: Arc::default(),
        })
    }

    /// Counters of this store.
    pub fn stats(&self) -> Arc<StoreStats> {
        self.stats.clone()
    }

    /// Puts every record into `table`.
    ///
    /// # Errors
    /// [`OpenError`] if one cannot be read.
    pub fn load(&self, now: Instant, table: &mut Table) -> Result<(), OpenError> {
        let database = self.database.as_ref().expect("a store that was just opened is open");
        let read = |definition: TableDefinition<'static, &[u8], &[u8]>| -> Result<Vec<Pair>, redb::Error> {
            let stored = database.begin_read()?.open_table(definition)?;
            let mut all = Vec::new();
            for pair in stored.iter()? {
                let (key, value) = pair?;
                all.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(all)
        };
        let to_open = |e: redb::Error| open_error(&self.path, e);
        let to_record = |key: &[u8], problem| OpenError::Record {
            path: self.path.clone(),
            key: String::from_utf8_lossy(key).replace('\0', "/"),
            problem,
        };
        for (key, value) in read(SERVICES).map_err(to_open)? {
            let (service, meta) = codec::read_service(&key, &value).map_err(|e| to_record(&key, e))?;
            table.restore_service(&service, meta);
        }
        for (key, value) in read(INSTANCES).map_err(to_open)? {
            let (service, instance) = codec::read_instance(&key, &value).map_err(|e| to_record(&key, e))?;
            table.restore_instance(now, &service, instance);
        }
        Ok(())
    }

    /// Writes a batch: all the durable changes of these commands, in order.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn commit(&mut self, batch: &[Arc<Changes>]) -> Result<(), String> {
        let start = std::time::Instant::now();
        let result = self.try_commit(batch);
        match &result {
            Ok(()) => {
                self.stats.commits.fetch_add(1, Ordering::Relaxed);
                self.stats.commands.fetch_add(batch.len() as u64, Ordering::Relaxed);
                let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.stats.commit_ns.fetch_add(ns, Ordering::Relaxed);
            }
            Err(_) => {
                self.stats.failures.fetch_add(1, Ordering::Relaxed);
                self.database = None;
            }
        }
        result
    }

    fn try_commit(&mut self, batch: &[Arc<Changes>]) -> Result<(), String> {
        if !self.doubtful.is_empty() {
            let undo = std::mem::take(&mut self.doubtful);
            let undone = self.write(&undo);
            if undone.is_err() {
                self.doubtful = undo;
                return undone;
            }
        }
        let changes = || batch.iter().flat_map(|c| &c.list);
        let result = self.write(&changes().filter_map(|c| write_of(c, false)).collect::<Vec<_>>());
        if result.is_err() {
            self.doubtful = changes().rev().filter_map(|c| write_of(c, true)).collect();
        }
        result
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), String> {
        // One more than the last attempt, whether or not that one is there: numbers only have to grow.
        self.sequence += 1;
        let sequence = self.sequence;
        self.database().and_then(|database| write(database, writes, sequence).map_err(|e| e.to_string()))?;
        if let Some(witness) = &mut self.witness {
            witness.note(sequence);
        }
        Ok(())
    }

    fn database(&mut self) -> Result<&Database, String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.open)()?,
        };
        Ok(self.database.insert(database))
    }
}

/// How every database is opened. A file that something else has damaged is refused, at the price of reading it once.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Opens a file that is there.
fn open_ahead(path: &Path) -> Result<Database, DatabaseError> {
    let file = File::options().read(true).write(true).open(path)?;
    if file.metadata()?.len() == 0 {
        // redb would take it for one that is to be made.
        return Err(StorageError::Io(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")).into());
    }
    builder().create_with_backend(AheadFile::new(file)?)
}

/// Makes a new file, whole or not at all: a process that is killed half-way leaves one under another name.
fn create(path: &Path) -> Result<(), OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let to_error = |error: io::Error| OpenError::Open { path: path.to_owned(), problem: error.to_string() };
    match std::fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(to_error(e)),
        Ok(()) | Err(_) => {}
    }
    let database = builder().create(&fresh).map_err(|e| open_error(path, e.into()))?;
    claim(&database).map_err(|e| open_error(path, e))?;
    drop(database);
    std::fs::rename(&fresh, path).map_err(to_error)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(to_error)
}

/// A file that is damaged, or one that cannot be had: the remedies are not the same.
fn open_error(path: &Path, error: redb::Error) -> OpenError {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    let (path, problem) = (path.to_owned(), error.to_string());
    match &error {
        redb::Error::Corrupted(_) => OpenError::Damaged { path, problem },
        redb::Error::Io(e) if matches!(e.kind(), InvalidData | UnexpectedEof) => OpenError::Damaged { path, problem },
        _ => OpenError::Open { path, problem },
    }
}

/// Makes the tables and reads which format they are in, and how many commits there have been.
fn claim(database: &Database) -> Result<(u64, u64), redb::Error> {
    let txn = database.begin_write()?;
    let found = {
        txn.open_table(INSTANCES)?;
        txn.open_table(SERVICES)?;
        let mut meta = txn.open_table(META)?;
        let sequence = meta.get(SEQUENCE_KEY)?.map_or(0, |v| v.value());
        let found = meta.get(FORMAT_KEY)?.map(|v| v.value());
        match found {
            Some(found) => (found, sequence),
            None => {
                meta.insert(FORMAT_KEY, FORMAT)?;
                (FORMAT, sequence)
            }
        }
    };
    txn.commit()?;
    Ok(found)
}

fn write(database: &Database, writes: &[Write], sequence: u64) -> Result<(), redb::Error> {
    // redb's default durability: commit returns after fsync.
    let txn = database.begin_write()?;
    {
        // A table that is opened is written, and most often services stay as they are.
        let (mut instances, mut services) = (None, None);
        for Write { table, key, value } in writes {
            let (table, definition) = match table {
                Records::Instances => (&mut instances, INSTANCES),
                Records::Services => (&mut services, SERVICES),
            };
            let table = match table {
                Some(table) => table,
                None => table.insert(txn.open_table(definition)?),
            };
            match value {
                Some(value) => drop(table.insert(&**key, &**value)?),
                None => drop(table.remove(&**key)?),
            }
        }
        txn.open_table(META)?.insert(SEQUENCE_KEY, sequence)?;
    }
    txn.commit()?;
    Ok(())
}

/// What a change writes, or what undoes it, if it is of something that is stored.
fn write_of(change: &Change, undo: bool) -> Option<Write> {
    match change {
        Change::Instance { service, id, before, after } if change.is_durable() => {
            let side = if undo { before } else { after };
            let value = side.as_ref().filter(|e| !e.record.ephemeral).map(|e| codec::instance(&e.record));
            Some(Write { table: Records::Instances, key: codec::instance_key(service, id), value })
        }
        Change::Service { service, before, after } => {
            let value = if undo { before } else { after }.as_ref().map(|m| codec::service(m));
            Some(Write { table: Records::Services, key: codec::service_key(service), value })
        }
        Change::Instance { .. } | Change::Health { .. } | Change::Votes { .. } | Change::Agent { .. } => None,
    }
}
