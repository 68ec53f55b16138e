//! Whom a proxy before us speaks for: at each of its paths the visitor that its latest header named, whether or not that
//! visitor has a conversation. What comes without a header belongs to that one and to nobody before.
//! Promise: who has a conversation is not forgotten, nobody else before his time while there is room, and beyond
//! [`NAMES_MAX`] those go who have been silent for longest. Pure: time is told.
//!
//! ```text
//! said ──▶ young ──every `time`, or full──▶ old ──the next time──▶ gone, but for those with a conversation
//! heard: found in either, and young again
//! ```

use super::socket::Path;
use std::collections::HashMap;
use std::net::SocketAddr;

/// Names of one listener, besides those of its conversations: as many as one proxy has ports, about 150 bytes each.
pub(super) const NAMES_MAX: usize = 65_536;

/// Who was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// The visitor; `None`: the proxy itself.
    pub(super) source: Option<SocketAddr>,
    /// Where it sent to, if the header says so.
    pub(super) asked: Option<SocketAddr>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Names {
    young: HashMap<Path, Name>,
    old: HashMap<Path, Name>,
    /// A name is known for this long after the latest datagram, and at most twice as long.
    time_ms: u64,
    turned_ms: u64,
    young_max: usize,
}

impl Names {
    /// None yet.
    pub(super) fn new(time_ms: u64) -> Names {
        Names { young: HashMap::new(), old: HashMap::new(), time_ms, turned_ms: 0, young_max: NAMES_MAX / 2 }
    }

    /// From now on the path's datagrams are this one's. `has_conversation` is asked about those who would be forgotten.
    pub(super) fn say(&mut self, path: Path, name: Name, now_ms: u64, has_conversation: impl Fn(&Path, &Name) -> bool) {
        let is_new = !self.young.contains_key(&path);
        if now_ms.saturating_sub(self.turned_ms) >= self.time_ms || (is_new && self.young.len() >= self.young_max) {
            self.turned_ms = now_ms;
            let mut older = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            older.retain(|path, name| has_conversation(path, name));
            for (path, name) in older {
                self.old.entry(path).or_insert(name);
            }
        }
        self.old.remove(&path);
        self.young.insert(path, name);
    }

    /// Whose a datagram without a header is. It is to be [said](Names::say) again, which keeps it young.
    pub(super) fn of(&self, path: &Path) -> Option<Name> {
        self.young.get(path).or_else(|| self.old.get(path)).copied()
    }

    /// The path's datagrams are nobody's.
    pub(super) fn forget(&mut self, path: &Path) {
        self.young.remove(path);
        self.old.remove(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(port: u16) -> Path {
        Path { peer: ([127, 0, 0, 1], port).into(), local: None }
    }

    fn name(port: u16) -> Name {
        Name { source: Some(([203, 0, 113, 9], port).into()), asked: None }
    }

    /// The latest name counts, in both halves of the table, until it is taken back.
    #[test]
    fn the_latest_counts() {
        let mut names = Names::new(1000);
        names.say(path(1), name(1), 0, |_, _| false);
        names.say(path(1), name(2), 0, |_, _| false);
        assert_eq!((names.of(&path(1)), names.of(&path(2))), (Some(name(2)), None));
        // It has become old; what is said of it now is not shadowed.
        names.say(path(2), name(2), 1000, |_, _| false);
        assert_eq!(names.of(&path(1)), Some(name(2)));
        names.say(path(1), name(3), 1001, |_, _| false);
        assert_eq!(names.of(&path(1)), Some(name(3)));
        names.forget(&path(1));
        assert_eq!((names.of(&path(1)), names.of(&path(2))), (None, Some(name(2))));
    }

    /// Silence for one time is not enough to be forgotten, for two it is, unless there is a conversation.
    #[test]
    fn the_silent_are_forgotten() {
        let mut names = Names::new(1000);
        for port in [1, 2, 3] {
            names.say(path(port), name(port), 900, |_, _| false);
        }
        for now_ms in [1000, 1899, 2000] {
            let heard = names.of(&path(1)).expect("it was heard of within its time");
            assert!(names.of(&path(3)).is_some(), "{now_ms}");
            names.say(path(1), heard, now_ms, |_, name| name.source == Some(([203, 0, 113, 9], 2).into()));
        }
        assert_eq!([1, 2, 3].map(|port| names.of(&path(port)).is_some()), [true, true, false]);
    }

    /// However many there are, so many are known, and the latest among them.
    #[test]
    fn there_is_an_end() {
        let mut names = Names { young_max: 10, ..Names::new(1000) };
        for port in 1..=1000 {
            names.say(path(port), name(port), 0, |path, _| path.peer.port() == 7);
            assert!(names.young.len() + names.old.len() <= 21, "{port}");
        }
        let known: Vec<u16> = (1..=1000).filter(|port| names.of(&path(*port)).is_some()).collect();
        assert!(known.len() <= 21 && known[0] == 7 && known.ends_with(&[998, 999, 1000]), "{known:?}");
    }
}
