//! What a bridge asks an agent to look at, and what the agent sees there: replicated state both ways, beside the
//! [`health_feed`](crate::health_feed) and on the same carrier.
//!
//! ```text
//! bridge  watch(), unwatch() ─► WATCH {generation, sequence, reset?, add, remove}   agent  looks, each by its own config
//!         applies in order   ◄─ SIGHTED {generation, sequence, reset?, sights}
//! ```
//! A message with `reset` begins anew: everything that was said before is void, and it and the next ones say all there is.
//! It is sent first on each carrier that takes the feed over, so what a lost carrier swallowed is said again. What does not
//! follow the message before it belongs to another carrier or session and is ignored. Pure: payloads of HEALTH frames.

use crate::health_feed::{BackendHealth, Entry, FeedError};
use ringspan_engine::time::Instant;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Places that an agent looks at for a bridge, at most: each is a probe each few seconds.
pub const WATCHES_MAX: u16 = 1024;
/// What one place and its check may take in a message. Bytes.
pub const WATCH_BYTES_MAX: usize = 8 << 10;
/// A message is sent when it has grown to this: with one more it is still below what a frame may hold.
const MESSAGE_BYTES: usize = 32 << 10;
/// Sights in one message: as [`Watch`]es, far below what a frame may hold.
const SIGHTS_MAX: usize = 256;

/// A place to look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Names it in this session; never used twice.
    pub key: u64,
    /// IP address and port, as the agent reaches it.
    pub address: std::net::SocketAddr,
    /// What is asked, and how often. The link does not read it.
    pub check: serde_json::Value,
}

/// Why an agent does not look at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blind {
    /// Its configuration does not let it.
    Denied,
    /// It has no such check, or too many; also what a newer agent may say that we have no word for.
    #[serde(other)]
    Unable,
}

/// What is known of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Which one.
    pub key: u64,
    /// What it is like; unknown if nobody looks.
    pub health: BackendHealth,
    /// Why nobody looks, if so.
    pub blind: Option<Blind>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WireSight {
    key: u64,
    #[serde(flatten)]
    entry: Entry,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blind: Option<Blind>,
}

/// Orders of the bridge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// Which session's.
    pub generation: u64,
    sequence: u64,
    /// Whether all that was ordered before is void.
    #[serde(default)]
    pub reset: bool,
    /// Look at these, too.
    #[serde(default)]
    pub add: Vec<Watch>,
    /// Look at these no longer; before `add`.
    #[serde(default)]
    pub remove: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Watch(Orders),
    Sighted {
        generation: u64,
        sequence: u64,
        #[serde(default)]
        reset: bool,
        sights: Vec<WireSight>,
    },
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are always JSON")
    }
}

/// Reads a payload; `None`: it is the health feed's, or nothing at all.
fn parse(payload: &[u8]) -> Option<Message> {
    serde_json::from_slice(payload).ok()
}

/// The bridge's side, for one session of an agent: what it is to look at, and what it sees.
#[derive(Debug)]
pub struct Lookout {
    generation: u64,
    wanted: BTreeMap<u64, Watch>,
    /// Of the carrier's messages, both ways.
    sent: u64,
    heard: Option<u64>,
    reset_due: bool,
    add: BTreeSet<u64>,
    remove: BTreeSet<u64>,
}

/// What a message of the agent was.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// In order.
    Sights(Vec<Sight>),
    /// Not of this feed.
    NotOurs,
}

impl Lookout {
    /// Of a session that looks at nothing yet.
    pub fn new(generation: u64) -> Lookout {
        let (wanted, add, remove) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Lookout { generation, wanted, sent: 0, heard: None, reset_due: false, add, remove }
    }

    /// Looks at this, too. `false`: it looks at as much as it may, or the check is too long.
    pub fn watch(&mut self, watch: Watch) -> bool {
        let bytes = serde_json::to_vec(&watch).map_or(usize::MAX, |text| text.len());
        if self.wanted.len() >= WATCHES_MAX.into() || bytes > WATCH_BYTES_MAX {
            return false;
        }
        self.add.insert(watch.key);
        self.wanted.insert(watch.key, watch);
        true
    }

    /// Looks at this no longer. Whether it did.
    pub fn unwatch(&mut self, key: u64) -> bool {
        let was = self.wanted.remove(&key).is_some();
        if was && !self.add.remove(&key) {
            self.remove.insert(key);
        }
        was
    }

    /// Another carrier carries the feed from now on.
    pub fn on_carrier(&mut self) {
        self.reset_due = true;
        self.remove.clear();
        self.add = self.wanted.keys().copied().collect();
    }

