//! Health of an agent's backends as replicated state: the agent's table, and the bridge's copy of it.
//!
//! ```text
//! agent  set() ─► sequence n+1 ─► CHANGES {generation, first, changes}      bridge  applies n+1, n+2, ... in order
//!        on_welcome(generation) ─► SNAPSHOT {generation, sequence, all}             replaces everything
//!                               ◄── RESYNC {generation}                             saw a gap: the next is a snapshot
//! ```
//! The sequence counts the changes of one agent process; the generation is the bridge's number of the session
//! ([`Welcome`](crate::hello::Welcome)). Promises: the copy is always the table as it was at some sequence, and never
//! goes back; what another generation says is ignored; a lost message costs a snapshot, never a wrong state. A fresh
//! copy knows nothing: all `Unknown` until the snapshot. Pure: `now` comes in, payloads of HEALTH frames go out.

use ringspan_engine::health::Health;
use ringspan_engine::outcome::Code;
use ringspan_engine::time::Instant;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Changes that wait for a carrier at most; past this the next message is a snapshot, which is smaller.
const PENDING_MAX: usize = 1024;

/// Changes in one message: a full message of the longest entries is about 30 KiB, half of what a frame may hold.
const CHANGES_MAX: usize = 256;

/// No process counts this far; above it, additions here could overflow.
const SEQUENCE_MAX: u64 = u64::MAX / 2;

/// What is known of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendHealth {
    /// The verdict.
    pub health: Health,
    /// The outcome that decided it; `None` before the first, and for one this version does not know.
    pub code: Option<Code>,
    /// Since when it is so, on the clock of whoever holds this value. Within a second over the wire.
    pub since: Instant,
    /// Round trip of the deciding probe in microseconds, if it had one.
    pub rtt_us: Option<u32>,
}

