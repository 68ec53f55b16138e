//! What a webhook has done so far.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// How an attempt can end: taken, a status that is final, one that is not, no answer in time, no connection, an answer
/// that broke off or was none.
const ENDS: [&str; 6] = ["taken", "refused", "status", "timeout", "connect", "broken"];

/// Counters of one webhook, from the start.
#[derive(Debug)]
pub struct Stats {
    /// Its name.
    pub name: String,
    /// Events that the receiver has taken.
    pub delivered: AtomicU64,
    /// Events that had no room.
    pub dropped: AtomicU64,
    /// Events that the receiver does not want.
    pub refused: AtomicU64,
    /// Events that were tried often enough.
    pub given_up: AtomicU64,
    /// Events that wait.
    pub waiting: AtomicU64,
    attempts: [AtomicU64; ENDS.len()],
}

impl Stats {
    pub(super) fn new(name: &str) -> Stats {
        let zero = AtomicU64::default;
        let attempts = std::array::from_fn(|_| zero());
        let name = name.to_owned();
        Stats { name, delivered: zero(), dropped: zero(), refused: zero(), given_up: zero(), waiting: zero(), attempts }
    }

    pub(super) fn attempt(&self, end: &str) {
        let at = ENDS.iter().position(|known| *known == end).expect("every end is listed");
        self.attempts[at].fetch_add(1, Relaxed);
    }

    /// Attempts, by how they ended.
    pub fn attempts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ENDS.iter().zip(&self.attempts).map(|(end, count)| (*end, count.load(Relaxed)))
    }

    /// Events, by what became of them.
    pub fn events(&self) -> [(&'static str, u64); 4] {
        let Stats { delivered, dropped, refused, given_up, .. } = self;
        [("delivered", delivered), ("dropped", dropped), ("refused", refused), ("given_up", given_up)]
            .map(|(outcome, count)| (outcome, count.load(Relaxed)))
    }
}