    /// The next payload to send, if there is one; call until `None`.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        if !self.reset_due && self.add.is_empty() && self.remove.is_empty() {
            return None;
        }
        self.sent += 1;
        let reset = std::mem::take(&mut self.reset_due);
        let remove = std::mem::take(&mut self.remove).into_iter().collect();
        let mut orders = Orders { generation: self.generation, sequence: self.sent, reset, add: Vec::new(), remove };
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES
            && let Some(key) = self.add.pop_first()
        {
            let watch = self.wanted.get(&key).expect("what is to be added is wanted");
            bytes += serde_json::to_vec(watch).map_or(0, |text| text.len());
            orders.add.push(watch.clone());
        }
        Some(Message::Watch(orders).encode())
    }

    /// A HEALTH frame of the agent.
    ///
    /// # Errors
    /// [`FeedError`]: close the carrier it came on.
    pub fn on_message(&mut self, payload: &[u8], now: Instant) -> Result<Seen, FeedError> {
        match parse(payload) {
            Some(Message::Sighted { generation, sequence, reset, sights }) => {
                let follows = match self.heard {
                    Some(heard) if reset => sequence > heard,
                    Some(heard) => heard.checked_add(1) == Some(sequence),
                    None => reset,
                };
                if generation != self.generation || !follows {
                    return Ok(Seen::Sights(Vec::new()));
                }
                self.heard = Some(sequence);
                let known = sights.into_iter().filter(|s| self.wanted.contains_key(&s.key));
                let sight = |s: WireSight| Sight { key: s.key, health: s.entry.state(now), blind: s.blind };
                Ok(Seen::Sights(known.map(sight).collect()))
            }
            Some(Message::Watch(_)) => Err(FeedError::new("the agent sent what only a bridge may")),
            None => Ok(Seen::NotOurs),
        }
    }
}

/// The agent's side: what it is to look at comes in, what it sees goes out.
#[derive(Debug, Default)]
pub struct Scout {
    generation: Option<u64>,
    heard: Option<u64>,
    sent: u64,
    reset_due: bool,
    sights: BTreeMap<u64, Sight>,
    /// Of what was looked at before the last reset: said again if it is wanted again.
    old: BTreeMap<u64, Sight>,
    dirty: BTreeSet<u64>,
}

impl Scout {
    /// What it sees of a place has changed.
    pub fn set(&mut self, sight: Sight) {
        self.sights.insert(sight.key, sight);
        self.dirty.insert(sight.key);
    }

    /// A carrier of this session will carry the feed from now on. Orders of an older session are void.
    pub fn on_welcome(&mut self, generation: u64) -> Option<Orders> {
        let void = (self.generation != Some(generation)).then(|| self.clear());
        self.generation = Some(generation);
        // What it says before the first order nobody would understand, an older bridge least of all.
        self.heard = None;
        self.reset_due = false;
        self.dirty.clear();
        void
    }

    /// No carrier is left: nobody wants to know.
    pub fn on_link_lost(&mut self) -> Orders {
        self.generation = None;
        self.clear()
    }

    fn clear(&mut self) -> Orders {
        (self.heard, self.reset_due) = (None, false);
        self.sights.clear();
        self.old.clear();
        self.dirty.clear();
        Orders { reset: true, ..Orders::default() }
    }

    /// A HEALTH frame of the bridge: orders to carry out, if it is one of ours. `Ok(None)`: it is not.
    ///
    /// # Errors
    /// [`FeedError`]: the bridge broke the protocol.
    pub fn on_message(&mut self, payload: &[u8]) -> Result<Option<Orders>, FeedError> {
        match parse(payload) {
            Some(Message::Watch(orders)) => {
                let follows = orders.reset || self.heard.and_then(|n| n.checked_add(1)) == Some(orders.sequence);
                if Some(orders.generation) != self.generation {
                    return Ok(Some(Orders::default()));
                }
                if !follows {
                    return Err(FeedError::new("orders are missing"));
                }
                self.heard = Some(orders.sequence);
                if orders.reset {
                    // All that is known is said again, on this carrier.
                    self.reset_due = true;
                    self.old = std::mem::take(&mut self.sights);
                    self.dirty.clear();
                }
                for key in &orders.remove {
                    self.sights.remove(key);
                    self.dirty.remove(key);
                }
                for watch in &orders.add {
                    if let Some(sight) = self.old.remove(&watch.key) {
                        self.set(sight);
                    }
                }
                Ok(Some(orders))
            }
            Some(Message::Sighted { .. }) => Err(FeedError::new("the bridge sent what only an agent may")),
            None => Ok(None),
        }
    }

