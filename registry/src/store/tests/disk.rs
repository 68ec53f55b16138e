//! A disk in memory that fails, or hangs, when told to.

use super::super::{OpenError, Store};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

/// Clones are the same disk; what is on it outlives the stores that use it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    bytes: Arc<InMemoryBackend>,
    trouble: Arc<(Mutex<Trouble>, Condvar)>,
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

    /// Makes it hang at the next write or sync.
    pub(crate) fn hang(&self) {
        self.trouble.0.lock().unwrap().hangs = true;
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
        self.bytes.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate()?;
        self.bytes.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.operate()?;
        self.bytes.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate()?;
        self.bytes.write(offset, data)
    }
}