impl BackendHealth {
    /// Nothing is known since `now`.
    pub fn unknown(now: Instant) -> BackendHealth {
        BackendHealth { health: Health::Unknown, code: None, since: now, rtt_us: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireHealth {
    Up,
    Down,
    /// Also what a newer agent may say that we have no word for: not routable.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    backend: u16,
    health: WireHealth,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// How long it has been so: the clocks of two machines have nothing in common but their pace.
    age_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rtt_us: Option<u32>,
}

impl Entry {
    pub(crate) fn new(backend: u16, state: &BackendHealth, now: Instant) -> Entry {
        let health = match state.health {
            Health::Up => WireHealth::Up,
            Health::Down => WireHealth::Down,
            Health::Unknown => WireHealth::Unknown,
        };
        let age_ms = u64::try_from(now.since(state.since).as_millis()).unwrap_or(u64::MAX);
        Entry { backend, health, code: state.code.map(|c| c.as_str().to_owned()), age_ms, rtt_us: state.rtt_us }
    }

    pub(crate) fn state(&self, now: Instant) -> BackendHealth {
        let health = match self.health {
            WireHealth::Up => Health::Up,
            WireHealth::Down => Health::Down,
            WireHealth::Unknown => Health::Unknown,
        };
        let code = self.code.as_deref().and_then(|text| Code::ALL.iter().copied().find(|c| c.as_str() == text));
        BackendHealth { health, code, since: now - Duration::from_millis(self.age_ms), rtt_us: self.rtt_us }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Snapshot {
        generation: u64,
        sequence: u64,
        backends: Vec<Entry>,
    },
    Changes {
        generation: u64,
        /// The sequence of the first change.
        first: u64,
        changes: Vec<Entry>,
    },
    Resync {
        generation: u64,
    },
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are always JSON")
    }
}

/// A HEALTH frame that breaks the protocol: the peer's carrier has to go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("health feed: {0}")]
pub struct FeedError(String);

impl FeedError {
    pub(crate) fn new(text: &str) -> FeedError {
        FeedError(text.to_owned())
    }
}

fn parse(payload: &[u8]) -> Result<Message, FeedError> {
    serde_json::from_slice(payload).map_err(|error| FeedError(error.to_string()))
}

/// The agent's table.
#[derive(Debug)]
pub struct HealthSource {
    backends: Vec<BackendHealth>,
    /// Changes so far; the number of the latest one.
    sequence: u64,
    /// The session that is told; `None`: nobody listens.
    generation: Option<u64>,
    snapshot_due: bool,
    /// The latest changes, not yet told; the last one has number `sequence`.
    pending: VecDeque<(u16, BackendHealth)>,
}

impl HealthSource {
    /// For that many backends, all unknown.
    pub fn new(backends: u16, now: Instant) -> HealthSource {
        HealthSource {
            backends: vec![BackendHealth::unknown(now); backends.into()],
            sequence: 0,
            generation: None,
            snapshot_due: false,
            pending: VecDeque::new(),
        }
    }

    /// A backend's verdict has changed.
    ///
    /// # Panics
    /// If there is no such backend.
    pub fn set(&mut self, backend: u16, state: BackendHealth) {
        self.backends[usize::from(backend)] = state;
        self.sequence += 1;
        if self.generation.is_none() || self.snapshot_due {
            return;
        }
        if self.pending.len() == PENDING_MAX {
            self.pending.clear();
            self.snapshot_due = true;
        } else {
            self.pending.push_back((backend, state));
        }
    }

    /// What is known of each backend.
    pub fn backends(&self) -> &[BackendHealth] {
        &self.backends
    }

    /// A carrier of this session will carry the feed from now on: a new session, or another carrier because the one
    /// before is lost, and nobody knows how much of its last messages arrived.
    pub fn on_welcome(&mut self, generation: u64) {
        self.generation = Some(generation);
        self.snapshot_due = true;
        self.pending.clear();
    }

    /// No carrier is left.
    pub fn on_link_lost(&mut self) {
        self.generation = None;
        self.snapshot_due = false;
        self.pending.clear();
    }

    /// A HEALTH frame of the bridge.
    ///
    /// # Errors
    /// [`FeedError`]: the bridge broke the protocol.
    pub fn on_message(&mut self, payload: &[u8]) -> Result<(), FeedError> {
        match parse(payload)? {
            Message::Resync { generation } if Some(generation) == self.generation => {
                self.snapshot_due = true;
                self.pending.clear();
                Ok(())
            }
            Message::Resync { .. } => Ok(()),
            Message::Snapshot { .. } | Message::Changes { .. } => {
                Err(FeedError("the bridge sent what only an agent may".into()))
            }
        }
    }

    /// The next HEALTH payload to send, if there is one; call until `None`, as long as the carrier has room.
    pub fn next_message(&mut self, now: Instant) -> Option<Vec<u8>> {
        let generation = self.generation?;
        if self.snapshot_due {
            self.snapshot_due = false;
            let backends = (0u16..).zip(&self.backends).map(|(i, state)| Entry::new(i, state, now)).collect();
            return Some(Message::Snapshot { generation, sequence: self.sequence, backends }.encode());
        }
        let first = self.sequence + 1 - self.pending.len() as u64;
        let n = self.pending.len().min(CHANGES_MAX);
        let changes: Vec<Entry> = self.pending.drain(..n).map(|(i, state)| Entry::new(i, &state, now)).collect();
        (n > 0).then(|| Message::Changes { generation, first, changes }.encode())
    }
}

/// One backend's new state at the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place in the agent's list.
    pub backend: u16,
    /// What it was.
    pub before: BackendHealth,
    /// What it is.
    pub after: BackendHealth,
}

/// What a HEALTH frame did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// These have changed, in order; may be none (a snapshot that says what was known).
    Changes(Vec<Change>),
    /// Something is missing: send this payload to the agent.
    Gap(Vec<u8>),
    /// Old news, or of another session, or a gap that is asked about already.
    Ignored,
}

/// The bridge's copy for one session of an agent.
#[derive(Debug)]
pub struct HealthView {
    generation: u64,
    backends: Vec<BackendHealth>,
    /// The last change that is in `backends`; `None` before the first snapshot.
    sequence: Option<u64>,
    /// A gap was reported, and no snapshot has come since.
    asked: bool,
    /// The link is lost: what is still under way is of no use.
    over: bool,
}

impl HealthView {
    /// For a new session with that many backends: all unknown.
    pub fn new(generation: u64, backends: u16, now: Instant) -> HealthView {
        let backends = vec![BackendHealth::unknown(now); backends.into()];
        HealthView { generation, backends, sequence: None, asked: false, over: false }
    }

