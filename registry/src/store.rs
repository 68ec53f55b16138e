//! Persistent records in one file: services that somebody configured, and persistent instances.
//! Promise: when [`Store::commit`] returns `Ok`, the batch is on disk, whole. When it fails, none of it will be there once
//! a later commit succeeds, and one may: a disk that was full is used again. A process killed at any moment leaves a
//! good file.
//! Uses redb (a copy-on-write B-tree, two fsyncs a commit at most). Blocking: belongs on a thread of its own.

mod codec;
#[cfg(test)]
pub(crate) mod tests;

use crate::table::{Change, Changes, Table};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use ringspan_engine::time::Instant;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Keys are the names, joined by NUL, which no name has in it; values are JSON.
const INSTANCES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("instances");
const SERVICES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("services");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// What the two tables mean. A file of another format is refused, not guessed at.
const FORMAT: u64 = 1;
/// Pages that redb keeps in memory: the working set is written, not read, so little is enough. Bytes.
const CACHE_BYTES: usize = 16 << 20;

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
    /// The file is of another version's format.
    #[error("registry store {}: format {found}, this version reads {FORMAT}. Start the version that wrote it, or move the file away", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A record cannot be read.
    #[error("registry store {}: record {key:?}: {problem}. Restore the file from a backup, or move it away", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Its key.
        key: String,
        /// What is wrong with it.
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
    /// [`OpenError`] if it cannot be opened, is another process's, or is of another format.
    pub fn open(path: &Path) -> Result<Store, OpenError> {
        let file = path.to_owned();
        Store::with_database(path, move || builder().create(&file))
    }

    /// As [`Store::open`], on the database that `open` gives; it is asked again after each failure.
    pub(crate) fn with_database(
        path: &Path,
        open: impl Fn() -> Result<Database, DatabaseError> + Send + 'static,
    ) -> Result<Store, OpenError> {
        let open: Open = Box::new(move || open().map_err(|e| e.to_string()));
        let to_error = |problem| OpenError::Open { path: path.to_owned(), problem };
        let database = open().map_err(to_error)?;
        let found = claim(&database).map_err(|e| to_error(e.to_string()))?;
        if found != FORMAT {
            return Err(OpenError::Format { path: path.to_owned(), found });
        }
        Ok(Store { path: path.to_owned(), open, database: Some(database), doubtful: Vec::new(), stats: Arc::default() })
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
        let to_open = |e: redb::Error| OpenError::Open { path: self.path.clone(), problem: e.to_string() };
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
        self.database().and_then(|database| write(database, writes).map_err(|e| e.to_string()))
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

/// Makes the tables and reads which format they are in.
fn claim(database: &Database) -> Result<u64, redb::Error> {
    let txn = database.begin_write()?;
    let format = {
        txn.open_table(INSTANCES)?;
        txn.open_table(SERVICES)?;
        let mut meta = txn.open_table(META)?;
        let found = meta.get("format")?.map(|v| v.value());
        match found {
            Some(found) => found,
            None => {
                meta.insert("format", FORMAT)?;
                FORMAT
            }
        }
    };
    txn.commit()?;
    Ok(format)
}

fn write(database: &Database, writes: &[Write]) -> Result<(), redb::Error> {
    // redb's default durability: commit returns after fsync.
    let txn = database.begin_write()?;
    {
        let mut instances = txn.open_table(INSTANCES)?;
        let mut services = txn.open_table(SERVICES)?;
        for Write { table, key, value } in writes {
            let table = match table {
                Records::Instances => &mut instances,
                Records::Services => &mut services,
            };
            match value {
                Some(value) => drop(table.insert(&**key, &**value)?),
                None => drop(table.remove(&**key)?),
            }
        }
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
