//! When to read a configuration again: on SIGHUP, and when its file has changed.
//! Promise: a file that is still being written, or that an editor replaces by another (rename, or a symbolic link that
//! moves, as Kubernetes does it), is read once it has been still for a moment; nothing is read twice for one change.
//!
//! ```text
//! inotify on the folder ─▶ look: other time, size or inode? ──no──▶ wait
//!                                  └─yes─▶ still for 200 ms ─▶ changed()
//! ```

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// A file that has been still for this long has been written: editors and `cp` take less between two writes.
const STILL: Duration = Duration::from_millis(200);

/// Why it is time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// SIGHUP.
    Asked,
    /// The file is another one.
    Changed,
}

type Stamp = Option<(SystemTime, u64, u64, u64)>;

/// See the module.
pub(crate) struct WatchFile {
    /// `None`: there is no file, and SIGHUP is told so.
    path: Option<PathBuf>,
    stamp: Stamp,
    stirred: Arc<Notify>,
    hangup: Signal,
    /// `None`: the kernel gives no watch, and SIGHUP is the only way.
    _watcher: Option<RecommendedWatcher>,
}

impl WatchFile {
    /// Needs a runtime. Start it before the file is read the first time: a change in between is not missed.
    pub(crate) fn new(path: Option<&Path>) -> WatchFile {
        let stirred = Arc::new(Notify::new());
        let hangup = signal(SignalKind::hangup()).expect("a runtime with signals can listen for them");
        let path = path.map(Path::to_owned);
        let watcher = path.as_deref().and_then(|path| match watch(path, stirred.clone()) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "changes of the file are not seen: send SIGHUP after one");
                None
            }
        });
        let stamp = path.as_deref().and_then(stamp);
        WatchFile { path, stamp, stirred, hangup, _watcher: watcher }
    }

    /// Ends when it is time to read the file. What was seen is not lost with a future that is dropped.
    pub(crate) async fn due(&mut self) -> Why {
        loop {
            let seen = self.path.as_deref().and_then(stamp);
            // A file that is gone is one that is about to be replaced.
            let changed = seen.is_some() && seen != self.stamp;
            tokio::select! {
                _ = self.hangup.recv() => {
                    if self.path.is_none() {
                        tracing::warn!("SIGHUP: there is no --config to read again");
                        continue;
                    }
                    self.stamp = self.path.as_deref().and_then(stamp);
                    return Why::Asked;
                }
                () = tokio::time::sleep(STILL), if changed => {
                    if self.path.as_deref().and_then(stamp) == seen {
                        self.stamp = seen;
                        return Why::Changed;
                    }
                }
                () = self.stirred.notified(), if !changed => {}
            }
        }
    }
}

/// The folder is watched, not the file: an editor that writes another file in its place would leave us with the old one.
fn watch(path: &Path, stirred: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event| {
        if is_news(&event) {
            stirred.notify_one();
        }
    })?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Whether something may have changed: that a file was opened or read, by us above all, is no news.
pub(crate) fn is_news(event: &notify::Result<Event>) -> bool {
    let is_only_read = |event: &Event| match event.kind {
        EventKind::Access(access) => access != AccessKind::Close(AccessMode::Write),
        _ => false,
    };
    !event.as_ref().is_ok_and(is_only_read)
}

/// What tells one content from another; `None`: no file.
fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino(), meta.ctime_nsec().unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(watch: &mut WatchFile) -> Why {
        tokio::time::timeout(Duration::from_secs(60), watch.due()).await.expect("it was changed")
    }

    /// What is only read has not changed; everything else may have, an error of the watcher too.
    #[test]
    fn reading_is_no_news() {
        let event = |kind| Ok(Event::new(kind));
        assert!(!is_news(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)))));
        assert!(!is_news(&event(EventKind::Access(AccessKind::Close(AccessMode::Read)))));
        assert!(is_news(&event(EventKind::Access(AccessKind::Close(AccessMode::Write)))));
        assert!(is_news(&event(EventKind::Any)) && is_news(&Err(notify::Error::generic("full"))));
    }

    /// Written in place, replaced by a rename, or through a link that moves: each is one change; another file in the
    /// folder is none.
    #[tokio::test]
    async fn changes_are_seen_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("a.toml"), "1").expect("written");
        let mut watch = WatchFile::new(Some(&at("a.toml")));
        std::fs::write(at("a.toml"), "12").expect("written");
        assert_eq!(next(&mut watch).await, Why::Changed);
        std::fs::write(at("new"), "123").expect("written");
        std::fs::rename(at("new"), at("a.toml")).expect("renamed");
        assert_eq!(next(&mut watch).await, Why::Changed);
        std::fs::remove_file(at("a.toml")).expect("removed");
        std::os::unix::fs::symlink(at("one"), at("a.toml")).expect("linked");
        std::fs::write(at("one"), "1234").expect("written");
        assert_eq!(next(&mut watch).await, Why::Changed);
        std::fs::write(at("other"), "x").expect("written");
        let quiet = tokio::time::timeout(2 * STILL, watch.due()).await;
        assert!(quiet.is_err(), "nothing has changed");
    }
}