    /// Which session.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is known of each backend.
    pub fn backends(&self) -> &[BackendHealth] {
        &self.backends
    }

    /// A HEALTH frame of the agent.
    ///
    /// # Errors
    /// [`FeedError`]: close the carrier it came on.
    pub fn on_message(&mut self, payload: &[u8], now: Instant) -> Result<Heard, FeedError> {
        match parse(payload)? {
            Message::Snapshot { generation, sequence, backends } => {
                self.check(&backends)?;
                if sequence > SEQUENCE_MAX {
                    return Err(FeedError(format!("sequence {sequence} is past any honest count")));
                }
                let old = self.sequence.is_some_and(|known| sequence < known);
                if self.over || generation != self.generation || old {
                    return Ok(Heard::Ignored);
                }
                if !backends.iter().map(|entry| usize::from(entry.backend)).eq(0..self.backends.len()) {
                    let (n, all) = (backends.len(), self.backends.len());
                    return Err(FeedError(format!("a snapshot of {n} entries is not each of {all} backends in order")));
                }
                (self.sequence, self.asked) = (Some(sequence), false);
                Ok(Heard::Changes(self.take(&backends, now)))
            }
            Message::Changes { generation, first, changes } => {
                self.check(&changes)?;
                if self.over || generation != self.generation {
                    return Ok(Heard::Ignored);
                }
                // Until the snapshot comes, any change is beyond what is known.
                let due = match self.sequence {
                    Some(known) if first <= known + 1 => known + 1 - first,
                    _ if self.asked => return Ok(Heard::Ignored),
                    _ => {
                        self.asked = true;
                        return Ok(Heard::Gap(Message::Resync { generation }.encode()));
                    }
                };
                let news = usize::try_from(due).ok().and_then(|known| changes.get(known..)).unwrap_or_default();
                if news.is_empty() {
                    return Ok(Heard::Ignored);
                }
                self.sequence = self.sequence.map(|known| known + news.len() as u64);
                Ok(Heard::Changes(self.take(news, now)))
            }
            Message::Resync { .. } => Err(FeedError("the agent sent what only a bridge may".into())),
        }
    }

    /// The agent's link is gone: everything is unknown, and stays so in this copy; the next session has its own.
    pub fn on_link_lost(&mut self, now: Instant) -> Vec<Change> {
        let unknown = Entry::new(0, &BackendHealth::unknown(now), now);
        let all: Vec<Entry> =
            (0u16..).zip(&self.backends).map(|(backend, _)| Entry { backend, ..unknown.clone() }).collect();
        self.over = true;
        self.take(&all, now)
    }

    fn check(&self, entries: &[Entry]) -> Result<(), FeedError> {
        match entries.iter().find(|entry| usize::from(entry.backend) >= self.backends.len()) {
            Some(entry) => Err(FeedError(format!("backend {} of {}", entry.backend, self.backends.len()))),
            None => Ok(()),
        }
    }

    fn take(&mut self, entries: &[Entry], now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for entry in entries {
            let (backend, mut after) = (entry.backend, entry.state(now));
            let known = &mut self.backends[usize::from(backend)];
            let before = *known;
            let same = |s: &BackendHealth| (s.health, s.code, s.rtt_us);
            if same(&before) == same(&after) {
                // The same news again is as old as the first time, whatever the network added to its age.
                after.since = before.since.min(after.since);
                known.since = after.since;
                continue;
            }
            *known = after;
            changes.push(Change { backend, before, after });
        }
        changes
    }
}

#[cfg(test)]
mod tests;
