//! A disk in memory that fails, hangs, or loses power when told to.

use super::super::{OpenError, Store};
use redb::StorageBackend;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

/// Clones are the same disk; what is on it outlives the stores that use it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    bytes: Arc<Mutex<Bytes>>,
    trouble: Arc<(Mutex<Trouble>, Condvar)>,
}

#[derive(Debug, Default)]
struct Bytes {
    /// What a reader sees.
    now: Vec<u8>,
    /// What a loss of power leaves for sure.
    synced: Vec<u8>,
    /// Writes since the last sync: each may or may not be left.
    since: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Operations that still succeed.
    good: Option<usize>,
    failed: bool,
    hangs: bool,
    /// How many wait because it hangs.
    hanging: usize,
}

impl Disk {
    pub(crate) fn try_store(&self) -> Result<Store, OpenError> {
        let disk = self.clone();
        Store::with_database(Path::new("test"), move || super::super::builder().create_with_backend(disk.clone()))
    }

    pub(crate) fn store(&self) -> Store {
        self.try_store().unwrap()
    }

    /// Lets `good` writes and syncs succeed, and no more after them.
    pub(crate) fn fail_after(&self, good: usize) {
        self.trouble.0.lock().unwrap().good = Some(good);
    }

    /// Whether it has failed since it was last told to.
    pub(crate) fn has_failed(&self) -> bool {
        self.trouble.0.lock().unwrap().failed
    }

    /// Makes it good again.
    pub(crate) fn mend(&self) {
        *self.trouble.0.lock().unwrap() = Trouble::default();
        self.trouble.1.notify_all();
    }

    /// Takes the power away and gives it back: of the writes since the last sync, chance decides which are there, and
    /// of the last one how much.
    pub(crate) fn lose_power(&self, seed: u64) {
        let mut chance = seed;
        let mut coin = |sides: usize| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) as usize % sides
        };
        let mut bytes = self.bytes.lock().unwrap();
        let Bytes { now, synced, since } = &mut *bytes;
        synced.resize(now.len(), 0);
        let last = since.len().saturating_sub(1);
        for (i, (offset, data)) in since.drain(..).enumerate() {
            let left = if i == last { coin(data.len() + 1) } else { data.len() * coin(2) };
            synced[offset..offset + left].copy_from_slice(&data[..left]);
        }
        now.clone_from(synced);
        drop(bytes);
        self.mend();
    }

    /// Makes it hang at the next write or sync.
    pub(crate) fn hang(&self) {
        self.trouble.0.lock().unwrap().hangs = true;
    }

    /// Lets whoever hangs go on, and fails after `good` more writes and syncs.
    pub(crate) fn go_on_for(&self, good: usize) {
        *self.trouble.0.lock().unwrap() = Trouble { good: Some(good), ..Trouble::default() };
        self.trouble.1.notify_all();
    }

    /// Waits until somebody hangs.
    pub(crate) fn until_somebody_hangs(&self) {
        let trouble = self.trouble.0.lock().unwrap();
        drop(self.trouble.1.wait_while(trouble, |t| t.hanging == 0).unwrap());
    }

    fn operate(&self) -> io::Result<()> {
        let mut trouble = self.trouble.0.lock().unwrap();
        trouble.hanging += 1;
        self.trouble.1.notify_all();
        let mut trouble = self.trouble.1.wait_while(trouble, |t| t.hangs).unwrap();
        trouble.hanging = trouble.hanging.saturating_sub(1);
        match &mut trouble.good {
            None => Ok(()),
            Some(0) => {
                trouble.failed = true;
                Err(io::Error::from_raw_os_error(28)) // ENOSPC
            }
            Some(good) => {
                *good -= 1;
                Ok(())
            }
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().now.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes.lock().unwrap().now[offset..offset + out.len()]);
        Ok(())
    }
    /// A journalling file system has a new length at once or not at all; here: at once.
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate()?;
        let mut bytes = self.bytes.lock().unwrap();
        let len = usize::try_from(len).unwrap();
        bytes.now.resize(len, 0);
        bytes.since.retain(|(offset, data)| offset + data.len() <= len);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.operate()?;
        let mut bytes = self.bytes.lock().unwrap();
        bytes.synced = bytes.now.clone();
        bytes.since.clear();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate()?;
        let mut bytes = self.bytes.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        bytes.now[offset..offset + data.len()].copy_from_slice(data);
        bytes.since.push((offset, data.to_vec()));
        Ok(())
    }
}
