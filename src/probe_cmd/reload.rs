//! All sources of targets, read once at the start and again when they change.
//! Promise: a source that is bad changes nothing: the old targets stay, and the log says what is wrong. Reading again
//! happens on a thread of its own, whole; then the differences go to the engine, target by target.

use super::roster::{Roster, Sheet};
use super::source;
use crate::config::probe::{self, Probe};
use crate::{Failure, cli};
use ringspan_engine::engine::GROUPS_MAX;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;

/// A changed file is noticed within this time; one that is still being written is read when it has been still so long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) targets: Vec<String>,
    pub(super) file: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
    /// Of the command line's targets.
    pub(super) sheet: Sheet,
}

impl Sources {
    /// What the flags name.
    pub(super) fn of(args: &cli::Probe, sheet: Sheet) -> Result<Sources, Failure> {
        if args.config.is_some() && args.file.as_deref() == Some(Path::new("-")) {
            return Err(Failure::Usage(
                "--file -: stdin cannot be read again. Try: a file, or file = ... in --config".into(),
            ));
        }
        Ok(Sources { targets: args.targets.clone(), file: args.file.clone(), config: args.config.clone(), sheet })
    }

    /// Reads all. `groups`: those that the engine has; `None`: whatever the file names.
    pub(super) fn read(&self, groups: Option<Vec<String>>) -> Result<(Roster, Probe), Failure> {
        let mut roster = Roster::default();
        let has_groups = groups.is_some();
        roster.groups = groups.unwrap_or_default();
        let sheet = roster.sheet(self.sheet.clone());
        source::arguments(&mut roster, sheet, &self.targets).map_err(Failure::Usage)?;
        if let Some(path) = &self.file {
            source::file(&mut roster, sheet, path).map_err(Failure::Usage)?;
        }
        let config = match &self.config {
            Some(path) => probe::read(path, &mut roster, if has_groups { 0 } else { GROUPS_MAX })?,
            None => Probe::default(),
        };
        roster.close();
        Ok((roster, config))
    }

    fn is_rereadable(&self) -> bool {
        self.file.as_deref() != Some(Path::new("-"))
    }
}

/// Notices changes, and reads again.
pub(super) struct Reload {
    sources: Sources,
    config: Probe,
    groups: Vec<String>,
    stamps: Vec<Option<(SystemTime, u64)>>,
    /// Changed, and not yet still.
    is_moving: bool,
    looked: Duration,
    reading: Option<JoinHandle<Result<(Roster, Probe), Failure>>>,
}

impl Reload {
    /// Of what was read at the start.
    pub(super) fn new(sources: Sources, config: Probe, groups: Vec<String>) -> Reload {
        let looked = Duration::ZERO;
        let mut reload = Reload { sources, config, groups, stamps: vec![], is_moving: false, looked, reading: None };
        reload.stamps = reload.stamp();
        reload
    }

    fn stamp(&self) -> Vec<Option<(SystemTime, u64)>> {
        let files = self.sources.config.iter().chain(&self.sources.file).chain(&self.config.files);
        let of = |path: &PathBuf| std::fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        files.map(of).collect()
    }

    /// Somebody asks for it (SIGHUP). Needs a runtime.
    pub(super) fn ask(&mut self) {
        if !self.sources.is_rereadable() {
            tracing::warn!("--file -: stdin cannot be read again");
        } else if self.reading.is_none() {
            let (sources, groups) = (self.sources.clone(), self.groups.clone());
            self.reading = Some(tokio::task::spawn_blocking(move || sources.read(Some(groups))));
        }
    }

    /// Looks whether files have changed, `now` into the run; what has been read, once it is.
    pub(super) async fn turn(&mut self, now: Duration) -> Option<Roster> {
        if self.sources.config.is_some() && now >= self.looked + LOOK_EVERY && self.reading.is_none() {
            self.looked = now;
            let stamps = self.stamp();
            let has_changed = stamps != self.stamps;
            self.stamps = stamps;
            if self.is_moving && !has_changed {
                self.ask();
            }
            self.is_moving = has_changed;
        }
        if !self.reading.as_ref().is_some_and(JoinHandle::is_finished) {
            return None;
        }
        let read = self.reading.take()?.await;
        let (roster, config) = match read {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                tracing::warn!(%error, "targets not read again: the old ones stay");
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "targets not read again: the old ones stay");
                return None;
            }
        };
        if !config.groups_unknown.is_empty() {
            tracing::warn!(groups = ?config.groups_unknown, "new groups count in none until a restart");
        }
        let same = |config: &Probe| Probe { files: vec![], groups_unknown: vec![], ..config.clone() };
        if same(&config) != same(&self.config) {
            tracing::warn!("[probe] has changed: that takes a restart; policies and targets do not");
        }
        self.config = config;
        self.stamps = self.stamp();
        Some(roster)
    }
}