    /// The next payload to send, if there is one; call until `None`.
    pub fn next_message(&mut self, now: Instant) -> Option<Vec<u8>> {
        let generation = self.generation?;
        if self.heard.is_none() || (!self.reset_due && self.dirty.is_empty()) {
            return None;
        }
        self.sent += 1;
        let (reset, sequence) = (std::mem::take(&mut self.reset_due), self.sent);
        let mut sights = Vec::new();
        while sights.len() < SIGHTS_MAX
            && let Some(key) = self.dirty.pop_first()
        {
            let Some(sight) = self.sights.get(&key) else { continue };
            sights.push(WireSight { key, entry: Entry::new(0, &sight.health, now), blind: sight.blind });
        }
        Some(Message::Sighted { generation, sequence, reset, sights }.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_engine::health::Health;
    use ringspan_engine::outcome::Code;

    fn watch(key: u64) -> Watch {
        Watch { key, address: "10.0.0.7:80".parse().expect("an address"), check: serde_json::json!({"type": "tcp"}) }
    }

    fn up(key: u64) -> Sight {
        let health =
            BackendHealth { health: Health::Up, code: Some(Code::L4Ok), since: Instant::ZERO, rtt_us: Some(7) };
        Sight { key, health, blind: None }
    }

    /// Carries all that both have to say; what the agent was ordered and what the bridge heard.
    fn carry(bridge: &mut Lookout, agent: &mut Scout) -> (Vec<Orders>, Vec<Sight>) {
        let (mut orders, mut sights) = (Vec::new(), Vec::new());
        while let Some(payload) = bridge.next_message() {
            orders.extend(agent.on_message(&payload).expect("good orders"));
        }
        while let Some(payload) = agent.next_message(Instant::ZERO) {
            match bridge.on_message(&payload, Instant::ZERO).expect("good sights") {
                Seen::Sights(more) => sights.extend(more),
                Seen::NotOurs => panic!("it is ours"),
            }
        }
        (orders, sights)
    }

    /// Orders and sights come over; a carrier that takes over begins anew, and what the lost one swallowed is there.
    #[test]
    fn both_ways() {
        let (mut bridge, mut agent) = (Lookout::new(3), Scout::default());
        assert!(agent.on_welcome(3).expect("nothing of before counts").reset);
        bridge.on_carrier();
        assert!(bridge.watch(watch(1)) && bridge.watch(watch(2)));
        let (orders, sights) = carry(&mut bridge, &mut agent);
        assert_eq!((orders.len(), orders[0].reset, orders[0].add.len(), sights.len()), (1, true, 2, 0));
        agent.set(up(1));
        agent.set(Sight { blind: Some(Blind::Denied), ..up(2) });
        let (_, sights) = carry(&mut bridge, &mut agent);
        assert_eq!(sights.iter().map(|s| (s.key, s.blind)).collect::<Vec<_>>(), [(1, None), (2, Some(Blind::Denied))]);
        assert_eq!((sights[0].health.health, sights[0].health.code), (Health::Up, Some(Code::L4Ok)));
        // The carrier is lost, with an order and a sight on it.
        bridge.unwatch(2);
        bridge.watch(watch(3));
        agent.set(up(1));
        assert!(bridge.next_message().is_some() && agent.next_message(Instant::ZERO).is_some());
        assert_eq!(agent.on_welcome(3), None, "the same session");
        bridge.on_carrier();
        let (orders, sights) = carry(&mut bridge, &mut agent);
        let added: Vec<u64> = orders[0].add.iter().map(|w| w.key).collect();
        assert_eq!((orders[0].reset, added), (true, vec![1, 3]));
        assert_eq!(sights.iter().map(|s| s.key).collect::<Vec<_>>(), [1], "what is known is said again");
    }

    /// What does not belong is ignored or ends the carrier; nothing is taken for something else.
    #[test]
    fn what_does_not_belong() {
        let (mut bridge, mut agent) = (Lookout::new(3), Scout::default());
        agent.on_welcome(4);
        bridge.on_carrier();
        bridge.watch(watch(1));
        let of_another = bridge.next_message().expect("orders");
        assert_eq!(agent.on_message(&of_another), Ok(Some(Orders::default())), "another session's orders are none");
        assert!(bridge.on_message(&of_another, Instant::ZERO).is_err());
        assert_eq!(agent.on_message(b"{\"resync\":{\"generation\":4}}"), Ok(None));
        assert_eq!(bridge.on_message(b"junk", Instant::ZERO), Ok(Seen::NotOurs));
        agent.on_welcome(3);
        bridge.watch(watch(2));
        let second = bridge.next_message().expect("orders");
        assert!(agent.on_message(&second).is_err(), "the first one is missing");
    }

    /// Nobody has more to look at than is allowed, and no message is too long for a frame.
    #[test]
    fn bounds() {
        let mut bridge = Lookout::new(1);
        bridge.on_carrier();
        let long = serde_json::Value::String("x".repeat(7 << 10));
        for key in 0..u64::from(WATCHES_MAX) {
            assert!(bridge.watch(Watch { check: long.clone(), ..watch(key) }));
        }
        assert!(!bridge.watch(watch(9_999)), "full");
        bridge.unwatch(0);
        assert!(!bridge.watch(Watch { check: serde_json::Value::String("x".repeat(9 << 10)), ..watch(9_999) }));
        assert!(bridge.watch(watch(9_999)));
        let mut messages = 0;
        while let Some(payload) = bridge.next_message() {
            assert!(payload.len() < 60 << 10, "{}", payload.len());
            messages += 1;
        }
        assert!(messages > 100);
    }
}
