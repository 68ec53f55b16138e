//! Persistent records in one file: services that somebody configured, and persistent instances.
//! Promise: when [`Store::commit`] returns `Ok`, the batch is on disk, whole; when it fails, none of it is, and the next
//! one may succeed. A process killed at any moment leaves a good file.
//! Uses redb (a copy-on-write B-tree, two fsyncs a commit at most). Blocking: belongs on a thread of its own.

mod codec;
#[cfg(test)]
mod tests;

use crate::table::{Change, Changes, Table};
use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
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
    stats: Arc<StoreStats>,
}

impl Store {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be opened, is another process's, or is of another format.
    pub fn open(path: &Path) -> Result<Store, OpenError> {
        let file = path.to_owned();
        Store::with_backend(path, move || {
            let mut options = std::fs::File::options();
            let opened = options.read(true).write(true).create(true).truncate(false).open(&file);
            let backend =
                opened.map_err(|e| e.to_string()).and_then(|f| FileBackend::new(f).map_err(|e| e.to_string()));
            backend.map(|b| Box::new(b) as Box<dyn StorageBackend>)
        })
    }

    /// As [`Store::open`], on whatever `backend` gives; it is asked again after each failure.
    pub(crate) fn with_backend(
        path: &Path,
        backend: impl Fn() -> Result<Box<dyn StorageBackend>, String> + Send + 'static,
    ) -> Result<Store, OpenError> {
        let open: Open = Box::new(move || {
            let database = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(Boxed(backend()?));
            database.map_err(|e| e.to_string())
        });
        let to_error = |problem| OpenError::Open { path: path.to_owned(), problem };
        let database = open().map_err(to_error)?;
        let found = claim(&database).map_err(|e| to_error(e.to_string()))?;
        if found != FORMAT {
            return Err(OpenError::Format { path: path.to_owned(), found });
        }
        Ok(Store { path: path.to_owned(), open, database: Some(database), stats: Arc::default() })
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
    /// What went wrong, for people; nothing is stored then.
    pub fn commit(&mut self, batch: &[Arc<Changes>]) -> Result<(), String> {
        let start = std::time::Instant::now();
        let result = self.database().and_then(|database| write(database, batch).map_err(|e| e.to_string()));
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

    fn database(&mut self) -> Result<&Database, String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.open)()?,
        };
        Ok(self.database.insert(database))
    }
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

fn write(database: &Database, batch: &[Arc<Changes>]) -> Result<(), redb::Error> {
    // redb's default durability: commit returns after fsync.
    let txn = database.begin_write()?;
    {
        let mut instances = txn.open_table(INSTANCES)?;
        let mut services = txn.open_table(SERVICES)?;
        for change in batch.iter().flat_map(|c| &c.list).filter(|c| c.is_durable()) {
            match change {
                Change::Instance { service, id, after, .. } => {
                    let key = codec::instance_key(service, id);
                    match after.as_ref().filter(|e| !e.record.ephemeral) {
                        Some(entry) => drop(instances.insert(&*key, &*codec::instance(&entry.record))?),
                        None => drop(instances.remove(&*key)?),
                    }
                }
                Change::Service { service, after, .. } => {
                    let key = codec::service_key(service);
                    match after {
                        Some(meta) => drop(services.insert(&*key, &*codec::service(meta))?),
                        None => drop(services.remove(&*key)?),
                    }
                }
                Change::Health { .. } | Change::Agent { .. } => {}
            }
        }
    }
    txn.commit()?;
    Ok(())
}

/// redb wants a sized backend.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }
}
