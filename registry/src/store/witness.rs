//! The number of the last acknowledged commit, beside the store. redb steps back to the commit before when the last one's
//! pages are damaged: right for a commit that was cut off, silent loss for one that was acknowledged. This tells them
//! apart.
//! Promise: never ahead of the store, unless the store has lost something. Written after each commit and not synced: it
//! outlives the process (kill -9); after a loss of power it may be behind, which only means that it cannot accuse.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Digits of the number, and a line's end: always the same length, so that a write is one piece of one sector.
const DIGITS: usize = 20;

/// An open witness.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    failed: bool,
}

/// Where the witness of the store at `store` is: beside it, with `.acknowledged` after its name.
pub(super) fn path(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".acknowledged");
    name.into()
}

impl Witness {
    /// Opens it, or makes it, and reads what it says: 0 if it is new, or was cut off by a loss of power.
    pub(super) fn open(store: &Path) -> io::Result<(Witness, u64)> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path(store))?;
        let mut text = [0; DIGITS];
        let said = match file.read_exact_at(&mut text, 0) {
            Ok(()) => std::str::from_utf8(&text).ok().and_then(|t| t.parse().ok()).unwrap_or(0),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(e) => return Err(e),
        };
        Ok((Witness { file, failed: false }, said))
    }

    /// Notes that this commit is acknowledged. A disk that refuses these bytes is told of once; the commit stands.
    pub(super) fn note(&mut self, sequence: u64) {
        let result = self.file.write_all_at(format!("{sequence:0DIGITS$}\n").as_bytes(), 0);
        if let Err(error) = &result
            && !self.failed
        {
            tracing::warn!(%error, "the number of the last stored commit cannot be noted beside the store");
        }
        self.failed = result.is_err();
    }
}
